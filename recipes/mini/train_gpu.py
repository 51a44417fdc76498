"""Train all of mini in some nine minutes of a GPU: `python recipes/mini/train_gpu.py --seconds 540 --out OUT`.

First encoder and decoder together, if asked for, then text encoder and UNet by CUDA graphs, then the decoder alone on
what the UNet draws. Scenes come from processes beside it. Averaged weights are written every two minutes (`receive.py`
reads them).
"""

import argparse
import math
import time
from collections import deque
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from batches import Pool, Slice, Speller, encoder_of
from crew import Crew
from graph import Trainer, open_trainer
from joint_autoencoder import Finisher, JointTraining, measure, settle, sharpness
from model import WINDOW, Mini
from objective import Objective, schedule_alphas
from receive import write_weights
from sprites import SpriteAtlas
from tokenizer import build_tokenizer
from training_world import TrainingWorld
from vocabulary import lexicon
from world import World

BLOCK = 20
"""Steps that are sent before the host looks at the clock and adds scenes."""


class Run:
    """The stages of one training run, and the clock that they share.

    Attributes:
        plan: the command line.
        pool: encoded scenes, once there are any.
    """

    def __init__(self, plan: argparse.Namespace) -> None:
        self.plan, self.device = plan, plan.device
        torch.manual_seed(plan.seed)
        atlas, backgrounds = SpriteAtlas.load(plan.work / "sprites.safetensors"), np.load(plan.work / "backgrounds.npy")
        self.speller = Speller(build_tokenizer(lexicon(), WINDOW))
        self.crew = Crew(plan.workers, atlas, backgrounds, self.speller, slice_size=plan.slice, seed=plan.seed)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.world = TrainingWorld(atlas, backgrounds, self.device)
        rng, plain = np.random.default_rng(0), World(atlas, backgrounds, self.device)
        self.held_out = plain.render([plain.scene(rng) for _ in range(plan.held_out)], 128).images * 2 - 1
        self.vae = AutoencoderKL.from_pretrained(plan.resume / "vae").float().eval().requires_grad_(False)
        self.vae = self.vae.to(self.device, memory_format=torch.channels_last)
        self.mini = Mini(plan.resume / "mini", self.vae.config.latent_channels)
        self.mini.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
        self.average = deepcopy(self.mini).requires_grad_(False)
        self.alphas = schedule_alphas(self.device)
        self.say(f"ready on {torch.cuda.get_device_name() if self.device == 'cuda' else 'a CPU'}")

    def spent(self) -> float:
        """Seconds since the command began."""
        return time.time() - float(self.plan.began)

    def say(self, text: str) -> None:
        """Print with the time."""
        print(f"[{self.spent():6.1f}] {text}", flush=True)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def save(self) -> None:
        """Write the averaged weights and the autoencoder."""
        write_weights(self.plan.out, self.average, self.vae)
        self.say("weights written")

    # Stages

    def train_autoencoder(self, until: float) -> None:
        """Encoder and decoder together, until a time; the better autoencoder stays."""
        before, begun, said = deepcopy(self.vae), self.spent(), self.spent()
        training = JointTraining(self.vae)
        while (now := self.spent()) < until:
            share = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (now - begun) / (until - begun)))
            pictures = self.pictures(self.crew.take(keep=True))
            for part in pictures.split(self.plan.pictures):
                loss = training.step(part, share)
            if self.spent() - said > self.plan.every / 4:
                said = self.spent()
                speed = training.steps * self.plan.pictures / (self.spent() - begun)
                self.say(f"autoencoder: step {training.steps} loss {float(loss):.4f} {speed:.0f}/s")
        self.wait()
        self.vae = settle(self.vae, before, self.held_out, self.say)
        self.say(f"crew: {len(self.crew.kept)} slices kept, waited {self.crew.seconds_waited:.1f} s for them")

    def pictures(self, drawn: Slice) -> Tensor:
        """A slice's pictures, in -1..1."""
        return self.world.compose(drawn.composition, 128).images * 2 - 1

    def fill_pool(self) -> Pool:
        """Encode what was kept, and more until the pool is full."""
        pool = Pool(self.world, self.vae, self.speller, size=128, capacity=self.plan.pool)
        for drawn in self.crew.kept[-(self.plan.pool // self.plan.slice) :]:
            pool.add(drawn)
        while len(pool) < self.plan.pool:
            pool.add(self.crew.take(keep=True))
        self.wait()
        self.say(f"pool: {len(pool)} scenes, {sum(v.nbytes for v in pool.columns.values()) / 2**30:.1f} GiB")
        return pool

    def trainer(self, pool: Pool, batch: int, *, fuse: bool = True) -> Trainer:
        """A trainer whose step is in a graph, if that can be."""
        plan = self.plan
        objective = Objective(
            self.alphas,
            centre=plan.centre,
            draws=plan.draws,
            grounding=plan.grounding,
            forced=plan.forced,
            averaged=plan.averaged,
        )

        def make(fused: bool) -> Trainer:
            return Trainer(self.mini, self.average, objective, pool, batch=batch, fused=fused)

        return open_trainer(make, self.say, fuse=fuse) if self.device == "cuda" else make(False)

    def train(self, pool: Pool, until: float) -> None:
        """Text encoder and UNet, until a time."""
        trainer, begun = self.trainer(pool, self.plan.batch), self.spent()
        sent: deque[torch.cuda.Event] = deque()
        said = saved = self.spent()
        steps, safe = 0, deepcopy(self.average)
        while (now := self.spent()) < until:
            share = 0.015 + 0.985 * 0.5 * (1 + math.cos(math.pi * (now - begun) / (until - begun)))
            for _ in range(BLOCK):
                trainer.step(self.plan.learning_rate * share * min(1.0, (steps + 1) / self.plan.warm_up))
                steps += 1
            for _ in range(self.plan.fresh):
                pool.add(self.crew.take())
            self.keep_pace(sent)
            if self.spent() - said > (5 if steps < 2000 else self.plan.every):
                speed = steps * self.plan.batch * self.plan.draws / (self.spent() - begun)
                said, parts = self.spent(), {name: float(value) for name, value in trainer.parts.items()}
                told = " ".join(f"{name} {value:.4f}" for name, value in parts.items())
                self.say(f"step {steps} {speed:.0f}/s fresh {pool.put} {told}")
                if not all(map(math.isfinite, parts.values())):
                    self.say("not finite: back to the last good weights")
                    trainer.restart(safe)
                else:
                    safe.load_state_dict(self.average.state_dict())
            if self.spent() - saved > 110:
                saved = self.spent()
                self.save()
        self.wait()
        self.say(f"{steps} steps of {self.plan.batch} captions x {self.plan.draws} noises, {pool.put} scenes")

    def keep_pace(self, sent: deque[torch.cuda.Event]) -> None:
        """Let the host be two blocks ahead of the device, and no more."""
        if self.device != "cuda":
            return
        event = torch.cuda.Event()
        event.record()
        sent.append(event)
        if len(sent) > 2:
            sent.popleft().synchronize()

    def finish_decoder(self, until: float) -> None:
        """The decoder on what the UNet draws, until a time."""
        finisher = Finisher(self.vae, self.average, self.alphas)
        pool = Pool(self.world, self.vae, self.speller, size=128, capacity=self.plan.slice)
        begun, said, steps = self.spent(), self.spent(), 0
        while (now := self.spent()) < until:
            done = (now - begun) / (until - begun)
            pictures = pool.add(self.crew.take()).images * 2 - 1
            for rows in torch.arange(self.plan.slice, device=self.device).split(self.plan.pictures):
                share = 0.05 + 0.95 * min(1, 3 * (1 - done))
                parts = finisher.step(pool.take(rows), pictures[rows], share, sharpen=done > 0.25)
                steps += 1
            if self.spent() - said > self.plan.every:
                said = self.spent()
                self.say(f"decoder: step {steps} " + " ".join(f"{k} {float(v):.4f}" for k, v in parts.items()))
        self.vae.requires_grad_(False)
        gradients = sharpness(self.vae, encoder_of(self.vae), self.held_out)
        self.say(f"decoder: {steps} steps, PSNR {measure(self.vae, self.held_out):.2f} dB, gradients {gradients:.3f}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    here = Path(__file__).parent / "work"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=here, help="where the sprites are")
    parser.add_argument("--resume", type=Path, default=here, help="a folder with mini/ and vae/ to start from")
    parser.add_argument("--out", type=Path, default=here / "gpu")
    parser.add_argument("--seconds", type=float, default=540, help="for all of it")
    parser.add_argument("--began", type=float, default=time.time(), help="when they began to run")
    parser.add_argument("--autoencoder", type=float, default=0, help="seconds for encoder and decoder, first")
    parser.add_argument("--decoder", type=float, default=25, help="seconds for it alone, at the end")
    parser.add_argument("--batch", type=int, default=256, help="captions a step")
    parser.add_argument("--draws", type=int, default=2, help="noises for each caption")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warm-up", type=int, default=400)
    parser.add_argument("--centre", type=float, default=0.6, help="where most timesteps are drawn, in 0..1")
    parser.add_argument("--grounding", type=float, default=0.3)
    parser.add_argument("--forced", type=float, default=0.4, help="share denoised under a layout of the true boxes")
    parser.add_argument("--averaged", type=float, default=0.5, help="share of captions coded as by a residual")
    parser.add_argument("--pool", type=int, default=160_000, help="scenes on the GPU")
    parser.add_argument("--slice", type=int, default=512, help="scenes drawn at a time")
    parser.add_argument("--fresh", type=int, default=2, help=f"slices added after {BLOCK} steps")
    parser.add_argument("--pictures", type=int, default=256, help="pictures a step of the autoencoder")
    parser.add_argument("--held-out", type=int, default=192, help="pictures on which it is measured")
    parser.add_argument("--workers", type=int, default=14)
    parser.add_argument("--every", type=float, default=20, help="seconds between lines")
    parser.add_argument("--seed", type=int, default=51)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def stages(run: Run) -> Iterator[None]:
    """One stage after the other."""
    plan = run.plan
    if plan.autoencoder > 0:
        run.train_autoencoder(run.spent() + plan.autoencoder)
        yield
    run.train(run.fill_pool(), plan.seconds - plan.decoder - 12)
    run.save()
    yield
    if plan.decoder > 0:
        run.finish_decoder(plan.seconds - 12)
        run.save()


def main() -> None:
    """Run all stages."""
    plan = parse_arguments()
    plan.out.mkdir(parents=True, exist_ok=True)
    run = Run(plan)
    for _ in stages(run):
        if run.device == "cuda":
            torch.cuda.empty_cache()
    run.crew.stop()


if __name__ == "__main__":
    main()
