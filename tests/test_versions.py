"""Two lines of diffusers and of transformers are supported; both ends are tested, and agree on files."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from cones2.examples import EXAMPLES
from cones2.fingerprint import fingerprint
from cones2.models import open_pipeline

ROOT = Path(__file__).parents[1]
LIBRARIES = ("diffusers", "huggingface_hub", "transformers")


def locked(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / file).read_text(), re.MULTILINE))


@pytest.mark.parametrize("library", LIBRARIES)
def test_both_ends_that_are_tested_are_supported(library: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {each.name.replace("-", "_"): each.specifier for each in map(Requirement, project["dependencies"])}
    newest, oldest = locked("requirements.lock")[library], locked("requirements-oldest.lock")[library]
    assert newest in required[library]
    assert oldest in required[library]
    (least,) = (each.version for each in required[library] if each.operator == ">=")
    assert oldest.startswith(f"{least}.")


def test_a_residual_that_was_learned_on_another_line_fits() -> None:
    """The examples were learned once; the encoder is the same whatever reads its files now."""
    pipeline: Any = open_pipeline("mini", device="cpu")
    found = fingerprint(pipeline.text_encoder, "text_encoder", "mini")
    (part,) = EXAMPLES["rex"].residual.parts
    assert found.weights == part.encoder.weights
    assert found.fits(part.encoder)
