"""A learning's curves and previews as files."""

import csv
import dataclasses
import shutil
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cones2.errors import OutputError
from cones2.learning.learner import learn_steps
from cones2.learning.previews import COLUMNS, PreviewedStep, logged, with_previews
from cones2.learning.recipe import Recipe
from cones2.models import open_pipeline
from cones2.photos import Photo
from cones2.pipeline import Cones2Pipeline

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

RECIPE = Recipe(steps=4, batch_size=1, learning_rate=1e-3, captions_per_step=2, caption_count=6)
PHOTO = Photo(Path("a.png"), "a" * 64, Image.radial_gradient("L").convert("RGB"))
Measure = Callable[[Sequence[Image.Image]], float]


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Any:
    return open_pipeline(small_folder, device="cpu")


def scripted(*values: float) -> Measure:
    """Return a measure that gives these values in turn, whatever the images are."""
    left = iter(values)
    return lambda _: next(left)


def learning(
    small: Any, identity: Measure | None = None, *, steps: int = 4, every: int = 2, **options: Any
) -> Generator[PreviewedStep, None, None]:
    recipe = dataclasses.replace(RECIPE, steps=steps)
    taken = learn_steps(small, [PHOTO], "dog", recipe, **options)
    drawing = {"num_inference_steps": 2, "seed": [3, 4]}
    return with_previews(taken, Cones2Pipeline(small), every=every, identity=identity, drawing=drawing)


def curves(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "curves.csv").read_text().splitlines()))


def test_a_folder_of_images_and_curves(small: Any, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "previews"
    steps = list(logged(learning(small, scripted(0.25, 0.5)), folder))
    names = ["0002-0.png", "0002-1.png", "0004-0.png", "0004-1.png", "curves.csv"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert Image.open(folder / "0002-1.png").tobytes() == steps[1].images[1].tobytes()
    rows = curves(folder)
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["identity"] for row in rows] == ["", "0.25", "", "0.5"]
    for name in COLUMNS[1:4]:
        assert [float(row[name]) for row in rows] == pytest.approx(
            [getattr(step.learned, name) for step in steps], rel=1e-5
        )


def test_a_resumed_learning_goes_on_with_its_curves(small: Any, tmp_path: Path) -> None:
    """Resumed from its checkpoint of step 2, it takes step 3 again."""
    begun = learning(small, steps=6, every=6, checkpoint=tmp_path / "begun", checkpoint_every=2)
    steps = logged(begun, tmp_path / "curves")
    first = [next(steps) for _ in range(3)]
    shutil.copytree(tmp_path / "begun", tmp_path / "killed")
    steps.close()
    assert [row["step"] for row in curves(tmp_path / "curves")] == ["1", "2", "3"]
    resumed = learning(small, steps=6, every=6, checkpoint=tmp_path / "killed", resume=True)
    steps = logged(resumed, tmp_path / "curves")
    next(steps)
    steps.close()
    rows = curves(tmp_path / "curves")
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [float(row["loss"]) for row in rows] == pytest.approx([step.learned.loss for step in first], rel=1e-5)


def test_a_new_learning_replaces_the_curves(small: Any, tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text(",".join(COLUMNS) + "\n1,9,9,9,\n70,9,9,9,\n")
    steps = logged(learning(small), tmp_path)
    next(steps)
    steps.close()
    assert [(row["step"], row["loss"] == "9") for row in curves(tmp_path)] == [("1", False)]


def test_where_no_step_is_taken_the_curves_stay(small: Any, tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text(",".join(COLUMNS) + "\n1,9,9,9,\n")
    logged(learning(small), tmp_path).close()
    assert [row["loss"] for row in curves(tmp_path)] == ["9"]


@pytest.mark.parametrize(
    "content", [b"\xff\n", b"a,b\n1,2\n", b"step,loss,subject_loss,preservation_loss,identity\nx\n"]
)
def test_curves_that_are_somebody_elses(small: Any, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "curves.csv").write_bytes(content)
    with pytest.raises(OutputError, match=r"curves\.csv"):
        logged(learning(small), tmp_path)
    assert (tmp_path / "curves.csv").read_bytes() == content


def test_what_was_measured_is_written_when_learning_fails(small: Any, tmp_path: Path) -> None:
    def fail(_: Sequence[Image.Image]) -> float:
        raise RuntimeError("the measure failed")

    with pytest.raises(RuntimeError, match="the measure failed"):
        list(logged(learning(small, fail), tmp_path))
    assert [row["step"] for row in curves(tmp_path)] == ["1"]
