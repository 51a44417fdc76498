"""A pool of encoded scenes with their captions, refilled in slices, and training batches drawn from it."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import safetensors.torch
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor
from torch.nn.functional import conv2d, interpolate
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import CLIPTokenizer

from parts import Autoencoder
from sentences import CODE, WORDS, describe
from vocabulary import CLASSES, COLOURS
from world import MAX_OBJECTS, THUMBNAIL, Composition, Rendered, Scene, Strokes, World, portraits


@dataclass
class Batch:
    """What one step needs.

    Attributes:
        latents: `[batch, channels, height, width]`, scaled.
        masks: `[batch, objects, height, width]`, visible share of each object.
        boxes: `[batch, objects, height, width]`, share of each cell inside the box around what is visible of it.
        input_ids: `[batch, tokens]`.
        nouns: `[batch, objects, tokens]`, 1 at an object's noun.
        thumbnails: `[batch, objects, 2304]`; zero where there is no object.
        coded: `[batch, objects]`, whether the caption has its code.
        labels: `[batch, objects, 3]`, class, colour and pattern to be read off a noun told in words; -100 for none.
        ends: `[batch]`, position of the end token.
        warps: `[batch, objects, 3]`, of each individual.
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
    warps: Tensor = field(default_factory=lambda: torch.zeros(0))


@dataclass(frozen=True)
class Captions:
    """As many captions of each scene, as a `Batch` has them: `[scenes, captions, ...]`."""

    input_ids: Tensor
    nouns: Tensor
    coded: Tensor
    labels: Tensor
    ends: Tensor


@dataclass(frozen=True)
class Slice:
    """Scenes with their captions as numbers, as they come from the processes that draw them.

    Attributes:
        composition: the scenes.
        owners: `[2, objects]`, row and slot of each individual that a code may tell of.
        portraits: those individuals.
        captions: of each scene.
    """

    composition: Composition
    owners: Tensor
    portraits: Strokes
    captions: Captions

    @staticmethod
    def of(scenes: list[Scene], captions: Captions, scene_names: Sequence[str]) -> "Slice":
        """Tell scenes in numbers."""
        owners = [(row, slot) for row, scene in enumerate(scenes) for slot in range(len(scene.objects))]
        placed = [scenes[row].objects[slot] for row, slot in owners]
        told = portraits([one.told or one.instance for one in placed])
        return Slice(Composition.of(scenes, scene_names), torch.tensor(owners).T, told, captions)

    def __len__(self) -> int:
        return len(self.composition.names)

    def to_bytes(self) -> bytes:
        """Write all numbers down, for another process."""
        parts = {"captions": vars(self.captions), "portraits": vars(self.portraits)}
        for number, (rows, strokes) in enumerate(self.composition.slots):
            parts[f"slot{number}"] = {"rows": rows, **vars(strokes)}
        named = {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}
        own = {"names": self.composition.names, "backgrounds": self.composition.backgrounds, "owners": self.owners}
        return safetensors.torch.save({name: value.contiguous() for name, value in (own | named).items()})

    @staticmethod
    def from_bytes(content: bytes) -> "Slice":
        """Read what `to_bytes` wrote."""
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, value in safetensors.torch.load(content).items():
            part, _, key = name.rpartition(".")
            parts[part][key] = value
        own, slots = parts[""], [parts[f"slot{number}"] for number in range(len(parts) - 3)]
        drawn = tuple((slot.pop("rows"), Strokes(**slot)) for slot in slots)
        composition = Composition(own["names"], own["backgrounds"], drawn)
        return Slice(composition, own["owners"], Strokes(**parts["portraits"]), Captions(**parts["captions"]))


class Speller:
    """Writes captions as tensors."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.ids = {word: tokenizer(word)["input_ids"][1] for word in _words(tokenizer)}
        self.start, self.end, self.window = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.model_max_length

    def empty(self, *shape: int) -> Captions:
        """Empty captions."""
        input_ids = torch.full((*shape, self.window), self.end)
        input_ids[..., 0] = self.start
        return Captions(
            input_ids,
            torch.zeros(*shape, MAX_OBJECTS, self.window),
            torch.zeros(*shape, MAX_OBJECTS, dtype=torch.bool),
            torch.full((*shape, MAX_OBJECTS, 3), -100),
            torch.ones(shape, dtype=torch.long),
        )

    def captions(self, scenes: list[Scene], count: int, rng: np.random.Generator) -> Captions:
        """Write `count` random captions of each scene."""
        found = self.empty(len(scenes), count)
        for row, scene in enumerate(scenes):
            for column in range(count):
                caption = describe(scene, rng)
                length = 1 + len(caption.words)
                found.input_ids[row, column, 1:length] = torch.tensor([self.ids[word] for word in caption.words])
                found.ends[row, column] = length
                for slot, (noun, mode) in enumerate(zip(caption.nouns, caption.modes, strict=True)):
                    found.nouns[row, column, slot, [1 + position for position in noun]] = 1
                    found.coded[row, column, slot] = mode == CODE
                    if mode == WORDS:
                        found.labels[row, column, slot] = torch.tensor(_labels(scene, slot))
        return found


class SceneStream(IterableDataset["tuple[list[Scene], Captions]"]):
    """Endless slices of random scenes with captions, each worker's of its own random numbers.

    Attributes:
        slice_size: scenes in a slice.
        captions: of each scene.
        close: few and large objects, as for small pictures.
    """

    def __init__(
        self, world: World, speller: Speller, *, slice_size: int, seed: int, close: bool, captions: int = 4
    ) -> None:
        self.world, self.speller, self.seed = world, speller, seed
        self.slice_size, self.close, self.captions = slice_size, close, captions

    def __iter__(self) -> Iterator[tuple[list[Scene], Captions]]:
        """Draw slices."""
        worker = get_worker_info()
        return self.drawn(np.random.default_rng([self.seed, worker.id if worker else 0]))

    def drawn(self, rng: np.random.Generator) -> Iterator[tuple[list[Scene], Captions]]:
        """The slices that a generator of random numbers gives."""
        while True:
            scenes = [self.world.scene(rng, close=self.close) for _ in range(self.slice_size)]
            yield scenes, self.speller.captions(scenes, self.captions, rng)

    def slices(self, workers: int) -> Iterator[tuple[list[Scene], Captions]]:
        """The same, drawn by as many processes; 0 draws them in this one."""
        ahead = 4 if workers else None
        return iter(DataLoader(self, batch_size=None, num_workers=workers, prefetch_factor=ahead))


Encode = Callable[[Tensor], Tensor]
"""From pictures `[batch, 3, height, width]` in -1..1 to scaled latents."""


class Pool:
    """Encoded scenes in the device's memory; each slice replaces the oldest ones once it is full."""

    def __init__(self, world: World, vae: Autoencoder, speller: Speller, *, size: int, capacity: int) -> None:
        self.world, self.encode, self.size, self.capacity = world, encoder_of(vae), size, capacity
        self.nothing = Captions(*(value.to(world.device) for value in vars(speller.empty(1)).values()))
        self.columns: dict[str, Tensor] = {}
        self.put = 0

    def __len__(self) -> int:
        return min(self.put, self.capacity)

    def refill(self, scenes: list[Scene], captions: Captions) -> None:
        """Render and encode scenes, and keep them with their captions."""
        self.add(Slice.of(scenes, captions, self.world.scene_names))

    @torch.no_grad()
    def add(self, drawn: Slice) -> Rendered:
        """The same of scenes told in numbers, and what was rendered."""
        rendered = self.world.compose(drawn.composition, self.size)
        latents = self.encode(rendered.images * 2 - 1)
        device = latents.device
        thumbnails = torch.zeros(len(drawn), MAX_OBJECTS, 4 * THUMBNAIL**2, device=device)
        rows, slots = drawn.owners.to(device)
        thumbnails[rows, slots] = self.world.thumbnails_of(drawn.portraits).flatten(1)
        warps = torch.zeros(len(drawn), MAX_OBJECTS, 3, device=device)
        warps[rows, slots] = drawn.portraits.numbers[:, -3:].to(device)
        entry = {
            "latents": latents,
            "masks": interpolate(rendered.masks, latents.shape[-2:], mode="area"),
            "boxes": interpolate(bounding_boxes(rendered.masks), latents.shape[-2:], mode="area"),
            "thumbnails": thumbnails,
            "warps": warps,
            **{name: value.to(device) for name, value in vars(drawn.captions).items()},
        }
        rows = (self.put + torch.arange(len(drawn), device=device)) % self.capacity
        for name, value in entry.items():
            if name not in self.columns:
                self.columns[name] = value.new_zeros(self.capacity, *value.shape[1:])
            self.columns[name][rows] = value
        self.put += len(drawn)
        return rendered

    def batch(self, count: int, *, drop: float = 0.1) -> Batch:
        """Draw `count` scenes, each with one of its captions; a share `drop` of them gets the empty caption."""
        return self.take(torch.randint(len(self), (count,), device=self.columns["latents"].device), drop=drop)

    def take(self, rows: Tensor, *, drop: float = 0.0) -> Batch:
        """The scenes at `rows` `[batch]`, as a batch."""
        device, count = rows.device, len(rows)
        column = torch.randint(self.columns["ends"].shape[1], (count,), device=device)
        dropped = torch.rand(count, device=device) < drop
        found = {}
        for name in (one.name for one in fields(Batch)):
            if not hasattr(self.nothing, name):
                found[name] = self.columns[name][rows]
                continue
            told, nothing = self.columns[name][rows, column], getattr(self.nothing, name)
            found[name] = torch.where(dropped.reshape(-1, *(1,) * (told.ndim - 1)), nothing, told)
        return Batch(**found)


def bounding_boxes(masks: Tensor, visible: float = 0.3) -> Tensor:
    """Fill the box around each visible object: 0 or 1, of the masks' shape `[batch, objects, height, width]`."""
    seen = masks > visible
    return (_between(seen.any(3))[:, :, :, None] & _between(seen.any(2))[:, :, None, :]).float()


def _between(seen: Tensor) -> Tensor:
    """True from the first true to the last along the last axis."""
    before, after = seen.int().cummax(-1).values, seen.flip(-1).int().cummax(-1).values.flip(-1)
    return (before * after).bool()


def encoder_of(vae: Autoencoder) -> Encode:
    """The encoder's scaled mean; as one convolution where it is one, which is many times faster on a CPU."""
    resnets = [module for module in vae.encoder.modules() if isinstance(module, ResnetBlock2D)]
    components = None if any(bool(one.conv1.weight.any()) for one in resnets) else patch_components(vae)

    @torch.no_grad()
    def encode(pictures: Tensor) -> Tensor:
        if components is not None:
            return conv2d(pictures, *components, stride=8)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        means = [vae.encode(part).latent_dist.mean for part in pictures.split(128)]
        return torch.cat(means).float().contiguous() * float(vae.config.scaling_factor)

    return encode


@torch.no_grad()
def patch_components(vae: Autoencoder) -> tuple[Tensor, Tensor]:
    """A linear encoder as one convolution: weight `[channels, 3, 8, 8]` and bias, scaling factor included."""
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
