"""trace against statistics taken from the codes themselves."""

from functools import partial
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.testing import assert_close
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from atomtune.adapters import AtomConfig, adapted_layers
from atomtune.errors import UserError
from atomtune.tracing import bare_model, trace
from tests.adapters.tiny import atom_config, run, transformer, wake

HALF: Any = {"atol": 2e-3, "rtol": 1e-3}  # codes are kept in half precision


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
    assert_close(t["L0"].codes(), seen[0], **HALF)
    assert_close(t["L0[3]"].codes(), seen[0][..., 3], **HALF)


TEXTS = ["the cat sat on the mat", "a teapot"]


def word_tokenizer() -> Any:
    """One token a word."""
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["<pad>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def byte_tokenizer() -> Any:
    """GPT-2's kind: a byte is a token, and so is a space with the letter after it."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(letters | {"Ġt": 256, "<pad>": 257}, [("Ġ", "t")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def text_models():
    torch.manual_seed(0)  # transformers draws the weights from the global generator
    llama = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    gpt2 = GPT2Config(vocab_size=300, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    return {"llama": LlamaForCausalLM(llama).eval(), "gpt2": GPT2LMHeadModel(gpt2).eval()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_top_tokens_have_their_text_and_context_in_one_call(family):
    tokenizer = word_tokenizer() if family == "llama" else byte_tokenizer()
    model = wake(get_peft_model(text_models()[family], AtomConfig(num_atoms=8, density=0.5)))
    seen = codes_of_calls(model, 0)
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True)
    with trace(model, codes=True) as t:
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    strengths = (seen[0][..., 3].half().float() * batch["attention_mask"]).tolist()
    expected = sorted(
        (
            (sample, position, value)
            for sample, row in enumerate(strengths)
            for position, value in enumerate(row)
            if value
        ),
        key=lambda found: -abs(found[2]),
    )
    found = t.top_tokens("L0[3]", tokenizer, count=100, context=3)
    assert [(token.sample, token.position, token.strength) for token in found] == expected
    for token in found:
        ids = tokenizer(TEXTS[token.sample])["input_ids"]
        assert token.token.strip() == tokenizer.decode([ids[token.position]]).strip()
        shown = f"{token.before}{token.token}{token.after}".replace("<pad>", "").strip()
        assert shown and shown in TEXTS[token.sample]
    assert [token.token for token in t.top_tokens("L0[3]", tokenizer, count=2)] == [token.token for token in found[:2]]
    assert str(found[0]) == f"{found[0].strength:+.3g}  {found[0].before}[{found[0].token}]{found[0].after}"


def test_top_tokens_of_what_is_no_text_are_refused():
    tokenizer = word_tokenizer()
    with trace(adapted(), codes=True) as t:
        run(t._model)
    with pytest.raises(UserError, match="this trace has no input_ids: run a text model in its block"):
        t.top_tokens("L0[3]", tokenizer)
    with pytest.raises(UserError, match="are those of one atom, got 'L0': give an address such as"):
        t.top_tokens("L0", tokenizer)
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = wake(get_peft_model(T5ForConditionalGeneration(config).eval(), AtomConfig(num_atoms=8)))
    with trace(model, codes=True) as t:
        model(input_ids=torch.randint(50, (2, 7)), decoder_input_ids=torch.randint(50, (2, 4)))
    assert t.top_tokens("L0[3]", tokenizer) is not None
    with pytest.raises(
        UserError, match=r"L1 saw 4 tokens of text 0, which has 7: choose a layer that sees the input_ids"
    ):
        t.top_tokens("L1[3]", tokenizer)


def test_codes_of_one_timestep_are_dense_in_one_call():
    model = adapted()
    seen = codes_of_calls(model, 1)
    with trace(model, codes=True) as t:
        sampling(model, guided=True, batches=2)
    S = torch.stack(seen).unflatten(0, (2, 3))[:, :, -2:]  # [batch, timestep, rows with the prompt, tokens, atoms]
    for place, timestep in enumerate((900, 500, 100)):
        assert_close(t["L1"].codes(timestep), S[:, place].flatten(0, 1), **HALF)
    assert_close(torch.stack([t["L1"].codes(time) for time in (900, 500, 100)]).mean(0), t["L1"].maps())
    with pytest.raises(
        UserError, match=r"codes at several timesteps: give one of 900, 500, 100, or take their mean, maps"
    ):
        t["L1"].codes()
    with pytest.raises(UserError, match="kept no codes at timestep 40: it has those at 900, 500, 100"):
        t["L1[4]"].codes(40)


def test_what_a_trace_prints_says_where_it_looked_and_what_it_saw():
    model = adapted()
    t = trace(model)
    assert repr(t) == "Trace of 'default': nothing was run in its block yet"
    with t:
        run(model)
    first, *layers = repr(t).splitlines()
    assert first == f"Trace of 'default': {t.alive} of 36 atoms fired, 4 a token in each layer, 2 samples"
    fired = int((t["L1"].fired > 0).sum())
    assert layers[1] == f"  <L1 = transformer_blocks.1.attn1: {fired} of 18 atoms fired at 32 tokens>"
    atom = max(t["L0"], key=lambda atom: atom.peak)
    assert repr(atom) == (
        f"<{atom.address} of transformer_blocks.0.attn1: "
        f"fired at {atom.firing_rate:.2%} of the tokens, |s| up to {atom.peak:.3g}>"
    )


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
        assert not any(layer.kept_codes for layer in t.layers)
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


def test_a_trace_of_no_atoms_says_so():
    for model, name in ((transformer(), "default"), (adapted(), "other")):
        with pytest.raises(UserError, match=f"carries no atoms under the name '{name}'"), trace(model, name):
            pass
