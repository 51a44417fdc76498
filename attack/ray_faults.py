"""Kills what a Ray cluster is made of, while it does a batch: `python attack/ray_faults.py --faults 200`; needs Ray.

Four nodes run on this machine, and sleep for each picture. At random moments a worker, a node, its raylet, the engine,
or the head and with it the whole cluster is killed, or a worker is stopped for some seconds while its lease is given to
another one. What takes more than a worker down waits until something was committed since the last time, so that faults
hit work and not one another. The engine is run again whenever it has ended. In the end every picture must be committed
once, with the bytes of a serial run.
"""

import argparse
import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from batch_hands import SECONDS, sleeping_spec
from cones2.batch import driver, read, verify
from cones2.batch.engine import Batch
from cones2.batch.job import Job, Pictures
from cones2.batch.on_ray import RayActors
from cones2.batch.plan import Plan
from cones2.batch.store import LocalStore
from faulty_store import content_of

TESTS = Path(__file__).parents[1] / "tests"
NODES, PICTURES = 4, 400
KINDS = {"worker": 8, "stopped": 5, "node": 2, "raylet": 2, "engine": 2, "head": 1}
"""What is done, and how often compared with the others."""
OF_WORKERS = ("worker", "stopped")


def plan_of(number: int) -> Plan:
    """Return the pictures of a round."""
    first = number * PICTURES
    return Plan.of(Job(pictures=(Pictures(prompt="a dog", seed=f"{first}-{first + PICTURES - 1}"),), lease=2))


def run_engine(address: str, number: int, out: Path) -> None:
    """Do what is left of a round, in a process of its own."""
    import ray

    driver._LEAST = 2.0  # so that a worker that is stopped is overtaken while it is
    ray.init(address=address, log_to_driver=False, logging_level="error")
    batch = Batch(plan_of(number), LocalStore(out))
    list(batch.outcomes(RayActors("auto", NODES, {**sleeping_spec(out), "threads": 1})))
    sys.exit(bool(batch.pictures.left or batch.pictures.failed))


class Attack:
    """A cluster, an engine, and what was done to them."""

    def __init__(self, seed: int) -> None:
        self.luck, self.faults = random.Random(seed), Counter[str]()
        self.stopped: list[tuple[float, psutil.Process]] = []
        self.committed = 0  # when more than a worker was last taken down
        self.unseen = 0  # engines that did not end within a minute of their cluster
        self.begin_cluster()

    def begin_cluster(self) -> None:
        """Begin a cluster of four nodes with a processor each, and a head without."""
        from ray.cluster_utils import Cluster

        patient = {"health_check_timeout_ms": 60_000, "health_check_failure_threshold": 10}  # of nodes on busy machines
        options: dict[str, Any] = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
        options["_system_config"] = patient
        self.cluster = Cluster(initialize_head=True, head_node_args=options)
        self.nodes = [self.add_node() for _ in range(NODES)]

    def add_node(self) -> Any:
        """Add a node, and do not wait for it; again where a busy machine takes more than Ray's half minute."""
        while True:
            try:
                return self.cluster.add_node(wait=False, num_cpus=1, object_store_memory=80 * 2**20)
            except Exception as error:  # Ray raises no other
                if "timed out during startup" not in str(error):
                    raise

    def round(self, number: int, out: Path, most: int) -> None:
        """Do a round under faults, of which there are at most so many altogether."""
        command = [sys.executable, __file__, "--engine", str(number), "--out", str(out)]
        self.committed = 0
        while True:
            engine = subprocess.Popen([*command, "--address", self.cluster.address], stderr=subprocess.DEVNULL)
            until = time.monotonic() + 300
            while engine.poll() is None and time.monotonic() < until:
                time.sleep(self.luck.uniform(0.5, 3.0))
                self.wake()
                kind, committed = (
                    self.luck.choices(list(KINDS), list(KINDS.values()))[0],
                    len([*out.glob("commit/*.json")]),
                )
                is_due = committed > (0 if kind in OF_WORKERS else self.committed)
                if is_due and self.faults.total() < most and self.do(kind, engine) and kind not in OF_WORKERS:
                    self.committed = committed
            if engine.poll() is None:
                print(f"round {number}: nothing for 300 s, begun again", flush=True)
                engine.kill()
            if engine.wait() == 0:
                return

    def wake(self) -> None:
        """Let workers that were stopped for long enough go on."""
        while self.stopped and self.stopped[0][0] < time.monotonic():
            with contextlib.suppress(psutil.Error):
                self.stopped.pop(0)[1].resume()

    def do(self, kind: str, engine: "subprocess.Popen[bytes]") -> bool:
        """Do one fault, and return whether there was something that it could be done to."""
        workers = [each for each in psutil.Process().children(recursive=True) if self.is_worker(each)]
        place = self.luck.randrange(NODES)
        if kind in OF_WORKERS and not workers:
            return False
        with contextlib.suppress(psutil.Error):
            if kind == "worker":
                self.luck.choice(workers).kill()
            elif kind == "stopped":
                process = self.luck.choice(workers)
                process.suspend()
                self.stopped.append((time.monotonic() + 8.0, process))
            elif kind == "node":
                self.cluster.remove_node(self.nodes[place], allow_graceful=False)
                self.nodes[place] = self.add_node()
            elif kind == "raylet":
                os.kill(self.nodes[place].all_processes["raylet"][0].process.pid, signal.SIGKILL)
                self.nodes[place] = self.add_node()
            elif kind == "engine":
                engine.kill()
            else:
                self.cluster.shutdown()  # the engine has to see for itself
                with contextlib.suppress(subprocess.TimeoutExpired):
                    engine.wait(60)
                self.unseen += engine.poll() is None
                engine.kill()
                self.begin_cluster()
            self.faults[kind] += 1
            return True
        return False

    @staticmethod
    def is_worker(process: psutil.Process) -> bool:
        """Whether a process of ours is an actor."""
        with contextlib.suppress(psutil.Error):
            return process.status() != psutil.STATUS_STOPPED and " ".join(process.cmdline()).startswith("ray::Actor")
        return False


def wrong_in(number: int, out: Path) -> str:
    """Return what is wrong with the results of a round."""
    plan, found = plan_of(number), verify(out)
    expected = {case.id: content_of(case.made) for lease in plan.leases for case in plan.cases(lease)}
    drawn = {result.id: result.content for result in read(out)}
    lost = len(expected.keys() - drawn.keys())
    other = sum(expected[case] != content for case, content in drawn.items())
    return (
        f"{lost} lost, {len(found.doubled)} doubled, {other} with other bytes" if lost + other or found.doubled else ""
    )


def main() -> None:
    """Do rounds until there were enough faults, and tell of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0, help="at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.engine is not None:
        run_engine(asked.address, asked.engine, asked.out)
    paths = [str(TESTS), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), SECONDS: "0.5", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # read when Ray is imported
    attack, number, began, wrong = Attack(asked.seed), 0, time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        while attack.faults.total() < asked.faults and time.monotonic() - began < asked.minutes * 60:
            out = Path(folder) / str(number)
            attack.round(number, out, asked.faults)
            problem = wrong_in(number, out)
            wrong += bool(problem)
            told = f"{attack.faults.total()} faults, {dict(attack.faults)}; {problem or 'nothing is wrong'}"
            print(f"round {number}, {time.monotonic() - began:.0f} s: {told}", flush=True)
            number += 1
        attack.cluster.shutdown()
    print(f"{attack.faults.total()} faults, {number * PICTURES} pictures, {wrong} rounds with something wrong")
    print(f"{attack.unseen} engines did not notice within a minute that their cluster was gone")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
