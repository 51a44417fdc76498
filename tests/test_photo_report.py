"""The readiness report: measures on pictures whose answer is known, and what they are taken to mean."""

from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image, ImageFilter

import cones2
from cones2.errors import PhotoError
from cones2.photos import Photo, photo_report
from cones2.photos.measures import clipped, contrast, difference_hash, filled, sharpness, tones


def grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def checks(side: int, cell: int, low: int = 40, high: int = 210) -> Image.Image:
    places = np.arange(side) // cell
    return grey(np.where(np.add.outer(places, places) % 2, high, low))


def texture(seed: int, side: int = 128) -> Image.Image:
    """A picture like no other: blocks of random grey."""
    blocks = np.random.default_rng(seed).integers(30, 226, (16, 16), dtype=np.uint8)
    return Image.fromarray(blocks).resize((side, side), Image.Resampling.NEAREST).convert("RGB")


def photos(*images: Image.Image, mask: Image.Image | None = None) -> list[Photo]:
    return [Photo(Path(f"{index}.png"), "", image, mask) for index, image in enumerate(images)]


def kinds(*images: Image.Image, size: int = 128, mask: Image.Image | None = None) -> list[tuple[str, tuple[str, ...]]]:
    report = photo_report(photos(*images, mask=mask), size=size)
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


def test_tones_and_clipping_by_hand() -> None:
    ramp = grey(np.tile(np.arange(256), (256, 1)))
    assert tones(ramp) == (12, 243)
    assert clipped(ramp) == pytest.approx((3 / 256, 3 / 256))
    assert clipped(checks(8, 2, 0, 255)) == (0.5, 0.5)
    assert contrast(checks(8, 2, 28, 228)) == pytest.approx(100)


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


def test_how_much_of_the_frame_the_subject_fills_by_hand() -> None:
    picture = Image.new("RGB", (128, 128), "gray")
    picture.paste(checks(64, 8), (32, 16))
    assert filled(picture, None) == pytest.approx(0.25, abs=0.06)
    mask = Image.new("L", (128, 128))
    mask.paste(255, (32, 16, 96, 80))
    assert filled(picture, mask) == 0.25
    assert filled(Image.new("RGB", (64, 64)), None) == 1


# Findings


def test_good_photos_have_no_findings() -> None:
    report = photo_report(photos(*GOOD), size=128)
    assert report.findings == ()
    report.check()
    assert [(facts.width, facts.height, facts.path.name) for facts in report.photos] == [
        (128, 128, f"{index}.png") for index in range(3)
    ]


def test_too_few() -> None:
    (finding,) = photo_report(photos(*GOOD[:2]), size=128).findings
    assert (finding.kind, finding.photos, finding.fatal) == ("count", (), False)
    assert finding.text == "only 2 of the 3 to 5 photos that do best: add more views."


def test_too_small() -> None:
    assert kinds(*GOOD, size=129) == [("size", (f"{index}.png",)) for index in range(3)]
    (finding, *_) = photo_report(photos(*GOOD), size=512).findings
    assert finding.text == "0.png is 128x128 where 512 pixels are drawn: it is enlarged, and detail is missing."


def test_blurred() -> None:
    assert kinds(*GOOD, texture(3).filter(ImageFilter.GaussianBlur(5))) == [("blur", ("3.png",))]


def test_nearly_the_same_photos_are_one_finding() -> None:
    copies = [GOOD[0].resize((side, side), Image.Resampling.BICUBIC) for side in (129, 140)]
    report = photo_report(photos(*GOOD, *copies), size=128)
    (finding,) = report.findings
    assert finding.photos == ("0.png", "3.png", "4.png")
    assert finding.text.startswith(
        "0.png, 3.png and 4.png are nearly the same picture: they teach little more than one"
    )


@pytest.mark.parametrize(
    ("change", "kind"),
    [(lambda value: value * 0.3, "dark"), (lambda value: 210 + value * 0.2, "bright")],
)
def test_exposure(change: object, kind: str) -> None:
    assert kinds(*GOOD, texture(3).point(change)) == [(kind, ("3.png",))]  # type: ignore[arg-type]


def test_nearly_all_of_it_is_clipped() -> None:
    for level, kind in (("white", "bright"), ("black", "dark")):
        picture = Image.new("RGB", (128, 128), level)
        picture.paste(texture(3, 46), (40, 40))  # 13 % of it
        assert kinds(*GOOD, picture) == [(kind, ("3.png",))]


def test_a_white_backdrop_is_no_fault() -> None:
    picture = Image.new("RGB", (128, 128), "white")
    picture.paste(texture(3, 64), (32, 32))
    assert kinds(*GOOD, picture) == []


def test_small_in_the_frame() -> None:
    picture = Image.new("RGB", (128, 128), "gray")
    picture.paste(texture(3, 32), (32, 32))
    assert kinds(*GOOD, picture) == [("small", ("3.png",))]
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 32, 32))
    assert {kind for kind, _ in kinds(*GOOD, mask=mask)} == {"small"}


def test_a_plain_picture_is_refused_and_comes_first() -> None:
    report = photo_report(photos(*GOOD[:1], Image.new("RGB", (128, 128), "gray")), size=128)
    assert [(finding.kind, finding.fatal) for finding in report.findings] == [("plain", True), ("count", False)]
    with pytest.raises(PhotoError, match=r"1\.png is of one plain colour: nothing can be learned from it. Take it out"):
        report.check()


def test_of_the_80_example_photos_one_is_taken_for_small() -> None:
    findings = {example.name: photo_report(example.photos, size=128).findings for example in cones2.EXAMPLES.values()}
    found = [(name, finding.kind, finding.photos) for name, these in findings.items() for finding in these]
    assert found == [("hugo", "small", ("3.png",))]  # a false alarm: the owl has the wall's colour


@given(st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=20)
def test_a_report_does_not_change_photos_and_is_the_same_again(count: int, seed: int) -> None:
    given_photos = photos(*(texture(seed + index) for index in range(count)))
    before = [photo.image.tobytes() for photo in given_photos]
    assert photo_report(given_photos) == photo_report(given_photos)
    assert [photo.image.tobytes() for photo in given_photos] == before
