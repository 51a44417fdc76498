"""Photos: JPEG, PNG, WebP, AVIF and HEIC are read upright; anything else is refused; crops keep the subject."""

import hashlib
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from cones2.errors import Cones2Warning, PhotoError
from cones2.photos import Photo, crop_square, load_photos, views


def noise(width: int = 48, height: int = 32, *, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, format=kind, **options)
    return content.getvalue()


def load(folder: Path, content: bytes, name: str = "photo.jpg") -> Image.Image:
    (folder / name).write_bytes(content)
    return load_photos(folder / name)[0].image


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int, *extra: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + png_chunk(b"IEND", b"")


def test_a_folder_is_read_sorted_without_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "b.JPG").write_bytes(encoded(noise(), "JPEG"))
    (tmp_path / "a.png").write_bytes(encoded(noise(), "PNG"))
    (tmp_path / "c.webp").write_bytes(encoded(noise(), "WEBP"))
    (tmp_path / "misnamed.png").write_bytes(encoded(noise(), "JPEG"))
    for other in (".DS_Store", ".hidden.jpg", "notes.txt", "layout.json", "README"):
        (tmp_path / other).write_text("no picture")
    (tmp_path / "sub.jpg").mkdir()
    with pytest.warns(Cones2Warning, match=r"left out.*: README, layout\.json, notes\.txt, sub\.jpg\.$") as told:
        photos = load_photos(tmp_path)
    assert len(told) == 1
    assert [photo.path.name for photo in photos] == ["a.png", "b.JPG", "c.webp", "misnamed.png"]
    assert all(photo.image.mode == "RGB" and photo.image.size == (48, 32) for photo in photos)
    assert photos[0].sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert photos[0].image.tobytes() == noise().tobytes()


def test_many_files_that_are_left_out_are_still_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(), "PNG"))
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text("a caption")
    with pytest.warns(Cones2Warning, match=r"0\.txt, .*4\.txt and more\.$"):
        load_photos(tmp_path)


def test_masks_in_a_sub_folder_of_the_photos_are_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    for name in ("a.png", "masks/a.png"):
        (tmp_path / name).write_bytes(encoded(noise().convert("L"), "PNG"))
    (photo,) = load_photos(tmp_path, masks=tmp_path / "masks")  # warnings are errors
    assert photo.mask is not None


def test_a_folder_without_photos_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "rex").mkdir()
    with pytest.raises(PhotoError, match=r"holds no photos.*Left out.*: rex\."):
        load_photos(tmp_path)


@pytest.mark.parametrize("name", ["photo", "IMG_1.jps", "photo.mpo", "photo.JPE", "photo.png"])
def test_jpeg_and_mpo_by_any_suffix(tmp_path: Path, name: str) -> None:
    for kind in ("JPEG", "MPO"):
        (tmp_path / name).write_bytes(encoded(noise(), kind))
        assert [photo.path.name for photo in load_photos(tmp_path)] == [name]


def test_avif_and_heic_are_read(tmp_path: Path) -> None:
    halves = Image.new("RGB", (48, 32), "red")
    halves.paste("blue", (24, 0, 48, 32))
    (tmp_path / "a.avif").write_bytes(encoded(halves, "AVIF"))
    (tmp_path / "b.heic").write_bytes(heic(halves))
    for photo in load_photos(tmp_path):
        assert photo.image.size == (48, 32)
        assert photo.image.getpixel((4, 16)) == pytest.approx((255, 0, 0), abs=20)
        assert photo.image.getpixel((44, 16)) == pytest.approx((0, 0, 255), abs=20)


def test_heic_without_its_reader_is_named_with_a_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pillow_heif", "pillow_heif.as_plugin"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PhotoError, match=r"photo\.jpg is a HEIC picture.*pip install 'cones2\[heic\]'.*JPEG"):
        load(tmp_path, heic(noise()))


def heic(image: Image.Image) -> bytes:
    content = io.BytesIO()
    pillow_heif.from_pillow(image).save(content, format="HEIF")
    return content.getvalue()


def test_a_list_may_hold_folders(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(), "PNG"))
    assert [photo.path.name for photo in load_photos([tmp_path / "a.png", tmp_path])] == ["a.png", "a.png"]
    assert repr(load_photos(tmp_path)[0]) == "Photo('a.png', 48x32)"


def test_a_list_keeps_its_order_and_follows_links(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(), "PNG"))
    (tmp_path / "link").symlink_to(tmp_path / "a.png")
    paths = [tmp_path / "link", tmp_path / "a.png", tmp_path / "a.png"]
    assert [photo.path for photo in load_photos(paths)] == paths


def test_paths_may_be_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(), "PNG"))
    Image.new("L", (48, 32), "white").save(tmp_path / "mask.png")
    (tmp_path / "masks").mkdir()
    (tmp_path / "mask.png").rename(tmp_path / "masks" / "a.png")
    for source in (f"{tmp_path}", f"{tmp_path}/a.png", [f"{tmp_path}/a.png"]):
        (photo,) = load_photos(source, masks=f"{tmp_path}/masks")
        assert photo.path == tmp_path / "a.png"
        assert photo.mask is not None


def test_too_few_photos(tmp_path: Path) -> None:
    for source in (tmp_path, [tmp_path], []):
        with pytest.raises(PhotoError):
            load_photos(source)


def test_too_many_photos(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="201"):
        load_photos([tmp_path / "a.png"] * 201)


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="missing"):
        load_photos(tmp_path / "missing")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_exif_orientations_come_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    upright = Image.new("RGB", (64, 32), "white")
    upright.paste("red", (0, 0, 16, 16))
    upright.paste("blue", (48, 0, 64, 16))
    # How a camera stores it, so that EXIF's rotation undoes it: the inverse of each transposition.
    stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load(tmp_path, encoded(image, kind, exif=exif, quality=95))
    assert loaded.size == (64, 32)
    assert loaded.info == {}
    assert np.abs(np.asarray(loaded, float) - np.asarray(upright, float)).mean() < 4


@pytest.mark.parametrize(
    ("image", "pixel"),
    [
        (Image.new("RGBA", (32, 32), (255, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (32, 32), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("LA", (32, 32), (0, 0)), (255, 255, 255)),
        (Image.new("1", (32, 32), 1), (255, 255, 255)),
        (Image.new("L", (32, 32), 7), (7, 7, 7)),
        (Image.fromarray(np.full((32, 32), 0x8123, dtype=np.uint16)), (0x81, 0x81, 0x81)),
    ],
    ids=["transparent", "half transparent", "transparent gray", "bits", "gray", "16 bit gray"],
)
def test_every_mode_becomes_rgb_on_white(tmp_path: Path, image: Image.Image, pixel: tuple[int, int, int]) -> None:
    loaded = load(tmp_path, encoded(image, "PNG"))
    assert loaded.mode == "RGB"
    assert loaded.getpixel((5, 5)) == pixel


def test_palettes_and_cmyk(tmp_path: Path) -> None:
    assert load(tmp_path, encoded(Image.new("P", (32, 32), 0), "PNG", transparency=0)).getpixel((0, 0)) == (255,) * 3
    cyan = load(tmp_path, encoded(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG")).getpixel((0, 0))
    assert cyan == pytest.approx((0, 255, 255), abs=2)


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_only_the_first_frame_counts(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert load(tmp_path, content).getpixel((0, 0)) == (255, 0, 0)


def test_large_photos_are_scaled_down(tmp_path: Path) -> None:
    assert load(tmp_path, encoded(Image.new("RGB", (6000, 3000)), "JPEG")).size == (2048, 1024)
    assert load(tmp_path, encoded(Image.new("RGB", (16, 17)), "JPEG")).size == (16, 17)


HOSTILE = {
    **{
        f"{kind} cut at {part}/24": encoded(noise(), kind)[: len(encoded(noise(), kind)) * part // 24]
        for kind in ("JPEG", "PNG", "WEBP")
        for part in range(23)
    },
    **{f"{kind} renamed": encoded(noise(), kind) for kind in ("GIF", "TIFF", "BMP", "PPM", "ICO", "TGA", "PCX", "PDF")},
    "photoshop": b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 32, 32, 8, 3) + b"\0" * 4000,
    "fits": b"SIMPLE  =                    T".ljust(2880),
    "text": b"not a picture",
    "html": b"<html><img src=x></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "zip": b"PK\3\4" + b"\0" * 100,
    "zeros": b"\0" * 10_000,
    "jpeg marker only": b"\xff\xd8\xff\xe0",
    "png of garbage": b"\x89PNG\r\n\x1a\n" + b"garbage" * 100,
    "webp of garbage": b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"garbage" * 100,
    "png without enough pixels": png_that_claims(64, 64),
    "png with a wrong checksum": encoded(noise(), "PNG").replace(b"IDAT", b"IDAU"),
    "png text bomb": png_that_claims(
        32, 32, png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 80_000_000)), png_chunk(b"IHDR", b"")
    ),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_files_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(PhotoError, match=r"photo\.jpg"):
        load(tmp_path, content)


@pytest.mark.parametrize("sides", [(60_000, 60_000), (10_000, 5_001), (12_000, 10_000)])
def test_bombs_are_refused_before_decoding(tmp_path: Path, sides: tuple[int, int]) -> None:
    with pytest.raises(PhotoError, match="50 million"):
        load(tmp_path, png_that_claims(*sides))


@pytest.mark.parametrize("sides", [(1, 65535), (65535, 1), (15, 20)])
def test_shapes_that_can_not_be_used(tmp_path: Path, sides: tuple[int, int]) -> None:
    with pytest.raises(PhotoError, match=f"{sides[0]}x{sides[1]}"):
        load(tmp_path, png_that_claims(*sides))


def test_a_file_too_large(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="100,000,000"):
        load(tmp_path, b"\xff" * 100_000_001)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PhotoError, match=r"pipe\.jpg"):
        load_photos(tmp_path)


def test_one_bad_picture_in_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(noise(), "PNG"))
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    with pytest.raises(PhotoError, match=r"b\.heic is damaged"):
        load_photos(tmp_path)


def test_a_folder_that_can_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(PhotoError, match="Permission denied"):
        load_photos(tmp_path)


# Metadata never decides whether a sound picture is read


BAD_EXIF = b"\0\x08\0\2\1\x12\0\3"


def png_with(*chunks: bytes) -> bytes:
    plain = encoded(noise(), "PNG")
    return plain[:33] + b"".join(chunks) + plain[33:]


@pytest.mark.parametrize(
    "content",
    [
        png_with(png_chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b'{"nodes":[]}' * 120_000))),
        png_with(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x/>" * 300_000))),
        png_with(png_chunk(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(80_000_000)))),
        png_with(png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000)))),
        png_with(png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(80_000_000)))),
        png_with(png_chunk(b"iCCP", b"icc\0\0garbage")),
        png_with(png_chunk(b"tEXt", b"k\0v")[:-1] + b"?"),
        png_with(png_chunk(b"eXIf", BAD_EXIF)[:-1] + b"?"),
        png_with(png_chunk(b"eXIf", BAD_EXIF)),
        encoded(noise(), "WEBP", exif=BAD_EXIF, lossless=True),
        encoded(noise(), "WEBP", exif=b"Exif\0\0garbage", lossless=True),
    ],
)
def test_sound_pixels_with_odd_metadata_are_read(tmp_path: Path, content: bytes) -> None:
    loaded = load(tmp_path, content)
    assert loaded.tobytes() == noise().tobytes()
    assert loaded.info == {}


def test_a_jpeg_with_bad_exif_is_read(tmp_path: Path) -> None:
    assert load(tmp_path, encoded(noise(), "JPEG", exif=b"Exif\0\0" + BAD_EXIF)).size == (48, 32)


def test_transparency_of_a_large_palette_takes_little_more_memory_than_its_pixels(tmp_path: Path) -> None:
    image = Image.new("P", (7000, 7000), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    (tmp_path / "large.png").write_bytes(encoded(image, "PNG", transparency=0))
    code = (
        "import resource, sys; from cones2.photos import load_photos\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "(photo,) = load_photos(sys.argv[1]); assert photo.image.getpixel((5, 5)) == (255, 0, 0)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "large.png")]
    taken = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert taken < 400  # MiB, of which 49 are the palette's pixels and 196 those of the picture in Pillow's RGB


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([encoded(noise(), kind) for kind in ("JPEG", "PNG", "WEBP")]),
    st.lists(st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
)
def test_mutated_pictures_load_or_raise_photo_error(
    tmp_path: Path, content: bytes, changes: list[tuple[int, bytes]]
) -> None:
    for place, new in changes:
        place %= len(content)
        content = content[:place] + new + content[place + len(new) :]
    try:
        image = load(tmp_path, content)
    except PhotoError:
        return
    assert image.mode == "RGB"


def scene(width: int, height: int, subject: tuple[int, int, int, int]) -> Image.Image:
    """Draw a checkered subject on a sky above faintly rough ground."""
    grain = np.random.default_rng(1).integers(-6, 7, (height, width, 1))
    pixels = np.where(np.arange(height)[:, None, None] < height // 2, [120, 170, 230], [110, 160, 90]) + grain
    left, top, right, bottom = subject
    checks = (np.add.outer(np.arange(bottom - top), np.arange(right - left)) // 8) % 2
    pixels[top:bottom, left:right] = checks[..., None] * [150, 0, 0] + [90, 30, 20]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "subject"),
    [
        ((300, 200), (10, 60, 90, 160)),
        ((300, 200), (205, 60, 295, 160)),
        ((400, 200), (130, 40, 270, 180)),
        ((200, 300), (50, 190, 150, 290)),
        ((200, 300), (50, 5, 150, 105)),
    ],
    ids=["left", "right", "middle", "low", "high"],
)
def test_the_whole_view_keeps_a_subject_that_stands_aside(
    size: tuple[int, int], subject: tuple[int, int, int, int]
) -> None:
    image = scene(*size, subject)
    red = (np.asarray(image, float)[..., 0] - np.asarray(image, float)[..., 2]) > 60
    view = np.asarray(crop_square(image, 200), float)
    assert view.shape == (200, 200, 3)
    assert ((view[..., 0] - view[..., 2]) > 60).sum() >= 0.99 * red.sum()


def test_a_square_photo_is_only_resized() -> None:
    image = noise(40, 40)
    assert crop_square(image, 40).tobytes() == image.tobytes()


def test_a_plain_photo_is_cut_in_the_middle() -> None:
    image = Image.new("RGB", (300, 100), "gray")
    image.info["note"] = "kept nowhere"
    assert crop_square(image, 50).size == (50, 50)


def test_closer_crops_by_hand() -> None:
    quarters = Image.new("RGB", (64, 64), "red")
    for name, corner in (("lime", (32, 0)), ("blue", (0, 32)), ("white", (32, 32))):
        quarters.paste(name, (*corner, corner[0] + 32, corner[1] + 32))
    expected = {(0.0, 0.0): (255, 0, 0), (1.0, 0.0): (0, 255, 0), (0.0, 1.0): (0, 0, 255), (1.0, 1.0): (255, 255, 255)}
    for center, color in expected.items():
        assert crop_square(quarters, 8, scale=0.5, center=center).getpixel((4, 4)) == color


@settings(max_examples=60)
@given(st.integers(16, 90), st.integers(16, 90), st.floats(0.05, 1), st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_any_crop_stays_inside(width: int, height: int, scale: float, center: tuple[float, float]) -> None:
    assert crop_square(noise(width, height), 24, scale=scale, center=center).size == (24, 24)


def test_views(tmp_path: Path) -> None:
    photo = Photo(tmp_path, "", noise(60, 40))
    first, *closer = views(photo, count=4, generator=torch.Generator().manual_seed(0))
    assert first.of(photo, 32).tobytes() == crop_square(photo.image, 32).tobytes()
    assert views(photo, count=4, generator=torch.Generator().manual_seed(0)) == [first, *closer]
    assert len({first, *closer}) == 4
    assert all(32 <= view.side <= 40 for view in closer)
    assert len(views(photo, count=1, generator=torch.Generator())) == 1
    assert torch.equal(first.share(photo, 5), torch.ones(1, 5, 5))  # without a mask all of it is the subject


# Colour profiles


def profiled(image: Image.Image, profile: bytes, kind: str = "PNG") -> bytes:
    return encoded(image, kind, icc_profile=profile)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """An RGB profile whose red and green are exchanged: sRGB's own, with two tags renamed."""
    names = [(b"rXYZ", b"tmpX"), (b"gXYZ", b"rXYZ"), (b"tmpX", b"gXYZ")]
    header, body = SRGB[:128], SRGB[128:]
    for old, new in names:
        body = body.replace(old, new, 1)
    return header + body


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_colour_profiles_are_applied(tmp_path: Path, kind: str) -> None:
    red = Image.new("RGB", (32, 32), (200, 20, 20))
    pixel = load(tmp_path, profiled(red, swapped_profile(), kind)).getpixel((5, 5))
    assert pixel == pytest.approx((20, 200, 20), abs=4)
    assert load(tmp_path, profiled(red, SRGB, kind)).getpixel((5, 5)) == pytest.approx((200, 20, 20), abs=4)


@pytest.mark.parametrize(
    "profile", [b"", b"garbage" * 100, SRGB[:200], SRGB.replace(b"RGB ", b"CMYK", 1), SRGB.replace(b"RGB ", b"Lab ", 1)]
)
def test_a_profile_that_does_not_fit_is_ignored(tmp_path: Path, profile: bytes) -> None:
    red = Image.new("RGB", (32, 32), (200, 20, 20))
    loaded = load(tmp_path, profiled(red, profile))
    assert loaded.getpixel((5, 5)) == (200, 20, 20)
    assert loaded.info == {}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(SRGB) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_mutated_profiles_never_stop_a_photo(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    profile = bytearray(SRGB)
    for place, value in changes:
        profile[place] = value
    image = load(tmp_path, profiled(noise(), bytes(profile)))
    assert (image.mode, image.size) == ("RGB", (48, 32))
