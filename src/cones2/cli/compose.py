"""`cones2 compose`: pictures of subjects, each where the layout puts it."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import messages, print_json, say
from cones2.cli.layout_options import (
    ACTING,
    Auto,
    BoxTexts,
    Effect,
    FeatherTexts,
    GuidedSteps,
    LayoutFile,
    Levels,
    MaskTexts,
    PlaceTexts,
    PolygonTexts,
    SaveLayout,
    WeightTexts,
    ZTexts,
)
from cones2.cli.options import (
    MORE,
    Device,
    Dtype,
    Json,
    Latents,
    Library,
    ModelConfig,
    Official,
    PictureModel,
    PlainTexts,
    Prompt,
    StrengthTexts,
    SubjectTexts,
)
from cones2.cli.progress import waiting

_PICTURES = Path("pictures")


def compose(
    prompt: Prompt = None,
    out: Annotated[
        Path, typer.Option(help="A folder, where nothing is replaced, or one .png file.", metavar="DIR_OR_FILE")
    ] = _PICTURES,
    subject: SubjectTexts = None,
    plain: PlainTexts = None,
    source: Annotated[
        Path | None, typer.Option("--from", help="Draw this picture again, but for options given.", metavar="PICTURE")
    ] = None,
    model: PictureModel = None,
    seed: Annotated[int | None, typer.Option(help="Of the first picture.", metavar="N", show_default="0")] = None,
    count: Annotated[
        int | None,
        typer.Option(help="Pictures, of the seeds N, N+1, ...", min=1, metavar="N", show_default="1"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Of the scheduler.", metavar="N", show_default="50")] = None,
    strength: StrengthTexts = None,
    negative_prompt: Annotated[str | None, typer.Option("--negative", help="What not to show.", metavar="TEXT")] = None,
    box: BoxTexts = None,
    polygon: PolygonTexts = None,
    mask: MaskTexts = None,
    layout: LayoutFile = None,
    place: PlaceTexts = None,
    auto_layout: Auto = False,
    save_layout: SaveLayout = None,
    z: ZTexts = None,
    feather: FeatherTexts = None,
    region_weight: WeightTexts = None,
    during: Annotated[
        list[str] | None,
        typer.Option(
            help="The part of the steps in which a subject's residual acts: rex=0,0.6.",
            metavar="NAME=START,END",
            rich_help_panel=MORE,
        ),
    ] = None,
    subject_negative: Annotated[
        list[str] | None,
        typer.Option(
            help="What one subject should not show: rex=grey. Its own region alone sees it.",
            metavar="NAME=TEXT",
            rich_help_panel=MORE,
        ),
    ] = None,
    attention: Annotated[
        bool,
        typer.Option(
            "--attention",
            help="Tell where the attention to each subject went, and draw it beside the picture.",
            rich_help_panel=MORE,
        ),
    ] = False,
    guidance_scale: Annotated[
        float | None,
        typer.Option(help="How closely to follow the prompt.", metavar="X", show_default="7.5", rich_help_panel=MORE),
    ] = None,
    guidance_rescale: Annotated[
        float | None,
        typer.Option(
            help="Against over-saturated colours: 0 is off, 0.7 usual.",
            metavar="X",
            show_default="0.0",
            rich_help_panel=MORE,
        ),
    ] = None,
    guidance_parallel: Annotated[
        float | None,
        typer.Option(
            help="What share to keep of the part of guidance that over-saturates colours: 1 all, 0 none.",
            metavar="X",
            show_default="1, mini's subjects 0",
            rich_help_panel=MORE,
        ),
    ] = None,
    layout_scale: Annotated[
        float | None,
        typer.Option(
            help="How closely to follow the layout; 0 is off.", metavar="X", show_default="1.0", rich_help_panel=ACTING
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="How the layout acts: paper, official or official-layout.",
            metavar="NAME",
            show_default="paper",
            rich_help_panel=ACTING,
        ),
    ] = None,
    layout_effect: Effect = None,
    layout_levels: Levels = None,
    guided_steps: GuidedSteps = None,
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
        bool | None,
        typer.Option("--force", help="Use residuals of another model of the same width.", rich_help_panel=MORE),
    ] = None,
    official: Official = None,
    latents: Latents = None,
    library: Library = None,
    model_config: ModelConfig = None,
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
        from cones2.cli.details import with_details
        from cones2.cli.official import OfficialWish, refuse_beside
        from cones2.cli.outputs import Output, check_file
        from cones2.cli.places import Places, check_acting, check_saving, read_levels, write_layout
        from cones2.cli.wishes import Wish
        from cones2.composing.latents import read_latents
        from cones2.composing.sizes import picture_aspect
        from cones2.guidance.presets import recurs

        if latents is not None:
            check_file(latents, suffix=".safetensors", read=read_latents, option="--latents")
        values = {
            "steps": steps,
            "guidance_scale": guidance_scale,
            "guidance_rescale": guidance_rescale,
            "guidance_parallel": guidance_parallel,
            "layout_scale": layout_scale,
            "layout_effect": layout_effect,
            "layout_levels": read_levels(layout_levels),
            "guided_steps": guided_steps,
            "height": height,
            "width": width,
            "negative_prompt": negative_prompt,
            "scheduler": scheduler,
            "preset": preset,
            "force": force,
        }
        shapes = {"boxes": box, "polygons": polygon, "masks": mask, "words": place}
        places = Places.of(**shapes, heights=z, feathers=feather, weights=region_weight, file=layout)
        if official is None:
            wish = Wish.read(prompt, source, library=library)
            lay_out = partial(places.read, wish.prompt if auto_layout else None, recorded=wish.layout)
            subjects = wish.subjects(subject or (), plain or (), strengths=strength or ())
            order = wish.order(
                with_details(subjects, during=during or (), negatives=subject_negative or ()),
                lay_out(),
                wish.settings(values, seed=seed, count=count),
                again=seed is None and count is None,
            )
            order = replace(order, measure_attention=attention)
            acting: dict[str, object] = {
                "--layout-scale": layout_scale,
                "--layout-effect": layout_effect,
                "--layout-levels": layout_levels,
            }
            if not recurs(order.settings.preset):  # its sampler reads the guided steps without a layout, too
                acting["--guided-steps"] = guided_steps
            check_acting(order.layout, acting)
            output = Output.check(out, count=order.count, also=("attention",) if attention else ())
            if save_layout:
                check_saving(order.layout, save_layout)
        else:
            whom = {"PROMPT": prompt, "--from": source, "--subject": subject, "--plain": plain, "--strength": strength}
            where = {**places.given, "--auto-layout": auto_layout, "--save-layout": save_layout}
            how = {"--during": during, "--subject-negative": subject_negative, "--attention": attention}
            refuse_beside("--official", {**whom, **where, **how, "--preset": preset, "--scheduler": scheduler})
            config = OfficialWish.read(official, values, seed=seed, count=count)
            output = Output.check(out, count=len(config.seeds))
    with waiting("opening the model"):
        if official is None:
            backbone = wish.open_backbone(model, device=device, dtype=dtype, model_config=model_config)
            order = replace(order, layout=lay_out(aspect=picture_aspect(backbone, order.settings)))
        else:
            backbone = open_backbone(model or "mini", device=device, dtype=dtype, model_config=model_config)
            order = config.order(backbone)
    if save_layout and order.layout:
        write_layout(order.layout, save_layout)
    report = order.carry_out(backbone, output, latents=latents)
    if as_json:
        print_json(report)
        return
    for picture in report["pictures"]:
        say(picture["path"])
        for reading in picture["attention"]["subjects"].values() if attention else ():
            say(f"  {reading['reading']}")
    messages.print(f"{order.count} of {report['text']!r} in {report['seconds']:.1f} s.", markup=False)
