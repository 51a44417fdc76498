"""What a layout, a subject and a call may say on joint transformers: masks, z, one class twice, strengths and steps.

Real classes at tiny size with random weights: the numbers go where they should, and no more is shown.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cones2.conditioning import LayoutSettings, conditioned
from cones2.families import family_of
from cones2.layout import Layout, Region
from cones2.models import open_pipeline
from cones2.presets import cones_v2_sigmas
from cones2.rasterize import own_cells
from cones2.shapes import Box, Mask
from cones2.subjects import Subject
from families import JOINT
from joint import PLAIN, changed_cells, drawn, pictures, shallow
from subjects_for_tests import LAYOUT, PROMPT, TEXT, residual_for, subjects_for, with_own_scheduler

pytestmark = pytest.mark.joint_attention

every_family = pytest.mark.parametrize("name", JOINT)

_RAGGED = np.zeros((4, 6), np.uint8)
_RAGGED[[0, 0, 1, 3], [0, 4, 1, 5]] = 255
LAYOUTS = {
    "a mask": Layout({"rex": Region((Mask(6, 4, _RAGGED.tobytes()),))}),
    "one behind another": Layout(
        {"rex": Region((Box(0.0, 0.0, 1.0, 1.0),)), "cup": Region((Box(1 / 3, 0.0, 2 / 3, 1.0),), z=1)}
    ),
    "one before another": Layout(
        {"rex": Region((Box(1 / 3, 0.0, 2 / 3, 1.0),), z=1), "cup": Region((Box(0.0, 0.0, 1.0, 1.0),))}
    ),
}


@every_family
@pytest.mark.parametrize("kind", LAYOUTS)
def test_masks_and_nested_regions_keep_a_residual_where_they_are_seen(
    opened: dict[str, Any], name: str, kind: str
) -> None:
    layout = LAYOUTS[kind]
    seen = torch.from_numpy(own_cells(layout, 4, 6)["rex"])
    assert 0 < int(seen.sum()) < 24
    if kind == "a mask":  # what lies in no region is everyone's, but for another's own
        layout = Layout({**layout.regions, "cup": Region((Mask(6, 4, (255 - _RAGGED).tobytes()),))})
    assert torch.equal(changed_cells(shallow(opened[name]), layout) > 0, seen)


@every_family
def test_two_subjects_of_one_class_keep_apart(opened: dict[str, Any], name: str) -> None:
    layout = Layout.of({"rex": (0, 0, 1 / 3, 1), "cup": "rest"})
    found = changed_cells(shallow(opened[name]), layout, plain={"rex": "cat", "cup": "cat"})
    assert torch.equal(found > 0, torch.from_numpy(own_cells(layout, 4, 6)["rex"]))


@every_family
def test_strength_multiplies_what_is_added(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    texts = {}
    for strength in (0.0, 0.5, 1.0, -1.0):
        subjects = subjects_for(pipeline, strength=strength)
        with conditioned(pipeline, PROMPT, subjects=subjects, layout=LAYOUT) as inputs:
            texts[strength] = inputs["prompt_embeds"][0].clone()
    added = texts[1.0] - texts[0.0]
    assert added.any()
    torch.testing.assert_close(texts[0.5] - texts[0.0], added / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(texts[-1.0] - texts[0.0], -added, atol=1e-5, rtol=1e-5)
    plain = drawn(pipeline, subjects=PLAIN, layout=LAYOUT)
    assert np.array_equal(drawn(pipeline, subjects=subjects_for(pipeline, strength=0.0), layout=LAYOUT), plain)


@every_family
def test_a_layout_in_the_first_steps_alone(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    added: list[bool] = []
    with conditioned(
        pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT, layout_settings=LayoutSettings(guided_steps=2)
    ) as inputs:
        bias = inputs.run.bias

        def watched(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
            found = bias(query, key)
            if inputs.run._call.rows is not None:
                added.append(found is not None)
            return found

        vars(inputs.run)["bias"] = watched
        pictures(pipeline, **inputs)
    each = len(added) // 3
    assert added == [True] * 2 * each + [False] * each
    options: dict[str, Any] = {"subjects": PLAIN, "layout": LAYOUT}
    none, every = (drawn(pipeline, layout_settings=LayoutSettings(guided_steps=n), **options) for n in (0, 3))
    assert np.array_equal(none, pictures(pipeline, prompt=TEXT))
    assert np.array_equal(every, drawn(pipeline, **options))


@every_family
def test_the_authors_preset_adds_what_it_says(opened: dict[str, Any], name: str) -> None:
    """γ+ = 2.5 everywhere in a region of the whole picture, times 0.08 log(1 + σ²) and the scores' spread."""
    pipeline = with_own_scheduler(opened[name])
    layout = Layout.of({"rex": (0, 0, 1, 1)})
    settings = LayoutSettings(preset="cones_v2")
    seen: list[tuple[torch.Tensor, ...]] = []
    with conditioned(
        pipeline, PROMPT, subjects=PLAIN, layout=layout, layout_settings=settings, guidance_scale=0.0
    ) as inputs:
        given, bias, run = dict(inputs), inputs.run.bias, inputs.run
        if run.family.name == "FLUX.1":
            given.pop("guidance_scale")

        def watched(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
            found = bias(query, key)
            assert found is not None
            seen.append((query.clone(), key.clone(), found.clone()))
            return found

        vars(run)["bias"] = watched
        pictures(pipeline, **given, num_inference_steps=1)
    query, key, found = seen[0]
    assert run.sequence is not None
    image = slice(run.sequence.image, run.sequence.image + 24)
    text = slice(run.sequence.text, run.sequence.text + len(inputs["prompt_embeds"][0]))
    spread = (query[0, :, image] @ key[0, :, text].mT / query.shape[3] ** 0.5).std()
    expected = 2.5 * 0.08 * cones_v2_sigmas(1)[0].square().log1p() * spread
    for start, stop in run.spans["rex"]:
        own = found[0, 0, image, text][:, start:stop]
        torch.testing.assert_close(own, expected.expand_as(own))
        found[0, 0, image, run.sequence.text + start : run.sequence.text + stop] = 0
    assert not found.any()


FIRST = {"flux1": (512, 0), "klein": (512, 0), "sd3": (0, 24), "z_image": (0, 32)}
"""Where the image's tokens begin, and the text's, for 4 x 6 cells."""


@every_family
def test_the_meter_reads_an_image_rows_shares_among_the_texts_tokens(opened: dict[str, Any], name: str) -> None:
    """The layout is off and one step is drawn: the layers' own queries and keys give the shares."""
    pipeline = with_own_scheduler(opened[name])
    image, text = FIRST[name]
    maps: list[torch.Tensor] = []
    off = LayoutSettings(layout_scale=0.0)
    with conditioned(
        pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT, layout_settings=off, meter=True, guidance_scale=0.0
    ) as inputs:
        given, count = dict(inputs), len(inputs["prompt_embeds"][0])
        if name == "flux1":
            given.pop("guidance_scale")
        bias, spans = inputs.run.bias, inputs.run.spans["cup"]

        def watched(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor | None:
            scores = query[0, :, image : image + 24] @ key[0, :, text : text + count].mT / query.shape[3] ** 0.5
            shares = scores.softmax(-1).mean(0)
            maps.append(sum((shares[:, a:b].sum(1) for a, b in spans), torch.zeros(24)).view(4, 6))
            return bias(query, key)

        vars(inputs.run)["bias"] = watched
        pictures(pipeline, **given, num_inference_steps=1)
        reading = {each.subject: each for each in inputs.attention()[0]}["cup"]
    cells, total = own_cells(LAYOUT, 4, 6), torch.stack(maps).sum(0)
    own, rex = (total[torch.from_numpy(cells[each])].sum() / total.sum() for each in ("cup", "rex"))
    assert reading.own == pytest.approx(float(own), rel=1e-3)
    assert reading.others["rex"] == pytest.approx(float(rex), rel=1e-3)
    torch.testing.assert_close(reading.heat, total / total.sum(), rtol=1e-3, atol=1e-6)


@every_family
def test_offloaded_models_draw_the_same(opened: dict[str, Any], folders: dict[str, Path], name: str) -> None:
    """With a negative text, which Z-Image's blocks read within the first call, when weights are on the device."""
    guided: dict[str, Any] = {"true_cfg_scale": 4.0} if name == "flux1" else {"guidance_scale": 4.0}
    residual = subjects_for(opened[name])["rex"].residual
    subjects = {"rex": Subject("cat", residual, negative="fog"), "cup": "teapot"}
    options: dict[str, Any] = {"subjects": subjects, "layout": LAYOUT, **guided}
    pipeline: Any = open_pipeline(str(folders[name]), device="cpu")
    pipeline.set_progress_bar_config(disable=True)
    expected = drawn(pipeline, **options)
    pipeline.enable_model_cpu_offload(device="cpu")  # moves nothing, but hooks every model as on a GPU
    for _ in range(2):
        np.testing.assert_allclose(drawn(pipeline, **options), expected, atol=1e-5)
    assert type(pipeline.transformer._hf_hook).__name__ == "CpuOffload"


# Spans of several tokens, and texts that are cut


def _tokens(pipeline: Any, part: str, word: str) -> int:
    tokenizer = copy.deepcopy(getattr(pipeline, part))
    return len(tokenizer(word, add_special_tokens=False)["input_ids"])


@every_family
def test_a_residual_of_several_tokens_is_drawn(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    residual = residual_for(pipeline, "teddy bear")
    assert all(len(part.tokens) >= 2 for part in residual.parts)
    subjects: dict[str, Any] = {"rex": Subject("teddy bear", residual), "cup": "teapot"}
    options: dict[str, Any] = {"subjects": subjects, "layout": LAYOUT}
    with conditioned(pipeline, "red, {rex} and a {cup}", **options) as inputs:
        taught, spans = inputs["prompt_embeds"][0].clone(), inputs.run.spans["rex"]
    with conditioned(pipeline, "red, teddy bear and a teapot") as inputs:
        moved = (taught - inputs["prompt_embeds"][0]).any(1)
    rows = torch.zeros(len(moved), dtype=torch.bool)
    for start, stop in spans:
        rows[start:stop] = True
    assert torch.equal(moved, rows)
    sizes = [_tokens(pipeline, part.tokenizer, " teddy bear") for part in family_of(pipeline).text_parts]
    assert {stop - start for start, stop in spans} <= set(sizes)
    plain = {"rex": "teddy bear", "cup": "teapot"}
    assert np.abs(drawn(pipeline, **options) - drawn(pipeline, subjects=plain, layout=LAYOUT)).max() > 1e-4
