"""Count the house: `python tools/count.py` prints how many lines, files, names and parameters there are.

`tests/test_house.py` holds the limits. Data is left out.
"""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "cones2"

_DRAWN = """
import sys, cones2
from pathlib import Path
pipe = cones2.Cones2Pipeline.from_pretrained("mini", device="cpu")
residual = Path(cones2.__file__).parent / "examples/rex/rex.safetensors"
pipe.load_subject("rex", cones2.Residual.load(residual))
pipe.set_progress_bar_config(disable=True)
layout = {"rex": (0.1, 0.1, 0.5, 0.9), "ball": (0.5, 0.5, 0.9, 0.9)}
pipe("a {rex} and a {ball}", layout, subjects={"ball": "ball"}, num_inference_steps=2, seed=0)
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "cones2"))
"""


@dataclass(frozen=True)
class Function:
    """A function or method, by the names of what is around it."""

    file: str
    name: str
    lines: int
    parameters: int


def files() -> dict[str, int]:
    """Return the number of lines of each counted file of the package."""
    found = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in found.items()}


def functions() -> list[Function]:
    """Return every function of the counted files; `self` and `cls` are no parameters."""
    trees = ((name, ast.parse((PACKAGE / name).read_text(encoding="utf-8"))) for name in files())
    return [function for name, tree in trees for function in _functions_of(tree, name, "")]


def _functions_of(node: ast.AST, file: str, around: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            taken = child.args
            names = [each.arg for each in (*taken.posonlyargs, *taken.args, *taken.kwonlyargs)]
            lines = (child.end_lineno or child.lineno) - child.lineno + 1
            own = [name for name in names if name not in ("self", "cls")]
            yield Function(file, f"{around}{child.name}", lines, len(own))
        name = getattr(child, "name", None)
        yield from _functions_of(child, file, f"{around}{name}." if isinstance(name, str) else around)


def percentile(lengths: list[int], share: float) -> int:
    """Return the smallest length that a share of all do not pass."""
    ordered = sorted(lengths)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def public_names() -> list[str]:
    """Return the names of `cones2.__all__`, and the version."""
    names: list[str] = importlib.import_module("cones2").__all__
    return names


def drawn_with() -> list[str]:
    """Return our modules that are imported once a picture with a layout has been drawn."""
    done = subprocess.run([sys.executable, "-c", _DRAWN], capture_output=True, text=True, check=True)
    return done.stdout.split()


def main() -> None:
    """Print the counts, and where they are largest."""
    counted, all_functions = files(), functions()
    lengths = [function.lines for function in all_functions]
    print(f"{sum(counted.values()):,} lines in {len(counted)} files; functions: {len(lengths)}")
    print(f"longest files: {sorted(((lines, name) for name, lines in counted.items()), reverse=True)[:8]}")
    print(f"function lengths: median {percentile(lengths, 0.5)}, 90th percentile {percentile(lengths, 0.9)}")
    for function in sorted(all_functions, key=lambda each: -each.lines)[:8]:
        print(f"  {function.lines} lines: {function.file} {function.name}")
    for function in sorted(all_functions, key=lambda each: -each.parameters)[:8]:
        print(f"  {function.parameters} parameters: {function.file} {function.name}")
    print(f"public names: {len(public_names())}")
    modules = drawn_with()
    print(f"modules after a picture with a layout: {len(modules)}: {' '.join(modules)}")


if __name__ == "__main__":
    main()
