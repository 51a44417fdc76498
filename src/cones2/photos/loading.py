"""A user's photos, and the masks that go with them, from folders or lists of files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from cones2.errors import PhotoError
from cones2.photos.decoding import read_picture
from cones2.photos.masks import read_mask

MOST_PHOTOS = 200

# What a folder's owner would call a picture: if it can't be used, that is an error. Other files are left alone.
_PICTURE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".png",
        ".psd",
        ".tif",
        ".tiff",
        ".webp",
    }
)


@dataclass(frozen=True)
class Photo:
    """A photo of a subject.

    Attributes:
        path: where it was read.
        sha256: hash of the file's bytes.
        image: RGB, upright, at most 2048 pixels long, without metadata.
        mask: where the subject is, of the image's size: 8-bit grey, white on the subject; None counts all of the photo.
    """

    path: Path
    sha256: str
    image: Image.Image
    mask: Image.Image | None = None


def load_photos(source: Path | str | Sequence[Path | str], *, masks: Path | str | None = None) -> tuple[Photo, ...]:
    """Read the photos in the folder `source`, sorted by name, or those listed, in the given order.

    In a folder, hidden files, sub-folders and files that are not pictures by their suffix are skipped; every picture
    must be usable, so that nobody learns from fewer photos than they think. EXIF orientation and colour profiles are
    applied, transparency becomes white, and of an animation the first frame counts.

    Args:
        source: a folder, one file, or a list of files.
        masks: a folder with a mask for each photo: a greyscale picture of the same name but for its suffix, and of the
            same shape, white where the subject is.

    Raises:
        PhotoError: there is none or there are too many, or one is not a JPEG, PNG or WebP picture, is damaged, or is
            too large, too small or too long; or a mask is missing, empty, coloured or of another shape.
    """
    if isinstance(source, Path | str):
        paths, nothing = _pictures_in(Path(source)), f"{source} holds no photos"
    else:
        paths, nothing = tuple(map(Path, source)), "no photos were given"
    if not paths:
        raise PhotoError(f"{nothing}; expected JPEG, PNG or WebP pictures of the subject, 3 to 5 do best.")
    if len(paths) > MOST_PHOTOS:
        raise PhotoError(f"{len(paths)} photos are too many; expected at most {MOST_PHOTOS}, 3 to 5 do best.")
    return tuple(_load_photo(path, None if masks is None else Path(masks)) for path in paths)


def _load_photo(path: Path, masks: Path | None) -> Photo:
    image, sha256 = read_picture(path)
    return Photo(path, sha256, image, read_mask(masks, path, image.size) if masks else None)


def _pictures_in(source: Path) -> tuple[Path, ...]:
    if not source.is_dir():
        return (source,)
    try:
        entries = sorted(source.iterdir())
    except OSError as error:
        raise PhotoError(f"can't read the folder {source}: {error.strerror}. Check its permissions.") from error
    return tuple(path for path in entries if _looks_like_picture(path) and not path.is_dir())


def _looks_like_picture(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in _PICTURE_SUFFIXES
