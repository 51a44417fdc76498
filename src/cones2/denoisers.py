"""How each kind of denoiser is called: what the image reads, how noisy it is, and where image and text stand.

`read_..._call` reads a call that a pipeline makes while it draws; `..._velocity` makes one, for learning.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Complex, Float, Shaped
from torch import Tensor

from cones2.errors import ModelError
from cones2.guidance import level_grids

Text = Float[Tensor, "rows tokens dim"] | list[Float[Tensor, "_ dim"]]
"""The text of each row: one tensor, or a list where rows have as many tokens as they need."""

_Z_IMAGE_MULTIPLE = 32  # Z-Image fills its image and its text up to multiples of it, each at its end


class JointSequence(NamedTuple):
    """Where image and text stand in the one sequence of a joint transformer.

    Attributes:
        image: the position of the image's first token; the others follow row by row.
        text: of the text's first token.
        length: of the whole, with padding and reference images.
        blocks: the numbers of the blocks that read it in this call, in their order.
    """

    image: int
    text: int
    length: int
    blocks: tuple[int, ...]

    @property
    def layers(self) -> int:
        """How many layers of attention read it."""
        return len(self.blocks)

    def lengthened(self, position: int, count: int) -> "JointSequence":
        """Return the same with `count` more tokens before what stood at a position, or at its end."""
        image = self.image + (count if self.image >= position else 0)
        return self._replace(image=image, length=self.length + count)


class DenoiserCall(NamedTuple):
    """What one call of a denoiser says.

    Attributes:
        text: what the image reads.
        time: of each row: 1 is pure noise, 0 the finished picture.
        grids: (height, width) of the image in each level of the denoiser, the finest first.
        sequence: of a joint transformer; None where the image reads the text by cross-attention.
        is_repeated: whether it is one more call of the same step, beside the one that counts.
    """

    text: Text
    time: Float[Tensor, "rows"]
    grids: tuple[tuple[int, int], ...]
    sequence: JointSequence | None = None
    is_repeated: bool = False


class NegativeText(NamedTuple):
    """A subject's negative text, as its encoders read it.

    Attributes:
        whole: all that the denoiser would read of it, were it a prompt.
        shown: (start, stop) of the rows that are read: its words and their end, neither a start nor padding.
    """

    whole: Float[Tensor, "all_tokens dim"]
    shown: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """How many tokens are read."""
        return sum(stop - start for start, stop in self.shown)

    @property
    def tokens(self) -> Float[Tensor, "tokens dim"]:
        """What is read."""
        return self.cut(self.whole)

    def cut(self, rows: Shaped[Tensor, "all_tokens *rest"]) -> Shaped[Tensor, "tokens *rest"]:
        """Return what belongs to the tokens that are read."""
        return torch.cat([rows[start:stop] for start, stop in self.shown])


class TimedAddition(NamedTuple):
    """A vector for each token of the prompt, added in a part of the way from pure noise, 0, to the picture, 1."""

    during: tuple[float, float]
    vector: Float[Tensor, "tokens dim"]


class TextEdit(NamedTuple):
    """What is done to the text of each call: additions some of the time, and negative texts by subject.

    Unconditional rows see a subject's negative text from that subject's region alone; conditional rows never see it.
    """

    additions: tuple[TimedAddition, ...]
    negatives: Mapping[str, NegativeText]

    def apply(self, text: Text, time: Float[Tensor, "rows"], rows: slice | list[int]) -> Text:
        """Return the text to read, with Eq. 6 in a part of the steps; the caller's stays as it is."""
        if isinstance(text, list):
            read = set(range(len(text))[rows] if isinstance(rows, slice) else rows)
            return [
                self.apply(each[None], time[row : row + 1], slice(0, 1))[0] if row in read else each
                for row, each in enumerate(text)
            ]
        text = text.clone()
        for (start, end), vector in self.additions:
            position = 1 - time[rows]
            acts = (position >= start) & (position < end if end < 1 else True)
            text[rows] += acts[:, None, None].to(text) * vector.to(text)
        return text


def unwrapped(module: Any) -> Any:
    """Return the module that `torch.compile` wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def joint_blocks(transformer: Any) -> int:
    """Return how many blocks of a joint transformer read image and text as one sequence; 0 of a UNet."""
    model = unwrapped(transformer)
    return sum(len(getattr(model, name, ())) for name in ("transformer_blocks", "single_transformer_blocks", "layers"))


def read_unet_call(unet: Any, train_steps: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> DenoiserCall:
    """Read a call of a UNet, whose timesteps run to `train_steps`."""
    sample = args[0] if args else kwargs["sample"]
    timestep = args[1] if len(args) > 1 else kwargs["timestep"]
    text = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
    grids = level_grids(sample.shape[2], sample.shape[3], len(unwrapped(unet).config["block_out_channels"]))
    return DenoiserCall(text, _rows_of(timestep, len(sample)) / train_steps, grids)


def read_flux_call(
    transformer: Any, _train_steps: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> DenoiserCall:
    """Read a call of FLUX.1's or FLUX.2's transformer, whose times are fractions of 1; the text comes first.

    Reference images follow the picture; their tokens are told by the first of their numbers, which is 0 in the picture.

    Raises:
        ModelError: it was called otherwise than by diffusers, or keeps keys and values of reference images.
    """
    _check_named("FLUX", args)
    if kwargs.get("kv_cache_mode"):
        raise ModelError(
            "this pipeline keeps the keys and values of reference images, where subjects and layouts have no way in:"
            " use Flux2KleinPipeline."
        )
    hidden, text, ids = kwargs["hidden_states"], kwargs["encoder_hidden_states"], kwargs["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    own = ids[ids[:, 0] == 0]
    height, width = (int(own[:, axis].max()) + 1 for axis in (1, 2))
    if height * width != len(own):
        raise ModelError(f"the image has {len(own)} tokens for a grid of {height}x{width}: expected one picture.")
    if len(text) < len(hidden):  # diffusers gives one text for several pictures
        text = text.expand(len(hidden), -1, -1)
    blocks = tuple(range(joint_blocks(transformer)))
    sequence = JointSequence(text.shape[1], 0, text.shape[1] + hidden.shape[1], blocks)
    return DenoiserCall(text, _rows_of(kwargs["timestep"], len(hidden)), ((height, width),), sequence)


def read_sd3_call(transformer: Any, train_steps: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> DenoiserCall:
    """Read a call of Stable Diffusion 3's transformer, whose timesteps run to `train_steps`; the image comes first.

    Skip-layer guidance calls it once more in a step, without some layers.
    """
    _check_named("Stable Diffusion 3", args)
    hidden, text, model = kwargs["hidden_states"], kwargs["encoder_hidden_states"], unwrapped(transformer)
    height, width = (side // model.config["patch_size"] for side in hidden.shape[2:])
    skipped = set(kwargs.get("skip_layers") or ())
    pixels, blocks = height * width, tuple(n for n in range(joint_blocks(model)) if n not in skipped)
    sequence = JointSequence(0, pixels, pixels + text.shape[1], blocks)
    time = _rows_of(kwargs["timestep"], len(hidden)) / train_steps
    return DenoiserCall(text, time, ((height, width),), sequence, bool(skipped))


def read_z_image_call(
    transformer: Any, _train_steps: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> DenoiserCall:
    """Read a call of Z-Image's transformer, whose times run from 0, pure noise, to 1; the image comes first.

    Raises:
        ModelError: it reads reference images.
    """
    given = dict(zip(("x", "t", "cap_feats"), args, strict=False)) | dict(kwargs)
    images, text = given["x"], given["cap_feats"]
    if isinstance(images[0], list):
        raise ModelError(
            "this call of Z-Image's transformer reads reference images, whose sequence is another one: draw without"
            " subjects and layout, or without these images."
        )
    patch = given.get("patch_size", 2)  # the transformer's own default
    height, width = (side // patch for side in images[0].shape[2:])
    start = _filled_up(height * width)
    length = start + max(_filled_up(len(row)) for row in text)
    sequence = JointSequence(0, start, length, tuple(range(joint_blocks(transformer))))
    return DenoiserCall(text, 1 - _rows_of(given["t"], len(images)), ((height, width),), sequence)


def flux_with_texts(texts: Sequence[NegativeText], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of FLUX.1's or FLUX.2's transformer with more texts behind its own.

    Each token keeps the number that it has in its own text, where there are numbers (`flux_velocity`): going on from
    the last would take FLUX.2 to numbers that it has never seen.
    """
    ids = kwargs["txt_ids"]
    numbers = torch.cat(
        [text.cut(torch.arange(len(text.whole), dtype=torch.long, device=ids.device)) for text in texts]
    )
    own = ids.new_zeros(len(numbers), ids.shape[-1])
    own[:, 3:] = numbers[:, None]
    numbered = torch.cat([ids, own.expand(*ids.shape[:-2], -1, -1)], dim=-2)
    return {**sd3_with_texts(texts, kwargs), "txt_ids": numbered}


def sd3_with_texts(texts: Sequence[NegativeText], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of Stable Diffusion 3's transformer with more texts behind its own."""
    own = kwargs["encoder_hidden_states"]
    extra = [text.tokens.to(own).expand(len(own), -1, -1) for text in texts]
    return {**kwargs, "encoder_hidden_states": torch.cat([own, *extra], dim=1)}


def z_image_with_texts(texts: Sequence[NegativeText], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of Z-Image's transformer whose blocks read more texts behind their sequence.

    Its arguments take none (`z_image_block_text`), but what a ControlNet adds has to be as long: nothing, for these.
    """
    samples, count = kwargs.get("controlnet_block_samples"), sum(text.size for text in texts)
    if not samples:
        return dict(kwargs)
    padded = {place: torch.nn.functional.pad(each, (0, 0, 0, count)) for place, each in samples.items()}
    return {**kwargs, "controlnet_block_samples": padded}


@torch.no_grad()
def z_image_block_text(
    transformer: Any, text: NegativeText
) -> tuple[Float[Tensor, "tokens width"], Complex[Tensor, "tokens phases"]]:
    """Return what Z-Image's blocks of image and text are given of a text, as if it were a whole prompt, and its phases.

    The image's own phases begin where the prompt ends, and its refiner mixes all words of a row, so that a text among
    the arguments would change all of the picture. The refiner knows no time: once a run is enough.
    """
    features = text.whole.to(transformer.cap_pad_token)
    grid, device = (_filled_up(len(features)), 1, 1), features.device
    filled, places, is_filled, *_ = transformer._pad_with_ids(features, grid, (1, 0, 0), device)
    states, phases, mask, *_ = transformer._prepare_sequence(
        [transformer.cap_embedder(filled)], [places], [is_filled], transformer.cap_pad_token, None, device
    )
    for layer in transformer.context_refiner:
        states = layer(states, mask, phases)
    return text.cut(states[0]), text.cut(phases[0])


class FlowCall(NamedTuple):
    """What a joint transformer is asked in learning, in the units in which every family's latents are alike.

    Attributes:
        latents: with noise.
        time: of each row, float32: 1 is pure noise, 0 the photo.
        text: the prompt, one for all rows, as `encode_prompt` gives it.
        pooled: the prompt's summary, where the family has one.
        guidance: the scale that a guidance-distilled model reads.
    """

    latents: Float[Tensor, "rows channels height width"]
    time: Float[Tensor, "rows"]
    text: Float[Tensor, "1 tokens dim"]
    pooled: Float[Tensor, "1 numbers"] | None
    guidance: float


def flux_velocity(transformer: Any, call: FlowCall) -> Float[Tensor, "rows channels height width"]:
    """Return the velocity, noise less photo, that FLUX.1's or FLUX.2's transformer predicts.

    Latents are packed 2 x 2 to a token, row by row. A token of the image is numbered by its row and column; a token of
    the text is not numbered in FLUX.1, and by its place in FLUX.2, which has a fourth axis for it.
    """
    rows, _, height, width = call.latents.shape
    axes = len(transformer.config["axes_dims_rope"])
    places = torch.cartesian_prod(
        *(torch.arange(side // 2, dtype=torch.long, device="cpu") for side in (height, width))
    )
    image_ids = torch.nn.functional.pad(places, (1, axes - 3)).to(call.time)  # float32: numbers reach 511
    text_ids = image_ids.new_zeros(call.text.shape[1], axes)
    text_ids[:, 3:] = torch.arange(len(text_ids), dtype=torch.long, device=text_ids.device)[:, None]
    is_guided = transformer.config["guidance_embeds"]
    given = {} if call.pooled is None else {"pooled_projections": call.pooled.expand(rows, -1)}
    predicted = transformer(
        hidden_states=packed(call.latents),
        timestep=call.time,
        guidance=call.time.new_full((rows,), call.guidance) if is_guided else None,
        encoder_hidden_states=call.text.expand(rows, -1, -1),
        txt_ids=text_ids,
        img_ids=image_ids,
        return_dict=False,
        **given,
    )[0]
    return unpacked(predicted, height, width)


def sd3_velocity(transformer: Any, call: FlowCall) -> Float[Tensor, "rows channels height width"]:
    """Return the velocity, noise less photo, that Stable Diffusion 3's transformer predicts."""
    assert call.pooled is not None  # its pipelines always make it
    rows = len(call.latents)
    velocity: Tensor = transformer(
        hidden_states=call.latents,
        timestep=1000 * call.time,
        encoder_hidden_states=call.text.expand(rows, -1, -1),
        pooled_projections=call.pooled.expand(rows, -1),
        return_dict=False,
    )[0]
    return velocity


def z_image_velocity(transformer: Any, call: FlowCall) -> Float[Tensor, "rows channels height width"]:
    """Return the velocity, noise less photo, that Z-Image's transformer predicts, which gives its negative."""
    frames = list(call.latents[:, :, None].unbind())
    predicted = transformer(frames, 1 - call.time, [call.text[0]] * len(frames), return_dict=False)[0]
    return -torch.stack(predicted)[:, :, 0]


def packed(latents: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows cells numbers"]:
    """Return latents as FLUX's tokens: 2 x 2 cells each, row by row."""
    rows, channels, height, width = latents.shape
    cells = latents.view(rows, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(rows, height * width // 4, 4 * channels)


def unpacked(
    tokens: Float[Tensor, "rows cells numbers"], height: int, width: int
) -> Float[Tensor, "rows channels {height} {width}"]:
    """Return what `packed` was given."""
    cells = tokens.view(len(tokens), height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(len(tokens), -1, height, width)


def _check_named(family: str, args: tuple[Any, ...]) -> None:
    if args:
        raise ModelError(
            f"{family}'s transformer was called with positional arguments: call it with names, as diffusers."
        )


def _filled_up(tokens: int) -> int:
    return -(-tokens // _Z_IMAGE_MULTIPLE) * _Z_IMAGE_MULTIPLE


def _rows_of(timestep: Any, rows: int) -> Float[Tensor, "rows"]:
    times = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1)  # on the host, where it is there: no waiting
    return times.expand(rows)
