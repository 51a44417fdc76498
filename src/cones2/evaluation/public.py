"""Public lists of subjects and prompts, read from the user's own copy; none of their files ships with cones2.

- DreamBench: the folder `dataset` of `google/dreambooth`;
- CustomConcept101: the folder `customconcept101` of `adobe-research/custom-diffusion`, with `benchmark_dataset` in it;
- Multi-DreamBench: `datasets/dreambench_multiip.json` of `bytedance/UNO`, and DreamBench's photos;
- MS-Bench: `msbench.py` of `MS-Diffusion/MS-Diffusion`, and its folder `msbench`.

A list is data: what looks like Python in it is read, never executed.
"""

import ast
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cones2.errors import SettingsError
from cones2.files import is_name, read_bounded
from cones2.judge import Corners

HALVES: tuple[Corners, Corners] = ((0.0, 0.25, 0.5, 0.75), (0.5, 0.25, 1.0, 0.75))
"""Where the two subjects of a list without boxes stand: MS-Bench's boxes of two of a kind."""

_LARGEST = 2**22
_LIVING = ("cat", "dog")  # DreamBench's class words of its second list of prompts
_DREAMBENCH_PROMPT = re.compile(
    r"^'(a [^'\n]*?\{0\} \{1\}[^'\n]*)'\.format\(unique_token, class_token\),?$", re.MULTILINE
)


@dataclass(frozen=True)
class PublicSubject:
    """A subject of a list: its class word, and its photos, a folder or the only one."""

    class_word: str
    photos: Path


@dataclass(frozen=True)
class PublicPrompt:
    """A prompt of a list: its text with placeholders, its subjects in their order, and boxes where there are any."""

    text: str
    subjects: tuple[str, ...]
    boxes: Mapping[str, Corners] = field(default_factory=dict)


@dataclass(frozen=True)
class PublicList:
    """A list, and the licence under which its owner gives it."""

    name: str
    licence: str
    subjects: Mapping[str, PublicSubject]
    prompts: tuple[PublicPrompt, ...]


def read_dreambench(folder: Path) -> PublicList:
    """Read DreamBench (arXiv:2208.12242): 30 subjects, 25 prompts each; cats and dogs have prompts of their own.

    Args:
        folder: with `prompts_and_classes.txt` and a folder of photos for each subject.

    Raises:
        SettingsError: the file can't be read, or has another form.
    """
    path = folder / "prompts_and_classes.txt"
    subjects = {name: PublicSubject(word, folder / name) for name, word in _dreambench_classes(path).items()}
    _, _, prompts = _text(path).partition("Prompts")
    of_objects, _, of_living = (_DREAMBENCH_PROMPT.findall(part) for part in prompts.partition("Live Subject"))
    if not (of_objects and of_living):
        raise SettingsError(f"{path} has no two lists of prompts: expected DreamBench's file as it is.")
    found = [
        PublicPrompt(text.replace("{0} {1}", f"{{{name}}}"), (name,))
        for name, subject in subjects.items()
        for text in (of_living if subject.class_word in _LIVING else of_objects)
    ]
    return PublicList("DreamBench", "CC BY 4.0; photos of Unsplash", subjects, tuple(found))


def _dreambench_classes(path: Path) -> dict[str, str]:
    classes, _, _ = _text(path).partition("Prompts")
    found = dict(re.findall(r"^([\w-]+),([\w -]+)$", classes, re.MULTILINE))
    found.pop("subject_name", None)
    if not found:
        raise SettingsError(f"{path} names no subjects: expected DreamBench's file as it is.")
    return {_name(name): word for name, word in found.items()}


def read_custom_concept(folder: Path) -> PublicList:
    """Read CustomConcept101 (arXiv:2212.04488): single subjects and pairs, 20 prompts and 12.

    Args:
        folder: with `dataset.json`, `dataset_multiconcept.json`, `prompts` and `benchmark_dataset`.

    Raises:
        SettingsError: a file can't be read, or has another form.
    """
    path = folder / "dataset.json"
    subjects: dict[str, PublicSubject] = {}

    def subject(entry: Mapping[str, Any]) -> str:
        photos = folder / _inside(str(entry["instance_data_dir"]))
        name = _name(photos.name)
        subjects[name] = PublicSubject(str(entry["class_prompt"]), photos)
        return name

    def singles() -> Iterator[PublicPrompt]:
        for entry in _json(path):
            name = subject(entry)
            for line in _lines(folder / _inside(str(entry["prompt_filename"]))):
                yield PublicPrompt(line.replace("{}", f"{{{name}}}"), (name,))

    def pairs() -> Iterator[PublicPrompt]:
        for *entries, about in _json(folder / "dataset_multiconcept.json"):
            names = tuple(subject(entry) for entry in entries)
            for line in _lines(folder / _inside(str(about["prompt_filename_compose"]))):
                yield PublicPrompt(_numbered(line, names), names, dict(zip(names, HALVES, strict=False)))

    found = _as_expected(path, lambda: (*singles(), *pairs()))
    return PublicList("CustomConcept101", "Adobe Research, non-commercial", subjects, found)


def read_multi_dreambench(path: Path, photos: Path) -> PublicList:
    """Read the list of pairs of DreamBench's subjects that UNO is measured by (arXiv:2504.02160).

    A row names one photo of each subject, of which the whole folder is taken, and the subjects by their class words
    alone: the first word is the first photo's, also where both are "a dog".

    Args:
        path: of `dreambench_multiip.json`.
        photos: DreamBench's folder, with `prompts_and_classes.txt`.

    Raises:
        SettingsError: a file can't be read, or has another form.
    """
    classes = _dreambench_classes(photos / "prompts_and_classes.txt")

    def rows() -> Iterator[PublicPrompt]:
        for row in _json(path):
            names = tuple(_name(Path(str(photo)).parent.name) for photo in row["image_paths"])
            words = {name: classes[name] for name in names}
            text = _with_placeholders(str(row["prompt"]), words)
            yield PublicPrompt(text, names, dict(zip(names, HALVES, strict=False)))

    found = _as_expected(path, lambda: tuple(rows()))
    subjects = {name: PublicSubject(word, photos / name) for name, word in classes.items()}
    return PublicList("Multi-DreamBench", "Apache-2.0; photos of Unsplash", subjects, found)


def _with_placeholders(prompt: str, words: Mapping[str, str]) -> str:
    """Put placeholders in place of class words, each looked for behind the one before."""
    done, rest = "", prompt
    for name, word in words.items():
        before, found, rest = rest.partition(word)
        if not found:
            raise ValueError(f"{prompt!r} has no {word!r}")
        done += f"{before}{{{name}}}"
    return done + rest


def read_ms_bench(path: Path, photos: Path) -> PublicList:
    """Read MS-Bench (arXiv:2406.07209): sets of two and three subjects by their types, with boxes.

    Every subject has one photo, fewer than learning asks for. Some types have two subjects in one box.

    Args:
        path: of `msbench.py`.
        photos: with a folder of photos for each type.

    Raises:
        SettingsError: a file can't be read, or has another form.
    """
    tables = _assignments(path)
    subjects: dict[str, PublicSubject] = {}
    types: dict[str, list[str]] = {}

    def sets() -> Iterator[PublicPrompt]:
        words = tables["data_class_dict"]
        for folder in sorted(each for each in photos.iterdir() if each.is_dir()):
            for photo in sorted(folder.iterdir()):
                if photo.stem in words:
                    types.setdefault(folder.name, []).append(_name(photo.stem))
                    subjects[_name(photo.stem)] = PublicSubject(words[photo.stem], photo)
        for kind, texts in tables["subject_combination_prompts"].items():
            for names in _sets(kind.split("_"), types):
                boxes = {
                    name: _corners(box)
                    for name, box in zip(names, tables["subject_combination_boxes"][kind], strict=True)
                }
                yield from (PublicPrompt(_numbered(text, names), names, boxes) for text in texts)

    found = _as_expected(path, lambda: tuple(sets()))
    return PublicList("MS-Bench", "MIT; where the photos come from is not said", subjects, found)


def _sets(kinds: Sequence[str], types: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, ...]]:
    """Yield sets of one subject of each type; of several of one type, each set once."""
    groups = [(kind, len(list(some))) for kind, some in itertools.groupby(kinds)]
    for parts in itertools.product(*(itertools.combinations(types.get(kind, ()), count) for kind, count in groups)):
        yield tuple(itertools.chain(*parts))


def _assignments(path: Path) -> dict[str, Any]:
    """Return what a file of Python assigns to names, where that is literal or named before; nothing is executed."""
    found: dict[str, Any] = {}
    try:
        for statement in ast.parse(_text(path)).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                found[statement.targets[0].id] = _literal(statement.value, found)
    except (SyntaxError, ValueError, KeyError, RecursionError, MemoryError) as error:
        raise SettingsError(
            f"can't read {path} as lists of Python: {error}. Expected MS-Bench's file as it is."
        ) from error
    return found


def _literal(node: ast.expr, known: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.Dict) and all(key is not None for key in node.keys):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, (_literal(value, known) for value in node.values), strict=True))
    return ast.literal_eval(node)


def _as_expected(path: Path, read: Callable[[], tuple[PublicPrompt, ...]]) -> tuple[PublicPrompt, ...]:
    try:
        found = read()
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OSError) as error:
        raise SettingsError(
            f"{path} has another form than expected ({error}): take the list as it is given."
        ) from error
    if not found:
        raise SettingsError(f"{path} comes to no prompts: are the photos beside it, as its owner gives them?")
    return found


def _numbered(line: str, names: Sequence[str]) -> str:
    for number, name in enumerate(names):
        line = line.replace(f"{{{number}}}", f"{{{name}}}")
    return line


def _name(text: str) -> str:
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    if not is_name(name):
        raise ValueError(f"{text[:100]!r} can't name a subject")
    return name


def _inside(text: str) -> Path:
    """Return a path of a list, which may not lead out of its folder."""
    path = Path(text)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{text[:100]!r} leads out of the folder")
    return path


def _corners(box: Sequence[float]) -> Corners:
    xmin, ymin, xmax, ymax = (float(side) for side in box)
    return xmin, ymin, xmax, ymax


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"can't read {path} as JSON: {error}. Take the list as it is given.") from error


def _text(path: Path) -> str:
    return read_bounded(path, limit=_LARGEST, error=SettingsError).decode("utf-8", errors="replace")
