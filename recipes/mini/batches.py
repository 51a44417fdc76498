"""A pool of encoded scenes, refilled in slices, and training batches drawn from it."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import conv2d, interpolate
from transformers import CLIPTokenizer

from sentences import CODE, WORDS, describe
from vocabulary import CLASSES, COLOURS
from world import MAX_OBJECTS, Scene, World


@dataclass
class Batch:
    """What one step needs.

    Attributes:
        latents: `[batch, channels, height, width]`, scaled.
        masks: `[batch, objects, height, width]`, visible share of each object.
        boxes: `[batch, objects, height, width]`, share of each cell inside the box around what is visible of it.
        input_ids: `[batch, tokens]`.
        nouns: `[batch, objects, tokens]`, 1 at an object's noun.
        thumbnails: `[batch, objects, 2304]`, zero where the caption has no code for that object.
        coded: `[batch, objects]`, whether it has.
        labels: `[batch, objects, 3]`, class, colour and pattern to be read off a noun told in words; -100 for none.
        ends: `[batch]`, position of the end token.
    """

    latents: Tensor
    masks: Tensor
    boxes: Tensor
    input_ids: Tensor
    nouns: Tensor
    thumbnails: Tensor
    coded: Tensor
    labels: Tensor
    ends: Tensor


class Pool:
    """Encoded scenes in memory; each step replaces a few of them."""

    def __init__(self, world: World, vae: AutoencoderKL, tokenizer: CLIPTokenizer, *, size: int, seed: int) -> None:
        self.world, self.size = world, size
        self.components, self.offset = patch_components(vae)
        self.rng = np.random.default_rng(seed)
        self.ids = {word: ids[1] for word, ids in ((w, tokenizer(w)["input_ids"]) for w in _words(tokenizer))}
        self.start, self.end, self.window = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length
        self.scenes: list[Scene] = []
        self.latents: list[Tensor] = []
        self.masks: list[Tensor] = []
        self.boxes: list[Tensor] = []
        self.thumbnails: list[Tensor] = []
        self.next = 0

    @torch.no_grad()
    def refill(self, count: int, capacity: int) -> None:
        """Render and encode `count` new scenes; the oldest make room once there are `capacity`."""
        scenes = [self.world.scene(self.rng, close=self.size < 128) for _ in range(count)]
        rendered = self.world.render(scenes, self.size)
        latents = conv2d(rendered.images * 2 - 1, self.components, self.offset, stride=8)
        masks = interpolate(rendered.masks, latents.shape[-2:], mode="area")
        boxes = interpolate(bounding_boxes(rendered.masks), latents.shape[-2:], mode="area")
        thumbnails = self.world.thumbnails([placed.instance for scene in scenes for placed in scene.objects]).flatten(1)
        counts = [len(scene.objects) for scene in scenes]
        for row, part in enumerate(thumbnails.split(counts)):
            self._put((scenes[row], latents[row], masks[row], boxes[row], part), capacity)

    def _put(self, entry: tuple[Scene, Tensor, Tensor, Tensor, Tensor], capacity: int) -> None:
        columns = (self.scenes, self.latents, self.masks, self.boxes, self.thumbnails)
        if len(self.scenes) < capacity:
            for column, value in zip(columns, entry, strict=True):
                column.append(value)
            return
        for column, value in zip(columns, entry, strict=True):
            column[self.next % capacity] = value
        self.next += 1

    def batch(self, count: int, *, drop: float = 0.1) -> Batch:
        """Draw `count` scenes with fresh captions; a share `drop` of them gets the empty caption."""
        rows = self.rng.integers(len(self.scenes), size=count).tolist()
        device = self.latents[0].device
        input_ids = torch.full((count, self.window), self.end, dtype=torch.long)
        nouns = torch.zeros(count, MAX_OBJECTS, self.window)
        thumbnails = torch.zeros(count, MAX_OBJECTS, self.thumbnails[0].shape[1], device=device)
        coded = torch.zeros(count, MAX_OBJECTS, dtype=torch.bool)
        labels = torch.full((count, MAX_OBJECTS, 3), -100, dtype=torch.long)
        ends = torch.ones(count, dtype=torch.long)
        input_ids[:, 0] = self.start
        for row, source in enumerate(rows):
            if self.rng.random() < drop:
                continue
            scene = self.scenes[source]
            caption = describe(scene, self.rng)
            input_ids[row, 1 : 1 + len(caption.words)] = torch.tensor([self.ids[word] for word in caption.words])
            ends[row] = 1 + len(caption.words)
            for slot, (noun, mode) in enumerate(zip(caption.nouns, caption.modes, strict=True)):
                nouns[row, slot, [1 + position for position in noun]] = 1
                if mode == CODE:
                    coded[row, slot] = True
                    thumbnails[row, slot] = self.thumbnails[source][slot]
                elif mode == WORDS:
                    labels[row, slot] = torch.tensor(_labels(scene, slot))
        latents = torch.stack([self.latents[source] for source in rows])
        masks = torch.stack([self.masks[source] for source in rows])
        boxes = torch.stack([self.boxes[source] for source in rows])
        moved = [tensor.to(device) for tensor in (input_ids, nouns, thumbnails, coded, labels, ends)]
        return Batch(latents, masks, boxes, *moved)


def bounding_boxes(masks: Tensor, visible: float = 0.3) -> Tensor:
    """Fill the box around each visible object: 0 or 1, of the masks' shape `[batch, objects, height, width]`."""
    seen = masks > visible
    return (_between(seen.any(3))[:, :, :, None] & _between(seen.any(2))[:, :, None, :]).float()


def _between(seen: Tensor) -> Tensor:
    """True from the first true to the last along the last axis."""
    before, after = seen.int().cummax(-1).values, seen.flip(-1).int().cummax(-1).values.flip(-1)
    return (before * after).bool()


@torch.no_grad()
def patch_components(vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """The encoder as one convolution, which it is: weight `[channels, 3, 8, 8]` and bias, scaling factor included.

    Encoding with it is many times faster than going through the encoder's own layers.
    """
    device = vae.encoder.conv_in.weight.device
    basis = torch.eye(3 * 8 * 8, device=device).reshape(-1, 3, 8, 8)
    patches = torch.cat([torch.zeros_like(basis[:1]), basis])
    values = vae.double().encode(patches.double()).latent_dist.mean[:, :, 0, 0] * vae.config.scaling_factor
    vae.float()
    weight = (values[1:] - values[:1]).T.reshape(-1, 3, 8, 8)
    return weight.float(), values[0].float()


def _labels(scene: Scene, slot: int) -> list[int]:
    instance = scene.objects[slot].instance
    colour = instance.colour_word
    return [instance.class_index, len(COLOURS) if colour is None else list(COLOURS).index(colour), instance.pattern]


def _words(tokenizer: CLIPTokenizer) -> list[str]:
    return [piece.removesuffix("</w>") for piece in tokenizer.get_vocab() if piece.endswith("</w>")]


LABEL_SIZES = (len(CLASSES), len(COLOURS) + 1, 4)
