"""Negative texts of subjects in joint-attention transformers: what reads them, what they read, and what they change.

Real classes at tiny size with random weights: the numbers go where they should; how a trained model takes it, nobody
has seen.
"""

import contextlib
import copy
import dataclasses
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from cones2.attention import edited_attention
from cones2.conditioning import LayoutSettings, conditioned
from cones2.errors import SettingsError
from cones2.families import family_of
from cones2.layout import Layout
from cones2.negatives import behind_blocks
from cones2.pipeline import Cones2Pipeline
from cones2.prompts import Mention, ParsedPrompt, in_chat, words_and_end
from cones2.run import Run
from cones2.subjects import Subject
from families import JOINT, qwen_tokenizer, t5_tokenizer
from joint import SIZE, as_cells, drawn, pictures, predictions, shallow
from subjects_for_tests import LAYOUT, PROMPT, TEXT, residual_for, with_own_scheduler

pytestmark = pytest.mark.joint_attention

OTHERS: tuple[dict[str, Any], ...] = (
    {"layout_scale": 0.0}, {"guided_steps": 0}, {"layout_blocks": (0,)}, {"preset": "cones_v2"},
)  # fmt: skip
CORNER = Layout.of({"rex": (0, 0, 1 / 3, 1 / 2), "cup": (1 / 2, 0, 1, 1 / 2)})
PHOTO = Image.effect_noise((64, 64), 60).convert("RGB")

every_family = pytest.mark.parametrize("name", JOINT)


def guided(name: str) -> dict[str, Any]:
    """What classifier-free guidance takes."""
    return {"true_cfg_scale": 4.0} if name == "flux1" else {"guidance_scale": 4.0}


def foggy(negative: str, others: str = "") -> dict[str, Subject]:
    return {"rex": Subject("cat", negative=negative), "cup": Subject("teapot", negative=others)}


def rows(pipeline: Any, name: str, negative: str, others: str = "", **options: Any) -> tuple[torch.Tensor, ...]:
    """What the transformer predicts in the first step for the prompt, and without it, as cells of numbers."""
    call = {"num_inference_steps": 1, "output_type": "latent", **options.pop("call", {})}
    options = {"layout": CORNER, "negative_prompt": "fog", **guided(name), **options}
    with predictions(pipeline) as seen:
        drawn(pipeline, subjects=foggy(negative, others), call=call, **options)
    order = {"first": (0, 1), "last": (1, 0)}
    if family_of(pipeline).conditional == "apart":
        return tuple(as_cells(call[0]) for call in seen[:2])
    return tuple(as_cells(seen[0][row]) for row in order[family_of(pipeline).conditional])


def moved(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (one != other).any(-1)


def cells(*, rows: slice, columns: slice) -> torch.Tensor:
    found = torch.zeros(4, 6, dtype=torch.bool)
    found[rows, columns] = True
    return found


REX, CUP = cells(rows=slice(2), columns=slice(2)), cells(rows=slice(2), columns=slice(3, 6))


# What a negative text changes


@every_family
@pytest.mark.parametrize("settings", [{}, *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def test_one_block_changes_a_subjects_own_region_and_nothing_else(
    opened: dict[str, Any], name: str, settings: dict[str, Any]
) -> None:
    """Two texts of as many tokens, since another length may be summed in another order."""
    pipeline = shallow(opened[name])
    options: dict[str, Any] = {"layout_settings": LayoutSettings(**settings)}
    prompt, cat = rows(pipeline, name, "cat", "dog", **options)
    for rex, cup, region in (("dog", "dog", REX), ("cat", "cat", CUP), ("dog", "cat", REX | CUP)):
        same, other = rows(pipeline, name, rex, cup, **options)
        assert torch.equal(same, prompt)
        assert torch.equal(moved(other, cat), region)
    plain, none = rows(pipeline, name, "", **options)
    torch.testing.assert_close(prompt, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cat[~(REX | CUP)], none[~(REX | CUP)], atol=1e-5, rtol=1e-5)
    for region in (REX, CUP):
        assert (cat - none)[region].abs().amax(-1).min() > 1e-5


@every_family
def test_with_depth_the_prompts_rows_never_come_to_know_of_it(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    prompt, cat = rows(pipeline, name, "cat")
    same, dog = rows(pipeline, name, "dog")
    assert torch.equal(same, prompt)
    torch.testing.assert_close(rows(pipeline, name, "")[0], prompt, atol=1e-5, rtol=1e-5)
    change = (dog - cat).square().mean(-1)
    assert change[REX].mean() > 4 * change[~REX].mean() > 0  # image cells read each other


@every_family
@pytest.mark.parametrize("nothing", ["", "  "])
def test_an_empty_text_is_none(opened: dict[str, Any], name: str, nothing: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    options: dict[str, Any] = {"layout": LAYOUT, "negative_prompt": "fog", **guided(name)}
    plain = drawn(pipeline, subjects={"rex": "cat", "cup": "teapot"}, **options)
    assert np.array_equal(drawn(pipeline, subjects=foggy(nothing), **options), plain)
    assert np.abs(drawn(pipeline, subjects=foggy("hat"), **options) - plain).max() > 1e-4


@every_family
def test_nothing_is_left_behind(opened: dict[str, Any], name: str) -> None:
    pipeline, options = with_own_scheduler(opened[name]), {"subjects": foggy("hat"), "layout": LAYOUT, **guided(name)}
    own = pictures(pipeline, prompt=TEXT)

    def fail(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    for call in ({}, {"callback_on_step_end": fail}):
        if call:
            with pytest.raises(ZeroDivisionError):
                drawn(pipeline, call=call, **options)
        else:
            drawn(pipeline, **options)
        assert not any(module._forward_pre_hooks for module in pipeline.transformer.modules())
        assert np.array_equal(pictures(pipeline, prompt=TEXT), own)


# What reads it, and what it reads


@every_family
def test_each_mask_entry(opened: dict[str, Any], name: str) -> None:
    """Only unconditional image rows of a region, and a text's own rows, read its tokens; its own rows read the rest."""
    pipeline = with_own_scheduler(opened[name])
    seen: list[tuple[torch.Tensor, Run, Any]] = []
    with conditioned(pipeline, PROMPT, subjects=foggy("cat", "a hat"), layout=CORNER, **guided(name)) as inputs:
        run, bias = inputs.run, inputs.run.bias

        def watched(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
            found = bias(query, key)
            if found is not None and run._call.negatives is not None:
                seen.append((found.clone(), run, copy.copy(run._call)))
            return found

        vars(run)["bias"] = watched
        pictures(pipeline, **inputs, num_inference_steps=1)
    assert run.text is not None
    sizes = [each.size for each in run.text.negatives.values()]
    found, _, call = seen[0]
    assert run.sequence is not None
    start, end = call.negatives, call.negatives + sum(sizes)
    expected = torch.full((run.sequence.length, end - start), 1.0)
    image, first = expected[run.sequence.image :][:24], expected[start:end]
    image[REX.flatten(), : sizes[0]] = 0
    image[CUP.flatten(), sizes[0] :] = 0
    first[: sizes[0], : sizes[0]] = first[sizes[0] :, sizes[0] :] = 0
    others = [row for row in range(call.count) if call.rows is None or row not in range(call.count)[call.rows]]
    assert len(others) == 1
    hidden = found[others[0], 0] < -1e30
    assert torch.equal(hidden[:, start:end], expected.bool())
    assert not found[others[0], 0, :, :start].any()
    assert not found[others[0], 0, :, end:].any()
    if call.rows is not None:
        for row in range(call.count)[call.rows]:
            outer = torch.ones(run.sequence.length, dtype=torch.bool)
            outer[start:end] = False
            assert (found[row, 0, outer, start:end] < -1e30).all()


def test_it_is_diffusers_own_mask_over_a_longer_text(opened: dict[str, Any]) -> None:
    """FLUX.1 takes masks: the same call by hand, text and mask put together here, gives the same bits."""
    pipeline = with_own_scheduler(opened["flux1"])
    calls: list[dict[str, Any]] = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda _, __, kw: calls.append(kw), with_kwargs=True)
    drawn(pipeline, subjects=foggy(""), layout=CORNER, negative_prompt="fog", **guided("flux1"))
    hook.remove()
    _, cat = rows(pipeline, "flux1", "cat")
    with conditioned(pipeline, "cat", guidance_scale=1.0) as inputs:
        whole = inputs["prompt_embeds"]
    count = len(pipeline.tokenizer_2("cat")["input_ids"])
    given = calls[1]
    mask = torch.zeros(512 + count + 24, 512 + count + 24)
    mask[:, 512 : 512 + count] = torch.finfo(torch.float32).min
    mask[512 : 512 + count, 512 : 512 + count] = 0
    mask[512 + count :, 512 : 512 + count][REX.flatten()] = 0
    longer = torch.cat([given["encoder_hidden_states"], whole[:, :count]], dim=1)
    ids = torch.cat([given["txt_ids"], given["txt_ids"][:count]])
    kwargs = {"encoder_hidden_states": longer, "txt_ids": ids, "joint_attention_kwargs": {"attention_mask": mask}}
    with torch.no_grad():
        by_hand = pipeline.transformer(**{**given, **kwargs})[0]
    assert torch.equal(as_cells(by_hand[0]), cat)


def test_kleins_tokens_keep_their_own_numbers(opened: dict[str, Any]) -> None:
    pipeline = with_own_scheduler(opened["klein"])
    ids: list[torch.Tensor] = []
    hook = pipeline.transformer.pos_embed.register_forward_pre_hook(lambda _, args: ids.append(args[0]))
    drawn(pipeline, subjects=foggy("cat"), layout=CORNER, **guided("klein"))
    hook.remove()
    prompts, without = ids[1], ids[3]  # each call's image has its numbers first
    written = f"<|im_start|>user\ncat{CHAT_END}<think>\n\n</think>\n\n"
    before = len(pipeline.tokenizer("<|im_start|>user\n")["input_ids"])
    numbers = range(before, len(pipeline.tokenizer(written)["input_ids"]))
    assert torch.equal(without[:512], prompts)
    assert without[512:].tolist() == [[0, 0, 0, number] for number in numbers]


CHAT_END = "<|im_end|>\n<|im_start|>assistant\n"


def test_z_image_refines_it_as_a_prompt_of_its_own(opened: dict[str, Any]) -> None:
    pipeline = with_own_scheduler(opened["z_image"])
    given: list[tuple[Any, ...]] = []
    hook = pipeline.transformer.layers[0].register_forward_pre_hook(lambda _, args: given.append(args))
    pictures(pipeline, prompt="cat", guidance_scale=0.0, num_inference_steps=1)
    hook.remove()
    found: list[Any] = []
    with conditioned(pipeline, PROMPT, subjects=foggy("cat"), layout=CORNER, guidance_scale=4.0) as inputs:
        hook = pipeline.transformer.register_forward_hook(lambda *_: found.append(inputs.run.behind()))
        pictures(pipeline, **inputs, num_inference_steps=2)
        hook.remove()
    assert found[0] is found[1]  # made once
    before = len(pipeline.tokenizer("<|im_start|>user\n")["input_ids"])
    after = len(pipeline.tokenizer(f"<|im_start|>user\ncat{CHAT_END}")["input_ids"])
    columns = slice(32 + before, 32 + after)  # behind the image
    torch.testing.assert_close(found[0][0], given[0][0][0, columns])
    torch.testing.assert_close(found[0][1], given[0][2][0, columns])


@every_family
def test_words_and_their_end_are_read_neither_start_nor_padding(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    with conditioned(pipeline, PROMPT, subjects=foggy(" cat "), layout=CORNER, **guided(name)) as inputs:
        pass
    assert inputs.run.text is not None
    read = inputs.run.text.negatives["rex"]
    t5 = len(t5_tokenizer()("cat")["input_ids"])
    clip = len(opened["sd3"].tokenizer("cat")["input_ids"])
    chat = [len(qwen_tokenizer()(f"<|im_start|>user\n{text}")["input_ids"]) for text in ("", f"cat{CHAT_END}")]
    think = len(qwen_tokenizer()("<think>\n\n</think>\n\n")["input_ids"])
    expected = {
        "flux1": ((0, t5),),
        "sd3": ((1, clip), (77, 77 + t5)),
        "z_image": ((chat[0], chat[1]),),
        "klein": ((chat[0], chat[1] + think),),
    }
    assert read.shown == expected[name]
    with conditioned(pipeline, "cat", guidance_scale=0.0) as alone:
        assert torch.equal(read.whole, alone["prompt_embeds"][0])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("is_unpadded", [False, True])
def test_where_words_begin_and_end(side: str, is_unpadded: bool) -> None:
    tokenizer = qwen_tokenizer()
    tokenizer.padding_side = side
    prompt = in_chat(ParsedPrompt("a cat", (Mention("", 0, 5),)), tokenizer, thinking=True)
    start, stop, length = words_and_end(prompt, tokenizer, window=64, is_unpadded=is_unpadded)
    options: dict[str, Any] = {} if is_unpadded else {"padding": "max_length", "max_length": 64}
    ids = tokenizer(prompt.text, **options)["input_ids"]
    assert tokenizer.decode(ids[start:stop]) == f"a cat{CHAT_END}"
    assert length == len(ids)


# Guidance in one call or two


@pytest.mark.parametrize("name", ["sd3", "z_image"])
def test_a_call_of_both_rows_is_two_calls(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    calls: list[tuple[Any, ...]] = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    with conditioned(pipeline, PROMPT, subjects=foggy("cat", "a hat"), layout=CORNER, **guided(name)) as inputs:
        with predictions(pipeline) as together:
            pictures(pipeline, **inputs, num_inference_steps=1)
        hook.remove()
    family = dataclasses.replace(inputs.run.family, conditional="apart")
    given, spans, settings = dict(inputs), inputs.run.spans, inputs.run.settings
    for row in range(2):
        run = Run(pipeline, family, given, CORNER, spans, settings, inputs.run.text, False)
        args, kwargs = one_row(calls[0][0], calls[0][1], row)
        reading = behind_blocks(pipeline.transformer, run.behind) if name == "z_image" else contextlib.nullcontext()
        edited = edited_attention(pipeline.transformer, family, run)
        with predictions(pipeline) as alone, edited, reading, torch.no_grad():
            pipeline.transformer(*args, **kwargs)
        torch.testing.assert_close(alone[0][0], together[0][row], atol=1e-5, rtol=1e-5)


def one_row(args: tuple[Any, ...], kwargs: dict[str, Any], row: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One row of a call of two."""

    def cut(value: Any) -> Any:
        return value[row : row + 1] if isinstance(value, list | torch.Tensor) and len(value) == 2 else value

    return tuple(cut(value) for value in args), {key: cut(value) for key, value in kwargs.items()}


@every_family
def test_several_pictures_of_one_prompt(opened: dict[str, Any], name: str) -> None:
    pipe = Cones2Pipeline(with_own_scheduler(opened[name]))
    call: dict[str, Any] = {"subjects": foggy("hat"), "num_inference_steps": 2, "output_type": "np", **SIZE}
    call |= guided(name)
    both = pipe(PROMPT, LAYOUT, seed=(3, 4), **call).images
    for index, seed in enumerate((3, 4)):
        np.testing.assert_allclose(both[index], pipe(PROMPT, LAYOUT, seed=seed, **call).images[0], atol=1e-4)


# Drawn, recorded and drawn again


@every_family
def test_a_picture_is_drawn_again(opened: dict[str, Any], name: str) -> None:
    pipe = Cones2Pipeline(with_own_scheduler(opened[name]))
    pipe.load_subject("rex", residual_for(pipe.pipeline), negative="a hat", during=(0.0, 0.9))
    call: dict[str, Any] = {"num_inference_steps": 2, "seed": 5, "measure_attention": True, **guided(name), **SIZE}
    made = pipe(PROMPT, LAYOUT, subjects={"cup": Subject("teapot", negative="fog")}, **call)
    again = pipe.redraw(made.records[0])
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(made.images[0]))
    assert made.records[0]["subjects"]["rex"]["negative"] == "a hat"
    assert {reading.subject for reading in made.attention[0]} == {"rex", "cup"}
    plain = pipe(PROMPT, LAYOUT, subjects={"cup": "teapot"}, **call)
    assert not np.array_equal(np.asarray(plain.images[0]), np.asarray(made.images[0]))


def test_flux1s_true_guidance_reaches_the_pipeline(opened: dict[str, Any]) -> None:
    pipeline = with_own_scheduler(opened["flux1"])
    options: dict[str, Any] = {"negative_prompt": "fog", "true_cfg_scale": 4.0}
    own = pictures(pipeline, prompt=TEXT, **options)
    assert np.array_equal(drawn(pipeline, TEXT, **options), own)
    assert not np.array_equal(pictures(pipeline, prompt=TEXT), own)
    call: dict[str, Any] = {"seed": 0, "num_inference_steps": 3, "output_type": "np", **SIZE}
    assert np.array_equal(Cones2Pipeline(pipeline)(TEXT, **options, **call).images, own)


@pytest.mark.parametrize("name", ["flux1", "klein"])
def test_reference_images_do_not_read_it(opened: dict[str, Any], name: str) -> None:
    pipeline: Any = shallow(opened[name])
    call: dict[str, Any] = {"image": [PHOTO, PHOTO]}
    if name == "flux1":
        pipeline = diffusers.FluxKontextPipeline(**pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        call = {"image": PHOTO, "max_area": 64 * 96, "_auto_resize": False}
    cat, dog = (rows(pipeline, name, negative, call=call)[1] for negative in ("cat", "dog"))
    assert torch.equal(moved(cat, dog), REX)


@every_family
def test_in_bfloat16(opened: dict[str, Any], name: str) -> None:
    pipeline = copy.copy(with_own_scheduler(opened[name]))
    parts = {key: copy.deepcopy(part) for key, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    vars(pipeline).update({key: torch.nn.Module.to(part, torch.bfloat16) for key, part in parts.items()})
    foggy_one, plain = (
        drawn(pipeline, subjects=foggy(text), layout=LAYOUT, negative_prompt="fog", **guided(name))
        for text in ("a hat", "")
    )
    assert np.isfinite(foggy_one).all()
    assert not np.array_equal(foggy_one, plain)


# Refused


def refused(pipeline: Any, match: str, **options: Any) -> None:
    with (
        pytest.raises(SettingsError, match=match),
        conditioned(pipeline, PROMPT, subjects=foggy("fog"), layout=LAYOUT, **options),
    ):
        pass


def test_without_classifier_free_guidance_it_is_refused(opened: dict[str, Any]) -> None:
    flux = with_own_scheduler(opened["flux1"])
    refused(flux, "give true_cfg_scale, more than 1")
    refused(flux, "give true_cfg_scale, more than 1", true_cfg_scale=1.0, guidance_scale=3.5)
    refused(with_own_scheduler(opened["z_image"]), "guidance scale 0.0: take more than 0", guidance_scale=0.0)
    refused(with_own_scheduler(opened["sd3"]), "guidance scale 1.0: take more than 1", guidance_scale=1.0)
    klein = with_own_scheduler(opened["klein"])
    vars(klein)["_internal_dict"] = type(klein.config)({**klein.config, "is_distilled": True})
    refused(klein, "guidance scale 1.0")
    refused(klein, "distilled to do without guidance", guidance_scale=4.0)
