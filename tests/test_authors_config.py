"""The authors' configs and colour maps: they run as they are, in the latents of the authors' own runs."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import cones2
from command import files_in, refused, run
from cones2.backbones import Backbone
from cones2.errors import Cones2Error, Cones2Warning, LayoutError, PromptError, ResidualError, SettingsError
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.presets import PRESETS
from cones2.layout.regions import Layout
from cones2.library import FOLDER_VARIABLE
from cones2.picture import read_record

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

GOLDEN = Path(__file__).parent / "data" / "golden"
CONFIG = GOLDEN / "official.json"
CAT, TEAPOT = (0, 128, 255), (0, 200, 0)


def written(folder: Path, *others: object, **changes: Any) -> Path:
    """A config beside its files, but for some of its values."""
    for file in ("sampler_cat.pt", "sampler_teapot.pt", "sampler_layout.png"):
        if not (folder / file).exists():
            (folder / file).symlink_to(GOLDEN / file)
    entry = json.loads(CONFIG.read_text())[0] | changes
    path = folder / "config.json"
    path.write_text(json.dumps([{key: value for key, value in entry.items() if value is not None}, *others]))
    return path


def order(backbone: Backbone, folder: Path, **changes: Any) -> cones2.OfficialOrder:
    return cones2.order_official(backbone, cones2.OfficialConfig.load(written(folder, **changes)))


# It runs as it is


@pytest.mark.parametrize(("guided", "golden"), [(2, "sampler"), (1, "sampler_1of2")])
def test_it_ends_in_the_latents_of_the_authors_own_run(
    guided: int, golden: str, tiny_folder: Path, tmp_path: Path
) -> None:
    config, out, latents = written(tmp_path, guidance_steps=guided), tmp_path / "out", tmp_path / "l.safetensors"
    command = ("compose", "--official", config, "--model", tiny_folder, "--steps", 2, "--seed", 11, "--out", out)
    result = run(*command, "--latents", latents)
    assert result.stdout.splitlines() == [str(out / "0000-seed11.png")]
    with safe_open(GOLDEN / f"{golden}.safetensors", "pt") as file:
        expected = file.get_tensor("latents")
    with safe_open(latents, "pt") as file:
        found = file.get_tensor("latents")
        assert file.metadata() == {"seeds": "[11]"}
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    settings = read_record(out / "0000-seed11.png")["settings"]
    assert isinstance(settings, dict)
    assert (settings["preset"], settings["guided_steps"]) == ("official", guided)


def test_it_is_an_order_like_any_other(tiny: Backbone) -> None:
    prompt, subjects, layout, settings = cones2.order_official(tiny, cones2.OfficialConfig.load(CONFIG))
    assert prompt == "a {cat} and a {teapot} on the snow"
    assert {name: subject.class_word for name, subject in subjects.items()} == {"cat": "cat", "teapot": "teapot"}
    with safe_open(GOLDEN / "sampler.safetensors", "pt") as file:
        for name, subject in subjects.items():
            assert subject.residual is not None
            assert torch.equal(subject.residual.vector, file.get_tensor(f"residual.{name}"))
        boxes = Layout.from_numbers({name: [box] for name, box in json.loads(file.metadata()["boxes"]).items()})
    assert settings == cones2.ComposeSettings(
        seeds=(0, 1, 2, 3), steps=50, guided_steps=1, height=768, width=768, preset="official"
    )
    for side in (96, 48, 24, 12):
        for name, region in PRESETS["official"].weigh(boxes, side, side).items():
            assert torch.equal(PRESETS["official"].weigh(layout, side, side)[name].gain, region.gain)


def test_its_numbers_are_ours(tiny: Backbone, tmp_path: Path) -> None:
    found = order(
        tiny,
        tmp_path,
        guidance_weight=0.05,
        weight_negative=-1e4,
        color_context={"0,128,255": ["cat", 5], "0,200,0,255": ["teapot", 2.5]},
    )
    assert found.settings.layout_scale == pytest.approx(0.05 / 0.08)
    assert found.settings.weight_negative == -1e4
    assert {name: region.weight for name, region in found.layout.regions.items()} == {"cat": 2.0, "teapot": 1.0}


def test_what_it_leaves_out_is_as_their_readme_says(tiny: Backbone, tmp_path: Path) -> None:
    found = order(tiny, tmp_path, guidance_steps=None, guidance_weight=None, weight_negative=None)
    assert (found.settings.guided_steps, found.settings.layout_scale, found.settings.weight_negative) == (50, 1, -1e8)


def test_weight_negative_is_what_lies_outside(tiny: Backbone, tmp_path: Path) -> None:
    plain, _, layout, settings = order(tiny, tmp_path, weight_negative=-100)
    preset = settings.reading
    guidance = LayoutGuidance(layout, {"cat": ((2, 3),), "teapot": ((5, 6),)}, tiny.scheduler.alphas_cumprod, preset)
    gain = guidance.weights(12, 12, 77).gain
    assert plain == "a {cat} and a {teapot} on the snow"
    assert gain[:, 2].min().item() == pytest.approx(-100)
    assert gain[:, 2].max().item() == pytest.approx(2.5)


# Files that it names


def test_only_residuals_in_use_are_read(tiny: Backbone, tmp_path: Path) -> None:
    residuals = {"cat": "sampler_cat.pt", "teapot": "missing.pt", "barn": "/dev/zero"}
    found = order(tiny, tmp_path, residual_dict=residuals, subject_list=[["cat", 2]])
    assert found.subjects["cat"].residual is not None
    assert found.subjects["teapot"].residual is None
    with pytest.raises(ResidualError, match=r"can't read .*missing.pt: No such file"):
        order(tiny, tmp_path, residual_dict=residuals)


def test_paths_are_from_the_config_or_else_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    config = written(tmp_path / "there", layout="map.png", color_context={"0,128,255": ["cat", 2.5]})
    Image.new("RGB", (8, 8)).save(tmp_path / "here" / "map.png")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.warns(Cones2Warning, match=r"no pixel of map.png is 0,128,255\. So 'cat' gets no region"):
        cones2.OfficialConfig.load(config)
    (tmp_path / "there" / "map.png").symlink_to(GOLDEN / "sampler_layout.png")
    assert cones2.OfficialConfig.load(config).prompt == "a cat and a teapot on the snow"


# Which word is meant


def test_a_residual_may_have_a_name_of_its_own(tiny: Backbone, tmp_path: Path) -> None:
    found = order(tiny, tmp_path, residual_dict={"my pet": "sampler_cat.pt"}, subject_list=[["my pet", 2]])
    residual = found.subjects["cat"].residual
    assert residual is not None
    assert residual.class_word == "cat"


def test_tokens_counted_wrongly(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="puts 'cat' at token 3, which is 'and'; 'cat' is token 2 of the prompt"):
        order(tiny, tmp_path, subject_list=[["cat", 3]])
    with pytest.raises(PromptError, match="puts 'cat' at token 70, where the prompt has ended"):
        order(tiny, tmp_path, subject_list=[["cat", 70]])
    with pytest.raises(PromptError, match="puts two residuals at one token: give each a word of its own"):
        order(tiny, tmp_path, subject_list=[["cat", 2], ["cat", 2]])


def test_mentions_without_a_residual_are_subjects_of_their_own(tiny: Backbone, tmp_path: Path) -> None:
    found = order(tiny, tmp_path, prompt="a cat and a teapot and a cat")
    assert found.prompt == "a {cat} and a {teapot} and a {cat_2}"
    assert found.subjects["cat_2"].residual is None
    assert found.layout.regions["cat"] == found.layout.regions["cat_2"]


def test_two_colours_of_one_word_are_for_its_mentions_in_order(tiny: Backbone, tmp_path: Path) -> None:
    two = {"0,128,255": ["cat", 2.5], "0,200,0": ["cat", 2.5]}
    changes = {"prompt": "a cat and a cat", "color_context": two, "subject_list": [["cat", 2], ["cat", 5]]}
    found = order(tiny, tmp_path, **changes)
    assert found.prompt == "a {cat} and a {cat_2}"
    places = cones2.read_colour_map(GOLDEN / "sampler_layout.png", {"cat": CAT, "cat_2": TEAPOT})
    assert dict(found.layout.regions) == dict(places.regions)
    with pytest.raises(LayoutError, match="has 2 colours for 'cat', the prompt has it 1 times: expected one for all"):
        order(tiny, tmp_path, **{**changes, "prompt": "a cat and a dog", "subject_list": []})


def test_words_that_the_prompt_does_not_mention_are_left_out(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.warns(Cones2Warning, match="has a place for 'teapot', which the prompt does not mention"):
        found = order(tiny, tmp_path, prompt="a cat on the snow", subject_list=[["cat", 2]])
    assert found.layout.names == ("cat",)


def test_residual_and_colour_of_different_words(tiny: Backbone, tmp_path: Path) -> None:
    colours = {"0,128,255": ["cat and", 2.5], "0,200,0": ["teapot", 2.5]}
    with pytest.raises(PromptError, match="residuals and colours of 'cat and' overlap in the prompt"):
        order(tiny, tmp_path, color_context=colours)


def test_more_entries_than_one(tmp_path: Path) -> None:
    path = written(tmp_path, json.loads(CONFIG.read_text())[0])
    with pytest.warns(Cones2Warning, match="has 2 entries: as in the authors' script, only the first is drawn"):
        cones2.OfficialConfig.load(path)


def test_keys_that_their_script_ignores(tiny: Backbone, tmp_path: Path) -> None:
    with pytest.warns(Cones2Warning, match="has 'seed', which is none of the authors' settings: it is left out"):
        found = order(tiny, tmp_path, seed=1)
    assert found.settings == order(tiny, tmp_path).settings


def test_a_colour_that_the_picture_lacks(tiny: Backbone, tmp_path: Path) -> None:
    colours = {"0,128,255": ["cat", 2.5], "1,2,3": ["teapot", 2.5]}
    with pytest.warns(
        Cones2Warning, match=r"no pixel of .* is 1,2,3\. So 'teapot' gets no region; a JPEG has no exact"
    ):
        found = order(tiny, tmp_path, color_context=colours)
    assert (found.layout.names, "teapot" in found.subjects) == (("cat",), True)
    with pytest.raises(LayoutError, match=r"no pixel of .* is 1,2,3\. Paint it without soft edges"):
        cones2.read_colour_map(GOLDEN / "sampler_layout.png", {"teapot": (1, 2, 3)})


# What is refused


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no config of the authors' script: Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[" * 100_000, "Invalid JSON"),
        (b"{}", "Input should be a valid array"),
        (b"[]", "is an empty list"),
        (b"[1]", "at '0'"),
        (b"[{}]", "at '0.prompt': Field required"),
        (b" " * 2**20 + b"[]", "is too large"),
    ],
)
def test_files_that_are_no_config(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message) as caught:
        cones2.OfficialConfig.load(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": 5}, "at '0.prompt'"),
        ({"guidance_weight": float("nan")}, "at '0.guidance_weight'"),
        ({"guidance_weight": -0.08}, "at '0.guidance_weight'"),
        ({"weight_negative": 1.0}, "at '0.weight_negative'"),
        ({"guidance_steps": 2.5}, "at '0.guidance_steps'"),
        ({"guidance_steps": True}, "at '0.guidance_steps'"),
        ({"subject_list": [["cat"]]}, "at '0.subject_list.0"),
        ({"subject_list": [["cat", 0]]}, "at '0.subject_list.0.1'"),
        ({"subject_list": [["cat", 2]] * 65}, "at '0.subject_list'"),
        ({"subject_list": [["dog", 2]]}, "names 'dog', which has no file in residual_dict"),
        ({"color_context": {}}, "at '0.color_context'"),
        ({"color_context": {"0,0": ["cat", 2.5]}}, "'0,0' is no colour: expected red, green and blue in 0..255"),
        ({"color_context": {"0,0,256": ["cat", 2.5]}}, "'0,0,256' is no colour"),
        ({"color_context": {"0,1,2": ["cat", 1], "0,1,2,9": ["mug", 1]}}, "color_context has one colour twice"),
        ({"color_context": {"0,128,255": ["cat", 0]}}, "at '0.color_context.0,128,255.1'"),
        ({"layout": "missing.png"}, r"can't read .*missing.png"),
        ({"layout": "."}, "can't read"),
        ({"layout": "sampler_cat.pt"}, "is not a PNG, JPEG or WebP picture"),
        ({"residual_dict": {"cat": "sampler_layout.png", "teapot": "sampler_teapot.pt"}}, "is no residual of the auth"),
    ],
)
def test_values_that_make_no_sense(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(Cones2Error, match=message) as caught:
        cones2.OfficialConfig.load(written(tmp_path, **changes))
    assert len(str(caught.value).splitlines()) == 1


# Colour maps


def test_a_colour_map_is_a_layout_pixel_by_pixel(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(0, 3, (768, 768))
    palette = np.array([(0, 0, 0), CAT, (255, 0, 0)], np.uint8)
    Image.fromarray(palette[numbers]).save(tmp_path / "map.png")
    layout = cones2.read_colour_map(tmp_path / "map.png", {"cat": CAT})
    expected = torch.from_numpy(np.where(numbers == 1, 2.5, -1e8)).float()
    assert torch.equal(PRESETS["official"].weigh(layout, 768, 768)["cat"].gain, expected)
    assert Layout.from_json(layout.to_json()) == layout


def test_pictures_of_other_sizes_and_modes(tmp_path: Path) -> None:
    half = Image.new("RGB", (400, 200))
    half.paste(CAT, (0, 0, 100, 100))
    half.convert("RGBA").save(tmp_path / "rgba.png")
    half.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "palette.png")
    for name in ("rgba.png", "palette.png"):
        shown = cones2.read_colour_map(tmp_path / name, {"cat": CAT}).shown(2, 4)["cat"].cover
        assert shown[0, 0] > 0.95
        assert shown[1:].sum() == shown[:, 2:].sum() == 0


def bomb(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("1", (width, height)).save(content, format="PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a PNG"),
        (b"GIF89a" + bytes(100), "is not a PNG"),
        ((GOLDEN / "sampler_layout.png").read_bytes()[:1000], "is damaged"),
        (bomb(30_000, 30_000), "too many pixels"),
        (bomb(8_000, 8_000), "too many pixels"),
    ],
)
def test_hostile_pictures(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "map.png").write_bytes(content)
    with pytest.raises(LayoutError, match=message) as caught:
        cones2.read_colour_map(tmp_path / "map.png", {"cat": CAT})
    assert len(str(caught.value).splitlines()) == 1


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "map.png")
    with pytest.raises(LayoutError, match="it is a pipe or device"):
        cones2.read_colour_map(tmp_path / "map.png", {"cat": CAT})


# The command


def test_seeds_and_sizes_unless_told(small_folder: Path, tmp_path: Path) -> None:
    command = ("compose", "--official", written(tmp_path), "--model", small_folder, "--steps", 1)
    told = ("--width", 64, "--height", 64)
    run(*command, *told, "--out", tmp_path / "four")
    assert files_in(tmp_path / "four") == {f"{seed:04}-seed{seed}.png" for seed in range(4)}
    run(*command, *told, "--seed", 5, "--count", 2, "--latents", tmp_path / "l.safetensors", "--out", tmp_path / "two")
    assert files_in(tmp_path / "two") == {"0000-seed5.png", "0001-seed6.png"}
    with safe_open(tmp_path / "l.safetensors", "pt") as file:
        assert file.get_tensor("latents").shape == (2, 4, 8, 8)
        assert file.metadata() == {"seeds": "[5, 6]"}


@pytest.mark.parametrize(
    "option", ["--subject rex=rex.safetensors", "--plain cup", "--box cup=0,0,1,1", "--layout a.json", "--preset paper"]
)
def test_what_the_config_says_is_not_said_again(option: str, tmp_path: Path) -> None:
    name, value = option.split()
    command = ("compose", "--official", written(tmp_path), "--model", "none", "--out", tmp_path / "out", name, value)
    assert f"{name} and --official can't be used together" in refused(*command)


def test_a_config_that_can_not_be_used_is_told_before_the_model_is_opened(tmp_path: Path) -> None:
    command = ("compose", "--official", tmp_path / "none.json", "--model", "none", "--out", tmp_path / "out")
    assert "can't read" in refused(*command)
    assert not (tmp_path / "out").exists()


def test_latents_of_any_picture(small_folder: Path, tmp_path: Path) -> None:
    out, latents = tmp_path / "a.png", tmp_path / "new" / "a.safetensors"
    command = ("compose", "a dog", "--model", small_folder, "--steps", 1, "--out", out)
    run(*command, "--latents", latents)
    with safe_open(latents, "pt") as file:
        assert file.get_tensor("latents").shape == (1, 4, 8, 8)
    assert "does not end in .safetensors" in refused(*command, "--latents", tmp_path / "a.txt")


def test_a_picture_of_a_config_is_drawn_again_with_its_residuals_imported(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "library"))
    how = ("--model", small_folder, "--steps", 2, "--seed", 3, "--width", 96, "--height", 96)
    run("compose", "--official", CONFIG, *how, "--out", tmp_path / "first.png")
    for word in ("cat", "teapot"):
        out = tmp_path / f"{word}.safetensors"
        run("import", GOLDEN / f"sampler_{word}.pt", "--class", word, "--model", small_folder, "--out", out)
        run("subjects", "add", word, out)
    run("compose", "--from", tmp_path / "first.png", "--model", small_folder, "--out", tmp_path / "second.png")
    assert (tmp_path / "second.png").read_bytes() == (tmp_path / "first.png").read_bytes()
