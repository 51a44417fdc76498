"""Two of one class, sunglasses moved from dog to dog, then five, six and seven subjects: how-many.png."""

from typing import Any

import cones2

SEEDS = [0, 1]
LEFT, RIGHT = (0.04, 0.3, 0.48, 0.8), (0.52, 0.3, 0.96, 0.8)
ON_LEFT, ON_RIGHT = (0.1, 0.42, 0.42, 0.58), (0.58, 0.42, 0.9, 0.58)
MANY = ("rex", "mimi", "momo", "bobo", "pako", "lulu", "turbo")


def row(pipe: cones2.Cones2Pipeline, label: str, prompt: str, layout: Any) -> cones2.Row:
    """Draw a prompt for each seed, and the layout before them."""
    untaught = {"sunglasses": "sunglasses"} if "{sunglasses}" in prompt else {}
    output = pipe(prompt, layout, subjects=untaught, seed=SEEDS)
    drawn = cones2.draw_layout(output.layout or cones2.Layout({}), width=256, height=256)
    return cones2.Row(label, (drawn, *output.images))


def main() -> None:
    """Write how-many.png, a row for each prompt."""
    pipe = cones2.Cones2Pipeline.from_pretrained("mini")
    for name in ("fido", *MANY):
        pipe.load_subject(name, name)
    dogs = {"rex": LEFT, "fido": RIGHT}
    rows = [row(pipe, "two dogs", "a {rex} and a {fido} on the beach", dogs)]
    for wearer, other, place in (("rex", "fido", ON_LEFT), ("fido", "rex", ON_RIGHT)):
        prompt = f"a {{{wearer}}} wearing {{sunglasses}} and a {{{other}}}"
        layout = {**dogs, "sunglasses": place}
        rows.append(row(pipe, f"sunglasses on {wearer}", prompt, layout))
    for count in (5, 6, 7):
        prompt = ", ".join(f"a {{{name}}}" for name in MANY[:count])
        rows.append(row(pipe, f"{count} subjects", prompt, "auto"))
    cones2.contact_sheet(rows).save("how-many.png")


if __name__ == "__main__":
    main()
