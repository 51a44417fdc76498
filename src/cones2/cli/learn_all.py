"""`cones2 learn-all`: many subjects in one call."""

from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import print_json, print_rows
from cones2.cli.edge import FAILED
from cones2.cli.options import Device, Dtype, Json, Library, Model, ModelConfig, SaveMemory
from cones2.cli.progress import follow, waiting


def learn_all(
    manifest: Annotated[Path, typer.Argument(help="Names, photos and class words, in TOML.", metavar="MANIFEST")],
    model: Model = "mini",
    library: Library = None,
    model_config: ModelConfig = None,
    save_memory: SaveMemory = False,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Learn many subjects into your library; run it again to go on where it stopped.

    Subjects that are finished are skipped, and one that fails stops no other.

    Example: cones2 learn-all subjects.toml
    """
    with waiting("starting"):
        from dataclasses import asdict

        from cones2.backbones import open_backbone
        from cones2.learning.manifest import read_manifest
        from cones2.learning.many import LearnAllStep, learn_all
        from cones2.library import Library

        assignments = read_manifest(manifest)
        shelf = Library.open(library)
    with waiting(f"opening {model}"):
        backbone = open_backbone(model, device=device, dtype=dtype, model_config=model_config)

    def tell(step: LearnAllStep) -> str:
        return f"{step.name}, {step.number} of {step.count}" + (
            f", loss {step.learning.loss:.4f}" if step.learning else ""
        )

    steps = learn_all(backbone, assignments, shelf, save_memory=save_memory)
    outcomes = follow(steps, "learning", tell=tell, whole_steps=True).outcomes
    if as_json:
        print_json({"library": str(shelf.folder), "subjects": [asdict(outcome) for outcome in outcomes]})
    else:
        rows = [
            (
                each.name,
                each.class_word,
                each.state,
                "" if each.loss is None else f"{each.loss:.4f}",
                "" if each.displacement is None else f"{100 * each.displacement:.1f} %",
                f"{each.seconds:.0f} s",
                each.problem or " ".join(each.findings),
            )
            for each in outcomes
        ]
        print_rows(str(shelf.folder), ("subject", "class word", "", "loss", "others moved", "time", ""), rows)
    if any(outcome.state == "failed" for outcome in outcomes):
        raise typer.Exit(FAILED)
