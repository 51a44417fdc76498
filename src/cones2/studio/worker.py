"""The worker: the child process that has the model. It takes one job at a time, as JSON lines on its standard input.

What it draws is on the disk before it says so. It answers short questions (tokens of a prompt, which residuals fit)
between the steps of a job, from the thread that reads. When the server is gone, its input ends, and it ends at once.
"""

import json
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cones2.studio.looks import as_webp, keep_picture, look_of

BEAT = 2.0
NICE = 5
_PREVIEW_EVERY = 0.5  # seconds at least between two previews of a job
_PREVIEW_SHARE = 4  # previews take at most this part of the time: one in four

Message = dict[str, Any]


class _Stopped(Exception):  # noqa: N818 - it is no fault
    """The job is to be cancelled."""


class Channel:
    """The way to the server: one JSON object a line. Threads may share it."""

    def __init__(self, file: Any) -> None:
        self._file, self._lock = file, threading.Lock()

    def say(self, what: str, **values: Any) -> None:
        """Send a message; a server that is gone ends the process."""
        line = json.dumps({"is": what, **values}).encode() + b"\n"
        try:
            with self._lock:
                self._file.write(line)
                self._file.flush()
        except OSError:
            os._exit(0)


def main() -> None:
    """Open the model and work until the input ends; `sys.argv` has one JSON object of settings."""
    settings = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not get between the messages
    if hasattr(os, "nice"):  # not on Windows
        os.nice(NICE)
    warnings.simplefilter("ignore")  # but for our own about a job, which are told
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    channel = Channel(out)
    threading.Thread(target=_beat, args=(channel,), daemon=True).start()
    worker = Worker(channel, Path(settings["data"]), Path(settings["library"]))
    reader = threading.Thread(target=_listen, args=(worker,), daemon=True)
    reader.start()
    try:
        worker.open(settings["model"])
    except Exception as error:  # the server says it to the user
        channel.say("unusable", text=str(error) or type(error).__name__)
        os._exit(3)
    while True:
        worker.work(worker.inbox.get())


def _beat(channel: Channel) -> None:
    while True:
        time.sleep(BEAT)
        channel.say("beat")


def _listen(worker: "Worker") -> None:
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if message["do"] == "ask":
            worker.answer(message)
        elif message["do"] in ("cancel", "finish"):
            worker.interrupt(message["job"], message["do"])
        else:
            worker.begin(message)
    os._exit(0)  # the server is gone, and whatever is half done is begun again


class Worker:
    """The model, and the job that it works on."""

    def __init__(self, channel: Channel, data: Path, library: Path) -> None:
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self._channel, self._data, self._library = channel, data, library
        self._pipe: Any = None
        self._job = ""
        self._wish = ""

    def open(self, options: Mapping[str, Any]) -> None:
        """Open the model and tell the server what it is."""
        from cones2.fingerprint import fingerprints
        from cones2.pipeline import Cones2Pipeline

        pipe = Cones2Pipeline.from_pretrained(options["name"], **options["options"])
        pipe.set_progress_bar_config(disable=True)
        self._encoders = fingerprints(pipe.pipeline, pipe.family, pipe.facts.name, hash_weights=False)
        self._pipe = pipe
        self._channel.say("ready", info=_describe(pipe))

    def begin(self, message: Message) -> None:
        """Take a job from the server; it is worked on by the main thread."""
        self._job, self._wish = message["job"], ""
        self.inbox.put(message)

    def interrupt(self, job: str, wish: str) -> None:
        """Let the running job be cancelled, or finish early, at the end of its step."""
        if job == self._job:
            self._wish = wish
            if wish == "cancel" and self._pipe is not None:
                self._pipe.cancel()

    def work(self, message: Message) -> None:
        """Do a job, and say how it ended."""
        from cones2.errors import Cancelled, Cones2Error

        do: Callable[[Message], None] = getattr(self, f"_{message['do']}")
        job = message["job"]
        try:
            with self._told_warnings(job):
                do(message)
        except (_Stopped, Cancelled):
            if self._wish == "cancel":
                self._channel.say("ended", job=job, state="cancelled")
            else:
                self._failed(job, "stopped", "Drawing stopped by itself. Try again.")
        except Cones2Error as error:
            self._failed(job, _kind_of(error), str(error))
        except Exception as error:
            traceback.print_exc()
            is_memory = isinstance(error, MemoryError) or "out of memory" in str(error).lower()
            advice = "Draw a smaller picture." if is_memory else "The server's terminal shows where."
            self._failed(
                job, "out_of_memory" if is_memory else "unexpected", f"{type(error).__name__}: {error} {advice}"
            )
        else:
            self._channel.say("ended", job=job, state="succeeded")

    def _failed(self, job: str, kind: str, detail: str) -> None:
        error = {"type": f"/problems/{kind}", "title": kind.replace("_", " "), "detail": detail[:1000]}
        self._channel.say("ended", job=job, state="failed", error=error)

    @contextmanager
    def _told_warnings(self, job: str) -> Iterator[None]:
        from cones2.errors import Cones2Warning

        told: set[str] = set()

        def tell(message: Warning | str, *_args: object, **_options: object) -> None:
            if str(message) not in told:
                told.add(str(message))
                self._channel.say("warning", job=job, text=str(message)[:1000])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", Cones2Warning)
            warnings.showwarning = tell
            yield

    def _check(self) -> None:
        if self._wish == "cancel":
            raise _Stopped

    # Drawing

    def _draw(self, message: Message) -> None:
        """Draw the seeds of a job that have no picture yet, one after the other."""
        job, request, seeds = message["job"], message["request"], message["request"]["seeds"]
        pipe = self._with_scheduler(request["scheduler"])
        subjects = {name: self._subject(each) for name, each in message["subjects"].items()}
        for index, seed in enumerate(seeds):
            if index in message["done"]:
                continue
            self._check()
            watcher = _Watcher(self._channel, self._check, job, index, len(seeds), request["num_inference_steps"])
            output = pipe(**_arguments(request), subjects=subjects, seed=seed, callback_on_step_end=watcher)
            self._check()
            picture = keep_picture(self._data / "pictures", f"{job}-{index}", output)
            self._channel.say("picture", job=job, seed=seed, index=index, **picture)

    def _with_scheduler(self, name: str | None) -> Any:
        from cones2.redraw import with_scheduler
        from cones2.schedulers import make_scheduler

        pipe = self._pipe
        return pipe if name is None else with_scheduler(pipe, make_scheduler(name, pipe.scheduler))

    @staticmethod
    def _subject(given: Mapping[str, Any]) -> Any:
        from cones2.residual import Residual
        from cones2.subjects import Subject

        residual = Residual.load(Path(given["file"])) if given["file"] else None
        word = residual.class_word if residual else given["class_word"]
        return Subject(word, residual, strength=given["strength"], negative=given["negative"])

    # Subjects

    def _learn(self, message: Message) -> None:
        """Learn a subject."""
        from cones2.studio.teaching import Teacher

        say = self._channel.say
        teacher = Teacher(self._pipe, self._data, self._library, say=say, check=self._check, wish=lambda: self._wish)
        teacher.teach(message["job"], message["request"])

    def _push(self, message: Message) -> None:
        """Push a subject to the Hub."""
        from cones2.hub import push
        from cones2.residual import Residual

        request = message["request"]
        options = {name: request[name] for name in ("license", "private")}
        address = push(Residual.load(Path(message["file"])), request["repository"], name=request["name"], **options)
        self._channel.say("warning", job=message["job"], text=f"It is at {address}.")

    # Questions

    def answer(self, message: Message) -> None:
        """Answer a question of the server; before the model is open, or on any error, with null."""
        answer = None
        try:
            if self._pipe is not None:
                answer = (
                    self._tokens(message["text"]) if message["what"] == "tokens" else self._fitting(message["files"])
                )
        except Exception:  # the page does without an answer
            traceback.print_exc()
        self._channel.say("answer", ask=message["ask"], answer=answer)

    def _tokens(self, text: str) -> list[int]:
        """Return how many tokens a text has, and how many the model reads."""
        from cones2.shared import texts_read_alone

        with texts_read_alone(self._pipe.pipeline) as inner:
            tokenizer = getattr(inner, self._pipe.family.text_parts[0].tokenizer)
            return [len(tokenizer(text, truncation=False, verbose=False)["input_ids"]), tokenizer.model_max_length]

    def _fitting(self, files: list[str]) -> list[bool]:
        from cones2.residual import Residual

        return [Residual.load(Path(file)).fits(self._encoders) for file in files]


class _Watcher:
    """What is called at the end of each step: it says how far it is, shows what there is, and stops."""

    def __init__(
        self, channel: Channel, check: Callable[[], None], job: str, index: int, seeds: int, steps: int
    ) -> None:
        self._channel, self._check, self._job = channel, check, job
        self._before, self._steps, self._all_steps = index * steps, steps, seeds * steps
        self._next = 0.0

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Take diffusers' call at the end of a step."""
        self._check()
        done = -(-(step + 1) * self._steps // pipeline.num_timesteps)  # some schedulers take two calls a step
        self._channel.say("step", job=self._job, step=self._before + done, steps=self._all_steps)
        began = time.monotonic()
        if began >= self._next and step + 1 < pipeline.num_timesteps:
            if (look := look_of(pipeline, tensors["latents"])) is not None:
                self._channel.say("preview", job=self._job, webp=as_webp(look))
            taken = time.monotonic() - began
            self._next = began + max(_PREVIEW_EVERY, _PREVIEW_SHARE * taken)
        return {}


def _arguments(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pipeline's arguments for a request, less its subjects and seeds."""
    from cones2.layout import Layout

    names = ("prompt", "num_inference_steps", "guidance_scale", "layout_scale", "width", "height", "preset")
    layout = Layout.from_json(json.dumps(request["layout"])) if request["layout"] else None
    return {
        **{name: request[name] for name in names},
        "negative_prompt": request["negative_prompt"] or None,
        "layout": layout,
        "measure_attention": request["measure_attention"] and layout is not None,
    }


def _kind_of(error: Exception) -> str:
    from cones2.errors import OutputError

    return "disk_full" if isinstance(error, OutputError) else type(error).__name__.removesuffix("Error").lower()


def _describe(pipe: Any) -> Message:
    """Return what the page needs to know of the model."""
    from cones2.families import native_size
    from cones2.learning.recipe import RECIPES
    from cones2.schedulers import SCHEDULERS

    height, width = native_size(pipe.pipeline)
    facts, factor = pipe.facts, int(pipe.vae_scale_factor)
    multiple = factor * (2 if pipe.family.attention == "joint" else 1)  # those read latents in patches of 2 x 2
    low, high = max(multiple, min(height, width) // 2), 2 * max(height, width)
    guidance = facts.guidance_scale
    return {
        "name": facts.name,
        "drawings_only": facts.draws is not None,
        "family": pipe.family.name,
        "guidance_scale": guidance if guidance is not None else pipe.family.usual_guidance(pipe.pipeline),
        "recipe": facts.recipe or pipe.family.recipe,
        "recipes": list(RECIPES) if pipe.family.velocity is None else ["direct"],
        "size": [width, height],
        "sides": [-(-low // multiple) * multiple, high // multiple * multiple],
        "multiple_of": multiple,
        "knows_class_words": list(facts.class_words) or None,
        "lexicon": sorted(facts.lexicon) if facts.lexicon is not None else None,
        "schedulers": list(SCHEDULERS) if hasattr(pipe.scheduler, "alphas_cumprod") else [],
    }


if __name__ == "__main__":
    main()
