"""Adapted layers written out in the paper's symbols, atom by atom, to compare the code with."""

from typing import Any

import torch
from torch import Tensor

from atomtune.adapters import LinearAtoms
from atomtune.method.coding import relu_threshold, soft_threshold, top_k
from atomtune.method.dictionary import SparseDictionary


def sigma(dictionary: SparseDictionary, coefficients: Tensor) -> Tensor:
    σ: Any = dictionary.sigma
    if σ.activation == "topk":
        return top_k(coefficients, max(1, round(σ.density * dictionary.num_atoms)))
    if σ.activation == "batch_topk":  # while training: the k·N largest of the batch
        k, N = int(σ.k), coefficients.numel() // dictionary.num_atoms
        λ = coefficients.abs().flatten().sort(descending=True).values[k * N - 1] if dictionary.training else σ.level
        return torch.where(coefficients.abs() >= λ, coefficients, 0)
    if σ.activation == "jumprelu":
        return torch.where(coefficients > σ.current_threshold, coefficients, 0)
    return {"soft": soft_threshold, "relu": relu_threshold}[σ.activation](coefficients, σ.current_threshold)


def linear(layer: LinearAtoms, x: Tensor) -> Tensor:
    """y + σ(x W_s) D."""
    dictionary = layer.dictionary("default")
    W_s, D = dictionary.encoder.weight.T, dictionary.decoder.weight
    return layer.base_layer(x) + sigma(dictionary, x @ W_s) @ D


def attention_maps(attn: Any, hidden: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
    """A, one map per head: softmax(Q Kᵀ/√d + mask). [batch, heads, queries, keys]"""
    Q, K = (
        to(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for to, tokens in ((attn.to_q, hidden), (attn.to_k, context))
    )
    scores = Q @ K.transpose(-1, -2) / Q.shape[-1] ** 0.5
    return (scores if mask is None else scores + mask).softmax(-1)


def attention(attn: Any, hidden: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """O + σ(A X W_s) D or O + A σ(X W_s) D, atom by atom: atom m is mixed by the map of its own head.

    `mask` is added to the scores: [batch, 1, keys].
    """
    X = hidden if context is None else context
    A = attention_maps(attn, hidden, X, None if mask is None else mask[:, None])
    V = attn.to_v(X).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    O = attn.to_out[0]((A @ V).transpose(1, 2).flatten(2))  # noqa: E741

    dictionary, mix_first = attn.processor.dictionary("default"), attn.processor.mix_first["default"]
    W_s, D = dictionary.encoder.weight.T, dictionary.decoder.weight
    M = dictionary.num_atoms
    C = X @ W_s if mix_first else sigma(dictionary, X @ W_s)
    S = torch.stack([A[:, m * attn.heads // M] @ C[..., m, None] for m in range(M)], dim=-1).squeeze(-2)
    return O + (sigma(dictionary, S) if mix_first else S) @ D
