"""Doing a lease: each picture is kept on this machine until all are there, then all are committed by one creation.

Whoever does it may be killed at any moment, and others may do the same lease: what is created first stays, and
nothing else is ever read.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import tarfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import pydantic

from cones2.batch.job import LARGEST_LEASE
from cones2.batch.plan import Case, Lesson
from cones2.batch.store import Store
from cones2.errors import Cones2Error, OutputError
from cones2.files import make_folder
from cones2.residual import Residual, Sha256

Event = dict[str, Any]
"""What a worker tells, as JSON values. `event` is one of: `began`, `drawn`, with the `case`; `failed`, also with the
`error`; `step`, also with `step`, `steps` and `loss`; and `ended`, with the `lease`, whether it is `committed`, and the
`cases` that are."""

_BETWEEN_CHECKPOINTS = 30.0
"""Seconds of learning that are lost at most, unless writing a checkpoint takes more than a tenth of that."""
_CHECKPOINTS_COST = 0.1
"""The part of the time that writing them may take."""
_BETWEEN_LOOKS = 10.0
"""Seconds of drawing that are done in vain at most, where somebody else has committed the lease."""

_LONGEST_ERROR = 1000  # characters
_Place = Annotated[int, pydantic.Field(ge=0, lt=2**50)]


class Commit(pydantic.BaseModel, strict=True, extra="forbid", frozen=True):
    """What stands in `commit/LEASE.json`: the tar, and of each case's picture the hash, first byte and size there.

    Cases of the lease that are not here have been set aside, or done in a lease of another job.
    """

    format: Literal[1] = 1
    data: Annotated[str, pydantic.Field(pattern=r"^data/[0-9a-f]{16}-[0-9a-f]{16}\.tar$")] | None
    cases: Annotated[dict[Sha256, tuple[Sha256, _Place, _Place]], pydantic.Field(max_length=LARGEST_LEASE)]


class Step(Protocol):
    """A step of a learning, as `LearnStep` is."""

    @property
    def step(self) -> int:
        """Which it is, from 1."""

    @property
    def steps(self) -> int:
        """How many there are."""

    @property
    def loss(self) -> float:
        """L of Eq. 4."""

    @property
    def residual(self) -> Residual:
        """What is learned so far."""

    def save_checkpoint(self) -> None:
        """Write what the learning goes on from."""


@runtime_checkable
class Hands(Protocol):
    """What draws and learns."""

    def draw(self, made: dict[str, Any], path: Path) -> None:
        """Write the picture of a case, `Case.made`, as a PNG, whole or not at all."""

    def learn(self, lesson: Lesson, folder: Path) -> Iterator[Step]:
        """Take the steps of a learning that goes on from the checkpoints in a folder, and keeps them there."""

    def report(self, lesson: Lesson, last: Any) -> dict[str, Any]:
        """Return what is to be known of a subject after its last step."""


@dataclass(frozen=True)
class Bench:
    """Where a worker does its leases: the storage, a folder of this machine, and whether it is asked to stop."""

    store: Store
    spool: Path
    stopped: Callable[[], bool] = lambda: False


def read_commit(store: Store, lease: str) -> Commit | None:
    """Return a lease's commit; None where it has none, and OutputError where what is there is no commit."""
    content = store.read(f"commit/{lease}.json")
    if content is None:
        return None
    try:
        return Commit.model_validate_json(content)
    except pydantic.ValidationError as error:
        raise OutputError(f"commit/{lease}.json is damaged: `verify` tells what else is. Delete it.") from error


def draw_lease(bench: Bench, hands: Hands, lease: str, cases: Sequence[Case]) -> Iterator[Event]:
    """Draw the cases of a lease that are not on this machine yet, then commit all; yield an event at each point.

    If a case fails, the others are drawn and nothing is committed: whoever gave the lease gives it again, in the end
    without that case.

    Raises:
        OutputError: something can't be written; what is on this machine stays for the next one.
    """
    folder = bench.spool / lease[:32]
    make_folder(folder)
    try:
        is_whole = yield from _draw(bench, hands, lease, folder, cases)
        commit = read_commit(bench.store, lease)
        if commit is None and is_whole:
            commit = _commit(bench.store, folder, lease, cases)
    except OutputError:  # whoever commits it deletes the folder, also that of another engine on this machine
        commit = read_commit(bench.store, lease)
        if commit is None:
            raise
    done = [] if commit is None else list(commit.cases)
    if commit is not None:
        shutil.rmtree(folder, ignore_errors=True)
    yield {"event": "ended", "lease": lease, "committed": commit is not None, "cases": done}


def _draw(bench: Bench, hands: Hands, lease: str, folder: Path, cases: Sequence[Case]) -> Generator[Event, None, bool]:
    """Draw the cases that are not in a folder yet; return whether all are there then."""
    is_whole, looked = True, -math.inf
    for case in cases:
        path = folder / f"{case.id}.png"
        if path.exists():
            yield {"event": "drawn", "case": case.id}
            continue
        if time.monotonic() - looked > _BETWEEN_LOOKS:
            if bench.store.read(f"commit/{lease}.json", 0, 1) is not None:
                return False  # somebody else was faster
            looked = time.monotonic()
        yield {"event": "began", "case": case.id}
        try:
            hands.draw(case.made, path)
        except OutputError:
            raise
        except Exception as error:  # of any kind: the other cases must not suffer
            is_whole = False
            yield {"event": "failed", "case": case.id, "error": told(error)}
        else:
            yield {"event": "drawn", "case": case.id}
    return is_whole


def told(error: BaseException) -> str:
    """Return what to say of an error: ours have messages of their own."""
    return (str(error) if isinstance(error, Cones2Error) else f"{type(error).__name__}: {error}")[:_LONGEST_ERROR]


def _commit(store: Store, folder: Path, lease: str, cases: Sequence[Case]) -> Commit | None:
    """Pack and commit what was drawn; return what is committed in the end, which may be another worker's."""
    data, written = None, {}
    if cases:
        data = f"data/{lease[:16]}-{secrets.token_hex(8)}.tar"
        packed = folder / f".{secrets.token_hex(8)}.tar"
        written = _pack(packed, folder, cases)
        store.put(data, packed)
    own = Commit(data=data, cases=written)
    if store.create(f"commit/{lease}.json", own.model_dump_json().encode()):
        return own
    if data is not None:
        store.delete(data)
    return read_commit(store, lease)


def _pack(path: Path, folder: Path, cases: Sequence[Case]) -> dict[str, tuple[str, int, int]]:
    """Write pictures and what made them as a tar that WebDataset reads, the same bytes for the same pictures."""
    written = {}
    try:
        with path.open("xb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for case in cases:
                picture = _read_drawn(folder / f"{case.id}.png")
                about = json.dumps({"made": case.made, "labels": case.labels}).encode()
                start = tar.offset + tarfile.BLOCKSIZE  # after the picture's head
                for suffix, content in (("png", picture), ("json", about)):
                    entry = tarfile.TarInfo(f"{case.id}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
                written[case.id] = (hashlib.sha256(picture).hexdigest(), start, len(picture))
        with path.open("rb+") as written_file:
            os.fsync(written_file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise OutputError(f"can't write {path}: {error.strerror}. Make room there, and run it again.") from error
    return written


def _read_drawn(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OutputError(f"can't read {path}, drawn before: {error.strerror}. Run it again.") from error


def learn_lease(bench: Bench, hands: Hands, lesson: Lesson) -> Iterator[Event]:
    """Learn a subject from where its last checkpoint in the storage stands, and publish it; yield an event a step."""
    name = f"subjects/{lesson.id}.safetensors"
    folder = bench.spool / f"{lesson.id[:32]}-{secrets.token_hex(4)}"  # of its own: another worker may be at it too
    committed = bench.store.read(name, 0, 1) is not None
    yield {"event": "began", "case": lesson.id}
    try:
        if not committed:
            try:
                committed = yield from _learn(bench, hands, lesson, folder)
            except OutputError:
                raise
            except Exception as error:  # of any kind: the other subjects must not suffer
                yield {"event": "failed", "case": lesson.id, "error": told(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if committed:
        for old in bench.store.names(f"checkpoints/{lesson.id}"):
            bench.store.delete(f"checkpoints/{lesson.id}/{old}")
    yield {"event": "ended", "lease": lesson.id, "committed": committed, "cases": [lesson.id] if committed else []}


def _learn(bench: Bench, hands: Hands, lesson: Lesson, folder: Path) -> Generator[Event, None, bool]:
    """Take the steps of a learning; return whether it came to its end, and is published."""
    make_folder(folder)
    _fetch_checkpoints(bench.store, lesson, folder)
    began = saved = time.monotonic()
    pause, step = _BETWEEN_CHECKPOINTS, None
    for step in hands.learn(lesson, folder):
        yield {"event": "step", "case": lesson.id, "step": step.step, "steps": step.steps, "loss": step.loss}
        stopped = bench.stopped()
        if step.step < step.steps and (stopped or time.monotonic() - saved > pause):
            if bench.store.read(f"subjects/{lesson.id}.safetensors", 0, 1) is not None:
                return True  # somebody else was faster
            before = time.monotonic()
            step.save_checkpoint()
            _keep_checkpoints(bench.store, lesson, folder)
            saved = time.monotonic()
            pause = max(_BETWEEN_CHECKPOINTS, (saved - before) / _CHECKPOINTS_COST)
        if stopped and step.step < step.steps:
            return False
    assert step is not None  # a recipe has at least one step
    report = {**hands.report(lesson, step), "seconds": round(time.monotonic() - began, 3)}
    bench.store.write(f"subjects/{lesson.id}.json", json.dumps(report).encode())
    bench.store.create(f"subjects/{lesson.id}.safetensors", step.residual.to_bytes())
    return True


def _fetch_checkpoints(store: Store, lesson: Lesson, folder: Path) -> None:
    """Copy the checkpoints of the storage to a folder; one that another engine deletes meanwhile is left out."""
    for name in store.names(f"checkpoints/{lesson.id}"):
        try:
            store.get(f"checkpoints/{lesson.id}/{name}", folder / name)
        except OutputError:
            if store.read(f"checkpoints/{lesson.id}/{name}", 0, 1) is not None:
                raise
            for suffix in (".json", ".safetensors"):  # neither is of use without the other
                (folder / name).with_suffix(suffix).unlink(missing_ok=True)


def _keep_checkpoints(store: Store, lesson: Lesson, folder: Path) -> None:
    """Copy the newest checkpoint to the storage, its manifest last, and delete those before it."""
    newest = max(path.stem for path in folder.glob("step-*.json"))
    for suffix in ("safetensors", "json"):
        copy = folder / f".{newest}.{suffix}"
        try:
            shutil.copyfile(folder / f"{newest}.{suffix}", copy)
        except OSError as error:
            raise OutputError(f"can't write {copy}: {error.strerror}. Make room there, and run it again.") from error
        store.put(f"checkpoints/{lesson.id}/{newest}.{suffix}", copy)
    for name in store.names(f"checkpoints/{lesson.id}"):
        if name < newest:  # later ones are those of another engine
            store.delete(f"checkpoints/{lesson.id}/{name}")
