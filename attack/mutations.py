"""Changes to the bytes of sound files, such as a bad disk, a careless program or an attacker makes."""

import functools
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

Change = Callable[[bytes, random.Random], bytes]

_SIZES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_NUMBERS = (0, -1, 2, 17, 300, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30, 1e-320, 1e30, 1e308, -0.5, 0.999)
_TEXTS = ("", " ", "\0", "\n", "../../x", "/etc/passwd", "~nobody", "%s{0}", "\u202e", "\ud800", "é" * 70, "x" * 2000)
_PNG = b"\x89PNG\r\n\x1a\n"
_PROGRAMS = (  # pickles that run something
    b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R0",
    b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R0",
    b"(S'true'\nios\nsystem\n0",
    b"\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R0",
)


class _Raw(str):
    """JSON as it is to be written."""


class _Object(list[Any]):
    """Pairs of a JSON object, in which a key may stand twice."""


def of_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flip bits, cut, repeat or move pieces, and overwrite what may be a size, more often near the start."""
    data = bytearray(content or b"\0")
    for _ in range(draw.choice((1, 1, 2, 5))):
        place = draw.randrange(min(len(data), draw.choice((40, 400, len(data))) or 1) or 1) if data else 0
        length = draw.choice((1, 2, 4, 8, 16, 100, 1000))
        piece = bytes(data[place : place + length])
        match draw.randrange(7):
            case 0:
                data[place : place + 1] = bytes([(piece or b"\0")[0] ^ 1 << draw.randrange(8)])
            case 1:
                del data[place + draw.randrange(2) :]
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = piece * (draw.choice((1, 2, 50)) if len(piece) < 2**14 else 1)
            case 4:
                data[place : place + length] = draw.randbytes(len(piece))
            case 5:
                other = draw.randrange(len(data) or 1)
                data[place : place + length] = data[other : other + length]
            case _:
                width = draw.choice((1, 2, 4, 8))
                size = draw.choice(_SIZES) & (256**width - 1)
                data[place : place + width] = size.to_bytes(width, draw.choice(("little", "big")))
    return bytes(data)


def of_json(content: bytes, draw: random.Random) -> bytes:
    """Change values and keys of a JSON document: extremes, other kinds, twice, nowhere, deep below."""
    try:
        holder = [json.loads(content, object_pairs_hook=_Object)]
    except ValueError:
        return of_bytes(content, draw)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        _change_tree(holder, draw)
    return b"".join(part.encode(errors="surrogatepass") for part in _written(holder[0]))


def _change_tree(holder: list[Any], draw: random.Random) -> None:
    slots = list(_slots(holder))
    parent, index = draw.choice(slots)
    value = parent[index][1] if isinstance(parent, _Object) else parent[index]
    match draw.randrange(8):
        case 0 if len(parent) > 1 or parent is not holder:
            del parent[index]
            return
        case 1 if isinstance(parent, _Object):
            parent.append((parent[index][0], _odd(draw)))
            return
        case 2 if isinstance(parent, _Object):
            parent[index] = (draw.choice((*_TEXTS, "__class__", "z")), value)
            return
        case 3 if isinstance(value, list):
            value *= draw.choice((2, 300))
            return
        case 4:
            other, place = draw.choice(slots)
            new = other[place][1] if isinstance(other, _Object) else other[place]
            new = _Raw("".join(_written(new)))  # a copy, so that the tree stays one
        case 5 if isinstance(value, int | float) and not isinstance(value, bool):
            new = draw.choice(_NUMBERS)
        case _:
            new = _odd(draw)
    parent[index] = (parent[index][0], new) if isinstance(parent, _Object) else new


def _odd(draw: random.Random) -> Any:
    depth = draw.choice((2, 200, 100_000))
    raws = (_Raw("[" * depth + "]" * depth), _Raw('{"a":' * depth + "1" + "}" * depth), _Raw("1" * 5000), _Raw("1e999"))
    simple: tuple[Any, ...] = (None, True, False, [], _Object(), _Raw("NaN"), _Raw("-Infinity"), _Raw("-0"))
    return draw.choice(draw.choice((_NUMBERS, _TEXTS, simple, raws)))


def _slots(container: list[Any]) -> Iterator[tuple[list[Any], int]]:
    for index, entry in enumerate(container):
        yield container, index
        value = entry[1] if isinstance(container, _Object) else entry
        if isinstance(value, list):
            yield from _slots(value)


def _written(value: Any) -> Iterator[str]:
    if isinstance(value, _Raw):
        yield value
    elif isinstance(value, list):
        is_object = isinstance(value, _Object)
        yield "{" if is_object else "["
        for number, entry in enumerate(value):
            yield "," * bool(number) + (f"{json.dumps(entry[0])}:" if is_object else "")
            yield from _written(entry[1] if is_object else entry)
        yield "}" if is_object else "]"
    else:
        yield json.dumps(value)


def of_toml(content: bytes, draw: random.Random) -> bytes:
    """Change values and lines of a TOML document."""
    lines = content.decode().splitlines()
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(lines) or 1)
        depth = draw.choice((3, 100, 5000))
        line = lines[place] if lines else ""
        odd = (
            *map(str, _NUMBERS), *map(json.dumps, _TEXTS), "inf", "nan", "true", "[]", "{}", "1979-05-27", "1" * 5000,
            "[" * depth + "]" * depth, "'''x", "0x" + "f" * 300, f"{{{'.'.join(['a'] * depth)} = 1}}",
        )  # fmt: skip
        match draw.randrange(5):
            case 0 | 1 if "=" in line:
                lines[place] = f"{line.partition('=')[0]}= {draw.choice(odd)}"
            case 2:
                lines[place:place] = [draw.choice((line, f"{'.'.join(['a'] * depth)} = 1", f"[{'a.' * depth}b]", "\0"))]
            case 3 if lines:
                del lines[place]
            case _:
                lines[place : place + 1] = [
                    re.sub(r"\w+", lambda _: draw.choice(("x", "steps", '"\\u0000"')), line, count=1)
                ]
    return "\n".join(lines).encode(errors="surrogatepass")


def of_lines(content: bytes, draw: random.Random) -> bytes:
    """Change lines of a text."""
    lines = content.splitlines()
    for _ in range(draw.choice((1, 2, 4))):
        place = draw.randrange(len(lines) + 1)
        odd = draw.choice(_TEXTS).encode(errors="surrogatepass")
        lines[place : place + draw.randrange(2)] = [
            draw.choice((odd, b"\xff\xfe", b"a dog " * draw.choice((2, 5000)), b"a dog" + odd, b"\xef\xbb\xbfa dog"))
        ]
    return draw.choice((b"\n", b"\r\n", b"\r", b"\x0b")).join(lines)


def of_safetensors(content: bytes, draw: random.Random) -> bytes:
    """Change the header of a safetensors file, the JSON in its metadata, what its length claims, or its numbers."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = content[8 : 8 + length], content[8 + length :]
    match draw.randrange(5):
        case 0:
            header = of_json(header, draw)
        case 1:
            tree = json.loads(header)
            for key, text in tree.get("__metadata__", {}).items():
                changed = of_json(text.encode(), draw).decode(errors="replace")
                tree["__metadata__"][key] = changed
            header = json.dumps(tree).encode()
        case 2:
            body = of_bytes(body, draw)
        case 3:
            return struct.pack("<Q", draw.choice((*_SIZES, length - 1, length + 1))) + header + body
        case _:
            tree = json.loads(header)
            tree |= {
                str(n): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(draw.choice((1, 9000)))
            }
            header = json.dumps(tree).encode()
    return struct.pack("<Q", len(header)) + header + body


def of_torch(content: bytes, draw: random.Random) -> bytes:
    """Change a zip archive with a pickle: its program, names, compression, entries."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    for _ in range(draw.choice((1, 1, 2))):
        place = draw.randrange(len(entries))
        pickle = next((n for n, (name, _) in enumerate(entries) if name.endswith("data.pkl")), place)
        name, data = entries[place]
        match draw.randrange(6):
            case 0:
                cut = draw.randrange(len(entries[pickle][1]) + 1)
                program = entries[pickle][1]
                entries[pickle] = entries[pickle][0], program[:cut] + draw.choice(_PROGRAMS) + program[cut:]
            case 1:
                entries[pickle] = entries[pickle][0], of_bytes(entries[pickle][1], draw)
            case 2:
                entries[place] = name, of_bytes(data, draw)
            case 3:
                entries.append((name, data))
            case 4:
                entries[place] = draw.choice(("../x", "/x", "a/b/c", "", name.upper())), data
            case _:
                entries[place] = name, data * draw.choice((0, 2, 100))
    output = io.BytesIO()
    with zipfile.ZipFile(
        output, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as new:
        for name, data in entries:
            new.writestr(zipfile.ZipInfo(name), data)
    return output.getvalue()


def of_png(content: bytes, draw: random.Random) -> bytes:
    """Change a PNG's chunks, with the right checksum most of the time; its JSON record as JSON."""
    chunks = list(_chunks(content))
    for _ in range(draw.choice((1, 1, 2, 4))):
        place = draw.randrange(len(chunks))
        kind, data = chunks[place]
        match draw.randrange(8):
            case 0:
                chunks[place] = kind, of_bytes(data, draw)
            case 1:
                chunks[place:place] = [chunks[draw.randrange(len(chunks))]]
            case 2 if len(chunks) > 1:
                del chunks[place]
            case 3:
                sides = struct.pack(">II", draw.choice(_SIZES) & 0xFFFFFFFF, draw.choice((1, 20_000, 2**31 - 1)))
                chunks[0] = chunks[0][0], sides + chunks[0][1][8:]
            case 4:
                bomb = _bomb(draw.choice((10**7, 10**8)))
                chunks[1:1] = [draw.choice(((b"zTXt", b"cones2\0\0" + bomb), (b"iCCP", b"icc\0\0" + bomb)))]
            case 5:
                chunks[place] = draw.choice((b"tRNS", b"PLTE", b"acTL", b"fdAT", b"eXIf", b"iTXt", b"gAMA")), data
            case _:
                chunks = [(k, d[:11] + of_json(d[11:], draw) if d[:7] == b"cones2\0" else d) for k, d in chunks]
    written = [_PNG]
    for kind, data in chunks:
        checksum = zlib.crc32(kind + data) ^ (draw.random() < 0.05)
        written.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum))
    return b"".join(written)


@functools.cache
def _bomb(size: int) -> bytes:
    return zlib.compress(bytes(size))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = len(_PNG)
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        yield content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        place += 12 + length
