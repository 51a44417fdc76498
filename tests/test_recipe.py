import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cones2.errors import SettingsError
from cones2.learning.recipe import RECIPES, Recipe, find_recipe


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
    with pytest.raises(SettingsError, match=r"mine.toml: 'step' .*'steps'"):
        Recipe.from_toml(write(tmp_path, "step = 7"))


def test_unknown_preset() -> None:
    with pytest.raises(SettingsError, match="no recipe 'fast'"):
        find_recipe("fast")


@pytest.mark.parametrize("preset", ['"fast"', "3"])
def test_unknown_preset_in_toml(tmp_path: Path, preset: str) -> None:
    with pytest.raises(SettingsError, match="there is no recipe"):
        Recipe.from_toml(write(tmp_path, f"preset = {preset}"))


@pytest.mark.parametrize("content", [b"steps = ", b"\xff\xfe"])
def test_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"can't read .*mine.toml as TOML") as caught:
        Recipe.from_toml(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"can't read .*absent.toml: No such file"):
        find_recipe(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("steps = 0", "mine.toml: steps of a recipe is 0"),
        ("batch_size = 1.5", "batch_size of a recipe is 1.5"),
        ("captions_per_step = true", "captions_per_step of a recipe is True"),
        ("caption_count = -1", "caption_count of a recipe is -1"),
        ("views_per_photo = 0", "views_per_photo of a recipe is 0"),
        ("learning_rate = 0", "learning_rate of a recipe is 0"),
        ("learning_rate = nan", "learning_rate of a recipe is nan"),
        ("learning_rate = true", "learning_rate of a recipe is True"),
        ('learning_rate = "fast"', "learning_rate of a recipe is 'fast'"),
        (f"learning_rate = 1{'0' * 400}", "learning_rate of a recipe is 1000"),
        ("weight_decay = -0.1", "weight_decay of a recipe is -0.1"),
        ("weight_decay = []", r"weight_decay of a recipe is \[\]"),
        ("preservation_weight = inf", "preservation_weight of a recipe is inf"),
        ('tune = "direct"', "tune of a recipe is 'direct'"),
        ("averaged = true", "averaged .* tune is 'all'"),
        ("averaged = 1", "averaged of a recipe is 1"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_values_out_of_range(tmp_path: Path, setting: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as caught:
        Recipe.from_toml(write(tmp_path, setting))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("settings", [{"tune": "direct"}, {"steps": 1.5}, {"weight_decay": "little"}])
def test_values_of_another_type_in_python(settings: dict[str, object]) -> None:
    """In a process of its own: here, beartype is before it."""
    script = f"from cones2.learning.recipe import Recipe; Recipe(**{settings})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    ((name, value),) = settings.items()
    assert done.stderr.splitlines()[-1].startswith(f"cones2.errors.SettingsError: {name} of a recipe is {value!r}.")


def test_a_recipe_is_found_by_itself_and_by_a_path(tmp_path: Path) -> None:
    recipe = Recipe(steps=7)
    assert find_recipe(recipe) is recipe
    assert find_recipe(write(tmp_path, "steps = 7")) == recipe


@pytest.mark.usefixtures("unchecked_types")
def test_a_whole_number_for_a_rate(tmp_path: Path) -> None:
    recipe = Recipe.from_toml(write(tmp_path, "weight_decay = 0"))
    assert repr(recipe.weight_decay) == "0.0"


def test_a_recipe_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(SettingsError, match=r"pipe\.toml"):
        Recipe.from_toml(tmp_path / "pipe.toml")


def test_a_recipe_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"mine\.toml is too large"):
        Recipe.from_toml(write(tmp_path, "#" * (2**18 + 1)))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"steps = {'[' * 3999}", "can't read .* recursion"),
        (f"steps.{'a.' * 199}a = 1", "can't read .* parts"),
        (f"{'a.' * 199}a = 1", "can't read .* parts"),
    ],
)
def test_a_recipe_that_is_nested_too_deep(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        Recipe.from_toml(write(tmp_path, text))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["batch_size", "captions_per_step", "views_per_photo"])
def test_what_takes_memory_is_bounded(tmp_path: Path, name: str) -> None:
    assert Recipe.from_toml(write(tmp_path, f"{name} = 100"))
    with pytest.raises(SettingsError, match=f"{name} of a recipe is 101"):
        Recipe.from_toml(write(tmp_path, f"{name} = 101"))
