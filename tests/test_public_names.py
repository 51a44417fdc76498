"""The public names: few, all there, the same for type checkers, and free until used."""

import inspect
import subprocess
import sys

import pytest

import cones2

HEAVY = ("torch", "numpy", "PIL", "pydantic", "diffusers", "transformers", "typer", "rich", "ray")


def test_every_name_is_there_and_says_what_it_is() -> None:
    names = vars(cones2)["__all__"]  # lazy-loader makes it of the stub
    assert len(names) <= 40
    for name in names:
        value = getattr(cones2, name)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            assert value.__doc__
    assert set(names) <= set(dir(cones2))


def test_the_version_is_the_packages() -> None:
    assert cones2.__version__[0].isdigit()


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="compse"):
        cones2.compse  # type: ignore[attr-defined]  # noqa: B018


def test_importing_is_cheap_and_so_is_help() -> None:
    for module in ("cones2", "cones2.batch", "cones2.cli"):
        heavy = set(HEAVY) - ({"typer", "rich"} if module == "cones2.cli" else set())
        script = f"import sys, {module}; print([name for name in {sorted(heavy)} if name in sys.modules])"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]", module
