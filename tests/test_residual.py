"""The residual's file: what is saved is loaded, anything else is refused, and it knows which encoders it fits."""

import json
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from cones2.errors import Cones2Warning, OutputError, ResidualError, ResidualMismatchError, SettingsError
from cones2.residual import MAX_FILE_BYTES, EncoderId, Residual, ResidualPart

ENCODER = EncoderId(role="text_encoder", name="tiny", width=5, weights="ab" * 32, probe=(0.5, -1.25, 3.0))
T5 = EncoderId(role="text_encoder_2", name="tiny", width=3, weights="cd" * 32, probe=(1.0, 2.0))
STRANGER = replace(ENCODER, name="other", weights="00" * 32, probe=(0.5, 1.25, 3.0))
PHOTOS = ("12" * 32, "34" * 32, "56" * 32, "78" * 32, "9a" * 32)


def part(tokens: int = 2, encoder: EncoderId = ENCODER, vector: torch.Tensor | None = None) -> ResidualPart:
    counted = torch.arange(tokens * encoder.width, dtype=torch.float32).reshape(tokens, encoder.width) / 7
    names = tuple(f"token{i}</w>" for i in range(tokens))
    return ResidualPart(encoder, names, counted if vector is None else vector)


def make(*parts: ResidualPart, **changes: Any) -> Residual:
    fields: dict[str, Any] = {
        "class_word": "teddy bear",
        "parts": parts or (part(),),
        "recipe": {"name": "paper", "steps": 3000, "learning_rate": 1e-6},
        "photos": PHOTOS,
        "tool_version": "0.1.0",
    }
    return Residual(**{**fields, **changes})


def make_two() -> Residual:
    """A residual for two text encoders, of widths 5 and 3, the second with another tokenizer."""
    return make(part(2), part(4, T5))


def numbers_of(residual: Residual) -> list[tuple[EncoderId, tuple[str, ...], str, bytes]]:
    return [(one.encoder, one.tokens, one.span, one.vector.numpy().tobytes()) for one in residual.parts]


# What is saved is loaded


@pytest.mark.parametrize("saved", [make(), make_two()], ids=["one part", "two parts"])
def test_round_trip(saved: Residual, tmp_path: Path) -> None:
    saved.save(tmp_path / "ted.safetensors")
    loaded = Residual.load(str(tmp_path / "ted.safetensors"))
    assert numbers_of(loaded) == numbers_of(saved)
    for field in ("class_word", "recipe", "photos", "tool_version", "sha256"):
        assert getattr(loaded, field) == getattr(saved, field)
    assert loaded.to_bytes() == (tmp_path / "ted.safetensors").read_bytes()


def test_safetensors_itself_reads_the_file(tmp_path: Path) -> None:
    make_two().save(tmp_path / "ted.safetensors")
    with safetensors.safe_open(tmp_path / "ted.safetensors", "pt") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        assert shapes == {"text_encoder": [2, 5], "text_encoder_2": [4, 3]}
        assert list(file.metadata()) == ["cones2"]
        document = json.loads(file.metadata()["cones2"])
    assert (document["version"], document["class_word"]) == (3, "teddy bear")
    assert [one["role"] for one in document["parts"]] == ["text_encoder", "text_encoder_2"]


@pytest.mark.slow
def test_the_same_residual_is_the_same_bytes_in_every_process() -> None:
    shuffled = make(recipe={"learning_rate": 1e-6, "steps": 3000, "name": "paper"})
    assert make().to_bytes() == shuffled.to_bytes()
    assert make(tool_version="0.2.0").sha256 != make().sha256
    code = (
        "import torch; from cones2.residual import *\n"
        "ids = [EncoderId(f'e{i}', 'm', 2, 'ab' * 32, (1.0,)) for i in range(4)]\n"
        "parts = [ResidualPart(one, ('a',), torch.ones(1, 2)) for one in ids]\n"
        "print(Residual('dog', tuple(parts), {'b': 1, 'a': {'d': 1, 'c': 2}}, (), '0').sha256)"
    )
    command = [sys.executable, "-c", code]
    environments = [os.environ | {"PYTHONHASHSEED": seed} for seed in "12"]  # in which sets have other orders
    first, second = (subprocess.run(command, capture_output=True, check=True, env=each).stdout for each in environments)
    assert first == second


def test_the_file_is_small_at_stable_diffusion_2s_width() -> None:
    recipe = {f"setting_{i}": 0.001 for i in range(12)}
    content = make(part(1, replace(ENCODER, width=1024)), recipe=recipe).to_bytes()
    assert 4096 < len(content) < 5 * 1024 + 512


def test_a_part_is_found_by_its_role() -> None:
    assert make_two().part("text_encoder_2").encoder == T5
    with pytest.raises(ResidualMismatchError, match="text_encoder_3"):
        make_two().part("text_encoder_3")


def test_reprs_are_short() -> None:
    assert repr(make_two()) == "Residual('teddy bear', 2 x 5 + 4 x 3, learned on 'tiny')"
    assert len(repr(part())) < 60


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | words | st.floats(allow_nan=False, allow_infinity=False)
)


@given(
    st.lists(st.tuples(st.integers(1, 16), st.integers(1, 40)), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    words,
    st.dictionaries(words, scalars | st.lists(scalars, max_size=3), max_size=5),
)
def test_any_residual_survives(
    shapes: list[tuple[int, int]], random: Any, word: str, recipe: dict[str, object]
) -> None:
    parts = []
    for number, (tokens, width) in enumerate(shapes):
        bits = np.array([random.getrandbits(32) for _ in range(tokens * width)], dtype=np.uint32)
        values = np.where(np.isfinite(bits.view(np.float32)), bits.view(np.float32), 0).reshape(tokens, width)
        parts.append(part(tokens, replace(ENCODER, role=f"encoder_{number}", width=width), torch.from_numpy(values)))
    saved = make(*parts, class_word=word, recipe=recipe)
    loaded = Residual.from_bytes(saved.to_bytes())
    assert numbers_of(loaded) == numbers_of(saved)
    assert (loaded.class_word, loaded.recipe) == (word, recipe)
    assert loaded.sha256 == saved.sha256


# What can't be made


@pytest.mark.parametrize("count", [0, 17])
def test_no_or_too_many_tokens(count: int) -> None:
    with pytest.raises(ResidualError, match=str(count)):
        part(count)


@pytest.mark.usefixtures("unchecked_types")
def test_a_vector_of_another_shape_or_type() -> None:
    with pytest.raises(ResidualError, match=r"\[2, 4\]"):
        part(2, vector=torch.zeros(2, 4))
    with pytest.raises(ResidualError, match="float64"):
        part(2, vector=torch.zeros(2, 5, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite(bad: float) -> None:
    with pytest.raises(ResidualError, match="NaN or infinity"):
        part(2, vector=torch.full((2, 5), bad))


def test_two_parts_of_one_role_or_none() -> None:
    with pytest.raises(ResidualError, match="text_encoder"):
        make(part(), part())
    with pytest.raises(ResidualError):
        make(parts=())


@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": {"rate": float("nan")}},
        {"recipe": {"path": Path("x")}},
        {"photos": ("not a hash",)},
        {"class_word": ""},
        {"parts": (part(2, replace(ENCODER, weights="not read")),)},
        {"parts": (part(2, replace(ENCODER, probe=(1e300,))),)},
    ],
)
def test_what_could_not_be_read_is_not_written(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ResidualError):
        make(**changes).save(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        make().save(tmp_path / "missing" / "a")


# Hostile files: each gets one line, and none gets as far as a tensor


def with_header(header: object, data: bytes = bytes(40)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def edited(
    edit: Callable[[dict[str, Any], dict[str, Any]], object], sound: Residual | None = None, **raw: str
) -> bytes:
    """A sound file after `edit(header, document)`, and then after replacing strings of the document by other JSON."""
    content = (sound or make()).to_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    metadata = header["__metadata__"]
    document = json.loads(metadata["cones2"])
    edit(header, document)
    text = json.dumps(document)
    for old, new in raw.items():
        text = text.replace(f'"{old}"', new)
    metadata["cones2"] = text
    return with_header(header, content[8 + length :])


def document(**changes: object) -> bytes:
    return edited(lambda _, document: document.update(changes))


def encoder(**changes: object) -> bytes:
    return edited(lambda _, document: document["parts"][0].update(changes))


def tensor(**changes: object) -> bytes:
    return edited(lambda header, _: header["text_encoder"].update(changes))


SOUND = make().to_bytes()
TWO = make_two().to_bytes()
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
    "deep JSON in metadata": edited(lambda h, _: h.update(__metadata__={"cones2": DEEP[:25_000].decode()})),
    "NaN in the header": with_header(b'{"text_encoder": NaN}'),
    "a key twice": with_header(b'{"text_encoder": 1, "text_encoder": 2}'),
    "a key twice in the recipe": edited(lambda _, d: d.update(recipe="R"), R='{"a": 1, "a": 2}'),
    "no metadata": edited(lambda header, _: header.update(__metadata__={})),
    "metadata is a list": edited(lambda header, _: header.update(__metadata__=[])),
    "metadata is a number": edited(lambda header, _: header.update(__metadata__={"cones2": 1})),
    "metadata is a list in text": edited(lambda header, _: header.update(__metadata__={"cones2": "[]"})),
    "unknown metadata": edited(lambda header, _: header["__metadata__"].update(format="pt")),
    "the first version": edited(lambda h, _: h.update(__metadata__={"cones2.format": "1", "cones2.tokens": "[]"})),
    "no tensor": edited(lambda header, _: header.pop("text_encoder")),
    "another tensor's name": edited(lambda header, _: header.update(emb_params=header.pop("text_encoder"))),
    "an extra tensor": edited(lambda header, _: header.update(more=header["text_encoder"])),
    "a key of two lines": with_header({"one\ntwo": 1}),
    "6,000 extra tensors": with_header({str(i): 0 for i in range(6000)}),
    "float16": tensor(dtype="F16"),
    "unknown dtype": tensor(dtype="F4"),
    "dtype is a number": tensor(dtype=32),
    "one axis": tensor(shape=[10]),
    "three axes": tensor(shape=[1, 2, 5]),
    "negative shape": tensor(shape=[-2, -5]),
    "transposed shape": tensor(shape=[5, 2]),
    "shape of floats": tensor(shape=[2.0, 5.0]),
    "zero rows": tensor(shape=[0, 5], data_offsets=[0, 0]),
    "huge shape": tensor(shape=[2**40, 2**40]),
    "offsets swapped": tensor(data_offsets=[40, 0]),
    "offsets beyond the file": tensor(data_offsets=[0, 80]),
    "offsets that skip": tensor(data_offsets=[4, 44]),
    "offsets negative": tensor(data_offsets=[-40, 0]),
    "offsets of a large number": tensor(data_offsets=[0, 2**80]),
    "a future version": document(version=4),
    "a version in text": document(version="3"),
    "no version": edited(lambda _, document: document.pop("version")),
    "no parts": document(parts=[]),
    "one part twice": edited(lambda _, document: document["parts"].append(document["parts"][0])),
    "5 parts": edited(lambda _, d: d.update(parts=[{**d["parts"][0], "role": f"e{i}"} for i in range(5)])),
    "a part without its tensor": edited(lambda h, _: h.pop("text_encoder_2"), make_two()),
    "a tensor without its part": edited(lambda _, document: document["parts"].pop(), make_two()),
    "two parts in one place": edited(lambda h, _: h["text_encoder_2"].update(data_offsets=[0, 48]), make_two()),
    "a second part cut off": TWO[:-4],
    "a role that is none": encoder(role="../x"),
    "another span": encoder(span="everything"),
    "no class word": document(class_word=""),
    "a class word of 2 KB": document(class_word="a" * 2000),
    "no tokens": encoder(tokens=[]),
    "a token too many": encoder(tokens=["a", "b", "c"]),
    "17 tokens": encoder(tokens=["a"] * 17),
    "tokens are no list": encoder(tokens="ab"),
    "tokens are numbers": encoder(tokens=[1, 2]),
    "a token is half a character": encoder(tokens=["a", "\ud800"]),
    "another width": encoder(width=6),
    "width is a string": encoder(width="5"),
    "width is true": encoder(width=True),
    "width of a million": encoder(width=1_000_000),
    "weights are no hash": encoder(weights="../../etc/passwd"),
    "no probe": encoder(probe=[]),
    "1,000 probes": encoder(probe=[0.5] * 1000),
    "a probe that would overflow": encoder(probe=[1e300, 1e300]),
    "an infinite probe": edited(lambda _, d: d["parts"][0].update(probe=["P"]), P="1e999"),
    "an extra field of the encoder": encoder(url="http://example.com"),
    "a recipe that is a list": document(recipe=[]),
    "a recipe with infinity": edited(lambda _, d: d.update(recipe={"rate": "R"}), R="1e999"),
    "a photo that is no hash": document(photos=["rex.jpg"]),
    "no tool version": edited(lambda _, document: document.pop("tool_version")),
    "unknown field": document(url="http://example.com"),
    "NaN in the data": SOUND[:-4] + struct.pack("<f", float("nan")),
    "infinity in the data": SOUND[:-4] + struct.pack("<f", float("-inf")),
}


def test_editing_nothing_is_sound() -> None:
    assert Residual.from_bytes(edited(lambda *_: None)).sha256 == make().sha256


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ResidualError, match=r"evil\.safetensors") as caught:
        Residual.load(path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 700


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


def test_messages_name_the_offending_value() -> None:
    for name, value in (
        ("seven bytes", "7 bytes"),
        ("huge header", "9223372036854775808"),
        ("a future version", "version"),
        ("float16", "float32"),
        ("weights are no hash", r"parts\.0\.weights"),
    ):
        with pytest.raises(ResidualError, match=value):
            Residual.from_bytes(HOSTILE[name])


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large.safetensors").write_bytes(bytes(MAX_FILE_BYTES + 1))
    for path in (tmp_path / "missing.safetensors", tmp_path, tmp_path / "pipe", tmp_path / "large.safetensors"):
        with pytest.raises(ResidualError, match=path.name):
            Residual.load(path)
    with pytest.raises(ResidualError, match=str(MAX_FILE_BYTES + 1)):
        Residual.from_bytes(bytes(MAX_FILE_BYTES + 1))


# Which encoder it fits


def test_it_fits_its_own_encoder() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().check_fits([ENCODER])
        make().check_fits([replace(ENCODER, name="renamed")])
        make().check_fits([replace(ENCODER, weights="00" * 32, probe=(0.501, -1.251, 3.01))])
        make_two().check_fits([T5, replace(ENCODER, weights="not read")])


def test_another_encoder_of_the_same_width() -> None:
    with pytest.raises(ResidualMismatchError, match=r"tiny \(width 5\).*other \(width 5\).*force"):
        make().check_fits([STRANGER])
    with pytest.warns(Cones2Warning, match="other"):
        make().check_fits([STRANGER], force=True)


@pytest.mark.parametrize("force", [False, True])
def test_one_encoder_and_two_never_fit(force: bool) -> None:
    with pytest.raises(ResidualMismatchError, match=r"width 5\+3\).*width 5\)"):
        make_two().check_fits([ENCODER], force=force)
    with pytest.raises(ResidualMismatchError, match=r"width 5\).*width 5\+3\)"):
        make().check_fits([ENCODER, T5], force=force)
    with pytest.raises(ResidualMismatchError):
        make().check_fits([], force=force)
    with pytest.raises(ResidualMismatchError):
        make().check_fits([replace(ENCODER, role="text_encoder_2")], force=force)


@pytest.mark.parametrize("force", [False, True])
def test_another_width_is_always_an_error(force: bool) -> None:
    with pytest.raises(ResidualMismatchError, match="width 6"):
        make().check_fits([replace(ENCODER, width=6)], force=force)


def test_each_of_two_encoders_must_fit() -> None:
    stranger = replace(T5, weights="00" * 32, probe=(2.0, 1.0))
    make_two().check_fits([replace(ENCODER, name="renamed", weights="00" * 32), T5])
    with pytest.raises(ResidualMismatchError):
        make_two().check_fits([ENCODER, stranger])


@given(st.lists(st.floats(allow_nan=True), max_size=4), st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4))
def test_no_probe_fits_what_is_far_from_it(claimed: list[float], true: list[float]) -> None:
    one = replace(ENCODER, weights="00" * 32, probe=tuple(claimed))
    other = replace(ENCODER, weights="11" * 32, probe=tuple(true))
    if one.fits(other) or other.fits(one):
        assert len(claimed) == len(true)
        assert np.allclose(claimed, true, rtol=0, atol=0.051 * np.linalg.norm(true))


# Arithmetic


def other_one() -> Residual:
    return make(part(vector=torch.ones(2, 5)), photos=(PHOTOS[0], "bc" * 32))


def test_mixing_worked_by_hand() -> None:
    one = make(part(vector=torch.tensor([[1.0, 2.0, 0, 0, 0], [0, 0, 0, 0, 8.0]])))
    quarter = one.mix(other_one(), 0.25).parts[0].vector
    assert quarter.tolist() == [[1.0, 1.75, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25, 6.25]]
    assert one.mix(other_one(), 2.0).parts[0].vector.tolist() == [[1.0, 0, 2, 2, 2], [2, 2, 2, 2, -6]]
    for weight, end in ((0.0, one), (1.0, other_one())):
        assert torch.equal(one.mix(other_one(), weight).parts[0].vector, end.parts[0].vector)


def test_every_part_is_mixed() -> None:
    ones = make(part(vector=torch.ones(2, 5)), part(4, T5, torch.ones(4, 3)))
    mixed = make_two().mix(ones, 0.5)
    for name in ("text_encoder", "text_encoder_2"):
        assert torch.equal(mixed.part(name).vector, make_two().part(name).vector / 2 + 0.5)


def test_a_mixture_says_of_what_and_is_saved_like_any_other(tmp_path: Path) -> None:
    mixed = make().mix(other_one(), 0.5)
    assert mixed.photos == (*PHOTOS, "bc" * 32)
    assert mixed.recipe == {"mixed": [make().sha256, other_one().sha256], "weight": 0.5}
    mixed.save(tmp_path / "mixed.safetensors")
    assert Residual.load(tmp_path / "mixed.safetensors").recipe == mixed.recipe


def test_what_can_not_be_combined() -> None:
    for other in (make(class_word="cat"), make(part(3)), make(part(encoder=STRANGER)), make_two()):
        with pytest.raises(ResidualMismatchError):
            make().mix(other, 0.5)
    with pytest.raises(SettingsError, match="nan"):
        make().mix(make(), float("nan"))
