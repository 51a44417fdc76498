"""Writes models under the names of Stable Diffusion's first releases, the inverse of what diffusers converts from."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def save_single_file(pipeline: Any, file: Path) -> Path:
    """Save a pipeline's weights as one checkpoint."""
    save_file(
        {name: weight.clone(memory_format=torch.contiguous_format) for name, weight in first_layout(pipeline).items()},
        file,
    )
    return file


def first_layout(pipeline: Any) -> dict[str, Tensor]:
    """Return all weights of a pipeline, or of anything with such parts, by their first releases' names."""
    encoder, second = pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None)
    weights = _prefixed("model.diffusion_model.", unet_layout(pipeline.unet))
    weights |= _prefixed("first_stage_model.", vae_layout(pipeline.vae))
    if second is not None:
        weights |= _prefixed("conditioner.embedders.0.transformer.text_model.", encoder.state_dict())
        return weights | _prefixed("conditioner.embedders.1.model.", open_clip_layout(second))
    if encoder.config.hidden_act == "gelu":
        return weights | _prefixed("cond_stage_model.model.", open_clip_layout(encoder) | _dropped_layer(encoder))
    weights |= _prefixed("cond_stage_model.transformer.text_model.", encoder.state_dict())
    return weights | {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def unet_layout(unet: Any) -> dict[str, Tensor]:
    layers = unet.config["layers_per_block"] + 1
    with_attention = [name.startswith("CrossAttn") for name in unet.config["up_block_types"]]

    def rename(name: str) -> str:
        for new, old in _UNET.items():
            name = re.sub(rf"^{re.escape(new)}\.", f"{old}.", name)
        found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.*)", name)
        if found:
            way, block, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
            last = kind.endswith("samplers")
            number = block * layers + (layers - 1 if last else layer) + (way == "down")
            if last:
                rest = rest.replace("conv.", "op." if way == "down" else "conv.")
                place = 0 if way == "down" else 1 + with_attention[block]
            else:
                place = int(kind == "attentions")
            name = f"{'input' if way == 'down' else 'output'}_blocks.{number}.{place}.{rest}"
            if kind != "resnets":
                return name
        for new, old in _RESNET.items() if "transformer_blocks" not in name else ():
            name = re.sub(rf"\.{new}\.(weight|bias)$", rf".{old}.\1", name)
        return name

    return {rename(name): weight for name, weight in unet.state_dict().items()}


def vae_layout(vae: Any) -> dict[str, Tensor]:
    count = len(vae.config["block_out_channels"])

    def rename(name: str) -> str:
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{count - 1 - int(found[1])}", name)
        name = re.sub(r"(up\.\d+)\.resnets", r"\1.block", name)
        name = re.sub(r"(up\.\d+)\.upsamplers\.0", r"\1.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
        for new, old in _VAE_ATTENTION.items() if "attentions" in name else ():
            name = name.replace(f".{new}.", f".{old}.")
        name = name.replace("mid_block.attentions.0", "mid.attn_1")
        return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")

    def as_convolution(name: str, weight: Tensor) -> Tensor:
        is_linear = "attentions" in name and name.endswith("weight") and weight.ndim == 2
        return weight[:, :, None, None] if is_linear else weight

    return {rename(name): as_convolution(name, weight) for name, weight in vae.state_dict().items()}


def open_clip_layout(encoder: Any) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}
    for full_name, weight in encoder.state_dict().items():
        name = full_name.removeprefix("text_model.")
        for new, old in _OPEN_CLIP.items():
            name = name.replace(new, old)
        if found := re.match(r"(.*)self_attn\.([qkv])_proj\.(weight|bias)", name):
            joined.setdefault(f"{found[1]}attn.in_proj_{found[3]}", {})[found[2]] = weight
        elif name == "text_projection.weight":
            weights["text_projection"] = weight.T
        else:
            weights[name] = weight
    return weights | {name: torch.cat([parts[part] for part in "qkv"]) for name, parts in joined.items()}


def _dropped_layer(encoder: Any) -> dict[str, Tensor]:
    """Give what Stable Diffusion 2's files hold of the encoder, and never use."""
    last = f"transformer.resblocks.{encoder.config.num_hidden_layers - 1}."
    layout = open_clip_layout(encoder)
    extra = {name.replace(last, "transformer.resblocks.23."): w for name, w in layout.items() if name.startswith(last)}
    width = encoder.config.hidden_size
    return extra | {"text_projection": torch.zeros(width, width), "logit_scale": torch.zeros(())}


def _prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: weight for name, weight in weights.items()}
