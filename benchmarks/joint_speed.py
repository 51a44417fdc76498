"""Time joint transformers of real size, and what a layout costs on them: `python benchmarks/joint_speed.py`.

Weights are random, made where they are used; nothing is downloaded. For each released model: seconds of a call, as it
is and with a layout in turns, and their ratio; of reading the text, of decoding, and of a picture of the usual steps,
which is their sum with everything on the device; of a step of learning at batch 1; and the most memory of each. A row
is printed as soon as it is measured, and models for which no time is left are named.

`--count` needs no GPU and no memory: it counts the operations that a call sends, as it is and with a layout.
`--tiny` has two heads and a block of each kind, and runs anywhere.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from torch import Tensor

from cones2.attention import unedited
from joint_gain import RANDOM
from joint_memory import MODELS, Model, call_of, fused_attention, made, placed
from layout_cost import Operations
from pairs import Pair, Timing, measure

CALLS = {
    "Stable Diffusion 3 medium": 28,
    "Stable Diffusion 3.5 medium": 40,
    "Stable Diffusion 3.5 large, and Turbo": 28,
}
CALLS |= {"FLUX.1 dev": 28, "FLUX.1 schnell": 4, "Z-Image, and Turbo": 50, "FLUX.2 klein 4B, and base": 100}
"""Of a picture with guidance, as the models' pages have it; klein's base makes two calls a step."""
FEW = {"Stable Diffusion 3.5 large, and Turbo": 4, "Z-Image, and Turbo": 8, "FLUX.2 klein 4B, and base": 4}
"""Of a picture by the distilled one, which reads no negative text: half the rows, where both are in one call."""
COLUMNS = (
    "seconds of a call",
    "with a layout",
    "ratio",
    "GB",
    "reading the text",
    "decoding",
    "a picture",
    "distilled",
    "a step of learning",
    "GB in it",
)


def tiny() -> dict[str, Model]:
    """Return small models, one of each family."""
    shape: Any = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "layers_per_block": 1}
    shape |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    found = {}
    for real in MODELS.values():
        make, tokens, channels = RANDOM[real.family]
        kind: Any = AutoencoderKLFlux2 if channels == 32 else AutoencoderKL
        found[f"{real.family}, tiny"] = dataclasses.replace(
            real,
            transformer=make,
            encoders=(),
            autoencoder=functools.partial(kind, latent_channels=channels, **shape),
            text=(tokens, 64),
            pooled=None if real.pooled is None else 64,
        )
    return found


def operations(model: Model, side: int) -> tuple[int, int]:
    """Count what a call of real size sends to a GPU, in bfloat16: as it is, and with a layout."""
    transformer = made(model.transformer)
    text = torch.zeros(1, *model.text, device="meta", dtype=torch.bfloat16)
    call = call_of(model, model.rows, side, text)
    counts = []
    for block in (contextlib.nullcontext(), placed(model, transformer, text)):
        with torch.no_grad(), block, fused_attention():
            model.velocity(transformer, call)
            with Operations() as found:  # all but a picture's first call are like the second
                model.velocity(transformer, call)
        counts.append(int(found.count))
    return counts[0], counts[1]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where and how often things are timed."""

    device: str
    dtype: torch.dtype
    side: int
    pairs: int

    def done(self) -> None:
        """Wait until the device has ended what it was sent."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    @contextlib.contextmanager
    def most(self, found: list[float]) -> Iterator[None]:
        """Add the most memory within a `with` block, in GB; NaN without a GPU."""
        is_cuda = self.device.startswith("cuda")
        if is_cuda:
            torch.cuda.reset_peak_memory_stats()
        yield
        found.append(torch.cuda.max_memory_allocated() / 1e9 if is_cuda else float("nan"))

    def seconds(self, call: Callable[[], object]) -> float:
        """Return the median seconds of a call, after one that is not counted."""
        found = []
        for _ in range(1 + min(3, self.pairs)):
            began = time.perf_counter()
            call()
            self.done()
            found.append(time.perf_counter() - began)
        return statistics.median(found[1:])

    def row(self, name: str, model: Model) -> str:
        """Measure a model; a picture is the sum of its parts."""
        memory: list[float] = []
        with torch.no_grad():
            reading = sum(self._reading(model, index) for index in range(len(model.encoders)))
            decoding = self._decoding(model)
        transformer = made(model.transformer, self.device, self.dtype)
        text = torch.randn(1, *model.text, device=self.device, dtype=self.dtype)
        with self.most(memory):
            timing = self._calls(model, transformer, text)
        plain, edited = (statistics.median(each) for each in (timing.other, timing.ours))
        ratio = timing.ratio
        with self.most(memory):
            step = self._learning(model, transformer, text)
        pictures = [
            None if calls is None else reading + calls * edited / halves + decoding
            for calls, halves in ((CALLS.get(name), 1), (FEW.get(name), model.rows))
        ]
        spans = f"{ratio.median:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"
        drawn = ["-" if each is None else f"{each:.2f}" for each in pictures]
        cells = [f"{plain:.4f}", f"{edited:.4f}", spans, f"{memory[0]:.1f}", f"{reading:.3f}", f"{decoding:.3f}"]
        return f"| {' | '.join([name, *cells, *drawn, f'{step:.3f}', f'{memory[1]:.1f}'])} |"

    def _calls(self, model: Model, transformer: Any, text: Tensor) -> Timing:
        """Time calls in turns; the mask is made in the first, which is not counted, as once in a picture."""
        call = call_of(model, model.rows, self.side, text)

        @torch.no_grad()
        def edited() -> None:
            model.velocity(transformer, call)
            self.done()

        def plain() -> None:
            with unedited():
                edited()

        with placed(model, transformer, text):
            return measure(Pair("with a layout", "as it is", edited, plain, aim=1.03), self.pairs)

    def _reading(self, model: Model, index: int) -> float:
        encoder = made(model.encoders[index], self.device, self.dtype)
        count = min(model.text[0], getattr(encoder.config, "max_position_embeddings", 512))
        ids = torch.ones(1, count, dtype=torch.long, device=self.device)
        return self.seconds(lambda: encoder(ids))

    def _decoding(self, model: Model) -> float:
        autoencoder = made(model.autoencoder, self.device, self.dtype)
        cells = self.side // 8
        latents = torch.randn(1, model.channels, cells, cells, device=self.device, dtype=self.dtype)
        return self.seconds(lambda: autoencoder.decode(latents))

    def _learning(self, model: Model, transformer: Any, text: Tensor) -> float:
        """Time a step with `save_memory`: forward, backward to the text, activations made again."""
        learned = text.clone().requires_grad_()
        call = call_of(model, 1, self.side, learned)
        transformer.train().enable_gradient_checkpointing()
        try:
            return self.seconds(lambda: model.velocity(transformer, call).float().square().mean().backward())
        finally:
            transformer.eval().disable_gradient_checkpointing()


def count(models: dict[str, Model], side: int) -> None:
    """Print how many operations a layout adds."""
    print(f"| {side} px | operations of a call | with a layout | ratio |\n|{' --- |' * 4}")
    for name, model in models.items():
        plain, edited = operations(model, side)
        print(f"| {name} | {plain:,} | {edited:,} | {edited / plain:.3f} |", flush=True)


def time_all(bench: Bench, models: dict[str, Model], seconds: float) -> list[str]:
    """Print a row for each model for which there is time, and return the names of those that failed."""
    ends, longest, failed = time.monotonic() + seconds, 0.0, []
    print(f"| {bench.side} px, {bench.dtype} | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 1)}", flush=True)
    for name, model in models.items():
        began = time.monotonic()
        if ends - began < longest:
            print(f"no time left for {name}", flush=True)
            continue
        try:
            print(bench.row(name, model), flush=True)
        except Exception:  # such as one that this card can't hold; the others go on
            print(f"{name} failed:\n{traceback.format_exc()}", flush=True)
            failed.append(name)
        gc.collect()
        if bench.device.startswith("cuda"):
            torch.cuda.empty_cache()
        longest = max(longest, time.monotonic() - began)
    return failed


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="models whose names hold this")
    parser.add_argument("--side", type=int, default=1024, help="of the picture, in pixels")
    parser.add_argument("--pairs", type=int, default=9, help="of calls, plain and with a layout")
    parser.add_argument("--seconds", type=float, default=540, help="begin no model that may not end in time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="two heads, a block of each kind")
    parser.add_argument("--count", action="store_true", help="count operations, and time nothing")
    arguments = parser.parse_args()
    models = tiny() if arguments.tiny else MODELS
    models = {name: model for name, model in models.items() if arguments.only.lower() in name.lower()}
    if not models:
        parser.error(f"--only {arguments.only!r} is in no name: expected a part of one of {', '.join(MODELS)}.")
    if arguments.count:
        count(models, arguments.side)
        return
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    bench = Bench(arguments.device, dtype, arguments.side, arguments.pairs)
    if failed := time_all(bench, models, arguments.seconds):
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
