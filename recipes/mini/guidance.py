"""What classifier-free guidance and its rescaling do to mini's pictures: who is there, and who is himself."""

from dataclasses import replace

import numpy as np

from drawing import SETTINGS
from evaluation_cases import SEED, any_known, scene_case
from examples import example_subjects, example_world
from lookalikes import CHANCE
from metrics import Rate, all_present, rate
from studio import Studio
from taught import flat, taught_subjects

VARIANTS = [(scale, rescale) for scale in (4.0, 7.5) for rescale in (0.0, 0.7)]
PLAIN_COUNTS = (2, 3)
TAUGHT_COUNTS = (1, 2)


def evaluate_guidance(studio: Studio) -> dict[str, Rate]:
    """Plain prompts and taught subjects with a layout, at two guidance scales, rescaled (arXiv:2305.08891) or not."""
    rates, taught = {}, taught_subjects(studio, example_subjects(example_world()))
    for scale, rescale in VARIANTS:
        settings = replace(SETTINGS, guidance_scale=scale, guidance_rescale=rescale)
        label = f"guidance scale {scale:g}, rescale {rescale:g}"
        for count in PLAIN_COUNTS:
            rng = np.random.default_rng([SEED, 1, count])
            cases = [scene_case(rng, any_known(rng, count), seeds) for seeds in studio.seeds()]
            present = [all_present(one.sightings, one.case.wanted) for one in studio.draw(cases, settings)]
            rates[f"{label}: {count} objects, all present"] = rate(present)
        for count in TAUGHT_COUNTS:
            who, cases = taught.draw_cases(studio, count)
            seen = list(studio.draw(cases, settings))
            hits = taught.identify(seen, who, taught.line_ups, studio.judge.embed)
            rates[f"{label}: identity of {count}"] = rate(flat(hits), CHANCE)
    return rates
