"""The model card's tables, in Markdown, from the results that `gates.py` and `evaluate.py` stored."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STAGES = {
    "judge": "The judge, on pictures whose truth is known",
    "gates": "The three gates",
    "plain": "Plain prompts: all objects present, by how many there are",
    "layout": "With layout: each object in its right box, by how many there are",
    "places": "Placed by words, and automatically: all objects present, by how many there are",
    "identity": "Learned subjects, with layout: identity among 15 look-alikes, by how many there are",
    "nested": "An animal and what it wears, in nested boxes",
    "follow": "The rest of the prompt, followed with residual and without",
    "sharpness": "Sharpness: gradients of pictures over those of renders of the same scenes",
    "guidance": "Guidance",
    "sweep": "Strength of the layout",
    "ablations": "The layout's parts: in its right box, and pictures that show all",
    "ways": "Ways of learning, on half of the example subjects",
    "preservation": "λ: identity of four subjects alone, by the recipe `mini`",
}

START = "<!-- The tables from here on are written by `python recipes/mini/evaluate.py card`. -->"


def write_card(results: Path, page: Path, weights: str) -> None:
    """Put the tables into the model card, in place of all that stands after `START`."""
    written, _, _ = page.read_text(encoding="utf-8").partition(START)
    page.write_text(f"{written}{START}\n\n{card(results, weights)}", encoding="utf-8")


def card(results: Path, weights: str) -> str:
    """A table for every stage that was measured on `weights` (`shipped.measured_hash`), and which ones were not."""
    parts, missing = [], []
    for stage, title in STAGES.items():
        path = results / f"{stage}.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"model": None}
        if found["model"] == weights:
            rows = gates_table(found["gates"]) if stage == "gates" else table(found["rates"])
            parts.append(f"### {title}\n\n{rows}")
        else:
            missing.append(f"`{stage}`")
    if missing:
        parts.append(f"Not yet measured on these weights: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def gates_table(gates: Sequence[Mapping[str, Any]]) -> str:
    """What each gate reached, and whether it passed."""
    lines = ["| gate | reached | at least | | seen |", "| --- | ---: | ---: | --- | --- |"]
    for gate in gates:
        passed = "passed" if gate["figure"] >= gate["least"] else "**failed**"
        lines.append(f"| {gate['name']} | {gate['figure']:.2f} | {gate['least']:g} | {passed} | {gate['detail']} |")
    return "\n".join(lines)


def table(rates: Mapping[str, Mapping[str, Any]]) -> str:
    """Rates as a Markdown table: share, 95 % interval, trials and chance."""
    lines = ["| figure | share | 95 % interval | of | chance |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, value in rates.items():
        chance = "" if value["chance"] is None else f"{100 * value['chance']:.1f} %"
        interval = f"{100 * value['low']:.1f} - {100 * value['high']:.1f}"
        lines.append(f"| {name} | {100 * value['share']:.1f} % | {interval} | {value['trials']} | {chance} |")
    return "\n".join(lines)
