"""The plan of a base."""

import dataclasses
import shlex

import pytest

import atomtune
from atomtune import cli
from atomtune.cli.plan import advice
from atomtune.errors import UserError
from atomtune.planning.memory import GIB, WAYS, Way, adapters, examples, plan_memory
from atomtune.planning.parts import find_parts
from atomtune.sizes import Size
from atomtune.training.config import CustomizeConfig
from atomtune.training.recipes import configure


@pytest.fixture(scope="module")
def found(base):
    return plan_memory(base, 64)


def test_a_plan_has_every_adapter_and_every_way(found):
    assert found.adapters == ["attention atoms", "linear atoms", "LoRA"] and len(found.needs) == 3 * len(WAYS)
    for need in found.needs:
        assert set(need.encoding) == {"text_encoder", "vae"}
        assert need.peak == max(each.peak for each in (*need.encoding.values(), need.training, need.samples))
        assert need.card > need.peak
    for adapter in found.adapters:
        need = next(each for each in found.needs if each.adapter == adapter)
        encoder = need.encoding["text_encoder"].weights
        by_way = {each.way: each.memory for each in found.drawings if each.adapter == adapter}
        assert by_way[Way()].weights > need.training.weights + encoder  # all parts are on the card
        assert by_way[Way(offload="model")].peak < by_way[Way()].peak
        assert by_way[Way(quantize="nf4")].weights < by_way[Way(quantize="int8")].weights < by_way[Way()].weights
    assert found.to_dict()["needs"][0]["peak"] == found.needs[0].peak


def test_offloading_decodes_the_samples_without_the_denoiser(found):
    """And changes nothing else; what is left of the denoiser is the optimizer's state."""
    for need in found.needs:
        if need.way.offload is None:
            continue
        plain = next(
            each
            for each in found.needs
            if each.adapter == need.adapter and each.way == dataclasses.replace(need.way, offload=None)
        )
        assert (need.training, need.encoding) == (plain.training, plain.encoding)
        assert need.samples.peak < plain.samples.peak
        if need.samples.activations == plain.samples.activations:  # both decode
            both = need.samples.weights + plain.training.weights, need.samples.adapter + plain.training.adapter
            assert (plain.samples.weights, plain.samples.adapter) == both
            assert need.samples.optimizer == plain.training.optimizer > 0 and need.samples.adapter == 0


def test_where_nothing_fits_a_smaller_resolution_is_named(found):
    """Unless the weights alone are too large."""
    least = min(each.card for each in found.needs)
    weights = max(each.without_activations for each in found.needs)
    assert weights < least
    for sentence in advice(found, (weights + least) / 2 / GIB):
        if "drawing" not in sentence:
            assert sentence.endswith("checkpointing, nf4 base. A smaller --resolution needs less.")
    assert "resolution" not in "".join(advice(found, 0.1))


def test_the_advice_is_a_command_that_works(found):
    """Its options are those that `customize` has."""
    for sentence in advice(found, 8.0):
        words = shlex.split(sentence.partition(" needed: ")[2])
        if "generate" in words:
            cli.parsed(words[words.index("generate") :])
            continue
        _, (config,), _ = cli.parsed(words[words.index("customize") :])
        assert config.resolution == Size.of(64) and config.gradient_checkpointing is False
    for sentence in advice(found, 0.1):
        assert "does not fit 0.1 GB; the least is 0.6 GB" in sentence  # to train, and to draw


def test_ways_have_the_options_that_the_commands_have():
    import inspect

    from atomtune.cli.generate import generate

    names = {field.name for field in dataclasses.fields(CustomizeConfig)}
    assert {field.name for field in dataclasses.fields(Way)} <= names
    assert {"quantize", "offload"} <= inspect.signature(generate).parameters.keys()
    assert Way(True, "int8").flags == "--gradient-checkpointing --quantize int8"
    assert Way(offload="model").flags == "--offload model" and str(Way(offload="model")) == "offload model"


def test_a_plan_can_be_made_for_a_quantized_base_alone(base, found):
    asked = plan_memory(base, 64, quantize="fp8")
    assert {each.way.quantize for each in (*asked.needs, *asked.drawings)} == {"fp8"}
    same = next(each for each in found.needs if each.way == Way(True, "int8"))
    assert dataclasses.replace(asked.needs[1], way=same.way) == same  # of as many bytes


def test_what_cannot_be_quantized_is_refused(base):
    with pytest.raises(UserError, match="quantize must be one of int8, fp8, nf4, got 'int3'"):
        plan_memory(base, 64, quantize="int3")
    with pytest.raises(UserError, match="moji is so small that it is not quantized"):
        plan_memory("moji", quantize="int8")
    planned = plan_memory("moji")
    assert {each.way.quantize for each in (*planned.needs, *planned.drawings)} == {None}


def test_the_recipe_of_a_base_is_among_its_adapters():
    named = adapters(find_parts("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"))
    assert list(named) == ["recipe pixart-sigma", "linear atoms", "LoRA"]  # the recipe has attention atoms
    named = adapters(find_parts("black-forest-labs/FLUX.2-klein-4B"))
    assert named["linear atoms"]["target_modules"] == ["attn.to_v", "attn.add_v_proj"]
    assert named["LoRA"]["target_modules"] == ["attn"]


@pytest.mark.parametrize(
    "options, images",
    [({}, 2), ({"prior_preservation": True}, 4), ({"preserve": True}, 3)],
    ids=str,
)
def test_images_of_the_class_and_other_prompts_are_in_the_pass(options, images):
    given = {"images": "images", "class_name": "dog", "out": "run", "base": "tiny", "batch_size": 2}
    assert examples(configure(**given | options)) == images


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"resolution": 4}, "resolution must be at least 8, got 4"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"resolution": 61}, "resolution must be a multiple of 16 with this base, got 61: try 64"),
    ],
    ids=str,
)
def test_what_cannot_be_planned_is_refused(base, options, sentence):
    with pytest.raises(UserError, match=sentence):
        plan_memory(base, **{"resolution": 64} | options)


def test_the_command_prints_both_tables(base, capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--base", base, "--gpu", "0"])
    assert "--gpu must be above 0, got 0." in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["plan", "--base", base, "--gpu", "nan"])
    assert "--gpu must be above 0, got nan." in capsys.readouterr().err
    cli.main(["plan", "--base", base, "--resolution", "64", "--gpu", "8"])
    shown = capsys.readouterr().out
    for words in ("encoding: text_encoder", "activations", "Fits a card of so many GB", "fits 8 GB"):
        assert words in shown


def test_the_command_takes_recipes_and_the_settings_of_runs(base, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(f"base: {base}\nresolution: 64x48\nmethod: lora\nsteps: 5\n")
    cli.main(["plan", "--config", str(config)])
    assert "64x48 pixels" in capsys.readouterr().out
    config.write_text(f"base: {base}\nresolutoin: 64\n")
    with pytest.raises(SystemExit):
        cli.main(["plan", "--config", str(config)])
    assert "resolutoin" in capsys.readouterr().err


def test_the_function_is_public():
    assert atomtune.plan_memory is plan_memory
