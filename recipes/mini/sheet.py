"""Draw fixed prompts with fixed seeds, to be looked at.

`python recipes/mini/sheet.py recipes/mini/work/mini sheet.png`
"""

import argparse
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image

PROMPTS = (
    "a photo of a dog",
    "a red car on the beach",
    "an owl in the forest",
    "a teddy bear in the kitchen",
    "a blue cat and a yellow ball in the snow",
    "a cat wearing sunglasses in the city",
    "a green striped mug and a pink hat at night",
    "a dog, a backpack and a purple teddy bear on the beach",
)
SEEDS = (0, 1)


def main(folder: Path, out: Path, size: int = 128) -> None:
    """Draw a column for each prompt and a row for each seed."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.unet.float()
    pipeline.vae.float()
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    sheet = Image.new("RGB", (size * len(PROMPTS), size * len(SEEDS)))
    for row, seed in enumerate(SEEDS):
        generators = [torch.Generator().manual_seed(seed) for _ in PROMPTS]
        settings = {"num_inference_steps": 20, "guidance_scale": 5.0, "height": size, "width": size}
        for column, image in enumerate(pipeline(list(PROMPTS), generator=generators, **settings).images):
            sheet.paste(image, (column * size, row * size))
    sheet.save(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=128)
    main(**vars(parser.parse_args()))
