"""Put the trained model into the package in half precision, or take it back to train on.

`python recipes/mini/export.py` and `python recipes/mini/export.py --back`.
"""

import argparse
import shutil
from pathlib import Path

from diffusers import AutoencoderKL

from model import Mini, save_model

HERE = Path(__file__).parent
PACKAGE = HERE.parent.parent / "src/cones2/mini"
HEADS = "training_heads.safetensors"


def main() -> None:
    """Convert; the training heads stay out of the package, beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--back", action="store_true", help="fill the work folder from the package")
    arguments = parser.parse_args()
    folder = arguments.work / "mini"
    if arguments.back:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(PACKAGE, folder, dirs_exist_ok=True)
        shutil.copytree(PACKAGE / "vae", arguments.work / "vae", dirs_exist_ok=True)
        shutil.copy(HERE / HEADS, folder / HEADS)
        return
    vae = AutoencoderKL.from_pretrained(arguments.work / "vae").float()
    save_model(PACKAGE, Mini(folder, vae.config.latent_channels), vae, half=True)
    (PACKAGE / HEADS).replace(HERE / HEADS)


if __name__ == "__main__":
    main()
