"""The authors' residual files: torch's own are read exactly, hundreds of hostile ones refused, and none runs code."""

import io
import os
import pickle
import pickletools
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from cones2.cones_v2.tensor import import_residual, read_tensor
from cones2.errors import CaptionError, ModelError, ResidualError, ResidualMismatchError
from cones2.fingerprint import fingerprint
from cones2.residual import Residual

GOLDEN = Path(__file__).parent / "data" / "golden"
CANARY = "canary"  # a folder that hostile files would make where they are opened
VECTOR = torch.arange(8, dtype=torch.float32).reshape(2, 4) / 7


def files_in(folder: Path) -> set[str]:
    """Name everything in a folder, hidden files too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def saved(value: object, **options: Any) -> bytes:
    """What torch itself saves."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about storages of old
        torch.save(value, content, **options)
    return content.getvalue()


def integer(value: int) -> bytes:
    """Pickle an integer as torch does."""
    if 0 <= value < 256:
        return b"K" + struct.pack("<B", value)
    return b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)


def program(
    *,
    shape: tuple[int, ...] = (2, 4),
    strides: tuple[int, ...] = (4, 1),
    offset: int = 0,
    count: int = 8,
    storage: bytes = b"ctorch\nFloatStorage\n",
    rebuild: bytes = b"ctorch._utils\n_rebuild_tensor_v2\n",
    kind: str = "storage",
    key: str = "0",
    device: str = "cpu",
    gradients: bytes = b"\x89",
    hooks: bytes = b"ccollections\nOrderedDict\nq\x08)Rq\t",
    middle: bytes = b"",
    end: bytes = b".",
) -> bytes:
    """The pickle of a tensor, operation by operation."""
    size, stride = (b"(" + b"".join(map(integer, numbers)) + b"t" for numbers in (shape, strides))
    if len(shape) == len(strides) == 2:
        size, stride = (b"".join(map(integer, numbers)) + b"\x86" for numbers in (shape, strides))
    kept = (text(kind) + b"q\x01", storage + b"q\x02", text(key) + b"q\x03", text(device) + b"q\x04")
    place = b"(" + b"".join(kept) + integer(count) + b"tq\x05Q"
    rest = integer(offset) + size + b"q\x06" + stride + b"q\x07" + gradients + hooks
    return b"\x80\x02" + rebuild + b"q\x00(" + place + middle + rest + b"tq\nRq\x0b" + end


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


NUMBERS = VECTOR.numpy().tobytes()
SOUND = {"data.pkl": program(), "byteorder": b"little", "data/0": NUMBERS, "version": b"3\n"}


def archive(
    entries: dict[str, bytes] | None = None,
    *,
    folder: str = "residual",
    without: str = "",
    compression: int = zipfile.ZIP_STORED,
    attributes: int = 0,
    **changes: bytes,
) -> bytes:
    """A zip like torch's; `changes` go by the entry's first letters."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, value in (SOUND | (entries or {})).items():
            if name != without:
                info = zipfile.ZipInfo(f"{folder}/{name}" if folder else name)
                info.compress_type, info.external_attr = compression, attributes
                file.writestr(info, changes.get(name.split(".")[0].replace("/", "_"), value))
                info.external_attr = attributes  # zipfile gives it permissions
    return content.getvalue()


def read(content: bytes, folder: Path) -> torch.Tensor:
    path = folder / "residual.pt"
    path.write_bytes(content)
    return read_tensor(path).vector


# What torch saves is read exactly


@pytest.mark.parametrize("word", ["cat", "teapot"])
def test_the_authors_own_files(word: str) -> None:
    with safe_open(GOLDEN / "sampler.safetensors", "pt") as file:
        expected = file.get_tensor(f"residual.{word}")
    assert torch.equal(read_tensor(GOLDEN / f"sampler_{word}.pt").vector, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (1, 32), (1, 1024), (2, 768), (3, 1280), (16, 2048)])
@pytest.mark.parametrize("gradients", [False, True])
def test_what_torch_saves(dtype: torch.dtype, shape: tuple[int, int], gradients: bool, tmp_path: Path) -> None:
    leaf = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0), requires_grad=gradients)
    tensor = leaf * 1  # as theirs, the result of a sum
    found = read(saved(tensor), tmp_path)
    assert found.dtype == torch.float32
    assert torch.equal(found, tensor.detach().float())


def test_files_of_older_torch_and_of_other_devices(tmp_path: Path) -> None:
    # 1.13, which the authors name, writes three entries; their tensor was on the first GPU and wanted gradients
    old = archive(without="byteorder", data=program(device="cuda:0", gradients=b"\x88"))
    assert torch.equal(read(old, tmp_path), VECTOR)
    assert program() == zipfile.ZipFile(io.BytesIO(saved(VECTOR))).read("archive/data.pkl")


@given(st.binary(min_size=32, max_size=32))
def test_any_finite_numbers_survive(content: bytes) -> None:
    numbers = np.frombuffer(content, "<f4").reshape(2, 4)
    numbers = np.where(np.isfinite(numbers), numbers, 0)
    assert read(saved(torch.from_numpy(numbers)), Path()).numpy().tobytes() == numbers.tobytes()


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Hostile files

GADGETS = {
    "os.mkdir": b"cos\nmkdir\n",
    "posix.mkdir": b"cposix\nmkdir\n",
    "os.makedirs": b"cos\nmakedirs\n",
    "os.system": b"cos\nsystem\n",
    "os.popen": b"cos\npopen\n",
    "subprocess.call": b"csubprocess\ncall\n",
    "subprocess.Popen": b"csubprocess\nPopen\n",
    "builtins.eval": b"cbuiltins\neval\n",
    "builtins.exec": b"cbuiltins\nexec\n",
    "__builtin__.eval": b"c__builtin__\neval\n",
    "builtins.__import__": b"cbuiltins\n__import__\n",
    "runpy.run_path": b"crunpy\nrun_path\n",
    "importlib.import_module": b"cimportlib\nimport_module\n",
    "pickle.loads": b"cpickle\nloads\n",
    "torch.load": b"ctorch\nload\n",
    "torch.hub.load": b"ctorch.hub\nload\n",
    "torch.jit.load": b"ctorch.jit\nload\n",
    "torch._utils._rebuild_tensor": b"ctorch._utils\n_rebuild_tensor\n",
    "torch._utils._rebuild_parameter": b"ctorch._utils\n_rebuild_parameter\n",
    "torch._utils._rebuild_sparse_tensor": b"ctorch._utils\n_rebuild_sparse_tensor\n",
    "torch._tensor._rebuild_from_type_v2": b"ctorch._tensor\n_rebuild_from_type_v2\n",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n",
    "numpy.load": b"cnumpy\nload\n",
    "shutil.rmtree": b"cshutil\nrmtree\n",
    "socket.create_connection": b"csocket\ncreate_connection\n",
    "webbrowser.open": b"cwebbrowser\nopen\n",
    "code.interact": b"ccode\ninteract\n",
    "operator.attrgetter": b"coperator\nattrgetter\n",
    "a name with dots": b"ccollections\nOrderedDict.fromkeys\n",
    "a space in the module": b"ctorch FloatStorage\n\n",
    "a module of nothing": b"c\ntorch FloatStorage\n",
}
CALL = text(CANARY) + b"\x85R"  # with the canary's name as its argument


def hostile_programs() -> Iterator[tuple[str, bytes]]:
    """A gadget in each place of a tensor's program, and alone."""
    for name, gadget in GADGETS.items():
        yield f"{name} alone", b"\x80\x02" + gadget + CALL + b"."
        yield f"{name} first", b"\x80\x02" + gadget + CALL + b"0" + program()[2:]
        yield f"{name} in the middle", program(middle=gadget + CALL + b"0")
        yield f"{name} for the tensor", program(rebuild=gadget)
        yield f"{name} for the storage", program(storage=gadget)
        yield f"{name} for the hooks", program(hooks=gadget + CALL)
        yield f"{name} last", program(end=b"0" + gadget + CALL + b".")
        yield f"{name} after the end", program() + b"\x80\x02" + gadget + CALL + b"."
    for operation in pickletools.opcodes:
        if operation.name not in ("BINPUT", "STOP"):
            argument = b"1\n1\n" if operation.arg and operation.arg.n < 0 else b"\x01" * 8
            for place, part in ("middle", b""), ("end", b"."):
                evil = operation.code.encode("latin-1") + (argument if operation.arg else b"") + part
                arguments: dict[str, Any] = {place: evil}
                yield f"{operation.name} at the {place}", program(**arguments)


def other_programs() -> Iterator[tuple[str, bytes]]:
    """Programs that run nothing, and rebuild something else."""
    for storage in ("Double", "Long", "Char", "Byte", "Bool", "BFloat16", "ComplexFloat", "QInt8", "Untyped"):
        yield f"{storage} storage", program(storage=b"ctorch\n%bStorage\n" % storage.encode())
    shapes = [(8,), (1, 2, 4), (0, 4), (2, 0), (-2, -4), (4, 2), (2, 5), (1, 8), (17, 1), (1, 16385), (2**31 - 1, 4)]
    for shape in shapes:
        yield f"shape {shape} of 8 numbers", program(shape=shape)
    for strides in [(1, 2), (0, 0), (4, 0), (8, 1), (-4, 1), (4, 1, 1), (1,)]:
        yield f"strides {strides}", program(strides=strides)
    for count in (0, 7, 9, -8, 2**31 - 1):
        yield f"a storage of {count}", program(count=count)
    for offset in (1, -1, 255, 2**31 - 1):
        yield f"from number {offset}", program(offset=offset)
    for device in ("", "CPU", "cpu\n", "cuda:-1", "meta:9999", "../../etc", "c" * 60):
        yield f"device {device!r}", program(device=device)
    for key in ("1", "", "../0", "/etc/passwd"):
        yield f"key {key!r}", program(key=key)
    yield "not a storage", program(kind="module")
    yield "gradients by a number", program(gradients=b"K\x01")
    yield "gradients unknown", program(gradients=b"N")
    yield "no hooks", program(hooks=b"N")
    yield "protocol 4", b"\x80\x04" + program()[2:]
    yield "no protocol", program()[2:]
    yield "no end", program(end=b"")
    yield "two programs", program() + program()
    yield "nothing", b""
    yield "a long one", program(end=b"q\x0c" * 200 + b".")
    for protocol in range(6):
        yield f"a list, protocol {protocol}", pickle.dumps([1.0] * 8, protocol)
        yield f"a dict, protocol {protocol}", pickle.dumps(OrderedDict(a=1), protocol)
    yield "deep", b"\x80\x02" + b"(" * 400 + b"t" * 400 + b"."
    yield "a long integer", b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"."
    yield "a long text", b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"."


def resized(content: bytes, name: bytes, *, field: int, value: int) -> bytes:
    """Change a number of the central record of an entry, `field` bytes from its start."""
    changed = bytearray(content)
    record = content.index(name, content.index(b"PK\x01\x02")) - 46
    struct.pack_into("<I", changed, record + field, value)
    return bytes(changed)


def hostile_archives() -> Iterator[tuple[str, bytes]]:
    sound = archive()
    for name in ("data.pkl", "data/0", "version"):
        yield f"no {name}", archive(without=name)
    for name in (
        "data/1",
        "data/00",
        "code/x.py",
        "constants.pkl",
        "data.pkl.sig",
        "../data.pkl",
        "/etc/passwd",
        ".data/x",
    ):
        yield f"also {name}", archive({name: b"x"})
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"compressed by {method}", archive(compression=method)
    yield "a bomb", archive(compression=zipfile.ZIP_DEFLATED, data_0=bytes(2**27))
    yield "a symbolic link", archive(attributes=0o120777 << 16)
    yield "a folder", archive(attributes=0x10)
    yield "a device", archive(attributes=0o060666 << 16)
    yield "no folder", archive(folder="")
    yield "two folders", sound.replace(b"residual/version", b"residue+/version")
    yield "big-endian", archive(byteorder=b"big")
    yield "no byte order", archive(byteorder=b"")
    for version in (b"2\n", b"4\n", b"3", b"", b"3\n\n", b"x" * 1000):
        yield f"version {version[:4]!r} of {len(version)}", archive(version=version)
    for size in (0, 1, 28, 31, 33, 64, 2**19):
        yield f"{size} bytes of numbers", archive(data_0=bytes(size))
    for kind, number in product(("<f4", "<f2"), (np.nan, np.inf, -np.inf)):
        storage = b"ctorch\nFloatStorage\n" if kind == "<f4" else b"ctorch\nHalfStorage\n"
        numbers = np.array([0, 1, 2, 3, 4, 5, 6, number], kind).tobytes()
        yield f"{number} in {kind}", archive(data=program(storage=storage), data_0=numbers)
    yield "something before", b"#!/bin/sh\nmkdir canary\n" + sound
    yield "something after", sound + b"mkdir canary"
    yield "a comment", sound[:-2] + struct.pack("<H", 6) + b"canary"
    yield "an archive for its pickle", archive(data=sound)
    yield "two archives", sound + sound
    yield "5,000 entries", archive({f"data/{number}": b"" for number in range(5000)})
    yield "zeros", bytes(1000)
    yield "empty", b""
    yield "an empty archive", b"PK\x05\x06" + bytes(18)
    yield "over a megabyte", archive(data_0=bytes(2**20))
    yield "overlapping entries", resized(sound, b"residual/version", field=42, value=0)
    yield "an entry beyond the end", resized(sound, b"residual/version", field=42, value=2**31)
    yield "a size beyond the end", resized(sound, b"residual/data/0", field=20, value=2**31)
    yield "another size inside", resized(sound, b"residual/data/0", field=24, value=2**31)
    yield "another sum", resized(sound, b"residual/data/0", field=16, value=1)
    yield "encrypted", resized(sound, b"residual/data/0", field=8, value=1)
    yield "another name inside", sound.replace(b"residual/data/0", b"residual/data/1", 1)
    yield "a name twice", sound.replace(b"residual/byteorder", b"residual/version\0\0")
    yield "a name in no script", sound.replace(b"residual/version", b"residual/versi\xff\xfe")


def other_files() -> Iterator[tuple[str, bytes]]:
    yield "the format before archives", saved(VECTOR, _use_new_zipfile_serialization=False)
    yield "a plain pickle", b"cos\nmkdir\n" + CALL + b"."
    yield "safetensors", (GOLDEN / "sampler.safetensors").read_bytes()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    yield "the format before that", tar.getvalue()
    values: dict[str, object] = {
        "one axis": VECTOR[0],
        "three axes": VECTOR[None],
        "no axis": VECTOR.sum(),
        "nothing": None,
        "a number": 1.5,
        "a list of tensors": [VECTOR],
        "a dict of tensors": {"mug": VECTOR},
        "a parameter": torch.nn.Parameter(VECTOR),
        "a module's state": torch.nn.Linear(4, 2).state_dict(),
        "a view": VECTOR[1:],
        "transposed": VECTOR.T,
        "repeated": VECTOR[:1].expand(2, 4),
        "sparse": VECTOR.to_sparse(),
        "17 tokens": torch.zeros(17, 4),
        "too wide": torch.zeros(1, 16385),
    }
    for dtype in (torch.float64, torch.bfloat16, torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn):
        values[f"of {dtype}"] = VECTOR.to(dtype)
    for name, value in values.items():
        yield name, saved(value)


HOSTILE = dict(
    chain(
        ((f"a program: {name}", archive(data=evil)) for name, evil in chain(hostile_programs(), other_programs())),
        ((f"an archive: {name}", evil) for name, evil in hostile_archives()),
        ((f"a file: {name}", evil) for name, evil in other_files()),
    )
)


def test_there_are_many_and_no_two_are_the_same() -> None:
    assert len(set(HOSTILE.values())) == len(HOSTILE) >= 200


def test_the_canary_sings() -> None:
    """What follows would mean nothing if the hostile files were harmless."""
    storage: Any = torch.FloatStorage
    for name in ("os.mkdir", "posix.mkdir", "os.makedirs"):
        for place in ("alone", "first", "last"):
            with zipfile.ZipFile(io.BytesIO(HOSTILE[f"a program: {name} {place}"])) as file:
                opened = file.read("residual/data.pkl")
            reader = pickle.Unpickler(io.BytesIO(opened))
            reader.persistent_load = lambda _: storage(8)  # type: ignore[method-assign]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader.load()
            Path(CANARY).rmdir()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_line_and_run_nothing(name: str, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ResidualError) as caught:
            read(HOSTILE[name], tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "residual.pt" in message
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    assert files_in(tmp_path) == {"residual.pt"}


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    sound = archive()
    for length in range(len(sound)):
        with pytest.raises(ResidualError):
            read(sound[:length], tmp_path)


@given(st.binary(max_size=300))
def test_any_bytes_for_a_pickle_are_refused(content: bytes) -> None:
    for evil in (content, program()[:-1] + content, program()[:60] + content):
        if evil != program():
            with pytest.raises(ResidualError):
                read(archive(data=evil), Path())


@pytest.mark.slow
def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    content, sound = archive(), program()
    flipped = [bytes([*content[:i], content[i] ^ 1 << i % 8, *content[i + 1 :]]) for i in range(len(content))]
    programs = [
        bytes([*sound[:i], sound[i] ^ 1 << bit, *sound[i + 1 :]]) for i in range(len(sound)) for bit in range(8)
    ]
    for evil in (*flipped, *(archive(data=evil) for evil in programs)):
        try:
            found = read(evil, tmp_path)
        except ResidualError:
            continue
        assert torch.equal(found, VECTOR)
    assert files_in(tmp_path) == {"residual.pt"}


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ResidualError, match=r"missing\.pt"):
        read_tensor(tmp_path / "missing.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    os.mkfifo(tmp_path / "pipe.pt")
    for name in ("loop.pt", "pipe.pt", ""):
        with pytest.raises(ResidualError, match=name or "read"):
            read_tensor(tmp_path / name)
    with pytest.raises(ResidualError, match="1,048,576"):
        read(archive(data_0=bytes(2**20)), tmp_path)


# A residual of ours from it


def test_an_imported_residual_is_used_like_any_other(tiny: Any, tmp_path: Path) -> None:
    residual = import_residual(tiny, GOLDEN / "sampler_cat.pt", "cat")
    part = residual.part("text_encoder")
    with safe_open(GOLDEN / "sampler.safetensors", "pt") as file:
        assert torch.equal(part.vector, file.get_tensor("residual.cat"))
    assert (residual.class_word, part.tokens, residual.photos) == ("cat", ("cat</w>",), ())
    assert residual.recipe["imported_from"] == "ali-vilab/Cones-V2"
    residual.check_fits([fingerprint(tiny.text_encoder, "text_encoder", "tiny")])
    residual.save(tmp_path / "cat.safetensors")
    assert Residual.load(tmp_path / "cat.safetensors").sha256 == residual.sha256


def test_several_tokens(tiny: Any, tmp_path: Path) -> None:
    tokens = tiny.tokenizer.tokenize("teddy bear")
    vector = torch.randn(len(tokens), 32, generator=torch.Generator().manual_seed(0))
    (tmp_path / "ted.pt").write_bytes(saved(vector))
    residual = import_residual(tiny, tmp_path / "ted.pt", " teddy  bear ")
    assert (residual.class_word, residual.parts[0].tokens) == ("teddy bear", tuple(tokens))
    assert torch.equal(residual.parts[0].vector, vector)


def test_another_model_or_class_word(tiny: Any, opened: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "wide.pt").write_bytes(saved(torch.zeros(1, 1024)))
    with pytest.raises(ResidualMismatchError, match=r"wide.pt .*\[1, 1024\].*\[1, 32\]"):
        import_residual(tiny, tmp_path / "wide.pt", "cat")
    with pytest.raises(ResidualMismatchError, match=r"\[1, 32\].*'teddy bear'"):
        import_residual(tiny, GOLDEN / "sampler_cat.pt", "teddy bear")
    with pytest.raises(CaptionError, match=r"\.\.\."):
        import_residual(tiny, GOLDEN / "sampler_cat.pt", "...")
    with pytest.raises(ModelError, match="Stable Diffusion XL"):
        import_residual(opened["sdxl"], GOLDEN / "sampler_cat.pt", "cat")
