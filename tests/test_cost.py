"""Small inputs of strangers cost seconds and megabytes, whatever they say: counted in a process of its own."""

import base64
import io
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from test_png import png_with

pytestmark = pytest.mark.slow

# What a door did: refused or not, how many seconds of the processor and megabytes it took beyond what was there before.
MEASURED = """
import resource, sys, time
from pathlib import Path
from cones2.errors import Cones2Error
{imports}
def taken():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
path, (seconds, megabytes) = Path(sys.argv[1]), taken()
try:
    {door}
    print("taken")
except Cones2Error as error:
    assert len(str(error)) < 2000
    print("refused")
print(taken()[0] - seconds, taken()[1] - megabytes)
"""
MOST_SECONDS, MOST_MEGABYTES = 10.0, 500.0  # five on a quiet machine


def through(path: Path, imports: str, door: str, *, files: int = 1) -> str:
    """Let a file, or a folder of `files`, through a door; say whether it was refused; fail where it cost too much."""
    script = MEASURED.format(imports=imports, door=door)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    outcome, seconds, megabytes = done.stdout.split()
    assert float(seconds) < MOST_SECONDS * files
    assert float(megabytes) < MOST_MEGABYTES
    return outcome


TOML = {
    "a long key": "a." * 50_000 + "a = 1",
    "long keys": ("a." * 199 + "a = 1\n[b]\n") * 600,
    "a long table": "[" + "a." * 50_000 + "a]",
    "tables": "".join(f"[t{number}]\n" for number in range(80_000)),
    "subjects": "".join(f"[subjects.t{number}]\n" for number in range(3900)),
    "lists": "subject = [" + "[1]," * 60_000 + "]",
    "a long name": "a" * 250_000 + " = 1",
    "names": "".join(f"a{number} = 1\n" for number in range(20_000)),
    "arrays of tables": "[[subjects]]\n" * 19_000,
}
TOML_DOORS = {
    "recipe": ("from cones2.learning.recipe import Recipe", "Recipe.from_toml(path)"),
    "batch": ("from cones2.batch.job import read_job", "read_job(path)"),
    "job": (
        "from types import SimpleNamespace; from typer.main import get_command; from cones2.cli import app\n"
        "from cones2.cli.options import read_job; compose = get_command(app).commands['compose']",
        "read_job(SimpleNamespace(command=compose, resilient_parsing=False), None, path)",
    ),
}


def refused_each(pattern: str, door: str, count: int) -> str:
    """Write a door through which each file of a folder is refused, in time."""
    return f"""refused = 0
    for path in sorted(path.glob("{pattern}")):
        began = taken()[0]
        try:
            {door}
        except Cones2Error as error:
            refused += len(str(error)) < 2000 and taken()[0] - began < {MOST_SECONDS}
    assert refused == {count}"""


@pytest.mark.parametrize("door", TOML_DOORS)
def test_toml(tmp_path: Path, door: str) -> None:
    imports, call = TOML_DOORS[door]
    for name, text in TOML.items():
        (tmp_path / f"{name}.toml").write_text(text)
    assert through(tmp_path, imports, refused_each("*.toml", call, len(TOML)), files=len(TOML)) == "taken"


def png(image: Image.Image, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG", **options)
    return content.getvalue()


DOT = Image.new("L", (768, 768))
DOT.putpixel((5, 5), 255)
MASK = {"mask": {"png": base64.b64encode(png(DOT)).decode()}}
ZIGZAG = {"polygon": [[(number * 37 % 256) / 255, (number * 101 % 256) / 255] for number in range(256)]}
SHAPES = {
    "masks": [MASK] * 4,
    "polygons": [ZIGZAG],
    "triangles": [{"polygon": [[0, 0], [1, 0.3], [0.5, 1]]}],
    "boxes": [[0.1, 0.1, 0.9, 0.93], [0.2, 0.2, 0.8, 0.81], [0, 0.3, 0.7, 1], [0.33, 0.4, 1, 0.9]],
}
COVERED = "layout = Layout.load(path); all(cover(layout, cells, cells) for cells in (1, 96, 48, 24, 12))"


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("rest", [False, True])
def test_layouts(tmp_path: Path, shapes: str, rest: bool) -> None:
    names = [f"r{number}" for number in range(64 - 32 * rest)]
    regions: dict[str, object] = {
        name: {"shapes": SHAPES[shapes], "z": number, "feather": 0.3} for number, name in enumerate(names)
    }
    regions |= {f"s{number}": "rest" for number in range(32 * rest)}
    path = tmp_path / "layout.json"
    path.write_text(json.dumps({"version": 1, "regions": regions}))
    assert path.stat().st_size < 1_000_000
    imports = "from cones2.layout import Layout; from cones2.rasterize import cover"
    assert through(path, imports, COVERED) == "taken"
    assert (
        through(path, f"{imports}; from cones2.drawing import draw_layout", "draw_layout(Layout.load(path))") == "taken"
    )


def test_masks_of_many_pixels(tmp_path: Path) -> None:
    big = Image.new("P", (7000, 7000), 1)
    big.putpalette([0, 0, 0, 255, 255, 255])
    (tmp_path / "big.png").write_bytes(png(big, transparency=b"\x00\xf0"))
    regions: dict[str, object] = {"rex": [{"mask": "big.png"}] * 200}
    (tmp_path / "layout.json").write_text(json.dumps({"version": 1, "regions": regions}))
    assert through(tmp_path / "layout.json", "from cones2.layout import Layout", "Layout.load(path)") == "taken"
    for number in range(32):
        (tmp_path / f"{number}.png").symlink_to("big.png")
    regions = {f"r{number}": {"mask": f"{number}.png"} for number in range(32)}
    (tmp_path / "layout.json").write_text(json.dumps({"version": 1, "regions": regions}))
    assert through(tmp_path / "layout.json", "from cones2.layout import Layout", "Layout.load(path)") == "refused"
    typed = "Places(masks=[f'rex={path}'] * 200).read(class_words={'rex': 'dog'})"
    assert through(tmp_path / "big.png", "from cones2.cli.layout import Places", typed) == "taken"


TEXTS = {
    "text": lambda: [(b"tEXt", b"comment\0" + b"x" * 250_000_000)],
    "record": lambda: [(b"iTXt", b"cones2\0\0\0\0\0" + b"x" * 250_000_000)],
    "zipped": lambda: [(b"iTXt", b"cones2\0\1\0\0\0" + zlib.compress(b" " * 250_000_000))],
    "many": lambda: [(b"tEXt", b"a\0")] * 70_000,
}


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_of_pictures(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_with(*TEXTS[kind]()))
    assert through(path, "from cones2.cli.inspect import describe", "describe(path)") == "refused"
    path.unlink()


@pytest.mark.parametrize("name", ["batch_size", "captions_per_step", "views_per_photo", "side"])
def test_recipes_of_many(tmp_path: Path, name: str) -> None:
    path = tmp_path / "many.toml"
    path.write_text(f"{name} = {4096 if name == 'side' else 999}")
    assert through(path, "from cones2.learning.recipe import Recipe", "Recipe.from_toml(path)") == "refused"


RECORDS: list[dict[str, object]] = [
    {"layout": {"version": 1, "regions": {f"r{number}": MASK for number in range(300)}}},
    {"subjects": {f"s{number}": {} for number in range(50_000)}},
    {"seeds": [0] * 200_000},
    {"options": {f"a{number}": [[]] for number in range(50_000)}},
    {"residuals": {f"{number:064}": "" for number in range(10_000)}},
    {"scheduler": {"class_name": "DDIMScheduler", "config": {"trained_betas": [0.1] * 150_000}}},
]


def test_records(tmp_path: Path) -> None:
    for number, record in enumerate(RECORDS):
        text = json.dumps(record).encode()
        assert len(text) < 2**20
        (tmp_path / f"{number}.png").write_bytes(png_with((b"iTXt", b"cones2\0\0\0\0\0" + text)))
    doors = refused_each("*.png", "PictureRecord.load(path)", len(RECORDS))
    assert through(tmp_path, "from cones2.redraw import PictureRecord", doors, files=len(RECORDS)) == "taken"
