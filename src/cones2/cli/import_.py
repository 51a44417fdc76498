"""`cones2 import`: a residual from the authors' file of it."""

from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import print_json, say
from cones2.cli.options import Json, ModelConfig, Replace
from cones2.cli.progress import waiting


def import_(
    file: Annotated[Path, typer.Argument(help="The residual.pt that the authors' script wrote.", metavar="FILE")],
    class_word: Annotated[str, typer.Option("--class", help="The word that it was learned at.", metavar="WORD")],
    model: Annotated[
        str,
        typer.Option(help="What it was learned on: a diffusers folder, .safetensors file or Hub id.", metavar="MODEL"),
    ],
    out: Annotated[Path, typer.Option(help="The residual to write: NAME.safetensors.", metavar="FILE")],
    replace: Replace = False,
    model_config: ModelConfig = None,
    as_json: Json = False,
) -> None:
    """Turn a residual of the authors' code (ali-vilab/Cones-V2) into one of ours. Nothing in its file is executed.

    Example: cones2 import mug/residual.pt --class mug --model stable-diffusion-2-1 --out mug.safetensors
    """
    with waiting("starting"):
        from cones2.authors.residual import import_residual
        from cones2.authors.tensor import read_authors_file
        from cones2.backbones import open_backbone
        from cones2.cli.outputs import check_residual
        from cones2.files import make_folder

        check_residual(out, replace=replace)
        read_authors_file(file)  # what is wrong with it is told before the model is opened
    with waiting(f"opening {model}"):
        backbone = open_backbone(model, device="cpu", model_config=model_config)
        residual = import_residual(backbone, file, class_word)
    make_folder(out.parent)
    residual.save(out)
    if as_json:
        about = {"class_word": residual.class_word, "tokens": list(residual.tokens), "backbone": backbone.name}
        print_json({"residual": str(out), "sha256": residual.sha256, **about})
    else:
        say(f"{out}: {residual.class_word!r} of {file}, for {backbone.name}.")
