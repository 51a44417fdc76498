"""Grids: every combination, in order, as arguments of the pipeline's call."""

from typing import Any

import pytest

from cones2.errors import SettingsError
from cones2.grid import Axis, parse_values, plan_grid
from cones2.residual import Residual
from cones2.subjects import Subject
from subjects_for_tests import residual_for


@pytest.fixture
def rex(tiny: Any) -> Residual:
    return residual_for(tiny, "cat")


@pytest.fixture
def fido(tiny: Any) -> Residual:
    return residual_for(tiny, "dog")


def test_the_first_axis_runs_across_and_the_others_down(rex: Residual, fido: Residual) -> None:
    axes = (
        Axis("seed", (3, 4)),
        Axis("strength.pet", (0.0, 0.5)),
        Axis("subject.pet", (rex, fido), ("rex", "fido")),
        Axis("preset", ("cones_v2",)),
    )
    rows = plan_grid(axes, subjects={"pet": Subject("cat", rex, 0.9)}, num_inference_steps=7)
    assert [[cell.arguments["seed"] for cell in row] for row in rows] == [[3, 4]] * 4
    assert [(row[0].subjects["pet"].strength, row[0].subjects["pet"].class_word) for row in rows] == [
        (0.0, "cat"),
        (0.0, "dog"),
        (0.5, "cat"),
        (0.5, "dog"),
    ]
    assert rows[1][0].labels == {"strength.pet": "0.0", "subject.pet": "fido", "preset": "cones_v2", "seed": "3"}
    assert rows[1][0].subjects["pet"].residual is fido
    assert rows[3][1].arguments == {"seed": 4, "num_inference_steps": 7, "preset": "cones_v2"}


def test_without_an_axis_of_seeds_all_have_the_same() -> None:
    ((one, two),) = plan_grid([Axis("scheduler", ("ddim", "Euler a"))])
    assert (one.scheduler, two.scheduler, one.arguments, two.arguments) == ("ddim", "Euler a", {"seed": 0}, {"seed": 0})
    ((one,), (two,)) = plan_grid([Axis("width", (64,)), Axis("guided_steps", (0, 1))], seed=8)
    assert (one.arguments["seed"], two.arguments) == (8, {"seed": 8, "width": 64, "guided_steps": 1})


def test_values_are_of_their_arguments_kind() -> None:
    assert parse_values("seed", ["0", "3"]) == (0, 3)
    assert parse_values("strength.rex", ["0", ".5"]) == (0.0, 0.5)
    assert parse_values("width", ["128"]) == (128,)
    assert parse_values("scheduler", ["ddim", "euler"]) == ("ddim", "euler")
    assert parse_values("layout_levels", ["0", "2"]) == ((0,), (2,))
    for name, text in (("layout_effect", "weaken"), ("negative_prompt", "1"), ("guided_steps", "1"), ("force", "1")):
        plan_grid([Axis(name, parse_values(name, [text]))])


@pytest.mark.parametrize(
    ("name", "text"),
    [("layout_levels", "all"), ("num_inference_steps", "many"), ("num_inference_steps", "0"), ("seed", "-1")],
)
def test_values_of_another_kind(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"{name}.*{text}"):
        parse_values(name, [text])


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("colour", ("red",), "'colour'"),
        ("seeds", ((1,),), "'seeds'"),
        ("seed", (2**63,), str(2**63)),
        ("subject", ("rex",), "'subject'"),
        ("seed.rex", (1,), "'seed.rex'"),
        ("seed", (), "seed"),
        ("scheduler", ("eulr",), "'eulr'"),
        ("layout_scale", (-1.0,), "-1"),
        ("preset", ("mine",), "'mine'"),
    ],
)
def test_axes_that_make_no_sense(name: str, values: tuple[Any, ...], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        Axis(name, values)


def test_grids_that_make_no_sense(rex: Residual) -> None:
    with pytest.raises(SettingsError, match="axes"):
        plan_grid([])
    with pytest.raises(SettingsError, match="seed"):
        plan_grid([Axis("seed", (1,)), Axis("seed", (2,))])
    with pytest.raises(SettingsError, match=r"'pet'.*rex"):
        plan_grid([Axis("strength.pet", (1.0,))], subjects={"rex": Subject("cat", rex)})
    with pytest.raises(SettingsError, match=r"'pet'.*no residual"):
        plan_grid([Axis("strength.pet", (1.0,))], subjects={"pet": Subject("cat")})
    with pytest.raises(SettingsError, match="1001"):
        plan_grid([Axis("seed", tuple(range(1001)))])
