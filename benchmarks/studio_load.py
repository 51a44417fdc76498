"""A studio under load: `python benchmarks/studio_load.py --minutes 60`.

64 jobs of 8 clients wait (each that ends is queued anew), 100 streams listen, and one client reads. Printed are p95 of
the reads, whether a stream lost an event of the journal, and how the server's memory grew.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from studio_server import TOKEN, Served, request

CLIENTS, JOBS, STREAMS = 8, 64, 100
READS = ("/v1/jobs?state=queued", "/v1/pictures?limit=50", "/v1/subjects", "/v1/info", "/healthz")


def client_of(server: Served, name: str) -> httpx.AsyncClient:
    """Return an asynchronous client under a client id."""
    headers = {"Authorization": f"Bearer {TOKEN}", "X-Client-Id": name}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60, trust_env=False)


async def listen(server: Served, number: int, results: list[set[str]]) -> None:
    """Read a stream, and note the pictures that it told of."""
    async with (
        client_of(server, f"stream-{number}") as client,
        client.stream("GET", "/v1/events", timeout=None) as stream,
    ):
        event = ""
        async for line in stream.aiter_lines():
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: ") and event == "result":
                results[number].add(json.loads(line[6:])["picture"]["id"])


async def feed(server: Served, number: int, steps: int) -> None:
    """Keep a client's share of the queue full."""
    async with client_of(server, f"client-{number}") as client:
        seed = 0
        while True:
            answer = await client.post("/v1/pictures", json=request(seeds=[seed], num_inference_steps=steps))
            seed += answer.status_code == 202
            if answer.status_code != 202 or seed >= JOBS // CLIENTS:
                await asyncio.sleep(1)


async def read(server: Served, seconds: float) -> dict[str, list[float]]:
    """Read again and again, and return the seconds that each kind took."""
    taken: dict[str, list[float]] = {path: [] for path in READS}
    end = time.monotonic() + seconds
    async with client_of(server, "reader") as client:
        while time.monotonic() < end:
            for path in READS:
                began = time.perf_counter()
                (await client.get(path)).raise_for_status()
                taken[path].append(time.perf_counter() - began)
                await asyncio.sleep(0.05)
    return taken


def memory(server: Served) -> float:
    """Return the server's memory in MiB, its worker's not among it."""
    return float(psutil.Process(server.process.pid if server.process else os.getpid()).memory_info().rss) / 2**20


async def measure(server: Served, minutes: float, steps: int) -> None:
    """Put the load on, read, and print what came."""
    results: list[set[str]] = [set() for _ in range(STREAMS)]
    tasks = [asyncio.create_task(listen(server, number, results)) for number in range(STREAMS)]
    await asyncio.sleep(5)
    tasks += [asyncio.create_task(feed(server, number, steps)) for number in range(CLIENTS)]
    await asyncio.sleep(20)
    before, load = memory(server), os.getloadavg()[0]
    taken = await read(server, 60 * minutes)
    after = memory(server)
    for task in tasks[STREAMS:]:
        task.cancel()
    await asyncio.sleep(3)
    drawn = set.union(*results)
    lost = sum(len(drawn - each) for each in results)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    everything = [each for times in taken.values() for each in times]
    print(f"load {load:.1f} before, {os.getloadavg()[0]:.1f} after; {len(drawn)} pictures, {STREAMS} streams")
    for path, times in [*taken.items(), ("all reads", everything)]:
        print(
            f"{path}: median {1000 * statistics.median(times):.1f} ms, p95 {1000 * p95(times):.1f} ms of {len(times)}"
        )
    print(f"results that a stream did not tell: {lost}")
    print(f"memory of the server: {before:.0f} MiB, then {after:.0f} MiB after {minutes:g} minutes")


def p95(times: Sequence[float]) -> float:
    """Return the 95th percentile."""
    return sorted(times)[int(0.95 * (len(times) - 1))]


def main() -> None:
    """Start a server on an empty folder and measure it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=10, help="of each picture")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Served(Path(folder)).start().wait_until_ready()
        try:
            asyncio.run(measure(server, options.minutes, options.steps))
        finally:
            server.kill()


if __name__ == "__main__":
    main()
