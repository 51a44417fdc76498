"""Composing: one picture, or a batch of them, of any number of subjects, each where the layout puts it.

The loop is diffusers' own, bit for bit, when there is neither residual nor layout; a residual changes the prompt's
embedding, a layout the cross-attention, and each costs next to nothing.
"""

import re
import warnings
from collections.abc import Generator, Mapping
from typing import Any

from cones2.arranging.relations import warn_of_contradictions
from cones2.backbones import Backbone, make_scheduler
from cones2.composing.conditions import add_both, embed_both, embed_plain, tokenize_negative
from cones2.composing.guiding import settle
from cones2.composing.sampler import ComposeStep, Sampler
from cones2.composing.settings import ComposeSettings
from cones2.composing.sizes import latent_shape
from cones2.errors import Cones2Warning, SettingsError
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.leakage import AttentionMeter
from cones2.layout.regions import Layout
from cones2.prompts import TokenizedPrompt, parse_prompt, tokenize_prompt
from cones2.subjects import Subject, check_negatives, edit_text, embed_prompt, keep_words


def compose(
    backbone: Backbone,
    prompt: str,
    *,
    subjects: Mapping[str, Subject] | None = None,
    layout: Layout | None = None,
    settings: ComposeSettings | None = None,
    measure_attention: bool = False,
) -> Generator[ComposeStep, None, None]:
    """Draw pictures of subjects, step by step; the last step holds them.

    Everything is checked before the first step, and a `Cones2Warning` tells of words that `mini` never learned. Closing
    the generator cancels; the UNet is edited from the first step to the last guided one, or to the last where a subject
    has `during` or `negative` or attention is measured, or until the generator is closed.

    Args:
        backbone: the model; the residuals' own.
        prompt: with each subject's name as a placeholder, `"a {rex} on the beach"`.
        subjects: by name.
        layout: where subjects belong; None leaves that to the model.
        settings: the paper's when None.
        measure_attention: whether the last step tells where the attention to each subject went; needs a layout.

    Raises:
        PromptError: prompt and subjects do not match, or the prompt is too long.
        LayoutError: a region is for no subject.
        ResidualMismatchError: a residual was learned on another text encoder.
        SettingsError: the scheduler is unknown, can't make so many steps, or the size does not suit the model; or what
            is asked for needs a region or classifier-free guidance; at the last step, if numbers overflowed.
    """
    subjects, settings = subjects or {}, settings or ComposeSettings()
    parsed = parse_prompt(prompt, {name: subject.class_word for name, subject in subjects.items()})
    warn_of_contradictions(parsed, layout)
    _warn_of_unknown_words(backbone, parsed.text)
    tokenized = tokenize_prompt(parsed, backbone.tokenizer)
    for subject in subjects.values():
        if subject.residual is not None:
            subject.residual.check_fits(backbone.encoder_id, force=settings.force)
    check_negatives(subjects, layout, guidance_scale=settings.guidance_scale)
    settings = settle(settings, backbone, subjects=subjects, layout=layout)
    scheduler = _start_scheduler(backbone, settings)
    shape = latent_shape(backbone, settings)
    negative = tokenize_negative(backbone, settings)
    sampler = Sampler(
        backbone,
        scheduler,
        embeddings=embed_both(backbone, embed_prompt(backbone, tokenized, subjects), negative, settings),
        added=add_both(backbone, tokenized.input_ids, negative, settings),
        guidance=_guide(layout, tokenized, scheduler, settings),
        text=edit_text(
            tokenized,
            subjects,
            words=lambda text: keep_words(embed_plain(backbone, text), text, backbone.tokenizer),
            train_steps=len(scheduler.alphas_cumprod),
        ),
        meter=AttentionMeter(layout or Layout({}), tokenized.spans) if measure_attention else None,
        settings=settings,
    )
    return sampler.run(shape)


def _warn_of_unknown_words(backbone: Backbone, text: str) -> None:
    """Say which words a model with a lexicon, hence of a small world, can't draw."""
    if backbone.lexicon is None:
        return
    words = dict.fromkeys(re.findall(r"[^\W\d_]+", text.lower()))
    unknown = [repr(word) for word in words if word not in backbone.lexicon]
    if unknown:
        told = ", ".join(unknown[:5]) + (" and more" if len(unknown) > 5 else "")
        warnings.warn(f"{backbone.name} does not know {told}: expect nothing of that.", Cones2Warning, stacklevel=3)


def _guide(
    layout: Layout | None, prompt: TokenizedPrompt, scheduler: Any, settings: ComposeSettings
) -> LayoutGuidance | None:
    if layout is None:
        return None
    return LayoutGuidance(
        layout,
        prompt.spans,
        scheduler.alphas_cumprod,
        preset=settings.reading,
        timesteps=scheduler.timesteps[: settings.guided_calls(len(scheduler.timesteps))].float().tolist(),
        layout_scale=settings.layout_scale,
        layout_effect=settings.layout_effect,
        layout_levels=settings.layout_levels,
    )


def _start_scheduler(backbone: Backbone, settings: ComposeSettings) -> Any:
    scheduler = make_scheduler(settings.sampler, backbone.scheduler)
    refusal = SettingsError(
        f"scheduler {settings.sampler!r} can't make {settings.steps} steps: take another number of steps."
    )
    try:
        scheduler.set_timesteps(settings.steps, device=backbone.device)
    except (ValueError, IndexError) as error:
        raise refusal from error
    if hasattr(scheduler, "noise_sampler_seed"):  # it has generators of its own: one for each picture, as elsewhere
        scheduler.noise_sampler_seed = list(settings.seeds)
    if scheduler.timesteps.max() >= len(scheduler.alphas_cumprod):  # a time that the model never saw
        raise refusal
    return scheduler
