"""The flat public names: all there, sorted, typed where they lead, and free until used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cones2
from cones2 import errors

HEAVY = ("torch", "numpy", "PIL", "pydantic", "diffusers", "transformers", "typer", "rich")


def test_all_is_sorted_and_every_name_is_there() -> None:
    assert cones2.__all__ == sorted(cones2.__all__, key=lambda name: (not name.isupper(), name.lower() == name, name))
    for name in cones2.__all__:
        assert getattr(cones2, name) is not None
    assert dir(cones2) == sorted(cones2.__all__)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(cones2.__file__).read_text())
    seen = {
        (alias.name, str(node.module))
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("cones2.")
        for alias in node.names
    }
    assert seen == {(name, f"cones2.{module}") for name, module in cones2._MODULES.items()}
    assert {name for name, _ in seen} == set(cones2.__all__)


def test_every_error_is_public() -> None:
    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert raised <= set(cones2.__all__)


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'cones2' has no attribute 'compse'"):
        cones2.compse  # noqa: B018


def test_importing_is_cheap() -> None:
    script = f"import sys, cones2; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_finish_gives_the_last_step() -> None:
    assert cones2.finish(iter((1, 2, 3))) == 3
    with pytest.raises(ValueError, match="there are no steps to finish"):
        cones2.finish(())
