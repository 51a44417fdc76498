"""Pictures carry their record."""

import errno
import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cones2.errors import OutputError, PictureError
from cones2.picture import read_record, write_picture

RED = Image.new("RGB", (8, 8), "red")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def png_with(*chunks: tuple[bytes, bytes], side: int = 1) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(b"\0\0\0\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def itxt(text: bytes) -> tuple[bytes, bytes]:
    return b"iTXt", b"cones2\0\0\0\0\0" + text


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_record_comes_back(tmp_path: Path, record: dict[str, object]) -> None:
    write_picture(tmp_path / "a.png", RED, record)
    assert read_record(tmp_path / "a.png") == record
    assert read_record(str(tmp_path / "a.png")) == record


def test_pixels_and_chunk_are_plain_png(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", RED, {"prompt": "犬 \udcff", "seed": 3})
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert image.tobytes() == RED.tobytes()
    assert b'iTXtcones2\0\0\0\0\0{"prompt": "\\u72ac \\udcff", "seed": 3}' in (tmp_path / "a.png").read_bytes()
    assert read_record(tmp_path / "a.png") == {"prompt": "犬 \udcff", "seed": 3}


MADE = {
    "text": "a cat and a mug",
    "seed": 6,
    "settings": {"steps": 50, "guidance_scale": 7.5, "negative_prompt": "fog\nrain", "scheduler": None},
    "sampler": "euler-a",
    "backbone": {"name": "mini", "encoder": {}},
}


def test_other_tools_find_the_parameters(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", RED, MADE)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"].splitlines() == [
            "a cat and a mug",
            "Negative prompt: fog",
            "rain",
            "Steps: 50, Sampler: Euler a, CFG scale: 7.5, Seed: 6, Size: 8x8, Model: mini",
        ]
    assert read_record(tmp_path / "a.png") == MADE


def test_the_parameters_tell_karras_apart(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", RED, {**MADE, "sampler": "dpm++-karras"})
    with Image.open(tmp_path / "a.png") as image:
        assert "Steps: 50, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5" in image.info["parameters"]


def test_parameters_are_quoted_where_they_hold_a_separator(tmp_path: Path) -> None:
    settings = {"steps": 1, "guidance_scale": 1.0, "negative_prompt": ""}
    made = {
        **MADE,
        "text": "犬 \udcff",
        "settings": settings,
        "sampler": "sa",
        "backbone": {"name": "my model: new, better"},
    }
    write_picture(tmp_path / "a.png", RED, made)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["parameters"].splitlines() == [
            r"犬 \udcff",
            'Steps: 1, Sampler: sa, CFG scale: 1.0, Seed: 6, Size: 8x8, Model: "my model: new, better"',
        ]


def test_what_is_no_picture_of_ours_has_no_parameters(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", RED, {"layout": None})
    with Image.open(tmp_path / "a.png") as image:
        assert "parameters" not in image.info


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_picture(tmp_path / "a.png", RED, {})
    assert list(tmp_path.iterdir()) == []


def test_a_record_too_large(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"record of 1,048,591 bytes for .*a.png; expected at most 1,048,576"):
        write_picture(tmp_path / "a.png", RED, {"prompt": "x" * (2**20 + 1)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png_with(), "holds no record of how it was made; expected a picture that cones2 wrote, unedited"),
        (png_with((b"tEXt", b"parameters\0a dog")), "holds no record"),
        (png_with(itxt(b"{")), "its record is damaged: Expecting property name"),
        (png_with(itxt(b"[" * 100_000)), "its record is damaged: "),
        (png_with(itxt(b"[1]")), "its record is a list; expected a JSON object"),
        (png_with(itxt(b'"' + b"x" * 2**20)), "its record has 1,048,577 characters; expected at most 1,048,576"),
        (png_with((b"zTXt", b"k\0\0" + zlib.compress(b"\0" * 2**21))), "is damaged: Decompressed data too large"),
        (png_with(itxt(b"{}"))[:40], "is not a PNG picture, or only a part of one"),
        (b"\xff\xd8\xff\xe0 a JPEG", "is not a PNG picture, or only a part of one. Expected one that cones2 wrote"),
        (b"", "is not a PNG picture"),
    ],
)
def test_pictures_without_a_sound_record(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PictureError, match=f"a.png:? {message}"):
        read_record(tmp_path / "a.png")


def test_a_missing_picture(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"can't read .*a.png: No such file"):
        read_record(tmp_path / "a.png")


def test_bombs_are_not_decoded_for_their_record(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_with(itxt(b"{}"), side=60_000))
    with pytest.raises(PictureError, match="has too many pixels; expected at most 80 million"):
        read_record(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png_with(itxt(b"{}"), side=8_900))
    assert read_record(tmp_path / "a.png") == {}
