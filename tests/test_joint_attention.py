"""Subjects and layouts in joint-attention transformers: Stable Diffusion 3, FLUX.1, Z-Image and FLUX.2 klein.

Real classes at tiny size with random weights. They show that the numbers go where they should; they say nothing of
likeness, or of how good a picture is.
"""

import copy
import dataclasses
import inspect
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, FluxKontextPipeline
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend
from diffusers.models.attention_processor import XFormersJointAttnProcessor
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from PIL import Image
from torch.nn import functional as F  # noqa: N812

from cones2.attention import edited_attention
from cones2.cli.inspect import residual_rows
from cones2.conditioning import LayoutSettings, conditioned
from cones2.denoisers import read_flux_call, read_z_image_call
from cones2.errors import Cones2Warning, ModelError, PromptError, ResidualMismatchError, SettingsError
from cones2.families import family_of, native_size
from cones2.fingerprint import fingerprints
from cones2.layout import Layout
from cones2.models import open_pipeline
from cones2.pipeline import Cones2Pipeline
from cones2.prompts import in_chat, parse_prompt, tokenize_prompt
from cones2.residual import Residual, describe_file
from cones2.run import Run
from families import JOINT, VARIANTS, qwen_tokenizer
from joint import PLAIN, SIZE, WEAKEN, as_cells, changed_cells, corner, drawn, pictures, predictions, shallow
from subjects_for_tests import LAYOUT, PROMPT, TEXT, residual_for, subjects_for, with_own_scheduler

pytestmark = pytest.mark.joint_attention

CORNER = Layout.of({"rex": (0, 0, 1 / 3, 1 / 2), "cup": "rest"})
PHOTO = Image.effect_noise((64, 64), 60).convert("RGB")
LAYERS = {"flux1": 4, "sd3": 3, "z_image": 2, "klein": 3, "schnell": 4, "sd3_2b": 3}

every_family = pytest.mark.parametrize("name", JOINT)
every_kind = pytest.mark.parametrize("name", [*JOINT, *VARIANTS])


# 1. Nothing added is the pipeline's own picture


@every_kind
def test_nothing_added_is_the_pipelines_own_picture(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    own = pictures(pipeline, prompt=TEXT)
    assert np.array_equal(drawn(pipeline, TEXT), own)
    assert np.array_equal(drawn(pipeline, subjects=PLAIN, layout={}), own)
    off = LayoutSettings(layout_scale=0.0)
    assert np.array_equal(drawn(pipeline, subjects=PLAIN, layout=LAYOUT, layout_settings=off), own)


@every_family
def test_several_pictures_of_one_prompt(opened: dict[str, Any], name: str) -> None:
    pipe = Cones2Pipeline(with_own_scheduler(opened[name]))
    call: dict[str, Any] = {"subjects": PLAIN, "num_inference_steps": 2, "output_type": "np", **SIZE}
    both = pipe(PROMPT, LAYOUT, seed=(3, 4), **call).images
    for index, seed in enumerate((3, 4)):
        np.testing.assert_allclose(both[index], pipe(PROMPT, LAYOUT, seed=seed, **call).images[0], atol=1e-4)


@every_kind
def test_subjects_and_layout_act_and_leave_nothing_behind(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    own, subjects = pictures(pipeline, prompt=TEXT), subjects_for(pipeline)
    taught = drawn(pipeline, subjects=subjects)
    placed = drawn(pipeline, subjects=subjects, layout=LAYOUT)
    assert np.abs(taught - own).max() > 1e-4
    assert np.abs(placed - taught).max() > 1e-3
    assert np.isfinite(placed).all()
    assert "forward" not in vars(pipeline.transformer)
    assert np.array_equal(pictures(pipeline, prompt=TEXT), own)


# 2, 3 and 5. A subject's residual changes the cells of its own region, and no others


@every_kind
def test_one_layer_changes_a_corner_of_a_wide_picture_and_nothing_else(opened: dict[str, Any], name: str) -> None:
    pipeline = shallow(opened[name])
    found = changed_cells(pipeline, CORNER)
    assert torch.equal(found > 0, corner())
    assert (changed_cells(pipeline, None) > 0).all()  # without a layout it goes everywhere


@pytest.mark.parametrize("name", ["flux1", "schnell", "klein"])
def test_one_single_stream_block_alone_does_so_too(opened: dict[str, Any], name: str) -> None:
    pipeline = shallow(opened[name], kept=(0, 1, 0))
    assert torch.equal(changed_cells(pipeline, CORNER) > 0, corner())
    assert (changed_cells(pipeline, None) > 0).all()


@every_family
def test_a_row_that_swaps_image_and_text_is_noticed(opened: dict[str, Any], name: str) -> None:
    pipeline = shallow(opened[name])
    row = family_of(pipeline)

    def swapped(*call: Any) -> Any:
        read = row.read_call(*call)
        sequence = read.sequence
        assert sequence is not None
        tokens = len(read.text[0])
        moved = (tokens, 0) if sequence.image == 0 else (0, sequence.length - tokens)
        return read._replace(sequence=sequence._replace(image=moved[0], text=moved[1]))

    found = changed_cells(pipeline, CORNER, family=dataclasses.replace(row, read_call=swapped))
    assert not torch.equal(found > 0, corner())


KEPT = {"sd3": 53, "sd3_2b": 10.6, "flux1": 20.5, "schnell": 9.8, "klein": 3.3, "z_image": 1.01}
"""How many times less of a residual is outside its region with a layout than without; docs/models.md has these."""
KEPT_WITHOUT_REFINER = 2.1


def kept(pipeline: Any) -> float:
    inside, leaks = corner(), []
    for layout in (None, CORNER):
        squares = changed_cells(pipeline, layout).square()
        leaks.append(float((squares[~inside].mean() / squares[inside].mean()).sqrt()))
    return leaks[0] / leaks[1]


def unrefined(pipeline: Any) -> Any:
    own = with_own_scheduler(pipeline)
    vars(own)["transformer"] = copy.deepcopy(pipeline.transformer)
    own.transformer.context_refiner = torch.nn.ModuleList()
    return own


@every_kind
def test_with_depth_a_layout_keeps_a_residual_in_its_region(opened: dict[str, Any], name: str) -> None:
    """At depth the change leaks through image cells, and through other words, which read the subject's.

    How much depends on the weights, and these are random; that a trained model keeps as much is not shown.
    """
    assert kept(with_own_scheduler(opened[name])) == pytest.approx(KEPT[name], rel=0.05)
    if name == "z_image":
        assert kept(unrefined(opened[name])) == pytest.approx(KEPT_WITHOUT_REFINER, rel=0.05)


@every_kind
def test_what_leaks_at_depth_is_what_other_words_have_read(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Were they kept from it as well, 50 times less would be outside; a layout leaves text to read text."""
    own = Run._joint_bias

    def hidden_from_words(run: Run, query: Any, key: Any, call: Any, sequence: Any) -> Any:
        found = own(run, query, key, call, sequence)
        if found is None or run.layout is None:
            return found
        spans = [range(sequence.text + start, sequence.text + stop) for start, stop in run.spans["rex"]]
        subject = [row for span in spans for row in span]
        image = range(sequence.image, sequence.image + 24)
        others = [row for row in range(sequence.length) if row not in image and row not in subject]
        found = found.clone()
        found[:, :, torch.tensor(others)[:, None], torch.tensor(subject)] = torch.finfo(found.dtype).min / 2
        return found

    monkeypatch.setattr(Run, "_joint_bias", hidden_from_words)
    assert kept(unrefined(opened[name]) if name == "z_image" else with_own_scheduler(opened[name])) > 50


def test_z_images_refiner_mixes_words_before_a_layout_can_act(opened: dict[str, Any]) -> None:
    pipeline = shallow(opened["z_image"])
    pipeline.transformer.context_refiner = opened["z_image"].transformer.context_refiner
    assert (changed_cells(pipeline, CORNER) > 0).all()


def test_reference_images_lengthen_the_sequence(opened: dict[str, Any]) -> None:
    pipeline = shallow(opened["klein"])
    assert torch.equal(changed_cells(pipeline, CORNER, image=[PHOTO, PHOTO]) > 0, corner())


def test_flux1_kontext_has_a_reference_image(opened: dict[str, Any]) -> None:
    flux = shallow(opened["flux1"])
    kontext: Any = FluxKontextPipeline(**flux.components)
    kontext.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"image": PHOTO, "max_area": 64 * 96, "_auto_resize": False}
    assert torch.equal(changed_cells(kontext, CORNER, **call) > 0, corner())


# 4. Every layer that reads both is edited, or the model is refused by name


@every_kind
def test_each_joint_layer_is_edited_in_each_step(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    with conditioned(pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT) as inputs:
        shapes: list[torch.Size] = []
        bias = inputs.run.bias

        def watched(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
            found = bias(query, key)
            if found is not None:
                shapes.append(found.shape[2:])
            return found

        vars(inputs.run)["bias"] = watched
        pictures(pipeline, **inputs)
    assert len(shapes) == 3 * LAYERS[name]
    assert len(set(shapes)) == 1


TAKEN = ("native", "_native_math", "_native_efficient", "_native_cudnn")


@pytest.mark.parametrize("name", ["flux1", "z_image", "klein"])
@pytest.mark.parametrize("backend", [each.value for each in AttentionBackendName if each.value not in TAKEN])
def test_backends_that_take_no_mask_are_refused_before_the_first_step(
    opened: dict[str, Any], name: str, backend: str
) -> None:
    """Flash, sage, varlen and all others that diffusers names, as `set_attention_backend` leaves them on a GPU."""
    pipeline = with_own_scheduler(opened[name])
    vars(pipeline)["transformer"] = copy.deepcopy(pipeline.transformer)
    for module in pipeline.transformer.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_attention_backend"):
            processor._attention_backend = AttentionBackendName(backend)
    refused(pipeline, f"{backend!r} takes no layout")


@pytest.mark.parametrize("name", ["flux1", "z_image", "klein"])
def test_the_backend_of_the_whole_process_is_refused_as_well(opened: dict[str, Any], name: str) -> None:
    with attention_backend("_native_flash"):  # which layers without one of their own follow
        refused(opened[name], "'_native_flash' takes no layout")


def test_stable_diffusion_3_follows_no_backend(opened: dict[str, Any]) -> None:
    own = with_own_scheduler(opened["sd3"])
    placed = drawn(own, subjects=PLAIN, layout=LAYOUT)
    with attention_backend("_native_flash"):
        assert np.array_equal(drawn(own, subjects=PLAIN, layout=LAYOUT), placed)


def test_another_processor_in_stable_diffusion_3_is_refused_before_the_first_step(opened: dict[str, Any]) -> None:
    pipeline = with_own_scheduler(opened["sd3"])
    vars(pipeline)["transformer"] = copy.deepcopy(pipeline.transformer)
    pipeline.transformer.set_attn_processor(XFormersJointAttnProcessor())
    refused(pipeline, "XFormersJointAttnProcessor takes no layout: .*set_attn_processor")


class ByHand(FluxAttnProcessor):
    """Computes attention in a way of its own, and says nothing of it."""

    def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        own = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = lambda query, key, value, **_: (
            (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value
        )
        try:
            return super().__call__(attn, hidden_states, *args, **kwargs)
        finally:
            F.scaled_dot_product_attention = own


def test_a_layer_that_did_not_ask_is_missed_in_the_first_call(opened: dict[str, Any]) -> None:
    pipeline = with_own_scheduler(opened["flux1"])
    vars(pipeline)["transformer"] = copy.deepcopy(pipeline.transformer)
    pipeline.transformer.transformer_blocks[1].attn.set_processor(ByHand())  # type: ignore[no-untyped-call]
    with pytest.raises(ModelError, match="3 of 4 attention layers can be given a layout") as caught:
        drawn(pipeline, subjects=PLAIN, layout=LAYOUT)
    assert len(str(caught.value).splitlines()) == 1


def refused(pipeline: Any, match: str) -> None:
    with (
        pytest.raises(ModelError, match=match),
        conditioned(with_own_scheduler(pipeline), PROMPT, subjects=PLAIN, layout=LAYOUT),
    ):
        pass


@every_family
def test_compiling_is_refused_by_name(opened: dict[str, Any], name: str) -> None:
    with pytest.raises(ModelError, match=family_of(opened[name]).name):
        Cones2Pipeline(opened[name]).compile()


def test_calls_that_have_another_sequence_are_refused(opened: dict[str, Any]) -> None:
    nested = {"x": [[torch.zeros(4, 1, 8, 8)]], "t": torch.zeros(1), "cap_feats": [[torch.zeros(3, 16)]]}
    with pytest.raises(ModelError, match="reference images"):
        read_z_image_call(opened["z_image"].transformer, 1000, (), nested)
    with pytest.raises(ModelError, match="Flux2KleinPipeline"):
        read_flux_call(opened["klein"].transformer, 1000, (), {"kv_cache_mode": "extract"})


def test_skip_layer_guidance_is_one_more_call_of_the_same_step(opened: dict[str, Any]) -> None:
    pipeline = with_own_scheduler(opened["sd3"])
    call = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0, "num_inference_steps": 4}
    with conditioned(pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT) as inputs:
        steps: list[int] = []
        count = inputs.run._count_step

        def watched(**how: Any) -> tuple[int, int]:
            found = count(**how)
            steps.append(found[0])
            return found

        vars(inputs.run)["_count_step"] = watched
        assert np.isfinite(pictures(pipeline, **inputs, **call)).all()
    assert steps == [0, 1, 1, 2, 2, 3, 3]


# Eq. 7 in a joint sequence


@every_kind
def test_only_the_blocks_asked_for_are_edited(opened: dict[str, Any], name: str) -> None:
    pipeline, last = with_own_scheduler(opened[name]), LAYERS[name] - 1
    settings = LayoutSettings(layout_blocks=(last,))
    with conditioned(pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT, layout_settings=settings) as inputs:
        asked = asked_layers(inputs.run)
        pictures(pipeline, **inputs, num_inference_steps=1)
    assert asked[: last + 1] == [False] * last + [True]
    every = LayoutSettings(layout_blocks=tuple(range(last + 1)))
    options: dict[str, Any] = {"subjects": PLAIN, "layout": LAYOUT}
    assert np.array_equal(drawn(pipeline, layout_settings=every, **options), drawn(pipeline, **options))
    with pytest.raises(SettingsError, match=rf"block {last + 1} .* 0 to {last}"):
        drawn(pipeline, layout_settings=LayoutSettings(layout_blocks=(last + 1,)), **options)


def test_skipped_blocks_keep_the_numbers_of_the_others(opened: dict[str, Any]) -> None:
    pipeline = with_own_scheduler(opened["sd3"])
    settings = LayoutSettings(layout_blocks=(2,))
    with conditioned(pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT, layout_settings=settings) as inputs:
        asked = asked_layers(inputs.run)
        skipping = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0}  # from the second step on
        pictures(pipeline, **inputs, num_inference_steps=2, **skipping)
    assert asked == [False, False, True] * 2 + [False, True]


def asked_layers(run: Run) -> list[bool]:
    """Return a list that comes to tell of each layer whether something was added."""
    asked: list[bool] = []
    own = run.bias

    def bias(query: Any, key: Any) -> Any:
        found = own(query, key)
        asked.append(found is not None)
        return found

    run.bias = bias  # type: ignore[method-assign]
    return asked


@every_kind
def test_what_is_added_is_eq_7_over_image_rows_and_text_columns(opened: dict[str, Any], name: str) -> None:
    """In the first step t is T, so η is the spread of these scores alone, of each row; all else stays 0."""
    pipeline = with_own_scheduler(opened[name])
    with conditioned(pipeline, PROMPT, subjects=PLAIN, layout=CORNER) as inputs:
        seen: list[tuple[Any, ...]] = []
        bias, run = inputs.run.bias, inputs.run

        def watched(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
            found = bias(query, key)
            if found is not None:
                seen.append((query.clone(), key.clone(), found.clone(), run._call.rows, run.sequence))
            return found

        vars(run)["bias"] = watched
        pictures(pipeline, **inputs, num_inference_steps=1)
    query, key, found, rows, sequence = seen[0]
    image = slice(sequence.image, sequence.image + 24)
    text = slice(sequence.text, sequence.text + len(inputs["prompt_embeds"][0]))
    scores = query[rows, :, image] @ key[rows, :, text].mT / query.shape[3] ** 0.5
    added = found[rows, 0, image, text]
    for start, stop in run.spans["rex"]:
        own = added[:, corner().flatten(), start:stop]
        torch.testing.assert_close(own, (2.5 * scores.std((1, 2, 3)))[:, None, None].expand_as(own))
        assert (added[:, ~corner().flatten(), start:stop] < -1e30).all()
    found[rows, :, image, text] = 0
    assert not found.any()


# The hook against diffusers' own way, where there is one


def test_the_hook_is_diffusers_own_mask(opened: dict[str, Any]) -> None:
    pipeline = with_own_scheduler(opened["flux1"])
    with conditioned(pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT, layout_settings=WEAKEN) as inputs:
        masks: list[torch.Tensor] = []
        bias = inputs.run.bias

        def watched(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
            found = bias(query, key)
            assert found is not None
            masks.append(found.clone())
            return found

        vars(inputs.run)["bias"] = watched
        hooked = pictures(pipeline, **inputs)
        given = dict(inputs)
    mask = masks[0]
    assert all(torch.equal(each, mask) for each in masks)
    assert int((mask != 0).sum()) > 0
    assert np.array_equal(pictures(pipeline, **given, joint_attention_kwargs={"attention_mask": mask}), hooked)


# 6 and 7. The residual is added at the subject's tokens


@every_kind
def test_a_residual_is_added_at_its_tokens_and_nowhere_else(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    residual = residual_for(pipeline)
    with conditioned(pipeline, "a {rex}, a hat and a {rex}", subjects={"rex": residual}, layout=LAYOUT_OF_ONE) as found:
        taught, spans = found["prompt_embeds"][0], found.run.spans["rex"]
    with conditioned(pipeline, "a cat, a hat and a cat") as found:
        moved = taught - found["prompt_embeds"][0]
    assert len(spans) == (4 if name.startswith("sd3") else 2)  # in SD3 each word is read by CLIP, and once more by T5
    rows = torch.zeros(len(moved), dtype=torch.bool)
    for start, stop in spans:
        rows[start:stop] = True
    assert not moved[~rows].any()
    column = 0
    for part, learned in zip(family_of(pipeline).text_parts, residual.parts, strict=True):
        column = column if part.is_beside else 0
        first = spans[2] if part.encoder == "text_encoder_3" else spans[0]
        columns = slice(column, column + learned.vector.shape[1])
        torch.testing.assert_close(moved[slice(*first), columns], learned.vector, atol=1e-5, rtol=1e-5)
        column += learned.vector.shape[1]


@every_kind
def test_the_gradient_reaches_a_subjects_tokens_through_a_layout(opened: dict[str, Any], name: str) -> None:
    """One layer, and a loss over the subject's own region: what its region reads is all that is to be learned.

    Nothing comes from the other subject's tokens, which this region does not read; other words it reads.
    """
    pipeline = shallow(opened[name])
    with conditioned(pipeline, PROMPT, subjects=PLAIN, layout=CORNER, guidance_scale=0.0) as inputs:
        pass
    leaf = inputs["prompt_embeds"][0].clone().requires_grad_()
    taught = [leaf] if isinstance(inputs["prompt_embeds"], list) else leaf[None]
    given: dict[str, Any] = {**inputs, "prompt_embeds": taught}
    family, spans, seen = family_of(pipeline), inputs.run.spans, []
    if family.name == "FLUX.1":
        given.pop("guidance_scale")
    run = Run(pipeline, family, given, CORNER, spans, WEAKEN, None, False)
    hook = pipeline.transformer.register_forward_hook(lambda *found: seen.append(found[-1][0]))
    unguarded: Any = inspect.unwrap(type(pipeline).__call__)  # without its no_grad
    with edited_attention(pipeline.transformer, family, run):
        unguarded(pipeline, **given, **SIZE, num_inference_steps=1, output_type="latent")
    hook.remove()
    cells = as_cells(torch.stack(list(seen[0]))[0])
    cells[corner()].square().sum().backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    for start, stop in spans["rex"]:
        assert leaf.grad[start:stop].abs().sum() > 0
    for start, stop in spans["cup"]:
        assert not leaf.grad[start:stop].any()


LAYOUT_OF_ONE = Layout.of({"rex": (0.0, 0.0, 0.5, 1.0)})


@pytest.mark.parametrize("name", ["z_image", "klein"])
@pytest.mark.parametrize("before", ["", "a photo of a ", "red, ", "dog dog "])
def test_a_language_models_span_begins_where_its_states_do(opened: dict[str, Any], name: str, before: str) -> None:
    """Its states are causal: another word changes those from its own place on, and none before."""
    pipeline = with_own_scheduler(opened[name])
    options: dict[str, Any] = {"subjects": {"rex": "cat"}, "layout": LAYOUT_OF_ONE}
    with conditioned(pipeline, f"{before}{{rex}} on the beach", **options) as found:
        cat, ((start, _),) = found["prompt_embeds"][0], found.run.spans["rex"]
    with conditioned(pipeline, f"{before}dog on the beach") as found:
        dog = found["prompt_embeds"][0]
    count = min(len(cat), len(dog))
    first = int((cat[:count] != dog[:count]).any(1).nonzero()[0])
    assert first == start


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("template", ["{rex} at sea", "a {rex} and a cup", "red, {rex}", "a {rex} on a {rex}"])
@pytest.mark.parametrize("word", ["dog", "teapot", "teddy bear", "zebra"])
def test_spans_in_a_chat_template(side: str, template: str, word: str) -> None:
    tokenizer = qwen_tokenizer()
    tokenizer.padding_side = side
    prompt = in_chat(parse_prompt(template, {"rex": word}), tokenizer, thinking=False)
    for is_unpadded in (False, True):
        found = tokenize_prompt(prompt, tokenizer, window=64, is_unpadded=is_unpadded)
        assert len(found.spans["rex"]) == template.count("{rex}")
        for start, stop in found.spans["rex"]:
            assert str(tokenizer.decode(found.input_ids[0, start:stop])).strip() == word
    assert prompt.text.startswith("<|im_start|>user\n")


# 8. Guidance in one call or two


@every_family
def test_guidance_leaves_the_prompts_prediction_and_its_own_as_they_are(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    guided: dict[str, Any] = {"guidance_scale": 4.0}
    if name == "flux1":
        guided = {"negative_prompt": "fog", "call": {"true_cfg_scale": 4.0}}
    found = {}
    for what, options in (("guided", guided), ("alone", {"guidance_scale": 0.0} if name != "flux1" else {})):
        for layout in (LAYOUT, None):
            with predictions(pipeline) as seen:
                drawn(pipeline, subjects=PLAIN, layout=layout, **{"call": {}, **options})
            found[what, layout is not None] = seen
    if family_of(pipeline).conditional == "apart":
        positive, negative = (found["guided", True][call][0] for call in (0, 1))
        own = found["guided", False][1][0]
    else:
        rows = {"first": (0, 1), "last": (1, 0)}[family_of(pipeline).conditional]
        positive, negative = (found["guided", True][0][row] for row in rows)
        own = found["guided", False][0][rows[1]]
    torch.testing.assert_close(positive, found["alone", True][0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(negative, own, atol=1e-5, rtol=1e-5)
    assert (positive - found["alone", False][0][0]).abs().max() > 1e-4


def test_a_longer_negative_prompt_is_hidden_from_the_prompts_row(opened: dict[str, Any]) -> None:
    """Z-Image fills the shorter row up, and hides that from it by a mask of its own, which a layout has to keep."""
    pipeline = with_own_scheduler(opened["z_image"])
    found = []
    for options in ({"guidance_scale": 4.0, "negative_prompt": "fog and rain, " * 10}, {"guidance_scale": 0.0}):
        with predictions(pipeline) as seen:
            drawn(pipeline, subjects=subjects_for(pipeline), layout=LAYOUT, **options)
        found.append(seen[0][0])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_a_prompt_that_repeats_the_negative_one(opened: dict[str, Any]) -> None:
    for name in ("sd3", "z_image"):
        pipeline = with_own_scheduler(opened[name])
        options: dict[str, Any] = {"subjects": PLAIN, "negative_prompt": TEXT, "layout": LAYOUT}
        with predictions(pipeline) as seen:
            drawn(pipeline, **options)
        assert not torch.equal(*seen[0])


def test_a_negative_prompt_that_the_pipeline_takes_only_embedded(opened: dict[str, Any]) -> None:
    klein = with_own_scheduler(opened["klein"])
    assert not np.array_equal(drawn(klein, TEXT, negative_prompt="fog"), drawn(klein, TEXT))
    assert np.array_equal(
        drawn(klein, TEXT, negative_prompt="fog", guidance_scale=1.0), drawn(klein, TEXT, guidance_scale=1.0)
    )


def test_a_distilled_model_is_drawn_without_guidance(opened: dict[str, Any]) -> None:
    klein = with_own_scheduler(opened["klein"])
    vars(klein)["_internal_dict"] = type(klein.config)({**klein.config, "is_distilled": True})
    with predictions(klein) as seen, conditioned(klein, PROMPT, subjects=PLAIN, layout=LAYOUT) as inputs:
        pictures(klein, **inputs)
    assert inputs["guidance_scale"] == 1.0
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("name", "called", "guided", "off"),
    [
        ("z_image", "Z-Image-Turbo", {}, {"guidance_scale": 0.0}),
        ("sd3", "stable-diffusion-3.5-large-turbo", {}, {"guidance_scale": 1.0}),
        ("schnell", "FLUX.1-schnell", {"true_cfg_scale": 4.0, "negative_prompt": "fog"}, {"true_cfg_scale": 1.0}),
    ],
)
def test_guidance_on_a_distilled_model_is_warned_of(
    opened: dict[str, Any], name: str, called: str, guided: dict[str, Any], off: dict[str, Any]
) -> None:
    pipeline = with_own_scheduler(opened[name])
    vars(pipeline)["_internal_dict"] = type(pipeline.config)({**pipeline.config, "_name_or_path": f"someone/{called}"})
    pipe = Cones2Pipeline(pipeline)
    call: dict[str, Any] = {"num_inference_steps": 1, "seed": 0, **SIZE}
    (argument, value), *_ = off.items()
    with pytest.warns(Cones2Warning, match=f"distilled to draw without guidance, and {argument}={value:g} turns it"):
        pipe(TEXT, **guided, **call)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Cones2Warning)
        pipe(TEXT, **off, **call)


@pytest.mark.parametrize("name", ["sd3", "z_image"])
def test_another_text_than_the_prompts(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    with (
        pytest.raises(SettingsError, match="none of them this prompt's"),
        conditioned(pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT),
    ):
        pictures(pipeline, prompt="fog")


# 9. Put back, and apart by threads


@every_family
def test_after_an_error_the_pipeline_is_as_it_was(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    own = pictures(pipeline, prompt=TEXT)

    def fail(*_: Any) -> dict[str, Any]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        drawn(pipeline, subjects=PLAIN, layout=LAYOUT, call={"callback_on_step_end": fail})
    assert "forward" not in vars(pipeline.transformer)
    assert np.array_equal(pictures(pipeline, prompt=TEXT), own)


@every_family
def test_two_threads_with_two_layouts(opened: dict[str, Any], name: str) -> None:
    mirrored = Layout.of({"rex": LAYOUT.regions["cup"], "cup": LAYOUT.regions["rex"]})
    layouts = [LAYOUT, mirrored]

    def job(layout: Any) -> np.ndarray:
        return drawn(with_own_scheduler(opened[name]), subjects=PLAIN, layout=layout)

    right = [job(layout) for layout in layouts]
    found: dict[int, np.ndarray] = {}
    barrier = threading.Barrier(2)

    def work(index: int) -> None:
        barrier.wait()
        found[index] = job(layouts[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[index], right[index]) for index in range(2))
    assert not np.array_equal(right[0], right[1])


# Beside the ten


@every_kind
def test_a_residual_in_a_part_of_the_steps(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    never, early = (subjects_for(pipeline, during=during) for during in ((0.999, 1.0), (0.0, 0.02)))
    plain = drawn(pipeline, subjects=PLAIN)
    assert np.array_equal(drawn(pipeline, subjects=never), plain)
    assert not np.array_equal(drawn(pipeline, subjects=early), plain)
    assert not np.array_equal(drawn(pipeline, subjects=early), drawn(pipeline, subjects=subjects_for(pipeline)))


def test_another_scheduler_of_flow_matching(opened: dict[str, Any]) -> None:
    """The other pipelines give their scheduler noise levels of their own, which Heun's does not take."""
    pipeline = with_own_scheduler(opened["sd3"])
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    placed = drawn(pipeline, subjects=PLAIN, layout=LAYOUT)
    assert np.abs(placed - drawn(pipeline, subjects=PLAIN)).max() > 1e-3


@every_kind
def test_in_bfloat16(folders: dict[str, Path], name: str) -> None:
    pipeline = open_pipeline(str(folders[name]), device="cpu", dtype="bfloat16")
    pipeline.set_progress_bar_config(disable=True)
    taught = drawn(pipeline, subjects=subjects_for(pipeline))
    placed = drawn(pipeline, subjects=subjects_for(pipeline), layout=LAYOUT)
    assert np.isfinite(placed).all()
    assert not np.array_equal(placed, taught)


@pytest.mark.parametrize("name", ["z_image", "klein"])
def test_a_residual_knows_how_its_text_was_read(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    residual = Residual.from_bytes(residual_for(pipeline).to_bytes())
    assert residual.parts[0].encoder.reading
    assert np.isfinite(drawn(pipeline, subjects={**PLAIN, "rex": residual})).all()
    vars(pipeline)["tokenizer"] = copy.deepcopy(pipeline.tokenizer)
    pipeline.tokenizer.chat_template = "Draw: " + pipeline.tokenizer.chat_template
    with pytest.raises(ResidualMismatchError, match="another text encoder"):
        drawn(pipeline, subjects={**PLAIN, "rex": residual})


@pytest.mark.parametrize(
    ("name", "change"),
    [("klein", {"padding_side": "left"}), ("klein", {"pad_token": "<|im_end|>"}), ("flux1", {"padding_side": "left"})],
)
def test_a_residual_knows_how_its_text_was_padded(opened: dict[str, Any], name: str, change: dict[str, str]) -> None:
    pipeline, residual = with_own_scheduler(opened[name]), residual_for(opened[name])
    tokenizer = {"klein": "tokenizer", "flux1": "tokenizer_2"}[name]
    vars(pipeline)[tokenizer] = copy.deepcopy(getattr(pipeline, tokenizer))
    for what, value in change.items():
        setattr(getattr(pipeline, tokenizer), what, value)
    with pytest.raises(ResidualMismatchError, match=r"asked otherwise \(chat template, layers or padding\)"):
        drawn(pipeline, subjects={**PLAIN, "rex": residual})
    assert residual_for(pipeline).parts[0].encoder.reading != residual.parts[0].encoder.reading


def test_how_a_text_is_asked_for_is_shown(opened: dict[str, Any]) -> None:
    for name, told in (("klein", True), ("flux1", False)):
        described = describe_file(residual_for(opened[name]).to_bytes(), origin="rex")
        assert all(("reading" in part) == told for part in described["parts"])
        assert ("asked as" in residual_rows(described)["fits"]) == told


def test_a_side_of_padding_that_is_cut_off_changes_nothing(opened: dict[str, Any]) -> None:
    pipeline, residual = with_own_scheduler(opened["z_image"]), residual_for(opened["z_image"])
    vars(pipeline)["tokenizer"] = copy.deepcopy(pipeline.tokenizer)
    pipeline.tokenizer.padding_side = "left"
    assert residual_for(pipeline).parts[0].encoder.fits(residual.parts[0].encoder)


def test_other_layers_of_one_encoder_are_another_reading(opened: dict[str, Any]) -> None:
    klein = opened["klein"]
    (own,) = fingerprints(klein, family_of(klein), "tiny")
    row = dataclasses.replace(
        family_of(klein), text_parts=(family_of(klein).text_parts[0]._replace(layers=(9, 18, 26)),)
    )
    (other,) = fingerprints(klein, row, "tiny")
    assert (own.weights, own.width) == (other.weights, other.width)
    assert own.reading != other.reading
    assert not own.fits(other)


def test_a_residual_without_a_template_is_written_as_ever(opened: dict[str, Any]) -> None:
    assert b"reading" not in residual_for(opened["sd1"]).to_bytes()


def test_a_template_that_changes_the_text_is_refused() -> None:
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content | trim }}{% endfor %}"
    with pytest.raises(PromptError, match="does not repeat"):
        in_chat(parse_prompt(" a {rex}", {"rex": "dog"}), tokenizer, thinking=True)


def test_arguments_that_would_move_the_text_are_refused(opened: dict[str, Any]) -> None:
    for name, options in (("sd3", {"prompt_3": "fog"}), ("klein", {"text_encoder_out_layers": (1, 2, 3)})):
        pipeline = with_own_scheduler(opened[name])
        with (
            pytest.raises(SettingsError, match=next(iter(options))),
            conditioned(pipeline, PROMPT, subjects=PLAIN, **options),
        ):
            pass


def test_stable_diffusion_3_without_t5(opened: dict[str, Any]) -> None:
    pipeline = with_own_scheduler(opened["sd3"])
    vars(pipeline).update(text_encoder_3=None, tokenizer_3=None)
    own = pictures(pipeline, prompt=TEXT)
    assert np.array_equal(drawn(pipeline, subjects=PLAIN), own)
    assert [part.encoder.role for part in residual_for(pipeline).parts] == ["text_encoder", "text_encoder_2"]
    assert not np.array_equal(drawn(pipeline, subjects=subjects_for(pipeline), layout=LAYOUT), own)


@every_family
def test_the_size_of_pictures(opened: dict[str, Any], name: str) -> None:
    assert native_size(opened[name]) == ((64, 64) if name == "sd3" else (1024, 1024))
