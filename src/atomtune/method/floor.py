"""A floor under the codes: an atom fires only where it fires more strongly than it does on other inputs.

    s_m  where |s_m| > λ_m, else 0          λ_m: 1 % above the q-quantile of |s_m| over the tokens of other inputs

Other inputs are those that the adapter should leave alone: prompts without its subject, texts about something else. σ
takes away atoms that are weak beside others of the same token, the floor those that are weak beside themselves
elsewhere. Where no atom is above its floor, ΔO is exactly zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from atomtune.errors import UserError
from atomtune.method.dials import Dials

LEVELS = (0.9, 0.99, 0.999, 1.0)
"""The shares whose quantiles are measured; 1: the largest that was seen."""
SAMPLE = 2**14
"""Tokens of a measurement that are kept for the quantiles."""
ROUNDING = 0.01
"""λ is so much, relatively, above the quantile, because in another batch the same input has other last bits."""
UNMEASURED = -1.0


class Floor(Dials):
    """λ of M atoms, measured on other inputs, and the share q that a user chooses."""

    levels: Tensor
    """[M, 4]: of |s_m| on other inputs, the quantiles of `LEVELS`; -1 before they are measured."""
    share: Tensor
    """[M]: q of each atom, of adapters that were concatenated each its own. Saved with the atoms."""
    saved: Tensor
    """[M]: q as the adapter was trained, or loaded."""
    threshold: Tensor | None
    """[M]: λ; None if no atom has a floor."""

    def __init__(self, num_atoms: int, share: float = 0.0) -> None:
        super().__init__()
        check_share(share)
        self.register_buffer("levels", torch.full((num_atoms, len(LEVELS)), UNMEASURED, dtype=torch.float32))
        self.register_buffer("share", torch.full((num_atoms,), share, dtype=torch.float32))
        self.register_buffer("saved", self.share.clone(), persistent=False)
        self.register_buffer("threshold", None, persistent=False)
        self._seen: _Seen | None = None

    def forward(self, codes: Float[Tensor, "*batch atoms"]) -> Float[Tensor, "*batch atoms"]:
        if self._seen is not None:
            self._seen.add(codes.detach())
            return torch.zeros_like(codes)
        return codes if self.threshold is None else _above(codes, self.threshold)

    def at(self, codes: Float[Tensor, "*batch k"], index: Int[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """The same of the codes of some atoms, while nothing is measured."""
        return codes if self.threshold is None else _above(codes, self.threshold[index])

    @property
    def is_being_measured(self) -> bool:
        """Whether this is inside the block of `measuring`."""
        return self._seen is not None

    @property
    def measured(self) -> bool:
        """Whether the quantiles of any atom are known."""
        return bool(self._known.any())

    @property
    def _known(self) -> Bool[Tensor, " atoms"]:
        """Of which atoms the quantiles are known: of several adapters in one, or with dropped atoms, not of all."""
        return self.levels[:, 0] >= 0

    @property
    def chosen(self) -> float:
        """q of the atoms that were measured, the mean if they differ; of all atoms, if none was."""
        return float((self.share[self._known] if self.measured else self.share).double().mean())

    def set(self, share: int | float) -> None:
        """q = share, from 0 (no floor) to 1 (above all that was seen). Raises `UserError` if it is out of range, or if
        nothing was measured."""
        set_share([self], share)

    def reset(self) -> None:
        """Undo `set`."""
        self.share.copy_(self.saved)
        self._set_threshold()

    def start(self, share: float) -> None:
        """q = share, once it is measured: as a new one."""
        self.levels.fill_(UNMEASURED)
        self.share.fill_(share)
        self.saved.fill_(share)
        self._set_threshold()

    @property
    def changed(self) -> bool:
        """Whether q is another than the adapter was trained, or loaded, with."""
        return not torch.equal(self.share, self.saved)

    @contextmanager
    def measuring(self, kept: Float[Tensor, " atoms"] | None = None, words: Sequence[Tensor] = ()) -> Iterator[_Seen]:
        """Measure `levels` on the codes of the forward passes in the block; of the `kept` atoms, as others cannot fire.
        `words` are masks of the texts of the present pass, whose padding does not count.

        In the block every atom is silent, so that later layers see what they see in the frozen model. A floor of q = 1
        in all layers then returns exactly the frozen model's answers on these inputs. Raises `UserError` inside another
        such block, or if codes were not finite.
        """
        if self._seen is not None:
            raise UserError("the floor is being measured already: measure it in one block.")
        self._seen = seen = _Seen(words)
        try:
            yield seen
        finally:
            self._seen = None
        if seen.tokens:
            levels = seen.levels().to(self.levels)
            if not levels.isfinite().all():
                raise UserError("the floor cannot be measured, because codes were not finite numbers.")
            self.levels.copy_(levels if kept is None else torch.where(kept[:, None] > 0, levels, self.levels))
            self._set_threshold()

    @torch.no_grad()
    def _set_threshold(self) -> None:
        """λ between the levels: linear in -log₁₀(1 - q), which is 1, 2 and 3 at the first three levels."""
        threshold = None
        if not self.share.is_meta and bool(((self.share > 0) & self._known).any()):
            place = -(1 - self.share).log10().clamp(min=-len(LEVELS))
            below = place.long().clamp(max=len(LEVELS) - 1)
            known = torch.cat([torch.zeros_like(self.levels[:, :1]), self.levels], dim=1)
            low, high = (known.gather(1, (below + more)[:, None])[:, 0] for more in (0, 1))
            quantile = low.lerp(high, place - below)
            threshold = (quantile * (1 + ROUNDING)).masked_fill((self.share == 0) | (high < 0), UNMEASURED)
        self.register_buffer("threshold", threshold, persistent=False)

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.share.is_meta:
            self.saved.copy_(self.share)
        self._set_threshold()


def _above(codes: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(codes.abs() <= threshold, 0, codes)  # what is not a number stays, to be seen


class Sample:
    """A uniform sample, of at most `size`, of rows that come in parts: those with the largest random keys."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self._generator = torch.Generator().manual_seed(0)
        self._keys = torch.empty(size)
        self._kept: Tensor | None = None

    @property
    def rows(self) -> Float[Tensor, "rows width"] | None:
        """Those of the sample: as they came, or by their keys if some were left out; None before the first part."""
        if self._kept is None or self.seen <= self.size:
            return None if self._kept is None else self._kept[: self.seen]
        return self._kept[self._keys.argsort(descending=True).to(self._kept.device)]

    def add(self, rows: Float[Tensor, "rows width"]) -> None:
        if self._kept is None:
            self._kept = rows.new_empty(self.size, *rows.shape[1:])
        filled = min(self.seen, self.size)
        keys = torch.cat([self._keys[:filled], torch.rand(len(rows), generator=self._generator)])
        stays = torch.ones(len(keys), dtype=torch.bool)
        if len(keys) > self.size:
            stays[keys.topk(len(keys) - self.size, largest=False).indices] = False
        new = stays[filled:].nonzero()[:, 0]
        places = torch.cat([(~stays[:filled]).nonzero()[:, 0], torch.arange(filled, self.size)])[: len(new)]
        # In place: a new tensor for every part took a third of a short run.
        self._kept[places.to(rows.device)] = rows[new.to(rows.device)]
        self._keys[places] = keys[filled:][new]
        self.seen += len(rows)


def said(tokens: Float[Tensor, "*batch width"], words: Sequence[Tensor]) -> Float[Tensor, "*some width"]:
    """Those of the tokens that the first of the masks `words` that fits calls a word, and no padding; all of them if
    none fits."""
    return tokens[next((mask for mask in words if mask.shape == tokens.shape[:-1]), ...)]


class _Seen:
    """|s| of a uniform sample of the tokens, and the largest of all tokens; without padding (`said`)."""

    def __init__(self, words: Sequence[Tensor]) -> None:
        self.sample, self.words = Sample(SAMPLE), words

    @property
    def tokens(self) -> int:
        return self.sample.seen

    def add(self, codes: Float[Tensor, "*batch atoms"]) -> None:
        magnitudes = said(codes, self.words).abs().reshape(-1, codes.shape[-1])
        if not len(magnitudes):
            return
        largest = magnitudes.amax(0)
        self._largest = self._largest.maximum(largest) if self.tokens else largest
        self.sample.add(magnitudes)

    def levels(self) -> Float[Tensor, "atoms levels"]:
        assert self.sample.rows is not None  # it has tokens
        count = len(self.sample.rows)
        places = [count - math.ceil(share * count) for share in LEVELS[:-1]]  # from the largest on
        ordered = self.sample.rows.T.contiguous().topk(places[0] + 1).values
        return torch.stack([*(ordered[:, place] for place in places), self._largest], dim=1)


def set_share(floors: Sequence[Floor], share: int | float) -> None:
    """`Floor.set`, of all atoms that were measured. Raises `UserError` if none was, and then changes nothing."""
    check_share(share)
    if share and not any(floor.measured for floor in floors):
        raise UserError(
            "these atoms have no floor, because it was not measured what they do elsewhere: run a few prompts that the "
            "adapter should leave alone in the block of `with board.measure_floor():`."
        )
    for floor in floors:
        floor.share.masked_fill_(floor._known | (share == 0), share)
        floor._set_threshold()


def check_share(share: int | float) -> None:
    """Raise `UserError` unless it is from 0 to 1."""
    if not 0 <= share <= 1:
        raise UserError(f"floor must be from 0 (none) to 1 (above all that was seen), got {share:g}.")
