"""Changes to objects that several threads share: made by the first that needs one, undone by the last that leaves."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Undo = Callable[[], None]


@dataclass
class _Change:
    owner: object  # held so that its id stays its own
    undo: Undo
    users: int = 0


_LOCK = threading.Lock()
_CHANGES: dict[tuple[int, str], _Change] = {}


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
