"""Makes tiny models of each supported family, with random weights, as diffusers folders."""

# mypy: allow-untyped-calls

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedModel,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

UNETS = ("sd1", "sd2-base", "sd2", "sdxl")
JOINT = ("flux1", "sd3", "z_image", "klein")
VARIANTS = ("schnell", "sd3_2b")
"""FLUX.1 that reads no guidance scale, and the first Stable Diffusion 3, which norms no queries and keys."""
FAMILIES = (*UNETS, *JOINT, *VARIANTS)
_CHAT = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if not enable_thinking %}<think>

</think>

{% endif -%}
{%- endif -%}"""
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def make_family(family: str, tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Save a tiny model of `family`, of the same random weights each time; `tokenizer` gives its words."""
    with torch.random.fork_rng():
        torch.manual_seed(FAMILIES.index(family))
        make: Any = {"sdxl": _xl, "z_image": _z_image, "klein": _klein, "sd3": _sd3, "sd3_2b": _sd3_2b}
        make |= {"flux1": _flux, "schnell": lambda words: _flux(words, guidance_embeds=False)}
        pipeline: Any = make[family](tokenizer) if family in make else _plain(family, tokenizer)
    pipeline.save_pretrained(folder / family)
    return folder / family


def _plain(family: str, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    is_first = family == "sd1"
    text = _text_config(tokenizer, width=32, act="quick_gelu" if is_first else "gelu", layers=3 if is_first else 23)
    unet = UNet2DConditionModel(
        **_unet_config(cross_attention_dim=32, blocks=4, attention=(True, True, True, False)),
        attention_head_dim=2 if family == "sd1" else (1, 1, 2, 2),
        use_linear_projection=family != "sd1",
    )
    prediction = "v_prediction" if family == "sd2" else "epsilon"
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(**_BETAS, clip_sample=False, set_alpha_to_one=False, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _xl(tokenizer: CLIPTokenizer) -> StableDiffusionXLPipeline:
    unet = UNet2DConditionModel(
        **_unet_config(cross_attention_dim=32 + 24, blocks=3, attention=(False, True, True)),
        attention_head_dim=(1, 2, 2),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(scaling_factor=0.13025),
        text_encoder=CLIPTextModel(_text_config(tokenizer, width=32, act="quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, width=24, act="gelu", projection_dim=24)),
        tokenizer=tokenizer,
        tokenizer_2=padded_with_exclamation_marks(tokenizer),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**_BETAS, timestep_spacing="leading"),
        add_watermarker=False,
    )


def _flux(tokenizer: CLIPTokenizer, *, guidance_embeds: bool = True) -> FluxPipeline:
    words = t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=guidance_embeds,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
        vae=_vae(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=CLIPTextModel(_text_config(tokenizer, width=32, act="quick_gelu")),
        tokenizer=tokenizer,
        text_encoder_2=_t5(words, width=24),
        tokenizer_2=words,
        transformer=transformer,
    )


def _sd3_2b(tokenizer: CLIPTokenizer) -> StableDiffusion3Pipeline:
    return _sd3(tokenizer, dual_attention_layers=(), qk_norm=None)


def _sd3(tokenizer: CLIPTokenizer, **changes: Any) -> StableDiffusion3Pipeline:
    words = t5_tokenizer()
    kind = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}  # as in 3.5 medium: one layer is of the image alone
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=16,  # the inpainting pipeline takes no other number
        out_channels=16,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=16,
        pooled_projection_dim=32 + 24,
        pos_embed_max_size=16,
        **(kind | changes),
    )
    return StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(shift_factor=0.0609, scaling_factor=1.5305, latent_channels=16),
        text_encoder=CLIPTextModelWithProjection(_text_config(tokenizer, width=32, act="quick_gelu")),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer, width=24, act="gelu", projection_dim=24)),
        tokenizer_2=padded_with_exclamation_marks(tokenizer),
        text_encoder_3=_t5(words, width=64),
        tokenizer_3=words,
        transformer=transformer,
    )


def _z_image(_: CLIPTokenizer) -> ZImagePipeline:
    words = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 6, 6],
        axes_lens=[1024, 32, 32],
    )
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        vae=_vae(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=_qwen(Qwen3Model, words, layers=3),
        tokenizer=words,
        transformer=transformer,
    )


def _klein(_: CLIPTokenizer) -> Flux2KleinPipeline:
    words = qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=vae,
        text_encoder=_qwen(Qwen3ForCausalLM, words, layers=28),  # its states 9, 18 and 27 are read
        tokenizer=words,
        transformer=transformer,
    )


def _qwen(kind: type[PreTrainedModel], words: Qwen2Tokenizer, *, layers: int) -> Any:
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return kind(config)


def _t5(words: T5Tokenizer, *, width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(words), d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    return T5EncoderModel(config)


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Return a small tokenizer of Qwen's kind: bytes, a few words with the space before them, and a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ("Ġdog", "Ġcat", "Ġtea", "pot", "Ġteddy", "Ġbear", "Ġbeach", "Ġphoto")
    merges: list[Any] = []
    vocab = {"<|endoftext|>": 0} | {letter: i + 1 for i, letter in enumerate(letters)}
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocab:
                vocab[word[:end]] = len(vocab)
                merges.append((word[: end - 1], word[end - 1]))
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=merges, extra_special_tokens=special, model_max_length=1024)
    tokenizer.chat_template = _CHAT
    return tokenizer


def t5_tokenizer() -> T5Tokenizer:
    """Return a small tokenizer of T5's kind: pieces are whole common words, short pieces and letters."""
    words = ("a", "an", "and", "the", "of", "on", "photo", "dog", "cat", "ball", "hat", "teddy", "bear", "red", "beach")
    pieces = [*(f"▁{word}" for word in words), "tea", "pot", "er", "s", "ing"]
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    scores += [(piece, -2.0) for piece in pieces] + [(letter, -4.0) for letter in letters if letter not in pieces]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=512)


def padded_with_exclamation_marks(tokenizer: CLIPTokenizer) -> CLIPTokenizer:
    """Give the tokenizer as Stable Diffusion XL's second text encoder has it."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        other: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, pad_token="!")
    return other


def _text_config(
    tokenizer: CLIPTokenizer, *, width: int, act: str, projection_dim: int = 32, layers: int = 3
) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=projection_dim,
        num_hidden_layers=layers,
        num_attention_heads=4,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _unet_config(*, cross_attention_dim: int, blocks: int, attention: tuple[bool, ...]) -> dict[str, Any]:
    down = [f"{'CrossAttn' if has else ''}DownBlock2D" for has in attention]
    return {
        "sample_size": 8,
        "block_out_channels": (16, 16, 32, 32)[:blocks] if blocks == 4 else (16, 32, 32),
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "cross_attention_dim": cross_attention_dim,
        "down_block_types": tuple(down),
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(down)),
    }


def _vae(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )
