"""What classifier-free guidance does to mini's pictures of subjects."""

from drawing import SETTINGS
from drawing_bench import DrawingBench
from examples import example_subjects, example_world
from metrics import Rate
from taught import taught_subjects
from ways import measure

SCALES = (1.0, 4.0, 7.5)
COUNTS = (1, 2)


def evaluate_guidance(bench: DrawingBench) -> dict[str, Rate]:
    """Taught subjects with a layout, without guidance and at two scales."""
    rates: dict[str, Rate] = {}
    taught = taught_subjects(bench, example_subjects(example_world()))
    for scale in SCALES:
        settings = {**SETTINGS, "guidance_scale": scale}
        rates |= measure(bench, taught, f"guidance scale {scale:g}", settings=settings, counts=COUNTS)
    return rates
