"""What a run found, as a table to read and as JSON to compare with."""

import json
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from cones2.families import native_size
from cones2.pipeline import Cones2Pipeline
from pairs import Timing


def machine(pipe: Cones2Pipeline) -> dict[str, Any]:
    """Return where and on what a run was made."""
    size = min(native_size(pipe.pipeline))
    on_gpu = pipe.device.type == "cuda"
    return {
        "model": f"{pipe.facts.name}, {size}x{size} px",
        "commit": _commit(),
        "device": torch.cuda.get_device_name(pipe.device) if on_gpu else str(pipe.device),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load at the start": round(os.getloadavg()[0], 2),
        "dtype": str(pipe.unet.dtype).removeprefix("torch."),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "cones2")},
    }


def as_json(timings: Sequence[Timing], about: dict[str, Any]) -> str:
    """Return every second of every call, and what follows from them."""
    pairs = [
        {
            "ours": timing.pair.what,
            "other": timing.pair.against,
            "ratio": timing.ratio._asdict(),
            "ratio_is": "other / ours" if timing.pair.speed else "ours / other",
            "aim": timing.pair.aim,
            "meets_aim": timing.meets_aim,
            "ours_seconds": timing.ours,
            "other_seconds": timing.other,
        }
        for timing in timings
    ]
    return json.dumps({"machine": about, "pairs": pairs}, indent=1) + "\n"


def as_markdown(timings: Sequence[Timing], about: dict[str, Any]) -> str:
    """Return a table with a row for each pair, and a list of what the machine is."""
    lines = [f"- {name}: {value}" for name, value in about.items()]
    head = ["| ours | compared with | ratio | interval | aim | ours | other |", f"|{' --- |' * 7}"]
    return "\n".join([*lines, "", *head, *map(_row, timings)]) + "\n"


def _row(timing: Timing) -> str:
    pair, ratio = timing.pair, timing.ratio
    aim = "reported" if pair.aim is None else f"{'at least' if pair.speed else 'at most'} {pair.aim}"
    unit = " times faster" if pair.speed else " times the cost"
    interval = f"{ratio.low:.2f}-{ratio.high:.2f} ({100 * ratio.level:.0f} % of {len(timing.ours)} pairs)"
    ours, other = _median_seconds(timing.ours), _median_seconds(timing.other)
    cells = (pair.what, pair.against, f"{ratio.median:.2f}{unit}", interval, aim, ours, other)
    return f"| {' | '.join(cells)} |"


def _median_seconds(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.3f} s"


def _processor() -> str:
    """Return the processor's name, which Linux alone tells in full."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    command = ["git", "describe", "--always", "--dirty"]
    described = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return described.stdout.strip() or "unknown"
