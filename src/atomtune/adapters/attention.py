"""Attention atoms: one dictionary beside a whole attention layer, mixed by the layer's own attention maps.

    mix_first=True    ΔO = σ(A X W_s) D     eq. 8 and 9: exactly k atoms a token
    mix_first=False   ΔO = A σ(X W_s) D     the paper's shortcut in its experiments

The M coefficients are divided among the H heads as the values are; each head's map A_h mixes its own; concatenated they
give S [N, M], and S D is added after `to_out`, before the residual. One attention call mixes both, because the
coefficients are appended to the values as extra channels:

    A_h [V_h | C_h] = [A_h V_h | A_h C_h]

with q and k zero-padded to the same width, which does not change q·k; the flash kernel needs equal widths. A kernel may
round otherwise at another width, so where no atom fires the output is that of the frozen layer but for the last bits;
of linear atoms it is the same to the bit.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from atomtune.adapters.config import AtomConfig
from atomtune.adapters.guard import guard
from atomtune.adapters.layer import AtomLayer


class AttentionAtoms(nn.Module, AtomLayer):
    """An attention processor that computes what the stock processor does, and adds the ΔO of every active adapter.

    `attach` installs it with `set_processor`, so it is registered as `attn1.processor` and all other names in the layer
    stay the same. `detach` restores the stock processor.
    """

    other_param_names = ("mix_first",)

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        # In a tuple, because the layer holds this processor as a child and must not become its child in turn.
        self._attention = (attn,)
        self.stock: Any = attn.get_processor()
        self.in_features = attn.cross_attention_dim
        self.out_features = attn.out_dim
        self.heads = attn.heads
        # AttnProcessor2_0 always divides by √d; the older AttnProcessor asks the layer.
        self.scale: float = attn.scale if type(self.stock) is AttnProcessor else (attn.inner_dim // attn.heads) ** -0.5
        self.atoms_dictionaries = nn.ModuleDict()
        self.mix_first: dict[str, bool] = {}

    @classmethod
    def attach(cls, attn: Attention) -> AttentionAtoms:
        atoms = cls(attn)
        attn.set_processor(atoms)  # pyright: ignore[reportArgumentType]
        guard(attn)
        return atoms

    def detach(self) -> None:
        attn = self._attention[0]
        type(attn).set_processor(attn, self.stock)  # not the method of the instance, which is a guard
        guard(attn)

    def update_layer(self, adapter_name: str, config: AtomConfig, num_atoms: int) -> None:
        super().update_layer(adapter_name, config, num_atoms)
        self.mix_first[adapter_name] = config.mix_first

    def get_base_layer(self) -> nn.Module:
        """The layer whose device and precision PEFT reads for new atoms."""
        to_v: Any = self._attention[0].to_v
        return to_v.get_base_layer() if hasattr(to_v, "get_base_layer") else to_v

    # `attn` is the diffusers Attention; its forward drops keyword arguments that are not spelled out here.
    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        names = self.active()
        if not names:
            return self.stock(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        image_shape = hidden_states.shape[-2:] if hidden_states.ndim == 4 else None
        if image_shape is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if encoder_hidden_states is None:
            context = hidden_states
        elif attn.norm_cross:
            context = attn.norm_encoder_hidden_states(encoder_hidden_states)
        else:
            context = encoder_hidden_states
        if attention_mask is not None:
            batch, tokens, _ = context.shape
            mask: Tensor = attn.prepare_attention_mask(attention_mask, tokens, batch)
            attention_mask = mask.view(batch, attn.heads, -1, mask.shape[-1])

        query, key, value = (
            projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projected in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )  # [batch, heads, tokens, width of a head]
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)

        extras = [self.dictionary(name)(context, partial(self._extra_values, name)).to(value.dtype) for name in names]
        mixed = _attend(query, key, torch.cat([value, *extras], dim=-1), attention_mask, self.scale)
        value, *extras = mixed.split([value.shape[-1], *(extra.shape[-1] for extra in extras)], dim=-1)

        output = attn.to_out[1](attn.to_out[0](value.transpose(1, 2).flatten(2).to(query.dtype)))
        for name, extra in zip(names, extras):
            output = output + self.dictionary(name)(extra, partial(self._delta, name)).to(output.dtype)

        if image_shape is not None:
            output = output.transpose(1, 2).unflatten(-1, image_shape)
        if attn.residual_connection:
            output = output + residual
        return output / attn.rescale_output_factor

    def _extra_values(
        self, name: str, context: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch heads tokens slots"]:
        """C, which is appended to the values: coefficients if σ comes after mixing, codes if it comes before."""
        dictionary = self.dictionary(name)
        coefficients = dictionary.coefficients(context)
        return dictionary.seating.split(coefficients if self.mix_first[name] else dictionary.activate(coefficients))

    def _delta(
        self, name: str, mixed: Float[Tensor, "batch heads queries slots"]
    ) -> Float[Tensor, "batch queries out"]:
        """ΔO from the mixed C: σ if it comes after mixing, then D."""
        dictionary = self.dictionary(name)
        joined = dictionary.seating.join(mixed)
        return dictionary.delta(joined) if self.mix_first[name] else dictionary.synthesize(joined)


def _attend(
    query: Float[Tensor, "batch heads queries head_width"],
    key: Float[Tensor, "batch heads keys head_width"],
    value: Float[Tensor, "batch heads keys wide"],
    mask: Tensor | None,
    scale: float,
) -> Float[Tensor, "batch heads queries wide"]:
    """softmax(q kᵀ · scale + mask) v for values wider than q and k. `scale` is that of the unpadded width."""
    extra = value.shape[-1] - query.shape[-1]
    query, key = F.pad(query, (0, extra)), F.pad(key, (0, extra))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
