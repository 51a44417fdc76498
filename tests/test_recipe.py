import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cones2.errors import SettingsError
from cones2.learning.recipe import LARGEST_RECIPE, RECIPES, Recipe, find_recipe


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paper_preset_has_the_values_of_appendix_a() -> None:
    paper = RECIPES["paper"]
    assert (paper.batch_size, paper.learning_rate, paper.steps, paper.caption_count) == (1, 1e-6, 3000, 1000)
    assert paper.tune == "all"


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_presets_are_found_by_name(name: str) -> None:
    assert find_recipe(name) is RECIPES[name]


def test_toml_changes_only_what_it_names(tmp_path: Path) -> None:
    path = write(tmp_path, 'preset = "mini"\nsteps = 7\nlearning_rate = 3e-4\n')
    assert find_recipe(str(path)) == dataclasses.replace(RECIPES["mini"], steps=7, learning_rate=3e-4)


def test_toml_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert Recipe.from_toml(write(tmp_path, "\ufeffsteps = 7")).steps == 7


def test_toml_starts_from_the_paper(tmp_path: Path) -> None:
    assert Recipe.from_toml(write(tmp_path, "steps = 7")) == dataclasses.replace(RECIPES["paper"], steps=7)


def test_unknown_setting_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"mine.toml: 'step' is no setting of a recipe. Did you mean 'steps'\?"):
        Recipe.from_toml(write(tmp_path, "step = 7"))


def test_unknown_preset() -> None:
    with pytest.raises(SettingsError, match=r"no recipe 'fast'. Expected paper, mini, direct or the path of a .toml"):
        find_recipe("fast")


@pytest.mark.parametrize("preset", ['"fast"', "3"])
def test_unknown_preset_in_toml(tmp_path: Path, preset: str) -> None:
    with pytest.raises(SettingsError, match="there is no recipe"):
        Recipe.from_toml(write(tmp_path, f"preset = {preset}"))


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe"])
def test_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"can't read the recipe .*mine.toml: .* Expected a TOML file") as caught:
        Recipe.from_toml(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"can't read .*absent.toml: No such file"):
        find_recipe(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps = 0", "mine.toml: steps is 0. Expected a whole number of at least 1: correct the recipe"),
        ("batch_size = 1.5", "batch_size is 1.5. Expected a whole number of at least 1"),
        ("captions_per_step = true", "captions_per_step is True. Expected a whole number"),
        ("caption_count = -1", "caption_count is -1"),
        ("views_per_photo = 0", "views_per_photo is 0"),
        ("learning_rate = 0", "learning_rate is 0. Expected a number above 0"),
        ("learning_rate = nan", "learning_rate is nan"),
        ("learning_rate = true", "learning_rate is True"),
        ('learning_rate = "fast"', "learning_rate is 'fast'"),
        (f"learning_rate = 1{'0' * 400}", "learning_rate is 1000"),
        ("weight_decay = -0.1", "weight_decay is -0.1. Expected a number of at least 0"),
        ("weight_decay = []", r"weight_decay is \[\]. Expected a number of at least 0"),
        ("preservation_weight = inf", "preservation_weight is inf"),
        ('tune = "direct"', "tune is 'direct'. Expected all, layers or residual"),
    ],
)
def test_values_out_of_range(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Recipe.from_toml(write(tmp_path, setting))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tune='direct'", "tune is 'direct'. Expected all, layers or residual: correct the recipe."),
        ("steps=1.5", "steps is 1.5. Expected a whole number of at least 1: correct the recipe."),
        ("weight_decay='little'", "weight_decay is 'little'. Expected a number of at least 0: correct the recipe."),
    ],
)
def test_values_of_another_type_in_python(setting: str, message: str) -> None:
    """In a process of its own: here, beartype is before it."""
    script = f"from cones2.learning.recipe import Recipe; Recipe({setting})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == f"cones2.errors.SettingsError: {message}"


def test_a_whole_number_for_a_rate(tmp_path: Path) -> None:
    recipe = Recipe.from_toml(write(tmp_path, "weight_decay = 0"))
    assert repr(recipe.weight_decay) == "0.0"


def test_a_recipe_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(SettingsError, match="it is a pipe or device, expected a regular file"):
        Recipe.from_toml(tmp_path / "pipe.toml")


def test_a_recipe_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="is too large: expected at most 1,048,576 bytes"):
        Recipe.from_toml(write(tmp_path, "#" * (LARGEST_RECIPE + 1)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"steps = {'[' * 9999}", "can't read the recipe .* recursion"),
        (f"steps.{'a.' * 9999}a = 1", r"steps is \{'a': .* Expected a whole number"),
        (f"{'a.' * 9999}a = 1", "'a' is no setting of a recipe"),
    ],
)
def test_a_recipe_that_is_nested_too_deep(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        Recipe.from_toml(write(tmp_path, text))
    assert len(str(caught.value)) < 1000
