"""Who does what: a state machine that is fed what workers tell, and knows nothing of processes, storages or clocks.

It holds no truth: what is done stands in the storage, and whoever makes a new driver from that goes on.
"""

import collections
import math
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from cones2.batch.plan import Lease

TRIES = 3
"""How often a case may fail, or end its worker, before it is set aside."""

_SLOW, _LEAST = 3.0, 60.0  # pictures are also given to an idle worker after so many usual times, and seconds
_SILENT, _SILENCE = 30.0, (120.0, 900.0)  # or where so many usual pictures or steps nothing was heard, within bounds
_MOST_AT_ONE = 3  # workers at a lease: a picture that hangs must not take them all
_LONGEST_PAUSE = 30.0
_AGAIN = 1.0  # seconds after which it is looked for slow leases again


@dataclass
class _Running:
    lease: Lease
    since: float
    heard: float  # when it began its case or told its last step
    case: str | None = None


@dataclass(eq=False)
class Driver:
    """Leases that are to be done, and who is at which.

    Attributes:
        leases: what is to be done, in order; what is done already is not among them.
        ready: subjects that need no learning any more.
        foreign: subjects that another engine learns.
    """

    leases: Iterable[Lease]
    ready: Iterable[str] = ()
    foreign: Iterable[str] = ()
    draining: bool = False
    aside: dict[str, str] = field(default_factory=dict)  # by case, the error
    troubles: int = 0  # in a row, of workers rather than cases

    def __post_init__(self) -> None:
        self._ready, self._foreign = set(self.ready), set(self.foreign)
        self._pending = collections.deque(self.leases)
        self._running: dict[str, _Running] = {}
        self._over: set[str] = set()
        self._blocked: list[Lease] = []
        self._failures: collections.Counter[str] = collections.Counter()
        self._steps: collections.Counter[str] = collections.Counter()  # the furthest that was told of each subject
        self._seconds: collections.deque[float] = collections.deque(maxlen=100)
        self._paces: dict[bool, collections.deque[float]] = {
            of_pictures: collections.deque(maxlen=100) for of_pictures in (True, False)
        }
        self._look_at = -math.inf  # until then there is nothing for anybody, unless something changes

    def take(self, worker: str, now: float) -> Lease | None:
        """Return what a worker shall do next; None where there is nothing for it now."""
        if self.draining or worker in self._running or now < self._look_at:
            return None
        for _ in range(len(self._pending)):
            lease = self._pending.popleft()
            if self._is_over(lease):
                continue
            if any(need in self.aside for need in lease.needs):
                self._blocked.append(lease)
                continue
            if lease.needs <= self._ready:
                self._running[worker] = _Running(lease, now, now)
                return lease
            self._pending.append(lease)
        return self._slow(worker, now)

    def _slow(self, worker: str, now: float) -> Lease | None:
        """Return the oldest lease that takes too long, or is silent for too long: whoever is at it may be stuck.

        Each further worker at a lease has twice the time of the one before.
        """
        at: dict[str, list[_Running]] = {}
        for each in self._running.values():
            if not self._is_over(each.lease):
                at.setdefault(each.lease.id, []).append(each)
        longest = max(_LEAST, _SLOW * statistics.median(self._seconds)) if self._seconds else math.inf
        silences = {of_pictures: _silence(paces) for of_pictures, paces in self._paces.items()}
        slow = []
        for those in at.values():
            lease, times = those[0].lease, 2 ** (len(those) - 1)
            silence, limit = silences[bool(lease.numbers)] * times, (longest if lease.numbers else math.inf) * times
            is_slow = all(now - each.heard > silence or now - each.since > limit for each in those)
            if is_slow and len(those) < _MOST_AT_ONE:
                slow.append(those[0])
        if not slow:
            self._look_at = now + _AGAIN
            return None
        lease = min(slow, key=lambda each: each.since).lease
        self._running[worker] = _Running(lease, now, now)
        return lease

    def add(self, lease: Lease) -> None:
        """Take over a subject that another engine was to learn, after this one's own and before its pictures."""
        self._foreign.discard(lease.id)
        lessons = [place for place, each in enumerate(self._pending) if not each.numbers]
        self._pending.insert(lessons[-1] + 1 if lessons else 0, lease)
        self._look_at = -math.inf

    def learned(self, subject: str) -> None:
        """Note that a subject is learned, by whomever."""
        self._ready.add(subject)
        self._foreign.discard(subject)
        self._look_at = -math.inf

    def began(self, worker: str, case: str, now: float) -> None:
        """Note that a worker is at a case."""
        if worker in self._running:
            self._running[worker].case, self._running[worker].heard = case, now

    def progressed(self, worker: str, case: str, now: float, step: int = 0) -> None:
        """Note that a case is done, or which step its learning is at: what ended workers before is not to blame.

        A picture that was there before it was begun is no progress, nor a step that was told before: a lease that can't
        be committed, or a subject that can't get beyond a step, has nothing else.
        """
        running = self._running.get(worker)
        if running is None or running.case != case:
            return
        self._paces[bool(running.lease.numbers)].append(now - running.heard)
        running.heard = now
        if running.lease.numbers:
            running.case = None
        elif step <= self._steps[case]:
            return
        else:
            self._steps[case] = step
        self.troubles = 0
        self._failures.pop(f"end of {case}", None)

    def failed(self, worker: str, case: str, error: str) -> bool:
        """Count a failure; return whether the case is now set aside."""
        self.troubles = 0
        if worker not in self._running or self._is_over(self._running[worker].lease):
            return False  # somebody else was faster, and it did not fail there
        self._failures[case] += 1
        if self._failures[case] < TRIES or case in self.aside:
            return False
        self.aside[case] = error
        return True

    def ended(self, worker: str, lease: Lease, *, committed: bool, now: float) -> bool:
        """Note the end of a lease; return whether that is the first commit of it that is told here."""
        running = self._running.pop(worker, None)
        if lease.id in self._over:
            return False
        if not committed:
            self._requeue(lease)
            return False
        self.troubles = 0
        self._over.add(lease.id)
        if running is not None and lease.numbers:
            self._seconds.append(now - running.since)
        if not lease.numbers:
            self.learned(lease.id)
            if self.aside.pop(lease.id, None) is not None:  # it failed for another worker alone
                self._pending.extend(self._blocked)
                self._blocked.clear()
        return True

    def _requeue(self, lease: Lease) -> None:
        if not self._is_over(lease) and all(each.lease.id != lease.id for each in self._running.values()):
            self._pending.appendleft(lease)
            self._look_at = -math.inf

    def _is_over(self, lease: Lease) -> bool:
        """Whether a lease is committed, or its only case set aside, which is no reason to commit nothing."""
        return lease.id in self._over or lease.sole in self.aside

    def died(self, worker: str, why: str) -> tuple[str | None, float]:
        """Note the end of a worker; return the case that is set aside for it, if any, and how long to wait.

        A worker that ends at the same case for the third time without getting on with it is that case's fault. What
        ends a worker between cases is nobody's, and counts as a trouble.
        """
        running = self._running.pop(worker, None)
        case = None if running is None or self._is_over(running.lease) else running.case
        blamed = None
        if case is None:
            self.troubles += 1
        else:
            self._failures[f"end of {case}"] += 1
            if self._failures[f"end of {case}"] >= TRIES and case not in self.aside:
                self.aside[case], blamed = why, case
        if running is not None:
            self._requeue(running.lease)
        return blamed, self._pause()

    def gave_up(self, worker: str) -> float:
        """Note that a worker can't go on, for no case's fault; return how long to wait before the next one."""
        running = self._running.pop(worker, None)
        if running is not None:
            self._requeue(running.lease)
        self.troubles += 1
        return self._pause()

    def _pause(self) -> float:
        return min(_LONGEST_PAUSE, 0.5 * 2.0 ** min(self.troubles, 10)) if self.troubles else 0.0

    @property
    def blocked(self) -> int:
        """How many pictures wait for a subject that was set aside."""
        waiting = [each for each in self._pending if any(need in self.aside for need in each.needs)]
        return sum(len(each.numbers) for each in (*self._blocked, *waiting))

    @property
    def waits_for(self) -> set[str]:
        """The subjects of other engines that pending leases need."""
        if not self._foreign:
            return set()
        return {need for lease in self._pending for need in lease.needs} & self._foreign

    @property
    def running(self) -> Mapping[str, str]:
        """What each worker is at: the id of its lease."""
        return {worker: each.lease.id for worker, each in self._running.items()}

    @property
    def is_over(self) -> bool:
        """Whether nothing is left that could be given to anybody, and nobody is at work."""
        if any(not self._is_over(each.lease) for each in self._running.values()):
            return False
        return self.draining or all(
            self._is_over(each) or any(need in self.aside for need in each.needs) for each in self._pending
        )


def _silence(paces: Collection[float]) -> float:
    """Return how long nothing may be heard of pictures or steps that usually take so long."""
    least, longest = _SILENCE
    if not paces:
        return longest
    usual = statistics.median(paces)
    return max(least, _SLOW * usual, min(_SILENT * usual, longest))
