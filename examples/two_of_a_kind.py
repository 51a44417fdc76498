"""Two subjects of one class word in one picture: the names keep them apart, not the words."""

from pathlib import Path

import cones2
from cones2.examples import EXAMPLES

LEFT, RIGHT = (0.03, 0.2, 0.48, 0.95), (0.52, 0.2, 0.97, 0.95)
PROMPT = "a {rex} and a {fido} in the snow"


def main() -> None:
    """Write two-dogs.png: both orders of the boxes, the same seeds."""
    backbone = cones2.open_backbone("mini")
    subjects = {name: cones2.Subject("dog", EXAMPLES[name].residual) for name in ("rex", "fido")}
    settings = cones2.ComposeSettings(seeds=(0, 1, 2))
    rows = []
    for boxes in ({"rex": [LEFT], "fido": [RIGHT]}, {"rex": [RIGHT], "fido": [LEFT]}):
        layout = cones2.Layout.from_numbers(boxes)
        drawn = cones2.finish(cones2.compose(backbone, PROMPT, subjects=subjects, layout=layout, settings=settings))
        where = "rex left, fido right" if boxes["rex"] == [LEFT] else "fido left, rex right"
        rows.append(cones2.Row(where, (cones2.draw_layout(layout), *drawn.pictures)))
    cones2.write_picture(Path("two-dogs.png"), cones2.contact_sheet(rows), {"prompt": PROMPT})


if __name__ == "__main__":
    main()
