"""Processes that draw scenes and write captions ahead of a GPU, which renders them."""

import multiprocessing
import random
import time
from typing import Any

import numpy as np
import torch

from batches import SceneStream, Slice, Speller
from sprites import SpriteAtlas
from training_world import TrainingWorld


class Crew:
    """Draws slices of scenes in as many processes; begin it before anything is on a GPU.

    Attributes:
        kept: slices that were taken, to be taken again when none is ready.
    """

    def __init__(
        self, workers: int, atlas: SpriteAtlas, backgrounds: np.ndarray, speller: Speller, *, slice_size: int, seed: int
    ) -> None:
        context = multiprocessing.get_context("fork")
        self.queue = context.Queue(8 * workers)
        world = TrainingWorld(atlas, backgrounds)
        self.processes = [
            context.Process(target=_draw, args=(self.queue, world, speller, slice_size, [seed, number]), daemon=True)
            for number in range(workers)
        ]
        for process in self.processes:
            process.start()
        self.kept: list[Slice] = []
        self.seconds_waited = 0.0

    def take(self, *, keep: bool = False) -> Slice:
        """The next slice; one that was kept when none is ready, if there are enough."""
        start = time.monotonic()
        if self.queue.empty() and len(self.kept) > 50:
            return random.choice(self.kept)
        drawn = Slice.from_bytes(self.queue.get())
        self.seconds_waited += time.monotonic() - start
        if keep:
            self.kept.append(drawn)
        return drawn

    def stop(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()


def _draw(queue: Any, world: TrainingWorld, speller: Speller, slice_size: int, seed: list[int]) -> None:
    torch.set_num_threads(1)
    stream = SceneStream(world, speller, slice_size=slice_size, seed=0, close=False)
    for scenes, captions in stream.drawn(np.random.default_rng(seed)):
        # A queue of tensors would open a file for each of them.
        queue.put(Slice.of(scenes, captions, world.scene_names).to_bytes())
