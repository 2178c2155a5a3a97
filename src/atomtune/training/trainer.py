"""A whole run: its steps, samples, checkpoints and result, and how it stops and continues."""

from __future__ import annotations

import atexit
import json
import logging
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import cpu_offload_with_hook

from atomtune import bases, manifest, sampling
from atomtune.errors import UserError
from atomtune.files import write_text
from atomtune.shell import command_line
from atomtune.sizes import Size
from atomtune.storage import folders, reading
from atomtune.training import checkpoints, diverging, encoding, outcome, sharding
from atomtune.training.card import model_card
from atomtune.training.config import CustomizeConfig
from atomtune.training.interruption import Interruption
from atomtune.training.journal import Journal
from atomtune.training.preserving import Others
from atomtune.training.progress import TrainingBar
from atomtune.training.steps import Steps

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

_LOST = re.compile("connection (closed|reset)|peer|socket|gloo|nccl|timed out", re.IGNORECASE)
"""What the backends of torch.distributed say when another process no longer answers."""


class Trainer(Steps):
    """The steps of a run, with everything around them."""

    def __init__(
        self,
        config: CustomizeConfig,
        accelerator: Accelerator,
        base: bases.BaseParts,
        resolution: Size,
        cache: encoding.Cache,
        others: dict[Size, Others] | None = None,
        log: Journal | None = None,
    ):
        self.base, self.resolution, self.log = base, resolution, log
        self.folder = config.out / "checkpoints"
        resumed = checkpoints.newest_checkpoint(self.folder)
        super().__init__(config, accelerator, base.pipe, cache, others, resumed / "adapter" if resumed else None)
        self.seconds = 0.0
        if resumed:
            self._load_state(resumed)

    def finish(self) -> dict[str, Any]:
        """Train to the end, write the result and return its numbers.

        Ctrl-C and SIGTERM end the training after the step, with a checkpoint, and raise `KeyboardInterrupt` with a
        sentence about how to continue.
        """
        try:
            return self._finish()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._how_to_continue()) from None
        except FloatingPointError as error:
            raise self._diverged(str(error)) from None
        except RuntimeError as error:
            if self.accelerator.num_processes == 1 or not _LOST.search(str(error)):
                raise
            raise UserError(
                f"another process of this run has ended, so this one cannot go on at step {self.step + 1}: "
                f"{self._continuing()}."
            ) from error

    def _diverged(self, what: str) -> UserError:
        last = next(reversed(checkpoints.checkpoints(self.folder)), None)
        kept = f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
        return UserError(
            f"{what}, at step {self.step + 1}; {kept}; start again with a learning rate below "
            f"{self.config.learning_rate:g} in another folder."
        )

    def _finish(self) -> dict[str, Any]:
        config, accelerator = self.config, self.accelerator
        self._start_trackers()
        self.wrapped.train()
        if self._sample_is_due() and self._in_any_process(not all(file.is_file() for file in self._sample_files())):
            self._sample()  # the run was stopped between the checkpoint and the last of its samples
        started, before = time.perf_counter(), self.seconds
        if self.step == 0 and config.floor and config.init_adapter is None:
            self._start_matched()
        bar = TrainingBar(self.steps, self.step, disable=not accelerator.is_main_process)
        with bar, Interruption(bar.show_stopping) as interruption:
            while self.step < self.steps:
                if self._floor_is_due():  # before the step, whose codes may be counted
                    self._measure_floor()
                if self.step % config.measure_every == 0:
                    self._measured_advance()
                else:
                    self._advance()
                self.seconds = before + time.perf_counter() - started
                accelerator.log({"loss": self.loss, "lr": self.schedule.get_last_lr()[0], **self.measured}, self.step)
                bar.update(self.step, self.loss, self.measured)
                stop = self._in_any_process(interruption.asked)
                if self.log is not None:
                    self.log.step(self.step, self.loss, self.seconds, stop or self.step == self.steps)
                if self.step % config.checkpoint_every == 0 or self.step == self.steps or stop:
                    self._save_checkpoint()
                if stop:
                    self._end_trackers()
                    raise KeyboardInterrupt
                if self._sample_is_due():
                    self._sample()
        if not config.floor:  # for a floor that a user chooses
            self._measure_floor()
        samples = self._sample()
        held_losses = self._held_losses() if self._takes_part else {}
        summary = self._numbers() | {
            "samples": samples,
            "checkpoint": str(checkpoints.checkpoint_folder(self.folder, self.step)),
        }
        if accelerator.is_main_process:
            files = [config.out / "adapter" / name for name in reading.ADAPTER_FILES]
            sheet = config.out / outcome.SHEET
            manifest.record(config.out, *files, config.out / "summary.json", sheet)
            shown, images = self.cache.shown, self.cache.images
            summary |= outcome.joined(outcome.judged(config, shown, samples, images), held_losses)
            drawn = outcome.contact_sheet(config.out, shown, images, samples)
            sampling.save_png(drawn, sheet, {"step": self.step})
            summary["next_command"] = outcome.next_command(config, shown.subjects)
            if self.cache.misfits:
                summary["misfits"] = self.cache.misfits
            self._write_adapter(config.out / "adapter")
            summary["adapter_bytes"] = (config.out / "adapter" / "adapter_model.safetensors").stat().st_size
            write_text(config.out / "summary.json", json.dumps(summary, indent=2))
            checkpoints.remove_old(self.folder, config.checkpoints_total_limit)
        accelerator.wait_for_everyone()
        self._end_trackers()
        return summary

    def _start_trackers(self) -> None:
        """Start the trackers of `report_to`. They choose the names of their files, so the files are listed
        afterwards."""
        logs = self.config.out / "logs"
        before = {*logs.glob("customize"), *logs.glob("customize/**/*")}
        self.accelerator.init_trackers("customize", self._hyperparameters())
        if self.accelerator.is_main_process:
            after = {*logs.glob("customize"), *logs.glob("customize/**/*")}
            manifest.record(self.config.out, *(after - before))

    def _end_trackers(self) -> None:
        """Not `end_training`, which also parts the processes, and there may be another run in them."""
        for tracker in self.accelerator.trackers:
            tracker.finish()
        atexit.register(self.accelerator.state.destroy_process_group)

    def _sample_is_due(self) -> bool:
        every = self.config.sample_every
        return bool(every) and 0 < self.step < self.steps and self.step % every == 0

    def _in_any_process(self, flag: bool) -> bool:
        """Whether the flag is set in any process: the same answer in all, so that all stop at one step."""
        if self.accelerator.num_processes == 1:
            return flag
        flags: Any = self.accelerator.gather(torch.tensor([int(flag)], device=self.accelerator.device))
        return bool(flags.any())

    def _how_to_continue(self) -> str:
        if not self.accelerator.is_main_process:
            return ""
        return f"stopped at step {self.step} of {self.steps}: {self._continuing()}."

    def _continuing(self) -> str:
        processes, last = self.accelerator.num_processes, checkpoints.newest_checkpoint(self.folder)
        command = command_line("customize", "--config", self.config.out / "config.yaml")
        together = f", in {processes} processes as before," if processes > 1 else ""
        goes_on = f"goes on from step {checkpoints.step_of(last)}" if last else "starts again"
        return f"`{command}`{together} {goes_on}"

    def _numbers(self) -> dict[str, Any]:
        config, shown = self.config, self.cache.shown
        words = {"token": shown.subjects[0].token, "class_name": shown.subjects[0].class_name}
        return {
            "base": config.base,
            "method": config.method,
            **({"subjects": [str(subject) for subject in shown.subjects]} if shown.several else words),
            "images": len(self.cache.conditionings),
            "resolution": self.resolution.plain,
            **bases.precision_and_device(self.pipe),
            **({"quantize": config.quantize} if config.quantize else {}),
            "steps": self.step,
            "seconds": round(self.seconds, 2),
            "steps_per_second": round(self.step / self.seconds, 3),
            "loss": self.loss,
            "processes": self.accelerator.num_processes,
            "sharded": sharding.is_used(self.accelerator),
            "trainable_parameters": sum(parameter.numel() for parameter in self.parameters),
            **self.measured,
        }

    def _hyperparameters(self) -> dict[str, Any]:
        return {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in self.config.to_dict().items()
        }

    def _sample(self) -> list[str]:
        """Draw the sample prompts into `samples/`; the autoencoder is loaded for it, and on the device only while it
        decodes. With `offload`, the denoiser then waits on the CPU."""
        if not self._takes_part:
            return []
        self._refuse_removed_folder()
        self.model.eval()
        device, denoising = self.accelerator.device, None
        self.base.load(bases.IMAGES, torch.float32)
        if self.config.offload is not None:
            denoising = cpu_offload_with_hook(self.model, device)[1]
        decoding = cpu_offload_with_hook(self.pipe.vae, device, denoising)[1]
        for file, (prompt, answer) in zip(self._sample_files(), self.cache.samples.items(), strict=True):
            with encoding.replayed(self.pipe, answer), self.accelerator.autocast():
                (drawing,) = sampling.generate(self.pipe, prompt, seed=self.config.seed, resolution=self.resolution)
            decoding.offload()
            if self.accelerator.is_main_process:
                manifest.record(self.config.out, file)
                sampling.save_png(drawing.image, file, drawing.settings | {"step": self.step})
        del decoding  # which holds the autoencoder
        self.base.drop(bases.IMAGES)
        if denoising is not None:
            denoising.remove()
            self.model.to(device)
        self.model.train()
        return [str(file) for file in self._sample_files()]

    @property
    def _takes_part(self) -> bool:
        """Whether the model runs in this process too for what the main process writes: always if it is sharded, because
        each has a part of it."""
        return self.accelerator.is_main_process or sharding.is_used(self.accelerator)

    def _sample_files(self) -> list[Path]:
        samples = self.config.out / "samples"
        return [samples / f"step-{self.step:06d}-{number}.png" for number in range(len(self.cache.samples))]

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _write_adapter(self, folder: Path) -> None:
        config = self.config
        subjects = self.cache.shown.subjects
        (prompt,) = config.prompts(subjects[0], 1)
        targets = self.model.peft_config["default"].target_modules
        modules = targets if isinstance(targets, str) else ", ".join(sorted(targets))
        folders.save_adapter(
            self.model,
            folder,
            base=config.base,
            **reading.words_of(subjects),
            license=config.license,
            card=model_card(config, subjects, modules, self._numbers(), prompt),
        )

    def _save_checkpoint(self) -> None:
        if broken := [name for name, parameter in self._trained() if not torch.isfinite(parameter).all()]:
            place = list(dict(self.model.named_modules())).index(broken[0].rpartition(".")[0])
            raise self._diverged(f"the weights are not numbers any more, {diverging.described(self.model, place)}")
        if self.accelerator.is_fsdp2:
            sharding.reshard(self.model)
        scaler = self.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "processes": self.accelerator.num_processes,
            "numbers": {"seconds": self.seconds, "loss": self.loss, "measured": self.measured},
        }
        if self.accelerator.is_main_process:
            self._refuse_removed_folder()
            keep, spare = self.config.checkpoints_total_limit, self._finished_checkpoint()
            target = checkpoints.checkpoint_folder(self.folder, self.step)
            manifest.record(self.config.out, *(target / name for name in checkpoints.FILES))
            checkpoints.save_checkpoint(self.folder, self.step, state, self._write_adapter, keep, spare)
        self.accelerator.wait_for_everyone()

    def _refuse_removed_folder(self) -> None:
        """Raise `UserError` if the folder of the run is no longer there: a part of a run in a new one could not be told
        from a whole one."""
        if not (self.config.out / "config.yaml").is_file():
            raise UserError(
                f"{self.config.out} was removed or moved while the run was writing into it, so it stopped at step "
                f"{self.step}: move it back and start again, which goes on from its last checkpoint."
            )

    def _trained(self) -> list[tuple[str, torch.Tensor]]:
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def _finished_checkpoint(self) -> str | None:
        """Name of the checkpoint that summary.json names, while a finished run goes on to more steps."""
        file = self.config.out / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return Path(summary["checkpoint"]).name if "checkpoint" in summary else None

    def _load_state(self, checkpoint: Path) -> None:
        state = checkpoints.load_state(checkpoint)
        self.optimizer.load_state_dict(state["optimizer"])
        # The schedule of accelerate moves once for each process in every step.
        now = self.accelerator.num_processes
        moved = state["schedule"]["last_epoch"] * now // state.get("processes", now)
        self.schedule.load_state_dict(state["schedule"] | {"last_epoch": moved})
        self._follow_schedule()
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.seconds, self.loss, self.measured = (state["numbers"][name] for name in ("seconds", "loss", "measured"))
        logger.info("continuing from %s", checkpoint)

    def _follow_schedule(self) -> None:
        """Set the learning rate of the present schedule, which is longer when a run goes on to more steps."""
        schedule = self.schedule.scheduler
        rates = [rate * factor(schedule.last_epoch) for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas)]
        for group, rate in zip(self.optimizer.param_groups, rates):
            group["lr"] = rate
        schedule._last_lr = rates
