"""Other families of pipelines, tiny and random: nothing in training knows which one it has."""

from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
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
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
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
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=6.0)
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
    """Flux.1-dev: packs its latents, takes its guidance as a number, and does not say what size it draws."""
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    scheduler: Any = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
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
    words, scheduler = tokenizer(), FlowMatchEulerDiscreteScheduler(shift=3.0)
    words.chat_template = "{% for m in messages %}of {{ m['content'] }} {% endfor %}"
    return ZImagePipeline(
        scheduler,
        AutoencoderKL(**AUTOENCODER, shift_factor=0.1),
        Qwen3Model(qwen_3_config(layers=2)),  # pyright: ignore
        words,
        transformer,
    )


def pixart_alpha() -> PixArtAlphaPipeline:
    """PixArt-α: a denoiser that is told the size and the shape of the image."""
    tokenizer, text_encoder = tiny_t5(16)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=128,  # the only size for which the pipeline tells it resolution and aspect ratio
        patch_size=2,
        attention_bias=True,
        use_additional_conditions=True,
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.1)
    scheduler: Any = DPMSolverMultistepScheduler()
    return PixArtAlphaPipeline(tokenizer, text_encoder, AutoencoderKL(**AUTOENCODER), transformer, scheduler)


def chroma() -> ChromaPipeline:
    """Chroma: packs its latents as Flux.1 does, and is of no family that is trained."""
    tokenizer, text_encoder = tiny_t5(32)
    transformer = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=32,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=8,
        approximator_hidden_dim=8,
        approximator_layers=1,
    )
    vae, scheduler = AutoencoderKL(**AUTOENCODER, shift_factor=0.1), FlowMatchEulerDiscreteScheduler()
    return ChromaPipeline(scheduler, vae, text_encoder, tokenizer, transformer)  # pyright: ignore


def flux_2_denoiser(width: int, guidance: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=width,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=guidance,
    )


def flux_2_autoencoder() -> AutoencoderKLFlux2:
    """With statistics of its batch norm as after training."""
    options = {name: value for name, value in AUTOENCODER.items() if name != "scaling_factor"}
    vae = AutoencoderKLFlux2(**options)
    vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 16))  # pyright: ignore
    vae.bn.running_var.copy_(torch.linspace(0.5, 4, 16))  # pyright: ignore
    return vae


def flux_2() -> Flux2Pipeline:
    """Flux.2: packs latents that a batch norm has normalized; a language model reads the prompt."""
    text = MistralConfig(
        vocab_size=64,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=31,  # the pipeline reads the 10th, 20th and 30th
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
    )
    vision = PixtralVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'][0]['text'] }} {% endfor %}"
    return Flux2Pipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        flux_2_autoencoder(),
        Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)),
        words,  # its processor of images needs torchvision; texts go through the tokenizer in it
        flux_2_denoiser(24, guidance=True),
    )


def flux_2_klein() -> Flux2KleinPipeline:
    """klein: Flux.2 with another language model, without guidance as an input, and with two runs in a guided step."""
    words = tokenizer()
    words.chat_template = "{% for m in messages %}of {{ m['content'] }} {% endfor %}"
    return Flux2KleinPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        flux_2_autoencoder(),
        Qwen3ForCausalLM(qwen_3_config(layers=28)),  # the pipeline reads the 9th, 18th and 27th
        words,
        flux_2_denoiser(48, guidance=False),
    )


def qwen_3_config(layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )


def qwen_image() -> QwenImagePipeline:
    """Qwen-Image: an autoencoder of videos, packed latents, and texts that are as long as they are."""
    text = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=3,
        joint_attention_dim=16,
        axes_dims_rope=(2, 2, 4),
    )
    autoencoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 0.6, 0.7, 0.8],
    )
    return QwenImagePipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.02),
        autoencoder,
        Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer(),
        transformer,
    )
