"""Rows against rows: claims, predictions, and whether the second judge agrees. Only complete cells are compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cones2.evaluation.protocol import Claim, Prediction
from cones2.evaluation.questions import disagreements
from cones2.evaluation.statistics import holm, sign_flip_test, t_interval

Rows = Mapping[str, Any]
"""By name, what `results.json` keeps of each row."""


def _difference(one: Rows, other: Rows, cell: str, measure: str) -> dict[str, Any] | None:
    """Compare two rows in a cell, paired by combination; None unless both are complete there."""
    cells = [row["cells"].get(cell) for row in (one, other)]
    if any(each is None or not each["complete"] or measure not in each["measures"] for each in cells):
        return None
    values = [each["measures"][measure]["values"] for each in cells]
    names = [name for name in values[0] if name in values[1]]
    differences = np.array([values[0][name] - values[1][name] for name in names])
    if len(differences) < 2:
        return None
    found = t_interval(differences)
    p_value = round(sign_flip_test(differences), 6)
    return rounded(found.estimate, found.low, found.high) | {"p": p_value, "combinations": len(names)}


def check_claim(claim: Claim, rows: Rows) -> dict[str, Any]:
    """Return whether a claim is shown: every rival beaten in every measure."""
    cell = f"{claim.layout}/{claim.subjects}"
    compared: list[dict[str, Any]] = [
        {"rival": rival, "measure": measure, "difference": _compared(rows, claim.row, rival, cell, measure)}
        for rival in claim.rivals
        for measure in claim.measures
    ]
    differences = [each["difference"] for each in compared]
    if any(each is None for each in differences):
        verdict = "incomplete"
    else:
        verdict = "shown" if all(each["low"] > 0 for each in differences) else "not shown"
    return {**claim.model_dump(), "verdict": verdict, "comparisons": compared}


def _compared(rows: Rows, one: str, other: str, cell: str, measure: str) -> dict[str, Any] | None:
    return _difference(rows[one], rows[other], cell, measure) if one in rows and other in rows else None


def check_predictions(predictions: Sequence[Prediction], rows: Rows) -> list[dict[str, Any]]:
    """Return what was predicted and what came; p values are corrected for the number of predictions."""
    found = {}
    for number, each in enumerate(predictions):
        cell = f"{each.layout}/{each.subjects}"
        found[str(number)] = _compared(rows, each.row, each.rival, cell, each.measure)
    corrected = holm({name: each["p"] for name, each in found.items() if each is not None})
    told = []
    for number, each in enumerate(predictions):
        difference, came = found[str(number)], "incomplete"
        if difference is not None:
            came = "higher" if difference["low"] > 0 else "lower" if difference["high"] < 0 else "no difference"
            difference["p_corrected"] = round(corrected[str(number)], 6)
        told.append({**each.model_dump(), "difference": difference, "came": came})
    return told


def order_disagreements(rows: Rows) -> dict[str, Any]:
    """Return which pairs of complete rows the two judges put in opposite orders, by cell."""
    found = {}
    for cell in sorted({cell for row in rows.values() for cell in row["cells"]}):
        there = {name: row["cells"][cell] for name, row in rows.items() if cell in row["cells"]}
        whole = {name: each["measures"] for name, each in there.items() if each["complete"]}
        orders = [
            {name: each[of]["estimate"] for name, each in whole.items() if of in each}
            for of in ("identity", "identity_second")
        ]
        found[cell] = [list(pair) for pair in disagreements(*orders)]
    return found


def rounded(estimate: float, low: float | None, high: float | None) -> dict[str, float | None]:
    """Return an estimate and its interval as results keep them."""
    ends = {name: None if end is None else round(end, 4) for name, end in (("low", low), ("high", high))}
    return {"estimate": round(estimate, 4), **ends}
