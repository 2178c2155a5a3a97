"""AtomBoard: the atoms of one adapter, all layers together, with the dials that a user can change while sampling.

    board = atomtune.board(pipe)
    board.density = 0.02               each token may use fewer atoms
    board.floor = 0.99                 an atom fires only where it is stronger than 99 % of the time on other prompts
    board["L3[139]"].gain = 0.5        one atom at half strength
    board.keep(40)                     the 40 atoms with the most energy; the others are as if they did not exist
    board.schedule = {1000: 1, 300: 0} strength by timestep

Atoms have addresses: `L17[137]` is the atom with id 137 in the 17th adapted layer, counted from 0, `L17` all of that
layer, and `L17[0:40, 52]` some atoms of it. An address never changes, not by pruning either.

Two different things: `gain` acts after selection, so an atom of gain 0 is silent and no other atom takes its place;
`keep`, `drop` and `only` act before selection, so other atoms compete for the place of a dropped atom, as after
pruning.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from atomtune import showing
from atomtune.adapters import AtomLayer, adapted_layers
from atomtune.adapters.layer import named_layers
from atomtune.addresses import find, written
from atomtune.atoms import Atom, Atoms, Layer, plain
from atomtune.errors import UserError
from atomtune.files import expanded, write_text
from atomtune.method.dictionary import SparseDictionary, measuring_floors
from atomtune.method.floor import set_share
from atomtune.parsing import parse_json
from atomtune.tracing import bare_model, timesteps


class AtomBoard:
    """The atoms of one adapter. `len(board)` is their number, `board["L3"]` a layer, `board["L3[139]"]` an atom, and
    `board["L3[0:40, 52]"]` some atoms of a layer.

    A board stores nothing itself: every dial is in the model, so two boards on one model are the same.
    Raises `UserError` when the model does not carry the adapter.
    """

    def __init__(self, model: Any, adapter: str = "default") -> None:
        self.adapter = adapter
        self.model: nn.Module = bare_model(model)
        """The adapted model, without PEFT's wrapper."""
        self._found = named_layers(self.model, adapter)
        if not self.layers:
            raise UserError(
                f"{type(model).__name__} carries no atoms under the name {adapter!r}: attach or load an adapter."
            )

    def __repr__(self) -> str:
        lines = [
            f"AtomBoard of {self.adapter!r}: {len(self):,} atoms in {len(self.layers)} layers, {len(self.kept):,} kept"
        ]
        return "\n".join([*lines, *(f"  {Layer(*pair)!r}" for pair in zip(self.dictionaries, self.names))])

    def _repr_html_(self) -> str:
        """What a notebook shows: the map of the atoms, the dials, and the strongest atoms (see `showing`)."""
        return showing.html(self)

    @property
    def _layers(self) -> dict[str, AtomLayer]:
        """Without layers that lost the adapter since, as by pruning."""
        return {name: layer for name, layer in self._found.items() if self.adapter in layer.atoms_dictionaries}

    @property
    def layers(self) -> list[AtomLayer]:
        """In the order of their addresses: L0, L1, ..."""
        return list(self._layers.values())

    @property
    def names(self) -> list[str]:
        """Of each layer, the module that its atoms adapt."""
        return list(self._layers)

    @property
    def dictionaries(self) -> list[SparseDictionary]:
        return [layer.dictionary(self.adapter) for layer in self.layers]

    @property
    def num_atoms(self) -> int:
        return sum(dictionary.num_atoms for dictionary in self.dictionaries)

    def __len__(self) -> int:
        return self.num_atoms

    def __iter__(self) -> Iterator[Atom]:
        return (atom for pair in zip(self.dictionaries, self.names) for atom in Layer(*pair))

    def __getitem__(self, address: str) -> Any:
        """The `Atom` at "L3[139]", the `Atoms` at "L3[0:40]", or the `Layer` at "L3". Raises `UserError` when there is
        none."""
        dictionaries = self.dictionaries
        place, rows = find(address, [(int(d.layer), d.id) for d in dictionaries], "adapter")
        dictionary, name = dictionaries[place], self.names[place]
        if isinstance(rows, int):
            return Atom(dictionary, rows, name)
        return Layer(dictionary, name) if rows is None else Atoms(dictionary, name, dictionary.id[rows].tolist())

    # -- dials ------------------------------------------------------------------------------------------------------

    @property
    def density(self) -> float:
        """ρ, the share of a layer's atoms that one token may use. If layers differ, the mean over all atoms."""
        return sum(sum(dictionary.sigma.k_now) for dictionary in self.dictionaries) / self.num_atoms

    @density.setter
    def density(self, density: float) -> None:
        for layer in self.layers:
            layer.set_density(self.adapter, density)

    @property
    def floor(self) -> float:
        """q, from 0 to 1: an atom fires only where |s_m| is above the q-quantile of its |s_m| on other inputs, those
        that the adapter should leave alone. 0: no floor; 1: above all that was seen. If atoms differ, the mean.

        `customize --preserve` measures these quantiles; `measure_floor` does it for any adapter. Setting it raises
        `UserError` if they were not measured; of an adapter of which some atoms were, as after merging, it sets these.
        """
        return plain(torch.cat([dictionary.floor.share for dictionary in self.dictionaries]).double().mean())

    @floor.setter
    def floor(self, floor: int | float) -> None:
        set_share([dictionary.floor for dictionary in self.dictionaries], floor)

    @contextmanager
    def measure_floor(self) -> Iterator[None]:
        """Measure what atoms do on inputs that the adapter should leave alone, while they run in the block.

            with board.measure_floor():
                atomtune.generate(pipe, ["a dog on grass", "a red car"])
            board.floor = 0.99

        In the block the adapter is silent, and the base answers. Kept of each atom are the 90, 99 and 99.9 % quantiles
        of |s_m| over tokens and steps, and the largest; `floor` interpolates between them. They are saved with the
        adapter. Dropped atoms, which cannot fire, are left as they were. Measure anew at a larger `density`: atoms then
        fire where they did not while they were measured. Raises `UserError` if no atom ran.
        """
        with measuring_floors(self.dictionaries):
            yield

    def keep(self, count: int, by: Sequence[Tensor] | None = None, per_layer: bool = False) -> None:
        """Keep the `count` atoms of the largest scores, over the whole model or in each layer, and drop the others.

        `by` holds a score for each atom, one tensor a layer, as `importance` returns them; by default the energy
        mean |s_m| · ‖d_m‖, see `mean_energy`. Atoms dropped before stay dropped. Raises `UserError`.
        """
        if count < 1:
            raise UserError(f"the number of atoms to keep must be at least 1, got {count}.")
        scores = self.mean_energy() if by is None else [score.float() for score in by]
        if (given := [len(score) for score in scores]) != (sizes := [d.num_atoms for d in self.dictionaries]):
            raise UserError(f"there must be a score for each atom: expected {sizes} in the layers, got {given}.")
        present = [d.gain.new_ones(d.num_atoms) if d.kept is None else d.kept for d in self.dictionaries]
        scores = [score.cpu().masked_fill(there.cpu() == 0, -torch.inf) for score, there in zip(scores, present)]
        if per_layer:
            chosen = [_largest(score, count) for score in scores]
        else:
            chosen = _largest(torch.cat(scores), count).split([len(score) for score in scores])
        for dictionary, mask in zip(self.dictionaries, chosen):
            dictionary.keep_only(mask)

    def mean_energy(self) -> list[Float[Tensor, " atoms"]]:
        """mean |s_m| · ‖d_m‖ of every atom as measured in training, or else in the last trace of this model, one tensor
        a layer. Raises `UserError` if there was neither, as after training in a loop of one's own."""
        energies = [dictionary.mean_energy for dictionary in self.dictionaries]
        if not any(energy.any() for energy in energies):
            energies = [dictionary.traced_energy for dictionary in self.dictionaries]
        if not any(energy.any() for energy in energies):
            draws = "timestep" in inspect.signature(self.model.forward).parameters
            name, run = ("pipe", 'atomtune.generate(pipe, "a sks teapot")') if draws else ("model", "model(**examples)")
            own = "" if self.adapter == "default" else f", {self.adapter!r}"
            raise UserError(
                "this adapter was trained without a record of how much its atoms are used, so run a few examples like "
                f"yours while it is traced, and ask again:\n\n    with atomtune.trace({name}{own}):\n        {run}"
            )
        return energies

    def drop(self, addresses: Iterable[str]) -> None:
        """Take these atoms out of the selection: "L3[139]", several of a layer, "L3[0:40]", or all of one, "L3"."""
        for dictionary, mask in self._masks(addresses):
            dictionary.keep_only(~mask if dictionary.kept is None else dictionary.kept.bool() & ~mask)

    def only(self, addresses: Iterable[str]) -> None:
        """Keep these atoms, given as for `drop`, and drop every other."""
        for dictionary, mask in self._masks(addresses):
            dictionary.keep_only(mask)

    @property
    def kept(self) -> list[str]:
        """Addresses of the atoms that take part in the selection."""
        return [atom.address for atom in self if atom.kept]

    @contextmanager
    def muted(self, *addresses: str) -> Iterator[None]:
        """Gain 0 for these atoms, given as for `drop`, inside the block."""
        before = [dictionary.gain.clone() for dictionary in self.dictionaries]
        try:
            for dictionary, mask in self._masks(addresses):
                dictionary.gain[mask] = 0.0
            yield
        finally:
            for dictionary, gain in zip(self.dictionaries, before):
                dictionary.gain.copy_(gain)

    @property
    def schedule(self) -> dict[float, float]:
        """Strength of the adapter by timestep: {timestep: strength}, linear in between. Empty: always 1. Setting it
        raises `UserError` if a number is not finite."""
        hook = self._hook()
        return dict(hook.points) if hook else {}

    @schedule.setter
    def schedule(self, points: Mapping[int | float, int | float]) -> None:
        ordered = {float(t): float(points[t]) for t in sorted(points)}
        if not all(map(math.isfinite, [*ordered, *ordered.values()])):
            raise UserError(f"a schedule is made of finite numbers, {{timestep: strength}}, got {dict(points)}.")
        for key, hook in list(self.model._forward_pre_hooks.items()):
            if isinstance(hook, Schedule) and hook.adapter == self.adapter:
                del self.model._forward_pre_hooks[key]
                self.model._forward_pre_hooks_with_kwargs.pop(key, None)
        for dictionary in self.dictionaries:
            dictionary.strength.fill_(1.0)
        if ordered:
            self.model.register_forward_pre_hook(Schedule(self.adapter, ordered), with_kwargs=True)

    def _hook(self) -> Schedule | None:
        hooks = self.model._forward_pre_hooks.values()
        return next((h for h in hooks if isinstance(h, Schedule) and h.adapter == self.adapter), None)

    def reset(self) -> None:
        """Set every dial as in training: gains 1, no atom dropped, the trained density and floor, no schedule."""
        self.schedule = {}
        for dictionary in self.dictionaries:
            dictionary.gain.fill_(1.0)
            dictionary.keep_only(None)
            dictionary.sigma.reset_density()
            dictionary.floor.reset()

    def _masks(self, addresses: Iterable[str]) -> list[tuple[SparseDictionary, Tensor]]:
        """For each layer's dictionary, a mask of its atoms that are among `addresses`."""
        masks = {
            id(dictionary): torch.zeros_like(dictionary.gain, dtype=torch.bool) for dictionary in self.dictionaries
        }
        for address in [addresses] if isinstance(addresses, str) else addresses:
            found = self[address]
            masks[id(found.dictionary)] |= found.mask
        return [(dictionary, masks[id(dictionary)]) for dictionary in self.dictionaries]

    # -- presets ----------------------------------------------------------------------------------------------------

    def preset(self) -> dict[str, Any]:
        """All dials that differ from training, ready for JSON: `density`, `floor` and `gain` by address, `dropped` or
        `only`, whichever is shorter, and `schedule`. One address stands for all atoms of a layer that are
        set alike."""
        dictionaries = self.dictionaries
        kept = [torch.ones_like(d.gain, dtype=torch.bool) if d.kept is None else d.kept.bool() for d in dictionaries]
        dropped, only = ([_written(d, mask) for d, mask in zip(dictionaries, masks) if mask.any()]
                         for masks in ([~mask for mask in kept], kept))  # fmt: skip
        shorter = only and len("".join(only)) < len("".join(dropped))
        preset = {
            "density": {
                f"L{int(d.layer)}": float(f"{d.sigma.density:.6g}") for d in dictionaries if d.sigma.density_changed
            },
            "floor": {f"L{int(d.layer)}": plain(d.floor.chosen) for d in dictionaries if d.floor.changed},
            "gain": {
                _written(d, d.gain == gain): plain(gain)
                for d in dictionaries
                for gain in dict.fromkeys(d.gain.tolist())
                if gain != 1.0
            },
            "only" if shorter else "dropped": only if shorter else dropped,
            "schedule": {repr(t).removesuffix(".0"): strength for t, strength in self.schedule.items()},
        }
        return {name: value for name, value in preset.items() if value}

    def apply(self, preset: Mapping[str, Any] | str | Path) -> None:
        """Set the dials to a preset (or a JSON file of one); all others as after `reset`.

        A gain may be that of a layer, `{"gain": {"L7": 0}}`, or of several of its atoms, "L7[0:40]"; of two for one
        atom the later counts. `only` is applied before `dropped`. Raises `UserError`; then the dials stay as they were.
        """
        if isinstance(preset, str | Path):
            preset = _read_preset(expanded(preset))
        if unknown := sorted(preset.keys() - {"density", "floor", "gain", "only", "dropped", "schedule"}):
            raise UserError(
                f"the preset has {unknown[0]!r}: expected density, floor, gain, only, dropped and schedule."
            )
        before = self.preset()
        try:
            self._set(preset)
        except (AttributeError, TypeError, ValueError) as error:
            self._set(before)
            if isinstance(error, UserError):
                raise
            raise UserError(f"the preset does not fit ({error}): expected what `save_preset` writes.") from error

    def _set(self, preset: Mapping[str, Any]) -> None:
        self.reset()
        for dial in ("density", "floor"):
            for address, value in preset.get(dial, {}).items():
                if not isinstance(layer := self[address], Layer):
                    raise UserError(
                        f"a {dial} is that of a layer, got {address!r}: give {address.partition('[')[0]!r}."
                    )
                setattr(layer, dial, value)
        for address, gain in preset.get("gain", {}).items():
            self[address].gain = gain
        if "only" in preset:
            self.only(preset["only"])
        self.drop(preset.get("dropped", []))
        self.schedule = {float(t): strength for t, strength in preset.get("schedule", {}).items()}

    def save_preset(self, file: str | Path) -> None:
        """Write `preset()` as JSON, whole or not at all."""
        write_text(expanded(file), json.dumps(self.preset(), indent=1) + "\n")


@dataclass
class Schedule:
    """A forward pre-hook of the denoiser: sets the adapter's strength from the timestep of the call."""

    adapter: str
    points: dict[float, float]
    now: float = 1.0
    """The strength that was set last."""

    def __call__(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        if (t := timesteps(model, args, kwargs)) is None:
            raise UserError(f"{type(model).__name__} was called without a timestep: a schedule needs one.")
        strength = float(np.interp(float(t.flatten()[0]), list(self.points), list(self.points.values())))
        # `torch.func` refuses writes, and calls the model only after an ordinary call with the same timestep
        if strength == self.now:
            return
        for layer in adapted_layers(model, self.adapter):
            layer.dictionary(self.adapter).strength.fill_(strength)
        self.now = strength


def board(model_or_pipe: Any, adapter: str = "default") -> AtomBoard:
    """The board of an adapter on a model, or on the denoiser of a diffusers pipeline."""
    return AtomBoard(model_or_pipe, adapter)


def _largest(scores: Float[Tensor, " atoms"], count: int) -> Tensor:
    """A mask of the `count` largest scores, without those of -∞."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.topk(min(count, len(scores))).indices] = True
    return chosen & (scores > -torch.inf)


def _written(dictionary: SparseDictionary, mask: Bool[Tensor, " atoms"]) -> str:
    """The address of the atoms of `mask`."""
    return written(int(dictionary.layer), None if mask.all() else dictionary.id[mask].tolist())


def _read_preset(file: Path) -> dict[str, Any]:
    try:
        preset = parse_json(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"the preset {file} could not be read ({error}): expected JSON of `save_preset`.") from error
    if not isinstance(preset, dict):
        raise UserError(f"the preset {file} is not a JSON object: expected what `save_preset` writes.")
    return preset
