"""What an inspection found: everything that the report shows, as `inspection` draws and measures it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from atomtune.analysis.learnt import Learnt
from atomtune.analysis.naming import Name
from atomtune.analysis.overlap import Overlap
from atomtune.metrics import Drift

MUCH_DRIFT = 0.05
"""Drift of pixels above which the report says what helps."""


@dataclass
class AtomRow:
    """One atom, as a row of the table."""

    address: str
    layer: int
    id: int
    name: Name
    mean_energy: float
    """Mean over tokens of |s_m| · ‖d_m‖."""
    share: float
    """Of the energy of all atoms of all layers."""
    influence: float
    """How much the model's answer changes without it, a share of the answer: see `influence_sizes`."""
    firing_rate: float
    """Share of the tokens in which it fired."""
    like: str = ""
    """The address of the stronger atom that it is a near duplicate of, if there is one."""


@dataclass
class Heat:
    """Where one atom acts in one image: on average ("all") and in each phase."""

    prompt: str
    images: dict[str, Image.Image]


@dataclass
class Comparison:
    """One image with an atom off, and turned up: as it was learnt, one of thousands changes too little to see."""

    prompt: str
    off: Image.Image
    boosted: Image.Image
    """With its gain at `inspection.BOOST`."""
    difference: Image.Image
    """boosted - off, on a scale that all comparisons share."""
    change: float
    """Of the image with the atom as it was learnt, when the atom is off: a share of the range from black to white."""


@dataclass
class AtomView:
    """One of the strongest atoms, looked at closely."""

    row: AtomRow
    heats: list[Heat]
    comparisons: list[Comparison]
    """Those in which a change can be seen."""
    mean_energy_by_timestep: dict[float, float]
    """The noisiest first."""


@dataclass
class Rung:
    """The same prompts at one setting of a dial."""

    value: float
    """Atoms kept, or the density."""
    label: str
    images: list[Image.Image]
    reach: float
    """How far the images are from the base's towards the adapter's: 0 the base, 1 the adapter as trained."""
    trained: bool = False


@dataclass
class Others:
    """What the adapter does to prompts that have nothing to do with its subject, at the same noise."""

    prompts: list[str]
    base: list[Image.Image]
    adapted: list[Image.Image]
    drift: Drift
    silent: float
    """Share of the tokens, over all layers and steps, in which no atom fired."""
    floor: float
    """q of the adapter's floor; 0: none."""

    @property
    def unchanged(self) -> int:
        """The number of images that are the base's own to the bit."""
        return round(self.drift.unchanged * len(self.prompts))

    @property
    def much(self) -> bool:
        """Whether so much changes that the page says what helps."""
        return self.drift.pixels > MUCH_DRIFT


@dataclass
class Inspection:
    """What `report.render` turns into a page."""

    subject: str
    learnt: Learnt
    facts: dict[str, Any]
    prompts: list[str]
    base: list[Image.Image]
    adapted: list[Image.Image]
    others: Others
    rows: list[AtomRow]
    """The strongest first."""
    views: list[AtomView]
    phases: list[str]
    rung_prompts: list[str]
    """The prompts that `ladder` and `densities` were drawn with."""
    ladder: list[Rung] = field(default_factory=list)
    densities: list[Rung] = field(default_factory=list)
    overlap: Overlap | None = None
    against: str = ""
    """The other adapter of `overlap`."""
