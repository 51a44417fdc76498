"""Opening pictures that come from anyone: within bounds, whatever their metadata, and with one kind of error.

PNG files are cut down to what their pixels need before Pillow sees them: a workflow of a megabyte or a text with a
wrong checksum is no reason to refuse a sound picture.
"""

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Literal

from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

from cones2.errors import Cones2Error

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF")
"""What photos and masks may be, by Pillow's names; the last where pillow-heif is installed."""
MOST_PIXELS = 50_000_000
LARGEST_PROFILE = 4_000_000
PNG = b"\x89PNG\r\n\x1a\n"
"""How a PNG file starts."""

_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}
_BLACK, _DIM = 16, 128  # greys below are black (JPEG's noise, and what nobody can see), or dim for a mask's brightest
_MOST_TINT = 16  # difference of a grey picture's channels; JPEG leaves a little
_STRIP = 256  # rows that are composed at a time

# How to undo each of EXIF's orientations.
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextlib.contextmanager
def opened_image(
    content: bytes,
    *,
    name: str,
    formats: tuple[str, ...],
    error: type[Cones2Error],
    advice: str,
    most_pixels: int = MOST_PIXELS,
) -> Iterator[Image.Image]:
    """Open a picture for a `with` block; decode it in there. Of an animation, the first frame counts.

    `formats` are Pillow's names; `advice` is a sentence on what to do with a file of another format or a damaged one.

    Raises:
        Cones2Error: of the class `error`: the picture is of another format, damaged, or too large.
    """
    too_large = f"{name} has too many pixels; expected at most {most_pixels // 10**6} million. Scale it down."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders' remarks on odd files: what matters is raised
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            bare, profile = _without_text(content) if content.startswith(PNG) else (content, None)
            with _open(bare, name, formats, error) as image:
                if image.width * image.height > most_pixels:
                    raise error(too_large)
                if profile is not None:
                    image.info["icc_profile"] = profile
                yield image
    except Cones2Error:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as cause:
        raise error(too_large) from cause
    except UnidentifiedImageError as cause:
        known = [each for each in formats if each != "HEIF"]
        expected = " or ".join(filter(None, (", ".join(known[:-1]), known[-1]))).replace("WEBP", "WebP")
        raise error(f"{name} is not a {expected} picture, or only a part of one. {advice}") from cause
    except Exception as cause:  # on hostile bytes a decoder may raise anything
        raise error(f"{name} is damaged: {cause}. {advice}") from cause


def _open(content: bytes, name: str, formats: tuple[str, ...], error: type[Cones2Error]) -> Image.Image:
    brands = {content[place : place + 4] for place in range(8, 40, 4)} if content[4:8] == b"ftyp" else set()
    if "HEIF" not in formats or not brands & _HEIC:
        return Image.open(io.BytesIO(content), formats=[each for each in formats if each != "HEIF"])
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError as cause:
        way = "pip install 'cones2[heic]' to read it, or save it as a JPEG"
        raise error(f"{name} is a HEIC picture, which needs pillow-heif: {way}.") from cause
    return HeifImageFile(io.BytesIO(content))  # type: ignore[no-untyped-call]


def upright(image: Image.Image) -> Image.Image:
    """Return `image` turned as its EXIF orientation says; EXIF that can't be read turns nothing, as in viewers."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # on malformed EXIF, Pillow may raise anything
        turn = None
    return image if turn is None else image.transpose(turn)


def flattened(image: Image.Image, mode: Literal["RGB", "L"], *, background: str) -> Image.Image:
    """Return a picture in `mode`, what is transparent over `background`."""
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion clips
        return image.point(lambda value: value / 256).convert("L").convert(mode)
    if not image.has_transparency_data:
        return image.convert(mode)
    flat = Image.new(mode, image.size)
    for top in range(0, image.height, _STRIP):  # so that little more memory is taken than for the picture
        strip = image.crop((0, top, image.width, min(top + _STRIP, image.height))).convert("RGBA")
        below = Image.new("RGBA", strip.size, background)
        flat.paste(Image.alpha_composite(below, strip).convert(mode), (0, top))
    return flat


def greys_of_mask(image: Image.Image) -> tuple[Image.Image, str]:
    """Return a mask's greys, how opaque it is where a part is transparent, else how bright; and what is doubtful."""
    grey = flattened(image, "L", background="black")
    if image.has_transparency_data:
        through = ImageChops.subtract(flattened(image, "L", background="white"), grey)
        if _brightest(through) >= _BLACK:
            return ImageChops.invert(through), ""
    channels = image.resize((256, 256), Image.Resampling.NEAREST).convert("RGB").split()
    tint = max(_brightest(ImageChops.difference(channels[0], other)) for other in channels[1:])
    brightest = _brightest(grey)
    doubt = "has colours" if tint > _MOST_TINT else "is dim" if brightest < _DIM else ""
    told = f" {doubt}: its brightest value is {brightest} of 255. Paint what counts white, and all else black."
    return grey, told if doubt else ""


def _brightest(grey: Image.Image) -> int:
    return max(value for value, count in enumerate(grey.histogram()) if count)


def without_noise(grey: Image.Image) -> Image.Image:
    """Return a mask whose greys that nobody can see are black."""
    return grey.point(lambda value: value if value >= _BLACK else 0)


def png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield kind and whole of each chunk of a PNG file, copied nowhere; the last may be cut off."""
    place, whole = len(PNG), memoryview(content)
    while place < len(content):
        chunk = whole[place : place + 12 + int.from_bytes(whole[place : place + 4], "big")]
        yield bytes(chunk[4:8]), chunk
        place += len(chunk)


def _without_text(content: bytes) -> tuple[bytes, bytes | None]:
    """Return a PNG file without text and animation, and its colour profile, of which Pillow takes at most 1 MB."""
    kept: list[bytes | memoryview] = [PNG]
    profile = None
    for kind, chunk in png_chunks(content):
        if kind == b"iCCP":
            reader = zlib.decompressobj()
            with contextlib.suppress(zlib.error):
                profile = reader.decompress(bytes(chunk[8:-4]).partition(b"\0")[2][1:], LARGEST_PROFILE)
            profile = profile if reader.eof else None  # damaged, or very large
        elif kind == b"eXIf":
            kept += [chunk] if struct.pack(">I", zlib.crc32(chunk[4:-4])) == chunk[-4:] else []
        elif kind == b"tRNS" or not kind[:1].islower():  # capitals: what no decoder may skip
            kept.append(chunk)
    return b"".join(kept), profile
