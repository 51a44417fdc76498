"""Changes to what several threads share: an object, a model that one thread may use at a time, libraries' settings."""

import copy
import logging
import os
import reprlib
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from cones2.errors import SettingsError

LARGEST_SEED = 2**63 - 1
MOST_PICTURES = 10_000  # of a call
Undo = Callable[[], None]


@dataclass
class _Change:
    owner: object  # held so that its id stays its own
    undo: Undo
    users: int = 0


COMPILED: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()
"""By a denoiser's id: its compiled calls, for as long as somebody holds them."""
FIXED: "ContextVar[Any]" = ContextVar("cones2's fixed layout", default=None)
"""The layout that this thread's compiled call reads where no compiler is at work: processors serve all threads."""

_LOCK = threading.Lock()
_QUIET = threading.RLock()
_COUNTING = threading.RLock()
_CHANGES: dict[tuple[int, str], _Change] = {}
_LOCKS: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()
_TOKENIZERS: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()


@contextmanager
def shared_change(owner: object, what: str, make: Callable[[], Undo]) -> Iterator[None]:
    """Hold a change of `owner` within a `with` block; blocks that overlap in time share it, and the last undoes it.

    An object may have several changes, each with a name, `what`. `make` makes it and returns what undoes it; if it
    raises, nothing is held.
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


def check_seed(seed: object) -> int:
    """Return a seed, of pictures or of learning; SettingsError where it is not a whole number from 0 to 2^63 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        got = reprlib.repr(seed)
        raise SettingsError(f"seed {got} can't be used: expected a whole number from 0 to {LARGEST_SEED}.")
    return seed


@contextmanager
def model_alone(pipeline: Any) -> Iterator[None]:
    """Keep other threads off a denoiser for a `with` block, where two can't use it at the same time.

    Under offloading it is moved to the device and back, and each call sets a LoRA's scale on its layers.
    """
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    changes = getattr(pipeline, "_all_hooks", None) or getattr(denoiser, "peft_config", None)
    with lock_of(denoiser) if changes else nullcontext():
        yield


@contextmanager
def texts_read_alone(pipeline: Any) -> Iterator[Any]:
    """Yield a copy of a pipeline to tokenize and embed texts with in a `with` block; threads wait for one another.

    A tokenizer keeps the padding of its last call, so that two threads' calls would pad each other's texts, in silence:
    the copy's tokenizers are used nowhere else. A LoRA's scale stands on a text encoder's layers while it embeds.
    """
    parts = {name: part for name, part in pipeline.components.items() if part is not None}
    tokenizers = {name: part for name, part in parts.items() if name.startswith("tokenizer")}
    shared = [*tokenizers.values(), *(part for name, part in parts.items() if name.startswith("text_encoder"))]
    with ExitStack() as stack:
        for part in sorted(shared, key=id):  # in one order, so that no two threads wait for each other
            stack.enter_context(lock_of(part))
        inner = copy.copy(pipeline)
        vars(inner).update({name: _own_tokenizer(tokenizer) for name, tokenizer in tokenizers.items()})
        yield inner


def _own_tokenizer(tokenizer: Any) -> Any:
    """Return the copy of a tokenizer, made anew when tokens were added to it or taken away: copying takes 0.5 s."""
    own = _TOKENIZERS.get(tokenizer)
    if own is None or own.added_tokens_encoder != tokenizer.added_tokens_encoder:
        own = _TOKENIZERS[tokenizer] = copy.deepcopy(tokenizer)
    return own


@contextmanager
def own_settings(*, inference: bool = False) -> Iterator[None]:
    """Set aside what the caller set of PyTorch in this thread, for a `with` block or as a decorator.

    These are autocast, the default device, and inference mode unless that may stay. The default dtype is the whole
    process's: wherever a tensor is made, its dtype is named.
    """
    import torch  # the command line does without it

    with ExitStack() as stack:
        if not inference and torch.is_inference_mode_enabled():  # leaving it turns gradients on
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


_NOTICES = {
    "transformers.utils.import_utils": "torchvision",
    "diffusers.quantizers.torchao.torchao_quantizer": "torchao",
    "torchao": "",
    "torch.utils._pytree": "",
}
"""By logger, what is in a message that it gives while something is imported."""


@contextmanager
def without_import_notices() -> Iterator[None]:
    """Drop what libraries say on being imported of others that are not there, or not for this machine.

    Without torchvision it is transformers that does; with torchao, the extra `quantized`, it and who imports it.
    """

    def is_kept(record: logging.LogRecord) -> bool:
        return _NOTICES[record.name] not in record.getMessage()

    loggers = [logging.getLogger(name) for name in _NOTICES]
    for logger in loggers:
        logger.addFilter(is_kept)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_kept)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars and load reports off the terminal, then put back the user's settings; threads wait in turn."""
    with without_import_notices():
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

    libraries = (transformers_logging, diffusers_logging)
    with _QUIET, without_import_notices():
        saved = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
        try:
            for library in libraries:
                library.set_verbosity(logging.CRITICAL)
                library.disable_progress_bar()
            yield
        finally:
            for library, (verbosity, has_bars) in zip(libraries, saved, strict=True):
                library.set_verbosity(verbosity)
                if has_bars:
                    library.enable_progress_bar()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with `count` threads, or as many as this machine has, until the block ends.

    The count is the whole process's, so that blocks in several threads wait for one another.
    """
    import torch  # the command line does without it

    with _COUNTING:
        before = torch.get_num_threads()
        torch.set_num_threads(possible_threads(count))
        try:
            yield
        finally:
            torch.set_num_threads(before)


def possible_threads(count: int) -> int:
    """Return how many threads `threads` takes."""
    return min(count, processors())


def processors() -> int:
    """Return how many processors this process may use, as far as its system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
