"""Reading what a batch has made: every committed picture once, how far it is, and whether all of it is sound.

A folder of results may be a stranger's: names, sizes and JSON are checked before anything is made of them.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydantic

from cones2.batch.lease import Commit, read_commit
from cones2.batch.resume import (
    Counts,
    Failure,
    Note,
    cases_elsewhere,
    read_engines,
    read_failures,
    stems,
    still_failed,
    time_left,
)
from cones2.batch.store import LARGEST, Store, open_store, without_secrets
from cones2.errors import OutputError, ResidualError, SettingsError
from cones2.residual import Residual, Sha256

_LARGEST_ABOUT = 2**20
_HEAD = 512  # bytes of a tar's head

_Text = Annotated[str, pydantic.Field(max_length=10_000)]


class _Described(pydantic.BaseModel, frozen=True):
    """What stands in `plan.json`."""

    format: int = pydantic.Field(ge=1, le=1)
    model: _Text
    config: _Text | None = None
    pictures: int = pydantic.Field(ge=0)
    subjects: dict[Sha256, _Text]
    leases: list[tuple[Sha256, int, list[Sha256]]]  # the last are subjects that must be learned before


@dataclass(frozen=True)
class Result:
    """A picture of a batch.

    Attributes:
        id: the hash of all that makes it.
        content: the PNG, with its record.
        labels: what it is called in the job, by field: `prompt`, `seed`, `subject.rex`...
    """

    id: str
    content: bytes
    labels: dict[str, Any]


@dataclass(frozen=True)
class Status:
    """How far a batch is.

    Attributes:
        pictures, subjects: how many are done, failed and left.
        failures: what was set aside.
        engines: what those at work have told lately.
        seconds_left: what they take together, where that is known.
    """

    pictures: Counts
    subjects: Counts
    failures: tuple[Failure, ...]
    engines: tuple[Note, ...]
    seconds_left: float | None


@dataclass
class Findings:
    """What `verify` found.

    Attributes:
        sound: how many pictures are as their commits say.
        problems: what is not, in sentences.
        doubled: cases that jobs which ran at once have both committed; `read` gives each once.
        orphans: files that no commit names, with their sizes where that is known.
    """

    sound: int = 0
    problems: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)


def open_results(out: Path | str) -> Store:
    """Return the storage of a batch's results; `SettingsError` where there are none."""
    store = open_store(out)
    if store.read("plan.json", 0, 1) is None:
        raise SettingsError(f"there are no results of a batch in {without_secrets(out)}: expected its --out.")
    return store


def read(out: Path | str | Store) -> Iterator[Result]:
    """Yield every committed picture once, in the order of the plan, then what other jobs have left there.

    Raises:
        SettingsError: there are no results.
        OutputError: something is damaged, or can't be read.
    """
    store = open_results(out) if isinstance(out, str | Path) else out
    seen: set[str] = set()
    for lease in _leases(store):
        commit = read_commit(store, lease)
        for case in () if commit is None else commit.cases:
            if case not in seen:
                seen.add(case)
                yield _picture(store, commit, case)


def _leases(store: Store) -> Iterator[str]:
    """Yield the leases that are committed, those of the plan first."""
    commits = stems(store, "commit")
    for lease, _, _ in _describe(store).leases:
        if lease in commits:
            commits.discard(lease)
            yield lease
    yield from sorted(commits)


def _describe(store: Store) -> _Described:
    try:
        return _Described.model_validate_json(store.read("plan.json") or b"")
    except pydantic.ValidationError as error:
        raise OutputError("plan.json is damaged: run the batch again.") from error


def _picture(store: Store, commit: Commit | None, case: str) -> Result:
    assert commit is not None  # it has this case
    sha256, start, size = commit.cases[case]
    if size > LARGEST:
        raise OutputError(f"picture {case[:12]} has {size:,} bytes: expected at most {LARGEST:,}.")
    about = start + size + -size % _HEAD + _HEAD
    content = store.read(str(commit.data), start, about + _LARGEST_ABOUT)
    if content is None or hashlib.sha256(content[:size]).hexdigest() != sha256:
        state = "missing" if content is None else "damaged"
        raise OutputError(f"picture {case[:12]} is {state} in {commit.data}: verify tells what else is.")
    return Result(case, content[:size], _labels(content[about - start :]))


def _labels(content: bytes) -> dict[str, Any]:
    try:
        labels = json.loads(content.partition(b"\0")[0])["labels"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return labels if isinstance(labels, dict) else {}


def read_model(out: Path | str) -> tuple[str, str | None]:
    """Return the model and config of the last job, as `Cones2Pipeline.from_pretrained` takes them; see `read`."""
    plan = _describe(open_results(out))
    return plan.model, plan.config


def read_status(out: Path | str) -> Status:
    """Return how far a batch is, from any machine that sees its storage.

    Raises:
        SettingsError: there are no results.
        OutputError: the storage can't be read.
    """
    store = open_results(out)
    plan, commits, learned = _describe(store), stems(store, "commit"), stems(store, "subjects", ".safetensors")
    planned = {lease for lease, _, _ in plan.leases}
    elsewhere = cases_elsewhere(store, commits, planned)
    failed = [each for each in still_failed(store, commits, elsewhere) if each.lease in planned]
    untaught = [each for each in read_failures(store) if each.case in plan.subjects.keys() - learned]
    done = sum(count for lease, count, _ in plan.leases if lease in commits) - len(failed)
    missing = {each.case for each in untaught}
    blocked = sum(count for lease, count, needs in plan.leases if lease not in commits and missing & set(needs))
    pictures = Counts(plan.pictures, done, len(failed), blocked)
    subjects = Counts(len(plan.subjects), len(plan.subjects.keys() & learned), len(untaught))
    engines = tuple(read_engines(store))
    return Status(pictures, subjects, (*failed, *untaught), engines, time_left(engines))


def read_subjects(out: Path | str) -> Iterator[tuple[str, Residual | None, dict[str, Any]]]:
    """Yield name, residual and report of each subject to learn; None where it is not there.

    Raises:
        SettingsError: there are no results.
        OutputError: a residual is damaged.
    """
    store = open_results(out)
    for subject, name in _describe(store).subjects.items():
        content, about = store.read(f"subjects/{subject}.safetensors"), store.read(f"subjects/{subject}.json")
        try:
            report = json.loads(about or b"{}")
        except (ValueError, RecursionError):
            report = {}
        try:
            residual = None if content is None else Residual.from_bytes(content, origin=f"subjects/{subject}")
        except ResidualError as error:
            raise OutputError(f"subject {name!r}: {error} Delete it, and run the batch again.") from error
        yield name, residual, report if isinstance(report, dict) else {}


def verify(out: Path | str, *, sweep: bool = False) -> Findings:
    """Read everything that is committed, and compare it with its hashes.

    Args:
        out: the results.
        sweep: also delete what no commit names; nothing may be at work there. Nothing is deleted, and nothing counts as
            left over, where a commit can't be read: what it names is not known.

    Raises:
        SettingsError: there are no results.
        OutputError: the storage can't be read, or written to.
    """
    store, findings = open_results(out), Findings()
    seen: dict[str, str] = {}
    named: set[str] = set()
    unread = 0
    for lease in _leases(store):
        try:
            commit = read_commit(store, lease)
        except OutputError as error:
            findings.problems.append(str(error))
            unread += 1
            continue
        named.add(str(commit and commit.data))
        for case in commit.cases if commit is not None else ():
            if seen.setdefault(case, lease) != lease:
                findings.doubled.append(case)
                continue
            try:
                _picture(store, commit, case)
                findings.sound += 1
            except OutputError as error:
                findings.problems.append(str(error))
    left = (name for each in store.names("data") if (name := f"data/{each}") not in named)
    findings.orphans += () if unread else left
    for name in findings.orphans if sweep else ():
        store.delete(name)
    return findings
