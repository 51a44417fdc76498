"""`cones2 check`: are these photos ready to be learned from?"""

from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import print_json, print_table, say
from cones2.cli.options import Model, ModelConfig
from cones2.cli.progress import waiting


def check(
    photos: Annotated[Path, typer.Argument(help="A folder of photos of one subject, or one photo.", metavar="PHOTOS")],
    masks: Annotated[Path | None, typer.Option(help="The folder of their masks.", metavar="DIR")] = None,
    model: Model = "mini",
    model_config: ModelConfig = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")] = False,
) -> None:
    """Tell whether photos are ready to be learned from, and what would make them better.

    Example: cones2 check photos/rex
    """
    with waiting("starting"):
        from cones2.backbones import open_backbone
        from cones2.cli.readiness import as_json_values, rows
        from cones2.learning.data import warn_if_undrawable
        from cones2.photos import load_photos, photo_report

        loaded = load_photos(photos, masks=masks)
    with waiting(f"opening {model}"):
        backbone = open_backbone(model, device="cpu", model_config=model_config)
    with waiting("looking at the photos"):
        report = photo_report(loaded, size=min(backbone.default_size))
        warn_if_undrawable(backbone, loaded)
    if as_json:
        print_json(as_json_values(report))
    else:
        print_table(str(photos), rows(report))
        for finding in report.findings:
            say(finding.text)
        say(f"{len(report.photos)} photos, {len(report.findings) or 'no'} remarks.")
    report.check()
