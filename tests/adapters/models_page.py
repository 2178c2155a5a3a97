"""Write docs/reference/models.md from the table that the tests run through: `make models`."""

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers.models.attention_processor import Attention

from atomtune.adapters import AtomConfig
from tests.adapters.families import FAMILIES, Family

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
TESTED_WITH = "Tested with "


def page() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    lines = [
        "# Models",
        "",
        "<!-- written by tests/adapters/models_page.py: make models -->",
        "",
        "Every row is tested with the real class, small and random, and three activations: with D = 0 the model is the"
        " base model bit for bit; each layer equals the plain formula in float64; gradients reach the atoms and nothing"
        " else; saved and loaded it is the same, and unloaded it is the base; a repeated block compiles as one graph,"
        " with the same outputs and gradients.",
        "",
        f"{TESTED_WITH}{versions}.",
        "",
        "`get_peft_model(model, AtomConfig())` adapts what the third column says, and so does"
        " [`AtomConfig.for_model`](index.md#atomtune.adapters.AtomConfig.for_model).",
        "",
        "| family | class | adapted without `target_modules` | attention atoms | linear atoms | `generate` |",
        "|---|---|---|---|---|---|",
        *(row(family) for family in FAMILIES),
        "",
        "*Attention atoms* fit diffusers' `Attention` with its stock processor. Where attention is another class or has"
        " another processor, which the column names, targeting it is refused with a sentence that names the value"
        " projections to target instead. *Linear atoms* go on any `nn.Linear` and on GPT-2's `Conv1D`; the column"
        " names the layers tested. `generate` gives the same tokens with a dynamic cache, a static cache and none.",
        "",
    ]
    return "\n".join(lines)


def row(family: Family) -> str:
    model = family.model()
    cells = [
        family.name,
        code(type(model).__name__),
        layers(AtomConfig.for_model(model).target_modules, model),
        layers(family.attention, model)
        if family.carries_attention_atoms
        else f"no: {code(own_attention(family, model))}",
        layers(family.linear, model),
        "same tokens" if family.generates else "",
    ]
    return f"| {' | '.join(cells)} |"


def own_attention(family: Family, model: Any) -> str:
    """The class that does the attention here."""
    module = next(module for name, module in model.named_modules() if name.split(".")[-1] == family.attention[0])
    return type(module.processor if isinstance(module, Attention) else module).__name__


def layers(targets: Any, model: Any) -> str:
    """What `target_modules` names; of a regular expression, what it finds: a table cannot hold its bars."""
    if isinstance(targets, str):
        found = [name for name, _ in model.named_modules() if re.fullmatch(targets, name)]
        targets = dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in found)
    return ", ".join(map(code, targets))


def code(name: str) -> str:
    return f"`{name}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
