"""An inspection that was invented: 3 layers of 40 atoms, of which 24 are looked at."""

import numpy as np
import torch
from PIL import Image

from atomtune.analysis.findings import AtomRow, AtomView, Comparison, Heat, Inspection, Others, Rung
from atomtune.analysis.learnt import Learnt
from atomtune.analysis.naming import Evidence, Name
from atomtune.analysis.overlap import LayerOverlap, Overlap
from atomtune.analysis.prompts import Factor
from atomtune.metrics import Drift

PHASES = ["early", "middle", "late"]
PROMPTS = [f"a sks teapot on a {colour} background" for colour in ("red", "green", "blue", "white", "black")]


def overlap_of(layer: int) -> LayerOverlap:
    return LayerOverlap(f"L{layer}", (9, 8), torch.full((8,), 0.5), 0.25, 0.1, (0.4, 0.3), (0.2, 0.2), (-0.1, 0.2))


def invented(size: int = 64) -> Inspection:
    random = np.random.default_rng(0)

    def picture() -> Image.Image:
        small = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Image.fromarray(small).resize((size, size), Image.Resampling.BILINEAR)

    def pictures(count: int = 4) -> list[Image.Image]:
        return [picture() for _ in range(count)]

    names = [
        Name((Evidence(Factor("blue background", "background"), 4.2, 0.4, 0.001),)),
        Name(
            (
                Evidence(Factor("late steps", "phase"), 250.0, 0.2, 0.001),
                Evidence(Factor("large", "size"), 2.0, 0.1, 0.001),
            )
        ),
        Name(),
    ]
    energies = np.sort(random.random((3, 40)).ravel() ** 3)[::-1]
    places = [(number % 3, number // 3) for number in range(120)]
    rows = [
        AtomRow(
            address=f"L{layer}[{id}]",
            layer=layer,
            id=id,
            name=names[number % 3],
            mean_energy=float(energy) if number < 100 else 0.0,
            share=float(energy / energies.sum()) if number < 100 else 0.0,
            influence=float(energy) / 20 if number < 100 else 0.0,
            firing_rate=0.5 / (number + 1),
            like="L0[3]" if (layer, id) == (0, 6) else "",
        )
        for number, ((layer, id), energy) in enumerate(zip(places, energies))
    ]
    views = [
        AtomView(
            row=row,
            heats=[Heat(prompt, {phase: picture() for phase in ("all", *PHASES)}) for prompt in PROMPTS[:3]],
            comparisons=[Comparison(prompt, picture(), picture(), picture(), 0.02) for prompt in PROMPTS[: number % 3]],
            mean_energy_by_timestep={float(t): float(random.random()) for t in range(999, 0, -50)},
        )
        for number, row in enumerate(rows[:24])
    ]
    return Inspection(
        subject="sks teapot",
        learnt=Learnt(
            [(picture(), "a sks teapot in a kitchen")],
            numbers={"fidelity_before": 0.02, "fidelity": 0.87, "recognised": 4, "drawings": 5},
            class_name="teapot",
            token="sks",
        ),
        facts={
            "atoms": 120,
            "layers": 3,
            "alive": 100,
            "named": 80,
            "duplicates": 1,
            "per token": 4.0,
            "hold half the energy": 20,
            "naming prompts": 96,
            "naming steps": 10,
            "full": 0.1,
            "boost": 20.0,
            "sized": 4,
        },
        prompts=list(PROMPTS),
        base=pictures(5),
        adapted=pictures(5),
        others=Others(["a dog", "a cup"], pictures(2), pictures(2), Drift(0.1, 0.06, 0.5), 0.25, 0.0),
        rows=rows,
        views=views,
        phases=PHASES,
        rung_prompts=PROMPTS[:4],
        ladder=[Rung(float(n), f"{n}", pictures(), n / 120, n == 120) for n in (0, 4, 12, 40, 120)],
        densities=[
            Rung(n / 40, f"{n} atoms for each token, in each layer", pictures(), n / 8, n == 4) for n in (1, 2, 4, 8)
        ],
        overlap=Overlap((40, 30), ((30, 20), (5, 25)), (18, 4), (0.8, 0.7), [overlap_of(layer) for layer in range(3)]),
        against="other",
    )
