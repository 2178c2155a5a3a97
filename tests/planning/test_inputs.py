"""What a denoiser is planned with has the shapes that its pipeline gives it while it draws."""

from typing import Any

import pytest
import torch
from torch import Tensor

from atomtune.bases import call_options
from atomtune.planning.estimates import encode_image
from atomtune.planning.inputs import Step, step_inputs
from atomtune.planning.parts import parts_of
from atomtune.sizes import Size
from tests.bases.families import BASES, SIZE
from tests.bases.test_families import calls

TEXT = ("encoder_hidden_states", "cap_feats")


def shapes(value: Any) -> Any:
    """Of tensors, in place of them. A dimension of 1 in front is one for all images."""
    if isinstance(value, Tensor):
        return list(value.shape[1:] if value.ndim and value.shape[0] == 1 else value.shape)
    if isinstance(value, list | tuple):
        return [shapes(each) for each in value]
    if isinstance(value, dict):
        return {name: shapes(each) for name, each in value.items()}
    return value


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_a_step_has_the_shapes_of_the_pipelines_own(base):
    pipe = base.pipe()
    pipe.register_to_config(_name_or_path=base.name)
    parts, seen = parts_of(pipe), calls(pipe)
    options = call_options(pipe, SIZE) | {"num_inference_steps": 2, "output_type": "latent"}
    pipe(prompt="a sks dog", generator=torch.Generator().manual_seed(0), **options)
    real: dict[str, Any] = {
        name: value for name, value in seen[-1].items() if value is not None and name != "return_dict"
    }
    real = {name: value for name, value in real.items() if not isinstance(value, dict) or value}
    (text,) = (value for name, value in real.items() if name in TEXT)
    tokens = text[0].shape[0]  # of this prompt; a plan has the longest
    _, latents = encode_image(parts.autoencoder, Size(SIZE, SIZE))
    step = Step(1 + parts.guided, *latents, tokens, torch.float32, "cpu")
    inputs = step_inputs(parts.denoiser.name, parts.denoiser.config, step)
    given: dict[str, Any] = {name: value for name, value in inputs.items() if value is not None}
    if "cap_feats" in real:  # the empty prompt beside this one is shorter there
        real["cap_feats"], given["cap_feats"] = real["cap_feats"][:1], given["cap_feats"][:1]
    if base.name in ("Stable Diffusion 1.5", "Stable Diffusion XL"):  # one number for all images
        assert shapes(real.pop("timestep")) == [] and shapes(given.pop("timestep")) == [step.images]
    assert shapes(given) == shapes(real)
