"""The commands that `recipes/mini/README.md` shows, in their order, in a folder of their own and much shortened.

Icons are made here, as npm's can't be fetched; what comes out is as bad as its training is short.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "mini"
sys.path.insert(0, str(RECIPE))

from cones2.fingerprint import fingerprint  # noqa: E402
from cones2.models import open_pipeline  # noqa: E402
from cones2.residual import Residual  # noqa: E402
from model_card import STAGES, START  # noqa: E402
from sprites import ICON_SETS  # noqa: E402
from vocabulary import CLASSES  # noqa: E402

SHORT = {
    "prepare.py": "--backgrounds 2",
    "autoencoder.py": "--minutes 0.02",
    "train.py": "--minutes 0.03 --batch 4 --draws 2 --pool 12 --no-compile",
    "train_judge.py": "--minutes 0.02 --out JUDGE",
    "gates.py": "--pictures 2",
    "evaluate.py": "--pictures 1",
}
COLOURS = ("#b5651d", "#e8c39e", "#222222", "#f4f1e8")


def icon(number: int) -> dict[str, object]:
    """A face in four colours, another one for each number."""
    head = f'<ellipse cx="16" cy="16" rx="{10 + number % 5}" ry="{11 + number % 4}" fill="{COLOURS[number % 4]}"/>'
    parts = "".join(
        f'<circle cx="{8 + 5 * place}" cy="{12 + 3 * place}" r="2.5" fill="{COLOURS[(number + place) % 4]}"/>'
        for place in (1, 2, 3)
    )
    return {"body": head + parts, "width": 32, "height": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with what the scripts read: themselves, the package's model and examples, the model card, and icons."""
    root = tmp_path_factory.mktemp("place")
    for part, left_out in (("src/cones2/mini", ""), ("src/cones2/examples", "*.safetensors")):
        shutil.copytree(ROOT / part, root / part, ignore=shutil.ignore_patterns("__pycache__", left_out))
    shutil.copytree(RECIPE, root / "recipes/mini", ignore=shutil.ignore_patterns("work", "results", "__pycache__"))
    (root / "docs").mkdir()
    shutil.copy(ROOT / "docs/mini.md", root / "docs/mini.md")
    for number, name in enumerate(ICON_SETS):
        folder = root / "recipes/mini/work/icons/node_modules/@iconify-json" / name
        folder.mkdir(parents=True)
        icons = {each: icon(number + place) for place, word in enumerate(CLASSES) for each in word.icons}
        (folder / "icons.json").write_text(json.dumps({"icons": icons}))
    return root


def shown_commands() -> list[list[str]]:
    """The commands of the guide's first block, each shortened."""
    block = re.search(r"```\n(.*?)```", (RECIPE / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block
    lines = [line.split("#")[0] for line in block[1].splitlines()]
    commands = [command.split()[1:] for line in lines for command in line.split("&&")]
    return [[*command, *SHORT.get(Path(command[0]).name, "").split()] for command in commands if command]


def run(place: Path, command: list[str]) -> str:
    script, *options = command
    options = [option.replace("JUDGE", str(place / "judge")) for option in options]
    whole = [sys.executable, str(ROOT / "tests/shortened.py"), str(place / script), *options]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        whole, cwd=place, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    return str(done.stdout)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_recipe_runs(place: Path) -> None:
    before = (place / "docs/mini.md").read_text(encoding="utf-8")
    for command in shown_commands():
        run(place, command)
    assert (place / "sheet.png").stat().st_size > 1000
    learned = [Residual.load(path) for path in (place / "src/cones2/examples").rglob("*.safetensors")]
    assert {residual.recipe["steps"] for residual in learned} == {2}
    assert len(learned) == 16
    trained, shipped = (
        fingerprint(open_pipeline(model, device="cpu").text_encoder, "text_encoder", "mini")
        for model in (place / "src/cones2/mini", "mini")
    )
    assert not trained.fits(shipped)
    stages = {path.stem for path in (place / "recipes/mini/results").glob("*.json")}
    assert stages == set(STAGES)
    head, _, tables = (place / "docs/mini.md").read_text(encoding="utf-8").partition(START)
    assert head == before.partition(START)[0]
    assert tables != before.partition(START)[2]
    run(place, ["recipes/mini/export.py", "--back"])
