"""Every family: training gives the denoiser what drawing gives it, and what is learnt is what is drawn."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from atomtune.bases import call_options, denoiser
from atomtune.bases.families import FAMILIES, family_of, family_of_class, family_of_denoiser
from atomtune.bases.layouts import OneFrame
from atomtune.errors import UserError
from atomtune.sizes import Size
from atomtune.training import encoding, observed
from atomtune.training.data import to_tensor
from atomtune.training.objectives import Noised, prediction_loss
from tests.bases.families import BASES, SIZE
from tests.training import tiny_others
from tests.training.test_observed import check

every_base = pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
every_size = pytest.mark.parametrize("size", [Size(SIZE, SIZE), Size(96, 32)], ids=str)


def picture() -> Image.Image:
    """Dark on the left, red at the bottom."""
    return Image.merge(
        "RGB",
        [
            Image.linear_gradient("L").resize((SIZE, SIZE)),
            *[Image.linear_gradient("L").rotate(90).resize((SIZE, SIZE))] * 2,
        ],
    )


def calls(pipe: Any) -> list[dict[str, Any]]:
    """The arguments of every call of the denoiser inside the pipeline, filled while it draws."""
    seen, model = [], denoiser(pipe)

    def record(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(dict(inspect.signature(module.forward).bind(*args, **kwargs).arguments))

    model.register_forward_pre_hook(record, with_kwargs=True)
    return seen


def test_every_family_is_in_the_table():
    assert {family_of(base.pipe()).name for base in BASES} == {family.name for family in FAMILIES}
    for base in BASES:
        pipe = base.pipe()
        assert type(pipe).__name__ in family_of(pipe).pipelines
        found = family_of_denoiser(denoiser(pipe))
        assert found is not None and found.denoiser == family_of(pipe).denoiser


def test_the_nearest_family_has_the_denoiser_or_the_layout():
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel

    def nearest(channels: int, autoencoder: dict[str, Any]) -> str:
        with pytest.raises(UserError, match="CogView4Pipeline is no base that can be trained; ") as error:
            family_of_class(CogView4Pipeline, CogView4Transformer2DModel, {"in_channels": channels}, autoencoder)
        return str(error.value)

    assert "PixArt-α, PixArt-Σ (PixArtAlphaPipeline" in nearest(16, {"latent_channels": 16})
    assert "Flux.1 (FluxPipeline)" in nearest(64, {"latent_channels": 16})
    assert "PixArt-α, PixArt-Σ (PixArtAlphaPipeline" in nearest(16, {})
    assert "which has a transformer too" in nearest(16, {})
    with pytest.raises(UserError) as error:
        family_of_class(CogView4Pipeline, None, {}, {})
    assert all(family.name in str(error.value) for family in FAMILIES)


@every_base
@every_size
def test_training_gives_what_the_pipeline_gives(base, size):
    """α, σ, layout and autoencoder, at two timesteps of a drawing."""
    inputs = check(base.pipe(), size)
    assert len({round(seen.timestep, 3) for seen in inputs}) == 2
    for seen in inputs:
        assert seen.image == pytest.approx(seen.alpha, abs=1e-6)
        assert seen.noise == pytest.approx(seen.sigma, abs=1e-6)
        assert seen.rest < 1e-6
    for seen in check(base.pipe(), size, torch.float32):  # the sampler's own tables
        assert seen.image == pytest.approx(seen.alpha, abs=1e-5)
        assert seen.noise == pytest.approx(seen.sigma, abs=1e-5)


@every_base
@every_size
def test_a_call_in_training_has_the_arguments_of_a_call_in_drawing(base, size):
    pipe = base.pipe()
    family, model = family_of(pipe), denoiser(pipe)
    conditioning = encoding.encode_caption(pipe, "a sks dog", size)
    seen = calls(pipe)
    options = call_options(pipe, size) | {"num_inference_steps": 2, "output_type": "latent", **family.unguided}
    pipe(prompt="a sks dog", generator=torch.Generator().manual_seed(0), **options)
    drawn, shape = seen[-2:], family.size(pipe, *size.shape)
    for timestep, arguments in zip(pipe.scheduler.timesteps, drawn, strict=False):
        sample = next(iter(arguments))
        plain = family.layout.unpack(arguments[sample], shape)
        assert plain.shape[2:] == shape
        noised = Noised(plain, timestep[None], torch.zeros_like(plain), torch.ones(1))
        with torch.no_grad():
            encoding.predict(model, noised, [conditioning], plain.dtype, family)
        trained = seen[-1]
        assert trained.keys() == arguments.keys()
        for name in trained.keys() - {family.time}:
            assert_close(trained[name], arguments[name], atol=1e-6, rtol=0)
        times = [torch.as_tensor(each[family.time]).flatten().double() for each in (trained, arguments)]
        assert_close(*times, atol=1e-6, rtol=0)


@every_base
def test_captions_of_different_lengths_in_one_batch_are_each_answered_as_alone(base):
    pipe = base.pipe()
    family, model = family_of(pipe), denoiser(pipe)
    captions = [encoding.encode_caption(pipe, text, SIZE) for text in ("a dog", "", "a photo of a sks dog in the snow")]
    latents = encoding.encode_images(pipe, [picture()])
    noised = encoding.objective_of(pipe).add_noise(latents.draw([0] * 3, generator := torch.Generator()), generator)
    with torch.no_grad():
        together = encoding.predict(model, noised, captions, torch.float32, family)
        for row, caption in enumerate(captions):
            alone = encoding.predict(model, noised.rows(slice(row, row + 1)), [caption], torch.float32, family)
            assert_close(together[row : row + 1], alone, atol=2e-5, rtol=1e-4)  # another batch rounds otherwise


def test_captions_whose_lengths_differ_without_a_mask_are_refused():
    family = family_of(tiny_others.stable_diffusion_3())
    with pytest.raises(UserError, match="encodes captions to different lengths"):
        encoding.collate([{"text": torch.ones(1, length, 2)} for length in (3, 4)], family)


@every_base
def test_an_image_is_drawn_as_it_was_encoded(base):
    """The autoencoder, as an autoencoder: encoded, normalized, and back, it gives what it gives by itself."""
    pipe = base.pipe()
    family, pixels = family_of(pipe), to_tensor(picture())[None]
    with torch.no_grad():
        latents: Any = encoding.encode_images(pipe, [picture()])
        raw = pipe.vae.encode(family.autoencoding.pixels(pixels))
        mean = raw.latent_dist.mean if hasattr(raw, "latent_dist") else raw[0]
        whole = pipe.vae.decode(mean, return_dict=False)[0].reshape(1, 3, SIZE, SIZE)
        assert_close(
            family.autoencoding.decode(pipe.vae, latents.mean), whole, atol=1e-4, rtol=1e-4
        )  # scaled and scaled back in float32
    assert latents.mean.shape[2:] == family.size(pipe, SIZE, SIZE)
    assert latents.mean.shape == latents.std.shape


def learn(pipe: Any, latents: encoding.Latents, conditioning: Any, rate: float = 1e-2, steps: int = 300) -> None:
    """Train the whole denoiser on one image until the loss on fixed noise is half of what it was."""
    family, model, objective = family_of(pipe), denoiser(pipe).train(), encoding.objective_of(pipe)
    fixed = objective.add_noise(latents.draw([0] * 16, torch.Generator()), torch.Generator().manual_seed(1))

    def losses(noised: Noised) -> torch.Tensor:
        conditionings = [conditioning] * len(noised.noisy)
        return prediction_loss(encoding.predict(model, noised, conditionings, torch.float32, family), noised)

    @torch.no_grad()
    def loss() -> float:
        return float(losses(fixed).mean())

    optimizer, before, generator = torch.optim.Adam(model.parameters(), rate), loss(), torch.Generator().manual_seed(2)
    for step in range(steps):
        losses(objective.add_noise(latents.draw([0] * 8, generator), generator)).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9 and loss() < before / 2:
            model.eval()
            return
    raise AssertionError(f"the loss only fell from {before:.3g} to {loss():.3g}")


def drawn(pipe: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pipeline draws from fixed noise: the latents that it gives its autoencoder, as plain ones, and its image
    of them, 0 to 1."""
    family, given, decode = family_of(pipe), [], pipe.vae.decode

    def watched(raw: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        given.append(raw.float())
        return decode(raw, *args, **kwargs)

    options |= call_options(pipe, SIZE) | {"num_inference_steps": 8, "output_type": "np", **family.unguided}
    with observed.replaced(pipe.vae, "decode", watched):
        images = pipe(prompt="a sks dog", generator=torch.Generator().manual_seed(0), **options).images
    return family.autoencoding.normalized(pipe.vae, given[0]), torch.as_tensor(images).movedim(3, 1)


LATENTS, IMAGE = 0.7, 0.9
"""Shares of the base's distance that may be left. Of three seeds of random weights, on every base, .59 of the latents'
is left at most, and .83 of the image's. With a wrong sign it is 1.9 to 2.6, and 1.2 to 2.2."""


def left_after_learning(pipe: Any, **learning: Any) -> tuple[float, float]:
    """How far what the pipeline draws is from an image that it has half learnt, over how far it was before: of the
    latents and of the image, in mean squares."""
    short = {"max_sequence_length": 16} if "max_sequence_length" in inspect.signature(pipe.__call__).parameters else {}
    if pipe.vae.config.get("scaling_factor"):  # as a trained autoencoder has it, the latents have the size of the noise
        raw: Any = encoding.encode_images(pipe, [picture()]).mean
        pipe.vae.register_to_config(scaling_factor=pipe.vae.config.scaling_factor / float(raw.std()))
    for module in pipe.vae.decoder.modules():  # which only shift: a random decoder would blow up the smallest error
        if isinstance(module, torch.nn.GroupNorm):
            module.eps = 1e4
            torch.nn.init.constant_(module.weight, 1e2)
    latents: Any = encoding.encode_images(pipe, [picture()])
    latents.std.zero_()  # an autoencoder that is random has much of its own noise
    with torch.no_grad():
        image = family_of(pipe).autoencoding.decode(pipe.vae, latents.mean)
    learnt = (latents.mean, (image / 2 + 0.5).clamp(0, 1))
    conditioning = encoding.condition(pipe, "a sks dog", SIZE, **short, **family_of(pipe).unguided)

    def distances() -> torch.Tensor:
        return torch.stack([(found - each).square().mean() for found, each in zip(drawn(pipe, **short), learnt)])

    before = distances()
    learn(pipe, latents, conditioning, **learning)
    of_latents, of_image = (distances() / before).tolist()
    return of_latents, of_image


@every_base
def test_what_is_learnt_is_what_the_pipeline_draws(base):
    """Which a falling loss does not show: with a wrong sign it falls as well. (So it does with a wrong clock, of which
    two random layers hardly see anything here either: that is for the tests of the denoiser's input above.)

    Samplers of ε divide by α = .006 in their first step, so what two layers draw has latents of more than 100, near to
    the image or not, and pixels that are black or white. There the image is that of the same base with v.
    """
    pipe = base.pipe()
    of_latents, of_image = left_after_learning(pipe, **base.learning)
    if pipe.scheduler.config.get("prediction_type") == "epsilon":
        pipe = base.pipe()
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, prediction_type="v_prediction")
        _, of_image = left_after_learning(pipe, **base.learning)
    assert of_latents < LATENTS and of_image < IMAGE


def speckled() -> Image.Image:
    """An alpha channel with another value at every pixel, growing from left to right, and none at the top."""
    values = np.random.default_rng(0).integers(0, 64, (SIZE, SIZE)) + np.arange(SIZE) * 191 // SIZE
    values[: SIZE // 4] = 0
    return Image.fromarray(values.astype(np.uint8))


@every_base
def test_the_loss_weighs_each_latent_by_the_mean_alpha_of_its_pixels(base):
    """Σ a e² / (channels · Σ a) over the autoencoder's own latents, in float64, whatever the layout of the denoiser."""
    pipe = base.pipe()
    family = family_of(pipe)
    latents = encoding.encode_images(pipe, [picture()] * 2, [speckled(), None])
    plain, masks = latents.draw([0, 1], torch.Generator()), latents.masks([0, 1])
    side, patch = pipe.vae_scale_factor, family.autoencoding.patch
    count, channels = SIZE // side, plain.shape[1] // patch**2
    errors = torch.randn(2, channels, count, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pixels, expected = np.asarray(speckled(), dtype=float) / 255, []
    alphas = [[[pixels[y * side :, x * side :][:side, :side].mean() for x in range(count)] for y in range(count)]]
    alphas.append([[1.0] * count] * count)
    for alpha, error in zip(alphas, errors):
        cells = [(y, x, channel) for y in range(count) for x in range(count) for channel in range(channels)]
        total = sum(alpha[y][x] * float(error[channel, y, x]) ** 2 for y, x, channel in cells)
        expected.append(total / sum(alpha[y][x] for y, x, _ in cells))
    framed = errors[:, :, None] if isinstance(family.autoencoding, OneFrame) else errors
    wrong = plain + family.autoencoding.arranged(framed).float()

    def denoiser(sample: Any, return_dict: bool, **times: Any) -> list[Any]:
        return [family.layout.pack(family.signed(wrong))]

    noised = Noised(plain, torch.full((2,), 500), plain, torch.ones(2), masks)
    losses = prediction_loss(family.predict(denoiser, plain, noised.timesteps, {}), noised)
    assert_close(losses.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)
    assert masks is not None and bool((masks[1] == 1).all())  # without alpha, exactly as without a mask
