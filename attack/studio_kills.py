"""Kills a studio's server and worker at random moments: `python attack/studio_kills.py --kills 200 --jobs 50`.

Jobs of several clients are queued on `mini`: most draw two pictures, some teach a subject. At random times the worker
or the server is killed (SIGKILL), and the server started again. In the end no job may be lost or unfinished, each
picture must be there once, whole and of the right seed, the same request must have given the same bytes, and no file
may be left that no row knows.
"""

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the tests' server
from studio_server import Served, photos, request

CLIENTS = ("a", "b", "c", "d", "e")
STEPS, LEARN_STEPS = 6, 25


def queue(server: Served, number: int) -> str:
    """Queue a job, again after an error, by one key; return its id."""
    with server.client(CLIENTS[number % len(CLIENTS)]) as client:
        key = {"Idempotency-Key": f"job-{number}"}
        while True:
            try:
                if number % 10 == 9:
                    data = {"name": f"pup_{number}", "class_word": "dog", "steps": str(LEARN_STEPS)}
                    answer = client.post("/v1/subjects", data=data, files=photos(), headers=key)
                else:
                    asked = request(seeds=[number % 3, 7], num_inference_steps=STEPS)
                    answer = client.post("/v1/pictures", json=asked, headers=key)
                if answer.status_code == 202:
                    return str(answer.json()["id"])
                if answer.status_code != 429:
                    sys.exit(f"job {number} was answered by {answer.status_code}: {answer.text[:300]}")
            except httpx.HTTPError:
                pass  # killed meanwhile; the key sees to it that there is one job
            time.sleep(1)
            if server.process is not None and server.process.poll() is not None:
                server.start()


def kill(server: Served, chance: random.Random) -> str:
    """Kill the worker, or the server, which is started again; return which."""
    worker = server.worker()
    if worker is not None and chance.random() < 0.6:
        os.kill(worker, signal.SIGKILL)
        return "worker"
    server.kill()
    server.start()
    return "server"


def jobs_of(server: Served) -> dict[str, Any]:
    """Return all jobs by id."""
    with server.client() as client:
        return {job["id"]: job for job in client.get("/v1/jobs").json()["jobs"]}


def settle(server: Served, ids: list[str], *, minutes: float) -> dict[str, Any]:
    """Wait until all jobs have ended; what failed, since it was begun three times, is tried again."""
    end = time.monotonic() + 60 * minutes
    while True:
        jobs = jobs_of(server)
        for number, job in enumerate(ids):
            if jobs[job]["state"] == "failed":
                with server.client(CLIENTS[number % len(CLIENTS)]) as client:
                    client.post(f"/v1/jobs/{job}/retry")
        if all(jobs[job]["state"] == "succeeded" for job in ids):
            return jobs
        if time.monotonic() > end:
            sys.exit(f"jobs did not end: {Counter(jobs[job]['state'] for job in ids)}")
        time.sleep(2)


def faults(server: Served, ids: list[str], jobs: dict[str, Any]) -> list[str]:
    """Return what is wrong in the end."""
    found: list[str] = []
    hashes: dict[int, str] = {}
    data = server.folder / "data"
    with server.client() as client:
        for number, job in enumerate(ids):
            if number % 10 == 9:
                if client.get(f"/v1/subjects/pup_{number}").status_code != 200:
                    found.append(f"the subject of job {number} is lost")
                continue
            if jobs[job]["results"] != [f"{job}-0", f"{job}-1"]:
                found.append(f"job {number} has the pictures {jobs[job]['results']}")
            for picture in jobs[job]["results"]:
                content = client.get(f"/v1/pictures/{picture}/file").content
                seed = client.get(f"/v1/pictures/{picture}").json()["seed"]
                if not content.endswith(b"IEND\xaeB`\x82"):
                    found.append(f"{picture} is cut off")
                if hashes.setdefault(seed, hashlib.sha256(content).hexdigest()) != hashlib.sha256(content).hexdigest():
                    found.append(f"{picture} differs from another of seed {seed}")
    server.stop()
    server.start()  # which sweeps
    pictures = {path.stem for path in (data / "pictures").glob("*.png") if ".heat" not in path.name}
    known = {picture for job in ids for picture in jobs[job]["results"]}
    found += [f"{name} is on the disk and in no row" for name in pictures - known]
    found += [f"{path.name} is left over" for path in data.rglob("*.part")]
    found += [f"{path.name} is left over" for path in (data / "learning").iterdir()]
    return found


def main() -> None:
    """Run the attack and print what was counted; exit code 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=30.0, help="seconds between two kills, at most")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    began, killed = time.monotonic(), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        server = Served(Path(folder)).start()
        try:
            ids = [queue(server, number) for number in range(options.jobs)]
            for _ in range(options.kills):
                time.sleep(chance.random() * options.longest)
                killed[kill(server, chance)] += 1
            jobs = settle(server, ids, minutes=60)
            attempts = Counter(jobs[job]["attempt"] for job in ids)
            wrong = faults(server, ids, jobs)
        finally:
            server.kill()
    seconds = time.monotonic() - began
    print(f"{options.jobs} jobs, {dict(killed)} killed in {seconds:.0f} s; attempts {dict(sorted(attempts.items()))}")
    print("\n".join(wrong) or "nothing lost, nothing doubled, no half file")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
