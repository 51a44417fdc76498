"""What classifier-free guidance, and its part that over-saturates, do to mini's pictures of subjects."""

from dataclasses import replace

from drawing import SETTINGS
from examples import example_subjects, example_world
from lookalikes import CHANCE
from metrics import Rate, in_right_boxes, rate
from studio import Studio
from taught import flat, taught_subjects

VARIANTS = [(7.5, 1.0), (7.5, 0.0), (4.0, 0.0), (1.0, 1.0)]
COUNTS = (1, 2)


def evaluate_guidance(studio: Studio) -> dict[str, Rate]:
    """Taught subjects with a layout: without guidance, and at scales with all or none of its parallel part."""
    rates, taught = {}, taught_subjects(studio, example_subjects(example_world()))
    for scale, parallel in VARIANTS:
        settings = replace(SETTINGS, guidance_scale=scale, guidance_parallel=parallel)
        label = f"guidance scale {scale:g}, {'all' if parallel else 'none'} of its parallel part"
        for count in COUNTS:
            who, cases = taught.draw_cases(studio, count)
            seen = list(studio.draw(cases, settings))
            hits = taught.identify(seen, who, taught.line_ups, studio.judge.embed)
            boxes = [in_right_boxes(one.sightings, one.case.wanted) for one in seen]
            rates[f"{label}: identity of {count}"] = rate(flat(hits), CHANCE)
            rates[f"{label}: {count} in the right box"] = rate(flat(boxes))
    return rates
