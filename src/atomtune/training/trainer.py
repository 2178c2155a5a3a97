"""The training loop, and how it stops and continues.

Every random draw of step n comes from a generator seeded by (seed, n, ...), and the order of the images from (seed,
epoch). So the step is also the position in the data, and a run that was killed and started again ends with the same
bits.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import cpu_offload_with_hook
from torch import Tensor

from atomtune import bases, manifest, sampling
from atomtune.adapters import adapted_layers
from atomtune.errors import UserError
from atomtune.files import write_text
from atomtune.method.dictionary import measuring_floors
from atomtune.shell import command_line
from atomtune.storage import folders
from atomtune.training import checkpoints, encoding, outcome
from atomtune.training.card import model_card
from atomtune.training.config import CustomizeConfig
from atomtune.training.interruption import Interruption
from atomtune.training.methods import adapt
from atomtune.training.objectives import objective_for, prediction_loss
from atomtune.training.optimization import make_optimizer, make_schedule
from atomtune.training.penalties import Penalties, annealed
from atomtune.training.preserving import Others, answer_others
from atomtune.training.progress import TrainingBar

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)

# As in diffusers' scripts: the frozen base in the precision of the run, the trained weights in float32.
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHUFFLE, NOISE, DROPOUT, HELD, FLOOR = range(5)  # streams of random numbers


def _seed(*counters: int) -> int:
    """A seed that is a function of the counters alone."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _generator(*counters: int) -> torch.Generator:
    """A CPU generator whose stream is a function of the counters alone."""
    return torch.Generator().manual_seed(_seed(*counters))


class Trainer:
    """The training loop, with the model, the optimizer and the numbers of a run."""

    def __init__(
        self,
        config: CustomizeConfig,
        accelerator: Accelerator,
        pipe: DiffusionPipeline,
        autoencoder: type[torch.nn.Module],
        resolution: int,
        cache: encoding.Cache,
        others: Others | None = None,
    ):
        self.config, self.accelerator, self.pipe = config, accelerator, pipe
        self.autoencoder, self.resolution, self.cache = autoencoder, resolution, cache
        self.others = others
        self.folder = config.out / "checkpoints"
        self.objective = objective_for(pipe.scheduler, config.snr_gamma)
        self.dtype = PRECISIONS[config.mixed_precision]
        base = bases.denoiser(pipe)
        if config.gradient_checkpointing:
            base.enable_gradient_checkpointing()
        resumed = checkpoints.newest_checkpoint(self.folder)
        self.model: Any = self._adapted(base, resumed / "adapter" if resumed else config.init_adapter)
        self.dictionaries = [layer.dictionary("default") for layer in adapted_layers(self.model)]
        if resumed is None:
            self._forget_floor()
        self.penalties = Penalties(config, self.dictionaries)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.step, self.seconds, self.loss, self.measured = 0, 0.0, math.nan, {}
        self.steps = config.total_steps(len(cache.conditionings), accelerator.num_processes)
        optimizer = make_optimizer(config, self.parameters)
        schedule = make_schedule(config, optimizer, self.steps, accelerator.num_processes)
        self.wrapped, self.optimizer, self.schedule = accelerator.prepare(self.model, optimizer, schedule)
        if resumed:
            self._load_state(resumed)

    def _adapted(self, base: torch.nn.Module, start: Path | None) -> Any:
        """The base with a fresh adapter, or with the one in `start`."""
        if start is None:
            model = adapt(base, self.config)
            bases.set_denoiser(self.pipe, model)
            return model
        return folders.load_adapter(self.pipe, start, trainable=True)

    # -- one step ---------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """One optimizer step."""
        if self.config.density_start is not None:
            density = annealed(self.config.density, self.config.density_start, self.step / self.steps)
            for dictionary in self.dictionaries:
                dictionary.sigma.set_density(density)
        # a base's own dropout draws from the global generators
        torch.manual_seed(_seed(self.config.seed, DROPOUT, self.step, self.accelerator.process_index))
        losses = []
        for micro in range(self.config.gradient_accumulation_steps):
            with self.accelerator.accumulate(self.wrapped):
                loss = self._loss(micro)
                losses.append(self.accelerator.gather(loss.detach()).mean())  # pyright: ignore
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    for dictionary in self.dictionaries:
                        dictionary.sigma.average_observations(self._mean)
                    self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
        if self.accelerator.optimizer_step_was_skipped:  # because numbers overflowed in fp16
            for dictionary in self.dictionaries:
                dictionary.sigma.discard_observations()
        loss = torch.stack(losses).mean().item()  # the one time in a step that the CPU waits for the GPU
        if not math.isfinite(loss):
            raise self._diverged()
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss
        self.step += 1

    def _loss(self, micro: int) -> Tensor:
        config, cache = self.config, self.cache
        generator = _generator(config.seed, NOISE, self.step, micro, self.accelerator.process_index)
        index = self._images(micro)
        dropped = torch.rand(len(index), generator=generator) < config.caption_dropout
        conditionings = [
            cache.empty if drop else cache.conditionings[i] for i, drop in zip(index, dropped, strict=True)
        ]
        latents = cache.latents.draw(index, generator)
        if cache.class_latents is not None:
            drawn = torch.randint(config.num_class_images, (len(index),), generator=generator).tolist()
            latents = torch.cat([latents, cache.class_latents.draw(drawn, generator)])
            conditionings += [cache.class_conditioning] * len(index)
        noised = self.objective.add_noise(latents, generator)
        if self.others is not None:
            examples, captions = self.others.draw(self._others_due(micro), generator)
            noised, conditionings = noised.joined(examples), conditionings + captions
        noised = noised.to(self.accelerator.device)
        with self.penalties.watched():
            prediction = encoding.predict(self.wrapped, noised, conditionings, self.dtype)
        losses = prediction_loss(prediction, noised)
        own, prior, other = losses.split([len(index), len(latents) - len(index), len(losses) - len(latents)])
        loss = own.mean() + self.penalties.total()
        if len(prior):
            loss = loss + config.prior_loss_weight * prior.mean()
        # The sum, over its mean number: some passes have none.
        return loss + config.preserve_weight * other.sum() / (config.preserve_share * config.batch_size)

    def _others_due(self, micro: int) -> int:
        """The number of examples of other prompts in this forward pass."""
        each, done = self.config.preserve_share * self.config.batch_size, self._passes(micro)
        return math.floor((done + 1) * each) - math.floor(done * each)

    def _passes(self, micro: int) -> int:
        """Forward passes of this process before this one."""
        return self.step * self.config.gradient_accumulation_steps + micro

    def _floor_is_due(self) -> bool:
        if not self.config.floor or not self.dictionaries:
            return False
        since = self.step - min(round(self.config.floor_start * self.steps), self.steps - 1)
        return since >= 0 and since % max(1, self.steps // 10) == 0

    def _forget_floor(self) -> None:
        """The floor of `init_adapter` is that of its atoms as they were, which now train on."""
        if not self.dictionaries:
            return
        if not self.config.floor and any(dictionary.floor.share.any() for dictionary in self.dictionaries):
            logger.warning(
                "the floor of %s is not that of the atoms that are trained from it: --preserve --floor gives them one",
                self.config.init_adapter,
            )
        for dictionary in self.dictionaries:
            dictionary.floor.start(self.config.floor)
        self.model.peft_config["default"].floor = self.config.floor

    def _measure_floor(self) -> None:
        """Measure what the atoms do on other prompts, and put the floor of the run under them."""
        if self.others is None or not self.dictionaries:
            return
        model, generator = self.model.eval(), _generator(self.config.seed, FLOOR, self.step)
        with measuring_floors(self.dictionaries), self.accelerator.autocast():
            answer_others(model, self.others, generator, self.config.batch_size, self.accelerator.device, self.dtype)
        for dictionary in self.dictionaries:
            dictionary.floor.set(self.config.floor)
        model.train()

    def _held_losses(self) -> dict[str, float]:
        generator, batch_size = _generator(self.config.seed, HELD), self.config.batch_size
        model, device = self.model.eval(), self.accelerator.device
        with self.accelerator.autocast():
            found = outcome.held_losses(model, self.objective, self.cache, generator, batch_size, device, self.dtype)
        self.model.train()
        return found

    def _images(self, micro: int) -> list[int]:
        """Indices of this process's images in this step: every image once in an epoch, in another order in each
        epoch."""
        config, count = self.config, len(self.cache.conditionings)
        batch = self._passes(micro) * self.accelerator.num_processes
        first = (batch + self.accelerator.process_index) * config.batch_size
        places = [divmod(place, count) for place in range(first, first + config.batch_size)]
        orders = {
            epoch: torch.randperm(count, generator=_generator(config.seed, SHUFFLE, epoch)).tolist()
            for epoch in {epoch for epoch, _ in places}
        }
        return [orders[epoch][place] for epoch, place in places]

    def _diverged(self) -> UserError:
        last = next(reversed(checkpoints.checkpoints(self.folder)), None)
        kept = f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
        return UserError(
            f"the loss is not a number any more at step {self.step + 1}; {kept}; start again with a learning rate "
            f"below {self.config.learning_rate:g} in another folder."
        )

    # -- the whole run ----------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Train to the end, write the result and return its numbers.

        Ctrl-C and SIGTERM end the training after the step, with a checkpoint, and raise `KeyboardInterrupt` with a
        sentence about how to continue.
        """
        try:
            return self._finish()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._how_to_continue()) from None

    def _finish(self) -> dict[str, Any]:
        config, accelerator = self.config, self.accelerator
        self._start_trackers()
        self.wrapped.train()
        if self._sample_is_due() and not list((config.out / "samples").glob(f"step-{self.step:06d}-*")):
            self._sample()  # the run was stopped between the checkpoint and its samples
        started, before = time.perf_counter(), self.seconds
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
                if self.step % config.checkpoint_every == 0 or self.step == self.steps or stop:
                    self._save_checkpoint()
                if stop:
                    accelerator.end_training()
                    raise KeyboardInterrupt
                if self._sample_is_due():
                    self._sample()
        if not config.floor:  # for a floor that a user chooses
            self._measure_floor()
        samples = self._sample()
        summary = self._numbers() | {
            "samples": samples,
            "checkpoint": str(checkpoints.checkpoint_folder(self.folder, self.step)),
        }
        if accelerator.is_main_process:
            files = [config.out / "adapter" / name for name in folders.ADAPTER_FILES]
            sheet = config.out / outcome.SHEET
            manifest.record(config.out, *files, config.out / "summary.json", sheet)
            summary |= outcome.judged(config, samples, self.cache.images) | self._held_losses()
            sampling.save_png(outcome.contact_sheet(config.out, self.cache.images, samples), sheet, {"step": self.step})
            summary["next_command"] = outcome.next_command(config, self.cache.backgrounds)
            if self.cache.misfits:
                summary["misfits"] = self.cache.misfits
            self._write_adapter(config.out / "adapter")
            summary["adapter_bytes"] = (config.out / "adapter" / "adapter_model.safetensors").stat().st_size
            write_text(config.out / "summary.json", json.dumps(summary, indent=2))
            checkpoints.remove_old(self.folder, config.checkpoints_total_limit)
        accelerator.wait_for_everyone()
        accelerator.end_training()
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
        processes, last = self.accelerator.num_processes, checkpoints.newest_checkpoint(self.folder)
        command = command_line("customize", "--config", self.config.out / "config.yaml")
        together = f", in {processes} processes as before," if processes > 1 else ""
        goes_on = f"goes on from step {checkpoints.step_of(last)}" if last else "starts again"
        return f"stopped at step {self.step} of {self.steps}: `{command}`{together} {goes_on}."

    def _measured_advance(self) -> None:
        """One optimizer step, in which codes are counted for the numbers of the run."""
        if self.config.method != "atoms":
            self._advance()
            return
        from atomtune.tracing import trace

        with trace(self.model) as counts:
            self._advance()
        for layer in counts.layers:  # a running mean, saved with the adapter: how much each atom is used
            layer.dictionary.usage.lerp_(self._mean(layer.usage), 0.2)
        by_layer = [float(layer.firing_rate.mean()) for layer in counts.layers]
        self.measured = {
            "active_per_token": float(counts.active_per_token),
            "density": float(counts.density),
            "density_lowest_layer": min(by_layer),
            "density_median_layer": statistics.median(by_layer),
            "density_highest_layer": max(by_layer),
            "live_atoms": int(counts.alive),
        }

    def _mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes."""
        return self.accelerator.reduce(tensor, "mean")  # pyright: ignore[reportReturnType]

    def _numbers(self) -> dict[str, Any]:
        config = self.config
        return {
            "base": config.base,
            "method": config.method,
            "token": config.token,
            "class_name": config.class_name,
            "images": len(self.cache.conditionings),
            "resolution": self.resolution,
            **bases.precision_and_device(self.pipe),
            "steps": self.step,
            "seconds": round(self.seconds, 2),
            "steps_per_second": round(self.step / self.seconds, 3),
            "loss": self.loss,
            "processes": self.accelerator.num_processes,
            "trainable_parameters": sum(parameter.numel() for parameter in self.parameters),
            **self.measured,
        }

    def _hyperparameters(self) -> dict[str, Any]:
        return {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in self.config.to_dict().items()
        }

    def _sample(self) -> list[str]:
        """Draw the sample prompts into `samples/`; the autoencoder is on the device only while it decodes."""
        if not self.accelerator.is_main_process:
            return []
        files = []
        self.model.eval()
        vae = bases.load_autoencoder(self.config.base, self.autoencoder)
        _, decoding = cpu_offload_with_hook(vae, self.accelerator.device)
        self.pipe.vae = vae
        for number, (prompt, answer) in enumerate(self.cache.samples.items()):
            with encoding.replayed(self.pipe, answer), self.accelerator.autocast():
                (drawing,) = sampling.generate(self.pipe, prompt, seed=self.config.seed, resolution=self.resolution)
            decoding.offload()
            files.append(self.config.out / "samples" / f"step-{self.step:06d}-{number}.png")
            manifest.record(self.config.out, files[-1])
            sampling.save_png(drawing.image, files[-1], drawing.settings | {"step": self.step})
        self.pipe.vae = None
        self.model.train()
        return [str(file) for file in files]

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _write_adapter(self, folder: Path) -> None:
        config = self.config
        (prompt,) = config.prompts(self.cache.backgrounds, 1)
        folders.save_adapter(
            self.model,
            folder,
            base=config.base,
            token=config.token,
            class_name=config.class_name,
            backgrounds=self.cache.backgrounds,
            license=config.license,
            card=model_card(config, self._numbers(), prompt),
        )

    def _save_checkpoint(self) -> None:
        if not all(torch.isfinite(parameter).all() for parameter in self.parameters):
            raise self._diverged()
        scaler = self.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "numbers": {"seconds": self.seconds, "loss": self.loss, "measured": self.measured},
        }
        if self.accelerator.is_main_process:
            keep, spare = self.config.checkpoints_total_limit, self._finished_checkpoint()
            target = checkpoints.checkpoint_folder(self.folder, self.step)
            manifest.record(self.config.out, *(target / name for name in checkpoints.FILES))
            checkpoints.save_checkpoint(self.folder, self.step, state, self._write_adapter, keep, spare)
        self.accelerator.wait_for_everyone()

    def _finished_checkpoint(self) -> str | None:
        """Name of the checkpoint that summary.json names, while a finished run goes on to more steps."""
        file = self.config.out / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return Path(summary["checkpoint"]).name if "checkpoint" in summary else None

    def _load_state(self, checkpoint: Path) -> None:
        state = checkpoints.load_state(checkpoint)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
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
