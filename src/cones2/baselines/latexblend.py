"""LaTexBlend: keys and values of a subject's noun, learned apart and written over those of a plain prompt."""

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pydantic
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step
from cones2.baselines.custom_diffusion import keys_and_values, set_up_words
from cones2.baselines.setup import Drawer, Reader, as_tensors, combined, loaded
from cones2.baselines.stored import Tensors
from cones2.baselines.trainer import Training, denoiser_with, materials_of, train
from cones2.baselines.twins import pipeline_with, trainable_twin, twin_of, unwrapped_pipeline
from cones2.captions import find_class_word, indefinite_article, takes_article
from cones2.errors import ResidualError, check_fields
from cones2.prompts import parse_prompt, token_span, tokenize_prompt
from cones2.shared import own_settings
from cones2.subjects import Subject

SETTINGS = Training(steps=1500, batch_size=2, learning_rate=1e-5, prior_weight=0.0, views_per_photo=4)
"""Its paper's steps and rate, those for two GPUs."""


@dataclass(frozen=True, kw_only=True)
class LaTexBlend:
    """LaTexBlend (CVPR 2025), from its description; its repository has no licence, and nothing of it is here.

    Keys and values of the text, and a new word V*, are trained under "photo of V* CLASS", where only the rows of "V*
    CLASS" come from the trained weights: all others are those that the untrained ones make of "photo of a CLASS". What
    is kept is the bank: for each layer, the keys and values at the class word. To draw, they are written over those of
    a plain prompt at the subject's span, in the conditional rows, while less than `until` of the noise is left.

    Attributes:
        training: how long and how fast; the class needs no pictures, since the other rows can't change.
        until: of the timesteps, counted from the finished picture: the noisiest steps draw the plain class.
    """

    training: Training = SETTINGS
    until: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.9
    name: ClassVar[str] = "latexblend"
    scope: ClassVar[Scope] = "subject"

    def __post_init__(self) -> None:
        check_fields(self, "LaTexBlend")

    @own_settings()
    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        """Return a generator of steps, as `Rival.learn`."""
        setup = set_up_words(self, pipeline, lessons, seed)
        own, [(name, lesson)] = setup.pipeline, lessons.items()
        word = lesson.class_word
        article = indefinite_article(word) if takes_article(word) else "the"  # stands where V* does
        caption, plain = f"photo of {setup.texts[name]}", f"photo of {article} {word}"
        reader = Reader(own, setup.rows)
        materials = materials_of(own, lessons, {name: [caption]}, self.training, seed)
        unet, weights = trainable_twin(own, keys_and_values(own.unet))
        start, stop = token_span(reader.tokenizer, caption, *find_class_word(caption, setup.texts[name]))
        trained = torch.zeros(int(reader.tokenizer.model_max_length), 1, dtype=torch.bool, device=own._execution_device)
        trained[start:stop] = True
        untrained = reader.embed_once([plain])
        for key, weight in weights.items():
            frozen = F.linear(untrained, weight.detach().clone())
            unet.get_submodule(key.removesuffix(".weight")).register_forward_hook(_spliced(trained, frozen))
        assert reader.table is not None  # V* is a new word
        reader.table.rows.requires_grad_()
        noun = slice(stop - _tokens_of(reader.tokenizer, word), stop)

        def read() -> Tensors:
            with torch.no_grad():
                states = reader.embed([caption])[0, noun]
                bank = {f"{name}/{key}": F.linear(states, weight).cpu() for key, weight in weights.items()}
            words = {name: word}
            return Tensors(self.name, words, words, bank)

        groups: list[dict[str, Any]] = [{"params": list(weights.values())}]
        groups += [{"params": [reader.table.rows], "weight_decay": 0.0}]
        denoiser = denoiser_with(own, unet)
        return train(denoiser, materials, reader.embed, groups, self.training, seed=seed, read=read)

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw with the bank."""
        yield blending(unwrapped_pipeline(pipeline), as_tensors(self, learned), self.until)


def _spliced(trained: Bool[Tensor, "tokens 1"], frozen: Float[Tensor, "1 tokens inner"]) -> Any:
    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001  # a hook's arguments
        return torch.where(trained, output, frozen)

    return hook


def _tokens_of(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


@dataclass(eq=False)
class Blend:
    """What the layers of one UNet write over at present.

    Attributes:
        spans: by subject, the tokens of its mentions.
        rows: which rows of the running call read the prompt; None while the plain class is drawn.
    """

    spans: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    rows: Bool[Tensor, "rows"] | None = None


class Blended(torch.nn.Module):
    """A layer that makes keys or values of a text, and writes a bank's rows over some of them."""

    def __init__(self, inner: Any, bank: Mapping[str, Float[Tensor, "own inner"]], blend: Blend) -> None:
        super().__init__()
        self.inner, self._bank, self._blend = inner, bank, blend

    def forward(self, text: Float[Tensor, "rows tokens dim"]) -> Float[Tensor, "rows tokens inner"]:
        """Return keys or values."""
        made: Tensor = self.inner(text)
        if self._blend.rows is None:
            return made
        made = made.clone()
        for name, spans in self._blend.spans.items():
            for start, stop in spans:
                made[self._blend.rows, start:stop] = self._bank[name].to(made)
        return made


def blending(pipeline: Any, kept: Tensors, until: float) -> Drawer:
    """Return what draws with a bank.

    Raises:
        ResidualError: the bank does not fit this UNet.
    """
    unet, blend = twin_of(pipeline.unet), Blend()
    steps = int(pipeline.scheduler.config.num_train_timesteps)
    for key in keys_and_values(unet):
        layer, _, part = key.removesuffix(".weight").rpartition(".")
        inner = unet.get_submodule(f"{layer}.{part}")
        bank = {
            name: kept.tensors.get(f"{name}/{key}", torch.empty(0, dtype=torch.float32, device="cpu"))
            for name in kept.texts
        }
        for name, rows in bank.items():
            count = _tokens_of(pipeline.tokenizer, kept.class_words[name])
            if rows.shape != (count, inner.out_features):
                raise ResidualError(f"the bank of {name!r} does not fit {key}: learn it on this model.")
        setattr(unet.get_submodule(layer), part, Blended(inner, bank, blend))

    def before(module: Any, args: Any, options: Any) -> None:  # noqa: ARG001  # a hook's arguments
        time = args[1] if len(args) > 1 else options["timestep"]
        text = args[2] if len(args) > 2 else options["encoder_hidden_states"]
        acts = float(torch.as_tensor(time).flatten()[0]) / steps < until
        blend.rows = (text == text[-1]).flatten(1).all(1) if acts else None  # diffusers puts the prompt's rows last

    unet.register_forward_pre_hook(before, with_kwargs=True)
    made = pipeline_with(pipeline, unet=unet)
    for name, text in kept.texts.items():
        made.load_subject(name, Subject(text))
    tokenizer = copy.deepcopy(pipeline.tokenizer)

    def find_spans(prompt: str) -> None:
        blend.spans = tokenize_prompt(parse_prompt(prompt, kept.texts), tokenizer).spans

    return Drawer(made, before=find_spans)
