"""trace against statistics taken from the codes themselves."""

from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from atomtune.adapters import adapted_layers
from atomtune.errors import UserError
from atomtune.tracing import trace
from tests.adapters.tiny import atom_config, run, transformer, wake


def adapted(**options):
    return wake(get_peft_model(transformer(), atom_config(**options)))


@pytest.mark.parametrize("options", [{}, {"mix_first": False}, {"target_modules": ["to_v"]}, {"activation": "relu"}])
def test_statistics_are_those_of_the_codes_that_multiply_D(options):
    model = adapted(**options)
    layers = adapted_layers(model)
    seen: list[list[torch.Tensor]] = [[] for _ in layers]
    for layer, inputs in zip(layers, seen):
        dictionary = layer.dictionary("default")
        dictionary.dictionary.register_forward_pre_hook(partial(lambda inputs, _, args: inputs.append(args[0]), inputs))
    with trace(model) as t:
        run(model)
        run(model)
    codes = [torch.cat(inputs).flatten(0, -2) for inputs in seen]
    assert len(t.layers) == len(codes)
    fired = [(S != 0).sum(0) for S in codes]
    assert t.alive == sum(int((f > 0).sum()) for f in fired)
    assert t.active_per_token == pytest.approx(sum(int(f.sum()) for f in fired) / sum(len(S) for S in codes))
    assert t.density == pytest.approx(t.active_per_token / 18)
    for layer, S, f in zip(t.layers, codes, fired):
        D = layer.dictionary.dictionary.weight
        assert torch.equal(layer.fired, f)
        assert_close(layer.firing_rate, f / len(S))
        assert_close(layer.energy, S.abs().mean(0) * D.norm(dim=0))


def test_with_mix_first_a_token_uses_exactly_k_atoms():
    model = adapted(density=0.2)
    with trace(model) as t:
        run(model)
    assert t.active_per_token == round(0.2 * 18)


def test_an_atom_that_is_turned_off_is_not_seen():
    model = adapted()
    adapted_layers(model)[0].dictionary("default").gain.zero_()
    with trace(model) as t:
        run(model)
    assert not t.layers[0].fired.any()
    assert t.layers[1].fired.any()


def test_outside_the_block_nothing_is_recorded_and_nothing_is_left():
    model = adapted()
    before = run(model)
    with trace(model) as t:
        assert torch.equal(run(model), before)
    tokens = t.layers[0].tokens
    run(model)
    assert t.layers[0].tokens == tokens
    assert not any(module._forward_pre_hooks for module in model.modules())
    with t:
        run(model)
    assert t.layers[0].tokens == tokens  # starts from zero again


def test_a_trace_that_saw_nothing_says_so():
    with trace(adapted()) as t:
        pass
    with pytest.raises(UserError, match="the trace saw no tokens: run the model inside the block"):
        _ = t.active_per_token
