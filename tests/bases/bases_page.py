"""Write docs/reference/bases.md from the table that the tests run through: `make bases`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest

from atomtune.bases import denoiser
from atomtune.bases.families import FAMILIES, Family, family_of
from atomtune.bases.tokens import NO_LAYER, ImageFirst
from tests.adapters.models_page import TESTED_WITH, code
from tests.bases import test_families, test_recipes, test_runs, test_tokens
from tests.bases.families import BASES, Base
from tests.planning import test_estimates, test_parts
from tests.quantize import training as quantized

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "bases.md"
LAYOUTS = {"Layout": "as they are", "Packed": "packed", "Listed": "a list"}
AUTOENCODERS = {"Autoencoding": "scale and shift", "OneFrame": "of videos", "BatchNormed": "patches, batch norm"}
DENSITIES = {"none": "uniform", "logit_normal": "logit-normal"}


@dataclass(frozen=True)
class Shown:
    """One column of what works: what its tests, which run for a base, show of it."""

    heading: str
    says: str
    tests: tuple[Callable[..., None], ...]


COLUMNS = (
    Shown(
        "trains as it draws",
        "noise and image in the denoiser's input at two timesteps of a drawing, to 1e-6 (in float64, the"
        " sampler's tables too), and every argument of its call, on square and wide images; the noise and the image are"
        " also checked before every run",
        (
            test_families.test_training_gives_what_the_pipeline_gives,
            test_families.test_a_call_in_training_has_the_arguments_of_a_call_in_drawing,
        ),
    ),
    Shown(
        "draws what it learnt",
        "the denoiser learns one image until the loss on fixed noise has halved; of the distance to it of what the"
        " pipeline draws from fixed noise, at most .7 is then left in latents and .9 in pixels (on PixArt, Stable"
        " Diffusion 1.5 and XL pixels with v-prediction)",
        (test_families.test_what_is_learnt_is_what_the_pipeline_draws,),
    ),
    Shown(
        "a whole life",
        "`customize` in aspect buckets, killed and resumed to the bit; `generate`, `trace`, heatmaps, influence,"
        " `prune`, `merge`, `inspect`",
        (test_runs.test_a_life,),
    ),
    Shown(
        "not square",
        "aspect buckets, in that life; and the denoiser's input for a wide image",
        (test_runs.test_a_life, test_families.test_training_gives_what_the_pipeline_gives),
    ),
    Shown(
        "checkpointing, bf16, LoRA",
        "a run with all three; one with class images, and one with `--preserve` and a floor",
        (test_runs.test_everything_else_that_a_run_may_train_on,),
    ),
    Shown("int8", "a run with `--quantize int8`", (quantized.test_every_base_trains_in_int8,)),
    Shown(
        "alpha mask",
        "the loss weighs each latent by the mean alpha of its pixels",
        (test_families.test_the_loss_weighs_each_latent_by_the_mean_alpha_of_its_pixels,),
    ),
    Shown(
        "captions in a batch",
        "captions of different lengths are each answered as alone",
        (test_families.test_captions_of_different_lengths_in_one_batch_are_each_answered_as_alone,),
    ),
    Shown(
        "maps",
        "where layers see text and image in one sequence, heatmaps have the image's tokens; layers that see the text"
        " alone have none",
        (test_tokens.test_maps_are_those_of_the_images_tokens,),
    ),
    Shown(
        "recipe",
        "acts by default; made from what others set",
        (test_recipes.test_the_weights_that_people_use_have_a_recipe,),
    ),
    Shown(
        "plan",
        "`atomtune plan` reads a folder of it, and what is planned for encoding, training, checkpointing and drawing is"
        " within 5 % of what is done",
        (
            test_parts.test_a_folder_is_planned_at_the_size_that_its_pipeline_draws,
            test_estimates.test_encoding_and_decoding_take_what_is_planned,
            test_estimates.test_a_step_of_every_base_takes_what_is_planned,
        ),
    ),
)


def runs_for(test: Callable[..., None], base: Base) -> bool:
    """Whether pytest runs this test for a base, as its marks say: it is among the parameters, and nothing is skipped or
    expected to fail."""
    marks = list(test.pytestmark)  # pyright: ignore[reportFunctionMemberAccess]
    for mark in list(marks):
        if mark.name == "parametrize" and mark.args[0] in ("base", "name"):
            given = [pytest.param(value) if isinstance(value, Base | str) else value for value in mark.args[1]]
            own = [each for each in given if each.values[0] in (base, base.name)]
            if not own:
                return False
            marks += own[0].marks
    return not {mark.name for mark in marks} & {"skip", "skipif", "xfail"}


def page() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "peft"))
    pinned = re.findall(r"^(\w+)==(\S+)", (ROOT / "hashes-quantize.txt").read_text(encoding="utf-8"), re.MULTILINE)
    quantizing = " and ".join(f"{name} {number}" for name, number in pinned)
    headings = [column.heading for column in COLUMNS]
    lines = [
        "# Bases",
        "",
        "<!-- written by tests/bases/bases_page.py: make bases -->",
        "",
        "What `atomtune customize` trains on, and what every command then works with. Each row is tested with a"
        " pipeline of the real classes, small and random, at 64 pixels. **None of them was run on real weights**: what"
        " is learnt on a real base, how well and how fast, is not known.",
        "",
        f"{TESTED_WITH}{versions}; what quantizes, with {quantizing}.",
        "",
        f"| base | {' | '.join(headings)} | needs | run on real weights |",
        f"|---|{'---|' * len(COLUMNS)}---|---|",
        *(works(base) for base in BASES),
        "",
        "*Yes* stands where the tests of the column run for the base: this page is made from the tests' own parameters,"
        " and a test fails if the page says something else.",
        "",
        "| | shown by these tests |",
        "|---|---|",
        *(f"| {column.heading} | {column.says} |" for column in COLUMNS),
        "",
        "How they differ:",
        "",
        "| base | pipeline, and weights people use | latents | autoencoder | denoiser's time | sign"
        " | guidance in training | timesteps in training | image tokens |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row(base) for base in BASES),
        "",
        "*Latents* are what the denoiser works on: as the autoencoder gives them, or packed (two by two of them are one"
        " token), or a list of images. *Autoencoder* says how its latents are scaled for the denoiser. *Denoiser's"
        " time* is what it is told from noise to image, and *sign* that of its answer beside ε - x_0, ε or v. *Image"
        " tokens* says where they are in its attention: by themselves, or in one sequence with those of the text.",
        "",
        "*Guidance in training* is the number that a denoiser which was distilled for guidance gets: that of diffusers'"
        " DreamBooth scripts. *Timesteps* are drawn as those scripts draw them (AuraFlow has none: as for Stable"
        " Diffusion 3; Sana's leaves out the shift of its sampler, which acts here); the sampler's shift by resolution"
        " does not act on them, a constant shift does. The timesteps of a trace and of a schedule are the sampler's,"
        " 1000 for noise and 0 for the image, on every base.",
        "",
        "A pipeline of a subclass counts as its base. Another one is refused, before its weights are downloaded, with a"
        " sentence that names the nearest base of this table. That training gives the denoiser what drawing does is"
        " checked before every run. What atoms adapt on each is in"
        " [Models](models.md).",
        "",
    ]
    return "\n".join(lines)


def works(base: Base) -> str:
    """A base's row of what works, and with which versions."""
    shown = ["yes" if all(runs_for(test, base) for test in column.tests) else "no" for column in COLUMNS]
    return f"| {' | '.join([base.name, *shown, needed(type(base.pipe()).__module__.split('.')[0]), 'never'])} |"


def needed(package: str) -> str:
    """The package, and the oldest version of it with which atomtune installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = (each for each in project["dependencies"] if re.match(rf"{package}\b", each))
    return found.replace(">=", " ≥ ")


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
