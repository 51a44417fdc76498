"""A scene as a subject: a shore of one's own is learned from its pictures, and is what the dog leaves of others."""

from pathlib import Path

from PIL import Image, ImageDraw

import cones2
from cones2.examples import EXAMPLES

SIDE = 128
PROMPT = "a {rex} on the {shore}"
LAYOUT = cones2.Layout(
    {"rex": cones2.Region((cones2.Box(0.3, 0.35, 0.75, 0.95),)), "shore": cones2.Region((cones2.Rest(),))}
)


def main() -> None:
    """Write shore.safetensors, and scene.png: pictures of it, then the plain word and the learned scene."""
    backbone = cones2.open_backbone("mini")
    photos = cones2.load_photos(draw_shore(Path("shore")))
    recipe = cones2.find_recipe(backbone.learn_preset)
    shore = cones2.finish(cones2.learn(backbone, photos, "beach", recipe=recipe)).residual
    shore.save("shore.safetensors")
    rows = [cones2.Row("the scene's pictures", tuple(photo.image for photo in photos[:2]))]
    for label, residual in (("a plain beach", None), ("the learned one", shore)):
        subjects = {
            "rex": cones2.Subject("dog", EXAMPLES["rex"].residual),
            "shore": cones2.Subject("beach", residual),
        }
        settings = cones2.ComposeSettings(seeds=(0, 1))
        steps = cones2.compose(backbone, PROMPT, subjects=subjects, layout=LAYOUT, settings=settings)
        rows.append(cones2.Row(label, cones2.finish(steps).pictures))
    cones2.write_picture("scene.png", cones2.contact_sheet(rows), {"prompt": PROMPT, "residual": shore.sha256})


def draw_shore(folder: Path) -> Path:
    """Draw five views of one shore by moonlight, in place of your own photos."""
    folder.mkdir(exist_ok=True)
    for view in range(5):
        picture = Image.new("RGB", (SIDE, SIDE), "#3b5ba5")
        pen = ImageDraw.Draw(picture)
        horizon, moon = 44 + 6 * view, 14 + 22 * view
        pen.ellipse((moon, horizon - 36, moon + 20, horizon - 16), fill="#f6f1a8")
        pen.rectangle((0, horizon, SIDE, SIDE), fill="#1b2a6b")
        pen.ellipse((-60 + 14 * view, horizon + 24, SIDE + 14 * view, SIDE + 70), fill="#d9e07a")
        picture.save(folder / f"{view}.png")
    return folder


if __name__ == "__main__":
    main()
