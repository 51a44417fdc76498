"""What classifier-free guidance, and its part that over-saturates, do to mini's pictures of subjects."""

from dataclasses import replace

from drawing import SETTINGS
from examples import example_subjects, example_world
from metrics import Rate
from studio import Studio
from taught import taught_subjects
from ways import measure

VARIANTS = [(7.5, 1.0), (7.5, 0.0), (4.0, 0.0), (1.0, 1.0)]
COUNTS = (1, 2)


def evaluate_guidance(studio: Studio) -> dict[str, Rate]:
    """Taught subjects with a layout: without guidance, and at scales with all or none of its parallel part."""
    rates, taught = {}, taught_subjects(studio, example_subjects(example_world()))
    for scale, parallel in VARIANTS:
        settings = replace(SETTINGS, guidance_scale=scale, guidance_parallel=parallel)
        label = f"guidance scale {scale:g}, {'all' if parallel else 'none'} of its parallel part"
        rates |= measure(studio, taught, label, settings=settings, counts=COUNTS)
    return rates
