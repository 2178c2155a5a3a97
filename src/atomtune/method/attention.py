"""Attention layers made of a sparse dictionary alone, trained from scratch; and ordinary attention written as one.

    eq. 7   O = A X W_v   = S D   S = A X,  D = W_v                                  every token uses every atom
            H heads               S = [A_1 X | … | A_H X],  D = [W_v¹ W_o¹; …; W_v^H W_o^H]
    eq. 8   O = σ(A X W_s) D      mix_first=True    exactly k atoms a token
            O = A σ(X W_s) D      mix_first=False   each token is sparse before the map, not after it

The adapters add ΔO = σ(A X W_s) D to a frozen layer; here there is no frozen layer. With several heads the M atoms are
divided among them, and each head's map mixes its own atoms, as in `adapters.attention`.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from atomtune.errors import UserError
from atomtune.method.dictionary import SparseDictionary
from atomtune.method.sigma import SigmaConfig


class _Attention(nn.Module):
    """Queries, keys and the attention map; subclasses choose what the map mixes."""

    def __init__(self, width: int, heads: int, attention_width: int | None) -> None:
        super().__init__()
        attention_width = attention_width or width
        if attention_width % heads:
            raise UserError(f"attention_width must be a multiple of heads, got {attention_width} for {heads} heads.")
        self.heads = heads
        self.to_q = nn.Linear(width, attention_width, bias=False)
        self.to_k = nn.Linear(width, attention_width, bias=False)

    def mix(
        self,
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys width"] | None,
        values: Float[Tensor, "batch #heads keys slots"],
        mask: Tensor | None,
    ) -> Float[Tensor, "batch heads queries slots"]:
        """A_h V_h for every head h, with A = softmax(q kᵀ / √d + mask); values of one head serve all heads."""
        context = x if context is None else context
        query, key = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.to_q(x), self.to_k(context))
        )
        values = values.expand(-1, self.heads, -1, -1)
        return F.scaled_dot_product_attention(query, key, values, attn_mask=mask)


class DictionaryAttention(_Attention):
    """Attention whose output is σ(A X W_s) D (eq. 8).

    D starts at zero and the output with it, as in the adapters; call `dictionary.reset_parameters` or fill
    `dictionary.decoder.weight` for another start.

    Args:
        width: width C_i of the tokens.
        num_atoms: M.
        out_features: width C_o of the output; `width` if not given.
        heads: number of heads; the atoms are divided among them.
        attention_width: width of queries and keys over all heads; `width` if not given.
        mix_first: σ after the attention map (eq. 8) or before it.
        sigma: σ and its dials.
    """

    def __init__(
        self,
        width: int,
        num_atoms: int,
        out_features: int | None = None,
        heads: int = 1,
        attention_width: int | None = None,
        mix_first: bool = True,
        sigma: SigmaConfig = SigmaConfig(),  # noqa: B008  frozen
    ) -> None:
        super().__init__(width, heads, attention_width)
        self.mix_first = mix_first
        self.dictionary = SparseDictionary(width, num_atoms, out_features or width, sigma, heads)

    def codes(
        self,
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys width"] | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch queries atoms"]:
        """S, what multiplies D: σ(A X W_s), or A σ(X W_s). `mask` is that of `scaled_dot_product_attention`."""
        dictionary = self.dictionary
        coefficients = dictionary.coefficients(x if context is None else context)
        values = dictionary.seating.split(coefficients if self.mix_first else dictionary.activate(coefficients))
        mixed = dictionary.seating.join(self.mix(x, context, values, mask))
        return dictionary.activate(mixed) if self.mix_first else mixed

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys width"] | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch queries out"]:
        return self.dictionary.synthesize(self.codes(x, context, mask))


class OrdinaryAttention(_Attention):
    """O = concat_h(A_h X W_v^h) W_o, which is also a dictionary with dense coefficients (eq. 7): `codes @ atoms`.

    Args:
        width: width C_i of the tokens.
        out_features: width C_o of the output; `width` if not given.
        heads: number of heads. One head has no output projection, as in the paper's single-head form.
        attention_width: width of queries, keys and, with several heads, values; `width` if not given.
    """

    def __init__(
        self, width: int, out_features: int | None = None, heads: int = 1, attention_width: int | None = None
    ) -> None:
        super().__init__(width, heads, attention_width)
        value_width = (out_features or width) if heads == 1 else self.to_q.out_features
        self.to_v = nn.Linear(width, value_width, bias=False)
        self.to_out = nn.Identity() if heads == 1 else nn.Linear(value_width, out_features or width, bias=False)

    def codes(
        self,
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys width"] | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch queries atoms"]:
        """S = [A_1 X | … | A_H X]: every coefficient of every token, none of them zero."""
        values = (x if context is None else context)[:, None]
        return self.mix(x, context, values, mask).transpose(1, 2).flatten(2)

    def atoms(self) -> Float[Tensor, "atoms out"]:
        """D: the rows of W_v, multiplied by W_o; the rows of all heads, one head after the other."""
        W_v = self.to_v.weight.T
        if isinstance(self.to_out, nn.Identity):
            return W_v
        W_o = self.to_out.weight.T
        return torch.cat([v @ o for v, o in zip(W_v.chunk(self.heads, dim=1), W_o.chunk(self.heads))])

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys width"] | None = None,
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch queries out"]:
        values = self.to_v(x if context is None else context).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.to_out(self.mix(x, context, values, mask).transpose(1, 2).flatten(2))
