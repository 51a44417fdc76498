"""`cones2 compose`: pictures of subjects, each where the layout puts it."""

import time
from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cones2.cli import options as opt
from cones2.cli.console import note, print_json, say, waiting
from cones2.cli.layout import Places, read_size
from cones2.cli.options import ACTING, MODEL, OUTPUT, SUBJECTS, numbers, open_model, option, read_job, read_seed
from cones2.errors import SettingsError

if TYPE_CHECKING:
    from cones2.cli.outputs import Pictures
    from cones2.cli.request import Drawn, Request
    from cones2.layout import Layout
    from cones2.pipeline import Cones2Pipeline

_PICTURES = Path("pictures")
_DURING = "The part of the steps in which a residual acts: rex=0,0.6."
_NEGATIVE = "What one subject should not show: rex=grey. Only its own region sees it."
_ATTENTION = "Report where the attention to each subject went, and draw it beside the picture."
_BATCH = 4  # pictures drawn at once: more need more memory, and show nothing for longer


def compose(
    prompt: opt.Prompt = None,
    subject: opt.SubjectTexts = None,
    plain: opt.PlainTexts = None,
    place: opt.PlaceTexts = None,
    box: opt.BoxTexts = None,
    layout: opt.LayoutFile = None,
    source: Annotated[
        Path | None, option("--from", "Draw this picture again, apart from what else is given.", "PICTURE")
    ] = None,
    model: opt.PictureModel = None,
    seed: Annotated[
        int | None, option("--seed", "Of the first picture; or random.", "N", show_default="0", parser=read_seed)
    ] = None,
    count: Annotated[
        int | None, option("--count -n", "Pictures, of the seeds N, N+1...", "N", min=1, show_default="1")
    ] = None,
    steps: Annotated[int | None, option("--steps", "Of the scheduler.", "N", show_default="50")] = None,
    guidance_scale: Annotated[
        float | None,
        option("--guidance-scale", "How closely to follow the prompt; default: what suits the model.", "X"),
    ] = None,
    negative: Annotated[str | None, option("--negative", "What not to show.", "TEXT")] = None,
    size: Annotated[str | None, option("--size", "In pixels; default: the model's.", "WxH")] = None,
    out: Annotated[Path, option("--out -o", "A folder, or one .png file.", "DIR_OR_FILE")] = _PICTURES,
    config: Annotated[  # noqa: ARG001 - it acts when it is read
        Path | None,
        option("--config", "Options from a TOML file; typed ones win.", "FILE", is_eager=True, callback=read_job),
    ] = None,
    strength: opt.StrengthTexts = None,
    during: Annotated[opt.Texts, option("--during", _DURING, "NAME=START,END", SUBJECTS)] = None,
    subject_negative: Annotated[opt.Texts, option("--subject-negative", _NEGATIVE, "NAME=TEXT", SUBJECTS)] = None,
    force: Annotated[
        bool | None, option("--force", "Use residuals of another model of the same width.", panel=SUBJECTS)
    ] = None,
    library: opt.Library = None,
    polygon: opt.PolygonTexts = None,
    mask: opt.MaskTexts = None,
    z: opt.ZTexts = None,
    feather: opt.FeatherTexts = None,
    region_weight: opt.WeightTexts = None,
    auto_layout: opt.Auto = False,
    layout_scale: Annotated[
        float | None, option("--layout-scale", "How closely to follow the layout; 0 is off; usually 1.", "X", ACTING)
    ] = None,
    preset: Annotated[str | None, option("--preset", "paper, the default, or cones_v2.", "NAME", ACTING)] = None,
    layout_effect: Annotated[
        str | None, option("--layout-effect", "strengthen or weaken alone, or both.", "NAME", ACTING)
    ] = None,
    layout_levels: Annotated[
        str | None, option("--layout-levels", "Act on these of the UNet's grids, 0 the finest.", "N,N,...", ACTING)
    ] = None,
    layout_blocks: Annotated[
        str | None, option("--layout-blocks", "Act in these blocks of a joint transformer.", "N,N-N,...", ACTING)
    ] = None,
    guided_steps: Annotated[int | None, option("--guided-steps", "Act in the first N steps only.", "N", ACTING)] = None,
    scheduler: Annotated[
        str | None, option("--scheduler", "ddim, euler_a, 'DPM++ 2M Karras'...; default: the model's.", "NAME", MODEL)
    ] = None,
    true_cfg_scale: Annotated[
        float | None, option("--true-cfg-scale", "FLUX.1's guidance for negative texts: above 1.", "X", MODEL)
    ] = None,
    model_config: opt.ModelConfig = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    compile: opt.Compile = False,  # noqa: A002  # the library's word
    replace: opt.Replace = False,
    attention: Annotated[bool, option("--attention", _ATTENTION, panel=OUTPUT)] = False,
    save_layout: Annotated[
        Path | None, option("--save-layout", "Write the layout to a .json file, too.", "FILE", OUTPUT)
    ] = None,
    embed: Annotated[
        bool,
        option(
            "--embed/--no-embed", "Keep the residuals in the pictures, for --from.", panel=OUTPUT, show_default=False
        ),
    ] = True,
    latents: Annotated[
        Path | None, option("--latents", "Keep the latents, too: NAME.safetensors.", "FILE", OUTPUT)
    ] = None,
    official: Annotated[
        Path | None,
        option("--official", "Draw what a config of the authors' code asks for.", "FILE", "The authors' code"),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    r"""Draw your subjects in one picture, each in its place.

    Example: cones2 compose "a {rex} and a {cup} on the beach" --subject rex --place rex=left --plain cup=mug
    """
    given: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "true_cfg_scale": true_cfg_scale,
        "negative_prompt": negative,
        "layout_scale": layout_scale,
        "preset": preset,
        "layout_effect": layout_effect,
        "layout_levels": layout_levels and numbers("--layout-levels", layout_levels),
        "layout_blocks": layout_blocks and numbers("--layout-blocks", layout_blocks),
        "guided_steps": guided_steps,
        "force": force,
        **(dict(zip(("width", "height"), read_size(size, multiple=8), strict=True)) if size else {}),
    }
    given = {name: value for name, value in given.items() if value is not None}
    places = Places(box, polygon, mask, place, z, feather, region_weight, layout)
    with waiting("starting"):
        from cones2.cli.outputs import Pictures
        from cones2.cli.request import Request, SubjectOptions
        from cones2.files import make_folder
        from cones2.library import Library

        _check_file(latents, suffix=".safetensors", replace=replace, name="--latents")
        _check_file(save_layout, suffix=".json", replace=replace, name="--save-layout")
        if official is None:
            made = None
            if source is not None:
                from cones2.redraw import PictureRecord

                made = PictureRecord.load(source)
            options = SubjectOptions(subject, plain, strength, during, subject_negative)
            subjects = options.read(Library.open(library), made)
            request = Request.read(prompt, made, subjects, given, seed=seed, count=count)
            request = changed(request, scheduler=scheduler).placed(places, auto=auto_layout)
            _check_layout(request.layout, {"--save-layout": save_layout, "--attention": attention})
        else:
            others: dict[str, Any] = {"PROMPT": prompt, "--from": source, "--subject": subject, "--plain": plain}
            others |= {"--preset": preset, "--strength": strength, "--during": during}
            others |= {"--subject-negative": subject_negative, "--save-layout": save_layout, "--scheduler": scheduler}
            others["a place"] = places != Places() or auto_layout
            _refuse_beside("--official", others)
            from cones2.cones_v2.config import ConesV2Config

            authors = ConesV2Config.load(official)
        number_of = request.count if official is None else count or (4 if seed is None else 1)
        also = ("attention",) if attention else ()
        pictures = Pictures.check(out, count=number_of, replace=replace, also=also)
    if official is None:
        pipe = request.open(model, device=device, dtype=dtype, config=model_config, compile=compile)
    else:
        pipe = open_model(model or "mini", device=device, dtype=dtype, config=model_config, compile=compile)
        request = Request.of_authors(authors.arguments(pipe), given, seed=seed, count=count)
    if save_layout is not None and request.layout is not None:
        make_folder(save_layout.parent)
        request.layout.save(save_layout)
    report = _carry_out(request, pipe, pictures, latents=latents, attention=attention, embed=embed)
    if as_json:
        print_json(report)
        return
    for picture in report["pictures"]:
        say(picture["path"])
        for reading in picture.get("attention", {"subjects": {}})["subjects"].values():
            say(f"  {reading['reading']}")
    note(f"{request.count} of {report['text']!r} in {report['seconds']:.1f} s.")


def _check_file(path: Path | None, *, suffix: str, replace: bool, name: str) -> None:
    from cones2.cli.outputs import check_new

    if path is not None:
        check_new(path, suffix=suffix, replace=replace, option=name)


def _check_layout(layout: "Layout | None", options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value and layout is None:
            raise SettingsError(f"{name} needs places, and there are none: give --place, --box or --layout.")


def _refuse_beside(option: str, others: dict[str, Any]) -> None:
    for other, value in others.items():
        if value:
            raise SettingsError(f"{other} and {option} can't be used together: leave one out.")


def _carry_out(
    request: "Request",
    pipe: "Cones2Pipeline",
    pictures: "Pictures",
    *,
    latents: Path | None,
    attention: bool,
    embed: bool,
) -> dict[str, Any]:
    """Draw in batches, write each as soon as it is drawn, then all `latents`; return a report as JSON values."""
    import torch

    from cones2.files import make_folder
    from cones2.png import write_latents

    began, written, kept = time.monotonic(), [], {}
    size = _BATCH if request.keep is None else len(request.seeds)
    for first in range(0, len(request.seeds), size):
        for drawn in request.draw(pipe, request.seeds[first : first + size], attention=attention):
            path = pictures.write(drawn.image, drawn.record, seed=drawn.seed, embed=embed)
            entry = {"path": str(path), "record": drawn.record}
            written.append(entry | ({"attention": _report_attention(drawn, path, request)} if attention else {}))
            if latents is not None:
                kept[drawn.seed] = drawn.latents
    if latents is not None:
        make_folder(latents.parent)
        write_latents(latents, torch.stack(list(kept.values())), list(kept))
    seconds = round(time.monotonic() - began, 3)
    return {"prompt": request.prompt, "text": drawn.record["text"], "pictures": written, "seconds": seconds}


def _report_attention(drawn: "Drawn", path: Path, request: "Request") -> dict[str, Any]:
    """Draw where attention went beside the picture, and return it as JSON values."""
    from cones2.cli.outputs import beside
    from cones2.drawing import draw_attention
    from cones2.layout import Layout
    from cones2.png import write_picture

    heat_map = beside(path, "attention")
    write_picture(heat_map, draw_attention(drawn.image, drawn.attention, request.layout or Layout({})), drawn.record)
    subjects = {each.subject: {"reading": str(each), **each.describe()} for each in drawn.attention}
    return {"heat_map": str(heat_map), "subjects": subjects}
