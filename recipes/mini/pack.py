"""Pack what a GPU machine without a network lacks, for `gpu.sh`: `python recipes/mini/pack.py`, after `prepare.py`.

Writes `.whl/site.tar.xz`, the Python packages beside PyTorch, NumPy and Pillow, and `.whl/icons.tar.xz`.
"""

import argparse
import importlib.metadata
import tarfile
from pathlib import Path

from packaging.requirements import Requirement

ROOTS = ("diffusers", "transformers", "pydantic", "resvg_py", "platformdirs", "jaxtyping", "filelock", "typer")
ON_THE_MACHINE = {"torch", "numpy", "pillow"}
WORK = Path(__file__).parent / "work"
OUT = Path(__file__).parents[2] / ".whl"


def main() -> None:
    """Write both archives."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    OUT.mkdir(exist_ok=True)
    with tarfile.open(OUT / "site.tar.xz", "w:xz") as archive:
        for name in sorted(needed(ROOTS)):
            for file in importlib.metadata.files(name) or ():
                path = Path(str(file.locate()))
                if ".." not in file.parts and path.is_file() and path.suffix != ".pyc":
                    archive.add(path, str(file))
    with tarfile.open(OUT / "icons.tar.xz", "w:xz") as archive:
        archive.add(WORK / "icons", ".")
    for path in sorted(OUT.glob("*.tar.xz")):
        print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")


def needed(roots: tuple[str, ...]) -> set[str]:
    """Distributions that these need, themselves included, without extras and without what the machine has."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found | ON_THE_MACHINE or name.startswith("nvidia"):
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


if __name__ == "__main__":
    main()
