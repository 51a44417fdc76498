"""Learn a subject from its photos, show progress, and put it beside one that is learned already."""

from pathlib import Path

import cones2
from cones2.examples import EXAMPLES

LAYOUT = cones2.Layout.from_numbers({"rex": [(0.05, 0.25, 0.5, 0.95)], "momo": [(0.55, 0.5, 0.9, 0.9)]})
PROMPT = "a {rex} and a {momo} on the beach"


def main() -> None:
    """Write rex.safetensors and beach-0.png ... beach-3.png."""
    backbone = cones2.open_backbone("mini")
    rex = learn(backbone, EXAMPLES["rex"].photos, "dog")
    rex.save(Path("rex.safetensors"))
    subjects = {
        "rex": cones2.Subject("dog", rex),
        "momo": cones2.Subject("mug", EXAMPLES["momo"].residual),
    }
    settings = cones2.ComposeSettings(seeds=(0, 1, 2, 3), guidance_scale=4.0)  # suits mini; the default is 7.5
    order = {"subjects": subjects, "layout": LAYOUT, "settings": settings}
    pictures = cones2.finish(cones2.compose(backbone, PROMPT, **order)).pictures
    for seed, picture in zip(settings.seeds, pictures, strict=True):
        made = cones2.picture_record(backbone, PROMPT, seed, **order)
        cones2.write_picture(Path(f"beach-{seed}.png"), picture, made)


def learn(backbone: cones2.Backbone, photos: tuple[cones2.Photo, ...], class_word: str) -> cones2.Residual:
    """Learn with the recipe that suits the backbone, telling the loss now and then."""
    recipe = cones2.find_recipe(backbone.learn_preset)
    for step in cones2.learn(backbone, photos, class_word, recipe=recipe):
        if step.step % 50 == 0:
            print(f"step {step.step} of {step.steps}: loss {step.loss:.3f}")
    return step.residual


if __name__ == "__main__":
    main()
