"""A layout and a subject inside diffusers' own pipelines: text to image, then image to image."""

from diffusers import StableDiffusionImg2ImgPipeline

import cones2
from cones2.examples import EXAMPLES

LAYOUT = cones2.Layout.from_numbers({"mimi": [(0.05, 0.3, 0.5, 0.95)], "hat": [(0.55, 0.4, 0.95, 0.8)]})


def main() -> None:
    """Write drawn.png and redrawn.png."""
    backbone = cones2.open_backbone("mini")
    subjects = {"mimi": cones2.Subject("cat", EXAMPLES["mimi"].residual), "hat": cones2.Subject("hat")}
    class_words = {name: subject.class_word for name, subject in subjects.items()}
    parsed = cones2.parse_prompt("a {mimi} and a {hat} in the kitchen", class_words)
    prompt = cones2.tokenize_prompt(parsed, backbone.tokenizer)
    embeddings = cones2.embed_prompt(backbone, prompt, subjects)
    guidance = cones2.LayoutGuidance(LAYOUT, prompt.spans, backbone.scheduler.alphas_cumprod)

    draw = backbone.pipeline()
    redraw = StableDiffusionImg2ImgPipeline(**draw.components, requires_safety_checker=False)
    with cones2.edited_cross_attention(backbone.unet, guidance, conditional=[False, True]):
        drawn = draw(prompt_embeds=embeddings, num_inference_steps=30).images[0]
        redrawn = redraw(prompt_embeds=embeddings, image=drawn, strength=0.6, num_inference_steps=30).images[0]
    drawn.save("drawn.png")
    redrawn.save("redrawn.png")


if __name__ == "__main__":
    main()
