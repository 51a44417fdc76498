"""Two of one class, sunglasses moved from dog to dog, then five, six and seven subjects: how-many.png."""

from pathlib import Path

from PIL import Image

import cones2

SEEDS = (0, 1)
LEFT, RIGHT = (0.04, 0.3, 0.48, 0.8), (0.52, 0.3, 0.96, 0.8)
ON_LEFT, ON_RIGHT = (0.1, 0.42, 0.42, 0.58), (0.58, 0.42, 0.9, 0.58)
MANY = ("rex", "mimi", "momo", "bobo", "pako", "lulu", "turbo")


def cells(count: int) -> list[tuple[float, float, float, float]]:
    """Boxes in two rows, the upper one the longer."""
    above = -(-count // 2)
    rows = [(0.03, above), (0.53, count - above)]
    return [
        (column / length + 0.01, top, (column + 1) / length - 0.01, top + 0.44)
        for top, length in rows
        for column in range(length)
    ]


def draw(
    backbone: cones2.Backbone, prompt: str, boxes: dict[str, tuple[float, float, float, float]]
) -> tuple[Image.Image, ...]:
    """Draw the example subjects of these names, and untaught words for others."""
    examples = cones2.EXAMPLES
    taught = {name: cones2.Subject(each.class_word, each.residual) for name, each in examples.items()}
    subjects = {name: taught.get(name) or cones2.Subject(name) for name in boxes}
    regions = {name: cones2.Region((cones2.Box(*box),), z=0 if name in examples else 1) for name, box in boxes.items()}
    layout = cones2.Layout(regions)
    settings = cones2.ComposeSettings(seeds=SEEDS, guidance_scale=4.0)
    steps = cones2.compose(backbone, prompt, subjects=subjects, layout=layout, settings=settings)
    return (cones2.draw_layout(layout, width=256, height=256), *cones2.finish(steps).pictures)


def main() -> None:
    """Draw a row for each, its layout first."""
    backbone = cones2.open_backbone("mini")
    dogs = {"rex": LEFT, "fido": RIGHT}
    rows = [cones2.Row("two dogs", draw(backbone, "a {rex} and a {fido} on the beach", dogs))]
    for wearer, other, place in (("rex", "fido", ON_LEFT), ("fido", "rex", ON_RIGHT)):
        prompt = f"a {{{wearer}}} wearing {{sunglasses}} and a {{{other}}}"
        pictures = draw(backbone, prompt, {**dogs, "sunglasses": place})
        rows.append(cones2.Row(f"sunglasses on {wearer}", pictures))
    for count in (5, 6, 7):
        prompt = ", ".join(f"a {{{name}}}" for name in MANY[:count])
        pictures = draw(backbone, prompt, dict(zip(MANY, cells(count), strict=False)))
        rows.append(cones2.Row(f"{count} subjects", pictures))
    cones2.write_picture(Path("how-many.png"), cones2.contact_sheet(rows), {})


if __name__ == "__main__":
    main()
