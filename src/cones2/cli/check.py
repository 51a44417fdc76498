"""`cones2 check`: are these photos ready to be learned from?"""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import print_json, print_table, say, waiting
from cones2.cli.options import Json, Model, ModelConfig, open_model, option
from cones2.errors import counted

Photos = Annotated[
    list[Path], typer.Argument(help="A folder of photos of one subject, or the photos.", metavar="PHOTO...")
]
Masks = Annotated[
    Path | None, option("--masks", "A folder of grey pictures, named as the photos, white on the subject.", "DIR")
]


def check(
    photos: Photos,
    masks: Masks = None,
    model: Model = "mini",
    model_config: ModelConfig = None,
    as_json: Json = False,
) -> None:
    """Check whether photos are ready to be learned from, and say what would make them better.

    Example: cones2 check photos/rex
    """
    with waiting("starting"):
        from cones2.learning.data import judge_photos
        from cones2.photos import load_photos

        loaded = load_photos(photos, masks=masks)
    pipe = open_model(model, device="cpu", config=model_config)
    with waiting("looking at the photos"):
        report = judge_photos(pipe.pipeline, pipe.facts, loaded)
    if as_json:
        facts = [asdict(each) | {"path": str(each.path)} for each in report.photos]
        told = [asdict(finding) | {"photos": list(finding.photos)} for finding in report.findings]
        print_json({"size": report.size, "photos": facts, "findings": told})
        return
    rows = {each.path.name: f"{each.width}x{each.height}, sharpness {each.sharpness:.0f}" for each in report.photos}
    print_table(", ".join(map(str, photos)), rows)
    for finding in report.findings:
        say(finding.text)
    say(f"{counted(len(report.photos), 'photo')}, {counted(len(report.findings), 'remark')}.")
