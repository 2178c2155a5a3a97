"""`trace`: record the codes while a model runs.

    with trace(model, codes=True) as t:
        pipe("a sks teapot on the moon")
    t.active_per_token, t.alive, t.silent       over the whole model
    t["L6"].mean_energy, t["L6"].maps()         one layer: a number or a map for each of its atoms
    t["L6"].codes(500)                          every code at one timestep: [samples, tokens, atoms]
    t["L6[114]"].firing_rate                    one atom, by its address
    t["L6[114]"].maps()[0]                      where it acts in the first sample
    t.top_tokens("L6[114]", tokenizer)          for a text model: the words at which it fires most

The recorded codes are those that multiply D, after mixing and gain: the input of each layer's `decoder`. Running sums
are kept for each timestep and each sample, [M] numbers a layer; so a long run needs no more memory than a short one.
`codes=True` also keeps every nonzero code, sparse, from which maps are made. After the block no hook is left in the
model, and the trace does not change when the adapter is pruned or trained further. The usage of each atom stays with it
in memory, so that `board.keep(40)` can rank atoms that were trained in a loop without statistics.

Samples are the rows of the batches, numbered as they come. Under classifier-free guidance a pipeline runs two halves in
one batch, first without the prompt and then with it. They are recognised because both have the same noisy image (so
draw images of one noise without guidance by `atomtune.generate`, which says that there is none, or one by one), and
their statistics are separate: GUIDED is the half with the prompt, or everything if there is no guidance. Families in
which the prompt comes first, or which run the two halves one after the other, are in `bases.families`.

Timesteps are those of the sampler, from 1000 (noise) to 0, also where the denoiser counts from 0 to 1 or backwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from atomtune.adapters.layer import named_layers
from atomtune.addresses import find
from atomtune.bases.families import family_of_denoiser
from atomtune.errors import UserError
from atomtune.kept import NO_GUIDANCE, ModelRun
from atomtune.recording import AtomTrace, LayerTrace


def bare_model(model: Any) -> Any:
    """The model inside PEFT's wrapper, or that of the denoiser of a pipeline. Its forward always runs, also when the
    wrapper is not called."""
    if not isinstance(model, nn.Module):
        model = getattr(model, "transformer", None) or model.unet
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]


def timesteps(model: nn.Module, args: tuple, kwargs: dict) -> Tensor | None:
    """The sampler's timestep in a call of a denoiser, from 1000 (noise) to 0 whatever the denoiser's own clock is, as
    float [1] or [batch] on the CPU; None where there is none."""
    family = family_of_denoiser(model)
    given = _argument(model, args, kwargs, family.time if family else "timestep")
    if given is None:
        return None
    times = torch.as_tensor(given).detach().float().cpu().reshape(-1)
    return family.clock.timesteps(times) if family else times


def _argument(model: nn.Module, args: tuple, kwargs: dict, name: str) -> Any:
    if name in kwargs or not args:
        return kwargs.get(name)
    names = list(inspect.signature(model.forward).parameters)
    return args[names.index(name)] if name in names[: len(args)] else None


def _equal(a: Any, b: Any) -> bool:
    """Whether two batches of images, tensors or lists of tensors, are the same."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return isinstance(a, list) and isinstance(b, list) and len(a) == len(b) and all(map(_equal, a, b))


def _two_halves(times: Tensor, images: Any) -> bool:
    """Whether a batch is the same images twice, at one timestep."""
    if not isinstance(images, Tensor | list) or len(images) % 2 or not bool((times == times[0]).all()):
        return False
    return _equal(images[: len(images) // 2], images[len(images) // 2 :])


@dataclass(frozen=True)
class TopToken:
    """A token at which an atom fires, in its context."""

    token: str
    strength: float
    """s_m, with its sign."""
    before: str
    after: str
    sample: int
    """Which of the texts, counted from 0 in the order in which they were run."""
    position: int
    """Which of its tokens, counted from 0."""

    def __str__(self) -> str:
        return f"{self.strength:+.3g}  {self.before}[{self.token}]{self.after}"

    @classmethod
    def of(cls, tokenizer: Any, ids: list[int], sample: int, position: int, strength: float, context: int) -> TopToken:
        """With up to `context` tokens on either side."""
        # Cut out of longer texts, because some tokenizers drop the space before a lone token.
        first, ends = max(0, position - context), (position, position + 1, position + 1 + context)
        before, with_token, whole = (tokenizer.decode(ids[first:end]) for end in ends)
        if not (with_token.startswith(before) and whole.startswith(with_token)):  # a character of several tokens
            token, after = (tokenizer.decode(part) for part in ([ids[position]], ids[position + 1 :][:context]))
        else:
            token, after = with_token[len(before) :], whole[len(with_token) :]
        return cls(token, strength, before, after, sample, position)


class Trace:
    """Statistics of one adapter's codes. Use as a context manager; entering it again starts from zero."""

    def __init__(self, model: Any, adapter: str = "default", codes: bool = False) -> None:
        self._model, self._adapter, self._codes = bare_model(model), adapter, codes
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._run = self._before = ModelRun()
        self.layers: list[LayerTrace] = []
        """One for each adapted layer, in the order of their addresses."""
        self.input_ids: list[Int[Tensor, " tokens"]] = []
        """The tokens of each sample, for a text model with `codes=True`."""
        self._masks: list[Tensor | None] = []
        self._images: Any = None

    def __enter__(self) -> Trace:
        if self._hooks:
            raise UserError("this trace is recording already: use another one for a block inside its block.")
        if not (adapted := named_layers(self._model, self._adapter)):
            raise UserError(
                f"{type(self._model).__name__} carries no atoms under the name {self._adapter!r}: attach or load an "
                "adapter."
            )
        self._run = self._before = ModelRun()
        self.input_ids, self._masks = [], []
        self.layers = [LayerTrace(own.dictionary(self._adapter), self._codes, name) for name, own in adapted.items()]
        self._hooks = [self._model.register_forward_pre_hook(self._before_run, prepend=True, with_kwargs=True)]
        self._hooks.append(self._model.register_forward_hook(self._after_run, with_kwargs=True))
        for layer in self.layers:

            def record(_module: nn.Module, inputs: tuple[Tensor, ...], layer: LayerTrace = layer) -> None:
                # In the backward pass, gradient checkpointing repeats forward passes that were recorded already.
                if torch._C._current_graph_task_id() == -1:
                    layer.record(inputs[0], self._run)

            self._hooks.append(layer.dictionary.decoder.register_forward_pre_hook(record, prepend=True))
        return self

    def __exit__(self, exception: object, *_more: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._images = [], None
        whole = exception is None and any(layer.tokens for layer in self.layers)
        for layer in self.layers:
            layer.close(whole)

    def __getitem__(self, address: str) -> Any:
        """The `AtomTrace` at "L6[114]", a list of them at "L6[0:40]", or the `LayerTrace` at "L6". Raises `UserError`
        when there is none."""
        place, rows = find(address, [(layer.number, layer.ids) for layer in self.layers], "trace")
        layer = self.layers[place]
        if rows is None:
            return layer
        return AtomTrace(layer, rows) if isinstance(rows, int) else [AtomTrace(layer, row) for row in rows]

    def __repr__(self) -> str:
        head = f"Trace of {self._adapter!r}: "
        if not any(layer.tokens for layer in self.layers):
            return f"{head}nothing was run in its block yet"
        atoms, samples = sum(map(len, self.layers)), max(len(layer.samples) for layer in self.layers)
        numbers = f"{self.alive:,} of {atoms:,} atoms fired, {self.active_per_token:.3g} a token in each layer, "
        seen = f"{samples:,} sample{'' if samples == 1 else 's'}{', codes kept' if self._codes else ''}"
        return "\n".join([f"{head}{numbers}{seen}", *(f"  {layer!r}" for layer in self.layers)])

    def strongest(self, count: int, by: Sequence[Tensor] | None = None) -> list[AtomTrace]:
        """The `count` atoms, of all layers, of the largest scores, the strongest first; only those above 0.

        `by` has scores [M] of each layer, such as `influence_sizes`; by default `mean_energy`, what an atom adds to its
        own layer's output, compared across layers as it is.
        """
        scores = torch.cat([*by] if by is not None else [layer.mean_energy for layer in self.layers])
        starts = torch.tensor([0, *(len(layer) for layer in self.layers)]).cumsum(0)
        found = []
        for place in scores.topk(min(count, len(scores))).indices.tolist():
            if scores[place] > 0:
                number = int(torch.searchsorted(starts, place, right=True)) - 1
                found.append(AtomTrace(self.layers[number], place - int(starts[number])))
        return found

    def top_tokens(self, address: str, tokenizer: Any, count: int = 10, context: int = 8) -> list[TopToken]:
        """For a text model: the `count` tokens at which an atom fires most strongly, |s_m| falling, with their text and
        up to `context` tokens on either side. `tokenizer` is that of the model; padding is left out.

        Run whole texts in the block of `trace(model, codes=True)`. Raises `UserError` if that was not done.
        """
        if not isinstance(atom := self[address], AtomTrace):
            raise UserError(f"top tokens are those of one atom, got {address!r}: give an address such as L0[3].")
        atom.layer._kept_codes()  # raises if there are none
        if not self.input_ids:
            raise UserError("this trace has no input_ids: run a text model in its block, with input_ids.")
        for codes in atom.layer.kept_codes:
            for sample in range(codes.first_sample, codes.first_sample + codes.shape[0]):
                own = len(self.input_ids[sample]) if sample < len(self.input_ids) else 0
                if own != codes.shape[1]:
                    raise UserError(
                        f"{atom.layer.address} saw {codes.shape[1]} tokens of text {sample}, which has {own}: choose a "
                        "layer that sees the input_ids."
                    )
        found = []
        for sample, position, strength in atom.top_tokens(sum(map(len, self.input_ids))):
            mask = self._masks[sample]
            if len(found) < count and (mask is None or mask[position]):
                ids = self.input_ids[sample].tolist()
                found.append(TopToken.of(tokenizer, ids, sample, position, strength, context))
        return found

    def _before_run(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """Find out whether this run is the next step of the same samples, their other half, or one of new samples."""
        family, before, times = family_of_denoiser(model), self._before, timesteps(model, args, kwargs)
        images = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor | list)), None)
        samples = len(images) if isinstance(images, Tensor | list) else 1
        run = ModelRun(times, "guided", before.first_sample + before.samples, samples)
        apart = family is not None and family.guided_apart
        if times is not None and not apart and not NO_GUIDANCE.get() and _two_halves(times, images):
            run.halves = "both, guided first" if family and family.prompt_first else "both"
            run.samples = samples // 2
        if times is not None and before.timesteps is not None and run.samples == before.samples:
            if float(times[0]) < float(before.timesteps[0]):
                run.first_sample = before.first_sample
            elif apart and before.halves == "guided" and _equal(images, self._images):
                run.halves, run.first_sample = "unguided", before.first_sample
        if family:
            arguments = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
            run.sight = family.tokens.seen(model.config, arguments)  # pyright: ignore[reportArgumentType]
        self._run, self._images = run, images

    def _after_run(self, model: nn.Module, args: tuple, kwargs: dict, _answer: object) -> None:
        """A run counts only when it has ended: `training.encoding` stops runs early, to read their arguments."""
        self._before = self._run
        if self._codes and isinstance(ids := _argument(model, args, kwargs, "input_ids"), Tensor):
            missing = self._run.first_sample - len(self.input_ids)  # samples that were run without tokens
            mask = _argument(model, args, kwargs, "attention_mask")
            masked = isinstance(mask, Tensor) and mask.shape == ids.shape
            self.input_ids += [ids.new_empty(0).cpu()] * missing + [*ids.detach().cpu().unbind()]
            self._masks += [None] * missing + [*(mask.detach().cpu().unbind() if masked else [None] * len(ids))]

    def guided_rows(self, batch: int) -> range:
        """The rows of a layer's batch that have the prompt in the present run; the others are guidance's other half."""
        return self._run.rows(batch)[1]

    @property
    def active_per_token(self) -> float:
        """Mean number of atoms that one token uses in one layer."""
        return self._fired / self._tokens

    @property
    def density(self) -> float:
        """Mean share of a layer's atoms that one token uses."""
        fired = self.active_per_token * self._tokens  # raises if no tokens were seen
        return fired / sum(layer.tokens * len(layer) for layer in self.layers)

    @property
    def silent(self) -> float:
        """Share of the tokens, over all layers, in which no atom fired, 0 to 1: there the adapter adds nothing."""
        return sum(layer.silent for layer in self.layers) / self._tokens

    @property
    def alive(self) -> int:
        """Number of atoms, over all layers, that fired at least once."""
        return sum(int((layer.fired > 0).sum()) for layer in self.layers)

    @property
    def _fired(self) -> int:
        return sum(int(layer.fired.sum()) for layer in self.layers)

    @property
    def _tokens(self) -> int:
        tokens = sum(layer.tokens for layer in self.layers)
        if tokens == 0:
            raise UserError(
                "the trace saw no tokens: run the model inside the block, uncompiled and with the adapter active."
            )
        return tokens


def trace(model: Any, adapter: str = "default", codes: bool = False) -> Trace:
    """Record statistics of an adapter's codes while the block runs. `model` is an adapted model, or a pipeline.

    With `codes`, every nonzero code of the guided half is kept too, 6 bytes each: a 1,024-pixel image of PixArt-Σ (28
    layers, 20 steps, 4,096 tokens, 10 atoms a token) takes 140 MB.
    """
    return Trace(model, adapter, codes)
