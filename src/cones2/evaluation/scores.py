"""From what the judges saw to one number for each measure and combination."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cones2.errors import SettingsError
from cones2.evaluation.alignment import several_alignment, text_alignment
from cones2.evaluation.boxes import average_precision, box_overlaps, in_right_boxes
from cones2.evaluation.judging import References, prompt_words, unpacked
from cones2.evaluation.lines import PictureLine
from cones2.evaluation.matching import Seen, Wanted
from cones2.evaluation.measures import look_at
from cones2.evaluation.protocol import Combination, Protocol
from cones2.evaluation.questions import answer
from cones2.judge import WIDTH, Judge

Scores = dict[str, float | None]
"""Of one picture, by measure; None where a measure says nothing of it."""

THRESHOLDS = np.round(np.arange(-0.1, 1.01, 0.05), 2)
"""Of the curve of collapse."""


@dataclass(frozen=True, eq=False)
class Scorer:
    """Measures pictures of one protocol.

    Attributes:
        protocol: what was asked for.
        judge: by whose words prompts are read.
        references: of each subject.
        collapse: the likeness below which a subject counts as collapsed.
    """

    protocol: Protocol
    judge: Judge
    references: Mapping[str, References]
    collapse: float

    def wanted(self, combination: Combination, *, layout: bool, plainly: bool = False) -> Wanted:
        """Return what pictures of a combination should show; `plainly` by the looks of the second judge."""
        known = [self.references[name] for name in combination.subjects]
        boxes = np.array([combination.places[name] for name in combination.subjects]) if layout else None
        looks = [each.plain_look if plainly else each.identity for each in known]
        others = tuple(self._others(combination, name, plainly=plainly) for name in combination.subjects)
        return Wanted(np.array([each.class_index for each in known]), np.stack(looks), others, boxes)

    def _others(self, combination: Combination, subject: str, *, plainly: bool) -> Float[np.ndarray, "others dim"]:
        """Return how a subject's look-alikes look, and the protocol's other subjects of its class."""
        own = self.references[subject]
        rest = [each for name, each in self.references.items() if name not in combination.subjects]
        rest = [each for each in rest if each.class_index == own.class_index]
        looks = own.plain_lookalikes if plainly else own.lookalikes
        return np.concatenate([looks, *((each.plain_look if plainly else each.identity)[None] for each in rest)])

    def measure(self, line: PictureLine) -> Scores:
        """Return all measures of one picture; a picture that there is none of scores as one of nothing."""
        combination = self.combination(line)
        wanted, seen = self.wanted(combination, layout=line.layout), line.judged.seen()
        outcome, scene = look_at(seen, wanted), self.protocol.document.prompts[line.prompt].scene
        plain = look_at(line.judged.seen(plainly=True), self.wanted(combination, layout=line.layout, plainly=True))
        in_scene = (bool(line.picture) and line.judged.scene == scene) if scene else None
        answers = answer(outcome, seen, wanted, in_scene)
        found: Scores = {
            **self._alignments(line, combination, scene),
            "present": _mean(outcome.present),
            "identity": _mean_of_some(outcome.identity[outcome.told]),
            "all_right": None if outcome.all_right is None else float(outcome.all_right),
            "swapped": None if outcome.swapped is None else float(outcome.swapped),
            "cloned": float(outcome.cloned),
            "missing": _mean(outcome.missing),
            "collapsed": _mean(outcome.likeness < self.collapse),
            "followed": None if in_scene is None else float(in_scene),
            "yes_image": _mean_of_some(answers.image),
            "yes_text": _mean(answers.text),
            "all_yes": float(answers.all_yes) if outcome.told.all() else None,
            "identity_second": _mean_of_some(plain.identity[plain.told]),
            "right_box": _mean(in_right_boxes(seen, wanted)) if line.layout else None,
            "overlap": _mean(box_overlaps(seen, wanted)) if line.layout else None,
        }
        curve = (outcome.likeness[:, None] < THRESHOLDS).mean(axis=0).tolist()
        return found | {f"collapsed_{least:.2f}": share for least, share in zip(THRESHOLDS, curve, strict=True)}

    def combination(self, line: PictureLine) -> Combination:
        """Return which combination a line is of.

        Raises:
            SettingsError: the line is not of this protocol and this judge, whatever it says.
        """
        known = {each.name: each for each in self.protocol.document.combinations}
        kinds, scenes = len(self.judge.world.classes), len(self.judge.world.scenes) + 1
        judged = line.judged
        if (
            line.combination not in known
            or line.prompt >= len(self.protocol.document.prompts)
            or any(kind >= kinds for kind in judged.classes)
            or len(judged.words) != (kinds + scenes if line.picture else 0)
        ):
            told = f"row {line.row[:50]!r} has a line of {line.combination[:50]!r}, prompt {line.prompt}"
            raise SettingsError(
                f"{told}, as this protocol and this judge have none. Take the row's results away, and run again."
            )
        return known[line.combination]

    def boxes(self, line: PictureLine) -> tuple[Seen, Wanted]:
        """Return what average precision takes."""
        return line.judged.seen(), self.wanted(self.combination(line), layout=True)

    def _alignments(self, line: PictureLine, combination: Combination, scene: str) -> Scores:
        if not line.picture:
            return {"text": 0.0, "image": -1.0}  # as unlike as can be: cosines of drawn pictures go below 0
        known = [self.references[name] for name in combination.subjects]
        text = prompt_words(self.judge, [each.class_index for each in known], scene)
        whole = unpacked(line.judged.whole, 1, WIDTH)
        image = several_alignment(whole, [each.wholes for each in known])
        return {"text": float(text_alignment(np.array([line.judged.words]), text)[0]), "image": float(image[0])}


def by_combination(
    lines: Iterable[PictureLine], score: Callable[[PictureLine], Scores]
) -> dict[str, dict[str, Float[np.ndarray, "_"]]]:
    """Return the pictures' scores, by measure and by combination; what says nothing is left out."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        for name, value in score(line).items():
            if value is not None:
                found[name][line.combination].append(value)
    return {name: {key: np.array(values) for key, values in each.items()} for name, each in found.items()}


def precision_of(lines: Sequence[PictureLine], scorer: Scorer) -> float | None:
    """Return AP50 over pictures with a layout; None where there are none."""
    return average_precision([scorer.boxes(line) for line in lines]) if lines and lines[0].layout else None


def _mean(values: Float[np.ndarray, "_"] | np.ndarray) -> float:
    return float(np.mean(values))


def _mean_of_some(values: np.ndarray) -> float | None:
    return _mean(values) if len(values) else None
