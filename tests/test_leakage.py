"""The leakage meter: numbers worked by hand, diffusers' own attention, and a measurement that changes nothing."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image

from cones2.backbones import Backbone
from cones2.composing import heat as heat_map
from cones2.composing.loop import compose
from cones2.composing.sampler import ComposeStep
from cones2.composing.settings import ComposeSettings
from cones2.errors import SettingsError
from cones2.guidance.attention import edited_cross_attention
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.leakage import AttentionMeter, Leakage
from cones2.guidance.text import TextEdit
from cones2.layout.regions import Layout
from cones2.steps import finish
from cones2.subjects import Subject

LAYOUT = Layout.from_numbers({"rex": [(0.0, 0.0, 0.5, 1.0)], "cup": [(0.5, 0.5, 1.0, 1.0)]})
SPANS = {"rex": ((1, 2),), "cup": ((2, 4),)}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def reading(meter: AttentionMeter, picture: int = 0) -> dict[str, Leakage]:
    return {each.subject: each for each in meter.read()[picture]}


def test_even_attention_falls_by_area() -> None:
    meter = AttentionMeter(LAYOUT, {**SPANS, "fog": ((4, 5),)})
    meter.look(torch.zeros(1, 2, 16, 3), torch.randn(1, 2, 6, 3), (4, 4))
    found = reading(meter)
    expected = {
        "rex": {"own": 0.5, "others": {"cup": 0.25}, "outside": 0.25},
        "cup": {"own": 0.25, "others": {"rex": 0.5}, "outside": 0.25},
        "fog": {"own": None, "others": {"rex": 0.5, "cup": 0.25}, "outside": 0.25},
    }
    for name, parts in expected.items():
        own, others, outside = found[name].describe().values()
        assert (own, outside) == (pytest.approx(parts["own"]), pytest.approx(parts["outside"]))
        assert others == pytest.approx(parts["others"])
    torch.testing.assert_close(found["rex"].heat, torch.full((4, 4), 1 / 16))
    assert str(found["cup"]) == "cup: 25 % in its own region, 50 % in rex's, 25 % outside"
    assert str(found["fog"]) == "fog: 50 % in rex's, 25 % in cup's, 25 % outside"


def test_attention_that_goes_to_the_wrong_place() -> None:
    # Two pixels, left and right; the left one reads `cup`'s second token, the right one `rex`'s.
    layout = Layout.from_numbers({"rex": [(0.0, 0.0, 0.5, 1.0)], "cup": [(0.5, 0.0, 1.0, 1.0)]})
    query, key = 100 * torch.eye(2).view(1, 1, 2, 2), torch.zeros(1, 1, 5, 2)
    key[0, 0, 3, 0] = key[0, 0, 1, 1] = 1
    meter = AttentionMeter(layout, SPANS)
    meter.look(query, key, (1, 2))
    found = reading(meter)
    assert found["cup"].others["rex"] == pytest.approx(1)
    assert found["rex"].others["cup"] == pytest.approx(1)


def test_where_regions_overlap_it_is_ones_own() -> None:
    everything = [(0.0, 0.0, 1.0, 1.0)]
    meter = AttentionMeter(Layout.from_numbers({"rex": everything, "cup": everything}), SPANS)
    meter.look(torch.zeros(1, 1, 4, 3), torch.randn(1, 1, 6, 3), (2, 2))
    for found in reading(meter).values():
        assert (found.own, list(found.others.values()), found.outside) == (pytest.approx(1), [0], 0)


def test_every_fifth_call_is_looked_at() -> None:
    meter = AttentionMeter(LAYOUT, SPANS)
    assert [meter.begin_call() for _ in range(11)] == [call in (0, 5, 10) for call in range(11)]


def test_it_measures_what_diffusers_computes() -> None:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), mid_block_type=None,
        up_block_types=("UpBlock2D", "UpBlock2D"), attention_head_dim=2,
    ).eval()  # fmt: skip
    latents, text = torch.randn(3, 4, 8, 8), torch.randn(3, 6, 8)
    masses: list[torch.Tensor] = []

    def record(layer, args) -> None:
        query, key = layer.to_q(args[0][1:]), layer.to_k(text[1:])
        scores = layer.get_attention_scores(layer.head_to_batch_dim(query), layer.head_to_batch_dim(key))
        attention = scores.unflatten(0, (2, -1)).mean(1)[:, :, 2:4].sum(-1)  # of `cup`
        side = int(attention.shape[1] ** 0.5)
        masses.append(attention.unflatten(1, (side, side)) / side**2)

    for block in unet.down_blocks:
        block.attentions[0].transformer_blocks[0].attn2.register_forward_pre_hook(record)
    meter = AttentionMeter(LAYOUT, SPANS)
    guidance = LayoutGuidance(LAYOUT, SPANS, torch.linspace(0.999, 0.005, 1000), layout_scale=0.0)
    edits = {"text": TextEdit(1000, negatives={"cup": torch.randn(2, 8)}), "meter": meter}
    with edited_cross_attention(unet, guidance, conditional=[False, True, True], **edits):
        unet(latents, 500, text)
    for picture in range(2):
        maps = [mass[picture] for mass in masses]
        total = sum(each.sum() for each in maps)
        own = sum(each[len(each) // 2 :, len(each) // 2 :].sum() for each in maps) / total
        rexs = sum(each[:, : len(each) // 2].sum() for each in maps) / total
        found = reading(meter, picture)["cup"]
        assert found.own == pytest.approx(float(own), rel=1e-3)
        assert found.others["rex"] == pytest.approx(float(rexs), rel=1e-3)
        assert found.heat.shape == (8, 8)
        assert float(found.heat.sum()) == pytest.approx(1)


# In composing


def drawn(tiny: Backbone, *, measure_attention: bool, **options: object) -> ComposeStep:
    subjects = {"rex": Subject("cat"), "cup": Subject("teapot")}
    settings = ComposeSettings(seeds=(3, 4), steps=6, height=64, width=72)
    call = {"subjects": subjects, "layout": LAYOUT, "settings": settings, **options}
    return finish(compose(tiny, "a {rex} and a {cup}", **call, measure_attention=measure_attention))


def test_measuring_changes_no_bit(tiny: Backbone) -> None:
    plain, measured = (drawn(tiny, measure_attention=measure) for measure in (False, True))
    assert torch.equal(plain.latents, measured.latents)
    assert plain.attention == ()
    for found in measured.attention:
        assert [each.subject for each in found] == ["rex", "cup"]
        for each in found:
            assert each.own is not None
            assert each.own + sum(each.others.values()) + each.outside == pytest.approx(1)
            assert each.heat.shape == (8, 9)


def test_a_reading_does_not_depend_on_batch_mates(tiny: Backbone) -> None:
    both = drawn(tiny, measure_attention=True).attention
    settings = ComposeSettings(seeds=(4,), steps=6, height=64, width=72)
    alone = drawn(tiny, measure_attention=True, settings=settings).attention
    assert both[1][0].own == pytest.approx(alone[0][0].own, rel=1e-3)


def test_the_heat_map_is_lit_where_attention_went() -> None:
    heat = torch.tensor([[0.0, 0.0], [0.25, 0.75]])
    reading = Leakage("rex", own=0.25, others={}, outside=0.75, heat=heat)
    lit = np.asarray(heat_map._light(Image.new("RGB", (20, 20), "white"), reading)).mean(-1)
    assert lit[0, 0] == pytest.approx(0.15 * 255, abs=1)
    assert lit[-1, -1] == 255
    assert lit[-1, 0] == pytest.approx((0.15 + 0.85 / 3) * 255, abs=1)
    sheet = heat_map.draw_attention(Image.new("RGB", (64, 48), "white"), [reading, reading], LAYOUT)
    assert sheet.width > 2 * 256


def test_without_regions_there_is_nothing_to_measure_by(tiny: Backbone) -> None:
    message = "attention is measured by regions, and there are none: give a layout, or don't measure"
    for layout in (None, Layout({})):
        with pytest.raises(SettingsError, match=message):
            drawn(tiny, measure_attention=True, layout=layout)
