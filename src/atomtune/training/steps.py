"""One optimizer step of a run: the model with its adapter, the examples of the step, and the loss.

Every random draw of step n comes from a generator seeded by (seed, n, ...), and the order of the images from (seed,
epoch). So the step is also the position in the data, and a run that was killed and started again ends with the same
bits.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial, reduce
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast, send_to_device
from torch import Tensor

from atomtune import bases
from atomtune.adapters import adapted_layers
from atomtune.method.dictionary import measuring_floors, seeing_tokens
from atomtune.method.floor import Sample, said
from atomtune.method.matched import Moment, matched_filters
from atomtune.sizes import Size
from atomtune.storage import folders
from atomtune.training import diverging, encoding, outcome, sharding, zero
from atomtune.training.config import CustomizeConfig
from atomtune.training.methods import adapt
from atomtune.training.objectives import Noised, prediction_loss
from atomtune.training.optimization import make_optimizer, make_schedule
from atomtune.training.order import batch
from atomtune.training.penalties import Penalties, annealed
from atomtune.training.preserving import Others

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)

Batch = tuple[Noised, list[encoding.Conditioning]]
# As in diffusers' scripts: the frozen base in the precision of the run, the trained weights in float32.
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SHUFFLE, NOISE, DROPOUT, HELD, MATCHED = range(5)  # streams of random numbers
OWN = 2048  # tokens of the subject's images, for each layer, among which matched filters are chosen


def _seed(*counters: int) -> int:
    """A seed that is a function of the counters alone."""
    return int(np.random.SeedSequence(counters).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _generator(*counters: int) -> torch.Generator:
    """A CPU generator whose stream is a function of the counters alone."""
    return torch.Generator().manual_seed(_seed(*counters))


class Steps:
    """The model, the optimizer and one step after the other.

    `start` is the folder of the adapter with which a stopped run goes on; None for a run from its beginning.
    """

    def __init__(
        self,
        config: CustomizeConfig,
        accelerator: Accelerator,
        pipe: DiffusionPipeline,
        cache: encoding.Cache,
        others: dict[Size, Others] | None,
        start: Path | None,
    ):
        self.config, self.accelerator, self.pipe, self.cache, self.others = config, accelerator, pipe, cache, others
        self.objective = encoding.objective_of(pipe, config.snr_gamma)
        self.dtype = PRECISIONS[config.mixed_precision]
        base = bases.denoiser(pipe)
        if config.gradient_checkpointing:
            base.enable_gradient_checkpointing()
        self.model: Any = self._adapted(base, start or config.init_adapter)
        self.dictionaries = [layer.dictionary("default") for layer in adapted_layers(self.model)]
        self.floored = bool(start and config.floor and any(d.floor.measured for d in self.dictionaries))
        if start is None and config.init_adapter is not None:
            self._start_floor()
        self._mean: Any = partial(accelerator.reduce, reduction="mean")
        """Over processes. Not a method: what holds one of ours is freed late, and checkpoints stay open with it."""
        self.penalties = Penalties(config, self.dictionaries, self._mean)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.step, self.loss, self.measured = 0, math.nan, {}
        self.steps = config.total_steps(len(cache.shown.order), accelerator.num_processes)
        optimizer = make_optimizer(config, self.parameters)
        schedule = make_schedule(config, optimizer, self.steps, accelerator.num_processes)
        if accelerator.is_fsdp2:
            sharding.choose_shards(accelerator, self.model)
        if zero.is_used(accelerator):
            zero.partition(accelerator, self.model)
            self.wrapped: Any = self.model
            self.optimizer, self.schedule = accelerator.prepare(optimizer, schedule)
        else:
            self.wrapped, self.optimizer, self.schedule = accelerator.prepare(self.model, optimizer, schedule)

    def _adapted(self, base: torch.nn.Module, start: Path | None) -> Any:
        """The base with a fresh adapter, or with the one in `start`."""
        if start is None:
            model = adapt(base, self.config)
            bases.set_denoiser(self.pipe, model)
            return model
        return folders.load_adapter(self.pipe, start, trainable=True)

    def _advance(self) -> None:
        """One optimizer step. Raises `FloatingPointError`, which names the layer, if the loss or its gradient is not a
        number; the weights are then those of before."""
        if self.config.density_start is not None:
            density = annealed(self.config.density, self.config.density_start, self.step / self.steps)
            for dictionary in self.dictionaries:
                dictionary.sigma.set_density(density)
        # a base's own dropout draws from the global generators
        torch.manual_seed(_seed(self.config.seed, DROPOUT, self.step, self.accelerator.process_index))
        losses, loss = [], math.nan
        for micro in range(self.config.gradient_accumulation_steps):
            with self.accelerator.accumulate(self.wrapped):
                own = self._loss(micro)
                losses.append(self.accelerator.gather(own.detach()).mean())  # pyright: ignore
                self.accelerator.backward(own)
                if self.accelerator.sync_gradients:
                    if sharding.is_used(self.accelerator):
                        sharding.average_gradients(self.parameters, self._mean)
                    for dictionary in self.dictionaries:
                        dictionary.sigma.average_observations(self._mean)
                    self._keep_codes()
                    norm = self.accelerator.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
                    loss = self._finite(losses, norm)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()
        if self.accelerator.optimizer_step_was_skipped:  # because numbers overflowed in fp16
            for dictionary in self.dictionaries:
                dictionary.sigma.discard_observations()
        self.loss = loss if math.isnan(self.loss) else 0.95 * self.loss + 0.05 * loss
        self.step += 1

    def _finite(self, losses: list[Tensor], norm: Any) -> float:
        """The loss of the step. Raises `FloatingPointError` if it, or the norm of its gradient, is not finite."""
        read = [torch.stack(losses).mean()]
        if self.accelerator.scaler is None:  # which skips steps whose gradients overflow in fp16
            read.append(torch.as_tensor(norm).to(read[0]))
        loss, *others = torch.stack(read).tolist()  # the one time in a step that the CPU waits for the GPU
        if math.isfinite(loss) and all(map(math.isfinite, others)):
            return loss
        if math.isfinite(loss):
            what, place = "gradient", (diverging.first_gradient(self.model), -1)
        else:
            what, place = "loss", self._first_output()
        found: Any = self.accelerator.gather(torch.tensor([place], device=self.accelerator.device))
        place = max(found.tolist())  # each process has seen other images
        where = f", {diverging.described(self.model, *place)}" if place[0] >= 0 else ""
        raise FloatingPointError(f"the {what} is not a number any more{where}")

    def _first_output(self) -> tuple[int, int]:
        passes = range(self.config.gradient_accumulation_steps)
        # All of them, because processes may wait for each other in a forward pass.
        places = [diverging.first_output(self.model, lambda micro=micro: self._loss(micro)) for micro in passes]
        return next((place for place in places if place[0] >= 0), (-1, -1))

    def _loss(self, micro: int) -> Tensor:
        """Every process draws the examples of all processes and computes its own, so that two processes do together
        what one does with twice the batch."""
        config, cache = self.config, self.cache
        generator = _generator(config.seed, NOISE, self.step, micro, 0)
        index = self._images(micro)
        dropped = torch.rand(len(index), generator=generator) < config.caption_dropout
        conditionings = [
            cache.empty[i] if drop else cache.conditionings[i] for i, drop in zip(index, dropped, strict=True)
        ]
        seen = index
        if config.random_flip:
            flipped = torch.rand(len(index), generator=generator) < 0.5
            seen = [i + len(cache.sizes) * bool(flip) for i, flip in zip(index, flipped, strict=True)]
        latents = cache.latents.draw(seen, generator)
        size = cache.sizes[index[0]]
        if config.prior_preservation:
            classes = [cache.shown.class_of(image) for image in index]
            drawn = torch.randint(config.num_class_images, (len(index),), generator=generator).tolist()
            drawn = [number * config.num_class_images + image for number, image in zip(classes, drawn)]
            latents = torch.cat([latents, cache.class_latents[size].draw(drawn, generator)])
            conditionings += [cache.class_conditioning[size][number] for number in classes]
        noised = self.objective.add_noise(latents, generator)
        rows = len(latents)
        parts = self._parts(len(index), rows)
        groups = [(noised.rows(part), conditionings[part]) for part in parts]
        if (mask := cache.latents.masks(seen)) is not None:
            groups[0] = (replace(groups[0][0], mask=mask[parts[0]]), groups[0][1])
        if self.others is not None:
            examples, captions = self.others[size].draw(self._others_due(micro), generator)
            captions = send_to_device(captions, self.accelerator.device)
            groups += [(examples.rows(part), captions[part]) for part in self._parts(len(captions))]
            rows += len(captions)
        noised = reduce(Noised.joined, (examples for examples, _ in groups)).to(self.accelerator.device)
        conditionings = [conditioning for _, some in groups for conditioning in some]
        counts = [len(some) for _, some in groups]
        with self.penalties.watched(), self.accelerator.autocast():  # which shards leave to us
            prediction = encoding.predict(self.wrapped, noised, conditionings, self.dtype, cache.family)
        losses = prediction_loss(prediction, noised)
        own, *more = losses.split(counts)
        loss = own.mean() + self.penalties.total(len(losses) * self.accelerator.num_processes / rows)
        if config.prior_preservation:
            loss = loss + config.prior_loss_weight * more[0].mean()
        if self.others is None:
            return loss
        # The sum, over its mean number: some passes have none.
        return loss + config.preserve_weight * more[-1].sum() / (config.preserve_share * config.batch_size)

    def _parts(self, *ends: int) -> list[slice]:
        """This process's share of each group of rows, which end at `ends`."""
        place, processes = self.accelerator.process_index, self.accelerator.num_processes
        starts = (0, *ends[:-1])
        shares = [(start, end - start) for start, end in zip(starts, ends) if end > start or start == 0]
        return [
            slice(start + rows * place // processes, start + rows * (place + 1) // processes) for start, rows in shares
        ]

    def _others_due(self, micro: int) -> int:
        """The number of examples of other prompts in this forward pass, of all processes."""
        if self._is_silent_on_others():
            return 0
        batch = self.config.batch_size * self.accelerator.num_processes
        each, done = self.config.preserve_share * batch, self._passes(micro)
        return math.floor((done + 1) * each) - math.floor(done * each)

    def _is_silent_on_others(self) -> bool:
        """Whether the model answers every example of other prompts as the base does until the run ends, so that they
        add nothing to the loss or its gradient: the floor is above all codes on them, and these stay what they are, as
        D alone trains."""
        config, fixed = self.config, self.config.activation != "batch_topk" and self.config.density_start is None
        others = self.others or {}
        return self.floored and config.floor == 1 and fixed and all(each.all_measured for each in others.values())

    def _passes(self, micro: int) -> int:
        """Forward passes of this process before this one."""
        return self.step * self.config.gradient_accumulation_steps + micro

    def _floor_is_due(self) -> bool:
        if not self.config.floor or not self.dictionaries or self.floored:
            return False
        return self.step >= min(round(self.config.floor_start * self.steps), self.steps - 1)

    def _keep_codes(self) -> None:
        """Once there is a floor, train D alone, so that codes on other prompts stay those that it was measured on.

        Gradients are removed and not switched off, because distributed training waits for them.
        """
        if self.floored:
            for dictionary in self.dictionaries:
                dictionary.sigma.discard_observations()
                for parameter in (*dictionary.encoder.parameters(), *dictionary.sigma.parameters()):
                    parameter.grad = None

    def _start_floor(self) -> None:
        """Begin with the run's own floor: that of `init_adapter` is of its atoms as they were, which now train on."""
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

    def _start_matched(self) -> None:
        """Begin with W_s that the floor will not silence: matched filters, as long as the random ones."""
        if self.others is None or not self.dictionaries:
            return
        config, cache, generator = self.config, self.cache, _generator(self.config.seed, MATCHED)
        others, own = [Moment() for _ in self.dictionaries], [Sample(OWN) for _ in self.dictionaries]
        turns = outcome.examples_in_turn(self.objective, cache, generator, config.batch_size)
        mine = ((examples, [cache.conditionings[image] for image in images]) for images, examples in turns)
        words: list[Tensor] = []
        with seeing_tokens(
            self.dictionaries, lambda layer, tokens: others[layer].add(said(tokens, words).flatten(end_dim=-2))
        ):
            self._run(self._other_examples(), words)
        with seeing_tokens(
            self.dictionaries, lambda layer, tokens: own[layer].add(said(tokens, words).flatten(end_dim=-2))
        ):
            self._run(mine, words)
        for dictionary, moment, sample in zip(self.dictionaries, others, own):
            if not moment.count or sample.rows is None:  # the base does not run this layer
                continue
            weight, tokens, mean = dictionary.encoder.weight.data, sample.rows.float(), moment.mean
            if all(bool(each.isfinite().all() and each.any()) for each in (tokens, mean)):  # else training tells
                filters = matched_filters(tokens, mean, len(weight), generator) * weight.norm(dim=1).mean()
                weight.copy_(broadcast(filters.contiguous()))  # processes may differ in the last bits, and in choices

    def _measure_floor(self) -> None:
        """Measure what the atoms do on other prompts; the floor of the run, if it has one, then acts."""
        if self.others is None or not self.dictionaries:
            return
        words: list[Tensor] = []
        with measuring_floors(self.dictionaries, words):
            self._run(self._other_examples(), words)
        self.floored = bool(self.config.floor)

    def _other_examples(self) -> Iterator[Batch]:
        assert self.others is not None
        return chain.from_iterable(others.batches(self.config.batch_size) for others in self.others.values())

    @torch.no_grad()
    def _run(self, batches: Iterable[Batch], words: list[Tensor]) -> None:
        """Run the model on batches; `words` are then the masks of the texts of the present one."""
        model, device, family = self.model.eval(), self.accelerator.device, self.cache.family
        with self.accelerator.autocast():
            for examples, captions in batches:
                captions: Any = send_to_device(captions, device)
                words[:] = encoding.words(captions, family)
                encoding.predict(model, examples.to(device), captions, self.dtype, family)
        model.train()

    def _held_losses(self) -> dict[str, float]:
        generator, batch_size = _generator(self.config.seed, HELD), self.config.batch_size
        model, device = self.model.eval(), self.accelerator.device
        with self.accelerator.autocast():
            found = outcome.held_losses(model, self.objective, self.cache, generator, batch_size, device, self.dtype)
        self.model.train()
        return found

    def _images(self, micro: int) -> list[int]:
        """Indices of the images of all processes in this step, all of one size (see `order`)."""
        together, seen = self.config.batch_size * self.accelerator.num_processes, self.cache.shown.order
        sizes = [self.cache.sizes[image] for image in seen]
        return [seen[place] for place in batch(self._passes(micro), sizes, together, self._order)]

    def _order(self, epoch: int) -> list[int]:
        """How the images, each as often as it is seen, follow one another in an epoch."""
        generator = _generator(self.config.seed, SHUFFLE, epoch)
        return torch.randperm(len(self.cache.shown.order), generator=generator).tolist()

    def _measured_advance(self) -> None:
        """One optimizer step, in which codes are counted for the numbers of the run."""
        if self.config.method != "atoms":
            self._advance()
            return
        from atomtune.tracing import trace

        with trace(self.model) as counts:
            self._advance()
        for layer in counts.layers:  # a running mean, saved with the adapter: how much each atom is used
            tokens = torch.full_like(layer.usage, layer.tokens)  # each process may have seen another number
            layer.dictionary.usage.lerp_(self._mean(layer.usage * tokens) / self._mean(tokens), 0.2)
        by_layer = [float(layer.firing_rate.mean()) for layer in counts.layers]
        self.measured = {
            "active_per_token": float(counts.active_per_token),
            "density": float(counts.density),
            "density_lowest_layer": min(by_layer),
            "density_median_layer": statistics.median(by_layer),
            "density_highest_layer": max(by_layer),
            "live_atoms": int(counts.alive),
        }
