"""The judge's world, and how it is written; the judge itself is in the package, where `cones2 learn` asks it."""

import json
from pathlib import Path

from safetensors.torch import save_file

from cones2.judge import JUDGE_WEIGHTS, Judge, JudgeWorld, open_judge
from vocabulary import CLASSES, COLOURS, SCENES

WORLD = JudgeWorld(
    classes=tuple(word.word for word in CLASSES),
    worn=tuple(word.word for word in CLASSES if word.worn),
    colours=tuple(COLOURS),
    scenes=tuple(SCENES),
)


def save_judge(judge: Judge, folder: Path = JUDGE_WEIGHTS) -> None:
    """Write half-precision weights and what is needed to read them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in judge.state_dict().items()}
    save_file(weights, folder / "judge.safetensors")
    config = {"threshold": judge.threshold, **judge.world.model_dump()}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_judge(folder: Path = JUDGE_WEIGHTS) -> Judge:
    """Open a judge of this world."""
    judge = open_judge(folder)
    if judge.world != WORLD:
        raise SystemExit(f"{folder} was trained for another world: run train_judge.py again.")
    return judge
