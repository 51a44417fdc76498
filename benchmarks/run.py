"""Time this package against plain diffusers, the frozen UNet, and equivalents of the authors' loops.

`make bench` runs all of it on `mini`; `--quick` shows in a minute or so that it runs, and its figures are not kept.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from cones2.files import make_folder, write_atomically
from cones2.learning.recipe import find_recipe
from cones2.photos import load_photos
from cones2.pipeline import Cones2Pipeline
from drawing_pairs import GUIDANCE_SCALE, drawing_pairs
from learning_pairs import learning_pairs
from pairs import Pair, Timing, measure
from random_models import MODELS, open_model
from report import as_json, as_markdown, machine

_HERE = Path(__file__).parent
_PHOTOS = _HERE.parent / "src" / "cones2" / "examples" / "rex" / "photos"


def main() -> None:
    """Measure all pairs, print the table, write it and its JSON."""
    options = _parse()
    pipe = open_model(options.model, device=options.device, dtype=options.dtype)
    about = machine(pipe)
    count, steps = (3, 4) if options.quick else (options.pairs, options.steps)
    pairs = [*_pairs(pipe, steps=steps), *(_compiled_pair(pipe, options, steps) if options.compiled else ())]
    pairs = [pair for pair in pairs if options.only in f"{pair.what}; {pair.against}"]
    if not pairs:
        raise SystemExit(f"no pair has {options.only!r} in its name")
    timings = list(_measure_all(pairs, count=count))
    about = {**about, "drawing": f"{steps} steps, guidance scale {GUIDANCE_SCALE}, from prompt to picture"}
    print(as_markdown(timings, about))
    if not (options.quick or options.only):
        make_folder(options.out)
        name = f"{pipe.facts.name}-{pipe.device.type}"
        write_atomically(options.out / f"{name}.json", as_json(timings, about).encode())
        write_atomically(options.out / f"{name}.md", as_markdown(timings, about).encode())


def _measure_all(pairs: Sequence[Pair], *, count: int) -> Iterator[Timing]:
    for pair in pairs:
        print(f"{count} pairs: {pair.what}; {pair.against}", end="", flush=True)
        timing = measure(pair, count)
        print(f": {timing.ratio.median:.2f} ({timing.ratio.low:.2f}-{timing.ratio.high:.2f})", flush=True)
        yield timing


def _pairs(pipe: Cones2Pipeline, *, steps: int) -> list[Pair]:
    photos = load_photos(_PHOTOS)
    own = pipe.facts.recipe or "paper"
    recipes = dict.fromkeys((own, "mini"))  # "mini" tunes the text encoder, as the authors' code does
    learning = (
        pair for name in recipes for pair in learning_pairs(pipe.pipeline, photos, find_recipe(name), name=name)
    )
    return [*drawing_pairs(pipe, steps=steps), *learning]


def _compiled_pair(pipe: Cones2Pipeline, options: argparse.Namespace, steps: int) -> list[Pair]:
    """Pair the first of the pairs, a picture with a layout, with itself, drawn by the same model compiled."""
    compiled = open_model(options.model, device=options.device, dtype=options.dtype)
    compiled.compile()
    plain, ours = (drawing_pairs(each, steps=steps)[0] for each in (pipe, compiled))
    return [Pair(f"{ours.what}, compiled", "not compiled", ours.ours, plain.ours, aim=None, speed=True)]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="mini", help=MODELS)
    parser.add_argument("--pairs", type=int, default=15, help="how often each pair is timed; an interval needs 6")
    parser.add_argument("--steps", type=int, default=50, help="of a picture")
    parser.add_argument("--quick", action="store_true", help="3 pairs, pictures of 4 steps; writes nothing")
    parser.add_argument("--only", default="", metavar="TEXT", help="only pairs of this name; writes nothing")
    parser.add_argument("--compiled", action="store_true", help="also a compiled model, which takes minutes on a CPU")
    parser.add_argument("--device", help="cuda, mps or cpu; the best there is")
    parser.add_argument("--dtype", help="the UNet's; what suits the device")
    parser.add_argument("--out", type=Path, default=_HERE / "results", help="where the table and its JSON go")
    return parser.parse_args()


if __name__ == "__main__":
    main()
