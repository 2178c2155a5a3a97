"""Write docs/reference/bases.md from the table that the tests run through: `make bases`."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from atomtune.bases import denoiser
from atomtune.bases.families import FAMILIES, Family, family_of
from atomtune.bases.tokens import NO_LAYER, ImageFirst
from tests.adapters.models_page import TESTED_WITH, code
from tests.bases.families import BASES, Base

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "bases.md"
LAYOUTS = {"Layout": "as they are", "Packed": "packed", "Listed": "a list"}
AUTOENCODERS = {"Autoencoding": "scale and shift", "OneFrame": "of videos", "BatchNormed": "patches, batch norm"}
DENSITIES = {"none": "uniform", "logit_normal": "logit-normal"}


def page() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    lines = [
        "# Bases",
        "",
        "<!-- written by tests/bases/bases_page.py: make bases -->",
        "",
        "What `atomtune customize` trains on, and what every command then works with. Each row is tested with a"
        " pipeline of the real classes, small and random, at 64 pixels. **None of them was run on real weights**: what"
        " is learnt on a real base, how well and how fast, is not known.",
        "",
        f"{TESTED_WITH}{versions}.",
        "",
        "| base | pipeline, and weights people use | latents | autoencoder | denoiser's time | sign"
        " | guidance in training | timesteps in training | image tokens | run on real weights |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(row(base) for base in BASES),
        "",
        "Shown for every row, by tests:",
        "",
        "| | |",
        "|---|---|",
        "| training gives what drawing gives | noise and image in the denoiser's input at two timesteps of a drawing,"
        " and every argument of its call, to 4e-6 (Sana's sampler rounds timesteps to whole ones: 1e-3); the noise and"
        " the image are also checked before every run |",
        "| training moves drawing | the denoiser learns one image until the loss on fixed noise has halved; what the"
        " pipeline then draws from fixed noise is nearer to the image |",
        "| captions of different lengths | in one batch each is answered as alone |",
        "| a whole life | `customize`, killed and resumed to the bit; `generate`, `trace`, heatmaps, influence,"
        " `prune`, `merge`, `inspect` |",
        "| options | class images, `--preserve` with a floor, `--caption-dropout`, LoRA, bfloat16, gradient"
        " checkpointing |",
        "| maps of the image alone | where layers see text and image in one sequence, heatmaps have the image's tokens;"
        " layers that see the text alone have none |",
        "",
        "*Guidance in training* is the number that a denoiser which was distilled for guidance gets: that of diffusers'"
        " DreamBooth scripts. *Timesteps* are drawn as those scripts draw them (AuraFlow has none: as for Stable"
        " Diffusion 3); the sampler's shift by resolution does not act on them, a constant shift does. The timesteps of"
        " a trace and of a schedule are the sampler's, 1000 for noise and 0 for the image, on every base.",
        "",
        "A pipeline of a subclass counts as its base. Another pipeline works if it gives its denoiser latents [batch,"
        " channels, height, width] and the sampler's timesteps, which is checked before the run; else it is refused"
        " with a sentence that names the nearest base of this table. What atoms adapt on each is in"
        " [Models](models.md).",
        "",
    ]
    return "\n".join(lines)


def row(base: Base) -> str:
    pipe = base.pipe()
    family = family_of(pipe)
    guidance = family.unguided.get("guidance_scale", 1.0)
    flow = pipe.scheduler.config.get("prediction_type", "flow_prediction") == "flow_prediction"
    cells = [
        base.name,
        f"{code(type(pipe).__name__)} {code(base.real)}",
        LAYOUTS[type(family.layout).__name__],
        AUTOENCODERS[type(family.autoencoding).__name__],
        clock(family),
        "+" if family.sign > 0 else "−",
        f"{guidance:g}" if denoiser(pipe).config.get("guidance_embeds") else "",
        DENSITIES[family.density] if flow else "uniform",
        tokens(family),
        "never",
    ]
    return f"| {' | '.join(cells)} |"


def clock(family: Family) -> str:
    """Words for how the denoiser counts time."""
    ends = (0, family.clock.length) if family.clock.backwards else (family.clock.length, 0)
    return "{} to {}".format(*ends)


def tokens(family: Family) -> str:
    """Words for where the image's tokens lie."""
    if family.tokens.joint == NO_LAYER:
        return "by themselves"
    return "before the text" if isinstance(family.tokens, ImageFirst) else "after the text"


if __name__ == "__main__":
    assert {family_of(base.pipe()).name for base in BASES} == {family.name for family in FAMILIES}
    PAGE.write_text(page(), encoding="utf-8")
