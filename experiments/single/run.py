"""Figure 4: one atom a layer against a LoRA of rank 1: `python -m experiments --only single`

Both learn a subject equally well, by the loss on noise that was not trained on; then a prompt is changed by one word
and by several. Which of the two still draws the subject, and which draws neither subject nor prompt?
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import atomtune
from atomtune import metrics, sampling
from atomtune.prompts import without_tokens
from experiments.common import subjects
from experiments.common.cells import read
from experiments.common.intervals import interval, shown
from experiments.common.report import Claim, grade, table
from experiments.customization import tasks
from experiments.customization.run import write_images

HERE = Path(__file__).parent
SUBJECTS = tasks.MOJI[::3]  # ten of the thirty
NUM, STEPS = 8, 10
LONGEST, PACE = 400, 10  # training steps of the atoms, and between two looks at the LoRA before each step is looked at
NEAR = 0.02  # of the loss
DESTROYED = 0.35
"""An image is destroyed if fidelity and alignment are both below it: of drawings of something else 99 in 100 are."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "atom": ("one atom a layer", {"num_atoms": 1, "density": 1.0}),
    "lora": ("LoRA, rank 1", {"method": "lora", "rank": 1}),
}
CHANGES = ("none", "word", "several")


@dataclass(frozen=True)
class Config:
    """One cell: a subject, learnt by both."""

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        return {"base": subjects.weights_digest(), "name": self.name, "num": NUM, "steps": [STEPS, LONGEST, PACE]}


def grid(quick: bool = False) -> dict[str, Config]:
    """There is no small slice: every cell trains two adapters."""
    return {} if quick else {name: Config(name) for name in SUBJECTS}


def prompts(task: tasks.Task) -> dict[str, list[str]]:
    """Captions of two images; the same with another background; other scenes altogether."""
    plain = [
        prompt for prompt, scene in zip(task.prompts, task.scenes) if (scene.size, scene.place) == ("normal", "center")
    ]
    other = [p for p, s in zip(task.prompts, task.scenes) if s.size != "normal" and p not in task.prompts[:5]]
    return {"none": plain[:2], "word": plain[2:4], "several": other[:2]}


def measure(config: Config) -> dict[str, Any]:
    task = tasks.of_moji(config.name)
    folder = subjects.CACHE / subjects.weights_digest() / "single" / task.name
    write_images(task, folder / "images")
    common: dict[str, Any] = {"class_name": task.class_name, "token": tasks.TOKEN, "sample_every": 0}
    common |= subjects.PLAIN | {"config": "moji-paper", "checkpoint_every": 1_000_000}

    def learn(method: str, steps: int, out: str = "") -> float:
        options = common | METHODS[method][1] | {"steps": steps, "out": folder / (out or method)}
        return atomtune.customize(folder / "images", **options)["held_loss"]

    target = learn("atom", LONGEST)
    found: dict[str, Any] = {"atom": {"loss": target, "steps": LONGEST}}
    roughly = next((s for s in range(PACE, LONGEST, PACE) if learn("lora", s, "rough") <= (1 + NEAR) * target), LONGEST)
    for steps in range(max(1, roughly - PACE + 1), roughly + 1):
        loss = learn("lora", steps)
        if loss <= (1 + NEAR) * target:
            break
    found["lora"] = {"loss": loss, "steps": steps}
    for method in METHODS:
        pipe = subjects.moji()
        atomtune.load_adapter(pipe, folder / method)
        found[method] |= {change: scored(pipe, task, texts) for change, texts in prompts(task).items()}
    return found


def scored(pipe: Any, task: tasks.Task, texts: list[str]) -> dict[str, float]:
    judge, references = metrics.load_judge(), [image for _, image in task.images]
    images = [drawing.image for drawing in sampling.generate(pipe, texts, NUM, steps=STEPS)]
    fidelity = judge.fidelity(images, references)
    alignment = judge.alignment(images, [without_tokens(text, [tasks.TOKEN]) for text in texts for _ in range(NUM)])
    destroyed = np.maximum(fidelity, alignment) < DESTROYED
    return {
        "fidelity": float(fidelity.mean()), "alignment": float(alignment.mean()), "destroyed": float(destroyed.mean())
    }  # fmt: skip


def equal(cell: dict[str, Any]) -> bool:
    """Whether both fit the subject equally well."""
    return abs(cell["lora"]["loss"] / cell["atom"]["loss"] - 1) <= NEAR


def differences(found: dict[str, Any], change: str, key: str) -> list[float]:
    """Atom less LoRA, of the subjects that both fit equally well."""
    cells = [cell for cell in found.values() if equal(cell)]
    return [cell["atom"][change][key] - cell["lora"][change][key] for cell in cells]


def results(out: Path = HERE) -> str:
    found, rows = read(out), []
    for change, said in zip(CHANGES, ("as in an image", "one word changed", "several words changed")):
        for method, (title, _) in METHODS.items():
            cells = [cell[method] for cell in found.values()]
            numbers = [
                f"{np.mean([cell[change][key] for cell in cells]):.3f}"
                for key in ("fidelity", "alignment", "destroyed")
            ]
            rows.append([said, title, *numbers])
    fits = [cell["lora"]["loss"] / cell["atom"]["loss"] for cell in found.values()]
    steps = [cell["lora"]["steps"] for cell in found.values()]
    same = sum(map(equal, found.values()))
    return (
        table(["prompt", "adapter", "fidelity", "alignment", "destroyed"], rows)
        + f"\n\n{len(found)} subjects, {same} of them fitted equally well (loss of the LoRA over that of the atoms "
        f"{min(fits):.2f} to {max(fits):.2f}; the LoRA took {min(steps)} to {max(steps)} steps, the atoms {LONGEST})."
    )


def claims(out: Path = HERE) -> list[Claim]:
    """Written before the first cell was run. None before every subject is there, or if none was fitted equally well."""
    found = read(out)
    if len(found) < len(SUBJECTS) or not any(map(equal, found.values())):
        return []
    rules = []
    for change, said in (("word", "one word"), ("several", "several words")):
        for key, what, sign in (
            ("fidelity", "is as faithful or more", 1),
            ("destroyed", "destroys no more images", -1),
        ):
            low, high = interval(own := differences(found, change, key))
            worse = high < 0 if sign > 0 else low > 0
            title = f"With {said} changed, one atom a layer {what}"
            rules.append(
                Claim(
                    title,
                    f"{(number := shown(own, sign='+'))} over a LoRA of rank 1",
                    "the 95 % interval of the paired difference is not on the wrong side of 0",
                    grade(not worse),
                    brief=f"{title}: {number}",
                )
            )
    return rules
