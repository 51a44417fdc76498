"""Pictures carry their record in a PNG."""

import errno
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cones2.errors import Cones2Warning, OutputError, PictureError
from cones2.png import read_record, write_picture

RED = Image.new("RGB", (8, 8), "red")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MADE = {
    "text": "a cat and a mug",
    "seed": 6,
    "num_inference_steps": 50,
    "guidance_scale": 7.5,
    "negative_prompt": "fog\nrain",
    "scheduler": {"class_name": "EulerAncestralDiscreteScheduler", "config": {}},
    "model": {"name": "mini", "encoders": []},
}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: tuple[bytes, bytes], side: int = 1) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    parts = [header, *chunks, (b"IDAT", zlib.compress(b"\0\0\0\0")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def itxt(text: bytes) -> tuple[bytes, bytes]:
    return b"iTXt", b"cones2\0\0\0\0\0" + text


def zipped(text: bytes) -> tuple[bytes, bytes]:
    return b"iTXt", b"cones2\0\1\0\0\0" + zlib.compress(text)


def parameters(path: Path) -> list[str]:
    with Image.open(path) as image:
        return str(image.info["parameters"]).splitlines()


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


def test_other_tools_find_the_parameters(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", RED, MADE)
    assert parameters(tmp_path / "a.png") == [
        "a cat and a mug",
        "Negative prompt: fog",
        "rain",
        "Steps: 50, Sampler: Euler a, CFG scale: 7.5, Seed: 6, Size: 8x8, Model: mini",
    ]
    assert read_record(tmp_path / "a.png") == MADE


def test_any_name_and_text_stay_in_their_field(tmp_path: Path) -> None:
    named = {"model": {"name": "my model: new, better"}, "text": "犬 \udcff", "negative_prompt": "", "seed": None}
    scheduler = {"class_name": "SASolverScheduler", "config": {}}
    write_picture(tmp_path / "a.png", RED, {**MADE, **named, "scheduler": scheduler})
    assert parameters(tmp_path / "a.png") == [
        r"犬 \udcff",
        "Steps: 50, Sampler: SASolver, CFG scale: 7.5, Size: 8x8, Model: my model  new  better",
    ]


def test_what_is_no_picture_of_ours_has_no_parameters(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", RED, {"layout": None})
    with Image.open(tmp_path / "a.png") as image:
        assert "parameters" not in image.info


def test_residuals_are_left_out_when_asked_and_where_there_is_no_room(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", RED, {"prompt": "a dog", "residuals": {"0": "abc"}}, embed=False)
    assert read_record(tmp_path / "a.png") == {"prompt": "a dog"}
    with pytest.warns(Cones2Warning, match=r"a\.png"):
        write_picture(tmp_path / "a.png", RED, {"prompt": "a cat", "residuals": {"0": "x" * 2**20}})
    assert read_record(tmp_path / "a.png") == {"prompt": "a cat"}


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"a\.png"):
        write_picture(tmp_path / "a.png", RED, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("image", "record", "value"),
    [
        (RED, {"prompt": "x" * (2**20 + 1)}, "1,048,591"),
        (RED, {"prompt": float("nan")}, "not JSON"),
        (RED, {"prompt": object()}, "object"),
        (np.zeros((8, 8, 3)), {}, "ndarray"),
        (RED.convert("CMYK"), {}, "CMYK"),
    ],
)
def test_what_can_not_be_written(tmp_path: Path, image: object, record: dict[str, object], value: str) -> None:
    with pytest.raises(PictureError, match=value):
        write_picture(tmp_path / "a.png", image, record)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (png_with(), "no record"),
        (png_with((b"tEXt", b"parameters\0a dog")), "no record"),
        (png_with(itxt(b"{")), "damaged"),
        (png_with(itxt(b"[" * 100_000)), "damaged"),
        (png_with(itxt(b"\xff")), "no record"),
        (png_with((b"iTXt", b"cones2\0")), "no record"),
        (png_with((b"iTXt", b"cones2\0\1\0\0\0no zlib")), "no record"),
        (png_with(itxt(b"{}")).replace(b"{}", b"[]"), "checksum"),
        (png_with(itxt(b"[1]")), "no record"),
        (png_with(itxt(b'"' + b"x" * 2**20)), "1,048,577"),
        (png_with(zipped(b" " * 2**24)), "too large"),
        (png_with(itxt(b"{}"))[:40], "damaged"),
        (b"\xff\xd8\xff\xe0 a JPEG", "not a PNG"),
        (b"", "not a PNG"),
    ],
)
def test_pictures_without_a_sound_record(tmp_path: Path, content: bytes, value: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(PictureError, match=rf"a\.png.*{value}"):
        read_record(tmp_path / "a.png")


def test_a_missing_picture(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"a\.png"):
        read_record(tmp_path / "a.png")


def test_a_record_is_read_without_the_pixels_and_also_compressed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_with(itxt(b'{"seed": 1}'), side=30_000))
    assert read_record(tmp_path / "a.png") == {"seed": 1}
    (tmp_path / "a.png").write_bytes(png_with(zipped(b'{"seed": 1}')))
    assert read_record(tmp_path / "a.png") == {"seed": 1}
