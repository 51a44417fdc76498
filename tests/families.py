"""Makes tiny models of each supported family, with random weights, as diffusers folders."""

# mypy: allow-untyped-calls

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

UNETS = ("sd1", "sd2-base", "sd2", "sdxl")
FAMILIES = (*UNETS, "flux")
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def make_family(family: str, tokenizer: CLIPTokenizer, folder: Path) -> Path:
    """Save a tiny model of `family`, of the same random weights each time; `tokenizer` gives its words."""
    with torch.random.fork_rng():
        torch.manual_seed(FAMILIES.index(family))
        pipeline: Any = {"sdxl": _xl, "flux": _flux}.get(family, lambda words: _plain(family, words))(tokenizer)
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


def _flux(tokenizer: CLIPTokenizer) -> FluxPipeline:
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
        guidance_embeds=True,
    )
    encoder = T5Config(
        vocab_size=len(words), d_model=24, d_kv=8, d_ff=48, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(shift_factor=0.1159, scaling_factor=0.3611),
        text_encoder=CLIPTextModel(_text_config(tokenizer, width=32, act="quick_gelu")),
        tokenizer=tokenizer,
        text_encoder_2=T5EncoderModel(encoder),
        tokenizer_2=words,
        transformer=transformer,
    )


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


def _vae(**options: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )
