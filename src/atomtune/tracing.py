"""`trace`: watch the codes while a model runs.

    with trace(model) as t:
        pipe("a sks teapot on the moon")
    t.active_per_token, t.alive, t.layers[3].energy

Recorded is what multiplies D, after mixing and gain: the input of each layer's `dictionary`. Running sums are kept for
each timestep and each sample, [M] numbers a layer; so a long run costs no more memory than a short one. `codes=True`
also keeps every nonzero code, sparse, from which heatmaps are made. Outside the block nothing is left in the model.

Samples are the rows of the batches, numbered as they come. Under classifier-free guidance a pipeline runs two halves in
one batch, first without the prompt and then with it. They are told apart because both see the same noisy picture, and
their statistics are kept apart: GUIDED is the half with the prompt, or everything where there is no guidance.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from atomtune.adapters import adapted_layers
from atomtune.errors import UserError
from atomtune.method.dictionary import SparseDictionary

UNGUIDED, GUIDED = 0, 1


def bare_model(model: nn.Module) -> Any:
    """The model itself, inside what PEFT wraps around it: its forward is the one that always runs."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]


def timesteps(model: nn.Module, args: tuple, kwargs: dict) -> Tensor | None:
    """The `timestep` a denoiser was called with, as float [1] or [batch] on the CPU; None where there is none."""
    given = _argument(model, args, kwargs, "timestep")
    return None if given is None else torch.as_tensor(given).detach().float().cpu().reshape(-1)


def _argument(model: nn.Module, args: tuple, kwargs: dict, name: str) -> Any:
    if name in kwargs or not args:
        return kwargs.get(name)
    names = list(inspect.signature(model.forward).parameters)
    return args[names.index(name)] if name in names[: len(args)] else None


@dataclass
class Sums:
    """Sums over tokens: how many there were, in how many each atom fired, Σ|s_m| and max|s_m|."""

    fired: Int[Tensor, " atoms"]
    magnitude: Float[Tensor, " atoms"]
    peak: Float[Tensor, " atoms"]
    tokens: int = 0

    @classmethod
    def zero(cls, dictionary: SparseDictionary) -> Sums:
        nothing = torch.zeros_like(dictionary.gain, dtype=torch.float32)
        return cls(torch.zeros_like(dictionary.id), nothing, nothing.clone())

    def add(self, other: Sums) -> Sums:
        self.tokens += other.tokens
        self.fired += other.fired
        self.magnitude += other.magnitude
        self.peak = torch.maximum(self.peak, other.peak)
        return self


@dataclass
class Codes:
    """The nonzero codes of one call of one layer: `values` at flat indices into `shape` [samples, tokens, atoms]."""

    timestep: float | None
    first_sample: int
    shape: tuple[int, ...]
    indices: Int[Tensor, " nonzero"]
    values: Float[Tensor, " nonzero"]


@dataclass(eq=False)
class LayerTrace:
    """What one layer did. Rates and energies are of the guided half, `unguided=True` asks for the other one."""

    dictionary: SparseDictionary
    keep_codes: bool = False
    by_timestep: dict[float | None, tuple[Sums, Sums]] = field(default_factory=dict)
    """For each timestep, the sums of the unguided and of the guided half."""
    samples: list[Sums] = field(default_factory=list)
    """For each sample, the sums of its guided half over all its timesteps."""
    codes: list[Codes] = field(default_factory=list)
    """Of the guided half, when the trace was asked to keep them."""

    @torch.no_grad()
    def record(self, codes: Tensor, call: Call) -> None:
        codes = codes.detach()
        codes = codes.reshape(codes.shape[0], -1, codes.shape[-1]) if codes.ndim > 2 else codes[None]
        magnitudes = codes.abs()
        fired, magnitude = (codes != 0).sum(1), magnitudes.sum(1, dtype=torch.float32)  # [batch, atoms]
        peak, tokens = magnitudes.amax(1).float(), codes.shape[1]
        first = len(codes) // 2 if call.guided else 0
        for rows, t in call.rows(len(codes)):
            for half, part in ((UNGUIDED, rows[rows < first]), (GUIDED, rows[rows >= first])):
                if t not in self.by_timestep:
                    self.by_timestep[t] = (Sums.zero(self.dictionary), Sums.zero(self.dictionary))
                if len(part):
                    total = Sums(fired[part].sum(0), magnitude[part].sum(0), peak[part].amax(0), tokens * len(part))
                    self.by_timestep[t][half].add(total)
        for row in range(first, len(codes)):
            sample = call.first_sample + row - first
            if sample == len(self.samples):
                self.samples.append(Sums.zero(self.dictionary))
            self.samples[sample].add(Sums(fired[row], magnitude[row], peak[row], tokens))
        if self.keep_codes:
            guided = codes[first:]
            indices = guided.flatten().nonzero().flatten()
            t = None if call.timesteps is None else float(call.timesteps[-1])
            values = guided.flatten()[indices].half()
            self.codes.append(Codes(t, call.first_sample, tuple(guided.shape), indices.int(), values))

    def total(self, unguided: bool = False) -> Sums:
        """Over all timesteps."""
        total = Sums.zero(self.dictionary)
        for halves in self.by_timestep.values():
            total.add(halves[UNGUIDED if unguided else GUIDED])
        return total

    @property
    def tokens(self) -> int:
        return self.total().tokens

    @property
    def fired(self) -> Int[Tensor, " atoms"]:
        """In how many of `tokens` each atom fired."""
        return self.total().fired

    @property
    def firing_rate(self) -> Float[Tensor, " atoms"]:
        """Share of the tokens in which each atom fired."""
        return self.fired / max(1, self.tokens)

    @property
    def usage(self) -> Float[Tensor, " atoms"]:
        """Mean of |s_m| over tokens."""
        total = self.total()
        return total.magnitude / max(1, total.tokens)

    @property
    def peak(self) -> Float[Tensor, " atoms"]:
        """Largest |s_m|."""
        return self.total().peak

    @property
    def energy(self) -> Float[Tensor, " atoms"]:
        """Mean over tokens of |s_m| · ‖d_m‖: how much each atom adds to the layer's output."""
        return self.usage * self._norms

    @property
    def energy_by_timestep(self) -> dict[float, Float[Tensor, " atoms"]]:
        """`energy` at each timestep, the noisiest first."""
        times = sorted((t for t in self.by_timestep if t is not None), reverse=True)
        sums = {t: self.by_timestep[t][GUIDED] for t in times}
        return {t: s.magnitude / max(1, s.tokens) * self._norms for t, s in sums.items()}

    @property
    def energy_by_sample(self) -> Float[Tensor, "samples atoms"]:
        """`energy` in each sample: which pictures an atom acts in most."""
        return torch.stack([s.magnitude / max(1, s.tokens) for s in self.samples]) * self._norms

    def active_timesteps(self, index: int) -> tuple[float, float] | None:
        """The first (noisiest) and last timestep at which the atom in row `index` fired; None if it never did."""
        times = [t for t, halves in self.by_timestep.items() if t is not None and halves[GUIDED].fired[index]]
        return (max(times), min(times)) if times else None

    def maps(self, index: int, timestep: float | None = None) -> Float[Tensor, "samples tokens"]:
        """s_m over the tokens of each sample, for the atom in row `index`: at one timestep, or the mean over all.

        Raises `UserError` when the trace did not keep the codes.
        """
        if not self.codes:
            raise UserError("this trace kept no codes: use trace(model, codes=True).")
        calls = [call for call in self.codes if timestep is None or call.timestep == timestep]
        samples = max(call.first_sample + call.shape[0] for call in self.codes)
        summed, count = torch.zeros(samples, self.codes[0].shape[1]), torch.zeros(samples, 1)
        for call in calls:
            rows = slice(call.first_sample, call.first_sample + call.shape[0])
            mine = call.indices % call.shape[2] == index
            where = (call.indices[mine] // call.shape[2]).long()
            summed[rows].view(-1).index_add_(0, where.cpu(), call.values[mine].float().cpu())
            count[rows] += 1
        return summed / count.clamp(min=1)

    @property
    def _norms(self) -> Float[Tensor, " atoms"]:
        return self.dictionary.atoms().norm(dim=1)


@dataclass
class Call:
    """One run of the model: the timesteps of its rows, whether they are two halves, the samples in it."""

    timesteps: Tensor | None = None
    guided: bool = False
    first_sample: int = 0
    samples: int = 0

    def rows(self, batch: int) -> Iterator[tuple[Tensor, float | None]]:
        """Rows of the batch by timestep."""
        if self.timesteps is None or len(self.timesteps) not in (1, batch):
            yield torch.arange(batch), None
        elif len(self.timesteps) == 1:
            yield torch.arange(batch), float(self.timesteps)
        else:
            for t in self.timesteps.unique().tolist():
                yield (self.timesteps == t).nonzero().flatten(), t


class Trace:
    """Statistics of one adapter's codes. Use as a context manager; entering it again starts from zero."""

    def __init__(self, model: nn.Module, adapter: str = "default", codes: bool = False) -> None:
        self._model, self._codes = bare_model(model), codes
        self._dictionaries = [layer.dictionary(adapter) for layer in adapted_layers(model, adapter)]
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._call = self._before = Call()
        self.layers: list[LayerTrace] = []
        """One for each adapted layer, in the order of their addresses."""
        self.input_ids: list[Int[Tensor, " tokens"]] = []
        """Of a text model with `codes=True`: the tokens of each sample."""

    def __enter__(self) -> Trace:
        self._call = self._before = Call()
        self.input_ids = []
        self.layers = [LayerTrace(dictionary, self._codes) for dictionary in self._dictionaries]
        self._hooks = [self._model.register_forward_pre_hook(self._called, prepend=True, with_kwargs=True)]
        self._hooks.append(self._model.register_forward_hook(self._answered, with_kwargs=True))
        for layer in self.layers:

            def record(_module: nn.Module, inputs: tuple[Tensor, ...], layer: LayerTrace = layer) -> None:
                # Inside a backward, gradient checkpointing repeats what was recorded already.
                if torch._C._current_graph_task_id() == -1:
                    layer.record(inputs[0], self._call)

            self._hooks.append(layer.dictionary.decoder.register_forward_pre_hook(record, prepend=True))
        return self

    def __exit__(self, *_exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def top_tokens(self, layer: int, index: int, count: int = 10) -> list[tuple[int, int, float]]:
        """For text models: (sample, position, s_m) where the atom in row `index` of layer `layer` fires most strongly.

        Raises `UserError` when the trace did not keep the codes. `input_ids` has each sample's tokens.
        """
        found: list[tuple[int, int, float]] = []
        maps = self.layers[layer].maps(index)
        for place in maps.abs().flatten().topk(min(count, maps.numel())).indices.tolist():
            sample, position = divmod(place, maps.shape[1])
            if value := float(maps[sample, position]):
                found.append((sample, position, value))
        return found

    def _called(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """The model starts a call: is it the next step of the same samples, or are these new ones?"""
        times = timesteps(model, args, kwargs)
        states = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
        batch = len(states) if isinstance(states, Tensor) else 1
        guided = (
            times is not None and batch % 2 == 0 and isinstance(states, Tensor)
            and bool((times == times[0]).all()) and torch.equal(states[: batch // 2], states[batch // 2 :])
        )  # fmt: skip
        before, samples = self._before, batch // 2 if guided else batch
        later = before.timesteps is not None and times is not None and float(times[0]) < float(before.timesteps[0])
        goes_on = later and samples == before.samples
        self._call = Call(times, guided, before.first_sample + (0 if goes_on else before.samples), samples)

    def _answered(self, model: nn.Module, args: tuple, kwargs: dict, _answer: object) -> None:
        """A call that was broken off (to catch its arguments, as `training.encoding` does) does not count."""
        self._before = self._call
        if self._codes and isinstance(ids := _argument(model, args, kwargs, "input_ids"), Tensor):
            self.input_ids += ids.detach().cpu().unbind()

    @property
    def guided(self) -> bool:
        """Whether the call that runs now has two halves in its batch, first without the prompt and then with it."""
        return self._call.guided

    @property
    def active_per_token(self) -> float:
        """Mean number of atoms that one token uses in one layer."""
        return self._fired / self._tokens

    @property
    def density(self) -> float:
        """Mean share of a layer's atoms that one token uses."""
        return self._fired / sum(layer.tokens * layer.dictionary.num_atoms for layer in self.layers)

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


def trace(model: nn.Module, adapter: str = "default", codes: bool = False) -> Trace:
    """Record statistics of an adapter's codes while the block runs. `model` is the adapted denoiser.

    With `codes`, every nonzero code of the guided half is kept too, 6 bytes each: a 1,024-pixel picture of PixArt-Σ (28
    layers, 20 steps, 4,096 tokens, 10 atoms a token) takes 140 MB.
    """
    return Trace(model, adapter, codes)
