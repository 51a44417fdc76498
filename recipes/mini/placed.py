"""Places in words, and none at all (`"auto"`): untaught words, two to five in a picture; are all there, once each?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from cones2.layout import Layout
from cones2.places import auto_layout, place_layout
from drawing_bench import DrawingBench, Seen, failed
from evaluation_cases import NAMES, SEED, any_known, scene_case
from metrics import Rate, all_present, rate

WORDS: Mapping[int, Sequence[str]] = {
    2: ("left", "right"),
    3: ("left", "middle", "right"),
    4: ("top left", "top right", "bottom left", "bottom right"),
    5: ("top left", "top right", "middle", "bottom left", "bottom right"),
}


def evaluate_places(bench: DrawingBench) -> dict[str, Rate]:
    """The share of pictures that show all, by how many there are, placed by words and automatically."""
    rates: dict[str, Rate] = {}
    failures: list[Seen] = []
    for label in ("by words", "automatic"):
        for count, words in WORDS.items():
            seen = list(_draw(bench, words, by_words=label == "by words"))
            outcomes = [all_present(one.sightings, one.case.wanted) for one in seen]
            rates[f"{count}, {label}"] = rate(outcomes)
            failures += failed(seen, outcomes, most=2)
    bench.save_failures("places", failures)
    return rates


def _draw(bench: DrawingBench, words: Sequence[str], *, by_words: bool) -> Sequence[Seen]:
    rng, cases = np.random.default_rng([SEED, 7, len(words)]), []
    for seeds in bench.seeds():
        case = scene_case(rng, any_known(rng, len(words)), seeds)
        class_words = {name: subject.class_word for name, subject in case.subjects.items()}
        cases.append(replace(case, layout=_layout(words, class_words, by_words=by_words)))
    return list(bench.draw(cases))


def _layout(words: Sequence[str], class_words: Mapping[str, str], *, by_words: bool) -> Layout:
    if not by_words:
        return auto_layout(list(class_words), class_words)
    return place_layout(dict(zip(NAMES, words, strict=False)), class_words=class_words)
