"""Atoms in PEFT's image benchmark: the folder that people copy there, and the benchmark's steps on a miniature klein.

The steps are written anew from what `method_comparison/image-gen` of huggingface/peft does (commit 5d602fd), for it
needs a GPU, the weights of FLUX.2-klein-base-4B and a data set. `BENCHMARK` has its settings, `MINIATURE` those that
differ here.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.training_utils import compute_density_for_timestep_sampling
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor
from torch.nn.functional import pixel_unshuffle
from transformers import set_seed

from atomtune import adapted_layers
from atomtune.adapters.targets import TARGETS
from atomtune.metrics import drift, load_dino
from tests.examples.tiny_klein import LAYERS, write_tiny_klein
from tests.metrics.tiny_models import write_dino

HOME = Path(__file__).parents[2] / "examples" / "peft_benchmark"
EXPERIMENT = HOME / "atoms" / "flux2-klein-default"

BENCHMARK: dict[str, Any] = {
    "dtype": torch.bfloat16,
    "resolution": 512,
    "batch_size": 2,
    "max_steps": 750,
    "seed": 0,
    "grad_norm_clip": 1.0,
    "optimizer_kwargs": {"lr": 1e-4, "weight_decay": 1e-4},  # of AdamW
    "autocast_adapter_dtype": True,
    "num_inference_steps": 20,
    "guidance_scale": 3.5,
    "max_sequence_length": 512,
    "text_encoder_out_layers": LAYERS,
    "weighting_scheme": "none",
}
MINIATURE = BENCHMARK | {
    "resolution": 64,
    "max_steps": 40,
    "optimizer_kwargs": {"lr": 1e-2, "weight_decay": 1e-4},
    "num_inference_steps": 4,
    "max_sequence_length": 8,
}
PROMPT = "a photo of sks cat"
OTHERS = ["a photo of a dog", "the beach"]
VALIDATION, TEST = 14, 18
"""Where the square is in the pictures that are held out."""
# Where its LoRA sits: every linear layer of the blocks, but for the output projections of the single-stream ones.
LORA_TARGETS = [
    *("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("linear_in", "linear_out", "to_qkv_mlp_proj"),
]


def atoms() -> PeftConfig:
    return PeftConfig.from_pretrained(str(EXPERIMENT))


def lora() -> PeftConfig:
    return LoraConfig(r=32, lora_alpha=32, target_modules=LORA_TARGETS)


both = pytest.mark.parametrize("config", [atoms, lora])


@pytest.fixture(scope="module")
def klein(tmp_path_factory) -> Path:
    return write_tiny_klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> Any:
    return load_dino(str(write_dino(tmp_path_factory.mktemp("dino"))))


def opened(folder: Path) -> Any:
    pipe = Flux2KleinPipeline.from_pretrained(folder, dtype=MINIATURE["dtype"])
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.enable_gradient_checkpointing()
    for frozen in (pipe.vae, pipe.text_encoder):
        frozen.requires_grad_(False).eval()
    return pipe


@torch.no_grad()
def embedded(pipe: Any, prompts: Iterable[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """The embeddings and positions of each prompt. The text encoder is dropped then, as the benchmark does."""
    options = {key: MINIATURE[key] for key in ("max_sequence_length", "text_encoder_out_layers")}
    texts = {prompt: pipe.encode_prompt(prompt=prompt, **options) for prompt in prompts}
    pipe.text_encoder = None
    return texts


@torch.no_grad()
def latents_of(pipe: Any, image: Image.Image) -> Tensor:
    """The mode of the autoencoder, as the transformer knows it."""
    pixels = torch.from_numpy(np.asarray(image) / 127.5 - 1).permute(2, 0, 1)[None].to(pipe.vae.dtype)
    return normalized(pipe, pipe.vae.encode(pixels).latent_dist.mode())


def normalized(pipe: Any, latents: Tensor) -> Tensor:
    """[batch, C, H, W] → [batch, 4 C, H / 2, W / 2]: two by two, by the statistics of the autoencoder's batch norm."""
    norm = pipe.vae.bn
    mean, deviation = norm.running_mean, (norm.running_var + pipe.vae.config.batch_norm_eps).sqrt()
    return (pixel_unshuffle(latents, 2) - mean[:, None, None]) / deviation[:, None, None]


def loss(pipe: Any, latents: Tensor, text: tuple[Tensor, Tensor], noise: Tensor, places: Tensor) -> Tensor:
    """Flow matching: the model sees (1 - σ) z + σ ε and says ε - z. `places` are those of σ in the schedule."""
    batch, _, height, width = latents.shape
    sigmas = pipe.scheduler.sigmas[places].to(latents.dtype)[:, None, None, None]
    embeddings, text_ids = text
    said = pipe.transformer(
        hidden_states=((1 - sigmas) * latents + sigmas * noise).flatten(2).mT,
        timestep=pipe.scheduler.timesteps[places] / 1000,
        guidance=None,
        encoder_hidden_states=embeddings.expand(batch, -1, -1),
        txt_ids=text_ids.expand(batch, -1, -1),
        img_ids=torch.cartesian_prod(*map(torch.arange, (1, height, width, 1))).expand(batch, -1, -1),
        return_dict=False,
    )[0]
    return (said.float() - (noise - latents).flatten(2).mT.float()).square().mean()


@torch.no_grad()
def fixed_loss(pipe: Any, latents: Tensor, text: tuple[Tensor, Tensor]) -> float:
    """The loss at eight places of the schedule, with the same noise each time."""
    places = torch.arange(60, 1000, 120)
    noise = torch.randn(len(places), *latents.shape[1:], generator=torch.Generator().manual_seed(1))
    return float(loss(pipe, latents.expand_as(noise), text, noise.to(latents.dtype), places))


def train(pipe: Any, latents: Tensor, text: tuple[Tensor, Tensor]) -> list[Image.Image]:
    """Half way the benchmark validates: returns what is drawn for it."""
    images = []
    model, generator = pipe.transformer.train(), torch.Generator().manual_seed(MINIATURE["seed"])
    optimizer = torch.optim.AdamW(model.parameters(), **MINIATURE["optimizer_kwargs"])
    latents = latents.repeat(MINIATURE["batch_size"], 1, 1, 1)
    for step in range(MINIATURE["max_steps"]):
        noise = torch.empty_like(latents).normal_(generator=generator)
        times = compute_density_for_timestep_sampling(MINIATURE["weighting_scheme"], batch_size=len(latents))
        places = (times * pipe.scheduler.config.num_train_timesteps).long()
        optimizer.zero_grad(set_to_none=True)
        loss(pipe, latents, text, noise, places).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MINIATURE["grad_norm_clip"])
        optimizer.step()
        if step == MINIATURE["max_steps"] // 2:
            model.eval()
            images = drawn(pipe, {PROMPT: text, "": text}, [PROMPT])
            model.train()
    model.eval()
    return images


@torch.inference_mode()
def drawn(pipe: Any, texts: dict[str, tuple[Tensor, Tensor]], prompts: list[str], output_type: str = "pil") -> list:
    """One image of each prompt, one generator for all. Drawing is done with a copy of the sampler, whose timesteps it
    sets."""
    scheduler, pipe.scheduler = pipe.scheduler, type(pipe.scheduler).from_config(pipe.scheduler.config)
    generator = torch.Generator().manual_seed(MINIATURE["seed"] + 100_000_000)
    images = [
        pipe(
            prompt_embeds=texts[prompt][0],
            negative_prompt_embeds=texts[""][0],
            num_inference_steps=MINIATURE["num_inference_steps"],
            guidance_scale=MINIATURE["guidance_scale"],
            height=MINIATURE["resolution"],
            width=MINIATURE["resolution"],
            generator=generator,
            output_type=output_type,
        ).images[0]
        for prompt in prompts
    ]
    pipe.scheduler = scheduler
    return images


def distance(pipe: Any, texts: dict[str, tuple[Tensor, Tensor]], latents: Tensor) -> float:
    """From what the pipeline draws for the prompt to the picture: root mean square, in latents."""
    found = drawn(pipe, texts, [PROMPT], "latent")[0]
    return float((normalized(pipe, found[None]) - latents).float().square().mean().sqrt())


def picture(corner: int = 16) -> Image.Image:
    """A red square on blue, `corner` pixels from the left and the top."""
    image = Image.new("RGB", (MINIATURE["resolution"],) * 2, "blue")
    image.paste("red", (corner, corner, corner + 32, corner + 32))
    return image


@both
def test_the_benchmarks_steps(config, klein, dino, tmp_path):
    set_seed(MINIATURE["seed"])
    pipe = opened(klein)
    frozen = {name: tensor.clone() for name, tensor in pipe.transformer.state_dict().items()}
    texts = embedded(pipe, ["", PROMPT, *OTHERS])
    base = drawn(pipe, texts, OTHERS)
    options = {"autocast_adapter_dtype": MINIATURE["autocast_adapter_dtype"]}
    model = pipe.transformer = get_peft_model(pipe.transformer, config(), **options)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    assert drawn(pipe, texts, OTHERS) == base

    latents = latents_of(pipe, picture())
    before = fixed_loss(pipe, latents, texts[PROMPT]), distance(pipe, texts, latents)
    validated = train(pipe, latents, texts[PROMPT])
    after = fixed_loss(pipe, latents, texts[PROMPT]), distance(pipe, texts, latents)
    assert after[0] < 0.7 * before[0]
    assert after[1] < 0.9 * before[1]

    # Likeness: the mean cosine of DINO's features to a picture that was held out; of the last images three times.
    for images, corner in ((validated, VALIDATION), (drawn(pipe, texts, [PROMPT] * 3), TEST)):
        *unit, held_out = torch.nn.functional.normalize(torch.from_numpy(dino.features([*images, picture(corner)])))
        cosines = [float(each.double() @ held_out.double()) for each in unit]
        likeness = dino.fidelity(images, [picture(corner)]).mean()
        assert likeness == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
        assert 0 < likeness < 1

    with model.disable_adapter():
        without = drawn(pipe, texts, OTHERS)
    assert without == base
    adapted = drawn(pipe, texts, OTHERS)
    a, b = (torch.nn.functional.normalize(torch.from_numpy(dino.features(images))) for images in (without, adapted))
    found = drift(without, adapted, dino.features)
    assert found.features == pytest.approx((1 - float((a * b).sum(1).mean())) / 2, abs=1e-6)
    assert found.features and found.features > 0 and found.unchanged == 0

    model.save_pretrained(str(tmp_path))
    again = opened(klein)
    again.transformer = PeftModel.from_pretrained(again.transformer, str(tmp_path), is_trainable=True, **options).eval()
    assert again.transformer.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    assert drawn(again, texts, OTHERS) == adapted
    base_again = again.transformer.unload().state_dict()
    assert base_again.keys() == frozen.keys()
    assert all(torch.equal(base_again[name], tensor) for name, tensor in frozen.items())


def test_atoms_train_as_many_numbers_as_the_benchmarks_lora():
    """On the shapes of FLUX.2-klein-base-4B. 3,875,544,576 and 38,338,560 are what the benchmark's results say of it
    and of the LoRA."""
    with torch.device("meta"):
        model: Any = Flux2Transformer2DModel(
            num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
        )
        assert sum(parameter.numel() for parameter in model.parameters()) == 3_875_544_576
        with_lora = get_peft_model(model, lora())
        assert with_lora.get_nb_trainable_parameters()[0] == 38_338_560
        with_atoms = get_peft_model(with_lora.unload(), atoms())
    layers = adapted_layers(with_atoms)
    assert len(layers) == 2 * 5 + 20  # the values of both streams, the output of the single stream
    assert sum(104 * (layer.in_features + layer.out_features) for layer in layers) == 38_338_560
    assert with_atoms.get_nb_trainable_parameters()[0] == 38_338_560


def test_the_folder_holds_what_the_benchmark_reads():
    config: Any = atoms()
    assert (config.num_atoms, config.k) == (104, 10)
    assert config.target_modules == TARGETS["Flux2Transformer2DModel"]
    # It replaces whole entries of the defaults.
    params = json.loads((EXPERIMENT / "training_params.json").read_text(encoding="utf-8"))
    assert params.keys() == {"optimizer_kwargs"}
    assert params["optimizer_kwargs"].keys() == BENCHMARK["optimizer_kwargs"].keys()


RUN = """
import argparse
from helper import said
from peft import PeftConfig

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("path_experiment")
    parser.add_argument("--clean", action="store_true")
    options = parser.parse_args()
    print(said, options.verbose, options.clean, PeftConfig.from_pretrained(options.path_experiment).num_atoms)
"""


@pytest.mark.slow
def test_a_script_of_the_benchmark_knows_atoms_through_the_launcher(tmp_path):
    """The script stands for the benchmark's run.py: its arguments, a module beside it, a configuration that PEFT
    opens."""
    (tmp_path / "run.py").write_text(RUN)
    (tmp_path / "helper.py").write_text("said = 'found'")
    for file in (HOME / "with_atoms.py", EXPERIMENT / "adapter_config.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    command = [sys.executable, "with_atoms.py", "run.py", "-v", ".", "--clean"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == ["found", "True", "True", "104"], done.stderr
