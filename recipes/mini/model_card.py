"""The model card's tables, in Markdown, from the results that `gates.py` and `evaluate.py` stored."""

import json
from pathlib import Path

STAGES = {
    "judge": "The judge, on pictures whose truth is known",
    "plain": "Plain prompts: all objects present, by how many there are",
    "layout": "With layout: each object in its right box, by how many there are",
    "identity": "Learned subjects, with layout: identity among 15 look-alikes, by how many there are",
    "follow": "The rest of the prompt, followed with residual and without",
    "guidance": "Guidance",
    "sweep": "Strength of the layout",
    "ablations": "The layout's parts: in its right box, and pictures that show all",
    "ways": "Ways of learning, on half of the example subjects",
    "preservation": "λ: identity of four subjects alone, by the recipe `mini`",
}


START = "<!-- The tables from here on are written by `python recipes/mini/evaluate.py card`. -->"


def write_card(results: Path, page: Path) -> None:
    """Put the tables into the model card, in place of all that stands after `START`."""
    written, _, _ = page.read_text(encoding="utf-8").partition(START)
    page.write_text(written + START + "\n\n" + card(results), encoding="utf-8")


def card(results: Path) -> str:
    """A table for every stage that has been run: the judge's own first, then the gates, then all others."""
    measured = {title: results / f"{stage}.json" for stage, title in STAGES.items()}
    parts = {title: table(json.loads(path.read_text())["rates"]) for title, path in measured.items() if path.exists()}
    gates = {"The three gates": gates_table(json.loads((results / "gates.json").read_text())["gates"])}
    judge = {title: rows for title, rows in parts.items() if title == STAGES["judge"]}
    parts = judge | gates | parts
    return "\n\n".join(f"### {title}\n\n{rows}" for title, rows in parts.items()) + "\n"


def gates_table(gates: list[dict]) -> str:
    """What each gate reached, and whether it passed."""
    lines = ["| gate | reached | at least | | seen |", "| --- | ---: | ---: | --- | --- |"]
    for gate in gates:
        passed = "passed" if gate["figure"] >= gate["least"] else "**failed**"
        lines.append(f"| {gate['name']} | {gate['figure']:.2f} | {gate['least']:g} | {passed} | {gate['detail']} |")
    return "\n".join(lines)


def table(rates: dict[str, dict]) -> str:
    """Rates as a Markdown table: share, 95 % interval, trials and chance."""
    lines = ["| figure | share | 95 % interval | of | chance |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, value in rates.items():
        chance = "" if value["chance"] is None else f"{100 * value['chance']:.1f} %"
        interval = f"{100 * value['low']:.1f} - {100 * value['high']:.1f}"
        lines.append(f"| {name} | {100 * value['share']:.1f} % | {interval} | {value['trials']} | {chance} |")
    return "\n".join(lines)
