"""The attention meter: numbers worked by hand, diffusers' own attention, and a measurement that changes nothing."""

# mypy: allow-untyped-calls

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from cones2.conditioning import conditioned
from cones2.errors import SettingsError
from cones2.layout import Layout
from cones2.monitor import AttentionMeter, AttentionReading
from cones2.rasterize import own_cells
from cones2.run import LayoutSettings
from families import JOINT

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")

LAYOUT = Layout.of({"rex": (0.0, 0.0, 0.5, 1.0), "cup": (0.5, 0.5, 1.0, 1.0)})
SPANS = {"rex": ((1, 2),), "cup": ((2, 4),)}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def reading(meter: AttentionMeter, picture: int = 0) -> dict[str, AttentionReading]:
    return {each.subject: each for each in meter.read()[picture]}


def test_even_attention_falls_by_area() -> None:
    meter = AttentionMeter(LAYOUT, {**SPANS, "fog": ((4, 5),)})
    meter.look(torch.zeros(1, 2, 16, 3), torch.randn(1, 2, 6, 3), (4, 4))
    found = reading(meter)
    expected: dict[str, Any] = {
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
    layout = Layout.of({"rex": (0.0, 0.0, 0.5, 1.0), "cup": (0.5, 0.0, 1.0, 1.0)})
    query, key = 100 * torch.eye(2).view(1, 1, 2, 2), torch.zeros(1, 1, 5, 2)
    key[0, 0, 3, 0] = key[0, 0, 1, 1] = 1
    meter = AttentionMeter(layout, SPANS)
    meter.look(query, key, (1, 2))
    found = reading(meter)
    assert found["cup"].others["rex"] == pytest.approx(1)
    assert found["rex"].others["cup"] == pytest.approx(1)


def test_where_regions_overlap_it_is_ones_own() -> None:
    everything = (0.0, 0.0, 1.0, 1.0)
    meter = AttentionMeter(Layout.of({"rex": everything, "cup": everything}), SPANS)
    meter.look(torch.zeros(1, 1, 4, 3), torch.randn(1, 1, 6, 3), (2, 2))
    for found in reading(meter).values():
        assert found.own == pytest.approx(1)
        assert (list(found.others.values()), found.outside) == ([0], 0)


def test_every_fifth_call_is_looked_at() -> None:
    meter = AttentionMeter(LAYOUT, SPANS)
    assert [meter.begin_call() for _ in range(11)] == [call in (0, 5, 10) for call in range(11)]


def test_nothing_looked_at_is_nothing_read() -> None:
    assert AttentionMeter(LAYOUT, SPANS).read() == ()


def test_the_callers_defaults_do_not_matter() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        meter = AttentionMeter(LAYOUT, SPANS)
        meter.look(torch.zeros(1, 2, 16, 3).half(), torch.randn(1, 2, 6, 3).half(), (4, 4))
        assert reading(meter)["rex"].own == pytest.approx(0.5, rel=1e-3)
    finally:
        torch.set_default_dtype(torch.float32)


def test_without_regions_there_is_nothing_to_measure_by() -> None:
    with pytest.raises(SettingsError, match="no"):
        AttentionMeter(Layout({}), SPANS)


# In drawing


def drawn(pipeline: Any, *, meter: bool, seeds: tuple[int, ...] = (3, 4), steps: int = 2, **settings: Any) -> Any:
    """Return two pictures' numbers, and what the meter read."""
    pipeline = copy.copy(pipeline)
    pipeline.scheduler = copy.deepcopy(pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 64, "width": 80, "num_inference_steps": steps, "output_type": "np"}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    subjects = {"rex": "cat", "cup": "dog"}
    options: dict[str, Any] = {"layout": LAYOUT, "layout_settings": LayoutSettings(**settings), "meter": meter}
    with conditioned(pipeline, "a {rex} and a {cup}", subjects=subjects, **options) as inputs:
        pictures = pipeline(**inputs.for_pictures(len(seeds)), **size, generator=generators).images
        return pictures, inputs.attention()


@pytest.mark.parametrize("family", ["sd1", "sdxl", *JOINT])
def test_measuring_changes_no_bit(opened: dict[str, Any], family: str) -> None:
    plain, none = drawn(opened[family], meter=False)
    measured, readings = drawn(opened[family], meter=True)
    assert none == ()
    assert np.array_equal(plain, measured)
    assert len(readings) == 2
    for found in readings:
        assert [each.subject for each in found] == ["rex", "cup"]
        for each in found:
            assert each.own is not None
            assert each.own + sum(each.others.values()) + each.outside == pytest.approx(1)
            assert each.heat.shape == ((8, 10) if family == "sd1" else (4, 5))
            assert float(each.heat.sum()) == pytest.approx(1)


def test_a_reading_does_not_depend_on_batch_mates(tiny: Any) -> None:
    _, both = drawn(tiny, meter=True)
    _, alone = drawn(tiny, meter=True, seeds=(4,))
    assert both[1][0].own == pytest.approx(alone[0][0].own, rel=1e-3)


def test_it_measures_what_diffusers_computes(tiny: Any) -> None:
    """The layout is off and one step is drawn: the layers' own queries and keys give the masses."""
    layers = [module for name, module in tiny.unet.named_modules() if name.endswith("attn2")]
    masses: list[torch.Tensor] = []

    def record(layer: Any, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        query, key = layer.to_q(args[0][2:]), layer.to_k(kwargs["encoder_hidden_states"][2:])
        scores = layer.get_attention_scores(layer.head_to_batch_dim(query), layer.head_to_batch_dim(key))
        attention = scores.unflatten(0, (2, -1)).mean(1)[:, :, 5:6].sum(-1)  # of `cup`, behind "a cat and a"
        height = round((attention.shape[1] / 1.25) ** 0.5) or 1
        masses.append(attention.unflatten(1, (height, -1)) / attention.shape[1])

    hooks = [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in layers]
    try:
        _, readings = drawn(tiny, meter=True, steps=6, layout_scale=0.0)
    finally:
        for hook in hooks:
            hook.remove()
    looked_at = masses[: len(layers)] + masses[5 * len(layers) : 6 * len(layers)]  # the first call and the sixth
    for picture in range(2):
        maps = [mass[picture] for mass in looked_at]
        total = sum(float(each.sum()) for each in maps)
        own = sum(float(each[cells(each, "cup")].sum()) for each in maps) / total
        rexs = sum(float(each[cells(each, "rex") & ~cells(each, "cup")].sum()) for each in maps) / total
        found = {each.subject: each for each in readings[picture]}["cup"]
        assert found.own == pytest.approx(own, rel=1e-3)
        assert found.others["rex"] == pytest.approx(rexs, rel=1e-3)


def cells(grid: torch.Tensor, name: str) -> torch.Tensor:
    return torch.from_numpy(own_cells(LAYOUT, *grid.shape)[name])
