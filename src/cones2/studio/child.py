"""The worker's process as the server has it: started, told, asked, heard and ended."""

import contextlib
import itertools
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from cones2.studio.problems import NotReadyError

Message = dict[str, Any]


class Child:
    """One process after another, of which one lives at a time.

    Each has a number, by which what a dead one said late is told from what the living one says.

    Attributes:
        inbox: what they say, each with the number of who said it; the last is `gone`.
        process: the one that lives; None where there is none.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = json.dumps(settings)
        self.inbox: queue.SimpleQueue[tuple[int, Message]] = queue.SimpleQueue()
        self.process: subprocess.Popen[bytes] | None = None
        self.number = 0
        self._questions: dict[int, Future[Any]] = {}
        self._asked = itertools.count(1)
        self._writing = threading.Lock()

    def start(self) -> None:
        """Start the next process."""
        self.number += 1
        command = [sys.executable, "-P", "-m", "cones2.studio.worker", self._settings]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        reader = threading.Thread(target=self._read, args=(self.process, self.number), daemon=True)
        reader.start()

    def _read(self, process: subprocess.Popen[bytes], number: int) -> None:
        if process.stdout is not None:
            for line in process.stdout:
                try:
                    message = json.loads(line)
                except ValueError:
                    break  # it died amid a line
                if message["is"] == "answer":
                    if (question := self._questions.get(message["ask"])) is not None:
                        question.set_result(message["answer"])
                else:
                    self.inbox.put((number, message))
        self.inbox.put((number, {"is": "gone"}))

    def send(self, message: Mapping[str, Any]) -> None:
        """Tell it something; OSError where it is gone."""
        process = self.process
        if process is None or process.stdin is None:
            raise OSError("there is no worker")
        try:
            with self._writing:
                process.stdin.write(json.dumps(message).encode() + b"\n")
                process.stdin.flush()
        except ValueError as error:  # its pipe was closed in between
            raise OSError("the worker has just ended") from error

    def ask(self, what: str, *, seconds: float, **values: Any) -> Any:
        """Ask it something short, and return the answer; NotReadyError where there is none in time."""
        number, answer = next(self._asked), Future[Any]()
        self._questions[number] = answer
        try:
            self.send({"do": "ask", "ask": number, "what": what, **values})
            return answer.result(timeout=seconds)
        except (TimeoutError, OSError) as error:
            raise NotReadyError("the worker is busy or starting again: ask again in some seconds.") from error
        finally:
            self._questions.pop(number, None)

    def kill(self) -> None:
        """Kill it; that it is gone is heard by its reader."""
        if self.process is not None:
            self.process.kill()

    def reap(self) -> None:
        """Take leave of one that is gone."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
