"""Settings of a board as plain data: to keep, compare, apply, and to write down as Python or as a command line.

settings = Settings(density=0.02, keep=400, gains={"L3[139]": 0.5}, schedule={1000: 1, 0: 0.5})
settings.preset(board)                          what `board.apply` and `generate --preset` take
print(settings.python("runs/teapot", "a sks teapot"))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from atomtune.atoms import Layer
from atomtune.errors import UserError
from atomtune.shell import command_line
from atomtune.steering import AtomBoard


@dataclass(frozen=True)
class Trained:
    """The dials of a board as it was trained, and its strongest atoms."""

    density: float
    floor: float
    measured: bool
    """Whether the floor can be set."""
    atoms: int
    strongest: list[str]
    """Addresses, by energy in training, or in their own order where it is not known."""

    layers: list[str]
    """Addresses."""

    @classmethod
    def of(cls, board: AtomBoard, strongest: int = 40) -> Trained:
        """Of a board whose dials are as they were trained."""
        addresses = [atom.address for atom in board]
        try:
            energies = torch.cat([energy.cpu() for energy in board.mean_energy()])
            addresses = [addresses[place] for place in energies.topk(min(strongest, len(energies))).indices.tolist()]
        except UserError:
            pass
        measured = any(dictionary.floor.measured for dictionary in board.dictionaries)
        layers = [Layer(dictionary).address for dictionary in board.dictionaries]
        return cls(board.density, board.floor, measured, len(board), addresses[:strongest], layers)

    def settings(
        self,
        density: int | float,
        floor: int | float,
        keep: int | float,
        gains: Mapping[str, int | float],
        strengths: Mapping[float, int | float],
    ) -> Settings:
        """What differs from training. A density or floor that a person cannot tell from it does not."""
        return Settings(
            None if abs(density - self.density) < 6e-4 else density,
            None if abs(floor - self.floor) < 4e-4 else floor,
            None if keep >= self.atoms else int(keep),
            {address: gain for address, gain in gains.items() if gain != 1},
            strengths if {*strengths.values()} != {1} else {},
        )


@dataclass(frozen=True)
class Settings:
    """The dials of an adapter for one drawing. What is None or empty is as it was trained."""

    density: int | float | None = None
    """ρ, the share of a layer's atoms that one token may use, in (0, 1]."""
    floor: int | float | None = None
    """q, from 0 to 1 (see `AtomBoard.floor`)."""
    keep: int | None = None
    """Atoms kept over the whole model, those of the most energy."""
    gains: Mapping[str, int | float] = field(default_factory=dict)
    """By address."""
    schedule: Mapping[float, int | float] = field(default_factory=dict)
    """Strength by timestep (see `AtomBoard.schedule`)."""

    def preset(self, board: AtomBoard) -> dict[str, Any]:
        """The same as a preset of this board, whose dials are left as they were. Raises `UserError`, as the board does
        for what is out of range."""
        before = board.preset()
        try:
            board.reset()
            if self.density is not None:
                board.density = self.density
            if self.floor is not None:
                board.floor = self.floor
            if self.keep is not None:
                board.keep(self.keep)
            for address, gain in self.gains.items():
                board[address].gain = gain
            board.schedule = dict(self.schedule)
            return board.preset()
        finally:
            board.apply(before)

    def python(
        self, adapter: str | Path, prompt: str, seed: int = 0, steps: int | None = None, base: str = "moji"
    ) -> str:
        """Lines of Python that draw the image and save it as image.png."""
        dials = {"density": self.density, "floor": self.floor}
        lines = [f"board.{name} = {value!r}" for name, value in dials.items() if value is not None]
        lines += [f"board.keep({self.keep})"] if self.keep is not None else []
        lines += [f"board[{json.dumps(address)}].gain = {gain!r}" for address, gain in self.gains.items()]
        lines += [f"board.schedule = {dict(self.schedule)!r}"] if self.schedule else []
        options = f", seed={seed}" + ("" if steps is None else f", steps={steps}")
        return "\n".join(
            [
                "import atomtune",
                "",
                f"pipe = atomtune.load_base({base!r})",
                f"atomtune.load_adapter(pipe, {str(adapter)!r})",
                *(["board = atomtune.board(pipe)", *lines] if lines else []),
                f"atomtune.generate(pipe, {prompt!r}{options})[0].image.save('image.png')",
            ]
        )

    def command(
        self,
        adapter: str | Path,
        prompt: str,
        seed: int = 0,
        steps: int | None = None,
        base: str = "moji",
        preset: Path | None = None,
    ) -> str:
        """The `atomtune generate` that draws the image. `preset` is the file of `preset`, which every dial but density
        and floor needs."""
        options: list[Any] = ["--prompt", prompt, "--seed", seed]
        options += ["--steps", steps] if steps is not None else []
        options += ["--base", base] if base != "moji" else []
        if preset is not None:
            options += ["--preset", preset]
        else:
            options += ["--density", self.density] if self.density is not None else []
            options += ["--floor", self.floor] if self.floor is not None else []
        return command_line("generate", adapter, *options)

    def __str__(self) -> str:
        """In a few words, for a caption."""
        words = [f"density {self.density:g}"] if self.density is not None else []
        words += [f"floor {self.floor:g}"] if self.floor is not None else []
        words += [f"{self.keep:,} atoms"] if self.keep is not None else []
        words += [f"{address} × {gain:g}" for address, gain in self.gains.items()]
        words += ["strength " + ", ".join(f"{s:g} at {t:g}" for t, s in self.schedule.items())] if self.schedule else []
        return ", ".join(words) or "as trained"
