"""overlap: principal angles against their definition, and the counts against what the adapters add."""

import math

import pytest
import torch
from torch.testing import assert_close

from atomtune.adapters import adapted_layers
from atomtune.analysis.overlap import LayerOverlap, Overlap, measure, overlap, principal_cosines
from atomtune.errors import UserError
from atomtune.storage.folders import load_adapter, save_adapter
from tests.adapters.test_combining import OTHERS, pair
from tests.adapters.tiny import inputs, run
from tests.tiny_pixart import tiny_pixart


def test_cosines_of_planes_at_a_known_angle():
    """Two planes that share one axis and are θ apart around it; a third direction is too weak to count."""
    θ = 0.7
    e = torch.eye(5)
    a = torch.stack([e[0], 2 * e[1], 0.01 * e[4]])
    b = torch.stack([3 * e[0], math.cos(θ) * e[1] + math.sin(θ) * e[2], e[0]])
    cosines, ranks = principal_cosines(a, b, held=0.999)
    assert ranks == (2, 2)
    assert_close(cosines, torch.tensor([1.0, math.cos(θ)], dtype=torch.float64), atol=1e-6, rtol=0)


def test_random_spans_overlap_as_much_as_chance_says():
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(50):
        cosines, ranks = principal_cosines(
            torch.randn(4, 64, generator=generator), torch.randn(9, 64, generator=generator), held=1.0
        )
        assert ranks == (4, 9)
        found.append(cosines.square().mean())
    assert torch.stack(found).mean() == pytest.approx(9 / 64, rel=0.1)


def test_an_adapter_overlaps_with_itself_entirely():
    model = pair()
    for a, b in zip(adapted_layers(model, "one"), adapted_layers(model, "two")):
        b.dictionary("two").load_state_dict(a.dictionary("one").state_dict())
    found = measure(model, (lambda: run(model), lambda: run(model)), ("one", "two"))
    for layer in found.layers:
        assert layer.span_overlap == pytest.approx(1)
        assert layer.cosine == pytest.approx((1, 1))
        assert layer.both[0] > layer.independent[0] or layer.both[0] == 1
    assert found.strength == pytest.approx((1, 1))
    assert found.alive[0] == found.alive[1]


def test_numbers_are_those_of_what_both_add():
    model = pair(other=OTHERS["another size"])
    added: dict = {}

    def keep(layer, name):
        def hook(_module, _inputs, output):
            added.setdefault((layer, name), []).append(output.detach().double().flatten(0, -2))

        return hook

    hooks = [
        layer.dictionary(name).decoder.register_forward_hook(keep(number, name))
        for number, layer in enumerate(adapted_layers(model, "one"))
        for name in ("one", "two")
    ]
    other = inputs() | {"hidden_states": -inputs()["hidden_states"]}
    found = measure(model, (lambda: run(model), lambda: model(**other)), ("one", "two"))
    for hook in hooks:
        hook.remove()
    assert found.atoms == (36, 14)
    assert all(max(pair) <= atoms for pair, atoms in zip(found.alive, found.atoms))
    assert found.alive_in_both[0] <= min(found.alive[0])
    for number, layer in enumerate(found.layers):
        a, b = added[number, "one"], added[number, "two"]  # one call on the prompts of each
        rms = (a[0].square().sum(1).mean().sqrt(), b[1].square().sum(1).mean().sqrt())
        for on in (0, 1):
            acts_a, acts_b = a[on].norm(dim=1) >= 0.5 * rms[0], b[on].norm(dim=1) >= 0.5 * rms[1]
            assert layer.both[on] == pytest.approx(float((acts_a & acts_b).double().mean()))
            independent = acts_a.double().mean() * acts_b.double().mean()
            assert layer.independent[on] == pytest.approx(float(independent))
            cosine = (a[on] * b[on]).sum() / (a[on].norm() * b[on].norm())
            assert layer.cosine[on] == pytest.approx(float(cosine), abs=1e-5)
    power = torch.tensor(
        [[sum(added[n, name][on].square().sum(1).mean() for n in (0, 1)) for name in ("one", "two")] for on in (0, 1)]
    )
    assert found.strength == pytest.approx(
        (float((power[1, 0] / power[0, 0]).sqrt()), float((power[0, 1] / power[1, 1]).sqrt())), rel=1e-5
    )


@pytest.mark.parametrize(
    "cosines, span, expected",
    [
        ((0.02, -0.05), 0.5, "apart"),
        ((0.3, 0.2), 0.1, "apart"),  # as much as random spans have in common
        ((0.3, 0.05), 0.5, "together"),
        ((0.3, -0.3), 0.5, "against"),
    ],
)
def test_two_adapters_disturb_each_other_where_they_cancel_or_push_the_same_directions(cosines, span, expected):
    layer = LayerOverlap("L0", (1, 1), torch.ones(1), span, 0.1, (0.5, 0.5), (0.5, 0.5), cosines)
    counts = ((1, 1), (1, 1))
    assert Overlap((1, 1), counts, (1, 1), (1.0, 1.0), [layer, layer]).relation == expected
    assert Overlap((1, 1), counts, (1, 1), (1.0, 1.0), []).relation == "apart"


def test_the_model_is_as_before():
    model = pair()
    model.set_adapter("two")
    before, trainable = run(model), {name for name, p in model.named_parameters() if p.requires_grad}
    measure(model, (lambda: run(model), lambda: run(model)), ("one", "two"))
    assert torch.equal(run(model), before)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable


def test_adapters_on_different_layers_have_no_layers_to_compare():
    model = pair(other=OTHERS["other layers"])
    found = measure(model, (lambda: run(model), lambda: run(model)), ("one", "two"))
    assert found.layers == [] and min(found.alive[0]) > 0
    assert all(map(math.isnan, found.strength))
    with pytest.raises(UserError, match="carries no atoms under the name 'x': load the adapter first"):
        measure(model, (lambda: None, lambda: None), ("one", "x"))


def test_on_a_pipeline_the_half_with_the_prompt_counts(tmp_path):
    from peft import get_peft_model

    from tests.adapters.tiny import atom_config, wake

    pipe = tiny_pixart()
    for seed, name in enumerate(("one", "two")):
        own = tiny_pixart()
        model = wake(get_peft_model(own.transformer, atom_config(num_atoms=8, density=0.25)), seed=seed)
        save_adapter(model, tmp_path / name, base="tiny")
        load_adapter(pipe, tmp_path / name, name)
    found = overlap(pipe, (["a sks dog"], ["a cat", "a red cat"]), ("one", "two"), steps=2)
    assert len(found.layers) == 2 and found.atoms == (16, 16)
