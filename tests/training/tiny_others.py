"""Other families of pipelines, tiny and random: nothing in training knows which one it has."""

from typing import Any

from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    UMT5Config,
    UMT5EncoderModel,
)

from tests.tiny_pixart import AUTOENCODER, WORDS, tiny_t5


def tokenizer() -> Any:
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", model_max_length=16)


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
    )


def stable_diffusion() -> StableDiffusionPipeline:
    """Stable Diffusion 1: a UNet, ε."""
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    parts["scheduler"] = DDIMScheduler(steps_offset=1, clip_sample=False)
    return StableDiffusionPipeline(
        AutoencoderKL(**AUTOENCODER), CLIPTextModel(text_config()), tokenizer(), unet, **parts
    )


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3: two streams, pooled prompts, flow matching."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
    )
    tokenizer_3, text_encoder_3 = tiny_t5(32)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(**AUTOENCODER, shift_factor=0.06),
        text_encoder=CLIPTextModelWithProjection(text_config()),
        tokenizer=tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(text_config()),
        tokenizer_2=tokenizer(),
        text_encoder_3=text_encoder_3,
        tokenizer_3=tokenizer_3,
    )


def stable_diffusion_xl(**autoencoder: Any) -> StableDiffusionXLPipeline:
    """Stable Diffusion XL: a UNet that is also told sizes and a pooled prompt, ε, Euler steps."""
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=2,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    scheduler: Any = EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1)
    return StableDiffusionXLPipeline(
        AutoencoderKL(**AUTOENCODER | autoencoder),
        CLIPTextModel(text_config()),
        CLIPTextModelWithProjection(text_config()),
        tokenizer(),
        tokenizer(),
        unet,
        scheduler,
    )


def sana() -> SanaPipeline:
    """Sana: a deep autoencoder and flow matching by DPM-Solver."""
    blocks: Any = ("ResBlock", "EfficientViTBlock")
    autoencoder = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=16,
        sample_size=32,
    )
    text_encoder, scheduler = (
        Gemma2Model(gemma_config()),
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
    return SanaPipeline(gemma_tokenizer(), text_encoder, autoencoder, transformer, scheduler)  # pyright: ignore


def gemma_config() -> Gemma2Config:
    return Gemma2Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=1,
    )


def gemma_tokenizer() -> Any:
    return GemmaTokenizer(
        vocab={word: index for index, word in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", *WORDS])},  # pyright: ignore
        merges=[],
    )


def lumina_2() -> Lumina2Pipeline:
    """Lumina 2: flow matching with a clock that runs from 0 (noise) to 1, and a negated answer."""
    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(2, 2, 4),
        axes_lens=(300, 32, 32),
        cap_feat_dim=16,
    )
    vae, text_encoder = AutoencoderKL(**AUTOENCODER, shift_factor=0.1), Gemma2Model(gemma_config())
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    return Lumina2Pipeline(transformer, scheduler, vae, text_encoder, gemma_tokenizer())


def aura_flow() -> AuraFlowPipeline:
    """AuraFlow: flow matching with a clock from 1 (noise) to 0."""
    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pos_embed_max_size=256,
    )
    text_encoder: Any = UMT5EncoderModel(
        UMT5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    return AuraFlowPipeline(tokenizer(), text_encoder, AutoencoderKL(**AUTOENCODER), transformer, scheduler)


def flux() -> FluxPipeline:
    """Flux: packs its latents, and its denoiser does not say what size it draws."""
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    scheduler: Any = FlowMatchEulerDiscreteScheduler()
    tokenizer_2, text_encoder_2 = tiny_t5(32)
    return FluxPipeline(
        scheduler,
        AutoencoderKL(**AUTOENCODER, shift_factor=0.1),
        CLIPTextModel(text_config()),
        tokenizer(),
        text_encoder_2,
        tokenizer_2,  # pyright: ignore
        transformer,
    )


def z_image() -> ZImagePipeline:
    """Z-Image: gives its denoiser a list, and the denoiser does not say what size it draws."""
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=24,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=3,
        n_kv_heads=3,
        cap_feat_dim=16,
        axes_dims=[2, 2, 4],
        axes_lens=[600, 16, 16],
    )
    text = Qwen3Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    words, scheduler = tokenizer(), FlowMatchEulerDiscreteScheduler()
    words.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    return ZImagePipeline(
        scheduler,
        AutoencoderKL(**AUTOENCODER, shift_factor=0.1),
        Qwen3Model(text),  # pyright: ignore
        words,
        transformer,
    )
