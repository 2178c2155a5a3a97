"""SparseDictionary: M atoms, and the encoder that decides which of them a token uses. The heart of the method.

    codes  S  = σ(κ ∘ x W_s)    [N, M]   data dependent: which atoms, where, how strongly
    output ΔO = (S ∘ g) D · α   [N, C_o] the atoms (rows of D) do not depend on the data

W_s is `encoder`, D is `dictionary`; only these two train. What a user turns: g is `gain`, after selection (0 silences
an atom and nobody takes its place); κ is `kept`, 0 or 1, before selection (the others compete for the places of a
dropped one, as if it had never been); α is `scale · strength`, the whole adapter. Attention layers put the attention
map between x W_s and σ: see `adapters.attention`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar
from weakref import WeakSet

import torch
from accelerate.utils import align_module_device
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from atomtune.errors import UserError
from atomtune.method.coding import atoms_per_token, top_k
from atomtune.method.dials import Dials
from atomtune.method.sigma import Threshold

ACTIVATIONS = ("topk", "batch_topk", "soft", "relu", "jumprelu")


class Projection(nn.Linear):
    """A linear layer that computes in the finer precision of its input's and its weight's.

    The weight is read in here alone: where a model is offloaded, or stored in fewer bits than it computes in, the hooks
    that do so bring the weight only while a module's `forward` runs.
    """

    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch out"]:
        return _linear(input, self.weight)


class UnitEncoder(Projection):
    """An encoder whose columns act at norm 1, however long they are: c_m = x · w_m / ‖w_m‖."""

    def forward(self, input: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch atoms"]:
        return _linear(input, F.normalize(self.weight, dim=1))


def _linear(input: Tensor, weight: Tensor) -> Tensor:
    precision = torch.promote_types(input.dtype, weight.dtype)
    return F.linear(input.to(precision), weight.to(precision))


class SparseDictionary(Dials):
    """M atoms and the encoder that decides which of them a token uses (eq. 8).

    Coefficients are data dependent, atoms are not: codes = σ(x W_s), output = codes · D.
    `gain` scales each atom and is how a user turns one down; it never trains.

    Every atom carries numbers that are saved with it: `id`, its number for life, which with the layer's own, `layer`,
    makes addresses such as L17[137] that survive pruning; `head`, the attention head whose map mixes it; `group`, the
    adapter it came from when dictionaries were concatenated, each group with a k of its own; `usage`, its mean |s_m|
    over a token while it was trained. Atoms may belong to heads in any way: M need not be a multiple of `heads`.

    Args:
        in_features: width C_i of the tokens.
        num_atoms: M.
        out_features: width C_o of the output.
        activation: σ, one of `ACTIVATIONS`; all but "topk" are a `Threshold`.
        density: ρ, the share of the atoms one token may use ("batch_topk": on average); a list has one for each group.
        threshold: λ of soft and relu, and where jumprelu's starts.
        heads: number of attention heads among which the atoms are divided.
        threshold_units: λ in units of the coefficients ("absolute") or of their running size in the layer ("scale").
        unit_encoder: the columns of W_s act at norm 1.
    """

    _alive: ClassVar[WeakSet[SparseDictionary]] = WeakSet()

    id: Tensor
    layer: Tensor
    head: Tensor
    group: Tensor
    usage: Tensor
    gain: Tensor
    k: Tensor
    scale: Tensor
    strength: Tensor
    kept: Tensor | None
    slots: Tensor | None
    places: Tensor | None

    def __new__(cls, *_args: Any, **_kwargs: Any) -> SparseDictionary:
        """Every one is known, copies and unpickled ones too, so that the running estimates of σ follow training."""
        new = super().__new__(cls)
        cls._alive.add(new)
        return new

    def __init__(
        self,
        in_features: int,
        num_atoms: int,
        out_features: int,
        activation: str = "topk",
        density: float | Sequence[float] = 0.04,
        threshold: float = 0.1,
        heads: int = 1,
        threshold_units: str = "absolute",
        unit_encoder: bool = False,
    ) -> None:
        super().__init__()
        densities = [density] if isinstance(density, int | float) else list(density)
        self.num_atoms = num_atoms
        self.activation = activation
        self.heads = heads
        self.encoder = (UnitEncoder if unit_encoder else Projection)(in_features, num_atoms, bias=False)
        self.dictionary = Projection(num_atoms, out_features, bias=False)
        self.register_buffer("gain", torch.ones(num_atoms, dtype=torch.float32))
        self.register_buffer("id", torch.arange(num_atoms))
        self.register_buffer("head", torch.tensor(seats := [atom * heads // num_atoms for atom in range(num_atoms)]))
        self.register_buffer("group", torch.zeros(num_atoms, dtype=torch.long))
        self.register_buffer("layer", torch.tensor(0))
        self.register_buffer("usage", torch.zeros(num_atoms, dtype=torch.float32))
        self.group_sizes = [num_atoms] + [0] * (len(densities) - 1)
        # k and the scales are tensors so that changing them does not compile again; k_max is what is selected.
        self.density = densities[0]
        self.k_max = [atoms_per_token(num_atoms, ρ) for ρ in densities]
        self._k_own, self._density_own = list(self.k_max), self.density
        self.register_buffer("k", torch.tensor(self.k_max))
        self.sigma = None if activation == "topk" else Threshold(num_atoms, activation, threshold, threshold_units)
        self.register_buffer("scale", torch.tensor(1.0, dtype=torch.float32), persistent=False)
        self.register_buffer("strength", torch.tensor(1.0, dtype=torch.float32), persistent=False)
        self.keep_only(None)
        self._seat(seats)
        self._aim(self.k_max)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """D = 0, so that step 0 is the pretrained model exactly; W_s ~ N(0, 1/C_i), so that x W_s starts near 1."""
        nn.init.normal_(self.encoder.weight, std=self.encoder.in_features**-0.5, generator=generator)
        nn.init.zeros_(self.dictionary.weight)

    def coefficients(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch atoms"]:
        """x W_s, before σ."""
        return self.encoder(x)

    def activate(self, coefficients: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        """σ: coefficients to sparse codes."""
        if self.kept is not None:
            coefficients = coefficients * self.kept.to(coefficients.dtype)
        if self.sigma is not None:
            return self.sigma(coefficients)
        if len(self.k_max) == 1:
            return top_k(coefficients, self.k[0], self.k_max[0])
        groups = coefficients.split(self.group_sizes, dim=-1)
        return torch.cat([top_k(c, k, k_max) for c, k, k_max in zip(groups, self.k, self.k_max)], dim=-1)

    def codes(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch atoms"]:
        """S = σ(x W_s)."""
        return self.activate(self.coefficients(x))

    def synthesize(self, codes: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch out"]:
        """ΔO = (S ∘ g) D · α. The input of the `dictionary` layer is what a trace records."""
        return self.dictionary(codes * (self.gain * (self.scale * self.strength)).to(codes.dtype))

    def forward(self, x: Tensor, part: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """ΔO of tokens x [*batch, width]; or of x just `part`, some of the steps above.

        Whoever needs single steps while a model runs has them called here and not beside it, because hooks that move a
        module's buffers, as offloading does, move them around its `forward`.
        """
        return self.synthesize(self.codes(x)) if part is None else part(x)

    def set_density(self, density: float) -> None:
        """Let each token use k = max(1, round(ρM)) atoms, of each group of M. A compiled model compiles again only
        beyond its largest k, with "batch_topk" never."""
        if self.activation not in ("topk", "batch_topk"):
            raise UserError(f"density belongs to top-k; this adapter uses {self.activation}, whose dial is threshold.")
        k = [min(size, atoms_per_token(size, density)) for size in self.group_sizes]
        self.density = density
        self.k_max = [max(most, now) for most, now in zip(self.k_max, k)]
        self._aim(k)

    def _aim(self, k: list[int]) -> None:
        """Each token may use k atoms of each group. Nothing is read from a GPU, nor sent there: annealing comes by here
        in every step."""
        for own, now in zip(self.k, k):
            own.fill_(now)
        if self.sigma is not None:
            self.sigma.aim(k, self.group_sizes)

    @property
    def density_changed(self) -> bool:
        """Whether a token may use another number of atoms than the adapter was trained, or saved, with."""
        return self.k.tolist() != self._k_own

    def reset_density(self) -> None:
        """Undo `set_density`."""
        self.density = self._density_own
        self._aim(self._k_own)

    def keep_only(self, mask: Bool[Tensor, " atoms"] | None) -> None:
        """κ: only the atoms of `mask` take part in the selection; None: all of them."""
        kept = None if mask is None or bool(mask.all()) else mask.to(self.gain)
        self.register_buffer("kept", kept, persistent=False)

    @torch.no_grad()
    def prune(self) -> None:
        """Take the atoms that κ leaves out from the tensors. The output stays, so do the others' id, head and group."""
        if self.kept is None:
            return
        if self.encoder.weight.is_meta:
            raise UserError("atoms cannot be pruned while the model is offloaded: prune before offloading it.")
        rows = self.kept.nonzero().flatten()
        self.num_atoms = len(rows)
        self.keep_only(None)
        for name in ("gain", "id", "head", "group", "usage"):
            setattr(self, name, getattr(self, name)[rows])
        self.encoder.weight = nn.Parameter(self.encoder.weight[rows], self.encoder.weight.requires_grad)
        weight = self.dictionary.weight
        self.dictionary.weight = nn.Parameter(weight[:, rows].contiguous(), weight.requires_grad)
        self.encoder.out_features = self.dictionary.in_features = len(rows)
        if self.sigma is not None:
            self.sigma.keep_only(rows)
        self.settle()

    def share_statistics(self, mean: Callable[[Tensor], Tensor]) -> None:
        """Before an optimizer step: let processes, whose `mean` of a tensor this is, follow the same coefficients."""
        if self.sigma is not None:
            self.sigma.share(mean)

    def forget_statistics(self) -> None:
        """After a skipped optimizer step: let what was seen for it count for nothing."""
        if self.sigma is not None:
            self.sigma.forget()

    @property
    def energy(self) -> Float[Tensor, " atoms"]:
        """usage · ‖d_m‖: how much each atom added to the layer's output while it was trained."""
        return self.usage * self.atoms().norm(dim=1)

    def atoms(self) -> Float[Tensor, "atoms out"]:
        """D in float32, without gradient, also where the weights are offloaded."""
        with align_module_device(self.dictionary):
            return self.dictionary.weight.detach().float().T

    # Heads. Attention mixes the coefficients of one head with that head's map, and needs them as [heads, slots].
    # When the heads are equal and in order this is a view. Otherwise each head gets as many slots as the largest one
    # has atoms; `slots` says which atom sits where (M: nobody, reads a zero), `places` where to find each atom again.

    def split_heads(
        self, coefficients: Float[Tensor, "batch tokens atoms"]
    ) -> Float[Tensor, "batch heads tokens slots"]:
        if self.slots is not None:
            coefficients = F.pad(coefficients, (0, 1)).index_select(-1, self.slots)
        return coefficients.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def join_heads(self, mixed: Float[Tensor, "batch heads tokens slots"]) -> Float[Tensor, "batch tokens atoms"]:
        joined = mixed.transpose(1, 2).flatten(2)
        return joined if self.places is None else joined.index_select(-1, self.places)

    def _seat(self, heads: list[int]) -> None:
        """Lay out the slots for atoms that belong to `heads`."""
        seats = [[atom for atom, head in enumerate(heads) if head == h] for h in range(self.heads)]
        width = max(map(len, seats))
        flat = [atom for seat in seats for atom in seat + [len(heads)] * (width - len(seat))]
        slots = places = None
        if flat != list(range(len(heads))):
            place = {atom: slot for slot, atom in enumerate(flat)}
            slots = torch.tensor(flat, device=self.head.device)
            places = torch.tensor([place[atom] for atom in range(len(heads))], device=self.head.device)
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("places", places, persistent=False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.head.is_meta:
            self.settle()

    def settle(self) -> None:
        """Lay out heads and groups by the numbers the atoms carry; a group's k is never above its number of atoms."""
        self._seat(self.head.tolist())
        self.group_sizes = torch.bincount(self.group, minlength=len(self.k)).tolist()
        k = self.k.minimum(torch.tensor(self.group_sizes, device=self.k.device))
        self.k_max = [min(most, size) for most, size in zip(self.k_max, self.group_sizes)]
        if k.tolist() != self._k_own:
            self.k_max = self._k_own = k.tolist()
        if self._k_own != [min(size, atoms_per_token(size, self.density)) for size in self.group_sizes]:
            self.density = self._density_own = sum(self._k_own) / self.num_atoms
        self._aim(self._k_own)


def _follow(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    """The estimates that σ takes while training move once per optimizer step, in any training loop."""
    following = [d for d in SparseDictionary._alive if d.sigma is not None and d.sigma.notes is not None]
    if following:
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for dictionary in following:
            if any(id(parameter) in trained for parameter in dictionary.parameters()):
                dictionary.sigma.follow()  # pyright: ignore[reportOptionalMemberAccess]


register_optimizer_step_post_hook(_follow)
