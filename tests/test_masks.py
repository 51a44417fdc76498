"""Masks: read beside their photos, followed by crops, weighed in latent cells."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from PIL import Image, ImageDraw
from torch.testing import assert_close

from cones2.errors import Cones2Warning, PhotoError
from cones2.photos import Photo, load_photos, views
from cones2.shapes import Mask as LayoutMask


def save(folder: Path, name: str, image: Image.Image) -> None:
    folder.mkdir(exist_ok=True)
    image.save(folder / name)


def marked(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    for box in boxes:
        mask.paste(255, box)
    return mask


def load(tmp_path: Path, mask: Image.Image, name: str = "a.png") -> Photo:
    save(tmp_path / "photos", "a.jpg", Image.new("RGB", (80, 40), "gray"))
    save(tmp_path / "masks", name, mask)
    return load_photos(tmp_path / "photos", masks=tmp_path / "masks")[0]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.PNG", "a.JPG", "a.jfif"])
def test_a_mask_goes_by_its_photos_name(tmp_path: Path, name: str) -> None:
    mask = load(tmp_path, marked((80, 40), (0, 0, 40, 40)), name).mask
    assert mask is not None
    assert (mask.mode, mask.size) == ("L", (80, 40))
    assert mask.getpixel((10, 20)) == pytest.approx(255, abs=3)
    assert mask.getpixel((70, 20)) == pytest.approx(0, abs=3)


def test_a_mask_of_another_size_is_scaled(tmp_path: Path) -> None:
    mask = load(tmp_path, marked((160, 80), (0, 0, 80, 80))).mask
    assert mask is not None
    assert mask.size == (80, 40)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (80, 40)), "empty"),
        (Image.new("L", (80, 40), 1), "empty: its brightest value is 1 of 255"),
        (Image.new("L", (40, 80), 255), "40x80"),
    ],
    ids=["empty", "of ones", "of another shape"],
)
def test_masks_that_can_not_be_used(tmp_path: Path, mask: Image.Image, message: str) -> None:
    with pytest.raises(PhotoError, match=message):
        load(tmp_path, mask)


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (Image.new("RGB", (80, 40), "red"), "has colours: its brightest value is 76 of 255"),
        (Image.new("L", (80, 40), 100), "is dim: its brightest value is 100 of 255"),
    ],
)
def test_a_coloured_or_dim_mask_warns_with_its_brightest_value(tmp_path: Path, mask: Image.Image, told: str) -> None:
    mask.paste(0, (40, 0, 80, 40))
    with pytest.warns(Cones2Warning, match=rf"a\.png {told}"):
        photo = load(tmp_path, mask)
    assert photo.mask is not None
    assert photo.mask.getbbox() == (0, 0, 40, 40)
    assert views(photo, count=1, generator=torch.Generator())[0] == (0, 0, 40)
    with pytest.warns(Cones2Warning, match=f"{tmp_path.name}.*{told}"):
        LayoutMask.load(tmp_path / "masks" / "a.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_opaque_counts_where_a_mask_has_transparent_parts(tmp_path: Path, mode: str) -> None:
    """As a cut-out of the subject has it, whatever its colours."""
    cut = Image.effect_noise((80, 40), 90).convert(mode)
    cut.putalpha(marked((80, 40), (0, 0, 40, 40)))
    mask = load(tmp_path, cut).mask
    assert mask is not None
    assert mask.tobytes() == marked((80, 40), (0, 0, 40, 40)).tobytes()
    assert LayoutMask.load(tmp_path / "masks" / "a.png").pixels == mask.tobytes()


def test_brightness_counts_where_a_mask_is_all_opaque(tmp_path: Path) -> None:
    opaque = marked((80, 40), (0, 0, 40, 40)).convert("RGBA")
    mask = load(tmp_path, opaque).mask
    assert mask is not None
    assert mask.tobytes() == marked((80, 40), (0, 0, 40, 40)).tobytes()
    assert LayoutMask.load(tmp_path / "masks" / "a.png").pixels == mask.tobytes()


def test_of_two_masks_of_a_name_the_png_counts(tmp_path: Path) -> None:
    save(tmp_path / "masks", "a.jpg", Image.new("L", (80, 40), 255))
    mask = load(tmp_path, marked((80, 40), (0, 0, 40, 40)), "a.PNG").mask
    assert mask is not None
    assert mask.getpixel((70, 20)) == 0


def test_a_folder_of_masks_that_is_not_there(tmp_path: Path) -> None:
    save(tmp_path / "photos", "a.jpg", Image.new("RGB", (80, 40), "gray"))
    with pytest.raises(PhotoError, match="nowhere"):
        load_photos(tmp_path / "photos", masks=tmp_path / "nowhere")


def test_a_missing_mask_is_named(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"a\.jpg"):
        load(tmp_path, Image.new("L", (80, 40), 255), "b.png")


def test_a_mask_that_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_text("no picture")
    save(tmp_path / "photos", "a.jpg", Image.new("RGB", (80, 40), "gray"))
    with pytest.raises(PhotoError, match=r"a\.png"):
        load_photos(tmp_path / "photos", masks=tmp_path / "masks")


def test_the_whole_view_is_slid_to_the_mask() -> None:
    image = Image.effect_noise((80, 40), 80).convert("RGB")
    for left in (0, 20, 40):
        (view,) = views(
            Photo(Path(), "", image, marked((80, 40), (left + 5, 10, left + 35, 30))),
            count=1,
            generator=torch.Generator(),
        )
        assert view == (left, 0, 40)


@settings(max_examples=60)
@given(st.integers(20, 90), st.integers(20, 90), st.data())
def test_no_closer_view_cuts_off_a_subject_that_fits(width: int, height: int, data: st.DataObject) -> None:
    side = data.draw(st.integers(1, int(0.8 * min(width, height))))
    left, top = data.draw(st.integers(0, width - side)), data.draw(st.integers(0, height - side))
    mask = marked((width, height), (left, top, left + side, top + side))
    photo = Photo(Path(), "", Image.new("RGB", (width, height)), mask)
    for view in views(photo, count=5, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))):
        assert view.left - 1e-6 <= left
        assert left + side <= view.left + view.side + 1e-6
        assert view.top - 1e-6 <= top
        assert top + side <= view.top + view.side + 1e-6
        assert min(view.left, view.top) >= 0
        assert view.left + view.side <= width + 1e-6
        assert view.top + view.side <= height + 1e-6


def test_the_share_of_each_cell_by_hand() -> None:
    mask = Image.new("L", (8, 8))
    ImageDraw.Draw(mask).rectangle((0, 0, 4, 3), fill=255)  # five columns, four rows
    photo = Photo(Path(), "", Image.new("RGB", (8, 8)), mask)
    (view,) = views(photo, count=1, generator=torch.Generator())
    expected = torch.tensor([[[1, 1, 0.5, 0], [1, 1, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 0]]])
    assert_close(view.share(photo, 4), expected, atol=0.01, rtol=0)
