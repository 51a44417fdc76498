"""λ of Eq. 4 on mini: how much of the subject that a tuned encoder draws its residual alone keeps.

Too small a λ hides the subject in other words, from which no residual is taken; too large a one learns nothing.
"""

from dataclasses import replace
from typing import Any

from cones2.learning.learner import LearnStep
from cones2.learning.recipe import RECIPES
from cones2.pipeline import Cones2Pipeline
from cones2.residual import Residual
from cones2.subjects import Subject
from drawing import TAUGHT_SETTINGS
from drawing_bench import DrawingBench
from examples import FOLDER, ExampleSubject, example_subjects, example_world, last_step
from lookalikes import CHANCE
from metrics import Rate, rate
from taught import Taught, flat, taught_subjects

NAMES = ("rex", "mimi", "bobo", "momo")
RECIPE = RECIPES["mini"]
WEIGHTS = (0.0, RECIPE.preservation_weight, 10 * RECIPE.preservation_weight)


def evaluate_preservation(bench: DrawingBench) -> dict[str, Rate]:
    """Identity of four subjects by their residual alone and by the tuned encoder itself, at three λ."""
    examples = example_subjects(example_world())
    rates: dict[str, Rate] = {}
    each = replace(bench, pictures=max(bench.pictures // len(NAMES), 1))
    ones = {name: taught_subjects(each, examples, names={name}) for name in NAMES}
    for weight in WEIGHTS:
        alone, tuned, moved = [], [], []
        for one in ones.values():
            (example,) = one.examples
            last = _learn(bench, example, weight)
            alone += _hits(each, one, last.residual)
            tuned += _hits(replace(each, pipe=with_encoder(bench.pipe, last.tuned_encoders[0])), one, None)
            displacement = last.displacement()
            moved.append(displacement.relative if displacement else 0.0)
        label = f"λ {weight:g}, other words moved by {100 * sum(moved) / len(moved):.1f} %"
        rates[f"{label}: the residual alone"] = rate(alone, CHANCE)
        rates[f"{label}: the tuned encoder"] = rate(tuned, CHANCE)
    return rates


def _learn(bench: DrawingBench, example: ExampleSubject, weight: float) -> LearnStep:
    recipe = replace(RECIPE, preservation_weight=weight)
    return last_step(bench.pipe.learn_steps(FOLDER / example.name / "photos", example.class_word, recipe))


def with_encoder(pipe: Cones2Pipeline, text_encoder: Any) -> Cones2Pipeline:
    """The same model with another text encoder."""
    parts = {**pipe.components, "text_encoder": text_encoder.eval()}
    other = Cones2Pipeline(type(pipe.pipeline)(**parts, requires_safety_checker=False))
    other.set_progress_bar_config(disable=True)
    return other


def _hits(bench: DrawingBench, one: Taught, residual: Residual | None) -> list[bool]:
    who, cases = one.draw_cases(bench, 1)
    cases = [
        replace(case, subjects={name: Subject(each.class_word, residual) for name, each in case.subjects.items()})
        for case in cases
    ]
    return flat(one.identify(list(bench.draw(cases, TAUGHT_SETTINGS)), who, one.line_ups, bench.judge.embed))
