"""`cones2 compose`: pictures of subjects, each where the layout puts it."""

from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import messages, print_json, say
from cones2.cli.options import MORE, Device, Dtype, Json, Model
from cones2.cli.progress import waiting


def compose(
    prompt: Annotated[str, typer.Argument(help="The prompt, with each subject's name in braces.", metavar="PROMPT")],
    out: Annotated[Path, typer.Option(help="A folder, or one .png file.", metavar="DIR_OR_FILE")],
    subject: Annotated[
        list[str] | None, typer.Option(help="A learned subject; can be repeated.", metavar="NAME=FILE")
    ] = None,
    plain: Annotated[
        list[str] | None, typer.Option(help="An untaught word that gets a place.", metavar="NAME[=WORD]")
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(
            help="Where it stands, in 0..1 from the top left; two of one name unite.",
            metavar="NAME=XMIN,YMIN,XMAX,YMAX",
        ),
    ] = None,
    layout: Annotated[Path | None, typer.Option(help="Boxes from a JSON file.", metavar="FILE")] = None,
    model: Model = "mini",
    seed: Annotated[int, typer.Option(help="Of the first picture.", metavar="N")] = 0,
    count: Annotated[int, typer.Option(help="Pictures, of the seeds N, N+1, ...", min=1, metavar="N")] = 1,
    steps: Annotated[int, typer.Option(help="Of the scheduler.", metavar="N")] = 50,
    strength: Annotated[
        list[str] | None, typer.Option(help="How much of a subject's residual: rex=1.0.", metavar="NAME=X")
    ] = None,
    negative: Annotated[str, typer.Option(help="What not to show.", metavar="TEXT")] = "",
    guidance_scale: Annotated[
        float, typer.Option(help="How closely to follow the prompt.", metavar="X", rich_help_panel=MORE)
    ] = 7.5,
    layout_scale: Annotated[
        float, typer.Option(help="How closely to follow the layout; 0 is off.", metavar="X", rich_help_panel=MORE)
    ] = 1.0,
    preset: Annotated[
        str,
        typer.Option(
            help="How the layout acts: paper, official or official-layout.", metavar="NAME", rich_help_panel=MORE
        ),
    ] = "paper",
    scheduler: Annotated[
        str | None,
        typer.Option(help="ddim, euler, dpm++ and more; default: the preset's.", metavar="NAME", rich_help_panel=MORE),
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="In pixels; default: the model's.", metavar="W", rich_help_panel=MORE)
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="In pixels; default: the model's.", metavar="H", rich_help_panel=MORE)
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Use residuals of another model of the same width.", rich_help_panel=MORE),
    ] = False,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    r"""Draw your subjects in one picture, each in its place.

    Example: cones2 compose "a {rex} and a {cup} on the beach" \
    --subject rex=rex.safetensors --box rex=0.05,0.25,0.5,0.95 \
    --subject cup=cup.safetensors --box cup=0.55,0.5,0.9,0.9 --out pictures
    """
    with waiting("starting"):
        from cones2.backbones import open_backbone
        from cones2.cli.orders import Order, read_layout, read_subjects
        from cones2.cli.outputs import Output
        from cones2.composing.loop import ComposeSettings

        settings = ComposeSettings(
            seeds=tuple(range(seed, seed + count)),
            steps=steps,
            guidance_scale=guidance_scale,
            layout_scale=layout_scale,
            height=height,
            width=width,
            negative_prompt=negative,
            scheduler=scheduler,
            preset=preset,
            force=force,
        )
        subjects = read_subjects(subject or (), plain or (), strengths=strength or ())
        order = Order(prompt, subjects, read_layout(box or (), layout), settings)
        output = Output.check(out, count=count)
    with waiting(f"opening {model}"):
        backbone = open_backbone(model, device=device, dtype=dtype)
    report = order.carry_out(backbone, output)
    if as_json:
        print_json(report)
        return
    for picture in report["pictures"]:
        say(picture["path"])
    messages.print(f"{count} of {report['text']!r} in {report['seconds']:.1f} s.", markup=False)
