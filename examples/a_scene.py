"""A scene as a subject: a shore is learned from its pictures, and drawn where the dog leaves room for it."""

from PIL import Image, ImageDraw

import cones2

SIDE = 128


def main() -> None:
    """Write shore.safetensors, and scene.png: pictures of the shore, then the plain word and the learned scene."""
    pipe = cones2.Cones2Pipeline.from_pretrained("mini")
    pipe.load_subject("rex", "rex")
    views = draw_shore()
    shore = pipe.learn(views, "beach")
    shore.save("shore.safetensors")
    layout = {"rex": (0.3, 0.35, 0.75, 0.95), "shore": "rest"}
    rows = [cones2.Row("the shore's pictures", tuple(views[:2]))]
    for label, scene in (("a plain beach", "beach"), ("the learned one", shore)):
        output = pipe("a {rex} on the {shore}", layout, subjects={"shore": scene}, seed=[0, 1])
        rows.append(cones2.Row(label, tuple(output.images)))
    cones2.contact_sheet(rows).save("scene.png")


def draw_shore() -> list[Image.Image]:
    """Draw five views of one shore by moonlight, in place of your own photos."""
    views = []
    for number in range(5):
        picture = Image.new("RGB", (SIDE, SIDE), "#3b5ba5")
        pen = ImageDraw.Draw(picture)
        horizon, moon = 44 + 6 * number, 14 + 22 * number
        pen.ellipse((moon, horizon - 36, moon + 20, horizon - 16), fill="#f6f1a8")
        pen.rectangle((0, horizon, SIDE, SIDE), fill="#1b2a6b")
        pen.ellipse((-60 + 14 * number, horizon + 24, SIDE + 14 * number, SIDE + 70), fill="#d9e07a")
        views.append(picture)
    return views


if __name__ == "__main__":
    main()
