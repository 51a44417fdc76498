"""What the figures of the model card were measured on, as a hash."""

import hashlib
from pathlib import Path

from cones2.judge import JUDGE_WEIGHTS
from cones2.models import MINI
from examples import FOLDER


def measured_hash(model: str = "mini") -> str:
    """Hash all weights that a figure depends on: the model's, the judge's and the example subjects' residuals."""
    folders = (MINI if model == "mini" else Path(model), JUDGE_WEIGHTS, FOLDER)
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.safetensors")):
            digest.update(f"{path.relative_to(folder)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
