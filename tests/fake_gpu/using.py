"""Everything that is done with a trained adapter, on the card and on the CPU: the same answers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from atomtune.analysis.examples import training_examples
from atomtune.analysis.heatmaps import overlay
from atomtune.analysis.importance import importance
from atomtune.analysis.influence import influence, influences
from atomtune.analysis.inspection import inspect
from atomtune.analysis.locality import coverage
from atomtune.analysis.matching import likeness, match
from atomtune.analysis.overlap import overlap
from atomtune.analysis.watching import watch
from atomtune.bases import denoiser
from atomtune.lora.conversion import lora_to_atoms
from atomtune.lora.distillation import distill
from atomtune.method.sigma import SIGMAS
from atomtune.sampling import generate
from atomtune.steering import board
from atomtune.storage.folders import load_adapter, save_adapter
from atomtune.tracing import trace
from tests.adapters.tiny import atom_config, inputs, transformer, wake
from tests.analysis.tiny import adapted_pixart
from tests.fake_gpu.card import Card, moved
from tests.lora.test_distillation import pipe_with_lora

PROMPTS = ["a dog", "a cat"]


def model_on(device: str, **options: Any) -> tuple[Any, Callable[[], torch.Tensor]]:
    """A model whose atoms are awake, and a call of it."""
    model = wake(get_peft_model(transformer(), atom_config(**options))).to(device).eval()
    for dictionary in board(model).dictionaries:
        dictionary.usage.fill_(1.0)
    given = moved(inputs(), device)
    return model, lambda: model(**given, return_dict=False)[0]


def draw(pipe: Any, prompts: list[str], **options: Any) -> torch.Tensor:
    """The images, as numbers."""
    drawings = generate(pipe, prompts, steps=2, **options)
    return torch.stack([torch.tensor(np.asarray(drawing.image.convert("RGB"))) for drawing in drawings])


def drawing(device: str, _: Any) -> Any:
    pipe = adapted_pixart()
    pipe.to(device)
    board(pipe).schedule = {1000: 1, 300: 0.5}
    return draw(pipe, PROMPTS), draw(pipe, PROMPTS[:1], resolution=32)


def turning_dials(device: str, tmp_path: Any) -> Any:
    answers = []
    for options in ({}, {"activation": "batch_topk"}):
        model, call = model_on(device, **options)
        atoms = board(model)
        atoms.density = 0.4
        atoms["L0[3]"].gain, atoms["L1"].gain = 0.3, torch.linspace(0, 1, 18)
        atoms.drop(["L0[4]", "L1[2]"])
        atoms.schedule = {1000: 1, 300: 0.0}
        answers.append(call())
        atoms.save_preset(tmp_path / "preset.json")
        atoms.reset()
        answers.append(call())
        atoms.apply(tmp_path / "preset.json")
        with atoms.muted("L0", "L1[3]"):
            answers.append(call())
        atoms.only(["L0"])
        atoms.keep(3, per_layer=True)
        answers.append((call(), atoms["L0[3]"].direction, atoms.mean_energy()))
    return answers


def pruning(device: str, _: Any) -> Any:
    answers = []
    for options in [{"activation": activation} for activation in SIGMAS] + [{"target_modules": ["to_v"]}]:
        model, call = model_on(device, **options)
        board(model).keep(3, per_layer=True)
        before = call()
        model.prune()
        assert_close(call(), before, atol=1e-5, rtol=1e-4)  # fewer atoms: the products add up in another order
        answers.append(before)
    return answers


def merging(device: str, _: Any) -> Any:
    answers = []
    for options in ({}, {"activation": "batch_topk"}, {"activation": "jumprelu"}, {"target_modules": ["to_v"]}):
        model, _ = model_on("cpu", **options)
        model.add_adapter("other", atom_config(**options))
        wake(model, "other", seed=1).to(device)
        given = moved(inputs(), device)
        for kind in ("cat", "linear"):
            model.base_model.add_weighted_adapter(["default", "other"], [1, 0.5], kind, kind)
            model.set_adapter(kind)
            answers.append(model(**given, return_dict=False)[0])
        if options.get("activation") != "jumprelu":
            board(model, "cat").density = 0.3
            answers.append(model(**given, return_dict=False)[0])
    return answers


def distilling(device: str, _: Any) -> Any:
    answers = []
    for density in (0.25, 1.0):
        pipe = pipe_with_lora()
        pipe.to(device)
        options: Any = {"sampling_steps": 2, "num": 1, "tokens": 200, "steps": 5, "num_atoms": 16, "density": density}
        distill(pipe, pipe.transformer, PROMPTS[:1], **options)
        answers.append(denoiser(pipe)(**moved(inputs(), device), return_dict=False)[0])
    return answers


def converting(device: str, _: Any) -> Any:
    pipe = pipe_with_lora()
    pipe.to(device)
    return lora_to_atoms(pipe.transformer, principal=True)(**moved(inputs(), device), return_dict=False)[0]


def swapping(device: str, tmp_path: Any) -> Any:
    pipe = adapted_pixart()
    pipe.to(device)
    save_adapter(pipe, tmp_path / "adapter", base="a base")
    load_adapter(pipe, tmp_path / "adapter", hotswap=True)
    load_adapter(pipe, tmp_path / "adapter", "second")
    both = overlap(pipe, (PROMPTS[:1], PROMPTS[1:]), ("default", "second"), steps=2)
    return draw(pipe, PROMPTS[:1]), both.strength, [layer.cosine for layer in both.layers]


def tracing(device: str, _: Any) -> Any:
    pipe = adapted_pixart()
    pipe.to(device)
    with trace(pipe.transformer, codes=True) as seen:
        images = generate(pipe, PROMPTS, steps=2)
    layer = seen.layers[0]
    atom = seen["L0[1]"]
    overlay(images[0].image, atom.maps()[0])
    codes, directions = layer.every_token(), layer.dictionary.decoder.weight.detach()
    return [
        atom.maps(), layer.maps(), coverage(layer.maps(magnitude=True)).nan_to_num(), atom.top_tokens(1),
        layer.mean_energy_by_timestep, layer.mean_energy_by_sample, layer.firing_rate, layer.peak,
        atom.active_timesteps, (seen.alive, seen.density), match(likeness(codes, directions, codes, directions)),
    ]  # fmt: skip


def watching(device: str, _: Any) -> Any:
    pipe = adapted_pixart()
    pipe.to(device)
    watched = watch(pipe, PROMPTS, steps=3, batch_size=1)
    return [(layer.by_phase, layer.by_region, layer.maps, layer.heat(1, 0)) for layer in watched.layers]


def judging_importance(device: str, _: Any) -> Any:
    model, call = model_on(device)
    atoms = board(model)

    def losses() -> torch.Tensor:
        return call().square().mean((1, 2, 3))

    with trace(model) as seen:
        call()
    scores = [importance(atoms, "energy", traced=seen), importance(atoms, "gradient", loss=losses)]
    atoms.keep(5, by=scores[1])
    return [*scores, importance(atoms, "ablation", loss=losses)]


def weighing_examples(device: str, tmp_path: Any) -> Any:
    """What `prune --by gradient` does."""
    Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 50).convert("RGB").save(tmp_path / "0.png")
    pipe = adapted_pixart()
    pipe.to(device)
    examples = training_examples(pipe, tmp_path, "a dog", draws=2)
    each = [importance(board(pipe), "gradient", loss=one.losses) for one in examples.one_by_one()]
    return examples.losses(), each


def judging_influence(device: str, _: Any) -> Any:
    model, call = model_on(device)
    found = influences(model, "L0", call)
    return found.rows, found.full, found.first_order, found.nonlinearity, influence(model, call, "L0[3]", "L1")


DONE = [drawing, turning_dials, pruning, merging, distilling, converting, swapping]
LOOKED_AT = [tracing, watching, judging_importance, weighing_examples, judging_influence]


@pytest.mark.parametrize("scenario", DONE + LOOKED_AT, ids=lambda scenario: scenario.__name__)
def test_the_card_answers_as_the_cpu_does(scenario, tmp_path):
    torch.manual_seed(0)
    expected = moved(scenario("cpu", tmp_path), "cpu")
    torch.manual_seed(0)
    with Card():
        found = moved(scenario("gpu", tmp_path), "cpu")
    # The card's attention is the plain kernel, the CPU's the flash one, and some scenarios train or draw on from there.
    # Of an image's 255 levels, one that lies between two is rounded to the one or the other.
    for one, other in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        image = scenario in (drawing, swapping) and isinstance(one, torch.Tensor) and one.dtype == torch.uint8
        assert_close(one, other, atol=1 if image else 1e-3, rtol=1e-3)


MIXED: dict[str, Callable[[torch.Tensor], Any]] = {
    "a sum": lambda x: x + torch.ones(3),
    "a product of matrices": lambda x: x[None] @ torch.ones(3, 3),
    "a stack": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "an index on the card, of a tensor that is not": lambda x: torch.ones(3)[torch.zeros_like(x, dtype=torch.long)],
    "a result that is elsewhere": lambda x: torch.tensor(1.0).add_(x.sum()),
    "a generator of the CPU": lambda x: x.normal_(generator=torch.Generator()),
    "an array": lambda x: x.numpy(),
}


@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED.keys())
def test_what_mixes_devices_raises(mix, card):
    with pytest.raises((RuntimeError, TypeError), match="device"):
        mix(torch.ones(3, device="gpu"))
    assert not card.waits


def test_what_cuda_takes_from_elsewhere_is_taken(card):
    x = torch.ones(3, device="gpu", requires_grad=True)
    (x * torch.tensor(2.0)).sum().backward()
    assert x.grad is not None and x.grad.device == x.device
    assert not card.waits
    assert x[torch.tensor([0, 2])].tolist() == [1, 1] and x.grad.tolist() == [2, 2, 2]
    assert sum(card.waits.values()) == 3  # an index was sent, two results came back


def test_no_step_of_a_drawing_waits_for_the_card(card):
    pipe = adapted_pixart()
    pipe.to("gpu")
    waited = []
    for steps in (2, 4):
        card.waits.clear()
        generate(pipe, PROMPTS, steps=steps)
        waited.append(card.waits.copy())
    assert waited[0] == waited[1]


def test_a_report_is_measured_on_the_card(card):
    pipe = adapted_pixart()
    pipe.to("gpu")
    assert inspect(pipe, PROMPTS[:1], top=1, naming_prompts=2, steps=1, batch_size=2).rows
