"""`cones2 grid`: seeds by subjects by settings, in one labelled picture."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import messages, print_json, say
from cones2.cli.layout_options import (
    Auto,
    BoxTexts,
    FeatherTexts,
    LayoutFile,
    MaskTexts,
    PlaceTexts,
    PolygonTexts,
    WeightTexts,
    ZTexts,
)
from cones2.cli.options import (
    MORE,
    Device,
    Dtype,
    Json,
    Library,
    ModelConfig,
    PictureModel,
    PlainTexts,
    Prompt,
    StrengthTexts,
    SubjectTexts,
)
from cones2.cli.progress import waiting


def grid(
    out: Annotated[Path, typer.Option(help="A folder for the grid and its pictures.", metavar="DIR")],
    vary: Annotated[
        list[str],
        typer.Option(help="seed, strength.NAME, subject.NAME or a setting; the first runs across.", metavar="WHAT=A,B"),
    ],
    prompt: Prompt = None,
    subject: SubjectTexts = None,
    plain: PlainTexts = None,
    box: BoxTexts = None,
    polygon: PolygonTexts = None,
    mask: MaskTexts = None,
    place: PlaceTexts = None,
    layout: LayoutFile = None,
    auto_layout: Auto = False,
    z: ZTexts = None,
    feather: FeatherTexts = None,
    region_weight: WeightTexts = None,
    source: Annotated[Path | None, typer.Option("--from", help="Vary this picture.", metavar="PICTURE")] = None,
    model: PictureModel = None,
    strength: StrengthTexts = None,
    cell: Annotated[
        int, typer.Option(help="Pixels a picture has in the grid.", min=32, max=1024, metavar="N", rich_help_panel=MORE)
    ] = 256,
    library: Library = None,
    model_config: ModelConfig = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    r"""Draw every combination of some seeds, subjects and settings, and hang them on one labelled sheet.

    A setting is a field of ComposeSettings: steps, guidance_scale, layout_scale, preset, scheduler, width...

    Example: cones2 grid "a {rex} on the beach" --subject rex --out grids \
    --vary seed=0,1,2,3 --vary strength.rex=0,0.5,1 --vary preset=paper,official
    """
    with waiting("starting"):
        from cones2.cli.outputs import check_pictures_folder
        from cones2.cli.places import Places, check_acting
        from cones2.cli.sheets import Plan, read_axes
        from cones2.cli.wishes import Wish
        from cones2.composing.sizes import picture_aspect
        from cones2.guidance.presets import recurs

        shapes = {"boxes": box, "polygons": polygon, "masks": mask, "words": place}
        places = Places.of(**shapes, heights=z, feathers=feather, weights=region_weight, file=layout)
        wish = Wish.read(prompt, source, library=library)
        lay_out = partial(places.read, wish.prompt if auto_layout else None, recorded=wish.layout)
        axes = read_axes(vary, wish.library)
        plan = Plan.check(
            wish.prompt,
            axes,
            subjects=wish.subjects(subject or (), plain or (), strengths=strength or ()),
            layout=lay_out(),
            settings=wish.settings({}, seed=wish.made.seed if wish.made else None, count=None),
        )
        acting = ["layout_scale", "layout_effect", "layout_levels"]
        if not any(recurs(order.settings.preset) for order in plan.orders):
            acting.append("guided_steps")  # a sampler that recurs reads them without a layout, too
        check_acting(lay_out(), {f"--vary {axis.name}": axis for axis in axes if axis.name in acting})
        check_pictures_folder(out)
    with waiting("opening the model"):
        backbone = wish.open_backbone(model, device=device, dtype=dtype, model_config=model_config)
        plan = plan.placed(lay_out(aspect=picture_aspect(backbone, plan.orders[0].settings)))
    report = plan.carry_out(backbone, out, cell=cell)
    if as_json:
        print_json(report)
        return
    say(report["grid"])
    messages.print(f"{plan.count} pictures in {report['seconds']:.1f} s.", markup=False)
