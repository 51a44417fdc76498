"""`cones2 doctor`: what this machine has, for yourself and for reports of what went wrong."""

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

from cones2.cli.console import print_json, print_table, waiting
from cones2.cli.options import Device, Dtype, Json, Library, open_model
from cones2.shared import processors

_PACKAGES = ("diffusers", "transformers", "accelerate", "huggingface-hub", "safetensors", "pillow", "numpy")


def doctor(device: Device = None, dtype: Dtype = None, library: Library = None, as_json: Json = False) -> None:
    """Show what cones2 runs on: versions, device and dtype, threads, the Hub's cache, and your library.

    Example: cones2 doctor
    """
    with waiting("starting"):
        import torch
        from huggingface_hub import constants

        from cones2.library import Library

        shelf = Library.open(library)
    pipe = open_model("mini", device=device, dtype=dtype)
    with waiting("looking around"):
        rows = {
            "cones2": f"{importlib.metadata.version('cones2')}, {Path(__file__).parent.parent}",
            "Python": f"{platform.python_version()}, {sys.executable}",
            "system": platform.platform(),
            "torch": torch.__version__ + (f", CUDA {torch.version.cuda}" if torch.version.cuda else ""),
            "device": f"{pipe.device}{_name_of(pipe.device)}",
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "threads": _threads(torch.get_num_threads()),
            "Hub's cache": _room(Path(constants.HF_HUB_CACHE)),
            "library": f"{_room(shelf.folder)}, subjects in it: {len(shelf.names())}",
            **{package: importlib.metadata.version(package) for package in _PACKAGES},
        }
    if as_json:
        print_json(rows)
    else:
        print_table("cones2 doctor", rows)


def _threads(count: int) -> str:
    own = f"{count} of {processors()} processors"
    return f"{own}; before several commands at once, set OMP_NUM_THREADS=1" if count > 1 else own


def _name_of(device: object) -> str:
    import torch

    target = torch.device(str(device))
    if target.type != "cuda":
        return ""
    facts = torch.cuda.get_device_properties(target)
    return f", {facts.name}, {facts.total_memory / 2**30:.0f} GiB"


def _room(folder: Path) -> str:
    import shutil

    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    state = "" if folder.exists() else ", not there yet"
    state = state if os.access(nearest, os.W_OK) else ", can't be written"
    return f"{folder}{state}, {shutil.disk_usage(nearest).free / 2**30:.0f} GiB free"
