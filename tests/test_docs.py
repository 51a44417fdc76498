"""Everything that README, docs and examples show runs as printed, and what they name is there.

On the tiny model in place of `mini`, with few steps and captions, and residuals that fit it beside the example photos:
the text is not changed.
"""

import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from command import run
from cones2.backbones import Backbone, opening
from cones2.composing import loop as composing
from cones2.composing.settings import ComposeSettings
from cones2.examples import EXAMPLES, Example
from cones2.learning.recipe import RECIPES
from cones2.residual.residual import Residual

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE_SCRIPTS = sorted((ROOT / "examples").glob("*.py"))

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)\)")
_NAME = re.compile(r"`(cones2(?:\.\w+)+)`")


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


@pytest.fixture
def workplace(small_folder: Path, tiny: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the repository's root, where `mini` is the tiny model, and everything takes few steps."""
    for example in EXAMPLES.values():
        folder = tmp_path / example.folder.relative_to(ROOT)
        folder.mkdir(parents=True)
        (folder / "photos").symlink_to(example.folder / "photos")
        residual_for(tiny, example.class_word).save(folder / f"{example.name}.safetensors")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Example, "residual", property(lambda self: residual_for(tiny, self.class_word)))
    monkeypatch.setattr(opening, "MINI", small_folder)
    quick = {name: replace(recipe, steps=2, caption_count=8) for name, recipe in RECIPES.items()}
    monkeypatch.setattr("cones2.learning.recipe.RECIPES", quick)
    start = composing._start_scheduler

    def start_with_few_steps(backbone: Backbone, settings: ComposeSettings) -> Any:
        return start(backbone, replace(settings, steps=min(settings.steps, 2)))

    monkeypatch.setattr(composing, "_start_scheduler", start_with_few_steps)
    return tmp_path


@pytest.mark.usefixtures("workplace")
@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' own schedulers and NumPy
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_runs(page: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.language == "python":
            exec(compile("\n" * block.line + block.text, page, "exec"), names)
        if block.language == "console":
            for program, *arguments in commands(block):
                assert program == "cones2", f"{page.name}:{block.line}: only cones2's own commands are run"
                run(*arguments)


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
