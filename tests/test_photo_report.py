"""The readiness report: measures on pictures whose answer is known, and what they are taken to mean."""

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image, ImageFilter

from cones2.examples import EXAMPLES
from cones2.photos import Photo, difference_hash, photo_report, sharpness


def grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def checks(side: int, cell: int, low: int = 40, high: int = 210) -> Image.Image:
    places = np.arange(side) // cell
    return grey(np.where(np.add.outer(places, places) % 2, high, low))


def texture(seed: int, side: int = 128) -> Image.Image:
    """A picture like no other: blocks of random grey."""
    blocks = np.random.default_rng(seed).integers(30, 226, (16, 16), dtype=np.uint8)
    return Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).convert("RGB")


def photos(*images: Image.Image) -> list[Photo]:
    return [Photo(Path(f"{index}.png"), "", image) for index, image in enumerate(images)]


def kinds(*images: Image.Image, size: int = 128) -> list[tuple[str, tuple[str, ...]]]:
    report = photo_report(photos(*images), size=size)
    return [(finding.kind, finding.photos) for finding in report.findings]


GOOD = [texture(seed) for seed in range(3)]


# Measures


def test_sharpness_of_a_checkerboard_by_hand() -> None:
    # Cells of one pixel, +-100 around 128: every Laplacian is 4 * 100 - 4 * (-100) = +-800, so its variance is 800².
    assert sharpness(checks(64, 1, 28, 228), 64) == pytest.approx(800**2, rel=0.01)


def test_sharpness_is_that_of_the_sharpest_part() -> None:
    picture = Image.new("RGB", (128, 128), "gray")
    picture.paste(checks(32, 1, 28, 228), (32, 64))
    assert sharpness(picture, 128) == pytest.approx(800**2, rel=0.2)
    assert sharpness(Image.new("RGB", (64, 64), "gray"), 64) == 0


def test_sharpness_is_judged_at_the_size_that_is_learned() -> None:
    blurred = texture(0, 1024).filter(ImageFilter.GaussianBlur(4))
    assert sharpness(blurred, 1024) < 100 < sharpness(blurred, 128)


@given(st.floats(0.5, 4), st.integers(0, 5))
@settings(max_examples=20)
def test_more_blur_is_less_sharpness(radius: float, seed: int) -> None:
    picture = texture(seed)
    once = picture.filter(ImageFilter.GaussianBlur(radius))
    assert (
        sharpness(once.filter(ImageFilter.GaussianBlur(radius)), 128) < sharpness(once, 128) < sharpness(picture, 128)
    )


def test_difference_hash_by_hand() -> None:
    rising = grey(np.tile(np.repeat(np.arange(9) * 20, 8), (64, 1)))
    assert difference_hash(rising).all()
    assert not difference_hash(rising.transpose(Image.Transpose.FLIP_LEFT_RIGHT)).any()


@given(st.integers(0, 20), st.integers(21, 40))
@settings(max_examples=20)
def test_difference_hash_tells_copies_from_others(seed: int, other: int) -> None:
    picture = texture(seed)
    copy = picture.resize((90, 90), Image.Resampling.BICUBIC).point(lambda value: value * 0.9)
    assert np.count_nonzero(difference_hash(picture) != difference_hash(copy)) <= 4
    assert np.count_nonzero(difference_hash(picture) != difference_hash(texture(other))) > 4


# Findings


def test_good_photos_have_no_findings() -> None:
    report = photo_report(photos(*GOOD), size=128)
    assert report.findings == ()
    assert [(facts.width, facts.height, facts.path.name) for facts in report.photos] == [
        (128, 128, f"{index}.png") for index in range(3)
    ]


def test_too_few() -> None:
    (finding,) = photo_report(photos(*GOOD[:2]), size=128).findings
    assert (finding.kind, finding.photos) == ("count", ())
    assert "2" in finding.text


def test_too_small() -> None:
    assert kinds(*GOOD, size=129) == [("size", (f"{index}.png",)) for index in range(3)]
    (finding, *_) = photo_report(photos(*GOOD), size=512).findings
    assert "128x128" in finding.text
    assert "512" in finding.text


def test_blurred() -> None:
    assert kinds(*GOOD, texture(3).filter(ImageFilter.GaussianBlur(5))) == [("blur", ("3.png",))]


def test_nearly_the_same_photos_are_one_finding() -> None:
    copies = [GOOD[0].resize((side, side), Image.Resampling.BICUBIC) for side in (129, 140)]
    report = photo_report(photos(*GOOD, *copies), size=128)
    (finding,) = report.findings
    assert finding.photos == ("0.png", "3.png", "4.png")
    assert "0.png, 3.png and 4.png" in finding.text


def test_a_plain_picture_is_blurred() -> None:
    assert kinds(*GOOD, Image.new("RGB", (128, 128), "gray")) == [("blur", ("3.png",))]


@pytest.mark.parametrize("change", [lambda value: value * 0.4, lambda value: 180 + value * 0.25])
def test_exposure_is_no_fault(change: object) -> None:
    assert kinds(*GOOD, texture(3).point(change)) == []  # type: ignore[arg-type]


def test_the_80_example_photos_are_all_good() -> None:
    for example in EXAMPLES.values():
        assert photo_report(example.photos, size=128).findings == ()


@given(st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=20)
def test_a_report_does_not_change_photos_and_is_the_same_again(count: int, seed: int) -> None:
    given_photos = photos(*(texture(seed + index) for index in range(count)))
    before = [photo.image.tobytes() for photo in given_photos]
    assert photo_report(given_photos) == photo_report(given_photos)
    assert [photo.image.tobytes() for photo in given_photos] == before
