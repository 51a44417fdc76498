"""Opening pictures that come from anyone: within bounds, and whatever a decoder raises becomes one error of ours."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from cones2.errors import Cones2Error

MOST_PIXELS = 50_000_000


@contextmanager
def opened_image(
    content: bytes,
    *,
    name: str,
    formats: tuple[str, ...],
    error: type[Cones2Error],
    advice: str,
    most_pixels: int = MOST_PIXELS,
) -> Iterator[Image.Image]:
    """Open a picture for a `with` block; decode it in there.

    Args:
        content: the file's bytes.
        name: what to call it in an error.
        formats: Pillow's names of what is taken.
        error: what is raised.
        advice: what to do with a file that is of another format or damaged, as a sentence.
        most_pixels: more are refused before any is decoded.

    Raises:
        Cones2Error: of the class `error`: the picture is of another format, damaged, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders' remarks on odd files: what matters is raised
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=formats) as image:
                if image.width * image.height > most_pixels:
                    raise error(_too_many_pixels(name, most_pixels))
                yield image
    except Cones2Error:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as cause:
        raise error(_too_many_pixels(name, most_pixels)) from cause
    except UnidentifiedImageError as cause:
        expected = " or ".join(filter(None, (", ".join(formats[:-1]), formats[-1]))).replace("WEBP", "WebP")
        raise error(f"{name} is not a {expected} picture, or only a part of one. {advice}") from cause
    except Exception as cause:  # on hostile bytes a decoder may raise anything
        raise error(f"{name} is damaged: {cause}. {advice}") from cause


def scaled_grey(image: Image.Image) -> Image.Image:
    """Bring 16-bit grey to 8 bits by scaling, where Pillow's own conversion clips; other pictures stay as they are."""
    return image.point(lambda value: value / 256).convert("L") if image.mode.startswith("I") else image


def _too_many_pixels(name: str, most: int) -> str:
    return f"{name} has too many pixels; expected at most {most // 10**6} million. Scale it down."
