"""`cones2 grid`: seeds by subjects by settings, in one labelled picture."""

import time
from collections.abc import Mapping
from dataclasses import replace as changed
from pathlib import Path
from typing import Annotated

from cones2.cli import options as opt
from cones2.cli.console import note, print_json, say, waiting
from cones2.cli.layout import Places
from cones2.cli.options import OUTPUT, option, read_residual, unique
from cones2.errors import counted

_SHORT = {"steps": "num_inference_steps", "negative": "negative_prompt"}


def grid(
    out: Annotated[Path, option("--out -o", "A folder for the grid and its pictures.", "DIR")],
    vary: Annotated[
        list[str],
        option("--vary", "seed, strength.NAME, subject.NAME or a setting; the first runs across.", "WHAT=A,B"),
    ],
    prompt: opt.Prompt = None,
    subject: opt.SubjectTexts = None,
    plain: opt.PlainTexts = None,
    place: opt.PlaceTexts = None,
    box: opt.BoxTexts = None,
    layout: opt.LayoutFile = None,
    source: Annotated[Path | None, option("--from", "Vary this picture.", "PICTURE")] = None,
    model: opt.PictureModel = None,
    strength: opt.StrengthTexts = None,
    polygon: opt.PolygonTexts = None,
    mask: opt.MaskTexts = None,
    z: opt.ZTexts = None,
    feather: opt.FeatherTexts = None,
    region_weight: opt.WeightTexts = None,
    auto_layout: opt.Auto = False,
    cell: Annotated[int, option("--cell", "Pixels of a picture in the grid.", "N", OUTPUT, min=32, max=1024)] = 256,
    library: opt.Library = None,
    model_config: opt.ModelConfig = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    as_json: opt.Json = False,
) -> None:
    r"""Draw every combination of some seeds, subjects and settings, and lay them out on one labelled sheet.

    A setting is an argument of a drawing: steps, guidance_scale, layout_scale, preset, scheduler, width...

    Example: cones2 grid "a {rex} on the beach" --subject rex -o grids \
    --vary seed=0,1,2,3 --vary strength.rex=0,0.5,1 --vary preset=paper,cones_v2
    """
    with waiting("starting"):
        from cones2.cli.outputs import Pictures
        from cones2.cli.request import Request, SubjectOptions, read_picture
        from cones2.drawing import Row, contact_sheet
        from cones2.grid import Axis, parse_values, plan_grid
        from cones2.library import Library
        from cones2.png import write_picture
        from cones2.subjects import Subject

        shelf, axes = Library.open(library), []
        for what, text in unique("--vary", vary, example="seed=0,1,2,3").items():
            name = what if "." in what else _SHORT.get(what, what.replace("-", "_"))
            labels = [value.strip() for value in text.split(",")]
            values = parse_values(name, labels)
            if name.startswith("subject."):
                values = tuple(read_residual(value, shelf) for value in values)
            axes.append(Axis(name, values, tuple(labels)))
        made = None if source is None else read_picture(source)
        subjects = SubjectOptions(subject, plain, strength).read(shelf, made)
        varied = {axis.subject: Subject(axis.values[0].class_word) for axis in axes if axis.name.startswith("subject.")}
        request = Request.read(prompt, made, varied | subjects, {}, seed=None, count=None)
        subjects = dict(request.subjects)
        first = request.seeds[request.keep or 0]
        rows = plan_grid(axes, subjects=subjects, **{**request.settings, "seed": first})
        places = Places(box, polygon, mask, place, z, feather, region_weight, layout)
        requests = [
            changed(
                request,
                subjects=each.subjects,
                seeds=(each.arguments["seed"],),
                keep=None,
                settings={name: value for name, value in each.arguments.items() if name != "seed"},
                scheduler=each.scheduler,
            ).placed(places, auto=auto_layout)
            for row in rows
            for each in row
        ]
        pictures = Pictures.check(out, count=len(requests) + 1, replace=False)
    pipe = requests[0].open(model, device=device, dtype=dtype, config=model_config)
    began, cells = time.monotonic(), [each for row in rows for each in row]
    drawn, written = [], []
    for number, each in enumerate(requests, start=1):
        (picture,) = each.draw(pipe, each.seeds, what=f"drawing {number} of {len(requests)}")
        written.append(pictures.write(picture.image, picture.record, seed=picture.seed))
        drawn.append(picture)
    across, width = axes[0].name, len(axes[0].values)
    sheet_rows = [
        Row(
            _labelled({name: label for name, label in row[0].labels.items() if name != across}) or request.prompt,
            tuple(each.image for each in drawn[width * number : width * (number + 1)]),
            tuple(_labelled({across: each.labels[across]}) for each in row),
        )
        for number, row in enumerate(rows)
    ]
    sheet = out / f"{written[0].name.partition('-')[0]}-grid.png"
    varied_labels = {axis.name: list(axis.labels) for axis in axes}
    about = {"prompt": request.prompt, "grid": varied_labels, "pictures": [path.name for path in written]}
    write_picture(sheet, contact_sheet(sheet_rows, cell=cell), about)
    seconds = round(time.monotonic() - began, 3)
    if as_json:
        cells_made = [
            {"path": str(path), "labels": dict(each.labels), "record": picture.record}
            for path, each, picture in zip(written, cells, drawn, strict=True)
        ]
        print_json({"grid": str(sheet), "pictures": cells_made, "seconds": seconds})
        return
    say(str(sheet))
    note(f"{counted(len(requests), 'picture')} in {seconds:.1f} s.")


def _labelled(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {label}" for name, label in labels.items())
