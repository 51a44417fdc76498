"""Residuals of a part of the steps, and negative texts of one region: what the UNet's layers are given to read."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cones2.backbones import Backbone
from cones2.composing.loop import compose
from cones2.composing.settings import ComposeSettings
from cones2.errors import PromptError, SettingsError
from cones2.guidance.attention import edited_cross_attention
from cones2.guidance.cells import own_cells
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.text import TextEdit, TimedAddition, acts
from cones2.layout.regions import Layout
from cones2.prompts import parse_prompt, tokenize_prompt
from cones2.residual.residual import Residual
from cones2.steps import finish
from cones2.subjects import Subject, edit_text, keep_words

LAYOUT = Layout.from_numbers({"rex": [(0.0, 0.0, 0.5, 1.0)], "cup": [(0.5, 0.5, 1.0, 1.0)]})
SPANS = {"rex": ((2, 3),), "cup": ((5, 6),)}
ALPHAS_CUMPROD = torch.linspace(0.999, 0.005, 1000)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_a_negative_text_is_read_without_its_backslashes(tiny: Backbone) -> None:
    read: list[str] = []

    def words(text: str) -> torch.Tensor:
        read.append(text)
        return torch.zeros(1, tiny.width)

    prompt = tokenize_prompt(parse_prompt("a {rex}", {"rex": "cat"}), tiny.tokenizer)
    edit_text(prompt, {"rex": Subject("cat", negative=r"a sign \[exit\]")}, words=words, train_steps=1000)
    assert read == ["a sign [exit]"]


# Time


def test_time_goes_from_noise_to_picture() -> None:
    times = torch.tensor([999.0, 700.5, 700.0, 300.5, 300.0, 0.0])
    assert acts((0.0, 1.0), times, 1000).all()
    assert acts((0.0, 0.3), times, 1000).tolist() == [True, True, False, False, False, False]
    assert acts((0.3, 0.7), times, 1000).tolist() == [False, False, True, True, False, False]
    assert acts((0.7, 1.0), times, 1000).tolist() == [False, False, False, False, True, True]


def test_what_is_added_acts_on_conditional_rows_in_its_time() -> None:
    vector, text = random(5, 4), random(3, 5, 4, seed=1)
    edit = TextEdit(1000, (TimedAddition((0.0, 0.5), vector),))
    read = edit.apply(text, torch.tensor([900.0, 900.0, 100.0]), slice(1, 3))
    torch.testing.assert_close(read, torch.stack([text[0], text[1] + vector, text[2]]))


def test_the_unet_reads_a_residual_in_its_time(tiny: Backbone) -> None:
    vector = random(1, tiny.width)
    residual = Residual("cat", vector, ("cat</w>",), tiny.encoder_id, {}, (), "0")
    layer, seen = tiny.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2, []
    hook = layer.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    try:
        subjects = {"rex": Subject("cat", residual, strength=0.5, during=(0.5, 1.0))}
        finish(compose(tiny, "a {rex}", subjects=subjects, settings=ComposeSettings(steps=4, height=64, width=64)))
    finally:
        hook.remove()
    moved = [(text - seen[0]).abs().amax((0, 2)).nonzero().flatten().tolist() for text in seen]
    assert moved == [[], [], [2], [2]]
    torch.testing.assert_close(seen[3][1, 2] - seen[0][1, 2], 0.5 * vector[0])
    assert torch.equal(seen[3][0], seen[0][0])


# Negative texts


def first_layer(tiny: Backbone, text: TextEdit | None, conditional: list[bool], **settings: Any) -> torch.Tensor:
    """What the first cross-attention layer gives, `[rows, 8, 8, channels]`."""
    guidance = LayoutGuidance(LAYOUT, SPANS, ALPHAS_CUMPROD, **settings)
    layer, seen = tiny.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2, []
    hook = layer.register_forward_hook(lambda *call: seen.append(call[-1]))
    count = len(conditional)
    latents, prompt = random(1, 4, 8, 8).expand(count, -1, -1, -1), random(count, 9, 32, seed=1)
    try:
        with edited_cross_attention(tiny.unet, guidance, conditional=conditional, text=text):
            tiny.unet(latents, 500, prompt)
    finally:
        hook.remove()
    return seen[0].unflatten(1, (8, 8))


@pytest.mark.parametrize("settings", [{}, {"layout_scale": 0.0}])
def test_a_negative_is_seen_by_unconditional_rows_from_its_region_alone(
    tiny: Backbone, settings: dict[str, float]
) -> None:
    text = TextEdit(1000, negatives={"cup": random(3, 32, seed=2), "rex": random(2, 32, seed=3)})
    only_cup = TextEdit(1000, negatives={"cup": random(3, 32, seed=2)})
    for conditional in ([False, True], [True, False, True]):
        plain = first_layer(tiny, None, conditional, **settings)
        both, one = (first_layer(tiny, edit, conditional, **settings) for edit in (text, only_cup))
        rows = torch.tensor(conditional)
        torch.testing.assert_close(both[rows], plain[rows], rtol=1e-5, atol=1e-6)
        cup, rex = (own_cells(LAYOUT, name, 8, 8) for name in ("cup", "rex"))
        moved = (both - plain)[~rows][0].abs().amax(-1) > 1e-5
        assert torch.equal(moved, cup | rex)
        torch.testing.assert_close(one[~rows][0][~cup], plain[~rows][0][~cup], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one[~rows][0][cup], both[~rows][0][cup], rtol=1e-5, atol=1e-6)


def test_a_negative_is_its_words_and_their_end(tiny: Backbone) -> None:
    ids = tiny.tokenizer("thick fog", padding="max_length", return_tensors="pt")["input_ids"]
    embedding, count = tiny.embed(ids), len(tiny.tokenizer.tokenize("thick fog"))
    words = keep_words(embedding, "thick fog", tiny.tokenizer)
    assert torch.equal(words, embedding[0, 1 : count + 2])
    assert ids[0, count + 1] == tiny.tokenizer.eos_token_id


def test_a_negative_changes_the_picture_and_costs_no_row(tiny: Backbone) -> None:
    settings = ComposeSettings(steps=2, height=64, width=64)
    rows: list[int] = []
    hook = tiny.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    drawn = []
    try:
        for negative in ("", "fog"):
            subjects = {"rex": Subject("cat"), "cup": Subject("teapot", negative=negative)}
            steps = compose(tiny, "a {rex} and a {cup}", subjects=subjects, layout=LAYOUT, settings=settings)
            drawn.append(finish(steps).latents)
    finally:
        hook.remove()
    assert rows == [2] * 4
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3


# What is refused


@pytest.mark.parametrize("during", [(0.5, 0.5), (0.6, 0.2), (-0.1, 1.0), (0.0, 1.5), (float("nan"), 1.0)])
def test_times_that_make_no_sense(during: tuple[float, float]) -> None:
    with pytest.raises(SettingsError, match=r"can't be used: expected a part of 0 to 1, such as 0,0\.6"):
        Subject("cat", during=during)


def test_negatives_that_nobody_would_read(tiny: Backbone) -> None:
    with pytest.raises(PromptError, match="looks like a weight"):
        Subject("cat", negative="(fog:1.3)")
    subjects = {"rex": Subject("cat", negative="fog")}
    with pytest.raises(SettingsError, match="'rex' has a negative text and no region to show it to: give it a region"):
        compose(tiny, "a {rex}", subjects=subjects)
    layout = Layout.from_numbers({"rex": [(0.0, 0.0, 1.0, 1.0)]})
    with pytest.raises(SettingsError, match=r"has no effect at guidance scale 1\.0: take more than 1"):
        compose(tiny, "a {rex}", subjects=subjects, layout=layout, settings=ComposeSettings(guidance_scale=1.0))
