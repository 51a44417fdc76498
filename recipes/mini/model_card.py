"""The model card's tables, in Markdown, from the results that `evaluate.py` stored."""

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
}


def print_card(results: Path) -> None:
    """Print a table for every stage that has been run."""
    for stage, title in STAGES.items():
        path = results / f"{stage}.json"
        if path.exists():
            print(f"### {title}\n\n{table(json.loads(path.read_text())['rates'])}\n")


def table(rates: dict[str, dict]) -> str:
    """Rates as a Markdown table: share, 95 % interval, trials and chance."""
    lines = ["| figure | share | 95 % interval | of | chance |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, value in rates.items():
        chance = "" if value["chance"] is None else f"{100 * value['chance']:.1f} %"
        interval = f"{100 * value['low']:.1f} - {100 * value['high']:.1f}"
        lines.append(f"| {name} | {100 * value['share']:.1f} % | {interval} | {value['trials']} | {chance} |")
    return "\n".join(lines)
