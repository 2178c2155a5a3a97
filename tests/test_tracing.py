"""trace against statistics taken from the codes themselves."""

from functools import partial

import pytest
import torch
from peft import get_peft_model
from torch.testing import assert_close

from atomtune.adapters import adapted_layers
from atomtune.errors import UserError
from atomtune.tracing import bare_model, trace
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
        dictionary.decoder.register_forward_pre_hook(partial(lambda inputs, _, args: inputs.append(args[0]), inputs))
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
        D = layer.dictionary.decoder.weight
        assert torch.equal(layer.fired, f)
        assert_close(layer.firing_rate, f / len(S))
        assert_close(layer.mean_energy, S.abs().mean(0) * D.norm(dim=1))


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


def sampling(model, steps=(900, 500, 100), guided=True, batches=1, seed=1):
    """What a pipeline does: the model at falling timesteps, the halves of guidance in one batch."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(batches):
        states = torch.randn(2, 4, 8, 8, generator=generator)
        for t in steps:
            text = torch.randn(4 if guided else 2, 5, 16, generator=generator)
            states = states + 0.1
            model(
                torch.cat([states, states]) if guided else states,
                encoder_hidden_states=text,
                timestep=torch.tensor([t] * len(text)),
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            )


def codes_of_calls(model, layer: int) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    dictionary = adapted_layers(model)[layer].dictionary("default").decoder
    dictionary.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    return seen


@pytest.mark.parametrize("guided", [True, False])
def test_timesteps_samples_and_the_halves_of_guidance_are_kept_apart(guided):
    model = adapted()
    seen = codes_of_calls(model, 1)
    with trace(model, codes=True) as t:
        sampling(model, guided=guided, batches=2)
    layer, D = t.layers[1], adapted_layers(model)[1].dictionary("default").decoder.weight.detach()
    S = torch.stack(seen).unflatten(0, (2, 3))  # [batch of pictures, timestep, rows, tokens, atoms]
    prompt, empty = S[:, :, -2:], S[:, :, :-2]
    assert_close(layer.mean_energy, prompt.abs().mean((0, 1, 2, 3)) * D.norm(dim=1))
    assert torch.equal(layer.peak, prompt.abs().amax((0, 1, 2, 3)))
    assert layer.total(unguided=True).tokens == empty[..., 0].numel()
    assert_close(layer.total(unguided=True).magnitude, empty.abs().sum((0, 1, 2, 3)))
    assert list(layer.mean_energy_by_timestep) == [900.0, 500.0, 100.0]
    assert_close(layer.mean_energy_by_timestep[500.0], prompt[:, 1].abs().mean((0, 1, 2)) * D.norm(dim=1))
    by_sample = prompt.transpose(1, 2).flatten(0, 1)  # [samples, timesteps, tokens, atoms]
    assert len(layer.samples) == 4
    assert_close(layer.mean_energy_by_sample, by_sample.abs().mean((1, 2)) * D.norm(dim=1))
    assert_close(t["L1[5]"].maps(), by_sample[..., 5].mean(1), atol=2e-3, rtol=1e-3)  # kept in half precision
    assert_close(t["L1[5]"].maps(100.0), by_sample[:, 2, :, 5], atol=2e-3, rtol=1e-3)
    for atom in range(18):
        times = [t for i, t in enumerate((900.0, 500.0, 100.0)) if prompt[:, i, ..., atom].any()]
        assert t[f"L1[{atom}]"].active_timesteps == ((times[0], times[-1]) if times else None)


def test_pictures_of_different_timesteps_in_one_batch_as_in_training():
    model = adapted()
    seen = codes_of_calls(model, 0)
    with trace(model) as t:
        run(model)  # timesteps 30 and 700
    norms = adapted_layers(model)[0].dictionary("default").decoder.weight.norm(dim=1)
    energies = t.layers[0].mean_energy_by_timestep
    assert list(energies) == [700.0, 30.0]
    assert_close(energies[30.0], seen[0][0].abs().mean(0) * norms)


def test_a_trace_without_codes_says_how_to_get_maps():
    model = adapted()
    with trace(model) as t:
        run(model)
    with pytest.raises(UserError, match=r"this trace kept no codes: use trace\(model, codes=True\)"):
        t["L0[0]"].maps()


def test_the_tokens_of_a_text_that_fire_an_atom_most():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    torch.manual_seed(0)  # transformers draws the weights from the global generator
    model = wake(get_peft_model(LlamaForCausalLM(config), atom_config(target_modules=["v_proj"], num_atoms=8)))
    ids = torch.randint(50, (3, 6), generator=torch.Generator().manual_seed(0))
    seen = codes_of_calls(model, 0)
    with trace(model, codes=True) as t:
        model(input_ids=ids)
    assert torch.equal(torch.stack(t.input_ids), ids)
    strongest = seen[0][..., 3].abs().flatten().argmax().item()
    sample, position, value = t["L0[3]"].top_tokens(2)[0]
    assert (sample, position) == divmod(strongest, 6)
    assert value == pytest.approx(seen[0][sample, position, 3].item(), rel=1e-3)


def test_a_call_that_was_broken_off_does_not_count():
    model = adapted()

    def stop(*_):
        raise InterruptedError

    with trace(model) as t:
        handle = bare_model(model).register_forward_pre_hook(stop)
        with pytest.raises(InterruptedError):
            run(model)
        handle.remove()
        run(model)
        run(model)
    assert [len(layer.samples) for layer in t.layers] == [4, 4]


def test_statistics_of_a_long_run_take_no_more_memory_than_of_a_short_one():
    model = adapted()
    sizes = []
    for calls in (1, 4):
        with trace(model) as t:
            for _ in range(calls):
                sampling(model)
        sizes.append([len(layer.by_timestep) for layer in t.layers])
        assert not any(layer.codes for layer in t.layers)
    assert sizes[0] == sizes[1] == [3, 3]


def test_runs_without_the_adapter_count_as_samples_in_which_no_atom_acts():
    model = adapted()
    with trace(model, codes=True) as t:
        with model.disable_adapter():
            run(model)
        run(model)
    energy = t["L0"].mean_energy_by_sample
    assert len(energy) == 4 and not energy[:2].any() and energy[2:].any()


def test_numbers_of_a_trace_that_saw_nothing_are_refused_or_empty():
    with trace(adapted()) as t:
        pass
    with pytest.raises(UserError, match="the trace saw no tokens"):
        _ = t.density
    assert t["L0"].mean_energy_by_sample.shape == (0, 18)


def test_a_trace_cannot_be_entered_inside_its_own_block():
    model = adapted()
    with trace(model) as t:
        run(model)
        with pytest.raises(UserError, match="recording already"), t:
            pass
    tokens = t["L0"].tokens
    run(model)
    assert t["L0"].tokens == tokens > 0
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
