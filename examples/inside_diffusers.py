"""Subjects and a layout inside diffusers' own pipelines: text to image, then image to image."""

from diffusers import StableDiffusionImg2ImgPipeline

import cones2
from cones2.examples import EXAMPLES

PROMPT = "a {mimi} and a {hat} in the kitchen"
LAYOUT = cones2.Layout.from_numbers({"mimi": [(0.05, 0.3, 0.5, 0.95)], "hat": [(0.55, 0.4, 0.95, 0.8)]})


def main() -> None:
    """Write drawn.png and redrawn.png."""
    draw = cones2.open_backbone("mini").pipeline()
    redraw = StableDiffusionImg2ImgPipeline(**draw.components, requires_safety_checker=False)
    subjects = {"mimi": cones2.Subject("cat", EXAMPLES["mimi"].residual), "hat": cones2.Subject("hat")}
    with cones2.adapt(draw, PROMPT, subjects=subjects, layout=LAYOUT) as inputs:
        drawn = draw(**inputs, num_inference_steps=30).images[0]
        redrawn = redraw(**inputs, image=drawn, strength=0.6, num_inference_steps=30).images[0]
    drawn.save("drawn.png")
    redrawn.save("redrawn.png")


if __name__ == "__main__":
    main()
