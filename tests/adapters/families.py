"""The model families people use: real classes of diffusers and transformers, small and random, with inputs for each.

`FAMILIES` is the table that test_families.py runs through, and that models_page.py prints for the documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from diffusers.models.normalization import AdaLayerNormZero
from torch import Tensor, nn

from atomtune.adapters.targets import TARGETS
from tests.adapters import tiny


class Noise:
    """Random inputs, the same each time."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)

    def tokens(self, *shape: int) -> Tensor:
        return torch.randint(3, 32, shape, generator=self.generator)


@dataclass(frozen=True)
class Family:
    """One architecture, and what is promised of it. test_families.py holds it to that."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[Noise], dict[str, Any]]
    attention: list[str]
    """Its attention modules, as `target_modules` names them."""
    linear: list[str] | str
    """Its value projections, of every stream, or what stands in for them."""
    carries_attention_atoms: bool = False
    generates: bool = False
    block: str = "Block"
    """The classes of its repeated blocks have this in their name."""

    def model(self, dtype: torch.dtype = torch.float32) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.build().to(dtype).eval()

    def run(self, model: Any, dtype: torch.dtype = torch.float32) -> Tensor:
        output = model(**cast(self.inputs(Noise()), dtype), return_dict=False)[0]
        return torch.stack(output) if isinstance(output, list) else output

    def blocks(self, model: Any) -> list[Any]:
        """One repeated block of each class."""
        return list(
            {type(module): module for module in model.modules() if self.block in type(module).__name__}.values()
        )


def cast(inputs: Any, dtype: torch.dtype) -> Any:
    if isinstance(inputs, dict):
        return {name: cast(value, dtype) for name, value in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return type(inputs)(cast(value, dtype) for value in inputs)
    return inputs.to(dtype) if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs


# Heads this wide and 16 tokens: below, the CPU's matrix product takes another kernel for the padded width of attention
# atoms and differs in the last bit.
WIDE: dict[str, Any] = {"attention_head_dim": 16}


def pixart(**options: Any) -> nn.Module:
    return diffusers.PixArtTransformer2DModel(**tiny.CONFIG | WIDE | options)


def unet(**options: Any) -> nn.Module:
    return diffusers.UNet2DConditionModel(
        **{
            "block_out_channels": (16, 48),
            "layers_per_block": 1,
            "sample_size": 8,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "cross_attention_dim": 16,
            "norm_num_groups": 4,
        }
        | options
    )


def language_model(kind: str, **options: Any) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(
        **{
            "vocab_size": 32,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        | options
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config)


CLIP: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}


def aura_flow() -> nn.Module:
    """With gates that let something through, as after training: at first they are near zero."""
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_projection_dim=24,
        joint_attention_dim=16,
        pos_embed_max_size=64,
    )
    for module in model.modules():
        if isinstance(module, AdaLayerNormZero):
            nn.init.normal_(module.linear.weight)
    return model


def image_ids(height: int, width: int, axes: int = 3) -> Tensor:
    ids = torch.zeros(height, width, axes)
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)[None]
    return ids.flatten(0, 1)


def two_lengths(longest: int = 5) -> Tensor:
    """A mask of two texts, the second one shorter."""
    return (torch.arange(longest) < torch.tensor([[longest], [longest - 2]])).long()


FAMILIES = [
    Family(
        "PixArt-α",
        lambda: pixart(num_attention_heads=3, cross_attention_dim=48, use_additional_conditions=True),
        lambda noise: {
            "hidden_states": noise(2, 4, 8, 8),
            "encoder_hidden_states": noise(2, 16, 16),
            "encoder_attention_mask": two_lengths(16).float(),
            "timestep": torch.tensor([30, 700]),
            "added_cond_kwargs": {"resolution": torch.full((2, 2), 64.0), "aspect_ratio": torch.ones(2, 1)},
        },
        attention=["attn1", "attn2"],
        linear=["to_v"],
        carries_attention_atoms=True,
    ),
    Family(
        "PixArt-Σ",
        lambda: pixart(cross_attention_dim=64),
        lambda noise: {
            "hidden_states": noise(2, 4, 8, 8),
            "encoder_hidden_states": noise(2, 16, 16),
            "encoder_attention_mask": two_lengths(16).float(),
            "timestep": torch.tensor([30, 700]),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
        attention=["attn1", "attn2"],
        linear=["to_v"],
        carries_attention_atoms=True,
    ),
    Family(
        "DiT",
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=3, out_channels=8, num_layers=2, sample_size=8, num_embeds_ada_norm=10, **WIDE
        ),
        lambda noise: {
            "hidden_states": noise(2, 4, 8, 8),
            "timestep": torch.tensor([30, 700]),
            "class_labels": torch.tensor([3, 7]),
        },
        attention=["attn1"],
        linear=["to_v"],
        carries_attention_atoms=True,
    ),
    Family(
        "Stable Diffusion 1.5",
        lambda: unet(attention_head_dim=3),  # the number of heads, in spite of its name
        lambda noise: {
            "sample": noise(2, 4, 8, 8),
            "timestep": torch.tensor([30, 700]),
            "encoder_hidden_states": noise(2, 16, 16),
        },
        attention=["attn1", "attn2"],
        linear=["to_v"],
        carries_attention_atoms=True,
        block="BasicTransformerBlock",
    ),
    Family(
        "Stable Diffusion XL",
        lambda: unet(
            block_out_channels=(16, 80),
            attention_head_dim=(1, 5),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        ),
        lambda noise: {
            "sample": noise(2, 4, 8, 8),
            "timestep": torch.tensor([30, 700]),
            "encoder_hidden_states": noise(2, 16, 16),
            "added_cond_kwargs": {"text_embeds": noise(2, 16), "time_ids": torch.full((2, 6), 64.0)},
        },
        attention=["attn1", "attn2"],
        linear=["to_v"],
        carries_attention_atoms=True,
        block="BasicTransformerBlock",
    ),
    Family(
        "Stable Diffusion 3",
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=3,
            joint_attention_dim=16,
            caption_projection_dim=24,
            pooled_projection_dim=16,
            dual_attention_layers=(0,),  # as 3.5 medium
            qk_norm="rms_norm",
        ),
        lambda noise: {
            "hidden_states": noise(2, 4, 8, 8),
            "encoder_hidden_states": noise(2, 5, 16),
            "pooled_projections": noise(2, 16),
            "timestep": torch.tensor([30, 700]),
        },
        attention=["attn"],
        linear=["to_v", "add_v_proj"],
        block="JointTransformerBlock",
    ),
    Family(
        "Flux",
        lambda: diffusers.FluxTransformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=3,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
        lambda noise: {
            "hidden_states": noise(2, 16, 4),
            "encoder_hidden_states": noise(2, 5, 16),
            "pooled_projections": noise(2, 16),
            "timestep": torch.tensor([0.03, 0.7]),
            "img_ids": image_ids(4, 4),
            "txt_ids": torch.zeros(5, 3),
        },
        attention=["attn"],
        linear=["to_v", "add_v_proj"],
    ),
    Family(
        "Flux.2",
        lambda: diffusers.Flux2Transformer2DModel(
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=3,
            joint_attention_dim=16,
            timestep_guidance_channels=16,
            axes_dims_rope=(2, 2, 2, 2),
        ),
        lambda noise: {
            "hidden_states": noise(2, 16, 4),
            "encoder_hidden_states": noise(2, 5, 16),
            "timestep": torch.tensor([0.03, 0.7]),
            "guidance": torch.ones(2),
            "img_ids": image_ids(4, 4, axes=4),
            "txt_ids": torch.zeros(5, 4),
        },
        attention=["attn"],
        linear=TARGETS["Flux2Transformer2DModel"],  # to_v, add_v_proj, and to_out of the single-stream blocks,
    ),
    Family(
        "Qwen-Image",
        lambda: diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=3,
            joint_attention_dim=16,
            axes_dims_rope=(2, 2, 4),
        ),
        lambda noise: {
            "hidden_states": noise(2, 16, 16),
            "encoder_hidden_states": noise(2, 5, 16),
            "encoder_hidden_states_mask": two_lengths(),
            "timestep": torch.tensor([0.03, 0.7]),
            "img_shapes": [[(1, 4, 4)]] * 2,
        },
        attention=["attn"],
        linear=["to_v", "add_v_proj"],
    ),
    Family(
        "Sana",
        lambda: diffusers.SanaTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=3,
            attention_head_dim=8,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=16,
            sample_size=8,
        ),
        lambda noise: {
            "hidden_states": noise(2, 4, 8, 8),
            "encoder_hidden_states": noise(2, 5, 16),
            "encoder_attention_mask": two_lengths().float(),
            "timestep": torch.tensor([30, 700]),
        },
        attention=["attn1", "attn2"],
        linear=["to_v"],
    ),
    Family(
        "Lumina 2",
        lambda: diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=32,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=4,
            num_kv_heads=2,
            multiple_of=16,
            axes_dim_rope=(2, 2, 4),
            axes_lens=(16, 16, 16),
            cap_feat_dim=16,
        ),
        lambda noise: {
            "hidden_states": noise(2, 4, 8, 8),
            "timestep": torch.tensor([0.03, 0.7]),
            "encoder_hidden_states": noise(2, 5, 16),
            "encoder_attention_mask": two_lengths().bool(),
        },
        attention=["attn"],
        linear=["to_v"],
    ),
    Family(
        "AuraFlow",
        aura_flow,
        lambda noise: {
            "hidden_states": noise(2, 4, 8, 8),
            "timestep": torch.tensor([0.03, 0.7]),
            "encoder_hidden_states": noise(2, 5, 16),
        },
        attention=["attn"],
        linear=["to_v", "add_v_proj"],
    ),
    Family(
        "Wan",
        lambda: diffusers.WanTransformer3DModel(
            num_attention_heads=3,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        ),
        lambda noise: {
            "hidden_states": noise(2, 4, 2, 8, 8),
            "timestep": torch.tensor([30, 700]),
            "encoder_hidden_states": noise(2, 5, 16),
        },
        attention=["attn1", "attn2"],
        linear=["to_v"],
    ),
    Family(
        "Z-Image",
        lambda: diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=24,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=3,
            n_kv_heads=3,
            cap_feat_dim=16,
            axes_dims=[2, 2, 4],
            axes_lens=[64, 16, 16],
        ),
        lambda noise: {
            "x": [noise(4, 1, 8, 8), noise(4, 1, 8, 8)],
            "t": torch.tensor([0.03, 0.7]),
            "cap_feats": [noise(5, 16), noise(3, 16)],
        },
        attention=["attention"],
        linear=["to_v"],
    ),
    Family(
        "Hunyuan-DiT",
        lambda: diffusers.HunyuanDiT2DModel(
            num_attention_heads=3,
            attention_head_dim=8,
            in_channels=4,
            patch_size=2,
            sample_size=8,
            hidden_size=24,
            num_layers=2,
            cross_attention_dim=16,
            cross_attention_dim_t5=16,
            pooled_projection_dim=16,
            text_len=5,
            text_len_t5=3,
            use_style_cond_and_image_meta_size=False,
        ),
        lambda noise: {
            "hidden_states": noise(2, 4, 8, 8),
            "timestep": torch.tensor([30.0, 700.0]),
            "encoder_hidden_states": noise(2, 5, 16),
            "text_embedding_mask": two_lengths(),
            "encoder_hidden_states_t5": noise(2, 3, 16),
            "text_embedding_mask_t5": torch.ones(2, 3),
            "image_rotary_emb": (noise(16, 8), noise(16, 8)),
        },
        attention=["attn1", "attn2"],
        linear=["to_v"],
    ),
    Family(
        "CogVideoX",
        lambda: diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=3,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=16,
            num_layers=2,
            sample_width=8,
            sample_height=8,
            sample_frames=5,
            max_text_seq_length=5,
            use_rotary_positional_embeddings=True,  # as 5B
        ),
        lambda noise: {
            "hidden_states": noise(2, 2, 4, 8, 8),
            "encoder_hidden_states": noise(2, 5, 16),
            "timestep": torch.tensor([30, 700]),
            "image_rotary_emb": (noise(32, 8), noise(32, 8)),
        },
        attention=["attn1", "attn2"],
        linear=["to_v"],
    ),
    *(
        Family(
            name,
            lambda kind=kind: language_model(kind),
            lambda noise: {"input_ids": noise.tokens(2, 7)},
            attention=["self_attn"],
            linear=["v_proj"],
            generates=True,
            block="DecoderLayer",
        )
        for name, kind in {
            "Llama, SmolLM2": "Llama",
            "SmolLM3": "SmolLM3",
            "Qwen2": "Qwen2",
            "Qwen3": "Qwen3",
        }.items()
    ),
    Family(
        "GPT-2",
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=32, n_positions=32, n_embd=24, n_layer=2, n_head=3, bos_token_id=1, eos_token_id=2
            )
        ),
        lambda noise: {"input_ids": noise.tokens(2, 7)},
        attention=["attn"],
        linear=["c_attn", "attn.c_proj"],
        generates=True,
    ),
    Family(
        "T5",
        lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                vocab_size=32,
                d_model=24,
                d_kv=8,
                d_ff=32,
                num_layers=2,
                num_heads=3,
                decoder_start_token_id=0,  # pyright: ignore[reportCallIssue]
            )
        ),
        lambda noise: {"input_ids": noise.tokens(2, 7), "decoder_input_ids": noise.tokens(2, 4)},
        attention=["SelfAttention", "EncDecAttention"],
        linear=["v"],
        generates=True,
    ),
    Family(
        "ViT",
        lambda: transformers.ViTModel(transformers.ViTConfig(**CLIP, image_size=8, patch_size=2)),
        lambda noise: {"pixel_values": noise(2, 3, 8, 8)},
        attention=["attention"],
        linear=["v_proj"],
        block="ViTLayer",
    ),
    Family(
        "CLIP, text",
        lambda: transformers.CLIPTextModel(
            transformers.CLIPTextConfig(**CLIP, vocab_size=32, bos_token_id=1, eos_token_id=2)
        ),
        lambda noise: {"input_ids": noise.tokens(2, 7)},
        attention=["self_attn"],
        linear=["v_proj"],
        block="EncoderLayer",
    ),
    Family(
        "CLIP, vision",
        lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**CLIP, image_size=8, patch_size=2)),
        lambda noise: {"pixel_values": noise(2, 3, 8, 8)},
        attention=["self_attn"],
        linear=["v_proj"],
        block="EncoderLayer",
    ),
]
