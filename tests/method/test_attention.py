"""DictionaryAttention against σ(A X W_s) D written out per head, and ordinary attention against its own dictionary."""

from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from atomtune.errors import UserError
from atomtune.method.attention import DictionaryAttention, OrdinaryAttention
from atomtune.method.coding import relu_threshold, soft_threshold, top_k
from atomtune.method.sigma import SigmaConfig

SIGMA = {
    "topk": lambda c: top_k(c, 3),
    "soft": lambda c: soft_threshold(c, 0.2),
    "relu": lambda c: relu_threshold(c, 0.2),
}
MASKS = {
    "none": None,
    "padding": torch.tensor([1, 1, 1, 0, 1], dtype=torch.bool).expand(2, 1, 5, 5),
    "causal": torch.ones(5, 5, dtype=torch.bool).tril(),
    "additive": torch.linspace(-3, 1, 25, dtype=torch.float64).view(5, 5),
}


def tokens(count: int = 5) -> torch.Tensor:
    return torch.randn(2, count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def filled(activation: str = "topk", **options) -> DictionaryAttention:
    layer = DictionaryAttention(6, 10, 7, sigma=SigmaConfig(activation, 0.3, 0.2), **options).double()
    torch.nn.init.normal_(layer.dictionary.decoder.weight, generator=torch.Generator().manual_seed(0))
    return layer


def maps(layer, x, context, mask) -> list[torch.Tensor]:
    """A of every head, in the paper's symbols."""
    found = []
    for W_q, W_k in zip(layer.to_q.weight.T.chunk(layer.heads, 1), layer.to_k.weight.T.chunk(layer.heads, 1)):
        Q, K = x @ W_q, context @ W_k
        scores = Q @ K.mT / sqrt(Q.shape[-1])
        if mask is not None:
            mask = mask.squeeze(1) if mask.ndim == 4 else mask
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        found.append(scores.softmax(-1))
    return found


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", [1, 2, 3])
@pytest.mark.parametrize("mix_first", [True, False])
@pytest.mark.parametrize("activation", SIGMA)
def test_output_is_equation_8(activation, mix_first, heads, mask):
    layer = filled(activation=activation, mix_first=mix_first, heads=heads)
    W_s, D = layer.dictionary.encoder.weight.T, layer.dictionary.decoder.weight
    X, sigma = tokens(), SIGMA[activation]
    C = X @ W_s if mix_first else sigma(X @ W_s)
    mixed = torch.zeros(2, 5, 10, dtype=torch.float64)
    for head, A in enumerate(maps(layer, X, X, MASKS[mask])):
        mine = layer.dictionary.head == head
        mixed[..., mine] = A @ C[..., mine]
    S = sigma(mixed) if mix_first else mixed
    assert_close(layer.codes(X, mask=MASKS[mask]), S, atol=1e-10, rtol=0)
    assert_close(layer(X, mask=MASKS[mask]), S @ D, atol=1e-10, rtol=0)


@pytest.mark.parametrize("mix_first", [True, False])
def test_queries_and_context_may_differ(mix_first):
    layer = filled(mix_first=mix_first)
    W_s, D = layer.dictionary.encoder.weight.T, layer.dictionary.decoder.weight
    X, context = tokens(3), tokens(8)
    (A,) = maps(layer, X, context, None)
    S = top_k(A @ (context @ W_s), 3) if mix_first else A @ top_k(context @ W_s, 3)
    assert_close(layer(X, context), S @ D, atol=1e-10, rtol=0)


def test_only_sigma_after_the_map_keeps_k_atoms():
    after, before = (
        (filled(mix_first=mix_first).codes(tokens()) != 0).sum(-1).double().mean() for mix_first in (True, False)
    )
    assert after == 3
    assert before > 3


@given(count=st.integers(1, 6), atoms=st.integers(1, 12), heads=st.integers(1, 4), mix_first=st.booleans())
def test_any_shape(count, atoms, heads, mix_first):
    layer = DictionaryAttention(4, atoms, 5, heads=heads, attention_width=2 * heads, mix_first=mix_first)
    out = layer(torch.randn(3, count, 4))
    assert out.shape == (3, count, 5)
    assert not out.any()  # D starts at zero


def test_the_gain_turns_an_atom_off():
    layer = filled()
    X = tokens()
    layer.dictionary.gain[4] = 0
    S, D = layer.codes(X).clone(), layer.dictionary.decoder.weight
    S[..., 4] = 0
    assert_close(layer(X), S @ D, atol=1e-10, rtol=0)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", [1, 2, 3])
def test_ordinary_attention_is_a_dictionary(heads, mask):
    """Equation 7, for one head and for several."""
    layer = OrdinaryAttention(6, 7, heads=heads).double()
    X = tokens()
    A = maps(layer, X, X, MASKS[mask])
    expected = torch.cat([a @ X @ W_v for a, W_v in zip(A, layer.to_v.weight.T.chunk(heads, 1))], -1)
    expected = expected if heads == 1 else expected @ layer.to_out.weight.T  # pyright: ignore[reportOperatorIssue]
    assert_close(layer(X, mask=MASKS[mask]), expected, atol=1e-10, rtol=0)
    assert_close(layer.codes(X, mask=MASKS[mask]) @ layer.atoms(), expected, atol=1e-10, rtol=0)
    assert layer.atoms().shape == (6 * heads, 7)


def test_one_head_of_ordinary_attention_is_a_dense_dictionary_attention():
    """σ(A X W_s) D with W_s = 1, ρ = 1 and D = W_v is A X W_v."""
    ordinary = OrdinaryAttention(6, 7).double()
    layer = DictionaryAttention(6, 6, 7, sigma=SigmaConfig(density=1.0)).double()
    layer.to_q, layer.to_k = ordinary.to_q, ordinary.to_k
    with torch.no_grad():
        layer.dictionary.encoder.weight.copy_(torch.eye(6))
        layer.dictionary.decoder.weight.copy_(ordinary.to_v.weight.T)
    assert_close(layer(tokens()), ordinary(tokens()), atol=1e-10, rtol=0)


def test_heads_must_divide_the_attention_width():
    with pytest.raises(UserError, match="attention_width must be a multiple of heads, got 6 for 4 heads"):
        DictionaryAttention(6, 10, heads=4)
