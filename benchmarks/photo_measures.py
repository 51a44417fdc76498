"""Calibrate the thresholds of `cones2 check`: measures of good photos, and of the same photos spoilt on purpose.

`python benchmarks/photo_measures.py FOLDER --size 512` reads the photos in FOLDER's sub-folders, one subject each, and
prints for each measure the lowest, middle and highest value, and how many are on the bad side of the threshold.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from cones2.photos import Photo, load_photos, report
from cones2.photos.measures import clipped, difference_hash, filled, sharpness, tones


def expose(image: Image.Image, stops: float) -> Image.Image:
    """Expose a photo anew, by the usual gamma of 2.2."""
    return image.point(
        [min(255, round(255 * ((value / 255) ** 2.2 * 2**stops) ** (1 / 2.2))) for value in range(256)] * 3
    )


def blur(image: Image.Image, size: int, radius: float) -> Image.Image:
    """Scale the shorter side down to `size` pixels, then blur by a radius in those."""
    scale = min(1.0, size / min(image.size))
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    return small.filter(ImageFilter.GaussianBlur(radius))


def shrink(image: Image.Image) -> Image.Image:
    """Put a photo on a plain ground nine times its area."""
    ground = Image.new("RGB", (3 * image.width, 3 * image.height), "gray")
    ground.paste(image, image.size)
    return ground


def tell(what: str, values: Iterable[float], bad: Callable[[float], bool]) -> None:
    """Print a line of the table."""
    found = np.array(list(values))
    low, middle, high = np.percentile(found, [0, 50, 100])
    print(f"| {what} | {low:.3g} | {middle:.3g} | {high:.3g} | {sum(map(bad, found))} of {len(found)} |", flush=True)


def tell_all(subjects: Sequence[Sequence[Photo]], size: int) -> None:
    """Print the table."""
    images = [photo.image for photos in subjects for photo in photos]
    print("| measure | lowest | median | highest | warned of |\n| --- | --- | --- | --- | --- |")
    tell("sharpness", (sharpness(image, size) for image in images), lambda value: value < report.BLURRED)
    for radius in (1, 2, 4):
        spoilt = (sharpness(blur(image, size, radius), size) for image in images)
        tell(f"sharpness, blurred by {radius} px", spoilt, lambda value: value < report.BLURRED)
    for stops in (0, -2, -3):
        spoilt = (tones(expose(image, stops))[1] for image in images)
        tell(f"95th percentile of grey, {stops} stops", spoilt, lambda value: value < report.TOO_DARK)
    for stops in (0, 2, 3):
        spoilt = (tones(expose(image, stops))[0] for image in images)
        tell(f"5th percentile of grey, {stops} stops", spoilt, lambda value: value > report.TOO_BRIGHT)
    tell("share of white", (clipped(image)[1] for image in images), lambda value: value > report.MOST_CLIPPED)
    tell("subject's box", (filled(image, None) for image in images), lambda value: value < report.SMALL_IN_THE_FRAME)
    shrunk = (filled(shrink(image), None) for image in images)
    tell("subject's box, on a ninth", shrunk, lambda value: value < report.SMALL_IN_THE_FRAME)
    pairs = (pair for photos in subjects for pair in itertools.combinations(photos, 2))
    apart = (distance(one.image, other.image) for one, other in pairs)
    tell("dHash, two photos of a subject", apart, lambda value: value <= report.NEARLY_THE_SAME)
    halves = (distance(image, image.resize((image.width // 2, image.height // 2))) for image in images)
    tell("dHash, a copy of half the size", halves, lambda value: value <= report.NEARLY_THE_SAME)


def distance(one: Image.Image, other: Image.Image) -> int:
    """Count the bits of dHash that differ."""
    return int(np.count_nonzero(difference_hash(one) != difference_hash(other)))


def main() -> None:
    """Read the photos and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--inside", default=".", help="where in each sub-folder the photos are")
    arguments = parser.parse_args()
    folders = sorted(folder / arguments.inside for folder in arguments.folder.iterdir() if folder.is_dir())
    subjects = [load_photos(folder) for folder in folders if any(folder.glob("*.*"))]
    tell_all(subjects, arguments.size)


if __name__ == "__main__":
    main()
