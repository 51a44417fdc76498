"""Weights as a GPU run writes them, in few files, and back: `python recipes/mini/receive.py FOLDER`.

Reading fills the work folder's `mini` and `vae`, from which `export.py` fills the package.
"""

import argparse
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from export import PACKAGE
from model import Mini, save_model
from parts import Autoencoder

FILES = ("unet-1.safetensors", "unet-2.safetensors", "others.safetensors")


def write_weights(folder: Path, mini: Mini, vae: Autoencoder) -> None:
    """Write what ships, in half precision but for the text encoder, each file in one go."""
    unet = [*half_of(mini.unet).items()]
    middle = len(unet) // 2
    text = {name: value.detach().cpu().clone() for name, value in mini.text_encoder.state_dict().items()}
    parts = {"text": text, "heads": half_of(mini.heads), "vae": half_of(vae)}
    others = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
    for name, values in zip(FILES, (dict(unet[:middle]), dict(unet[middle:]), others), strict=True):
        save_file(values, folder / "partial")
        (folder / "partial").replace(folder / name)


def half_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's weights in half precision, on the CPU."""
    return {name: value.detach().half().cpu().contiguous() for name, value in module.state_dict().items()}


def read_weights(folder: Path, configs: Path = PACKAGE) -> tuple[Mini, Autoencoder]:
    """Read them into models of the shipped sizes."""
    unet, others = load_file(folder / FILES[0]) | load_file(folder / FILES[1]), load_file(folder / FILES[2])
    parts = {part: _part(others, part) for part in ("text", "heads", "vae")}
    vae = AutoencoderKL.from_config(AutoencoderKL.load_config(configs / "vae"))
    vae.load_state_dict(parts["vae"])
    mini = Mini(None, vae.config.latent_channels)
    mini.unet.load_state_dict(unet)
    mini.text_encoder.load_state_dict(parts["text"])
    mini.heads.load_state_dict(parts["heads"])
    return mini, vae


@torch.no_grad()
def soften_decoder(vae: Autoencoder, before: Autoencoder, share: float) -> None:
    """Put the decoder between `before`'s and its own, `share` of the way; both must decode the same latents."""
    earlier = before.state_dict()
    for name, value in vae.state_dict().items():
        if name.startswith(("decoder", "post_quant_conv")):
            value.copy_(earlier[name].lerp(value, share))


def _part(values: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(f"{part}/"): value for name, value in values.items() if name.startswith(f"{part}/")}


def main() -> None:
    """Fill the work folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--decoder", type=float, default=1.0, help="share of the way from the package's decoder")
    arguments = parser.parse_args()
    mini, vae = read_weights(arguments.folder)
    if arguments.decoder < 1:
        soften_decoder(vae, AutoencoderKL.from_pretrained(PACKAGE / "vae").float(), arguments.decoder)
    save_model(arguments.work / "mini", mini, deepcopy(vae), half=False)
    vae.save_pretrained(arguments.work / "vae")


if __name__ == "__main__":
    main()
