"""Pack what a GPU machine without a network lacks, for `gpu.sh`: `python recipes/mini/pack.py`, after `prepare.py`.

Writes `.whl/site.tar.xz`, the Python packages beside PyTorch, NumPy and Pillow, and `.whl/icons.tar.xz`. Packages are
fetched for that machine's Python and of the versions that are installed here.
"""

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

from vocabulary import CLASSES

ROOTS = ("diffusers", "transformers", "pydantic", "resvg_py", "platformdirs", "jaxtyping", "filelock", "typer")
EXTRA = ("lazy_loader", "pyyaml")
ON_THE_MACHINE = {"torch", "numpy", "pillow"}
UNUSED = {"hf-xet", "pygments"}
"""What nothing here imports and is large: it speeds up downloads, or colours a terminal."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
WORK = Path(__file__).parent / "work"
OUT = Path(__file__).parents[2] / ".whl"


def main() -> None:
    """Write both archives."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default="3.12", help="of the GPU machine")
    python = parser.parse_args().python
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(OUT / "site.tar.xz", "w:xz") as archive:
        wheels, site = Path(folder, "wheels"), Path(folder, "site")
        fetch(sorted(needed(ROOTS + EXTRA)), python, wheels)
        for wheel in sorted(wheels.glob("*.whl")):
            zipfile.ZipFile(wheel).extractall(site)
        archive.add(site, ".")
    with tempfile.TemporaryDirectory() as folder, tarfile.open(OUT / "icons.tar.xz", "w:xz") as archive:
        copy_icons(WORK / "icons", Path(folder))
        archive.add(folder, ".")
    for path in sorted(OUT.glob("*.tar.xz")):
        print(f"{path.name}: {path.stat().st_size / 2**20:.1f} MiB")


def fetch(names: list[str], python: str, folder: Path) -> None:
    """Fetch wheels for another Python."""
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    subprocess.run([*command, "--python-version", python, "--dest", str(folder), *wanted], check=True)


def copy_icons(folder: Path, out: Path) -> None:
    """Copy the icon sets without the icons that the world has no use for."""
    used = {name for word in CLASSES for name in word.icons}
    for path in folder.glob("node_modules/@iconify-json/*/icons.json"):
        icons = json.loads(path.read_text())
        icons["icons"] = {name: body for name, body in icons["icons"].items() if name in used}
        copy = out / path.relative_to(folder)
        copy.parent.mkdir(parents=True)
        copy.write_text(json.dumps(icons))


def needed(roots: tuple[str, ...]) -> set[str]:
    """Distributions that these need, themselves included, without extras and without what the machine has."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found | ON_THE_MACHINE | UNUSED or name.startswith("nvidia"):
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return found


if __name__ == "__main__":
    main()
