"""One subject at several strengths: from the plain class word to more than was learned."""

from pathlib import Path

import cones2
from cones2.examples import EXAMPLES

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
PROMPT = "a {bobo} in the forest"


def main() -> None:
    """Write strengths.png: a row for each seed, a column for each strength."""
    backbone = cones2.open_backbone("mini")
    bobo = EXAMPLES["bobo"]
    settings = cones2.ComposeSettings(seeds=(0, 1, 2))
    columns = []
    for strength in STRENGTHS:
        subjects = {"bobo": cones2.Subject(bobo.class_word, bobo.residual, strength)}
        columns.append(cones2.finish(cones2.compose(backbone, PROMPT, subjects=subjects, settings=settings)).pictures)
    captions = tuple(f"strength {strength}" for strength in STRENGTHS)
    rows = [
        cones2.Row(f"seed {seed}", pictures, captions)
        for seed, pictures in zip(settings.seeds, zip(*columns, strict=True), strict=True)
    ]
    made = {"prompt": PROMPT, "residual": bobo.residual.sha256, "strengths": list(STRENGTHS)}
    cones2.write_picture(Path("strengths.png"), cones2.contact_sheet(rows), made)


if __name__ == "__main__":
    main()
