"""Server-sent events: every stream gets a snapshot, then what changed; one that reads slowly gets less, not later.

Changes wait in a dict by what they are about, so that a newer one takes the place of an older one. What waits for a
client is bounded by the number of jobs and pictures, however long it does not read.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, NamedTuple

_SILENCE = 15.0  # seconds after which a comment shows that the stream is alive


class Change(NamedTuple):
    """What a stream sends: the journal's number where it is in there, and the job that it is about."""

    event: str
    own: bytes
    others: bytes
    number: int | None = None
    job: str = ""
    client: str | None = None
    is_last: bool = False

    def lines(self, client: str) -> bytes:
        """Return the event as a client reads it."""
        number = b"" if self.number is None else b"id: %d\n" % self.number
        data = self.own if self.client == client else self.others
        return b"%sevent: %s\ndata: %s\n\n" % (number, self.event.encode(), data)


def change(event: str, data: Mapping[str, Any], *, client: str | None = None, **more: Any) -> Change:
    """Make a change of its JSON; `mine` in it is true for `client` alone."""
    others = json.dumps(data).encode()
    own = json.dumps({**data, "mine": True}).encode() if client is not None else others
    return Change(event, own, others, client=client, **more)


class Stream:
    """What waits for one client."""

    def __init__(self, client: str, job: str | None) -> None:
        self.client, self.job = client, job
        self._waiting: dict[tuple[str, str], Change] = {}
        self._filled = asyncio.Event()
        self.is_closed = False

    def put(self, key: tuple[str, str], change: Change) -> None:
        """Let a change wait, in place of an older one about the same; from the loop's thread."""
        if self.job is None or change.job in ("", self.job):
            self._waiting.pop(key, None)
            self._waiting[key] = change
            self._filled.set()

    def close(self) -> None:
        """End the stream."""
        self.is_closed = True
        self._filled.set()

    async def read(self) -> AsyncIterator[bytes]:
        """Yield what waits, all at once; a stream of one job ends with it."""
        while not self.is_closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SILENCE):
                    await self._filled.wait()
            self._filled.clear()
            changes, self._waiting = list(self._waiting.values()), {}
            yield b"".join(each.lines(self.client) for each in changes) or b": alive\n\n"
            if self.job is not None and any(each.is_last for each in changes):
                return


class Broker:
    """Takes changes from any thread to the streams of the server's loop."""

    def __init__(self) -> None:
        self._streams: set[Stream] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Name the loop in which streams are read."""
        self._loop = loop

    def publish(self, change: Change, about: str) -> None:
        """Send a change to all streams; the one that waits for `about` under the same event gives way."""
        if self._loop is not None and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # closed meanwhile
                self._loop.call_soon_threadsafe(self._put, (change.event, about), change)

    def _put(self, key: tuple[str, str], change: Change) -> None:
        for stream in self._streams:
            stream.put(key, change)

    @contextlib.contextmanager
    def stream(self, client: str, job: str | None = None) -> Iterator[Stream]:
        """Open a stream for a `with` block, of all jobs or of one."""
        opened = Stream(client, job)
        self._streams.add(opened)
        try:
            yield opened
        finally:
            self._streams.discard(opened)

    async def wait_for_end(self, job: str, seconds: float, has_ended: Callable[[], bool]) -> None:
        """Wait until a job has ended, at most so many seconds; `has_ended` is asked once it can't be missed."""
        with self.stream("", job) as stream, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                if not has_ended():
                    async for _ in stream.read():
                        pass

    def close(self) -> None:
        """End all streams, from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        for stream in self._streams:
            stream.close()
