"""The residual's file: what is saved is loaded, anything else is refused, and it knows which encoder it fits."""

import copy
import dataclasses
import json
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import cones2.examples
from cones2.errors import Cones2Warning, OutputError, ResidualError, ResidualMismatchError, SettingsError
from cones2.residual.format import MAX_FILE_BYTES
from cones2.residual.residual import EncoderId, Residual

ENCODER = EncoderId(name="tiny", width=5, weights="ab" * 32, probe=(0.5, -1.25, 3.0))
PHOTOS = ("12" * 32, "34" * 32, "56" * 32, "78" * 32, "9a" * 32)


def make(tokens: int = 2, width: int = 5, **changes: Any) -> Residual:
    fields: dict[str, Any] = {
        "class_word": "teddy bear",
        "vector": torch.arange(tokens * width, dtype=torch.float32).reshape(tokens, width) / 7,
        "tokens": tuple(f"token{i}</w>" for i in range(tokens)),
        "encoder": dataclasses.replace(ENCODER, width=width),
        "recipe": {"name": "paper", "steps": 3000, "learning_rate": 1e-6},
        "photos": PHOTOS,
        "tool_version": "0.1.0",
    }
    return Residual(**{**fields, **changes})


def make_two(**changes: Any) -> Residual:
    """A residual for two text encoders, of widths 5 and 3."""
    second = EncoderId(name="tiny", width=3, weights="cd" * 32, probe=(1.0, 2.0))
    fields = {"vector": torch.arange(16.0).reshape(2, 8) / 7, "encoder": dataclasses.replace(ENCODER, second=second)}
    return make(**fields | changes)


# What is saved is loaded


def test_round_trip(tmp_path: Path) -> None:
    saved = make()
    saved.save(tmp_path / "ted.safetensors")
    loaded = Residual.load(tmp_path / "ted.safetensors")
    assert torch.equal(loaded.vector, saved.vector)
    for field in dataclasses.fields(Residual):
        if field.name != "vector":
            assert getattr(loaded, field.name) == getattr(saved, field.name)


def test_two_parts_survive(tmp_path: Path) -> None:
    saved = make_two()
    saved.save(tmp_path / "ted.safetensors")
    loaded = Residual.load(tmp_path / "ted.safetensors")
    assert torch.equal(loaded.vector, saved.vector)
    assert loaded.encoder == saved.encoder
    assert [part.tolist() for part in loaded.parts] == [saved.vector[:, :5].tolist(), saved.vector[:, 5:].tolist()]
    assert loaded.sha256 == saved.sha256
    with safetensors.safe_open(tmp_path / "ted.safetensors", "pt") as file:
        assert {name: list(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118
            "text_encoder": [2, 5],
            "text_encoder_2": [2, 3],
        }
        assert file.metadata()["cones2.format"] == "2"


def test_files_of_one_part_stay_in_the_first_format() -> None:
    old = Path(cones2.examples.__file__).parent / "rex" / "rex.safetensors"
    assert header_of(old.read_bytes())["__metadata__"]["cones2.format"] == "1"
    assert Residual.load(old).to_bytes() == old.read_bytes()


def test_the_same_residual_is_the_same_bytes(tmp_path: Path) -> None:
    shuffled = make(recipe={"learning_rate": 1e-6, "steps": 3000, "name": "paper"})
    assert make().to_bytes() == shuffled.to_bytes()
    make().save(tmp_path / "a")
    loaded = Residual.load(tmp_path / "a")
    assert loaded.to_bytes() == (tmp_path / "a").read_bytes()
    assert loaded.sha256 == make().sha256
    assert make(tool_version="0.2.0").sha256 != make().sha256


def test_the_file_is_small_at_stable_diffusion_2s_width() -> None:
    recipe = {f"setting_{i}": 0.001 for i in range(12)}
    content = make(tokens=1, width=1024, recipe=recipe).to_bytes()
    assert 4096 < len(content) < 5 * 1024 + 512


def test_safetensors_itself_reads_the_file(tmp_path: Path) -> None:
    make().save(tmp_path / "ted.safetensors")
    with safetensors.safe_open(tmp_path / "ted.safetensors", "pt") as file:
        assert list(file.keys()) == ["text_encoder"]
        assert torch.equal(file.get_tensor("text_encoder"), make().vector)
        assert file.metadata()["cones2.class_word"] == "teddy bear"


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | words | st.floats(allow_nan=False, allow_infinity=False)
)


@given(
    st.integers(1, 16),
    st.integers(1, 40),
    st.randoms(use_true_random=False),
    words,
    st.dictionaries(words, scalars | st.lists(scalars, max_size=3), max_size=5),
)
def test_any_residual_survives(tokens: int, width: int, random: Any, word: str, recipe: dict[str, object]) -> None:
    bits = np.array([random.getrandbits(32) for _ in range(tokens * width)], dtype=np.uint32)
    values = bits.view(np.float32)
    vector = torch.from_numpy(np.where(np.isfinite(values), values, 0).reshape(tokens, width))
    saved = make(tokens, width, vector=vector, class_word=word, recipe=recipe)
    loaded = Residual.from_bytes(saved.to_bytes())
    assert loaded.vector.numpy().tobytes() == vector.numpy().tobytes()
    assert (loaded.class_word, loaded.recipe) == (word, recipe)
    assert loaded.sha256 == saved.sha256


# What can't be made


def test_no_or_too_many_tokens() -> None:
    for count in (0, 17):
        with pytest.raises(ResidualError, match=f"a residual has 1 to 16 tokens, this one has {count}"):
            make(tokens=count)


def test_a_vector_of_another_shape() -> None:
    with pytest.raises(ResidualError, match=r"2 tokens and width 5 needs a vector of shape \[2, 5\], got \[2, 4\]"):
        make(vector=torch.zeros(2, 4))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite(bad: float) -> None:
    with pytest.raises(ResidualError, match="the residual of 'teddy bear' holds NaN or infinity; learn it again"):
        make(vector=torch.full((2, 5), bad))


@pytest.mark.parametrize("recipe", [{"rate": float("nan")}, {"path": Path("x")}])
def test_a_recipe_that_is_not_json(recipe: dict[str, object]) -> None:
    with pytest.raises(ResidualError, match="recipe and fingerprint must be finite JSON values"):
        make(recipe=recipe).to_bytes()


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ResidualError, match=r"'__metadata__.photos.0': String should match pattern"):
        make(photos=("not a hash",)).save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="can't write"):
        make().save(tmp_path / "missing" / "a")


# Hostile files: each gets one line, and none gets as far as a tensor


def with_header(header: object, data: bytes = bytes(40)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def header_of(content: bytes) -> dict[str, Any]:
    length = struct.unpack("<Q", content[:8])[0]
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    return header


def edited(edit: Callable[[dict[str, Any], dict[str, str]], object], sound: Residual | None = None) -> bytes:
    """A sound file after `edit(header, metadata)`."""
    content = (sound or make()).to_bytes()
    header = copy.deepcopy(header_of(content))
    size = max(part["data_offsets"][1] for name, part in header.items() if name != "__metadata__")
    edit(header, header["__metadata__"])
    return with_header(header, content[-size:])


def two_parts(edit: Callable[[dict[str, Any], dict[str, str]], object]) -> bytes:
    """The same of a file for two text encoders."""
    return edited(edit, make_two())


def meta(key: str, value: object) -> bytes:
    return edited(lambda _, metadata: metadata.update({f"cones2.{key}": value}))


def encoder(**changes: object) -> bytes:
    return meta("encoder", json.dumps(ENCODER.fields() | changes))


def tensor(**changes: object) -> bytes:
    return edited(lambda header, _: header["text_encoder"].update(changes))


SOUND = make().to_bytes()
SOUND_2 = make_two().to_bytes()
DEEP = b"[" * 30_000 + b"]" * 30_000
HOSTILE = {
    "empty": b"",
    "seven bytes": SOUND[:7],
    "length alone": SOUND[:8],
    "no data": SOUND[:-40],
    "half a number short": SOUND[:-2],
    "a byte too many": SOUND + b"\0",
    "huge header": struct.pack("<Q", 2**63) + SOUND[8:],
    "largest header": struct.pack("<Q", 2**64 - 1) + SOUND[8:],
    "header beyond the file": struct.pack("<Q", len(SOUND)) + SOUND[8:],
    "header of 65 KiB": with_header(b"{" + b" " * 65 * 1024 + b"}"),
    "zero header": struct.pack("<Q", 0) + SOUND[8:],
    "a pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "a zip": b"PK\x03\x04" + bytes(100),
    "not JSON": with_header(b"hello, header"),
    "not UTF-8": with_header(b'{"\xff\xfe": 1}'),
    "a list": with_header([]),
    "a number": with_header(b"12"),
    "an empty object": with_header({}),
    "deep JSON": with_header(DEEP),
    "deep JSON in metadata": meta("recipe", DEEP[:25_000].decode()),
    "NaN in the header": with_header(b'{"text_encoder": NaN}'),
    "a key twice": with_header(b'{"text_encoder": 1, "text_encoder": 2}'),
    "a metadata key twice": SOUND.replace(b'"cones2.format":"1"', b'"cones2.format":"1","cones2.format":"1"'),
    "a key twice in the recipe": meta("recipe", '{"a": 1, "a": 2}'),
    "no metadata": edited(lambda header, _: header.pop("__metadata__")),
    "metadata is a list": edited(lambda header, _: header.update(__metadata__=[])),
    "no tensor": edited(lambda header, _: header.pop("text_encoder")),
    "another tensor's name": edited(lambda header, _: header.update(emb_params=header.pop("text_encoder"))),
    "an extra tensor": edited(lambda header, _: header.update(more=header["text_encoder"])),
    "a key of two lines": with_header({"one\ntwo": 1}),
    "a metadata key of two lines": edited(lambda _, metadata: metadata.update({"cones2.one\ntwo": "1"})),
    "6,000 extra tensors": with_header({str(i): 0 for i in range(6000)}),
    "float16": tensor(dtype="F16"),
    "unknown dtype": tensor(dtype="F4"),
    "dtype is a number": tensor(dtype=32),
    "one axis": tensor(shape=[10]),
    "three axes": tensor(shape=[1, 2, 5]),
    "negative shape": tensor(shape=[-2, -5]),
    "transposed shape": tensor(shape=[5, 2]),
    "shape of floats": tensor(shape=[2.0, 5.0]),
    "shape of strings": tensor(shape=["2", "5"]),
    "zero rows": tensor(shape=[0, 5], data_offsets=[0, 0]),
    "huge shape": tensor(shape=[2**40, 2**40]),
    "offsets swapped": tensor(data_offsets=[40, 0]),
    "offsets beyond the file": tensor(data_offsets=[0, 80]),
    "offsets that skip": tensor(data_offsets=[4, 44]),
    "offsets negative": tensor(data_offsets=[-40, 0]),
    "an extra field of the tensor": tensor(strides=[5, 1]),
    "a future format": meta("format", "3"),
    "a second format without its second part": meta("format", "2"),
    "a second part in the first format": SOUND_2.replace(b'"cones2.format":"2"', b'"cones2.format":"1"'),
    "a second part of another width": two_parts(lambda _, m: m.update({"cones2.encoder_2": m["cones2.encoder"]})),
    "two parts in one place": two_parts(lambda header, _: header["text_encoder_2"].update(data_offsets=[0, 24])),
    "parts swapped": two_parts(
        lambda h, _: h.update(text_encoder=h["text_encoder_2"], text_encoder_2=h["text_encoder"])
    ),
    "a second part of other tokens": two_parts(lambda h, _: h["text_encoder_2"].update(shape=[1, 6])),
    "a second part cut off": SOUND_2[:-4],
    "a second part too long": SOUND_2 + bytes(4),
    "format is a number": meta("format", 1),
    "no class word": meta("class_word", ""),
    "a class word of 2 KB": meta("class_word", "a" * 2000),
    "no tokens": meta("tokens", "[]"),
    "a token too many": meta("tokens", '["a", "b", "c"]'),
    "17 tokens": meta("tokens", json.dumps(["a"] * 17)),
    "tokens are no list": meta("tokens", '"ab"'),
    "tokens are numbers": meta("tokens", "[1, 2]"),
    "tokens are half a character": meta("tokens", "\ud800"),
    "a token is half a character": meta("tokens", '["a", "\\ud800"]'),
    "tokens not packed": meta("tokens", ["a", "b"]),
    "another width": encoder(width=6),
    "width is a string": encoder(width="5"),
    "width is true": encoder(width=True),
    "width of a million": encoder(width=1_000_000),
    "weights are no hash": encoder(weights="../../etc/passwd"),
    "no probe": encoder(probe=[]),
    "1,000 probes": encoder(probe=[0.5] * 1000),
    "infinite probe": meta("encoder", json.dumps(ENCODER.fields()).replace("3.0", "1e999")),
    "an extra field of the encoder": encoder(url="http://example.com"),
    "a recipe that is a list": meta("recipe", "[]"),
    "a recipe with infinity": meta("recipe", '{"rate": 1e999}'),
    "a photo that is no hash": meta("photos", '["rex.jpg"]'),
    "no tool version": edited(lambda _, metadata: metadata.pop("cones2.tool_version")),
    "unknown metadata": edited(lambda _, metadata: metadata.update(format="pt")),
    "metadata without its prefix": edited(lambda _, m: m.update(tokens=m.pop("cones2.tokens"))),
    "NaN in the data": SOUND[:-4] + struct.pack("<f", float("nan")),
    "infinity in the data": SOUND[:-4] + struct.pack("<f", float("-inf")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(
        ResidualError, match=r"evil.safetensors is no sound residual file: .* Get or learn it again"
    ) as e:
        Residual.load(path)
    assert len(str(e.value).splitlines()) == 1
    assert len(str(e.value)) < 700


def test_every_truncation_is_refused() -> None:
    for length in range(len(SOUND)):
        with pytest.raises(ResidualError):
            Residual.from_bytes(SOUND[:length])


@given(st.integers(0, len(SOUND) * 8 - 1))
def test_a_flipped_bit_is_refused_or_another_residual(bit: int) -> None:
    content = bytearray(SOUND)
    content[bit // 8] ^= 1 << bit % 8
    try:
        loaded = Residual.from_bytes(bytes(content))
    except ResidualError:
        return
    assert loaded.sha256 != make().sha256


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(ResidualError):
        Residual.from_bytes(content)


def test_messages_say_what_is_wrong() -> None:
    def message(name: str) -> str:
        with pytest.raises(ResidualError) as caught:
            Residual.from_bytes(HOSTILE[name], origin="a.safetensors")
        return str(caught.value)

    assert "it has 7 bytes, expected 8 to 1048576" in message("seven bytes")
    assert "its header claims 9223372036854775808 bytes, expected 2 to 65536, all in the file" in message("huge header")
    assert "its header is not the JSON that it should be (JSONDecodeError)" in message("not JSON")
    assert "its header has a key twice" in message("a key twice")
    assert "its header holds NaN" in message("NaN in the header")
    assert "its metadata has an unknown key 'format'" in message("unknown metadata")
    assert "'__metadata__.format': Input should be '1'" in message("a future format")
    assert "'text_encoder.dtype': Input should be 'F32'" in message("float16")
    assert "its tensor has shape [5, 2], its tokens and encoder need [2, 5]" in message("transposed shape")
    assert "its tensor lies at [4, 44], not [0, 40]" in message("offsets that skip")
    assert "it holds 41 bytes of numbers, its header says 40" in message("a byte too many")
    assert "'__metadata__.encoder_2': Field required" in message("a second format without its second part")
    assert "'__metadata__.encoder_2': Extra inputs are not permitted" in message("a second part in the first format")
    assert "its tensor lies at [0, 24], not [40, 64]" in message("two parts in one place")
    assert "holds NaN or infinity" in message("NaN in the data")


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ResidualError, match=r"can't read .*missing.safetensors: No such file or directory. Check the"):
        Residual.load(tmp_path / "missing.safetensors")
    with pytest.raises(ResidualError, match=r"can't read .*: Is a directory"):
        Residual.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ResidualError, match=r"can't read .*pipe: it is a pipe or device"):
        Residual.load(tmp_path / "pipe")
    (tmp_path / "large.safetensors").write_bytes(bytes(MAX_FILE_BYTES + 1))
    with pytest.raises(ResidualError, match=r"large.safetensors is too large: expected at most 1,048,576 bytes"):
        Residual.load(tmp_path / "large.safetensors")
    with pytest.raises(ResidualError, match="it has 1048577 bytes, expected 8 to 1048576"):
        Residual.from_bytes(bytes(MAX_FILE_BYTES + 1))


def test_a_path_may_be_text(tmp_path: Path) -> None:
    make().save(str(tmp_path / "ted.safetensors"))
    assert Residual.load(str(tmp_path / "ted.safetensors")).sha256 == make().sha256


# Which encoder it fits


def test_it_fits_its_own_encoder() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().check_fits(ENCODER)
        make().check_fits(dataclasses.replace(ENCODER, name="renamed"))
        make().check_fits(dataclasses.replace(ENCODER, weights="00" * 32, probe=(0.501, -1.251, 3.01)))


def test_another_encoder_of_the_same_width() -> None:
    other = dataclasses.replace(ENCODER, name="other", weights="00" * 32, probe=(0.5, 1.25, 3.0))
    with pytest.raises(
        ResidualMismatchError, match=r"learned on tiny \(width 5\), this backbone is other .* or force it"
    ):
        make().check_fits(other)
    with pytest.warns(Cones2Warning, match="used all the same, as forced; expect another subject"):
        make().check_fits(other, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_one_encoder_and_two_never_fit(force: bool) -> None:
    two = make_two()
    with pytest.raises(
        ResidualMismatchError, match=r"learned on tiny \(width 5\+3\), this backbone is tiny \(width 5\)"
    ):
        two.check_fits(ENCODER, force=force)
    with pytest.raises(ResidualMismatchError, match=r"\(width 5\), this backbone is tiny \(width 5\+3\)"):
        make().check_fits(two.encoder, force=force)


def test_each_of_two_encoders_must_fit() -> None:
    mine = make_two().encoder
    assert mine.second is not None
    stranger = dataclasses.replace(mine.second, weights="00" * 32, probe=(2.0, 1.0))
    make_two().check_fits(dataclasses.replace(mine, name="renamed", weights="00" * 32))
    with pytest.raises(ResidualMismatchError, match="its text encoder is another one"):
        make_two().check_fits(dataclasses.replace(mine, second=stranger))


@pytest.mark.parametrize("force", [False, True])
def test_another_width_is_always_an_error(force: bool) -> None:
    with pytest.raises(
        ResidualMismatchError, match=r"\(width 5\), this backbone is tiny \(width 6\): the widths must be"
    ):
        make().check_fits(dataclasses.replace(ENCODER, width=6), force=force)


# Arithmetic


def other_one() -> Residual:
    return make(vector=torch.ones(2, 5), photos=(PHOTOS[0], "bc" * 32))


def test_mixing_worked_by_hand() -> None:
    one, other = make(vector=torch.tensor([[1.0, 2.0, 0, 0, 0], [0, 0, 0, 0, 8.0]])), other_one()
    quarter = one.mix(other, 0.25)
    assert quarter.vector.tolist() == [[1.0, 1.75, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25, 6.25]]
    assert one.mix(other, 2.0).vector.tolist() == [[1.0, 0, 2, 2, 2], [2, 2, 2, 2, -6]]
    assert torch.equal(one.mix(other, 0.0).vector, one.vector)
    assert torch.equal(one.mix(other, 1.0).vector, other.vector)


def test_a_sum_says_of_what_and_is_saved_like_any_other(tmp_path: Path) -> None:
    total = make() + other_one()
    assert torch.equal(total.vector, make().vector + 1)
    assert total.photos == (*PHOTOS, "bc" * 32)
    assert total.recipe == {
        "combined": [{"residual": make().sha256, "weight": 1.0}, {"residual": other_one().sha256, "weight": 1.0}]
    }
    total.save(tmp_path / "sum.safetensors")
    assert Residual.load(tmp_path / "sum.safetensors").recipe == total.recipe


def test_what_can_not_be_combined() -> None:
    for other in (make(class_word="cat"), make(tokens=3)):
        with pytest.raises(ResidualMismatchError, match="can't be combined: they are added to other tokens"):
            make().mix(other, 0.5)
    stranger = dataclasses.replace(ENCODER, name="other", weights="00" * 32, probe=(0.5, 1.25, 3.0))
    with pytest.raises(ResidualMismatchError, match=r"of tiny \(width 5\) and other .* learn both on one backbone"):
        make() + make(encoder=stranger)
    with pytest.raises(SettingsError, match="weight nan can't be used: expected a number"):
        make().mix(make(), float("nan"))
    with pytest.raises(TypeError, match="unsupported operand"):
        make() + 1  # type: ignore[operator]
