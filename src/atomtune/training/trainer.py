"""The training loop, and how it stops and continues.

Every random draw of step n comes from a generator seeded by (seed, n, ...), and the order of the pictures from (seed,
epoch). So the step is the position in the data, and a run that was killed and started again ends with the same bits.
"""

from __future__ import annotations

import json
import logging
import math
import statistics
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import cpu_offload_with_hook
from torch import Tensor

from atomtune import pipelines, sampling
from atomtune.adapters import adapted_layers
from atomtune.errors import UserError
from atomtune.files import write_text
from atomtune.training import checkpoints, encoding
from atomtune.training.card import model_card
from atomtune.training.config import CustomizeConfig
from atomtune.training.methods import adapt
from atomtune.training.objectives import objective_for, prediction_loss
from atomtune.training.penalties import Penalties, annealed
from atomtune.training.progress import TrainingBar

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)

# As in diffusers' scripts: the frozen base in the precision of the run, what is trained in float32.
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHUFFLE, NOISE = range(2)  # streams of random numbers


def _generator(*counters: int) -> torch.Generator:
    """A CPU generator whose stream is a function of the counters alone."""
    seed = np.random.SeedSequence(counters).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))


class Trainer:
    """The training loop and what it holds."""

    def __init__(
        self,
        config: CustomizeConfig,
        accelerator: Accelerator,
        pipe: DiffusionPipeline,
        autoencoder: type[torch.nn.Module],
        resolution: int,
        cache: encoding.Cache,
    ):
        self.config, self.accelerator, self.pipe = config, accelerator, pipe
        self.autoencoder, self.resolution, self.cache = autoencoder, resolution, cache
        self.folder = config.out / "checkpoints"
        self.objective = objective_for(pipe.scheduler, config.snr_gamma)
        self.dtype = PRECISIONS[config.mixed_precision]
        base = pipelines.denoiser(pipe)
        if config.gradient_checkpointing:
            base.enable_gradient_checkpointing()
        resumed = checkpoints.newest_checkpoint(self.folder)
        self.model: Any = self._adapted(base, resumed / "adapter" if resumed else config.init_adapter)
        self.dictionaries = [layer.dictionary("default") for layer in adapted_layers(self.model)]
        self.penalties = Penalties(config, self.dictionaries)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.step, self.seconds, self.loss, self.measured = 0, 0.0, math.nan, {}
        optimizer = self._optimizer()
        self.wrapped, self.optimizer, self.schedule = accelerator.prepare(
            self.model, optimizer, self._schedule(optimizer)
        )
        if resumed:
            self._load_state(resumed)

    def _adapted(self, base: torch.nn.Module, start: Path | None) -> Any:
        """The base with a fresh adapter, or with the one in `start`."""
        if start is None:
            model = adapt(base, self.config)
            pipelines.set_denoiser(self.pipe, model)
            return model
        return pipelines.load_adapter(self.pipe, start, trainable=True)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        config, count = self.config, len(self.cache.conditionings)
        in_one_step = config.batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
        return config.steps or math.ceil(config.epochs * count / in_one_step)

    def _optimizer(self) -> torch.optim.Optimizer:
        config = self.config
        if config.optimizer == "CAME":
            from pytorch_optimizer import CAME as kind
        else:
            kind = getattr(torch.optim, config.optimizer, None)
            if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
                raise UserError(
                    f"there is no optimizer {config.optimizer!r}: expected AdamW, CAME or a class of torch.optim."
                )
        try:
            return kind(self.parameters, lr=config.learning_rate, **config.optimizer_options)  # pyright: ignore
        except (TypeError, ValueError) as error:
            raise UserError(f"{config.optimizer} does not take {config.optimizer_options}: {error}.") from error

    def _schedule(self, optimizer: torch.optim.Optimizer):
        from diffusers.optimization import get_scheduler

        processes = self.accelerator.num_processes  # accelerate advances the schedule once for each process
        try:
            return get_scheduler(
                self.config.lr_scheduler,
                optimizer,
                num_warmup_steps=self.config.lr_warmup_steps * processes,
                num_training_steps=self.steps * processes,
            )
        except ValueError as error:
            raise UserError(f"lr_scheduler: {error}.") from error

    # -- one step ---------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """One optimizer step."""
        if self.config.density_start is not None:
            density = annealed(self.config.density, self.config.density_start, self.step / self.steps)
            for dictionary in self.dictionaries:
                dictionary.set_density(density)
        losses = []
        for micro in range(self.config.gradient_accumulation_steps):
            with self.accelerator.accumulate(self.wrapped):
                loss = self._loss(micro)
                losses.append(self.accelerator.gather(loss.detach()).mean())  # pyright: ignore
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    for dictionary in self.dictionaries:
                        dictionary.share_statistics(self._mean)
                    self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
        if self.accelerator.optimizer_step_was_skipped:  # numbers overflowed in fp16
            for dictionary in self.dictionaries:
                dictionary.forget_statistics()
        loss = torch.stack(losses).mean().item()  # the one time in a step that the CPU waits for the GPU
        if not math.isfinite(loss):
            raise self._diverged()
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss
        self.step += 1

    def _loss(self, micro: int) -> Tensor:
        config, cache = self.config, self.cache
        generator = _generator(config.seed, NOISE, self.step, micro, self.accelerator.process_index)
        index = self._pictures(micro)
        dropped = torch.rand(len(index), generator=generator) < config.caption_dropout
        conditionings = [
            cache.empty if drop else cache.conditionings[i] for i, drop in zip(index, dropped, strict=True)
        ]
        latents = cache.latents.draw(index, generator)
        if cache.class_latents is not None:
            drawn = torch.randint(config.num_class_images, (len(index),), generator=generator).tolist()
            latents = torch.cat([latents, cache.class_latents.draw(drawn, generator)])
            conditionings += [cache.class_conditioning] * len(index)
        noised = self.objective.add_noise(latents, generator).to(self.accelerator.device)
        conditioning = encoding.cast(encoding.collate(conditionings), self.dtype)
        with self.penalties.watched():
            prediction = self.wrapped(
                noised.noisy.to(self.dtype), timestep=noised.timesteps, **conditioning, return_dict=False
            )[0]
        losses = prediction_loss(prediction, noised)
        own, prior = losses[: len(index)].mean() + self.penalties.total(), losses[len(index) :]
        return own + config.prior_loss_weight * prior.mean() if len(prior) else own

    def _pictures(self, micro: int) -> list[int]:
        """Which pictures this process sees now: every picture once an epoch, in an order of its own."""
        config, count = self.config, len(self.cache.conditionings)
        batch = (self.step * config.gradient_accumulation_steps + micro) * self.accelerator.num_processes
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
        """Train to the end, write the result and return its numbers."""
        config, accelerator = self.config, self.accelerator
        accelerator.init_trackers("customize", self._hyperparameters())
        self.wrapped.train()
        started, before = time.perf_counter(), self.seconds
        with TrainingBar(self.steps, self.step, disable=not accelerator.is_main_process) as bar:
            while self.step < self.steps:
                if self.step % config.measure_every == 0:
                    self._measured_advance()
                else:
                    self._advance()
                self.seconds = before + time.perf_counter() - started
                accelerator.log({"loss": self.loss, "lr": self.schedule.get_last_lr()[0], **self.measured}, self.step)
                bar.update(self.step, self.loss, self.measured)
                if self.step % config.checkpoint_every == 0 or self.step == self.steps:
                    self._save_checkpoint()
                if config.sample_every and self.step % config.sample_every == 0 and self.step < self.steps:
                    self._sample()
        samples = self._sample()
        summary = self._numbers() | {"samples": samples, "checkpoint": str(self.folder / f"step-{self.step:06d}")}
        if accelerator.is_main_process:
            self._write_adapter(config.out / "adapter")
            summary["adapter_bytes"] = (config.out / "adapter" / "adapter_model.safetensors").stat().st_size
            write_text(config.out / "summary.json", json.dumps(summary, indent=2))
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return summary

    def _measured_advance(self) -> None:
        """A step during which the codes are counted."""
        if self.config.method != "atoms":
            self._advance()
            return
        from atomtune.tracing import trace

        with trace(self.model) as counts:
            self._advance()
        for layer in counts.layers:  # a running mean, which the adapter carries: how much each atom is used
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
        """Over processes."""
        return self.accelerator.reduce(tensor, "mean")  # pyright: ignore[reportReturnType]

    def _numbers(self) -> dict[str, Any]:
        config = self.config
        return {
            "base": config.base,
            "method": config.method,
            "token": config.token,
            "class_name": config.class_name,
            "pictures": len(self.cache.conditionings),
            "resolution": self.resolution,
            **pipelines.precision_and_device(self.pipe),
            "steps": self.step,
            "seconds": round(self.seconds, 2),
            "steps_per_second": round(self.step / self.seconds, 3),
            "loss": self.loss,
            "trainable_parameters": sum(parameter.numel() for parameter in self.parameters),
            **self.measured,
        }

    def _hyperparameters(self) -> dict[str, Any]:
        return {
            name: value if isinstance(value, int | float | str | bool) else str(value)
            for name, value in self.config.to_dict().items()
        }

    def _sample(self) -> list[str]:
        """Draw the sample prompts into `samples/`; the autoencoder is on the device for as long as it decodes."""
        if not self.accelerator.is_main_process:
            return []
        files = []
        self.model.eval()
        vae = pipelines.load_autoencoder(self.config.base, self.autoencoder)
        _, decoding = cpu_offload_with_hook(vae, self.accelerator.device)
        self.pipe.vae = vae
        for number, (prompt, answer) in enumerate(self.cache.samples.items()):
            with encoding.replayed(self.pipe, answer), self.accelerator.autocast():
                (drawing,) = sampling.generate(self.pipe, prompt, seed=self.config.seed, resolution=self.resolution)
            decoding.offload()
            files.append(self.config.out / "samples" / f"step-{self.step:06d}-{number}.png")
            sampling.save_png(drawing.image, files[-1], drawing.settings | {"step": self.step})
        self.pipe.vae = None
        self.model.train()
        return [str(file) for file in files]

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _write_adapter(self, folder: Path) -> None:
        config = self.config
        pipelines.save_adapter(
            self.model,
            folder,
            base=config.base,
            token=config.token,
            class_name=config.class_name,
            license=config.license,
            card=model_card(config, self._numbers()),
        )

    def _save_checkpoint(self) -> None:
        if not all(torch.isfinite(parameter).all() for parameter in self.parameters):
            raise self._diverged()
        scaler = self.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "random": checkpoints.random_state(),
            "numbers": {"seconds": self.seconds, "loss": self.loss, "measured": self.measured},
        }
        if self.accelerator.is_main_process:
            checkpoints.save_checkpoint(
                self.folder, self.step, state, self._write_adapter, self.config.checkpoints_total_limit
            )
        self.accelerator.wait_for_everyone()

    def _load_state(self, checkpoint: Path) -> None:
        state = checkpoints.load_state(checkpoint)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        checkpoints.set_random_state(state["random"])
        self.step = state["step"]
        self.seconds, self.loss, self.measured = (state["numbers"][name] for name in ("seconds", "loss", "measured"))
        logger.info("continuing from %s", checkpoint)
