"""What of a plan is done already, by what stands in the storage: names, and the few files that must be read."""

import contextlib
import json
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pydantic

from cones2.batch.lease import Commit, read_commit
from cones2.batch.plan import Lease, Plan
from cones2.batch.store import LARGEST, Store
from cones2.errors import OutputError
from cones2.files import read_bounded
from cones2.residual import Sha256

_LATE = 30.0  # seconds after which an engine that tells nothing has probably ended
_AT_ONCE, _IN_MEMORY = 16, 256  # files that are read from a storage, and that wait until it is their turn


_Text = Annotated[str, pydantic.Field(max_length=10_000)]


class Failure(pydantic.BaseModel, strict=True, extra="forbid", frozen=True):
    """What stands in `failed/CASE.json`: a case, or a subject, that was set aside, its lease, and why."""

    case: Sha256
    lease: Sha256
    error: _Text
    name: _Text = ""


class _Part(pydantic.BaseModel):
    plan: _Text
    part: pydantic.NonNegativeInt
    parts: pydantic.PositiveInt


class _Labour(pydantic.BaseModel):
    pictures: pydantic.NonNegativeInt
    subjects: pydantic.NonNegativeInt
    at: _Text


class Note(pydantic.BaseModel, allow_inf_nan=False):
    """What stands in `engines/ENGINE.json`: how an engine at work gets on; counts of its part alone.

    Attributes:
        time: by the clock of its machine, `host`.
        rate, seconds_left: pictures a second, and what the rest takes at this pace, where that is known.
        shard: which part of which plan it does.
        workers: what those at work are at: the first characters of a lease.
        by_worker: what each has done so far.
    """

    time: float
    host: _Text
    rate: pydantic.NonNegativeFloat
    seconds_left: pydantic.NonNegativeFloat | None
    shard: _Part
    workers: dict[str, _Text]
    by_worker: dict[str, _Labour]


@dataclass
class Counts:
    """How many pictures, or subjects, are in which state; `blocked` ones wait for a subject that failed."""

    total: int = 0
    done: int = 0
    failed: int = 0
    blocked: int = 0

    @property
    def left(self) -> int:
        """How many are still to be done."""
        return self.total - self.done - self.failed - self.blocked

    def as_json(self) -> dict[str, int]:
        """Return all of them by name."""
        return {**vars(self), "left": self.left}


@dataclass(frozen=True)
class Standing:
    """Where a plan stands.

    Attributes:
        leases: those to do, in order.
        learned: the ids of subjects that are there.
        elsewhere: cases that leases of other jobs have done, or of this one when they were tried again.
        pictures, subjects: how many are done.
    """

    leases: list[Lease]
    learned: set[str]
    elsewhere: set[str]
    pictures: Counts = field(default_factory=Counts)
    subjects: Counts = field(default_factory=Counts)


def stems(store: Store, folder: str, suffix: str = ".json") -> set[str]:
    """Return the names in a folder of a storage that end in a suffix, without it."""
    return {name.removesuffix(suffix) for name in store.names(folder) if name.endswith(suffix)}


def read_failures(store: Store) -> list[Failure]:
    """Return what was set aside, also what has been done since; a damaged file is none."""
    found, names = [], stems(store, "failed")
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for content in pool.map(lambda name: store.read(f"failed/{name}.json"), names):
            with contextlib.suppress(pydantic.ValidationError):
                found.append(Failure.model_validate_json(content or b""))
    return sorted(found, key=lambda failure: failure.case)


def read_engines(store: Store) -> Iterator[Note]:
    """Yield what the engines that are at work have told lately; a damaged note is none."""
    for name in store.names("engines"):
        with contextlib.suppress(OutputError, pydantic.ValidationError):  # or deleted while it was read
            told = Note.model_validate_json(store.read(f"engines/{name}") or b"")
            if abs(time.time() - told.time) < _LATE:
                yield told


def time_left(engines: Collection[Note]) -> float | None:
    """Return the seconds that all engines at work take together; None where one doesn't know, or a part is at rest.

    Those of one part share what is left of it; the slowest part counts.
    """
    speeds: dict[int, float] = {}
    for each in engines:
        if each.seconds_left is None or each.shard.plan != next(iter(engines)).shard.plan:
            return None
        speeds[each.shard.part] = speeds.get(each.shard.part, 0.0) + 1 / max(each.seconds_left, 1e-9)
    parts = next(iter(engines)).shard.parts if engines else 0
    is_whole = parts and sum(part < parts for part in speeds) == parts
    return 1 / min(speeds.values()) if is_whole else None


def cases_elsewhere(store: Store, commits: set[str], planned: set[str]) -> set[str]:
    """Return the cases of all commits that are none of the planned leases'."""
    found: set[str] = set()
    for _, commit in _read_commits(store, commits - planned):
        found |= commit.cases.keys()
    return found


def _read_commits(store: Store, leases: Collection[str]) -> Iterator[tuple[str, Commit]]:
    """Yield the commits of leases; many are read at once, since a storage takes some time for each."""
    names = sorted(leases)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(names), _IN_MEMORY):
            some = names[start : start + _IN_MEMORY]
            for lease, commit in zip(some, pool.map(lambda name: read_commit(store, name), some), strict=True):
                if commit is not None:
                    yield lease, commit


def still_failed(store: Store, commits: set[str], elsewhere: set[str]) -> list[Failure]:
    """Return what was set aside and has not been done since, of leases that are committed without it."""
    failures = [each for each in read_failures(store) if each.lease in commits and each.case not in elsewhere]
    committed = {
        lease: commit.cases.keys() for lease, commit in _read_commits(store, {each.lease for each in failures})
    }
    return [each for each in failures if each.lease in committed and each.case not in committed[each.lease]]


def find_standing(plan: Plan, store: Store, *, shard: tuple[int, int] = (0, 1)) -> Standing:
    """Return what is left of a plan, or of one shard of it; what had failed is left to be done again."""
    commits, learned = stems(store, "commit"), stems(store, "subjects", ".safetensors")
    planned = {lease.id for lease in plan.leases}
    elsewhere = cases_elsewhere(store, commits, planned)
    failed: dict[str, set[str]] = {}
    for failure in still_failed(store, commits, elsewhere):
        failed.setdefault(failure.lease, set()).add(failure.case)
    standing = Standing([], learned, elsewhere)
    for number, lease in enumerate(plan.leases):
        if number % shard[1] != shard[0]:
            continue
        if not lease.numbers:
            standing.subjects.total += 1
            standing.subjects.done += lease.id in learned
            standing.leases.extend([] if lease.id in learned else [lease])
            continue
        standing.pictures.total += len(lease.numbers)
        if lease.id in commits:
            again = plan.retries(lease, failed.get(lease.id, ()))
            standing.pictures.done += len(lease.numbers) - len(again)
            standing.leases.extend(again)
            continue
        done = sum(case.id in elsewhere for case in plan.cases(lease)) if elsewhere else 0
        standing.pictures.done += done
        standing.leases.extend([lease] if done < len(lease.numbers) else [])
    return standing


def carry_files(plan: Plan, store: Store, learned: Collection[str]) -> None:
    """Put photos, masks and captions of what is to be learned into the storage, by their hashes, for other machines."""
    there = set(store.names("photos"))
    files = {
        digest: Path(path)
        for lesson in plan.lessons.values()
        if lesson.id not in learned
        for path, digest in lesson.photographed["files"]
        if digest not in there
    }

    def carry(digest: str) -> None:
        store.create(f"photos/{digest}", read_bounded(files[digest], limit=LARGEST, error=OutputError))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(carry, files):
            pass


def write_plan(plan: Plan, store: Store) -> None:
    """Write what whoever looks at the results needs to know, and the residuals that were learned before."""
    for name, residual in plan.residuals.items():
        store.create(f"subjects/{name}.safetensors", residual.to_bytes())
    store.write("plan.json", json.dumps(plan.describe()).encode())
