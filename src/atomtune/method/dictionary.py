"""SparseDictionary: M atoms, and the encoder that decides which of them a token uses. The heart of the method.

    codes  S  = φ(σ(κ ∘ x W_s)) [N, M]   depend on the data: which atoms, where, how strongly
    output ΔO = (S ∘ g) D · α   [N, C_o] the atoms (rows of D) do not depend on the data

W_s is `encoder`, D is `decoder`; only these two train, and λ if σ learns it. The dials of a user: g is `gain`, after
selection (0 silences an atom, and no other atom takes its place); κ is `kept`, 0 or 1, before selection (other atoms
compete for the place of a dropped atom, as if it did not exist); φ is `floor`, below which an atom does not fire (by
default there is none); α is `scale · strength`, for the whole adapter.
Attention layers put the attention map between x W_s and σ: see `adapters.attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from accelerate.utils import align_module_device
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from atomtune.errors import UserError
from atomtune.method.dials import Dials
from atomtune.method.floor import Floor
from atomtune.method.heads import Seating
from atomtune.method.sigma import SigmaConfig
from atomtune.method.sparse import coefficients_at, combine


class DictionaryEncoder(nn.Module):
    """x W_s. Row m of `weight` [M, C_i] is the column of W_s for atom m.

    This class and `DictionaryDecoder` compute in the precision of the input or of the weight, whichever is finer. The
    weight is read only in `forward`: if a model is offloaded, or stored in fewer bits than it computes in, hooks
    provide the weight only while a module's `forward` runs.
    """

    weight: Tensor

    def __init__(self, in_features: int, num_atoms: int, unit: bool = False) -> None:
        super().__init__()
        self.unit = unit
        self.weight = _parameter(num_atoms, in_features)

    def forward(self, x: Float[Tensor, "*batch width"], places: Callable[[Tensor], Tensor] | None = None) -> Any:
        """[*batch, M]. With `unit`, the columns of W_s are scaled to norm 1: c_m = x · w_m / ‖w_m‖.

        With `places`, which chooses k of them, those [*batch, k] alone, and their places: see `method.sparse`.
        """
        weight = F.normalize(self.weight, dim=1) if self.unit else self.weight
        precision = torch.promote_types(x.dtype, weight.dtype)
        x, weight = x.to(precision), weight.to(precision)
        return F.linear(x, weight) if places is None else coefficients_at(x, weight, places)


class DictionaryDecoder(nn.Module):
    """codes · D. Row m of `weight` [M, C_o] is atom m."""

    weight: Tensor

    def __init__(self, num_atoms: int, out_features: int) -> None:
        super().__init__()
        self.weight = _parameter(num_atoms, out_features)

    def forward(self, codes: Float[Tensor, "*batch atoms"], index: Tensor | None = None) -> Float[Tensor, "*batch out"]:
        """With `index` [*batch, k], `codes` [*batch, k] are those of these atoms alone."""
        precision = torch.promote_types(codes.dtype, self.weight.dtype)
        codes, weight = codes.to(precision), self.weight.to(precision)
        return codes @ weight if index is None else combine(codes, index, weight)


def _parameter(rows: int, columns: int) -> nn.Parameter:
    """Random, as in torch's linear layers. `SparseDictionary.reset_parameters` sets the start of the method."""
    return nn.Parameter(nn.init.kaiming_uniform_(torch.empty(rows, columns), a=5**0.5))


class SparseDictionary(Dials):
    """M atoms and the encoder that decides which of them a token uses (eq. 8).

    Coefficients depend on the data, atoms do not: codes = σ(x W_s), output = codes · D.
    `gain` scales each atom, so that a user can make it stronger or weaker; it never trains.

    Every atom has numbers that are saved with it: `id`, which never changes and together with `layer`, the number of
    the layer, makes addresses such as L17[137] that survive pruning; `head`, the attention head whose map mixes it;
    `group`, the adapter it came from if adapters were concatenated, each group with its own k; `usage`, its mean |s_m|
    over tokens in training.

    Args:
        in_features: width C_i of the tokens.
        num_atoms: M.
        out_features: width C_o of the output.
        sigma: σ and its dials.
        heads: number of attention heads among which the atoms are divided.
        unit_encoder: whether the columns of W_s are scaled to norm 1 when they are used.
        floor: q of the floor under the codes, from 0 (none) to 1; it acts once it was measured (`method.floor`).
    """

    _alive: ClassVar[WeakSet[SparseDictionary]] = WeakSet()

    id: Tensor
    layer: Tensor
    head: Tensor
    group: Tensor
    usage: Tensor
    gain: Tensor
    scale: Tensor
    strength: Tensor
    kept: Tensor | None
    traced_usage: Tensor | None
    """Mean |s_m| over the tokens of the last trace. Not saved."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> SparseDictionary:
        """Register every instance, copies and unpickled ones too, so that the running estimates of σ are updated."""
        new = super().__new__(cls)
        cls._alive.add(new)
        return new

    def __init__(
        self,
        in_features: int,
        num_atoms: int,
        out_features: int,
        sigma: SigmaConfig = SigmaConfig(),  # noqa: B008  frozen
        heads: int = 1,
        unit_encoder: bool = False,
        floor: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = DictionaryEncoder(in_features, num_atoms, unit_encoder)
        self.sigma = sigma.build(num_atoms)
        self.floor = Floor(num_atoms, floor)
        self.seating = Seating(heads)
        self.decoder = DictionaryDecoder(num_atoms, out_features)
        self.register_buffer("gain", torch.ones(num_atoms, dtype=torch.float32))
        self.register_buffer("id", torch.arange(num_atoms))
        self.register_buffer("head", torch.tensor(seats := [atom * heads // num_atoms for atom in range(num_atoms)]))
        self.register_buffer("group", torch.zeros(num_atoms, dtype=torch.long))
        self.register_buffer("usage", torch.zeros(num_atoms, dtype=torch.float32))
        self.register_buffer("layer", torch.tensor(0))
        self.register_buffer("scale", torch.tensor(1.0, dtype=torch.float32), persistent=False)
        self.register_buffer("strength", torch.tensor(1.0, dtype=torch.float32), persistent=False)
        self.keep_only(None)
        self.set_traced_usage(None)
        self.seating.seat(seats)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """D = 0, so that step 0 is the pretrained model exactly; W_s ~ N(0, 1/C_i), so that x W_s starts near 1."""
        nn.init.normal_(self.encoder.weight, std=self.encoder.weight.shape[1] ** -0.5, generator=generator)
        nn.init.zeros_(self.decoder.weight)

    @property
    def num_atoms(self) -> int:
        """M."""
        return len(self.encoder.weight)

    def coefficients(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch atoms"]:
        """x W_s, before σ."""
        return self.encoder(x)

    def activate(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        """φ(σ(κ ∘ c)): coefficients to sparse codes."""
        if self.kept is not None:
            coefficients = coefficients * self.kept.to(coefficients.dtype)
        return self.floor(self.sigma(coefficients))

    def codes(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch atoms"]:
        """S = φ(σ(x W_s))."""
        return self.activate(self.coefficients(x))

    def synthesize(self, codes: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch out"]:
        """ΔO = (S ∘ g) D · α. The input of `decoder` is what a trace records."""
        return self.decoder(codes * self._gains.to(codes.dtype))

    def delta(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch out"]:
        """ΔO of x W_s."""
        if self._is_fast(coefficients):
            index = self._places(coefficients.detach())
            return self._combine(coefficients.gather(-1, index), index)
        return self.synthesize(self.activate(coefficients))

    @property
    def _gains(self) -> Float[Tensor, " atoms"]:
        return self.gain * (self.scale * self.strength)

    def _is_fast(self, x: Tensor) -> bool:
        """Whether ΔO can be had without the zeros in S, faster, and nobody asks for S."""
        decoder = self.decoder
        return (
            not (torch.compiler.is_compiling() or decoder._forward_pre_hooks or decoder._forward_hooks)
            and not self.floor.is_being_measured
            and not torch._C._are_functorch_transforms_active()  # has no jvp
            and x.dtype != torch.float16
            and self.sigma.is_worthwhile(x.device)
        )

    def _places(self, coefficients: Float[Tensor, "*batch atoms"]) -> Int[Tensor, "*batch k"]:
        return self.sigma.places(coefficients if self.kept is None else coefficients * self.kept.to(coefficients.dtype))

    def _combine(self, coefficients: Float[Tensor, "*batch k"], index: Int[Tensor, "*batch k"]) -> Tensor:
        """`activate` and `synthesize`, of the chosen coefficients."""
        if self.kept is not None:
            coefficients = coefficients * self.kept[index].to(coefficients.dtype)
        codes = self.floor.at(self.sigma.at(coefficients), index)
        return self.decoder(codes * self._gains[index].to(codes.dtype), index)

    def forward(self, x: Tensor, part: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """ΔO of tokens x [*batch, width]; or, if `part` is given, part(x), which does some of the steps above.

        A model that needs single steps calls them through here, because hooks that move a module's buffers, as
        offloading does, act only around its `forward`.
        """
        if part is not None:
            return part(x)
        if self._is_fast(x):
            return self._combine(*self.encoder(x, self._places))
        return self.synthesize(self.codes(x))

    def atoms(self) -> Float[Tensor, "atoms out"]:
        """D in float32, without gradient, also if the weights are offloaded."""
        with align_module_device(self.decoder):
            return self.decoder.weight.detach().float()

    @property
    def mean_energy(self) -> Float[Tensor, " atoms"]:
        """usage · ‖d_m‖: how much each atom added to the layer's output in training."""
        return self.usage * self.atoms().norm(dim=1)

    @property
    def traced_energy(self) -> Float[Tensor, " atoms"]:
        """The same in the last trace, with the present D; 0 if there was no trace."""
        norms = self.atoms().norm(dim=1)
        return torch.zeros_like(norms) if self.traced_usage is None else self.traced_usage.to(norms.device) * norms

    def set_traced_usage(self, usage: Float[Tensor, " atoms"] | None) -> None:
        self.register_buffer("traced_usage", usage, persistent=False)

    def keep_only(self, mask: Bool[Tensor, " atoms"] | None) -> None:
        """κ: only the atoms of `mask` take part in the selection; None: all of them."""
        kept = None if mask is None or bool(mask.all()) else mask.to(self.gain)
        self.register_buffer("kept", kept, persistent=False)

    @torch.no_grad()
    def prune(self) -> None:
        """Remove the dropped atoms from all tensors. The output stays the same, and the other atoms keep id, head and
        group."""
        if self.kept is None:
            return
        if self.floor.is_being_measured:
            raise UserError("atoms cannot be pruned while their floor is measured: prune after the block.")
        if self.encoder.weight.is_meta:
            raise UserError("atoms cannot be pruned while the model is offloaded: prune before offloading it.")
        rows = self.kept.nonzero().flatten()
        self.keep_only(None)
        for module in self.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                if name in PER_LAYER:
                    continue
                trains = isinstance(tensor, nn.Parameter)
                setattr(module, name, nn.Parameter(tensor[rows], tensor.requires_grad) if trains else tensor[rows])
        self.seating.seat(self.head.tolist(), self.head.device)
        self.sigma.set_group_sizes_after_pruning(self._group_sizes())

    def update_layout(self) -> None:
        """Update the layout of heads and groups to the `head` and `group` of the atoms."""
        self.seating.seat(self.head.tolist(), self.head.device)
        self.sigma.set_group_sizes(self._group_sizes())

    def _refuse_impossible(self, saved: dict[str, Any], prefix: str) -> None:
        """Raise `UserError` for saved numbers of atoms that no layer has: what is laid out by them would not fit."""
        limits = {"head": self.seating.heads, "group": len(self.sigma.k), "id": 2**31, "layer": 2**31}
        for name, limit in limits.items():
            numbers = saved.get(prefix + name)
            if isinstance(numbers, Tensor) and not numbers.is_meta and numbers.numel():
                low, high = int(numbers.min()), int(numbers.max())
                if low < 0 or high >= limit:
                    raise UserError(f"{prefix}{name} must be from 0 to {limit - 1}, got {low} to {high}.")
        k, group = saved.get(f"{prefix}sigma.k"), saved.get(f"{prefix}group")
        if not isinstance(k, Tensor) or k.is_meta or k.shape != self.sigma.k.shape or not isinstance(group, Tensor):
            return
        least = torch.bincount(group.long().flatten(), minlength=len(k)).clamp(max=1)
        if bool((k.long() < least.to(k.device)).any()):
            raise UserError(f"{prefix}sigma.k must be 1 or more for a group that has atoms, got {k.tolist()!s:.100}.")

    def _group_sizes(self) -> list[int]:
        return torch.bincount(self.group, minlength=len(self.sigma.k)).tolist()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._refuse_impossible(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.set_traced_usage(None)  # other atoms
        if not self.head.is_meta:
            self.update_layout()


@contextmanager
def measuring_floors(dictionaries: Sequence[SparseDictionary], words: Sequence[Tensor] = ()) -> Iterator[None]:
    """`Floor.measuring`, of the layers of an adapter, whose σ chooses as it does while images are drawn. Raises
    `UserError` if no atom ran in the block."""
    with ExitStack() as stack:
        for dictionary in dictionaries:
            stack.callback(dictionary.sigma.train, dictionary.sigma.training)
            dictionary.sigma.eval()
        seen = [stack.enter_context(dictionary.floor.measuring(dictionary.kept, words)) for dictionary in dictionaries]
        yield
        if not any(each.tokens for each in seen):
            raise UserError(
                "there is nothing to measure a floor on, because none of these atoms ran in the block: run the model "
                "there, with this adapter active."
            )


@contextmanager
def seeing_tokens(dictionaries: Sequence[SparseDictionary], see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call `see(number, tokens [*batch, C_i])` for what reaches the encoder of each in the passes of the block."""
    with ExitStack() as stack:
        for number, dictionary in enumerate(dictionaries):

            def watch(_encoder: nn.Module, inputs: tuple, number: int = number) -> None:
                see(number, inputs[0].detach())

            stack.callback(dictionary.encoder.register_forward_pre_hook(watch).remove)
        yield


PER_LAYER = {"layer", "scale", "strength", "k", "slots", "places"}
"""Tensors of a `SparseDictionary` that do not have one row for each atom; every other tensor has."""


def _update_estimates(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    """Update the running estimates of σ once per optimizer step, in any training loop."""
    estimating = [dictionary for dictionary in SparseDictionary._alive if dictionary.sigma.has_estimates]
    if estimating:
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for dictionary in estimating:
            if any(id(parameter) in trained for parameter in dictionary.parameters()):
                dictionary.sigma.update_estimates()


register_optimizer_step_post_hook(_update_estimates)
