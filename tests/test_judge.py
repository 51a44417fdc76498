"""The judge: what it sees, where, and how like an individual that is."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cones2 import EXAMPLES, BackboneError, Photo, PhotoError, judged_likeness, open_judge
from cones2.watching.judge import Judge, JudgeWorld, crop, overlap

WORLD = JudgeWorld(classes=("dog", "hat"), worn=("hat",), colours=("red",), scenes=("beach",))


def test_overlap_by_hand() -> None:
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    assert overlap(left, (0.25, 0.0, 0.75, 1.0)) == pytest.approx(1 / 3)
    assert overlap(left, left) == 1
    assert overlap(left, right) == 0


def test_a_crop_is_the_square_around_a_box() -> None:
    picture = torch.zeros(1, 3, 128, 128)
    picture[:, :, 32:96, 32:96] = 1
    cut = crop(picture, torch.tensor([(0.25, 0.25, 0.75, 0.75)]), torch.tensor([0]))
    assert cut[0, :, 8:48, 8:48].min() > 0.999  # the box itself
    assert cut[0, :, :3].max() < 0.5  # its margin


def test_what_it_sees_is_surest_first_and_over_the_threshold() -> None:
    torch.manual_seed(0)
    (seen,) = Judge(WORLD, threshold=0.0).eval().look(torch.rand(1, 3, 128, 128))
    assert seen
    assert [one.score for one in seen] == sorted((one.score for one in seen), reverse=True)
    assert Judge(WORLD, threshold=1.0).eval().look(torch.rand(2, 3, 128, 128)) == [[], []]


def test_the_shipped_one_names_the_example_subjects() -> None:
    judge, right = open_judge(), []
    for example in EXAMPLES.values():
        picture = np.asarray(example.photos[4].image)
        (seen,) = judge.look(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255)
        right.append([judge.world.classes[one.class_index] for one in seen] == [example.class_word])
    assert sum(right) >= 0.8 * len(right)


def test_a_subject_is_most_like_its_own_photos() -> None:
    rex, fido = (EXAMPLES[name].photos for name in ("rex", "fido"))
    measure = judged_likeness(rex[:3], "dog", open_judge())
    own, other = ([photo.image for photo in photos[3:]] for photos in (rex, fido))
    assert measure(own) > measure(other)
    assert measure([rex[0].image.point(lambda _: 128)]) == 0  # a picture of nothing


def test_photos_of_nothing_that_it_knows() -> None:
    grey = Photo(Path("grey.png"), "0" * 64, EXAMPLES["rex"].photos[0].image.point(lambda _: 128))
    with pytest.raises(PhotoError, match=r"sees a 'dog' in 0 of 1 photos: expected most of them, and one of dog, cat"):
        judged_likeness([grey], "dog", open_judge())


def test_what_is_beside_the_subject_does_not_count() -> None:
    """A picture of a mug is nothing like a dog, whatever the mug is like."""
    rex, momo = EXAMPLES["rex"].photos, EXAMPLES["momo"].photos
    assert judged_likeness(rex, "dog", open_judge())([photo.image for photo in momo]) == 0
    with pytest.raises(PhotoError, match="sees a 'mug' in 0 of 5 photos"):
        judged_likeness(rex, "mug", open_judge())


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_pictures_of_any_mode(mode: str) -> None:
    rex = EXAMPLES["rex"].photos
    measure = judged_likeness(rex, "dog", open_judge())
    assert -1 <= measure([photo.image.convert(mode) for photo in rex]) <= 1


def test_a_folder_that_holds_no_judge(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"can't open .* as a judge: FileNotFoundError. Install cones2 again"):
        open_judge(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BackboneError, match="as a judge: KeyError"):
        open_judge(tmp_path)
