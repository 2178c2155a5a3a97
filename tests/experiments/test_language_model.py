"""The language model's experiment on a tiny Llama; the real model is opened by the command alone."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.language_model.run import METHODS, grid, mean_loss, sequences, split, top_atoms, train, unrelated


@pytest.fixture
def model():
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, **sizes)).eval()


@pytest.fixture
def tokenizer():
    """Letters as tokens."""

    class Letters(SimpleNamespace):
        def __call__(self, text):
            return {"input_ids": [ord(letter) % 300 for letter in text]}

        def decode(self, ids):
            return "".join(map(chr, ids.flatten().tolist()))

    return Letters()


def test_sequences_are_spread_over_the_text(tokenizer):
    ids = sequences(tokenizer, unrelated(), 360)
    assert ids.shape == (360, 64)
    learnt, held_out = split(ids)
    assert (len(learnt), len(held_out)) == (300, 60) and not torch.equal(learnt[-1], held_out[0])


def test_both_methods_train_as_many_parameters_and_learn(model, tokenizer):
    ids = sequences(tokenizer, "in the beginning " * 40, 12)
    counts = set()
    for config in METHODS.values():
        adapted = get_peft_model(model, config())
        before = mean_loss(adapted, ids)
        train(adapted, ids, 1e-2, 0, steps=20)
        assert mean_loss(adapted, ids) < before
        counts.add(adapted.get_nb_trainable_parameters()[0])
        adapted.unload()
    assert len(counts) == 1


def test_the_tokens_that_fire_an_atom_come_with_those_before(model, tokenizer):
    adapted = get_peft_model(model, METHODS["atoms"]())
    ids = sequences(tokenizer, "in the beginning was the word " * 40, 6)
    train(adapted, ids, 1e-2, 0, steps=5)
    for atom in top_atoms(adapted, tokenizer, ids, count=3):
        assert 0 < atom["firing_rate"] <= 1
        for before, here, value in atom["tokens"]:
            assert len(here) == 1 and len(before) <= 3 and value


def test_the_learning_rate_that_wins_with_the_first_seed_gets_the_others(tmp_path):
    losses = {"atoms-0.001-0": 3.0, "atoms-0.0003-0": 2.0, "atoms-0.003-0": 4.0}
    lines = [json.dumps({"name": name, "values": {"held_out": loss}}) + "\n" for name, loss in losses.items()]
    (tmp_path / "results.jsonl").write_text("".join(lines))
    added = grid(out=tmp_path).keys() - grid(out=tmp_path / "nothing").keys()
    assert added == {"atoms-0.0003-1", "atoms-0.0003-2"}
