"""The report: `results.json` as pages of tables, CSV and plots, and nothing that is not in it."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cones2.evaluation.plots import Axes, Point, curves, scatter
from cones2.files import make_folder, write_atomically

Results = Mapping[str, Any]
"""What `results.collect` returns."""

_IMAGES = "images"  # the folder of the plots
_SHOWN = {
    "text": "text alignment",
    "image": "image alignment",
    "all_right": "all right",
    "identity": "identity",
    "swapped": "swapped",
    "cloned": "cloned",
    "missing": "missing",
    "collapsed": "collapsed",
    "right_box": "right box",
    "followed": "scene",
}
_QUESTIONS = {"yes_image": "image", "yes_text": "text", "all_yes": "all yes"}
_BLOCKS = {
    "with": "Everybody with the layout",
    "without": "Nobody with the layout",
}


def write_report(results: Results, folder: Path) -> list[Path]:
    """Write `evidence.md`, `evidence.csv` and the plots into a folder, and return their paths.

    Raises:
        OutputError: they can't be written.
    """
    make_folder(folder / _IMAGES)
    contents = {"evidence.md": markdown(results), "evidence.csv": as_csv(results), **plots(results)}
    for name, content in contents.items():
        write_atomically(folder / name, content.encode())
    return [folder / name for name in contents]


def markdown(results: Results) -> str:
    """Return the page."""
    parts = [_head(results), _settings(results), _claims(results)]
    parts += [_alignments(results, layout) for layout in _BLOCKS if _counts(results, layout)]
    parts += [_as_in_the_paper(results), _questions(results), _cost(results), _curves(results)]
    parts += [_predictions(results), _judges(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    rows = [name for name, row in results["rows"].items() if not row["complete"]]
    others = ", ".join(f"{row['left_out']} of {name}" for name, row in results["rows"].items() if row.get("left_out"))
    left_out = f" Lines of other code, weights or settings are left out: {others}." if others else ""
    left = f" Not complete are {', '.join(rows)}: of them, only complete cells are compared." if rows else ""
    return (
        "# Evidence\n\n"
        "Made by `cones2 evaluate report` from `results.json`, with nothing added by hand. "
        f"Model `{results['model']}`, tier {results['tier']}, protocol `{results['protocol'][:12]}`, "
        f"commit `{(results['commit'] or 'unknown')[:12]}`, {versions}.{left}{left_out}\n\n"
        "Estimates are means over combinations of subjects, with 95 % t intervals over combinations in brackets. "
        "Text and image alignment are cosines by the judge's encoders, not CLIP's. "
        f"The image alignment of a subject's photos with one another is {results['photos']:.3f}: the last "
        "column has that for 1, and the plain model's for 0. A subject has collapsed below a likeness of "
        f"{results['collapse_threshold']}. Identity and all right are n/a of subjects that nobody could be taken for: "
        "without look-alikes, and alone of their class."
    )


def _settings(results: Results) -> str:
    rows = [[name, row["rival"], json.dumps(row["settings"])] for name, row in results["rows"].items()]
    return f"## Rows\n\n{_table(['row', 'class', 'settings'], rows)}"


def _claims(results: Results) -> str:
    if not results["claims"]:
        return ""
    rows = []
    for claim in results["claims"]:
        about = f"{claim['row']} is first of {claim['subjects']} subjects, {claim['layout']} layout"
        for each in claim["comparisons"]:
            difference = _difference(each["difference"])
            rows.append([about, claim["verdict"], each["rival"], _SHOWN[each["measure"]], *difference])
            about = ""
    heads = ["claim", "verdict", "rival", "measure", "difference", "p"]
    told = (
        "A claim is shown where the interval of every difference is above 0; p is of the sign-flip test. A difference "
        "is incomplete where a row is, or of fewer than two combinations."
    )
    return f"## Claims\n\n{told}\n\n{_table(heads, rows)}"


def _alignments(results: Results, layout: str) -> str:
    heads = ["row", "subjects", *_SHOWN.values(), "mIoU", "AP50", "image, from floor to ceiling"]
    rows = [
        _cells(results, name, f"{layout}/{count}") for count in _counts(results, layout) for name in results["rows"]
    ]
    return f"## {_BLOCKS[layout]}\n\n{_table(heads, [row for row in rows if row])}"


def _as_in_the_paper(results: Results) -> str:
    """Return the paper's own comparison: the row of the first claim with its layout, all others without."""
    claimed = results["claims"][0]["row"] if results["claims"] else None
    counts = _counts(results, "without")
    if claimed is None or not counts:
        return ""
    rows = [
        _cells(results, name, f"{'with' if name == claimed else 'without'}/{count}")
        for count in counts
        for name in results["rows"]
    ]
    told = f"As in Table 1 of arXiv:2305.19327: `{claimed}` has a layout, and nobody else."
    heads = ["row", "subjects", *_SHOWN.values(), "mIoU", "AP50", "image, from floor to ceiling"]
    return f"## As in the paper\n\n{told}\n\n{_table(heads, [row for row in rows if row])}"


def _cells(results: Results, name: str, cell: str) -> list[str]:
    row = results["rows"][name]
    if cell not in row["cells"]:
        return []
    found = row["cells"][cell]
    values = [_estimate(found["measures"].get(measure)) for measure in [*_SHOWN, "overlap"]]
    others = [found["ap50"], found["measures"]["image"].get("between")]
    told = ["n/a" if each is None else f"{each:.3f}" for each in others]
    return [_label(name, found), cell.rpartition("/")[2], *values, *told]


def _label(name: str, cell: Mapping[str, Any]) -> str:
    return name if cell["complete"] else f"{name} (incomplete: {cell['pictures']} of {cell['expected']})"


def _questions(results: Results) -> str:
    rows = []
    for name, row in results["rows"].items():
        for cell, found in row["cells"].items():
            measures = found["measures"]
            raw = [_estimate(measures.get(measure)) for measure in _QUESTIONS]
            corrected = [_estimate(measures.get(f"{measure}_corrected")) for measure in ("yes_image", "yes_text")]
            rows.append([_label(name, found), *cell.split("/"), *raw, *corrected])
    heads = ["row", "layout", "subjects", *_QUESTIONS.values(), "image, corrected", "text, corrected"]
    told = (
        "The questions of the paper's user study, answered by the judge: the share of yes. Corrected rates are "
        "what a judge without errors would say, by how often it errs where the truth is known."
    )
    return f"## Questions\n\n{told}\n\n{_table(heads, rows)}"


def _cost(results: Results) -> str:
    rows = []
    for name, row in results["rows"].items():
        sizes = {count: f"{each['bytes']:,}" for count, each in row["learned"].items()}
        library = [row["library"].get(count) for count in ("2", "3")]
        rows.append(
            [
                name if row["complete"] else f"{name} (incomplete)",
                ", ".join(f"{size} ({count})" for count, size in sizes.items()) or "0",
                ", ".join(f"{each['seconds']:.1f} ({count})" for count, each in row["learned"].items()) or "0",
                "n/a" if row["seconds_a_picture"] is None else f"{row['seconds_a_picture']:.2f}",
                *("n/a" if each is None else f"{each['seconds']:,.0f} s, {each['bytes']:,} bytes" for each in library),
                str(row["failed_to_learn"]),
            ]
        )
    heads = ["row", "bytes as saved (subjects)", "s to learn (subjects)", "s a picture"]
    heads += ["all pairs of 16", "all triples of 16", "failed to learn"]
    told = "What is learned together is stored together. All pairs and triples are of a library of 16 subjects."
    return f"## Storage and time\n\n{told}\n\n{_table(heads, rows)}"


def _curves(results: Results) -> str:
    names = [name for name in plots(results) if name.endswith(".svg")]
    return "## Plots\n\n" + "\n\n".join(f"![{_titled(name)}]({name})" for name in names) if names else ""


def _predictions(results: Results) -> str:
    if not results["predictions"]:
        return ""
    rows = []
    for each in results["predictions"]:
        what = f"{each['row']} against {each['rival']}, {each['subjects']} subjects, {each['layout']} layout"
        difference, _ = _difference(each["difference"])
        p_value = "n/a" if each["difference"] is None else f"{each['difference']['p_corrected']:.4f}"
        measure = _SHOWN.get(each["measure"], each["measure"])
        rows.append([what, measure, each["expected"], each["came"], difference, p_value, each["why"]])
    heads = ["compared", "measure", "predicted", "came", "difference", "p (Holm)", "why it was predicted"]
    return f"## What was predicted, and what came\n\n{_table(heads, rows)}"


def _judges(results: Results) -> str:
    pairs = {cell: each for cell, each in results["second_judge"].items() if each}
    told = "; ".join(
        f"{cell.replace('/', ' layout, ')} subjects: {', '.join(' and '.join(pair) for pair in each)}"
        for cell, each in pairs.items()
    )
    agree = (
        "By identity, a second judge of colours and outlines puts all complete cells that can be compared into the same"
        " order."
    )
    differ = f"By identity, a second judge of colours and outlines puts these rows into another order: {told}."
    return f"## The second judge\n\n{differ if told else agree}"


def as_csv(results: Results) -> str:
    """Return every estimate as a line: row, layout, subjects, measure, estimate, interval, combinations, pictures."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = ["row", "layout", "subjects", "complete", "measure", "estimate", "low", "high", "combinations", "pictures"]
    writer.writerow(heads)
    for name, row in results["rows"].items():
        for cell, found in row["cells"].items():
            for measure, each in found["measures"].items():
                numbers = [each["estimate"], each["low"], each["high"], each["combinations"], found["pictures"]]
                writer.writerow([name, *cell.split("/"), found["complete"], measure, *numbers])
    return text.getvalue()


def plots(results: Results) -> dict[str, str]:
    """Return SVG by file name: curves over the number of subjects, and text against image alignment; complete cells."""
    found = {}
    for layout in _BLOCKS:
        counts = _counts(results, layout)
        for measure in ("all_right", "collapsed"):
            lines = {name: _points(results, name, layout, measure) for name in results["rows"]}
            lines = {name: points for name, points in lines.items() if len(points) > 1}
            if lines:
                axes = Axes("subjects", _SHOWN[measure], (float(min(counts)), float(max(counts))), (0.0, 1.0))
                name = f"{_IMAGES}/evidence-{measure.replace('_', '-')}-{layout}-layout.svg"
                found[name] = curves(_titled(name), axes, lines)
        for count in counts:
            points = dict(_pairs(results, f"{layout}/{count}"))
            if points and count > 1:
                name = f"{_IMAGES}/evidence-alignments-{count}-subjects-{layout}-layout.svg"
                found[name] = scatter(
                    _titled(name),
                    Axes(*_ALIGNED, *(_range([getattr(point, axis) for point in points.values()]) for axis in "xy")),
                    points,
                )
    return found


_ALIGNED = ("text alignment", "image alignment")


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Return 0 to 1, or from below where a cosine is negative."""
    return min(0.0, math.floor(10 * min(values)) / 10), 1.0


def _titled(name: str) -> str:
    return name.removeprefix(f"{_IMAGES}/evidence-").removesuffix(".svg").replace("-", " ")


def _points(results: Results, name: str, layout: str, measure: str) -> list[Point]:
    points = []
    for cell, found in results["rows"][name]["cells"].items():
        kind, _, count = cell.partition("/")
        if kind == layout and found["complete"] and (each := found["measures"].get(measure)):
            points.append(Point(float(count), each["estimate"], each["low"], each["high"]))
    return sorted(points, key=lambda point: point.x)


def _pairs(results: Results, cell: str) -> Iterator[tuple[str, Point]]:
    for name, row in results["rows"].items():
        found = row["cells"].get(cell)
        if found is not None and found["complete"]:
            image = found["measures"]["image"]
            text = found["measures"]["text"]["estimate"]
            yield name, Point(text, image["estimate"], image["low"], image["high"])


def _counts(results: Results, layout: str) -> list[int]:
    cells = {cell for row in results["rows"].values() for cell in row["cells"]}
    return sorted(int(cell.rpartition("/")[2]) for cell in cells if cell.startswith(f"{layout}/"))


def _estimate(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "n/a"
    if found["low"] is None:
        return f"{found['estimate']:.3f}"
    return f"{found['estimate']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _difference(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "incomplete", "n/a"
    return f"{found['estimate']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})", f"{found['p']:.4f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
