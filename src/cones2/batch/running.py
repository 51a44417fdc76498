"""From a job to its outcomes, in one call."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cones2.batch.engine import Batch, Crew, Inline, Outcome, spool_of
from cones2.batch.job import Job
from cones2.batch.lease import Bench
from cones2.batch.plan import Plan
from cones2.batch.resume import carry_files
from cones2.batch.store import check_store, open_store
from cones2.batch.worker import MODEL, make_hands
from cones2.errors import SettingsError


def run(
    job: Job,
    out: Path | str,
    *,
    workers: int | None = None,
    ray: str | None = None,
    shard: tuple[int, int] = (0, 1),
    device: str | None = None,
) -> Iterator[Outcome]:
    """Do a job, and yield what became of each picture and subject; what is done already is not done again.

    Args:
        job: what to do.
        out: a folder, or any URL of fsspec's.
        workers: processes of this machine; None is this process itself.
        ray: the address of a Ray cluster, `auto` for the one of this machine, or `local` for a new one; workers are its
            actors then.
        shard: which part, from 0, of how many: for engines that know nothing of each other.
        device: as `Cones2Pipeline.from_pretrained` takes it.

    Raises:
        SettingsError: an argument can't be used.
        OutputError: the storage can't be written; what was done stays done.
        Cones2Error: the job can't be planned, or the model not opened.
    """
    store = open_store(out)
    check_store(store)
    batch = Batch(Plan.of(job), store, shard=check_shard(shard))
    crew = make_crew(batch, str(out), workers=workers, ray=ray, device=device)
    return (outcome for outcome in batch.outcomes(crew) if outcome is not None)


def check_shard(shard: tuple[int, int]) -> tuple[int, int]:
    """Return a shard; SettingsError where there is none of that number."""
    if not 0 <= shard[0] < shard[1]:
        raise SettingsError(f"shard {shard[0]} of {shard[1]} makes no sense: expected 0 to {shard[1] - 1}.")
    return shard


def make_crew(
    batch: Batch, out: str, *, workers: int | None = None, ray: str | None = None, device: str | None = None
) -> Crew:
    """Return the workers of a batch, which have not begun; SettingsError where their number makes no sense."""
    if workers is not None and not 1 <= workers <= 1000:
        raise SettingsError(f"workers is {workers}: expected 1 to 1000.")
    if out.startswith("memory:") and not (workers is None and ray is None):
        raise SettingsError(
            "only this process sees what is in memory://: leave workers and ray out, or choose a folder."
        )
    spec: dict[str, Any] = {
        "out": out if "://" in out else str(Path(out).expanduser().absolute()),
        "hands": MODEL,
        "model": batch.plan.model,
        "device": device,
        "threads": None if ray is None else 1,  # as Ray counts one processor for an actor
        "save_memory": batch.plan.job.save_memory,
        "engine": batch.name,
        "version": importlib.metadata.version("cones2"),
    }
    if ray is not None:
        from cones2.batch.on_ray import RayActors

        crew = RayActors(ray, workers, spec)
        if ray != "local" or not crew.joined:  # other machines may join at any time
            try:
                carry_files(batch.plan, batch.store, batch.standing.learned)
            except BaseException:
                crew.close()
                raise
        return crew
    if workers is None:
        bench = Bench(batch.store, spool_of(batch.store, spec["out"]), lambda: batch.driver.draining)
        return Inline(bench, lambda: make_hands(spec, batch.store))
    from cones2.batch.processes import Processes

    return Processes(workers, spec)
