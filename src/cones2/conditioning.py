"""The one path from a prompt to a picture: subjects and a layout put into a diffusers pipeline for a `with` block.

`conditioned` lets the pipeline embed the prompt as it always does, adds the residuals (arXiv:2305.19327, Eq. 6), and
edits the attention of its denoiser (Eq. 7) until the block ends. The sampling loop is the pipeline's own.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cones2.attention import edited_attention, running_edit
from cones2.denoisers import NegativeText, TextEdit, TimedAddition
from cones2.errors import LayoutError, ModelError, PromptError, ResidualMismatchError, SettingsError, counted
from cones2.families import Family, TextPart, family_of, first_rows, laid_out
from cones2.fingerprint import fingerprints
from cones2.layout import Layout
from cones2.prompts import (
    OTHER_TEXTS,
    Mention,
    ParsedPrompt,
    TokenizedPrompt,
    check_no_weights,
    in_chat,
    parse_prompt,
    plain_text,
    tokenize_prompt,
    words_and_end,
)
from cones2.run import LayoutSettings, Run
from cones2.shared import COMPILED, own_settings, texts_read_alone
from cones2.subjects import Subject, as_subjects

__all__ = ["LayoutSettings", "conditioned"]


@contextmanager
def conditioned(
    pipeline: Any,
    prompt: str,
    *,
    subjects: Mapping[str, Any] | None = None,
    layout: Any = None,
    negative_prompt: str | None = None,
    guidance_scale: float | None = None,
    layout_settings: LayoutSettings | None = None,
    meter: bool = False,
    force: bool = False,
    **encoding: Any,
) -> Iterator["Inputs"]:
    """Put subjects and a layout into a diffusers pipeline within a `with` block; yield the arguments to call it with.

    On exit, also after an error, the pipeline is as it was, its attention processors the same objects. Text-to-image,
    img2img, inpainting and ControlNet pipelines work, with LoRA loaded, compiled, and with model offloading.

    Args:
        pipeline: a diffusers pipeline of a known family.
        prompt: one text, with each subject's name as a placeholder: `"a {rex} on the beach"`.
        subjects: by name: a `Subject`, a `Residual`, or the class word of an untaught one. Those that the prompt does
            not mention take no part.
        layout: where subjects belong: a `Layout` or what `Layout.of` takes; None leaves that to the model.
        negative_prompt: what the picture should not show.
        guidance_scale: classifier-free guidance; None is the family's usual one.
        layout_settings: how the layout acts.
        meter: whether to measure where the attention to each subject goes; it needs a layout.
        force: use residuals of another text encoder of the same width, with a warning.
        **encoding: what else the pipeline's `encode_prompt` takes, such as `clip_skip`; of FLUX.1, `true_cfg_scale`,
            which is then among the arguments that are yielded.

    Yields:
        A dict to call the pipeline with, `pipeline(**inputs)`: the embedded texts and the guidance scale; for several
        pictures in one call, `pipeline(**inputs.for_pictures(2))`. What the attention meter found is in its
        `attention()` when the pipeline has run.

    Raises:
        ModelError: the pipeline is of no known family, lacks something, or something else edits its attention; or
            another thread is in a block on the same pipeline.
        PromptError: prompt and subjects do not match, or the prompt is too long or no single text.
        LayoutError: a region is for no subject of the prompt, or nothing of it can be seen.
        ResidualMismatchError: a residual was learned on another text encoder.
        SettingsError: a setting can't be used; within the block, the denoiser reads other texts than these.

    Example:
        ```python
        with cones2.conditioned(pipeline, "a {rex} and a {cup}", subjects=subjects, layout=layout) as inputs:
            image = pipeline(**inputs, image=photo, strength=0.6).images[0]
        ```
    """
    pipeline = getattr(pipeline, "pipeline", pipeline)  # of a Cones2Pipeline
    family, settings = family_of(pipeline), layout_settings or LayoutSettings()
    scale = family.usual_guidance(pipeline) if guidance_scale is None else guidance_scale
    given = as_subjects(subjects or {})
    class_words = {name: subject.class_word for name, subject in given.items()}
    text = parse_prompt(one_text("prompt", prompt), class_words)
    given = {mention.name: given[mention.name] for mention in text.mentions}
    negative = one_text("negative_prompt", negative_prompt or "")
    check_no_weights(negative)
    placed = None if layout is None else Layout.of(layout)
    true_scale = encoding.pop(family.true_guidance, None) if family.true_guidance else scale
    _check_layout(placed, given)
    _check_guidance(pipeline, family, given, true_scale)
    with ExitStack() as stack:
        stack.enter_context(_alone(pipeline))
        plainly = own_settings(inference=True)
        with plainly, texts_read_alone(pipeline) as reader, torch.no_grad(), ExitStack() as after:
            after.callback(pipeline.maybe_free_model_hooks)  # as each call of a pipeline does
            check_residuals(reader, family, given, force=force)
            options = _encode_options(reader, family, encoding, has_subjects=bool(given or placed))
            encoder = PromptEncoder(reader, family, options, scale)
            inputs = encoder.encode(text, plain_text(negative))
            tokens = encoder.tokenize(prompt, class_words)
            embedded = inputs["prompt_embeds"][0][None]  # also of a list
            always = {name: subject for name, subject in given.items() if subject.is_always}
            taught = add_residuals(embedded, family, tokens, always)  # the others come and go: `denoisers.TextEdit`
            inputs["prompt_embeds"] = [taught[0]] if isinstance(inputs["prompt_embeds"], list) else taught
            edit = _text_edit(encoder, tokens, embedded, given)
        if scale is not None:
            inputs["guidance_scale"] = scale
        if family.true_guidance and true_scale is not None:
            inputs[family.true_guidance] = true_scale
            if edit and edit.negatives:
                inputs.setdefault("negative_prompt", "")  # with none at all there is no unconditional call
        run = Run(pipeline, family, inputs, placed, _layout_spans(family, tokens), settings, edit, meter)
        denoiser = getattr(pipeline, family.denoiser)
        if compiled := COMPILED.get(id(denoiser)) if run.can_be_compiled else None:
            compiled.check(pipeline, family)
        if run.acts:
            _check_scheduler(pipeline, family)
            run.check_levels(denoiser)
        if run.acts or compiled:
            instead = (lambda *call: compiled.call(*call, run.tensors())) if compiled else None
            stack.enter_context(edited_attention(denoiser, family, run, instead))
        if edit and edit.negatives and family.block_text:
            from cones2.negatives import behind_blocks  # drawing does without

            stack.enter_context(behind_blocks(denoiser, lambda: _behind(denoiser)))
        yield Inputs(run)


def _behind(denoiser: Any) -> tuple[Tensor, Tensor] | None:
    edit = running_edit(denoiser)
    return edit.behind() if isinstance(edit, Run) else None


_TEXTS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


class Inputs(dict[str, Any]):
    """The arguments to call a pipeline with, and what is known of the run."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.inputs)
        self.run = run

    def for_pictures(self, count: int) -> dict[str, Any]:
        """Return the arguments for several pictures: one pipeline draws one for each text that is given embedded."""
        if self.run.family.repeats_text or count == 1:
            return {**self, "num_images_per_prompt": count}
        texts = {name: text.repeat(count, *[1] * (text.ndim - 1)) for name, text in self.items() if name in _TEXTS}
        return {**self, **texts}

    def attention(self) -> Any:
        """Return what the attention meter found, picture by picture; empty without a meter."""
        return self.run.meter.read() if self.run.meter else ()


def add_residuals(
    embeddings: Float[Tensor, "1 tokens dim"],
    family: Family,
    tokens: Sequence[TokenizedPrompt],
    subjects: Mapping[str, Subject],
) -> Float[Tensor, "1 tokens dim"]:
    """Return E(prompt)[span] + strength · Δ, at every mention (arXiv:2305.19327, Eq. 6).

    `tokens` has the prompt as each text part reads it.
    """
    for name, subject in subjects.items():
        if subject.residual is None:
            continue
        vectors = [subject.residual.part(part.encoder).vector.to(embeddings) for part in family.text_parts]
        for vector, prompt in zip(vectors, tokens, strict=True):
            for start, stop in prompt.spans[name]:
                _check_tokens(subject, len(vector), stop - start)
        scaled = [subject.strength * vector for vector in vectors]
        embeddings = embeddings + laid_out(embeddings, family, tokens, name, scaled)
    return embeddings


def check_residuals(pipeline: Any, family: Family, subjects: Mapping[str, Subject], *, force: bool = False) -> None:
    """Check that residuals fit, by the encoders' weights only where their probes differ: these take a second to read.

    Raises:
        ModelError: an encoder's weights are not there to be checked.
        ResidualMismatchError: one does not fit.
    """
    residuals = [subject.residual for subject in subjects.values() if subject.residual is not None]
    if not residuals:
        return
    name = str(pipeline.name_or_path or type(pipeline).__name__)
    encoders = [getattr(pipeline, part.encoder) for part in family.text_parts]
    if any(weight.is_meta for encoder in encoders for weight in encoder.parameters()):
        raise ModelError(
            f"{name} has a text encoder without its weights, so no residual can be checked against it: instead of"
            " enable_sequential_cpu_offload use enable_model_cpu_offload."
        )
    probed = fingerprints(pipeline, family, name, hash_weights=False)
    unsure = [residual for residual in residuals if not residual.fits(probed)]
    if unsure:
        hashed = fingerprints(pipeline, family, name)
        for residual in unsure:
            residual.check_fits(hashed, force=force)


@dataclass(frozen=True)
class PromptEncoder:
    """The pipeline's own way to embed a text, whatever it has of encoders, LoRA and offloading.

    Attributes:
        options: what else `encode_prompt` takes.
        guidance_scale: decides whether a negative text is embedded too.
    """

    pipeline: Any
    family: Family
    options: Mapping[str, Any]
    guidance_scale: float | None

    def encode(self, text: ParsedPrompt, negative: str) -> dict[str, Any]:
        """Return the arguments of the pipeline's call that hold a prompt and a negative text, embedded."""
        taken = inspect.signature(self.pipeline.encode_prompt).parameters
        needed = {name: None for name, each in taken.items() if each.default is each.empty}
        guided = self.family.has_guidance(self.pipeline, self.guidance_scale)
        known = {"device": self.pipeline._execution_device, "num_images_per_prompt": 1}
        known |= {"do_classifier_free_guidance": guided, "negative_prompt": negative or None}
        options = needed | {name: value for name, value in known.items() if name in taken} | dict(self.options)
        encoded = self.pipeline.encode_prompt(**{**options, "prompt": text.text})
        named = zip(self.family.encoded, encoded, strict=False)
        inputs = {name: tensor for name, tensor in named if name is not None and tensor is not None}
        if negative and "negative_prompt_embeds" not in self.family.encoded:
            if "negative_prompt" in inspect.signature(type(self.pipeline).__call__).parameters:
                inputs["negative_prompt"] = negative  # the pipeline embeds it apart
            elif guided:
                inputs["negative_prompt_embeds"] = self.pipeline.encode_prompt(**{**options, "prompt": negative})[0]
        return inputs

    def tokenize(self, template: str, class_words: Mapping[str, str]) -> tuple[TokenizedPrompt, ...]:
        """Tokenize for each text part, textual inversions of several tokens written out as `encode_prompt` does."""
        return tuple(self._tokenize(part, template, class_words) for part in self.family.text_parts)

    def _tokenize(self, part: TextPart, template: str, class_words: Mapping[str, str]) -> TokenizedPrompt:
        tokenizer = getattr(self.pipeline, part.tokenizer)
        prompt = parse_prompt(self.written(template, tokenizer), class_words)
        if part.thinking is not None:
            prompt = in_chat(prompt, tokenizer, thinking=part.thinking)
        return tokenize_prompt(prompt, tokenizer, window=self.window(part), is_unpadded=part.is_unpadded)

    def window(self, part: TextPart) -> int:
        """Return how many tokens a text part reads."""
        most = int(getattr(self.pipeline, part.tokenizer).model_max_length)
        if part.window == "tokenizer":
            return most
        usual = inspect.signature(self.pipeline.encode_prompt).parameters["max_sequence_length"].default
        return min(most, int(self.options.get("max_sequence_length", usual)))

    def written(self, text: str, tokenizer: Any) -> str:
        """Return a text with its textual inversions of several tokens written out."""
        convert = getattr(self.pipeline, "maybe_convert_prompt", None)
        if convert is None or not any(token in text for token in tokenizer.added_tokens_encoder):
            return text
        return str(convert(text, tokenizer))

    def negative(self, text: str) -> NegativeText:
        """Embed a subject's negative text."""
        whole = self.encode(ParsedPrompt(text, ()), "")["prompt_embeds"][0]
        shown, row = [], 0
        for part in (part for part in self.family.text_parts if not part.is_beside):  # those have the same tokens
            tokenizer = getattr(self.pipeline, part.tokenizer)
            written = self.written(text, tokenizer)
            prompt = ParsedPrompt(written, (Mention("", 0, len(written)),))
            if part.thinking is not None:
                prompt = in_chat(prompt, tokenizer, thinking=part.thinking)
            window = self.window(part)
            start, stop, length = words_and_end(prompt, tokenizer, window=window, is_unpadded=part.is_unpadded)
            shown.append((row + start, row + stop))
            row += length
        return NegativeText(whole, tuple(shown))


def _check_tokens(subject: Subject, learned: int, found: int) -> None:
    if learned != found:
        raise ResidualMismatchError(
            f"the residual of {subject.class_word!r} has {counted(learned, 'token')}, this model makes {found} of that"
            " word: learn the subject on this model."
        )


def _text_edit(
    encoder: PromptEncoder, tokens: Sequence[TokenizedPrompt], embeddings: Tensor, subjects: Mapping[str, Subject]
) -> TextEdit | None:
    """Return what changes in the text while the denoiser runs; None where nothing does."""
    timed = {name: each for name, each in subjects.items() if each.residual is not None and not each.is_always}
    nothing = torch.zeros_like(embeddings)
    additions = tuple(
        TimedAddition(each.during, add_residuals(nothing, encoder.family, tokens, {name: each})[0])
        for name, each in timed.items()
    )
    said = {name: plain_text(each.negative).strip() for name, each in subjects.items()}
    negatives = {name: encoder.negative(text) for name, text in said.items() if text}
    return TextEdit(additions, negatives) if additions or negatives else None


def _layout_spans(family: Family, tokens: Sequence[TokenizedPrompt]) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return every subject's tokens in the text that the denoiser reads; parts side by side count once."""
    spans: dict[str, dict[tuple[int, int], None]] = {}
    for prompt, row in zip(tokens, first_rows(family, tokens), strict=True):
        for name, ranges in prompt.spans.items():
            for start, stop in ranges:
                spans.setdefault(name, {})[row + start, row + stop] = None
    return {name: tuple(found) for name, found in spans.items()}


def _check_layout(layout: Layout | None, subjects: Mapping[str, Subject]) -> None:
    for name in layout.names if layout else ():
        if name not in subjects:
            raise LayoutError(f"region {name!r} is for no subject of the prompt: write {{{name}}} there, or drop it.")
    for name, subject in subjects.items():
        if subject.negative and (layout is None or name not in layout.names):
            raise SettingsError(f"{name!r} has a negative text and no region to show it to: give it a region.")


def _check_guidance(pipeline: Any, family: Family, subjects: Mapping[str, Subject], scale: float | None) -> None:
    """Refuse negative texts where nothing reads them: without classifier-free guidance."""
    least = family.guided_above
    for name in (name for name, subject in subjects.items() if subject.negative):
        told = f"the negative text of {name!r} has no effect"
        if family.true_guidance and not (scale or 0) > least:
            raise SettingsError(
                f"{told} on {family.name} without classifier-free guidance: give {family.true_guidance}, more than"
                f" {least:g}."
            )
        if not (scale or 0) > least:
            raise SettingsError(f"{told} at guidance scale {scale}: take more than {least:g}.")
        if not family.has_guidance(pipeline, scale):
            raise SettingsError(f"{told} on a model that was distilled to do without guidance: leave it out.")


def _check_scheduler(pipeline: Any, family: Family) -> None:
    if family.attention == "cross" and not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise SettingsError(
            f"{type(pipeline.scheduler).__name__} has no alphas_cumprod, so its timesteps do not say how noisy a step"
            " is: set another scheduler, such as DDIMScheduler or DPMSolverMultistepScheduler."
        )


def _encode_options(pipeline: Any, family: Family, options: Mapping[str, Any], *, has_subjects: bool) -> dict[str, Any]:
    """Keep what `encode_prompt` takes; SettingsError for anything else."""
    for name in ("prompt_2", "prompt_3", "text_encoder_out_layers"):
        if has_subjects and options.get(name) is not None:
            raise SettingsError(f"{name} has no place for subjects: leave it out, or draw without subjects and layout.")
    taken = inspect.signature(pipeline.encode_prompt).parameters
    for name in options:
        if name not in taken or name in family.encoded or name in ("prompt", "device", "num_images_per_prompt"):
            raise SettingsError(f"{name} is not an argument that {type(pipeline).__name__}.encode_prompt takes here.")
    given = {name: value for name, value in options.items() if value is not None}
    texts = {name: check_no_weights(one_text(name, given[name])) for name in OTHER_TEXTS if name in given}
    return given | {name: plain_text(text) for name, text in texts.items()}


def one_text(name: str, value: object) -> str:
    """Return an argument as it is; PromptError where it is no text."""
    if not isinstance(value, str):
        raise PromptError(
            f"{name} is a {type(value).__name__}: expected one text. For several pictures of it say"
            " num_images_per_prompt; for other texts, call once for each."
        )
    return value


_BUSY: dict[int, object] = {}


@contextmanager
def _alone(pipeline: Any) -> Iterator[None]:
    """Keep a second block off this very pipeline object: its scheduler counts the steps of one picture."""
    mine = object()
    if _BUSY.setdefault(id(pipeline), mine) is not mine:
        raise ModelError(
            "this pipeline object is in a `conditioned` block already, and its scheduler counts one picture's steps:"
            " leave that block first, draw with Cones2Pipeline, or use copy.copy(pipeline) with a scheduler of its own."
        )
    try:
        yield
    finally:
        del _BUSY[id(pipeline)]
