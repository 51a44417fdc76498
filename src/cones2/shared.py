"""Changes to objects that several threads share: made by the first that needs one, undone by the last that leaves."""

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Undo = Callable[[], None]


@dataclass
class _Change:
    owner: object  # held so that its id stays its own
    undo: Undo
    users: int = 0


_LOCK = threading.Lock()
_CHANGES: dict[tuple[int, str], _Change] = {}
_LOCKS: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()


@contextmanager
def shared_change(owner: object, what: str, make: Callable[[], Undo]) -> Iterator[None]:
    """Hold a change of `owner` within a `with` block; blocks that overlap in time share one change.

    Args:
        owner: the object that is changed.
        what: names the change; an object may have several.
        make: makes the change and returns what undoes it. If it raises, nothing is held.
    """
    key = id(owner), what
    with _LOCK:
        if key not in _CHANGES:
            _CHANGES[key] = _Change(owner, make())
        _CHANGES[key].users += 1
    try:
        yield
    finally:
        with _LOCK:
            change = _CHANGES[key]
            change.users -= 1
            if not change.users:
                del _CHANGES[key]
                change.undo()


def lock_of(owner: Any) -> Any:
    """Return the one lock, which a thread may take again, of a model that can't be used by two threads at once."""
    with _LOCK:
        return _LOCKS.setdefault(owner, threading.RLock())
