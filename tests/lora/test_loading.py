"""LoRAs in one file: every naming answers the same, and what does not fit is refused before anything is changed."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.testing import assert_close

from atomtune.bases import denoiser
from atomtune.errors import UserError
from atomtune.lora.distillation import load_lora
from tests.tiny_pixart import tiny_pixart
from tests.training.tiny_others import stable_diffusion

RANK, ALPHA, OTHER = 2, 6, 3
BASES = {"PixArt": tiny_pixart, "Stable Diffusion": stable_diffusion}
TARGETS = ["attn1.to_q", "attn1.to_out.0"]


@pytest.fixture(scope="module", params=BASES)
def opened(request):
    """How a base is opened, its LoRA under PEFT's names, and what it adds to the weights of each layer."""
    torch.manual_seed(0)
    pipe = BASES[request.param]()
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, alpha_pattern={TARGETS[1]: OTHER})
    model = get_peft_model(denoiser(pipe), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    state = {key.removeprefix("base_model.model."): x for key, x in get_peft_model_state_dict(model).items()}

    def fresh():
        torch.manual_seed(0)
        return BASES[request.param]()

    return fresh, state, merged(model)


def merged(model) -> dict[str, torch.Tensor]:
    return {
        name: layer.get_delta_weight("default") for name, layer in model.named_modules() if hasattr(layer, "lora_A")
    }


def kohya(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """As kohya's scripts name it, with an alpha for each layer."""
    found = {}
    for key, x in state.items():
        name, _, half = key.removesuffix(".weight").rpartition(".")
        flat = prefix + name.replace(".", "_")
        found[f"{flat}.{'lora_down' if half == 'lora_A' else 'lora_up'}.weight"] = x.contiguous()
        found[f"{flat}.alpha"] = torch.tensor(float(OTHER if TARGETS[1] in name else ALPHA))
    return found


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_"])
def test_kohyas_naming_is_the_same_lora(opened, tmp_path, prefix):
    fresh, state, expected = opened
    save_file(kohya(state, prefix), tmp_path / "a.safetensors")
    pipe = fresh()
    found = merged(load_lora(pipe, tmp_path / "a.safetensors"))
    assert found.keys() == expected.keys() and len(found) > 1
    for name in found:
        assert_close(found[name], expected[name])


def test_what_is_for_text_encoders_is_left_out_and_told(opened, tmp_path, caplog):
    fresh, state, expected = opened
    text = {"text_model_encoder_layers_0_self_attn_q_proj." + half: torch.ones(2, 2) for half in ("lora_A", "lora_B")}
    text = {key + ".weight": x for key, x in text.items()}
    save_file(kohya(state, "lora_unet_") | kohya(text, "lora_te_"), tmp_path / "a.safetensors")
    assert merged(load_lora(fresh(), tmp_path / "a.safetensors")).keys() == expected.keys()
    assert "text encoders are left out" in caplog.text


def change(state, name):
    first = next(iter(state))
    tensor = state[first]
    return {
        "wrong width": state | {first: torch.ones(RANK, 7)},
        "no width": {key: x if ".lora_A." in key else torch.ones(()) for key, x in state.items()},
        "two alphas": state | {f"{first.partition('.lora_')[0]}.alpha": torch.ones(2)},
        "no such layer": {key.replace("attn1", "attn9"): x for key, x in state.items()},
        "half missing": {key: x for key, x in state.items() if key != first},
        "DoRA": kohya(state, "lora_unet_") | {"lora_unet_x.dora_scale": torch.ones(1)},
        "LoHa": {"lora_unet_x.hada_w1_a": tensor},
        "of another base": kohya({"blocks.0.attn.qkv.lora_A.weight": tensor}, "lora_unet_"),
        "no LoRA": {"weight": tensor},
        "text alone": {"text_encoder.q.lora_A.weight": tensor},
    }[name]


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("wrong width", "does not fit this base"),
        ("no width", "does not fit this base"),
        ("two alphas", "must be one number, got \\[2\\]"),
        ("no such layer", "does not fit this base"),
        ("half missing", "is incomplete"),
        ("DoRA", "is more than a plain LoRA"),
        ("LoHa", "is more than a plain LoRA"),
        ("of another base", "does not fit this base"),
        ("no LoRA", "holds no LoRA"),
        ("text alone", "no weights for the denoiser"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(opened, tmp_path, name, sentence):
    fresh, state, _ = opened
    save_file(change(state, name), tmp_path / "a.safetensors")
    pipe = fresh()
    before = denoiser(pipe)
    with pytest.raises(UserError, match=sentence):
        load_lora(pipe, tmp_path / "a.safetensors")
    assert denoiser(pipe) is before and not any("lora" in key for key in before.state_dict())


def test_broken_files_are_refused(tmp_path):
    pipe, good = tiny_pixart(), tmp_path / "good.safetensors"
    save_file({"transformer.a.lora_A.weight": torch.zeros(4, 4)}, good)
    torch.save({"a.lora_A.weight": torch.zeros(1)}, tmp_path / "lora.ckpt")
    (tmp_path / "short.safetensors").write_bytes(good.read_bytes()[:-10])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name, sentence in {
        "lora.ckpt": "is a pickle, which may run any code",
        "short.safetensors": "could not be read",
        "empty.safetensors": "could not be read",
        "none.safetensors": "could not be read",
    }.items():
        with pytest.raises(UserError, match=sentence):
            load_lora(pipe, tmp_path / name)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is only a part of an adapter: give its folder"):
        load_lora(pipe, good)
