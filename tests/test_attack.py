"""The attacks of `attack/` find nothing, in short; `make fuzz` and `make attack` run them at length."""

import importlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ATTACK = Path(__file__).parents[1] / "attack"
sys.path.insert(0, str(ATTACK))  # scripts, not a package
mutations = importlib.import_module("mutations")

ON_LINUX = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="the shim is for Linux, and is compiled"
)


def attack(script: str, *options: object) -> str:
    command = [sys.executable, str(ATTACK / script), *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_hostile_files_are_refused_or_sound(tmp_path: Path) -> None:
    table = attack("fuzz.py", "--inputs", 1000, "--keep", tmp_path)
    assert table.splitlines()[-1].startswith("| all |")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@ON_LINUX
def test_a_failing_disk_leaves_old_files_or_new_ones() -> None:
    assert "| subjects add | " in attack("faults.py", "--cases", 60, "--only", "subjects")


@pytest.mark.slow
@ON_LINUX
def test_a_killed_learner_resumes_to_the_same_bytes() -> None:
    assert "learned something else or failed: 0" in attack("kills.py", "--kills", 10)


@pytest.mark.slow
def test_a_crowd_loses_nothing() -> None:
    assert "0 wrong" in attack("crowd.py", "--processes", 4, "--rounds", 2)


@pytest.mark.slow
@ON_LINUX
def test_odd_values_end_in_a_line() -> None:
    assert "0 wrong" in attack("arguments.py", "--cases", 20)


def test_the_same_seed_makes_the_same_input() -> None:
    content = json.dumps({"a": [1, 2, {"b": "c"}], "d": 0.5}).encode()
    made = [[mutations.of_json(content, random.Random(seed)) for seed in range(200)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 100


@pytest.mark.parametrize("line", ["eval('1')", "__import__('os').system('true')", "open(FILE, 'w')", "pickle.loads(P)"])
def test_the_canary_hears_what_runs_or_is_written(line: str, tmp_path: Path) -> None:
    """In a process of its own: an audit hook stays until the end."""
    program = f"""if True:
        import os, pickle, sys
        sys.path.insert(0, {str(ATTACK)!r})
        from canary import Canary
        FILE, P = {str(tmp_path / "x")!r}, b"cposix\\nsystem\\n(S'true'\\ntR."
        canary = Canary()
        with canary.watching() as quiet:
            open(os.devnull).close()
        with canary.watching() as seen:
            {line}
        sys.exit(bool(quiet) or not seen)
        """
    subprocess.run([sys.executable, "-c", program], check=True)
