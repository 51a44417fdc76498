"""`results.json`: every number of a report with its interval, from lines of results.

A row is complete where every picture of its tier is there. Only complete rows are compared; all others are labelled.
"""

import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from cones2.errors import SettingsError
from cones2.evaluation.alignment import between, macro, micro
from cones2.evaluation.cases import cases
from cones2.evaluation.comparisons import check_claim, check_predictions, order_disagreements, rounded
from cones2.evaluation.identifiers import Identifiers
from cones2.evaluation.judging import References, look_up
from cones2.evaluation.lines import LearnedLine, PictureLine, RowLines
from cones2.evaluation.measures import collapse_threshold
from cones2.evaluation.protocol import TIERS, Protocol, Row, Tier
from cones2.evaluation.questions import Reliability, corrected_interval
from cones2.evaluation.scores import Scorer, by_combination, precision_of
from cones2.evaluation.statistics import bootstrap_interval, t_interval
from cones2.files import read_bounded, write_atomically
from cones2.judge import JUDGE_WEIGHTS, Judge
from cones2.photos import load_photos

PLAIN = "Plain"
"""The rival that knows no subject, whose alignment is the floor of everybody's."""
LIBRARY = 16
"""Subjects of the library whose pairs and triples are all to be drawn, in the measure of complexity."""
_MOST_THREADS = 256
_LARGEST_JSON = 2**26


def references_of(protocol: Protocol, judge: Judge) -> dict[str, References]:
    """Return what each subject, and its look-alikes, look like to the judges.

    Raises:
        PhotoError, SettingsError: photos can't be used, or the judge does not know or see a subject.
    """
    return {
        name: look_up(judge, entry.class_word, load_photos(protocol.photos(name)), _others(protocol, name))
        for name, entry in protocol.document.subjects.items()
    }


def scorer_of(protocol: Protocol, judge: Judge) -> Scorer:
    """Return what measures the pictures of a protocol.

    Raises:
        PhotoError, SettingsError: as `references_of`.
    """
    references, collapse = references_of(protocol, judge), protocol.document.collapse
    if collapse is None:
        collapse = round(collapse_threshold(np.concatenate([each.true for each in references.values()])), 4)
    return Scorer(protocol, judge, references, collapse)


def open_lines(protocol: Protocol, tier: Tier, folder: Path) -> list[PictureLine]:
    """Return all pictures of the rows of a tier.

    Raises:
        SettingsError: lines are damaged, or of another protocol.
    """
    lines = [line for row in protocol.rows(tier) for line in RowLines(folder / "rows", row.name)]
    if any(line.protocol != protocol.sha256 for line in lines):
        raise SettingsError(f"{folder} has results of another protocol: take the one that they were drawn by.")
    return [line for line in lines if isinstance(line, PictureLine)]


def _others(protocol: Protocol, subject: str) -> Sequence[Any]:
    folder = protocol.lookalikes(subject)
    return () if folder is None else load_photos(folder)


def collect(
    scorer: Scorer,
    tier: Tier,
    folder: Path,
    *,
    identify: Callable[[Row], Identifiers] | None = None,
    calibration: Mapping[str, Reliability] | None = None,
    commit: str | None = None,
) -> dict[str, Any]:
    """Return the results of a tier as JSON values.

    Args:
        scorer: of the protocol.
        tier: how much of it counts.
        folder: of the run.
        identify: of a row, by which pictures of other code, weights or settings are known and left out; None takes all.
        calibration: how reliable the judge is, by question, `image` and `text`; None leaves rates as they are.
        commit: of the code, if it is known.

    Raises:
        SettingsError: lines are damaged, or of another protocol.
    """
    protocol = scorer.protocol
    rows = {row.name: _row(scorer, row, tier, folder, calibration, identify) for row in protocol.rows(tier)}
    photos = _photos_alone(scorer.references)
    bound(rows, photos)
    return {
        "version": 1,
        "protocol": protocol.sha256,
        "tier": tier,
        "model": protocol.document.model,
        "judge": hashlib.sha256((JUDGE_WEIGHTS / "judge.safetensors").read_bytes()).hexdigest(),
        "versions": {name: importlib.metadata.version(name) for name in ("cones2", "torch", "diffusers", "numpy")},
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "collapse_threshold": scorer.collapse,
        "commit": commit,
        "photos": photos,
        "rows": rows,
        "claims": [check_claim(claim, rows) for claim in protocol.document.claims],
        "predictions": check_predictions(protocol.document.predictions, rows),
        "second_judge": order_disagreements(rows),
    }


def _row(
    scorer: Scorer,
    row: Row,
    tier: Tier,
    folder: Path,
    calibration: Mapping[str, Reliability] | None,
    identify: Callable[[Row], Identifiers] | None,
) -> dict[str, Any]:
    protocol, lines = scorer.protocol, RowLines(folder / "rows", row.name)
    known, left_out = _known(protocol, row, lines, identify(row)) if identify else None, 0
    drawn: dict[tuple[bool, int], dict[tuple[str, int, int], PictureLine]] = defaultdict(dict)
    learned: list[LearnedLine] = []
    for line in lines:
        if line.protocol != protocol.sha256:
            raise SettingsError(f"{folder} has results of another protocol: take the one that they were drawn by.")
        if known is not None and (line.case if isinstance(line, PictureLine) else line.id) not in known:
            left_out += 1
        elif isinstance(line, PictureLine):
            place = (line.layout, len(scorer.combination(line).subjects))
            drawn[place][line.combination, line.prompt, line.number] = line
        else:
            learned.append(line)
    cells, done, expected = {}, 0, 0
    for layout in row.layouts:
        for count, wanted in _wanted(protocol, row, tier, layout == "with").items():
            place = (layout == "with", count)
            there = [drawn[place][key] for key in wanted if key in drawn[place]]
            done, expected = done + len(there), expected + len(wanted)
            if there:
                cells[f"{layout}/{count}"] = _cell(scorer, there, len(wanted), calibration)
    return {
        "rival": row.rival,
        "settings": row.settings,
        "complete": done == expected,
        "pictures": done,
        "expected": expected,
        "left_out": left_out,
        "seconds_a_picture": _seconds(drawn),
        "lines": lines.sha256(),
        **_cost(learned),
        "cells": cells,
    }


def _known(protocol: Protocol, row: Row, lines: RowLines, identifiers: Identifiers) -> set[str]:
    """Return the hashes that a row's lines should have, by as many threads as its first picture was drawn by."""
    combinations = [each for each in protocol.document.combinations if len(each.subjects) <= row.subjects]
    every = [case for each in combinations for case in cases(protocol, row, each, TIERS[-1])]
    first = next((line for line in lines if isinstance(line, PictureLine)), None)
    for case in every:
        here = (case.combination.name, case.prompt, case.layout)
        if first and here == (first.combination, first.prompt, first.layout) and first.number in case.numbers:
            of = (replace(identifiers, threads=number) for number in range(1, _MOST_THREADS + 1))
            identifiers = next((each for each in of if first.case in each.pictures(case)), identifiers)
    drawn = {each for case in every for each in identifiers.pictures(case)}
    return drawn.union(*(identifiers.learning(each).values() for each in combinations))


def _wanted(protocol: Protocol, row: Row, tier: Tier, layout: bool) -> dict[int, list[tuple[str, int, int]]]:
    """Return which pictures a tier has of a row, by the number of their subjects."""
    found: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for combination in protocol.combinations(tier):
        if len(combination.subjects) <= row.subjects:
            for case in cases(protocol, row, combination, tier):
                if case.layout == layout:
                    keys = [(combination.name, case.prompt, number) for number in case.numbers]
                    found[len(combination.subjects)] += keys
    return dict(sorted(found.items()))


def _cell(
    scorer: Scorer, lines: Sequence[PictureLine], expected: int, calibration: Mapping[str, Reliability] | None
) -> dict[str, Any]:
    scores = by_combination(lines, scorer.measure)
    curve = {name.removeprefix("collapsed_"): each for name, each in scores.items() if name.startswith("collapsed_")}
    measures = {name: _estimate(each) for name, each in scores.items() if not name.startswith("collapsed_")}
    for question, reliability in (calibration or {}).items():
        if f"yes_{question}" not in scores:  # nobody that a subject could be taken for
            continue
        rates = np.array([each.mean() for each in scores[f"yes_{question}"].values()])
        found = corrected_interval(rates, reliability)
        measures[f"yes_{question}_corrected"] = rounded(found.estimate, found.low, found.high) | {
            "combinations": len(rates)
        }
    precision = precision_of(lines, scorer)
    return {
        "complete": len(lines) == expected,
        "pictures": len(lines),
        "expected": expected,
        "measures": measures,
        "ap50": None if precision is None else round(precision, 4),
        "collapse_curve": {least: round(macro(each), 4) for least, each in curve.items()},
    }


def _estimate(scores: Mapping[str, Float[np.ndarray, "_"]]) -> dict[str, Any]:
    """Return a mean over combinations with its intervals, what it is the mean of, and the mean over pictures."""
    means = {name: float(each.mean()) for name, each in scores.items()}
    kept: dict[str, Any] = {"micro": round(micro(scores), 4), "combinations": len(means)}
    kept |= {"values": {name: round(value, 5) for name, value in means.items()}}
    if len(means) < 2:
        return rounded(macro(scores), None, None) | kept
    values = np.array(list(means.values()))
    students, drawn = t_interval(values), bootstrap_interval(values)
    bootstrap = [round(drawn.low, 4), round(drawn.high, 4)]
    return rounded(students.estimate, students.low, students.high) | {"bootstrap": bootstrap} | kept


def bound(rows: Mapping[str, Any], ceiling: float) -> None:
    """Add to each image alignment where it lies from the plain model's (0) to that of the photos themselves (1)."""
    floors: Mapping[str, Any] = next((row["cells"] for row in rows.values() if row["rival"] == PLAIN), {})
    for row in rows.values():
        for cell, found in row["cells"].items():
            if cell in floors and floors[cell]["complete"] and found["complete"]:
                floor = floors[cell]["measures"]["image"]["estimate"]
                where = between(found["measures"]["image"]["estimate"], floor, ceiling)
                found["measures"]["image"]["between"] = None if where is None else round(where, 4)


def _seconds(drawn: Mapping[Any, Mapping[Any, PictureLine]]) -> float | None:
    seconds = [line.seconds for some in drawn.values() for line in some.values() if line.picture]
    return round(float(np.mean(seconds)), 3) if seconds else None


def _cost(learned: Sequence[LearnedLine]) -> dict[str, Any]:
    """Return bytes and seconds of learning, by how many subjects were learned together, and of a library's sets."""
    sizes: dict[int, list[LearnedLine]] = defaultdict(list)
    for line in learned:
        if not line.failed:
            sizes[len(line.subjects)].append(line)
    means = {
        count: (float(np.mean([one.bytes for one in some])), float(np.mean([one.seconds for one in some])))
        for count, some in sorted(sizes.items())
    }
    together = any(count > 1 for count in means)
    library = {str(count): _library(means, count, together) for count in (2, 3) if (count if together else 1) in means}
    return {
        "failed_to_learn": sum(bool(line.failed) for line in learned),
        "learned": {str(count): _told(*each) for count, each in means.items()},
        "library": library,
    }


def _library(means: Mapping[int, tuple[float, float]], count: int, together: bool) -> dict[str, int | float]:
    """Return what it takes to be able to draw every pair, or triple, of a library of 16 subjects."""
    sets, (size, seconds) = (comb(LIBRARY, count), means[count]) if together else (LIBRARY, means[1])
    return _told(sets * size, sets * seconds)


def _told(size: float, seconds: float) -> dict[str, int | float]:
    return {"bytes": round(size), "seconds": round(seconds, 2)}


def _photos_alone(references: Mapping[str, References]) -> float:
    """Return the image alignment of each subject's photos with its other photos: about what a perfect system has."""
    means = []
    for each in references.values():
        count = len(each.wholes)
        if count > 1:
            means.append(float(((each.wholes @ each.wholes.T).sum() - count) / (count * (count - 1))))
    return round(float(np.mean(means)), 4) if means else 1.0


def commit_of_code() -> tuple[str | None, bool]:
    """Return the Git commit of this package and whether anything was changed since; None where it is not in Git."""
    here = Path(__file__).parent
    try:  # an installed copy may lie within somebody else's repository
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, capture_output=True, check=True)
        commit, changed = (
            subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None, False
    return commit, bool(changed)


def read_calibration(path: Path) -> dict[str, Reliability]:
    """Read how reliable the judge is: JSON of question, class word, and `Reliability`'s four counts.

    Classes are pooled.

    Raises:
        SettingsError: it can't be read, or makes no sense.
    """
    try:
        content = json.loads(read_bounded(path, limit=2**20, error=SettingsError))
        tables = {question: [Reliability(*counts) for counts in content[question].values()] for question in content}
        if not tables or not set(tables) <= {"image", "text"} or not all(tables.values()):
            raise ValueError("expected image and text")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        expected = '{"image": {"dog": [right yes, true, right no, false]}, "text": ...}'
        raise SettingsError(f"can't read {path} as a calibration: {error} Expected {expected}.") from error
    return {question: sum(each[1:], start=each[0]) for question, each in tables.items()}


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write `results.json`; equal results are equal bytes.

    Raises:
        OutputError: it can't be written.
    """
    write_atomically(path, (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())


def read_results(path: Path) -> dict[str, Any]:
    """Read `results.json`.

    Raises:
        SettingsError: it can't be read, or is none.
    """
    try:
        results = json.loads(read_bounded(path, limit=_LARGEST_JSON, error=SettingsError))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"can't read {path} as results: {error}. Make them again.") from error
    if not isinstance(results, dict) or results.get("version") != 1:
        raise SettingsError(f"{path} holds no results of version 1. Make them again.")
    return results
