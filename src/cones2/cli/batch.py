"""`cones2 batch`: thousands of subjects and pictures from one job, on any number of workers; and looking at them."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cones2.cli import options as opt
from cones2.cli.console import complain, note, print_json, print_rows, progress, say, waiting
from cones2.cli.options import option, pairs
from cones2.errors import SettingsError, counted

if TYPE_CHECKING:
    from cones2.batch.engine import Batch, Crew

_WORKERS = "Workers"
_SHOWN = 0.1  # seconds between two looks at how far it is
_JobFile = Annotated[Path, typer.Argument(help="What to do, in TOML, or .jsonl: docs/batch.md.", metavar="JOB")]
_Results = Annotated[str, typer.Argument(help="The --out of a batch.", metavar="OUT")]
_Only = Annotated[list[str] | None, option("--only", "Of these alone: seed=0, subject.pet=rex.", "FIELD=VALUE")]


def run(
    job: _JobFile,
    out: Annotated[str, option("--out -o", "A folder, or a URL such as s3://bucket/name.", "DIR_OR_URL")],
    workers: Annotated[
        int | None, option("--workers", "Processes here, or Ray's actors; default: this one.", "N", _WORKERS, min=1)
    ] = None,
    ray: Annotated[
        str | None, option("--ray", "A Ray cluster: local, auto, or its address.", "ADDRESS", _WORKERS)
    ] = None,
    shard: Annotated[str | None, option("--shard", "Do part I of N, from 0, and no other.", "I/N", _WORKERS)] = None,
    device: opt.Device = None,
    as_json: opt.Json = False,
) -> None:
    """Do a job; run it again to go on where it stopped, or after it was changed. 'batch JOB' is short for this.

    Ctrl-C lets the workers end what they have begun; a second one does not wait. What fails three times is set aside.

    Example: cones2 batch run job.toml --out results --workers 2
    """
    batch = _batch(job, out, shard)
    with waiting("beginning"):
        from cones2.batch.running import make_crew

        crew = make_crew(batch, out, workers=workers, ray=ray, device=device)
    doing = f"{counted(batch.pictures.left, 'picture')} and {counted(batch.subjects.left, 'subject')} to do"
    note(f"{doing}; done already: {batch.pictures.done + batch.subjects.done}.")
    _follow(batch, crew)
    if as_json:
        print_json({"out": out, **batch.describe(), "failures": dict(batch.driver.aside)})
    else:
        _tell(out, batch)
    if batch.driver.draining:
        raise KeyboardInterrupt
    if batch.pictures.left or batch.pictures.failed or batch.pictures.blocked or batch.subjects.failed:
        raise typer.Exit(1)


def _batch(job: Path, out: str, shard: str | None) -> "Batch":
    with waiting("reading the job"):
        from cones2.batch.engine import Batch
        from cones2.batch.job import read_job
        from cones2.batch.plan import Plan
        from cones2.batch.running import check_shard
        from cones2.batch.store import check_store, open_store

        part = (0, 1) if shard is None else check_shard(_read_shard(shard))
        plan, store = Plan.of(read_job(job)), open_store(out)
        check_store(store)
        return Batch(plan, store, shard=part)


def _read_shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    try:
        return int(number), int(count)
    except ValueError as error:
        raise SettingsError(f"--shard {text!r} can't be read: expected I/N, such as 0/16.") from error


def _follow(batch: "Batch", crew: "Crew") -> None:
    """Do the work under a bar; the first Ctrl-C drains."""
    began = shown = time.monotonic()
    with _drained(batch, crew), progress("batch") as show:
        for outcome in batch.outcomes(crew):
            if outcome is not None and outcome.state == "failed":
                name = outcome.name or outcome.id[:12]
                complain("warning", f"{outcome.kind} {name} is set aside: {outcome.error}")
            if time.monotonic() - shown > _SHOWN:  # thousands of workers tell thousands of things a second
                shown = time.monotonic()
                _show(batch, show)
        _show(batch, show)
    note(f"{time.monotonic() - began:.1f} s, {batch.rate:.2f} pictures/s.")


def _show(batch: "Batch", show: Callable[..., object]) -> None:
    counts = (batch.pictures, batch.subjects)
    done, total = sum(each.done for each in counts), sum(each.total for each in counts)
    failed = sum(each.failed for each in counts)
    told = [f"{batch.rate:.2f} pictures/s", f"{len(batch.running)} at work"]
    show(done, total, ", ".join([*([f"{failed} failed"] if failed else []), *told]))


@contextmanager
def _drained(batch: "Batch", crew: "Crew") -> Iterator[None]:
    """Let the first Ctrl-C, or a scheduler's SIGTERM, end the batch when running leases have ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def drain(*_: object) -> None:
        if batch.driver.draining:
            raise KeyboardInterrupt
        note("ending what has begun; again to stop at once.")
        batch.drain()
        crew.drain()

    kinds = [signal.SIGTERM, *([signal.SIGINT] if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN else [])]
    before = {kind: signal.signal(kind, drain) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def _tell(out: str, batch: "Batch") -> None:
    for name, counts in (("pictures", batch.pictures), ("subjects", batch.subjects)):
        if counts.total:
            say(f"{name}: {_counted(counts)}")
    say(f"Look at them: cones2 batch gallery {out}")


def _counted(counts: Any) -> str:
    parts = {name: getattr(counts, name) for name in ("done", "failed", "blocked", "left")}
    return ", ".join(f"{number} {name}" for name, number in parts.items() if number or name == "done")


def plan(
    job: _JobFile,
    out: Annotated[str | None, option("--out -o", "What is done there is left out.", "DIR_OR_URL")] = None,
    device: opt.Device = None,
    as_json: opt.Json = False,
) -> None:
    """Tell what a job comes to, by drawing one of its pictures and taking a few steps of its learning.

    Example: cones2 batch plan job.toml
    """
    with waiting("reading the job"):
        from cones2.batch.estimate import measure
        from cones2.batch.job import read_job
        from cones2.batch.plan import Plan
        from cones2.batch.resume import find_standing
        from cones2.batch.store import LocalStore, open_store

        made = Plan.of(read_job(job))
        standing = find_standing(made, LocalStore(Path("/nowhere")) if out is None else open_store(out))
    with waiting("measuring"):
        sample = measure(made, device=device)
    seconds = standing.pictures.left * sample.picture + standing.subjects.left * sample.subject
    size = standing.pictures.left * sample.size
    report = {
        "pictures": standing.pictures.as_json(),
        "subjects": standing.subjects.as_json(),
        "seconds_a_picture": round(sample.picture, 3),
        "seconds_a_subject": round(sample.subject, 3),
        "seconds_on_one_worker": round(seconds, 1),
        "bytes": size,
    }
    if as_json:
        print_json(report)
        return
    for name, counts, each in (
        ("picture", standing.pictures, sample.picture),
        ("subject", standing.subjects, sample.subject),
    ):
        if counts.total:
            say(f"{counted(counts.left, name)} to do, {each:.2f} s each; {counts.done} done.")
    say(f"On one worker like this process: {_duration(seconds)}, and {size / 1e6:,.1f} MB.")


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def status(out: _Results, as_json: opt.Json = False) -> None:
    """Tell how far a batch is, from any machine: done, failed, left, and who is at work.

    Example: cones2 batch status results
    """
    with waiting("reading"):
        from cones2.batch.results import read_status

        found = read_status(out)
    if as_json:
        counts = {"pictures": found.pictures.as_json(), "subjects": found.subjects.as_json()}
        failures = [failure.model_dump() for failure in found.failures]
        print_json({**counts, "failures": failures, "engines": list(found.engines)})
        return
    for name, each in (("pictures", found.pictures), ("subjects", found.subjects)):
        if each.total:
            say(f"{name}: {_counted(each)}")
    for failure in found.failures:
        say(f"failed: {failure.name or failure.case[:12]}: {failure.error}")
    for engine in found.engines:
        workers = counted(len(engine["workers"]), "worker")
        say(f"at work on {engine.get('host')}: {workers}, {engine.get('rate')} pictures/s")


def subjects(
    out: _Results,
    add: Annotated[bool, option("--add", "Keep them in your library, under their names.")] = False,
    library: opt.Library = None,
    replace: opt.Replace = False,
    as_json: opt.Json = False,
) -> None:
    """List the subjects that a batch has learned, or keep them in your library.

    Example: cones2 batch subjects results --add
    """
    with waiting("reading"):
        from cones2.batch.results import read_subjects
        from cones2.library import Library

        found, shelf = list(read_subjects(out)), Library.open(library)
        if add:
            for name, residual, _ in found:
                if residual is not None:
                    shelf.add(name, residual, replace=replace)
    if as_json:
        states = [{"name": name, "learned": residual is not None, **report} for name, residual, report in found]
        print_json({"subjects": states})
        return
    rows = [
        (
            name,
            "" if residual is None else residual.class_word,
            "left" if residual is None else "learned",
            _number(report.get("loss"), "{:.4f}"),
            _number(report.get("displacement"), "{:.1%}"),
            _number(report.get("seconds"), "{:.0f} s"),
            " ".join(map(str, report.get("findings") or ())),
        )
        for name, residual, report in found
    ]
    print_rows(out, ("subject", "class word", "", "loss", "others moved", "time", ""), rows)


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else ""


def sheet(
    out: _Results,
    file: Annotated[Path, option("--sheet", "Where the sheet goes.", "FILE")] = Path("sheet.png"),
    across: Annotated[str, option("--across", "The field that runs across.", "FIELD")] = "seed",
    only: _Only = None,
    cell: Annotated[int, option("--cell", "Pixels of a picture.", "N", min=32, max=1024)] = 256,
    replace: opt.Replace = False,
) -> None:
    """Lay the pictures of a batch out on one labelled sheet: seeds across, and all else that differs down.

    Example: cones2 batch sheet results --across subject.pet
    """
    with waiting("reading"):
        from cones2.batch.gallery import MOST_ON_SHEET, chosen, make_sheet
        from cones2.batch.results import read
        from cones2.cli.outputs import check_new
        from cones2.png import write_picture

        check_new(file, suffix=".png", replace=replace, option="--sheet")
        results = []
        for result in chosen(read(out), _read_only(only)):
            results.append(result)
            if len(results) > MOST_ON_SHEET:
                break
        drawn = make_sheet(results, across=across, cell=cell)
        write_picture(file, drawn, {"pictures": [result.id for result in results]})
    say(str(file))


def gallery(
    out: _Results,
    folder: Annotated[Path | None, option("--pages", "Where the pages go; default: OUT/gallery.", "DIR")] = None,
    only: _Only = None,
    most: Annotated[int, option("--most", "Pictures at most.", "N", min=1, max=100_000)] = 2000,
) -> None:
    """Write a page of a batch's pictures, with how each was made and the line that draws it again.

    Example: cones2 batch gallery results
    """
    if folder is None and "://" in out:
        raise SettingsError("a page of results elsewhere needs a folder here: give --pages DIR.")
    with waiting("writing the pages"):
        from cones2.batch.gallery import chosen, write_gallery
        from cones2.batch.results import read

        pages = folder or Path(out) / "gallery"
        count, number = write_gallery(chosen(read(out), _read_only(only)), pages, title=Path(out).name, most=most)
    say(f"{pages / 'index.html'}")
    note(f"{counted(count, 'picture')} on {counted(number, 'page')}.")


def _read_only(only: list[str] | None) -> dict[str, str]:
    return dict(pairs("--only", only, example="seed=0"))


def verify(
    out: _Results,
    sweep: Annotated[bool, option("--sweep", "Delete what killed workers left; nothing may be at work.")] = False,
    as_json: opt.Json = False,
) -> None:
    """Read every picture of a batch and compare it with its hash.

    Example: cones2 batch verify results
    """
    with waiting("reading"):
        from cones2.batch.results import verify as verified

        found = verified(out, sweep=sweep)
    if as_json:
        print_json(vars(found))
    else:
        say(f"{counted(found.sound, 'picture')} sound, {len(found.doubled)} doubled, {len(found.orphans)} left over.")
        for problem in found.problems:
            say(problem)
    if found.problems:
        raise typer.Exit(1)


def arguments_of(args: list[str]) -> list[str]:
    """Return the arguments of `batch` with the name of its usual command, where none is given."""
    known = {"run", *COMMANDS}
    first = next((text for text in args if not text.startswith("-")), None)
    return args if first is None or first in known or {"--help", "-h"} & set(args[:1]) else ["run", *args]


COMMANDS: dict[str, Callable[..., None]] = {
    each.__name__: each for each in (run, plan, status, gallery, sheet, subjects, verify)
}
