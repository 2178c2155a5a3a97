"""A trace of every family knows the tokens of the image, the sampler's timesteps and the half that has the prompt."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from atomtune import AtomConfig, board, generate, trace
from atomtune.adapters.targets import preset_targets
from atomtune.analysis.heatmaps import overlay
from atomtune.analysis.watching import watch
from atomtune.bases import call_options, denoiser, set_denoiser
from atomtune.bases.families import family_of
from atomtune.errors import UserError
from atomtune.training import encoding
from atomtune.training.objectives import Noised
from tests.bases.families import SIZE
from tests.bases.test_families import every_base, picture

CAPTIONS = ("a dog", "a photo of a sks dog in the snow on the beach")
ROW, COLUMN = 1, 2  # of a quarter of the image on a side


def adapted(base: Any) -> Any:
    """The base with an adapter that does something, and in which every atom acts."""
    pipe = base.pipe()
    targets = preset_targets(denoiser(pipe))
    model = get_peft_model(denoiser(pipe), AtomConfig(target_modules=targets, num_atoms=6, density=1.0))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    set_denoiser(pipe, model.eval())
    return pipe


def each_for_itself(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Attention in which a token sees itself alone, or nothing of another sequence."""
    if query.shape[-2] != value.shape[-2]:
        return value.new_zeros(*query.shape[:-1], value.shape[-1])
    return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)


@every_base
def test_maps_are_those_of_the_images_tokens(base, monkeypatch):
    """Where one token sees no other, a change of one place of the latents is seen there in the map, and nowhere in the
    text: with texts of two lengths in a batch."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", each_for_itself)
    pipe = adapted(base)
    side = 8 * SIZE if hasattr(pipe, "unet") else SIZE  # convolutions mix neighbours: they should not be all there are
    family, (height, width) = family_of(pipe), family_of(pipe).size(pipe, side, side)
    captions = [encoding.encode_caption(pipe, caption, side) for caption in CAPTIONS]
    encoded: Any = encoding.encode_images(pipe, [picture()])
    channels = encoded.mean.shape[1]
    latents = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))
    changed = latents.clone()
    changed[:, :, ROW * height // 4 : (ROW + 1) * height // 4, COLUMN * width // 4 : (COLUMN + 1) * width // 4] += 3
    traces = []
    for noisy in (latents, changed):
        noised = Noised(noisy, torch.full((2,), 400), noisy, torch.ones(2))
        with trace(pipe, codes=True) as seen, torch.no_grad():
            encoding.predict(denoiser(pipe), noised, captions, torch.float32, family)
        traces.append(seen)
    streams = {"image": 0, "text": 0}
    for before, after in zip(*(each.layers for each in traces), strict=True):
        if not before.sees_image:
            streams["text"] += 1
            with pytest.raises(UserError, match="sees the words of the prompt and not the image"):
                before.maps()
            assert_close(after.means(), before.means())
            continue
        streams["image"] += 1
        rows, columns = before.grid
        difference = (after.maps() - before.maps()).abs().sum(2)  # [samples, tokens]
        assert difference.shape == (2, rows * columns)
        for sample in difference:
            blocks = torch.nn.functional.adaptive_avg_pool2d(sample.reshape(1, rows, columns), 4)
            assert divmod(int(blocks.argmax()), 4) == (ROW, COLUMN)
            image = overlay(picture(), sample)
            assert image.size == (SIZE, SIZE)
    assert streams["image"]
    names = [layer.name for layer in traces[0].layers]
    assert streams["text"] == sum("add_v_proj" in name or "context_refiner" in name for name in names)


@every_base
def test_guidance_and_timesteps_of_a_drawing(base):
    """The guided half is that of the prompt: the same as without guidance, at the first step."""
    pipe = adapted(base)
    family = family_of(pipe)
    options = call_options(pipe, SIZE) | {"num_inference_steps": 2, "output_type": "latent"}
    guided = {"true_cfg_scale": 2.0, "negative_prompt": ["a red background"] * 2} if "Qwen" in base.name else {}
    if base.name == "Flux.1":
        guided = {"true_cfg_scale": 2.0, "negative_prompt": ["a red background"] * 2, **family.unguided}
    traces = []
    for extra in (family.unguided, guided):
        generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
        with trace(pipe, codes=True) as seen:
            pipe(prompt=list(CAPTIONS), generator=generators, **{**options, **extra})
        traces.append(seen)
    without, with_guidance = traces
    times = sorted({round(float(t), 2) for t in pipe.scheduler.timesteps}, reverse=True)
    for layer, same in zip(with_guidance.layers, without.layers, strict=True):
        assert len(layer.samples) == len(same.samples) == 2
        assert sorted(layer.by_timestep, reverse=True) == pytest.approx(times, abs=0.01)
        assert same.total(unguided=True).tokens == 0
        if base.name != "Flux.2":  # whose guidance is an input of the denoiser
            assert layer.total(unguided=True).tokens > 0
            first = next(iter(layer.by_timestep))
            if layer.sees_image:
                found, expected = layer.maps(first), same.maps(first)
                assert_close(found, expected, atol=2e-3, rtol=2e-3)  # kept in half precision


@every_base
def test_images_are_watched_in_every_layer_that_sees_them(base):
    """Prompts in batches of two and of one, as for names and heatmaps of the report."""
    pipe = adapted(base)
    prompts = [*CAPTIONS, "a red dog"]
    watched: Any = watch(pipe, prompts, steps=2, resolution=SIZE, batch_size=2)
    for layer in watched.layers:
        assert layer.by_phase.shape[::2] == (3, 6)
        if layer.trace.sees_image:
            assert layer.by_region.shape[1] == layer.region_grid[0] * layer.region_grid[1]
            assert layer.maps.shape[2] == layer.grid[0] * layer.grid[1]
        else:
            assert layer.grid is None


@every_base
def test_strength_by_timestep_follows_the_sampler(base):
    """An adapter that is off until half of the noise is gone draws the same first step as the base."""
    pipe = adapted(base)
    atoms = board(pipe)
    with trace(pipe) as on:
        generate(pipe, "a dog", steps=4, resolution=SIZE)
    times: Any = list(on.layers[0].by_timestep)
    assert times == sorted(times, reverse=True) and 100 < times[0] <= 1000
    atoms.schedule = {1000: 0.0, times[1] + 1e-2: 0.0, times[1]: 1.0, 0: 1.0}
    strengths = []
    denoiser(pipe).get_base_model().register_forward_hook(
        lambda *_: strengths.append(float(atoms["L0"].dictionary.strength))
    )
    generate(pipe, "a dog", steps=4, resolution=SIZE)
    assert strengths[0] == 0 and strengths[-1] == 1
