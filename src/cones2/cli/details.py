"""What `cones2 compose` is told of single subjects: when a residual acts, and what a subject should not show."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cones2.cli.options import number, unique
from cones2.errors import SettingsError
from cones2.subjects import Subject


def with_details(
    subjects: Mapping[str, Subject], *, during: Iterable[str], negatives: Iterable[str]
) -> dict[str, Subject]:
    """Read `--during` and `--subject-negative`, and give all subjects with them.

    Raises:
        SettingsError: a text can't be read, a name is there twice or not at all, or a part of the steps makes no sense.
        PromptError: something in a negative text is weighed.
    """
    parts = unique("--during", during, example="rex=0,0.6")
    texts = unique("--subject-negative", negatives, example="rex=grey")
    learned = [name for name, subject in subjects.items() if subject.residual is not None]
    for name in parts.keys() - set(learned):
        raise SettingsError(f"--during names {name!r}, which is no --subject: expected {', '.join(learned) or 'none'}.")
    for name in texts.keys() - subjects.keys():
        known = ", ".join(subjects) or "none"
        raise SettingsError(f"--subject-negative names {name!r}, which is no --subject or --plain; those are: {known}.")
    detailed = dict(subjects)
    for name, text in parts.items():
        detailed[name] = replace(detailed[name], during=_part(name, text))
    for name, text in texts.items():
        detailed[name] = replace(detailed[name], negative=text)
    return detailed


def _part(name: str, text: str) -> tuple[float, float]:
    sides = [number(f"--during {name}", side) for side in text.split(",")]
    if len(sides) != 2:
        raise SettingsError(f"--during {name}={text} can't be read: expected START,END, such as 0,0.6.")
    return sides[0], sides[1]
