"""Try each part of `train_gpu.py` for seconds: how fast it is, and where its time goes. Its options are the same."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from batches import Pool
from receive import read_weights
from train_gpu import Run, parse_arguments

BATCHES = (128, 256, 512)


def timed_steps(run: Run, pool: Pool, batch: int, steps: int = 30, *, fuse: bool = True) -> None:
    """Capture steps of a batch, time them, and say where the time of one goes."""
    begun = time.monotonic()
    trainer = run.trainer(pool, batch, fuse=fuse)
    for _ in range(3):
        trainer.step(1e-5)
    run.wait()
    ready = time.monotonic()
    for _ in range(steps):
        trainer.step(1e-5)
    sent = time.monotonic() - ready
    run.wait()
    seconds = (time.monotonic() - ready) / steps
    told = " ".join(f"{name} {float(value):.4f}" for name, value in trainer.parts.items())
    run.say(
        f"batch {batch} x {run.plan.draws}: {1000 * seconds:.1f} ms a step, {batch * run.plan.draws / seconds:.0f}/s, "
        f"sent in {1000 * sent / steps:.1f} ms, set up in {ready - begun:.1f} s, {told}"
    )
    if run.device == "cuda":
        run.say(f"memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    if batch == BATCHES[1] and fuse:
        profile(run, trainer.step)


def profile(run: Run, step: Callable[[float], object]) -> None:
    """Print the kernels that take most of a step."""
    kinds = [torch.profiler.ProfilerActivity.CPU if run.device == "cpu" else torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as found:
        for _ in range(3):
            step(1e-5)
        run.wait()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    total = sum(row.self_device_time_total for row in rows) or 1
    for row in rows[:22]:
        run.say(f"{100 * row.self_device_time_total / total:5.1f} % {row.count // 3:5d} {row.key[:100]}")


def main() -> None:
    """Every stage, shortened."""
    plan = parse_arguments()
    plan.out.mkdir(parents=True, exist_ok=True)
    run = Run(plan)
    run.train_autoencoder(run.spent() + 7)
    plan.pool = min(plan.pool, 16 * plan.slice)
    begun = time.monotonic()
    pool = run.fill_pool()
    run.say(f"encoding: {len(pool) / (time.monotonic() - begun):.0f} scenes/s")
    for batch in BATCHES if run.device == "cuda" else (2,):
        timed_steps(run, pool, batch, 30 if run.device == "cuda" else 1)
    if run.device == "cuda":
        timed_steps(run, pool, BATCHES[1], fuse=False)
    plan.batch, plan.every = (256 if run.device == "cuda" else 2), 3
    run.train(pool, run.spent() + 6)
    run.save()
    run.finish_decoder(run.spent() + 5)
    run.save()
    mini, _ = read_weights(Path(plan.out))
    run.say(f"read back: {sum(p.numel() for p in mini.parameters())} weights")
    run.crew.stop()


if __name__ == "__main__":
    main()
