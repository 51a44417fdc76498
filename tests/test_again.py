"""A picture's record draws the same picture again, and asks for nothing that it should not."""

import contextlib
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cones2.backbones import Backbone, open_backbone
from cones2.composing.again import compose_again, threads
from cones2.composing.loop import compose
from cones2.composing.records import PictureRecord, picture_record
from cones2.composing.settings import ComposeSettings
from cones2.errors import Cones2Error, Cones2Warning, LayoutError, PictureError, ResidualError, SettingsError
from cones2.layout.regions import Layout
from cones2.picture import write_picture
from cones2.residual.residual import Residual
from cones2.steps import finish
from cones2.subjects import Subject

PROMPT = "a {rex} and a {cup}"
SETTINGS = ComposeSettings(seeds=(4, 5, 6), steps=2, negative_prompt="fog", scheduler="ddpm", preset="official-layout")
LAYOUT = Layout.from_numbers({"rex": [(0.0, 0.0, 0.5, 1.0)]})


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Backbone:
    return open_backbone(str(small_folder), device="cpu")


@pytest.fixture(scope="module")
def residual(small: Backbone) -> Residual:
    vector = torch.randn(1, small.width, generator=torch.Generator().manual_seed(1))
    return Residual("cat", vector, ("cat</w>",), small.encoder_id, {}, (), "0")


@pytest.fixture(scope="module")
def record(small: Backbone, residual: Residual) -> dict[str, Any]:
    subjects = {"rex": Subject("cat", residual, 0.5), "cup": Subject("mug")}
    return picture_record(small, PROMPT, 5, subjects=subjects, layout=LAYOUT, settings=SETTINGS)


def test_what_is_recorded_is_read_back(record: dict[str, Any], residual: Residual) -> None:
    made = PictureRecord.from_record(json.loads(json.dumps(record)))
    assert (made.prompt, made.seed, made.settings) == (PROMPT, 5, SETTINGS)
    assert made.layout is not None
    assert made.layout.to_json() == LAYOUT.to_json()
    assert made.subjects["rex"].residual == residual.sha256
    assert (made.subjects["rex"].options["strength"], made.subjects["cup"].residual) == (0.5, None)
    assert (made.device, made.dtype, made.threads) == ("cpu", "float32", torch.get_num_threads())


def test_the_same_picture_with_its_batch_and_its_threads(small: Backbone, residual: Residual) -> None:
    subjects = {"rex": Subject("cat", residual, 0.5), "cup": Subject("mug")}
    options: dict[str, Any] = {"subjects": subjects, "layout": LAYOUT, "settings": SETTINGS}
    before = torch.get_num_threads()
    with threads(1):
        drawn = finish(compose(small, PROMPT, **options))
        made = PictureRecord.from_record(picture_record(small, PROMPT, 5, **options))
    steps = compose_again(small, made, find={residual.sha256: residual}.get)
    assert torch.get_num_threads() == before
    first = next(steps)
    assert (torch.get_num_threads(), first.step, first.steps, first.pictures) == (1, 1, 2, ())
    last = finish(steps)
    assert torch.get_num_threads() == before
    assert torch.equal(last.latents, drawn.latents[1:2])
    assert [picture.tobytes() for picture in last.pictures] == [drawn.pictures[1].tobytes()]


def test_threads_are_put_back_and_never_more_than_the_machine_has() -> None:
    before = torch.get_num_threads()
    with contextlib.suppress(KeyboardInterrupt), threads(1):
        assert torch.get_num_threads() == 1
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before
    with threads(1024):
        assert torch.get_num_threads() < 1024
    assert torch.get_num_threads() == before


def test_a_residual_that_is_not_at_hand(small: Backbone, record: dict[str, Any]) -> None:
    with pytest.raises(ResidualError, match=r"no residual at hand is the picture's 'rex', a cat \(sha256 .{12}"):
        compose_again(small, PictureRecord.from_record(record), find=lambda _: None)


def test_what_differs_is_told(small: Backbone, tiny: Backbone, record: dict[str, Any], residual: Residual) -> None:
    made = PictureRecord.from_record(record)
    find = {residual.sha256: residual}.get
    older = replace(made, versions={"torch": "2.12.0"}, dtype="bfloat16")
    expected = r"may differ in its last bits: dtype bfloat16 there, float32 here; torch 2\.12\.0 there, .* here"
    with pytest.warns(Cones2Warning, match=expected):
        compose_again(small, older, find=find).close()
    stranger = replace(made, backbone=replace(made.backbone, name="other", encoder={"weights": "0" * 64}))
    with pytest.warns(Cones2Warning, match="the picture was drawn on other, this is small: expect another picture"):
        compose_again(small, stranger, find=find).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compose_again(tiny, made, find=find).close()  # the same encoder, under another name


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("prompt", 3, "wrong at 'prompt': Input should be a valid string"),
        ("extra", 3, "wrong at 'extra': Unexpected keyword argument"),
        ("seed", "5", "wrong at 'seed'"),
        ("seed", 9, "its record's seed 9 is not in its batch"),
        ("batch", [], "wrong at 'batch'"),
        ("batch", list(range(65)), "wrong at 'batch'"),
        ("batch", [True], "wrong at 'batch.0'"),
        ("threads", 10**9, "wrong at 'threads'"),
        ("device", "cuda; rm", "wrong at 'device'"),
        ("dtype", "int8", "wrong at 'dtype'"),
        ("versions", {"os": "1"}, "wrong at 'versions"),
        ("subjects.rex.residual", "../rex", "wrong at 'subjects.rex.residual'"),
        ("subjects.rex.strength", "1", "wrong at 'subjects.rex.strength'"),
        ("subjects.rex.path", "/etc/passwd", "wrong at 'subjects.rex.path': Extra inputs are not permitted"),
        ("backbone.name", "x" * 1001, "wrong at 'backbone.name'"),
        ("settings.colour", "red", "wrong at 'settings.colour': Unexpected keyword argument"),
        ("settings.steps", 2.5, "wrong at 'settings.steps'"),
    ],
)
def test_records_that_ask_for_what_is_not_there(record: dict[str, Any], path: str, value: object, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        PictureRecord.from_record(changed(record, path, value))


def test_records_that_ask_for_too_much(record: dict[str, Any]) -> None:
    big = changed(changed(record, "settings.width", 4096), "settings.height", 4096)
    with pytest.raises(PictureError, match=r"asks for 83,886,080 pixels at once: expected at most 67,108,864"):
        PictureRecord.from_record(changed(big, "batch", [1, 2, 3, 4, 5]))
    with pytest.raises(SettingsError, match="steps 100000 can't be used"):
        PictureRecord.from_record(changed(record, "settings.steps", 100_000))
    with pytest.raises(SettingsError, match="unknown layout preset"):
        PictureRecord.from_record(changed(record, "settings.preset", "mine"))
    with pytest.raises(LayoutError, match=r"outside 0\.\.1"):
        PictureRecord.from_record(changed(record, "layout.regions.rex", [[0, 0, 9, 9]]))


def test_a_picture_names_itself_in_what_is_wrong_with_it(
    record: dict[str, Any], small: Backbone, tmp_path: Path
) -> None:
    picture = finish(compose(small, "a dog", settings=ComposeSettings(steps=1))).pictures[0]
    path = tmp_path / "dog.png"
    write_picture(path, picture, record)
    assert PictureRecord.load(path).prompt == PROMPT
    write_picture(path, picture, changed(record, "settings.steps", 0))
    with pytest.raises(PictureError, match=r"dog.png can't be drawn again: steps 0 can't be used"):
        PictureRecord.load(path)
    write_picture(path, picture, {"layout": None})
    with pytest.raises(PictureError, match=r"dog.png can't be drawn again: its record is wrong at 'prompt'"):
        PictureRecord.load(path)


@given(st.data())
def test_any_json_in_a_record_is_read_or_refused(data: st.DataObject) -> None:
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    )
    keys = data.draw(st.sampled_from(list(BARE)))
    record = {**BARE, keys: data.draw(values)}
    with contextlib.suppress(Cones2Error):
        PictureRecord.from_record(record)


BARE: dict[str, Any] = {
    "prompt": "a dog",
    "text": "a dog",
    "subjects": {},
    "layout": None,
    "seed": 0,
    "batch": [0],
    "settings": {},
    "sampler": "ddim",
    "backbone": {"name": "mini", "encoder": {}},
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "versions": {},
}


def changed(record: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """Copy a record with one value of it changed."""
    copy: dict[str, Any] = json.loads(json.dumps(record))
    *parents, last = path.split(".")
    inner = copy
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return copy
