"""Teaching that is ended early keeps the step that was most like the photos, and says which."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cones2.library import Library
from cones2.pipeline import Cones2Pipeline
from cones2.studio.teaching import Teacher
from studio_server import REX

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mini() -> Cones2Pipeline:
    pipe = Cones2Pipeline.from_pretrained("mini", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Lesson:
    """One job in a folder of its own: what is told of it, and what is kept."""

    def __init__(self, mini: Cones2Pipeline, folder: Path, wish: Callable[[int], str]) -> None:
        self.folder, self.said = folder, list[tuple[str, dict[str, Any]]]()
        photos = folder / "learning" / "job" / "photos"
        photos.mkdir(parents=True)
        for path in (REX / "photos").iterdir():
            shutil.copy(path, photos)
        self.teacher = Teacher(
            mini,
            folder,
            folder / "library",
            say=lambda what, **values: self.said.append((what, values)),
            check=lambda: None,
            wish=lambda: wish(self.steps()[-1]["step"]),
        )

    def teach(self, **changes: Any) -> int:
        """Teach, and return the step that is said to be kept; the library has it."""
        request = {"name": "max", "class_word": "dog", "recipe": None, "steps": 50, "seed": 1, "force_class": False}
        self.teacher.teach("job", request | changes)
        what, values = self.said[-1]
        assert what == "learned"
        residual = Library(self.folder / "library").load("max")
        assert (residual.sha256, residual.recipe["taken"]) == (values["sha256"], values["kept"])
        return int(values["kept"])

    def steps(self) -> list[dict[str, Any]]:
        """What was said of each step."""
        return [values for what, values in self.said if what == "step"]


def test_what_is_ended_early_keeps_the_best_of_what_was_shown(mini: Cones2Pipeline, tmp_path: Path) -> None:
    lesson = Lesson(mini, tmp_path, lambda step: "finish" if step == 45 else "")
    kept = lesson.teach()
    likenesses = {each["step"]: each["likeness"] for each in lesson.steps() if "likeness" in each}
    assert list(likenesses) == [10, 20, 30, 40]
    assert likenesses[kept] == max(likenesses.values())
    assert kept == 30  # the seed is one whose curve falls again
    assert len(lesson.steps()) == 45


@pytest.mark.filterwarnings("ignore:mini does not know")  # what a picture of an unknown word is told
def test_without_a_measure_the_last_step_is_kept(mini: Cones2Pipeline, tmp_path: Path) -> None:
    lesson = Lesson(mini, tmp_path, lambda step: "finish" if step == 11 else "")
    assert lesson.teach(class_word="axolotl", force_class=True) == 11
    assert not any("likeness" in each for each in lesson.steps())


def test_what_is_ended_before_the_first_picture_keeps_the_last_step(mini: Cones2Pipeline, tmp_path: Path) -> None:
    assert Lesson(mini, tmp_path, lambda step: "finish" if step == 2 else "").teach() == 2


def test_what_ends_by_itself_keeps_its_last_step(mini: Cones2Pipeline, tmp_path: Path) -> None:
    lesson = Lesson(mini, tmp_path, lambda _: "")
    assert lesson.teach(steps=3) == 3
    assert "likeness" in lesson.steps()[-1]
