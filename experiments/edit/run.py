"""Ten edits of one picture, with atoms and with LoRA: `python -m experiments --only edit`.

Things moji has never seen; backgrounds, places, sizes, styles and a whole scene are changed. Both methods train for the
same steps on the same picture. Each has its own dial after training: atoms the two ladders of `atomtune.edit`, LoRA its
scale; the best rung of each is the best of a choice, and stands beside the adapter as trained. Whether what was asked
for is there is also read off: background, place and size by pixels, style by the judge.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import atomtune
from atomtune import metrics, sampling
from atomtune.editing import Rung, edit
from atomtune.moji.scenes import Scene, caption
from atomtune.storage import folders
from atomtune.training import load_recipe
from experiments.common import subjects
from experiments.common.cells import read
from experiments.common.intervals import paired, trend
from experiments.common.report import Claim, table
from pretraining.drawings import Drawings

HERE = Path(__file__).parent
NUM, SCALES = 4, (1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Config:
    """One cell: a picture, what its prompt becomes, and the words for both."""

    scene: Scene
    change: dict[str, str]

    @property
    def settings(self) -> dict[str, Any]:
        return {"base": subjects.weights_digest(), "case": asdict(self), "pictures": NUM}

    @property
    def wanted(self) -> Scene:
        return replace(self.scene, **self.change)

    @property
    def prompts(self) -> tuple[str, str]:
        """What the picture shows, and what it should become."""
        return caption(self.scene), caption(self.wanted)


CASES = {
    "background-teapot": Config(Scene("teapot", "twemoji", "green"), {"background": "red"}),
    "background-octopus": Config(Scene("octopus", "twemoji", "yellow"), {"background": "black"}),
    "background-guitar": Config(Scene("guitar", "twemoji", "gray"), {"background": "blue"}),
    "place-turtle": Config(Scene("turtle", "twemoji", "pink"), {"place": "left"}),
    "place-helicopter": Config(Scene("helicopter", "twemoji", "green"), {"place": "top"}),
    "size-flamingo": Config(Scene("flamingo", "twemoji", "white"), {"size": "small"}),
    "size-teapot": Config(Scene("teapot", "twemoji", "yellow"), {"size": "large"}),
    "style-octopus": Config(Scene("octopus", "twemoji", "green"), {"style": "noto"}),
    "style-guitar": Config(Scene("guitar", "twemoji", "yellow"), {"style": "fluent"}),
    "scene-turtle": Config(
        Scene("turtle", "twemoji", "yellow"), {"size": "small", "place": "bottom", "background": "purple"}
    ),
}


def obeyed(images: list[Image.Image], case: Config) -> float:
    """Share of the pictures in which all that was changed is as asked."""
    styles = metrics.load_judge().style(images)
    right = []
    for image, style in zip(images, styles):
        place = metrics.place_and_size(image) or (None, None)
        found = {"background": metrics.background_colour(image), "place": place[0], "size": place[1], "style": style}
        right.append(all(found[key] == value for key, value in case.change.items()))
    return float(np.mean(right))


def grid(quick: bool = False) -> dict[str, Config]:
    """There is no small slice: every case trains two adapters."""
    return {} if quick else CASES


def folder_of(case: Config) -> Path:
    """Where the images of a case are kept."""
    name = next(name for name, one in CASES.items() if one == case)
    return subjects.CACHE / subjects.weights_digest() / f"edit-{name}"


def measure(case: Config) -> dict[str, Any]:
    """Both methods on one case; its pictures go to the cache."""
    folder = folder_of(case)
    folder.mkdir(parents=True, exist_ok=True)
    picture = Drawings().picture(case.scene)
    picture.save(folder / "picture.png")
    source, prompt = case.prompts
    judge = metrics.load_judge()

    result = edit(folder / "picture.png", prompt, folder / "atoms", source, num=NUM, floor=-1, report_to="none")
    drawn = {"the picture": [picture]}
    for label in ("base", "all atoms", result["best"]):
        files = sorted((Path(result["folder"]) / sampling.file_words(label)).glob("*.png"))
        drawn["best of atoms" if label == result["best"] else label] = [opened_image(file) for file in files]
    drawn.setdefault("all atoms", drawn["best of atoms"])

    recipe = {key: value for key, value in load_recipe("moji-one-image").items() if key in ("steps", "batch_size")}
    atomtune.customize(
        folder / "picture.png", config="moji-paper", class_name=source, caption=source, out=folder / "lora",
        method="lora", rank=16, sample_every=0, report_to="none", **recipe,
    )  # fmt: skip
    pipe = subjects.moji()
    model = atomtune.load_adapter(pipe, folder / "lora")
    rungs = []
    for scale in SCALES:
        folders.set_scale(model, scale)
        images = [drawing.image for drawing in atomtune.generate(pipe, prompt, NUM)]
        scores = (judge.alignment(images, [prompt] * NUM).mean(), judge.fidelity(images, [picture]).mean())
        rungs.append(Rung(f"scale {scale:g}", {}, *map(float, scores)))
        drawn[rungs[-1].label] = images
    best = max(rungs, key=lambda rung: rung.trade_off)
    drawn = {"best of atoms": drawn["best of atoms"], "LoRA": drawn["scale 1"], "best of LoRA": drawn[best.label]} | {
        key: drawn[key] for key in ("the picture", "base", "all atoms")
    }
    for label, images in drawn.items():
        images[0].save(folder / f"{label}.png")
    everything = {rung["label"]: rung for rung in result["rungs"]} | {rung.label: vars(rung) for rung in rungs}
    chosen = {"all atoms": "all atoms", "best of atoms": result["best"], "LoRA": "scale 1", "best of LoRA": best.label}
    densities = [rung for rung in result["rungs"] if rung["label"].endswith(("all atoms", "a token"))]
    return {
        label: {"rung": rung, "obeyed": obeyed(drawn[label], case)}
        | {key: everything[rung][key] for key in ("alignment", "fidelity")}
        for label, rung in chosen.items()
    } | {"ladder": [{key: rung[key] for key in ("label", "alignment", "fidelity")} for rung in densities]}


def opened_image(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


COLUMNS = ("the picture", "base", "all atoms", "best of atoms", "LoRA", "best of LoRA")


def results(out: Path = HERE) -> str:
    """Markdown: for each case and each choice the rung, whether the prompt was obeyed, alignment and fidelity."""
    cells, columns = read(out), COLUMNS[2:]
    rows: list[list[str]] = []
    means: dict[str, list[tuple[float, float, float]]] = {column: [] for column in columns}
    for name in CASES:
        row = [name.replace("-", ", ")]
        for column in columns:
            one = cells[name][column]
            means[column].append((one["obeyed"], one["alignment"], one["fidelity"]))
            row.append(f"{one['rung']}: {one['obeyed']:.0%}, {one['alignment']:.2f}, {one['fidelity']:.2f}")
        rows.append(row)
    mean = [np.mean(values, axis=0) for values in means.values()]
    rows.append(["mean", *(f"{o:.0%}, {a:.2f}, {f:.2f}" for o, a, f in mean)])
    return table(("", *columns), rows)


def claims(out: Path = HERE) -> list[Claim]:
    """None before all cases are there. Pairs are cases."""
    found = read(out)
    if found.keys() < CASES.keys():
        return []
    rules = []
    for key, what in (("alignment", "follow the prompt better"), ("fidelity", "keep more of the picture")):
        own = [found[name]["best of atoms"][key] - found[name]["best of LoRA"][key] for name in CASES]
        rules.append(paired(f"Atoms {what} than LoRA, each with the best of its dial", own, item="Fig. 5"))
    own = [found[name]["best of atoms"]["obeyed"] - found[name]["best of LoRA"]["obeyed"] for name in CASES]
    rules.append(paired("and obey more of what was asked", own, item="Fig. 5"))
    if all("ladder" in found[name] for name in CASES):
        for key, what, sign in (("alignment", "raises alignment", 1), ("fidelity", "and lowers fidelity", -1)):
            ladders = [[rung[key] for rung in found[name]["ladder"]] for name in CASES]  # the densest first
            title = f"Lowering the density {what}" if sign > 0 else what
            trends = [trend(range(len(own)), own) for own in ladders]
            rules.append(paired(title, trends, sign, "Fig. 6", "rank correlation with sparsity"))
    return rules
