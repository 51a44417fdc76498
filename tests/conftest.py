"""Shared fixtures: a real, tiny, Stable-Diffusion-2-shaped model (v-prediction, window 77, width 32)."""

# mypy: allow-untyped-calls

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of the Hub's client: no test uses the network

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jaxtyping
import pytest
from transformers import CLIPTokenizer

import families  # before cones2: what cones2 imports first, jaxtyping's hook compiles anew in each process
from cones2.models import open_pipeline

hypothesis.settings.register_profile("busy machine", deadline=None)  # speed is for benchmarks, not for tests
hypothesis.settings.load_profile("busy machine")


@pytest.fixture(autouse=True)
def empty_library(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the library of whoever runs it, or another test's."""
    monkeypatch.setenv("CONES2_LIBRARY", str(tmp_path_factory.getbasetemp() / f"library-{secrets.token_hex(8)}"))


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """Call as users do: without beartype, which stops arguments of another type before our own checks see them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """The tiny model's diffusers folder; read only."""
    return Path(__file__).parent / "data" / "golden" / "tiny"


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Any:
    """The tiny model as a pipeline of diffusers', on the CPU in float32; shared, so leave it as it is."""
    return open_pipeline(str(tiny_folder), device="cpu")


@pytest.fixture
def tiny_copy(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's folder to damage."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_folder, copy, copy_function=shutil.copyfile)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy


@pytest.fixture(scope="session")
def small_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, drawing 64 pixels instead of 768; read only."""
    copy = tmp_path_factory.mktemp("models") / "small"
    shutil.copytree(tiny_folder, copy, copy_function=shutil.copyfile)
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 96', '"sample_size": 8'))
    return copy


@pytest.fixture(scope="session")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family, as a diffusers folder; read only."""
    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer")
    root = tmp_path_factory.mktemp("families")
    return {family: families.make_family(family, tokenizer, root) for family in families.FAMILIES}


@pytest.fixture(scope="session")
def opened(folders: dict[str, Path]) -> dict[str, Any]:
    """The same, opened on the CPU in float32; shared, so leave them as they are."""
    return {family: open_pipeline(str(folder), device="cpu") for family, folder in folders.items()}
