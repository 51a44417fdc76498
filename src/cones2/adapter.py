"""Subjects and layout in a diffusers pipeline that the user already has: one `with` block.

Text-to-image, img2img, inpainting and ControlNet pipelines of Stable Diffusion work, with LoRA and textual inversion
loaded, under any scheduler that has `alphas_cumprod`, and with `enable_model_cpu_offload`. Nothing in the pipeline is
replaced: it gets embeddings as its own arguments, and its UNet's cross-attention is edited until the block ends.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from cones2.arranging.relations import warn_of_contradictions
from cones2.backbones.fingerprint import fingerprint
from cones2.errors import BackboneError, PromptError, SettingsError
from cones2.guidance.attention import edited_cross_attention
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.presets import find_preset, recurs
from cones2.layout.regions import Layout
from cones2.prompts import TokenizedPrompt, check_no_weights, parse_prompt, plain_text, tokenize_prompt
from cones2.subjects import Subject, add_residuals, check_negatives, edit_text, keep_words

_KNOWN = "diffusers' text-to-image, img2img, inpainting and ControlNet pipelines of Stable Diffusion"
_ENCODED = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


@contextmanager
def adapt(
    pipeline: Any,
    prompt: str,
    *,
    subjects: Mapping[str, Subject] | None = None,
    layout: Layout | None = None,
    negative_prompt: str | None = None,
    guidance_scale: float = 7.5,
    num_images_per_prompt: int = 1,
    layout_scale: float = 1.0,
    layout_effect: str = "both",
    layout_levels: tuple[int, ...] | None = None,
    preset: str = "paper",
    force: bool = False,
) -> Iterator[dict[str, Any]]:
    """Put subjects and a layout into a diffusers pipeline within a `with` block; give the arguments to call it with.

    On exit, also after an error, the pipeline is as it was, its UNet's attention processors the same objects. Which
    rows of the UNet's batches are conditional follows from `guidance_scale` and `num_images_per_prompt`, and the first
    call of the UNet is checked against it. A ControlNet reads the same embeddings, but its attention is not edited.

    Args:
        pipeline: with a UNet that has diffusers' default attention processors.
        prompt: with each subject's name as a placeholder, `"a {rex} on the beach"`.
        subjects: by name.
        layout: where subjects belong; None leaves that to the model.
        negative_prompt: what the picture should not show.
        guidance_scale: classifier-free guidance; off up to 1.
        num_images_per_prompt: pictures of each call.
        layout_scale: multiplies the layout's strength; 0 turns it off.
        layout_effect: `both`, `strengthen` or `weaken`, as in `LayoutGuidance`.
        layout_levels: of the UNet's grids, those that are edited; None is all.
        preset: how the layout acts, a name of `PRESETS`; `official-layout` reads σ by timestep here, not by step.
        force: use residuals of another text encoder of the same width, with a warning.

    Yields:
        `prompt_embeds`, `guidance_scale`, `num_images_per_prompt` and what else of the text the pipeline takes.

    Raises:
        BackboneError: this kind of pipeline can't be adapted, it lacks a text encoder or its weights, or something
            else edits its UNet.
        PromptError: prompt and subjects do not match, or the prompt is too long, or no single text.
        LayoutError: a region is for no subject.
        ResidualMismatchError: a residual was learned on another text encoder.
        SettingsError: a setting or the scheduler can't be used; within the block, the UNet is called with another text,
            or with other rows than half unconditional, half conditional ones.

    Example:
        ```python
        with cones2.adapt(pipeline, "a {rex} and a {cup}", subjects=subjects, layout=layout) as inputs:
            picture = pipeline(**inputs, image=photo, strength=0.6).images[0]
        ```
    """
    subjects = subjects or {}
    _check_pipeline(pipeline)
    _check_texts(prompt=prompt, negative_prompt=negative_prompt)
    negative_prompt = negative_prompt or ""
    check_no_weights(negative_prompt)
    check_negatives(subjects, layout, guidance_scale=guidance_scale)
    if recurs(preset):
        raise SettingsError(f"preset {preset!r} has a sampler of its own, no pipeline's: take 'official-layout'.")
    if num_images_per_prompt < 1:
        raise SettingsError(f"num_images_per_prompt {num_images_per_prompt} can't be used: expected at least 1.")
    has_guidance = guidance_scale > 1 and pipeline.unet.config["time_cond_proj_dim"] is None
    conditional = has_guidance * num_images_per_prompt * [False] + num_images_per_prompt * [True]
    class_words = {name: subject.class_word for name, subject in subjects.items()}
    parsed = parse_prompt(prompt, class_words)
    warn_of_contradictions(parsed, layout)
    tokenized = _tokenize(pipeline, prompt, class_words)
    alphas_cumprod = pipeline.scheduler.alphas_cumprod
    guidance = LayoutGuidance(
        layout or Layout({}),
        tokenized.spans,
        alphas_cumprod,
        preset=find_preset(preset),
        layout_scale=layout_scale,
        layout_effect=layout_effect,
        layout_levels=layout_levels,
    )
    with torch.no_grad(), _models_put_back(pipeline):
        _check_fits(pipeline, subjects, force=force)
        inputs = _encode(pipeline, parsed.text, plain_text(negative_prompt), has_guidance=has_guidance)
        inputs["prompt_embeds"] = add_residuals(inputs["prompt_embeds"], tokenized, subjects)
        text = edit_text(
            tokenized, subjects, words=lambda words: _embed_words(pipeline, words), train_steps=len(alphas_cumprod)
        )
    with (
        _checked_calls(pipeline.unet, inputs["prompt_embeds"], conditional),
        edited_cross_attention(pipeline.unet, guidance, conditional=conditional, text=text),
    ):
        yield {**inputs, "guidance_scale": guidance_scale, "num_images_per_prompt": num_images_per_prompt}


def _check_pipeline(pipeline: Any) -> None:
    kind = type(pipeline).__name__
    unet = getattr(pipeline, "unet", None)
    if not isinstance(unet, UNet2DConditionModel):
        raise BackboneError(
            f"{kind} has no UNet2DConditionModel, but {type(unet).__name__}: expected one of {_KNOWN}, not compiled."
        )
    if not hasattr(pipeline, "encode_prompt"):
        raise BackboneError(f"{kind} has no encode_prompt, and its guidance may have three parts: expected {_KNOWN}.")
    if not hasattr(pipeline.scheduler, "alphas_cumprod"):
        raise SettingsError(
            f"{type(pipeline.scheduler).__name__} has no alphas_cumprod, which tell how noisy a step is: set another"
            " scheduler, such as DDIMScheduler or DPMSolverMultistepScheduler."
        )
    seconds = [part for part in ("tokenizer_2", "text_encoder_2") if hasattr(pipeline, part)]
    for part in ("tokenizer", "text_encoder", *seconds):  # Stable Diffusion XL's refiner has the second ones alone
        if getattr(pipeline, part, None) is None:
            raise BackboneError(f"{kind} has no {part}, which embeds the prompt: expected {_KNOWN}, but no refiner.")


def _check_texts(**texts: object) -> None:
    for name, text in texts.items():
        if not isinstance(text, str | None):
            raise PromptError(
                f"{name} is a {type(text).__name__}: expected one text. For several pictures of it say"
                " num_images_per_prompt; for other texts, use a block for each."
            )


def _tokenize(pipeline: Any, prompt: str, class_words: Mapping[str, str]) -> TokenizedPrompt:
    return tokenize_prompt(parse_prompt(_with_inversions(pipeline, prompt), class_words), pipeline.tokenizer)


def _with_inversions(pipeline: Any, text: str) -> str:
    """Write out textual inversions of several tokens, as `encode_prompt` will."""
    can_have_them = isinstance(pipeline, TextualInversionLoaderMixin)
    return str(pipeline.maybe_convert_prompt(text, pipeline.tokenizer)) if can_have_them else text


def _encode(pipeline: Any, text: str, negative_text: str, *, has_guidance: bool) -> dict[str, Tensor]:
    """Let the pipeline embed the prompt as it always does, whatever it has of text encoders, LoRA and offloading."""
    encoded = pipeline.encode_prompt(
        prompt=text,
        device=pipeline._execution_device,  # `pipeline.device` is another one while models are offloaded
        num_images_per_prompt=1,
        do_classifier_free_guidance=has_guidance,
        negative_prompt=negative_text or None,
    )
    return {name: tensor for name, tensor in zip(_ENCODED, encoded, strict=False) if tensor is not None}


def _embed_words(pipeline: Any, text: str) -> Float[Tensor, "words dim"]:
    embedding = _encode(pipeline, text, "", has_guidance=False)["prompt_embeds"]
    return keep_words(embedding, _with_inversions(pipeline, text), pipeline.tokenizer)


def _check_fits(pipeline: Any, subjects: Mapping[str, Subject], *, force: bool) -> None:
    """Check the residuals, by the encoder's weights only where its probe differs: these take a second to read."""
    residuals = [subject.residual for subject in subjects.values() if subject.residual is not None]
    if not residuals:
        return
    name = str(pipeline.name_or_path or type(pipeline).__name__)
    encoders = [pipeline.text_encoder, *([pipeline.text_encoder_2] if hasattr(pipeline, "text_encoder_2") else [])]
    if any(weight.is_meta for encoder in encoders for weight in encoder.parameters()):
        raise BackboneError(
            f"{name} has a text encoder without its weights, so no residual can be checked against it: instead of"
            " enable_sequential_cpu_offload use enable_model_cpu_offload."
        )
    probed = fingerprint(encoders, name, hash_weights=False)
    unsure = [residual for residual in residuals if not residual.encoder.fits(probed)]
    encoder = fingerprint(encoders, name) if unsure else probed
    for residual in unsure:
        residual.check_fits(encoder, force=force)


@contextmanager
def _models_put_back(pipeline: Any) -> Iterator[None]:
    """Move models that were offloaded back when done, as each call of a pipeline does."""
    try:
        yield
    finally:
        pipeline.maybe_free_model_hooks()


@contextmanager
def _checked_calls(
    unet: UNet2DConditionModel, prompt_embeds: Float[Tensor, "1 tokens dim"], conditional: Sequence[bool]
) -> Iterator[None]:
    """Check the rows of each call of the UNet, and their text once for each call of the pipeline."""
    rows = [row for row, is_conditional in enumerate(conditional) if is_conditional]
    checked: list[Tensor] = []

    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        text = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        if checked and text is checked[0]:  # comparing waits for the GPU, and all steps read the same tensor
            return
        if len(text) != len(conditional):
            raise SettingsError(
                f"the UNet got {len(text)} rows; expected {len(conditional)}, of which the last {len(rows)} are"
                " conditional. Call the pipeline with **inputs; one whose guidance has more parts can't be adapted."
            )
        if not torch.equal(text[rows], prompt_embeds.to(text).expand(len(rows), -1, -1)):
            raise SettingsError(
                f"the last {len(rows)} of the UNet's {len(conditional)} rows read another text than this prompt:"
                " call the pipeline with **inputs, and with no other prompt in this block."
            )
        checked[:] = [text]

    handle = unet.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
