"""Composing on the real, tiny model: diffusers' own picture without edits; residuals, layouts, batches, errors."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cones2.backbones import SCHEDULERS, Backbone, make_scheduler, open_backbone
from cones2.composing.guiding import guide
from cones2.composing.loop import compose
from cones2.composing.records import picture_record
from cones2.composing.sampler import ComposeStep
from cones2.composing.settings import ComposeSettings
from cones2.errors import (
    BackboneError,
    CaptionError,
    Cones2Error,
    Cones2Warning,
    LayoutError,
    PromptError,
    ResidualMismatchError,
    SettingsError,
)
from cones2.layout.regions import Layout
from cones2.learning.loop import learn
from cones2.learning.recipe import Recipe
from cones2.photos import Photo
from cones2.picture import read_record, write_picture
from cones2.prompts import parse_prompt, tokenize_prompt
from cones2.residual.residual import Residual
from cones2.subjects import Subject, embed_prompt

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SMALL = ComposeSettings(height=64, width=64, steps=3)
LAYOUT = Layout.from_numbers({"rex": [(0.0, 0.25, 0.5, 1.0)], "cup": [(0.5, 0.5, 1.0, 1.0)]})
PLAIN = {"rex": Subject("cat"), "cup": Subject("teapot")}
PROMPT = "a {rex} and a {cup} on the beach"


def small(**changes: Any) -> ComposeSettings:
    return dataclasses.replace(SMALL, **changes)


def last(backbone: Backbone, prompt: str = PROMPT, **options: Any) -> ComposeStep:
    options.setdefault("settings", SMALL)
    return list(compose(backbone, prompt, **options))[-1]


def residual_for(backbone: Backbone, word: str = "cat", *, size: float = 3.0) -> Residual:
    count = len(backbone.tokenizer(word, add_special_tokens=False)["input_ids"])
    vector = size * torch.randn(count, backbone.width, generator=torch.Generator().manual_seed(1))
    tokens = tuple(f"{word}{i}" for i in range(count))
    return Residual(word, vector, tokens, backbone.encoder_id, {}, (), "0")


def diffusers_pictures(backbone: Backbone, settings: ComposeSettings, prompt: str) -> list[Image.Image]:
    pipeline = backbone.pipeline()
    pipeline.scheduler = make_scheduler(settings.sampler, backbone.scheduler)
    if hasattr(pipeline.scheduler, "noise_sampler_seed"):  # diffusers' generators do not reach its noise
        pipeline.scheduler.noise_sampler_seed = list(settings.seeds)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.vae.enable_slicing()  # decodes one by one, as here; the autoencoder is the backbone's own
    pictures: list[Image.Image] = pipeline(
        [prompt] * len(settings.seeds),
        height=settings.height,
        width=settings.width,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        guidance_rescale=settings.guidance_rescale,
        negative_prompt=[settings.negative_prompt] * len(settings.seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in settings.seeds],
    ).images
    pipeline.vae.disable_slicing()
    return pictures


def same(one: Image.Image, other: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(one), np.asarray(other)))


# Nothing added is diffusers' own picture, bit for bit


@pytest.mark.filterwarnings("ignore:Should have t:UserWarning")  # torchsde's, in diffusers' pipeline
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws_diffusers_own_picture(tiny: Backbone, scheduler: str) -> None:
    settings = small(scheduler=scheduler, seeds=(5,), steps=4)
    picture = last(tiny, "a cat on the beach", settings=settings).pictures[0]
    assert same(picture, diffusers_pictures(tiny, settings, "a cat on the beach")[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0},
        {"guidance_rescale": 0.7},
        {"negative_prompt": "a dog"},
        {"seeds": (3, 1, 2)},
        {"height": 72, "width": 136},
        {"scheduler": "ddpm", "seeds": (0, 1)},
    ],
)
def test_settings_mean_what_they_mean_in_diffusers(tiny: Backbone, changes: dict[str, Any]) -> None:
    settings = small(**changes)
    pictures = last(tiny, "a cat", settings=settings).pictures
    expected = diffusers_pictures(tiny, settings, "a cat")
    assert all(map(same, pictures, expected))
    assert pictures[0].size == (settings.width, settings.height)


# Words


def test_words_outside_a_small_model_s_lexicon_are_told(tiny: Backbone) -> None:
    knowing = dataclasses.replace(tiny, lexicon=frozenset({"a", "cat", "on", "the", "beach"}))
    with pytest.warns(Cones2Warning, match="^tiny.* does not know 'beech', 'ufo': expect nothing of that"):
        last(knowing, "a cat on the beech, 2 UFO")
    last(knowing, "A cat, on the beach!")  # warnings are errors


# Guidance


def test_half_of_guidance_s_parallel_part_by_hand() -> None:
    # ᾱ = 0.36: the pictures of v = (0, 1), (1, 0) for latents (1, 1) are (0.6, -0.2) and (-0.2, 0.6); their difference
    # (0.8, -0.8) lies along (0.6, -0.2) by 0.64 / 0.4, so its parallel part is (0.96, -0.32), the rest (-0.16, -0.48)
    latents, prompt, nothing = (torch.tensor(pair).reshape(1, 2, 1, 1) for pair in ([1.0, 1.0], [0.0, 1.0], [1.0, 0.0]))
    settings = ComposeSettings(guidance_scale=3.0, guidance_parallel=0.5)
    guided = guide(nothing, prompt, latents=latents, alpha_bar=torch.tensor(0.36), is_velocity=True, settings=settings)
    picture = torch.tensor([0.6 + 2 * (-0.16 + 0.48), -0.2 + 2 * (-0.48 - 0.16)])
    torch.testing.assert_close(0.6 * latents.flatten() - 0.8 * guided.flatten(), picture)


@pytest.mark.parametrize("is_velocity", [True, False])
def test_all_of_the_parallel_part_is_classifier_free_guidance(is_velocity: bool) -> None:
    latents, prompt, nothing = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, nearly = (ComposeSettings(guidance_parallel=share) for share in (1.0, 1 - 1e-9))
    options: dict[str, Any] = {"latents": latents, "alpha_bar": torch.tensor(0.3), "is_velocity": is_velocity}
    expected = nothing + 7.5 * (prompt - nothing)
    assert guide(nothing, prompt, settings=whole, **options).equal(expected)
    torch.testing.assert_close(guide(nothing, prompt, settings=nearly, **options), expected, rtol=1e-4, atol=1e-4)


def test_only_mini_s_subjects_lose_the_parallel_part_unasked(tiny: Backbone) -> None:
    cfg, plain = small(guidance_parallel=1.0), {"rex": Subject("cat"), "cup": Subject("teapot")}
    placed: dict[str, Any] = {"subjects": plain, "layout": LAYOUT}
    guided = last(tiny, **placed, settings=cfg).latents
    assert last(tiny, **placed).latents.equal(guided)
    mini = dataclasses.replace(tiny, lexicon=frozenset(("a", "cat", "and", "teapot", "on", "the", "beach")))
    chosen = last(mini, **placed).latents
    assert chosen.equal(last(mini, **placed, settings=small(guidance_parallel=0.0)).latents)
    assert not chosen.equal(guided)
    taught = {"rex": Subject("cat", residual_for(tiny))}
    assert not last(mini, "a {rex}", subjects=taught).latents.equal(last(tiny, "a {rex}", subjects=taught).latents)
    for nobody in ({}, {"layout": Layout({})}):
        assert last(mini, "a cat", **nobody).latents.equal(last(mini, "a cat", settings=cfg).latents)
    for nothing in (Subject("cat", residual_for(tiny), strength=0.0), Subject("cat", residual_for(tiny, size=0.0))):
        subjects = {"rex": nothing}
        assert last(mini, "a {rex}", subjects=subjects).latents.equal(last(mini, "a cat", settings=cfg).latents)
    off = {"layout": LAYOUT, "settings": small(layout_scale=0.0)}
    torch.testing.assert_close(last(mini, subjects=plain, **off).latents, last(tiny, subjects=plain, **off).latents)


def test_the_record_says_what_was_left_to_the_model(tiny: Backbone) -> None:
    mini = dataclasses.replace(tiny, lexicon=frozenset(("a", "cat")))
    subjects = {"rex": Subject("cat", residual_for(tiny))}
    told = picture_record(mini, "a {rex}", 0, subjects=subjects, settings=small())["settings"]
    assert told["guidance_parallel"] == 0.0
    assert picture_record(mini, "a cat", 0, settings=small())["settings"]["guidance_parallel"] is None


def test_untaught_subjects_and_an_empty_layout_change_nothing(tiny: Backbone) -> None:
    plain = last(tiny, "a cat and a teapot on the beach").latents
    assert torch.equal(last(tiny, subjects=PLAIN).latents, plain)
    assert torch.equal(last(tiny, subjects=PLAIN, layout=Layout({})).latents, plain)


def test_zero_residual_and_zero_strength_change_nothing(tiny: Backbone) -> None:
    plain = last(tiny, "a {rex}", subjects={"rex": Subject("cat")}).latents
    zero = Subject("cat", residual_for(tiny, size=0.0))
    off = Subject("cat", residual_for(tiny), strength=0.0)
    assert torch.equal(last(tiny, "a {rex}", subjects={"rex": zero}).latents, plain)
    assert torch.equal(last(tiny, "a {rex}", subjects={"rex": off}).latents, plain)


def test_a_layout_of_scale_zero_changes_next_to_nothing(tiny: Backbone) -> None:
    plain = last(tiny, subjects=PLAIN).latents
    edited = last(tiny, subjects=PLAIN, layout=LAYOUT, settings=small(layout_scale=0.0)).latents
    assert torch.allclose(edited, plain, rtol=1e-5, atol=1e-5)


# Residuals, Eq. 6


def test_a_residual_is_added_at_every_mention_and_nowhere_else(tiny: Backbone) -> None:
    residual = residual_for(tiny, "teddy bear")
    subjects = {"ted": Subject("teddy bear", residual, strength=0.5)}
    prompt = tokenize_prompt(parse_prompt("a {ted} by a {ted}", {"ted": "teddy bear"}), tiny.tokenizer)
    before = tiny.embed(prompt.input_ids)
    difference = embed_prompt(tiny, prompt, subjects) - before
    touched = torch.zeros(77, dtype=torch.bool)
    for start, stop in prompt.spans["ted"]:
        touched[start:stop] = True
        assert torch.allclose(difference[0, start:stop], 0.5 * residual.vector, atol=1e-6)
    assert difference[0, ~touched].abs().max() == 0


def test_two_subjects_of_one_class_get_their_own_residuals(tiny: Backbone) -> None:
    rex, fido = residual_for(tiny), residual_for(tiny, size=-3.0)
    subjects = {"rex": Subject("cat", rex), "fido": Subject("cat", fido)}
    prompt = tokenize_prompt(parse_prompt("{fido} {rex}", {"rex": "cat", "fido": "cat"}), tiny.tokenizer)
    difference = embed_prompt(tiny, prompt, subjects) - tiny.embed(prompt.input_ids)
    for name, residual in (("rex", rex), ("fido", fido)):
        ((start, stop),) = prompt.spans[name]
        assert torch.allclose(difference[0, start:stop], residual.vector, atol=1e-6)


def test_a_residual_and_its_strength_change_the_picture(tiny: Backbone) -> None:
    def with_strength(strength: float) -> torch.Tensor:
        return last(tiny, "{rex}", subjects={"rex": Subject("cat", residual_for(tiny), strength)}).latents

    assert not torch.allclose(with_strength(1.0), with_strength(0.0), atol=1e-4)
    assert not torch.allclose(with_strength(1.0), with_strength(0.5), atol=1e-4)


# Layouts


@pytest.mark.parametrize("preset", ["paper", "official", "official-layout"])
def test_a_layout_changes_the_picture(tiny: Backbone, preset: str) -> None:
    settings = small(preset=preset)
    plain = last(tiny, subjects=PLAIN, settings=settings).latents
    placed = last(tiny, subjects=PLAIN, layout=LAYOUT, settings=settings).latents
    assert placed.isfinite().all()
    assert not torch.allclose(placed, plain, atol=1e-4)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_layout_works_with_every_scheduler(tiny: Backbone, scheduler: str) -> None:
    settings = small(scheduler=scheduler, steps=4, preset="official-layout")  # it reads the scheduler's timesteps
    assert last(tiny, subjects=PLAIN, layout=LAYOUT, settings=settings).latents.isfinite().all()


def test_noise_of_a_sampler_of_its_own_follows_the_seed(tiny: Backbone) -> None:
    def draw(*seeds: int) -> torch.Tensor:
        return last(tiny, "a cat", settings=small(scheduler="dpm++-sde", steps=3, seeds=seeds)).latents

    both = draw(5, 2)
    assert torch.equal(draw(5, 2), both)
    for row, seed in enumerate((5, 2)):
        alone = draw(seed)[0]
        assert (both[row] - alone).norm() <= 1e-4 * alone.norm()
    assert not torch.allclose(both[0], both[1], atol=1e-2)


def test_a_layout_on_latents_of_odd_sides(tiny: Backbone) -> None:
    step = last(tiny, subjects=PLAIN, layout=LAYOUT, settings=small(height=72, width=104))
    assert step.pictures[0].size == (104, 72)


def test_the_order_of_subjects_is_nothing(tiny: Backbone) -> None:
    reversed_subjects = dict(reversed(PLAIN.items()))
    reversed_layout = Layout(dict(reversed(LAYOUT.regions.items())))
    one = last(tiny, subjects=PLAIN, layout=LAYOUT).latents
    assert torch.equal(last(tiny, subjects=reversed_subjects, layout=reversed_layout).latents, one)


# Batches


@pytest.mark.parametrize("scheduler", ["ddim", "euler-a", "dpm++"])
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_a_picture_does_not_depend_on_its_batch_mates(tiny: Backbone, scheduler: str, guidance_scale: float) -> None:
    settings = small(scheduler=scheduler, guidance_scale=guidance_scale)
    subjects = {"rex": Subject("cat", residual_for(tiny)), "cup": Subject("teapot")}

    def draw(*seeds: int) -> torch.Tensor:
        return last(tiny, subjects=subjects, layout=LAYOUT, settings=dataclasses.replace(settings, seeds=seeds)).latents

    batch = draw(4, 5, 6)
    for row, seed in enumerate((4, 5, 6)):
        alone = draw(seed)[0]
        assert (batch[row] - alone).norm() <= 1e-4 * alone.norm()
    assert not torch.allclose(batch[0], batch[1], atol=0.1)


def test_the_same_call_gives_the_same_bits(tiny: Backbone) -> None:
    assert torch.equal(
        last(tiny, subjects=PLAIN, layout=LAYOUT).latents, last(tiny, subjects=PLAIN, layout=LAYOUT).latents
    )


def test_the_global_generator_is_left_alone(tiny: Backbone) -> None:
    before = torch.random.get_rng_state()
    last(tiny, "a cat", settings=small(scheduler="ddpm"))
    assert torch.equal(torch.random.get_rng_state(), before)


# Steps


def test_steps_are_told_one_by_one_and_the_last_holds_the_pictures(tiny: Backbone) -> None:
    steps = list(compose(tiny, "a cat", settings=small(seeds=(0, 1))))
    assert [(step.step, step.steps) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    assert [len(step.pictures) for step in steps] == [0, 0, 2]
    assert all(step.latents.shape == (2, 4, 8, 8) for step in steps)


def test_schedulers_of_second_order_tell_every_unet_call(tiny: Backbone) -> None:
    assert last(tiny, "a cat", settings=small(scheduler="heun")).steps == 5


def test_one_unet_call_a_step(tiny: Backbone) -> None:
    rows: list[int] = []
    hook = tiny.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        last(tiny, subjects=PLAIN, layout=LAYOUT, settings=small(seeds=(0, 1)))
        last(tiny, subjects=PLAIN, layout=LAYOUT, settings=small(seeds=(0, 1), guidance_scale=1.0))
    finally:
        hook.remove()
    assert rows == [4] * 3 + [2] * 3


@pytest.mark.parametrize("scheduler", ["ddim", "heun", "dpm2", "pndm", "dpm++-single"])
@pytest.mark.parametrize("preset", ["paper", "official-layout"])
def test_guided_steps_are_steps_whatever_calls_they_take(tiny: Backbone, scheduler: str, preset: str) -> None:
    settings = small(scheduler=scheduler, preset=preset, steps=4, guided_steps=2)
    before = dict(tiny.unet.attn_processors)
    edited = [
        tiny.unet.attn_processors != before
        for _ in compose(tiny, PROMPT, subjects=PLAIN, layout=LAYOUT, settings=settings)
    ]
    calls = {"ddim": 2, "heun": 4, "dpm2": 4, "pndm": 7, "dpm++-single": 2}[scheduler]  # pndm's: half of 13
    assert sum(edited) == calls
    assert edited == sorted(edited, reverse=True)


def test_pictures_without_layout_can_be_drawn_by_turns(tiny: Backbone) -> None:
    one, other = (compose(tiny, "a cat", settings=small(seeds=(seed,))) for seed in (0, 1))
    last_steps = list(zip(one, other, strict=True))[-1]
    assert [torch.equal(step.latents, last(tiny, "a cat", settings=small(seeds=(seed,))).latents) for seed, step
            in enumerate(last_steps)] == [True, True]  # fmt: skip


@pytest.mark.parametrize("first", ["plain", "placed"])
def test_a_picture_is_not_drawn_with_the_layout_of_another(tiny: Backbone, first: str) -> None:
    plain = compose(tiny, "a cat", settings=SMALL)
    placed = compose(tiny, PROMPT, subjects=PLAIN, layout=LAYOUT, settings=SMALL)
    one, other = (plain, placed) if first == "plain" else (placed, plain)
    next(one)
    with pytest.raises(BackboneError, match="at work with a layout and without one at the same time: finish or close"):
        next(other)
    assert list(one)[-1].pictures


def test_nothing_is_learned_with_the_layout_of_a_picture(tiny: Backbone) -> None:
    drawing = compose(tiny, PROMPT, subjects=PLAIN, layout=LAYOUT, settings=SMALL)
    next(drawing)
    photo = Photo(Path("rex.png"), "a" * 64, Image.radial_gradient("L").convert("RGB"))
    recipe = Recipe(steps=1, caption_count=4, captions_per_step=2)
    with pytest.raises(BackboneError, match="at work with a layout and without one at the same time"):
        next(learn(tiny, [photo], "dog", recipe=recipe))
    drawing.close()
    assert next(learn(tiny, [photo], "dog", recipe=recipe)).step == 1


def test_sliced_attention_draws_without_a_layout(tiny: Backbone) -> None:
    before = dict(tiny.unet.attn_processors)
    plain = last(tiny, "a cat").latents
    tiny.unet.set_attention_slice("max")
    try:
        assert torch.allclose(last(tiny, "a cat").latents, plain, atol=1e-4)
    finally:
        tiny.unet.set_attn_processor(before)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_cancelling_restores_the_unet(tiny: Backbone, preset: str) -> None:
    before = dict(tiny.unet.attn_processors)
    steps = compose(tiny, PROMPT, subjects=PLAIN, layout=LAYOUT, settings=small(preset=preset))
    next(steps)
    assert tiny.unet.attn_processors != before
    steps.close()
    assert tiny.unet.attn_processors == before


def test_gradients_stay_on_between_steps(tiny: Backbone) -> None:
    for _ in compose(tiny, "a cat", settings=SMALL):
        assert torch.is_grad_enabled()


def test_the_models_own_scheduler_is_left_alone(tiny: Backbone) -> None:
    last(tiny, "a cat")
    assert tiny.scheduler.num_inference_steps is None


def test_numbers_that_overflow_are_no_picture(tiny: Backbone) -> None:
    unet = copy.deepcopy(tiny.unet)
    unet.conv_out.weight.data.mul_(1e38)
    with pytest.raises(SettingsError, match="'ddim' with 3 steps in float32 gave infinite numbers or NaN, no picture"):
        last(dataclasses.replace(tiny, unet=unet), "a cat")


def test_half_precision_draws(tiny_folder: Path) -> None:
    backbone = open_backbone(str(tiny_folder), device="cpu", dtype="bfloat16")
    step = last(backbone, subjects=PLAIN, layout=LAYOUT)
    assert step.latents.dtype == torch.float32
    assert step.latents.isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_reads_a_pictures_text_once(tiny_folder: Path, dtype: str) -> None:
    backbone = open_backbone(str(tiny_folder), device="cpu", dtype=dtype)
    reads: list[int] = []
    layer = next(module for name, module in backbone.unet.named_modules() if name.endswith("attn2.to_k"))
    layer.register_forward_hook(lambda *_: reads.append(1))
    last(backbone, subjects=PLAIN, layout=LAYOUT)
    assert len(reads) == 1


# What is refused, before the first step


def refused(error: type[Cones2Error], match: str, backbone: Backbone, prompt: str = PROMPT, **options: Any) -> None:
    options.setdefault("settings", SMALL)
    with pytest.raises(error, match=match) as caught:
        compose(backbone, prompt, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_prompt_and_subjects_must_match(tiny: Backbone) -> None:
    refused(PromptError, "no subject is called 'cup'", tiny, subjects={"rex": Subject("cat")})
    refused(PromptError, r"does not mention \{cup\}", tiny, "a {rex}", subjects=PLAIN)


def test_a_region_for_nobody(tiny: Backbone) -> None:
    refused(LayoutError, "region 'rex' is for no subject of the prompt", tiny, "a cat", layout=LAYOUT)


def test_a_prompt_that_is_too_long(tiny: Backbone) -> None:
    refused(PromptError, "would be cut off", tiny, "a " * 80 + PROMPT, subjects=PLAIN)


def test_a_negative_prompt_is_read_without_its_backslashes(tiny: Backbone) -> None:
    plain, escaped = (small(negative_prompt=text) for text in ("a sign (my own)", r"a sign \(my own\)"))
    one, other = (last(tiny, "a cat", settings=settings).latents for settings in (plain, escaped))
    assert torch.equal(one, other)


def test_a_long_negative_prompt_is_cut_with_a_warning(tiny: Backbone) -> None:
    with pytest.warns(Cones2Warning, match="the negative prompt has 92 tokens .* are not read"):
        compose(tiny, "a cat", settings=small(negative_prompt="a " * 90))


def test_a_residual_of_another_encoder(tiny: Backbone) -> None:
    mine = residual_for(tiny)
    other = dataclasses.replace(mine.encoder, name="other", weights="0" * 64, probe=(1.0,) * 16)
    subjects = {"rex": Subject("cat", dataclasses.replace(mine, encoder=other))}
    refused(ResidualMismatchError, "was learned on other", tiny, "{rex}", subjects=subjects)
    with pytest.warns(Cones2Warning, match="used all the same, as forced"):
        assert last(tiny, "{rex}", subjects=subjects, settings=small(force=True)).pictures


def test_a_residual_of_another_width(tiny: Backbone) -> None:
    encoder = dataclasses.replace(tiny.encoder_id, width=33)
    wide = Residual("cat", torch.zeros(1, 33), ("cat",), encoder, {}, (), "0")
    for force in (False, True):
        refused(
            ResidualMismatchError,
            r"\(width 33\), this backbone is tiny \(width 32\)",
            tiny,
            "{rex}",
            subjects={"rex": Subject("cat", wide)},
            settings=small(force=force),
        )


def test_a_residual_of_another_number_of_tokens(tiny: Backbone) -> None:
    mine = residual_for(tiny)
    count = len(mine.tokens)
    longer = dataclasses.replace(mine, vector=torch.zeros(count + 1, 32), tokens=(*mine.tokens, "more"))
    refused(
        ResidualMismatchError,
        f"has {count + 1} tokens, this backbone makes {count} of that word",
        tiny,
        "{rex}",
        subjects={"rex": Subject("cat", longer)},
    )


def test_sizes_must_suit_the_model(tiny: Backbone) -> None:
    refused(SettingsError, "height 65 .* multiple of 8, such as 64", tiny, "a", settings=small(height=65))
    refused(SettingsError, "width 100 does not suit tiny", tiny, "a", settings=small(width=100))


def test_schedulers_must_be_known(tiny: Backbone) -> None:
    with pytest.raises(SettingsError, match="unsupported scheduler 'EDMEulerScheduler'"):
        small(scheduler="EDMEulerScheduler")
    refused(
        SettingsError,
        "'lcm' can't make 900 steps: take another number",
        tiny,
        "a",
        settings=small(scheduler="lcm", steps=900),
    )
    for scheduler, steps in (("ddim", 1000), ("ddpm", 1000), ("pndm", 1000), ("deis", 999)):  # from t = 1000 of 0..999
        refused(
            SettingsError,
            f"'{scheduler}' can't make {steps} steps: take another number",
            tiny,
            "a",
            settings=small(scheduler=scheduler, steps=steps),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": ()}, "no seeds: expected at least one"),
        ({"seeds": (1, -1)}, "seed -1 can't be used: expected 0 to"),
        ({"steps": 0}, "steps 0 can't be used: expected 1 to 1000"),
        ({"guidance_scale": float("nan")}, "guidance scale nan can't be used: expected 0 to 1000"),
        ({"guidance_parallel": -0.1}, "guidance parallel -0.1 can't be used: expected 0 to 1"),
        ({"guidance_rescale": 1.5}, "guidance rescale 1.5 can't be used: expected 0 to 1"),
        (
            {"guidance_scale": 1.0, "negative_prompt": "fog"},
            "the negative prompt has no effect at guidance scale 1.0: take more than 1, or leave the negative prompt",
        ),
        ({"layout_scale": -0.5}, "layout scale -0.5 can't be used"),
        ({"height": 32}, "height 32 can't be used: expected 64 to 4096"),
        ({"width": 100_000}, "width 100000 can't be used"),
        ({"preset": "mine"}, "unknown layout preset 'mine': expected one of paper, official, official-layout"),
    ],
)
def test_settings_outside_their_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        small(**changes)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("seed", [0, 5])
def test_a_seed_alone_is_no_list(seed: Any) -> None:
    with pytest.raises(SettingsError, match=rf"seeds {seed} can't be used: expected a list, such as \({seed},\)"):
        small(seeds=seed)


def test_subjects_that_make_no_sense(tiny: Backbone) -> None:
    with pytest.raises(CaptionError, match="has no letters"):
        Subject("...")
    with pytest.raises(SettingsError, match="strength inf can't be used: expected a number, 1 as learned"):
        Subject("cat", strength=float("inf"))
    with pytest.raises(ResidualMismatchError, match="was learned for 'cat', the subject is called a 'dog'"):
        Subject("dog", residual_for(tiny))


# The record


def test_the_record_holds_all_that_is_needed_to_draw_again(tiny: Backbone, tmp_path: Path) -> None:
    residual = residual_for(tiny)
    subjects = {"rex": Subject("cat", residual, 0.75), "cup": Subject("teapot")}
    settings = small(seeds=(7, 8), negative_prompt="fog")
    picture = last(tiny, subjects=subjects, layout=LAYOUT, settings=settings).pictures[1]
    made = picture_record(tiny, PROMPT, 8, subjects=subjects, layout=LAYOUT, settings=settings)
    write_picture(tmp_path / "a.png", picture, made)
    read: dict[str, Any] = read_record(tmp_path / "a.png")
    assert read == made
    assert read["text"] == "a cat and a teapot on the beach"
    assert read["subjects"]["rex"] == {"class_word": "cat", "residual": residual.sha256, "strength": 0.75}
    assert read["subjects"]["cup"]["residual"] is None
    assert (read["seed"], read["batch"], read["threads"]) == (8, [7, 8], torch.get_num_threads())
    assert read["backbone"]["encoder"]["weights"] == tiny.encoder_id.weights
    assert set(read["versions"]) == {"cones2", "diffusers", "torch", "transformers"}

    again = last(
        tiny,
        read["prompt"],
        subjects=subjects,
        layout=Layout.from_json(json.dumps(read["layout"])),
        settings=ComposeSettings(seeds=tuple(read["batch"]), **read["settings"]),
    )
    assert same(again.pictures[1], picture)
