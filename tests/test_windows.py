"""What Windows lacks is not needed: every module is imported, and the main job done, without the modules of Unix."""

import subprocess
import sys
from pathlib import Path

import pytest

HIDDEN = """
import builtins, sys
lacking, real = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}, builtins.__import__
def guarded(name, globals=None, *rest, **more):  # other libraries have parts of their own for Windows
    if name.split(".")[0] in lacking and str((globals or {}).get("__name__", "")).startswith("cones2"):
        raise ModuleNotFoundError(f"{globals['__name__']} imports {name}", name=name)
    return real(name, globals, *rest, **more)
builtins.__import__ = guarded
"""

EVERYTHING = """
import importlib, pkgutil
import cones2
names = [found.name for found in pkgutil.walk_packages(cones2.__path__, "cones2.") if found.name != "cones2.__main__"]
assert len(names) > 20, names
for name in names:
    importlib.import_module(name)
"""

MAIN_JOB = """
import warnings
from pathlib import Path

import pytest
import cones2
pipe = cones2.Cones2Pipeline.from_pretrained("mini", device="cpu")
recipe = cones2.Recipe(steps=1, tune="residual", batch_size=1)
folder = Path(sys.argv[1])
residual = pipe.learn(cones2.EXAMPLES["rex"].photos, "dog", recipe, progress=False, checkpoint=folder / "learning")
library = cones2.Library(folder / "library")
library.add("rex", residual)
pipe.load_subject("rex", library.load("rex"))
output = pipe("a {rex} on the beach", {"rex": (0, 0.2, 0.6, 1)}, seed=0, num_inference_steps=1)
output.save(folder / "beach.png")
again = pipe.redraw(folder / "beach.png")
assert again.images[0].tobytes() == output.images[0].tobytes()
"""

COMMANDS = """
from cones2.cli import main
sys.argv = ["cones2", "compose", "--from", sys.argv[1] + "/beach.png", "--out", sys.argv[1] + "/pictures"]
main()
"""


@pytest.mark.slow
def test_the_main_job_without_the_modules_of_unix(tmp_path: Path) -> None:
    script = HIDDEN + EVERYTHING + MAIN_JOB + COMMANDS
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pictures" / "0000-seed0.png").read_bytes() == (tmp_path / "beach.png").read_bytes()
