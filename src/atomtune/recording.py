"""The contents of a trace: running sums and kept codes of each layer, and the numbers and maps made from them.

`tracing.trace` records them. Codes are stored sparse and returned dense: by `codes`, at every token of each sample at
one timestep, or of a text; by `means`, the mean of these over timesteps; by `maps`, the same at the tokens of the image
alone; and by `every_token`, one row for each token of each run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from atomtune.errors import UserError
from atomtune.kept import KeptCodes, ModelRun, TokenSums
from atomtune.method.dictionary import SparseDictionary

UNGUIDED, GUIDED = 0, 1


@dataclass(eq=False, repr=False)
class LayerTrace:
    """The record of one layer. Its rows are the atoms that the layer had at the time; `ids` are their ids.

    Rates and energies are of the guided half, `total(unguided=True)` has those of the other half. Iterating gives each
    `AtomTrace`.
    """

    dictionary: SparseDictionary
    keep_codes: bool = False
    name: str = ""
    """Name of the module that the atoms adapt."""
    by_timestep: dict[float | None, tuple[TokenSums, TokenSums]] = field(default_factory=dict)
    """For each timestep, the sums of the unguided and of the guided half."""
    samples: list[TokenSums] = field(default_factory=list)
    """For each sample, the sums of its guided half over all its timesteps."""
    kept_codes: list[KeptCodes] = field(default_factory=list)
    """Codes of the guided half, if the trace was made with `codes=True`: see `codes`."""
    grid: tuple[int, int] | None = None
    """Rows and columns of the image's tokens in the last run; None where they are not known."""
    sees_image: bool = True
    """False for a layer of a known family of image models that sees the text alone."""
    number: int = field(init=False)
    """Number of the layer, as in its address."""
    ids: Int[Tensor, " atoms"] = field(init=False)
    """The id of the atom in each row, on the CPU."""
    _norms: Float[Tensor, " atoms"] | None = None

    def __post_init__(self) -> None:
        # A copy, because pruning changes the dictionary's ids.
        self.number, self.ids = int(self.dictionary.layer), self.dictionary.id.cpu().clone()

    def __repr__(self) -> str:
        fired = int((self.fired > 0).sum())
        return f"<{self.address} = {self.name}: {fired:,} of {len(self):,} atoms fired at {self.tokens:,} tokens>"

    @property
    def address(self) -> str:
        return f"L{self.number}"

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[AtomTrace]:
        return (AtomTrace(self, row) for row in range(len(self)))

    @torch.no_grad()
    def record(self, codes: Tensor, run: ModelRun) -> None:
        codes = codes.detach()
        codes = codes.reshape(codes.shape[0], -1, codes.shape[-1]) if codes.ndim > 2 else codes[None]
        if codes.shape[2] != len(self):
            raise self._pruned()
        magnitudes, firing, tokens = codes.abs(), codes != 0, codes.shape[1]
        fired, magnitude = firing.sum(1), magnitudes.sum(1, dtype=torch.float32)  # [batch, atoms]
        peak, silent = magnitudes.amax(1).float(), tokens - firing.any(2).sum(1)
        unguided_rows, guided_rows = run.rows(len(codes))
        times = run.timesteps_of(len(codes))
        image = run.sight.image(self.name, tokens) if run.sight else None
        self.sees_image, self.grid = not run.sight or image is not None, image and (image.rows, image.columns)
        for t in dict.fromkeys(times):
            if t not in self.by_timestep:
                unguided, guided = (TokenSums.zero(len(self), codes.device) for _ in (UNGUIDED, GUIDED))
                self.by_timestep[t] = (unguided, guided)
            for half, rows in ((UNGUIDED, unguided_rows), (GUIDED, guided_rows)):
                if part := [row for row in rows if times[row] == t]:
                    at = slice(rows.start, rows.stop) if len(part) == len(rows) else part  # a slice copies nothing
                    sums = (fired[at].sum(0), magnitude[at].sum(0), peak[at].amax(0), silent[at].sum())
                    total = TokenSums(*sums, tokens * len(part))
                    self.by_timestep[t][half].add(total)
        for sample, row in enumerate(guided_rows, run.first_sample):
            while len(self.samples) <= sample:  # more than one, if runs before this one left the layer's atoms out
                self.samples.append(TokenSums.zero(len(self), codes.device))
            self.samples[sample].add(TokenSums(fired[row], magnitude[row], peak[row], silent[row], tokens))
        if self.keep_codes and guided_rows:
            together = len({times[row] for row in guided_rows}) == 1
            for row in guided_rows[:1] if together else guided_rows:
                part = slice(row, guided_rows.stop if together else row + 1)
                sample, own = run.first_sample + row - guided_rows.start, image.samples(part) if image else None
                self.kept_codes.append(KeptCodes.of(codes[part], times[row], sample, own))

    def close(self, whole: bool) -> None:
        """Store the norms of the present atoms, which the energies need; and, if the `whole` block was run, the usage
        with the atoms, for boards that rank them."""
        if self.dictionary.num_atoms == len(self):
            self._norms = self.norms
            if whole:
                with torch.inference_mode(False):
                    self.dictionary.set_traced_usage(self.usage.clone())

    @property
    def norms(self) -> Float[Tensor, " atoms"]:
        """‖d_m‖ at the end of the trace. Raises `UserError` if atoms were pruned inside its block."""
        if self._norms is not None:
            return self._norms
        if self.dictionary.num_atoms != len(self):
            raise self._pruned()
        return self.dictionary.atoms().norm(dim=1)

    def _pruned(self) -> UserError:
        return UserError(f"the atoms of {self.address} were pruned while they were traced: prune outside the block.")

    def total(self, unguided: bool = False) -> TokenSums:
        """Sums over all timesteps."""
        sums = [halves[UNGUIDED if unguided else GUIDED] for halves in self.by_timestep.values()]
        total = TokenSums.zero(len(self), sums[0].fired.device if sums else self.dictionary.gain.device)
        for part in sums:
            total.add(part)
        return total

    @property
    def tokens(self) -> int:
        return self.total().tokens

    @property
    def fired(self) -> Int[Tensor, " atoms"]:
        """The number of tokens in which each atom fired."""
        return self.total().fired

    @property
    def silent(self) -> int:
        """The number of tokens in which no atom fired."""
        return int(self.total().silent)

    @property
    def firing_rate(self) -> Float[Tensor, " atoms"]:
        """Share of the tokens in which each atom fired, 0 to 1."""
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
    def mean_energy(self) -> Float[Tensor, " atoms"]:
        """Mean over tokens of |s_m| · ‖d_m‖: how much each atom adds to the layer's output."""
        return self.usage * self.norms

    @property
    def mean_energy_by_timestep(self) -> dict[float, Float[Tensor, " atoms"]]:
        """`mean_energy` at each timestep, the noisiest first."""
        times = sorted((t for t in self.by_timestep if t is not None), reverse=True)
        sums, norms = {t: self.by_timestep[t][GUIDED] for t in times}, self.norms
        return {t: s.magnitude / max(1, s.tokens) * norms for t, s in sums.items()}

    @property
    def mean_energy_by_sample(self) -> Float[Tensor, "samples atoms"]:
        """`mean_energy` in each sample: in which images an atom acts most."""
        norms = self.norms
        if not self.samples:
            return norms.new_zeros(0, len(self))
        return torch.stack([s.magnitude / max(1, s.tokens) for s in self.samples]) * norms

    def codes(self, timestep: int | float | None = None) -> Float[Tensor, "samples tokens atoms"]:
        """s_m at every token of each sample, for all atoms, float32 on the CPU; 0 after the end of a shorter text.

        Samples that were run at several timesteps, as in drawing images, need one `timestep`; `maps` gives their mean.
        The codes of a sample that was not run at it are 0. Raises `UserError` when the trace kept no codes of them.
        """
        return self._codes(timestep)

    def _codes(self, timestep: int | float | None, row: int | None = None) -> Float[Tensor, "samples tokens atoms"]:
        """`codes`, or for one atom its codes alone, [samples, tokens, 1]."""
        kept = self._kept_codes()
        times = [t for t in dict.fromkeys(codes.timestep for codes in kept) if t is not None]
        if timestep is None and len(times) > 1:
            each = ", ".join(f"{t:g}" for t in times)
            raise UserError(
                f"this trace has codes at several timesteps: give one of {each}, or take their mean, maps()."
            )
        chosen, first, samples = self._chosen(timestep)
        tokens, atoms = max(codes.shape[1] for codes in chosen), len(self) if row is None else 1
        dense = torch.zeros(samples, tokens, atoms)
        for codes in chosen:
            codes.add_to(part := torch.zeros(*codes.shape[:2], atoms), row)
            start = codes.first_sample - first
            dense[start : start + codes.shape[0], : codes.shape[1]] += part
        return dense

    def _chosen(self, timestep: int | float | Collection[int | float] | None) -> tuple[list[KeptCodes], int, int]:
        """The kept codes of these timesteps; the first sample, and the number of samples, of all that was kept."""
        kept = self._kept_codes()
        wanted = {timestep} if isinstance(timestep, int | float) else timestep
        chosen = [codes for codes in kept if wanted is None or codes.timestep in wanted]
        if not chosen:
            times = ", ".join(f"{t:g}" for t in dict.fromkeys(codes.timestep for codes in kept) if t is not None)
            raise UserError(f"this trace kept no codes at timestep {timestep}: it has those at {times or 'none'}.")
        first = min(codes.first_sample for codes in kept)
        return chosen, first, max(codes.first_sample + codes.shape[0] for codes in kept) - first

    def maps(
        self, timestep: int | float | Collection[int | float] | None = None, magnitude: bool = False
    ) -> Float[Tensor, "samples tokens atoms"]:
        """s_m at every token of the image in each sample, or |s_m| with `magnitude`, for all atoms: the mean over the
        timesteps. Of a model that is of no family in `bases.families`, at all its tokens.

        `timestep` is one timestep, or several; by default all count. The map of a sample that was not run at any of
        these is NaN. Raises `UserError` when the trace kept no codes of them, for samples of different sizes, and for
        a layer that sees no image.
        """
        return self._maps(timestep, magnitude)

    def means(
        self, timestep: int | float | Collection[int | float] | None = None, magnitude: bool = False
    ) -> Float[Tensor, "samples tokens atoms"]:
        """As `maps`, but at all tokens, also those of the text."""
        return self._means(timestep, magnitude, None, lambda codes, dense: dense)

    def _maps(
        self, timestep: int | float | Collection[int | float] | None, magnitude: bool, row: int | None = None
    ) -> Float[Tensor, "samples tokens atoms"]:
        """`maps`, or for one atom its map alone, [samples, tokens, 1]."""
        if not self.sees_image:
            raise UserError(
                f"{self.address} ({self.name}) sees the words of the prompt and not the image, so it has no maps: its "
                "codes are in codes() and means()."
            )
        return self._means(timestep, magnitude, row, KeptCodes.of_image)

    def _means(
        self,
        timestep: int | float | Collection[int | float] | None,
        magnitude: bool,
        row: int | None,
        chosen_tokens: Callable[[KeptCodes, Tensor], Tensor],
    ) -> Float[Tensor, "samples tokens atoms"]:
        chosen, first, samples = self._chosen(timestep)
        sizes = {chosen_tokens(codes, torch.empty(*codes.shape[:2], 0)).shape[1] for codes in self.kept_codes}
        if len(sizes) > 1:
            raise UserError(
                f"samples of {min(sizes)} and of {max(sizes)} tokens have no common map: trace them separately."
            )
        atoms = len(self) if row is None else 1
        summed, count = torch.zeros(samples, *sizes, atoms), torch.zeros(samples, 1, 1)
        for codes in chosen:
            codes.add_to(part := torch.zeros(*codes.shape[:2], atoms), row, magnitude)
            rows = slice(codes.first_sample - first, codes.first_sample - first + codes.shape[0])
            summed[rows] += chosen_tokens(codes, part)
            count[rows] += 1
        return summed / count

    def every_token(self) -> Float[Tensor, "tokens atoms"]:
        """s_m at every token of every sample and timestep, a row each, in the order of the runs, for `likeness`.

        Raises `UserError` when the trace kept no codes.
        """
        parts = []
        for codes in self._kept_codes():
            codes.add_to(part := torch.zeros(codes.shape), None)
            parts.append(part.flatten(0, 1))
        return torch.cat(parts)

    def _kept_codes(self) -> list[KeptCodes]:
        if not self.keep_codes:
            raise UserError("this trace kept no codes: use trace(model, codes=True).")
        if not self.kept_codes:
            raise UserError(f"this trace has no codes of {self.address}: run the model inside the block.")
        return self.kept_codes


@dataclass(eq=False, repr=False)
class AtomTrace:
    """The record of one atom: row `index` of a layer's trace."""

    layer: LayerTrace
    index: int

    def __repr__(self) -> str:
        fired = f"fired at {self.firing_rate:.2%} of the tokens, |s| up to {self.peak:.3g}"
        return f"<{self.address} of {self.layer.name}: {fired if self.firing_rate else 'never fired'}>"

    @property
    def address(self) -> str:
        return f"{self.layer.address}[{int(self.layer.ids[self.index])}]"

    @property
    def mean_energy(self) -> float:
        """Mean over tokens of |s_m| · ‖d_m‖: how much the atom adds to the layer's output."""
        return float(self.layer.mean_energy[self.index])

    @property
    def mean_energy_by_timestep(self) -> dict[float, float]:
        """`mean_energy` at each timestep, the noisiest first."""
        return {t: float(energy[self.index]) for t, energy in self.layer.mean_energy_by_timestep.items()}

    @property
    def mean_energy_by_sample(self) -> Float[Tensor, " samples"]:
        """`mean_energy` in each sample: in which images the atom acts most."""
        return self.layer.mean_energy_by_sample[:, self.index]

    @property
    def firing_rate(self) -> float:
        """Share of the tokens in which the atom fired, 0 to 1."""
        return float(self.layer.firing_rate[self.index])

    @property
    def usage(self) -> float:
        """Mean of |s_m| over tokens."""
        return float(self.layer.usage[self.index])

    @property
    def peak(self) -> float:
        """Largest |s_m|."""
        return float(self.layer.peak[self.index])

    @property
    def active_timesteps(self) -> tuple[float, float] | None:
        """The first (noisiest) and last timestep at which the atom fired; None if it never fired."""
        halves = self.layer.by_timestep.items()
        times = [t for t, sums in halves if t is not None and sums[GUIDED].fired[self.index]]
        return (max(times), min(times)) if times else None

    def codes(self, timestep: int | float | None = None) -> Float[Tensor, "samples tokens"]:
        """s_m at every token of each sample, as `LayerTrace.codes` for all atoms. Raises `UserError`."""
        return self.layer._codes(timestep, self.index)[..., 0]

    def maps(
        self, timestep: int | float | Collection[int | float] | None = None, magnitude: bool = False
    ) -> Float[Tensor, "samples tokens"]:
        """s_m over the tokens of the image in each sample, as `LayerTrace.maps` for all atoms. Raises `UserError`."""
        return self.layer._maps(timestep, magnitude, self.index)[..., 0]

    def means(
        self, timestep: int | float | Collection[int | float] | None = None, magnitude: bool = False
    ) -> Float[Tensor, "samples tokens"]:
        """As `maps`, but at all tokens, also those of the text: see `LayerTrace.means`."""
        return self.layer._means(timestep, magnitude, self.index, lambda codes, dense: dense)[..., 0]

    def top_tokens(self, count: int = 10) -> list[tuple[int, int, float]]:
        """For text models: (sample, position, s_m) where the atom fires most strongly, at most `count` of them.

        Raises `UserError` when the trace kept no codes. `Trace.top_tokens` gives them with their text.
        """
        found: list[tuple[int, int, float]] = []
        for codes in self.layer._kept_codes():
            codes.add_to(map := torch.zeros(*codes.shape[:2], 1), self.index)
            for place in map.abs().flatten().topk(min(count, map.numel())).indices.tolist():
                sample, position = divmod(place, map.shape[1])
                if value := float(map[sample, position]):
                    found.append((codes.first_sample + sample, position, value))
        return sorted(found, key=lambda item: -abs(item[2]))[:count]
