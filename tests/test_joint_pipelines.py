"""The other pipelines of the joint families: img2img, inpainting, ControlNet and reference images, opened and drawn.

Real classes at tiny size with random weights.
"""

# mypy: allow-untyped-calls

import copy
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from cones2.conditioning import conditioned
from cones2.errors import ModelError
from cones2.models import open_pipeline
from cones2.pipeline import Cones2Pipeline
from cones2.subjects import Subject
from joint import PLAIN, drawn, pictures, predictions
from little_hub import keep_in_cache
from subjects_for_tests import LAYOUT, PROMPT, TEXT, subjects_for, with_own_scheduler

pytestmark = [
    pytest.mark.joint_attention,
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed`:FutureWarning"),  # diffusers' own, in FLUX.1's ControlNet
]

PHOTO = Image.effect_noise((96, 64), 60).convert("RGB")
MASK = Image.new("L", (96, 64), 255)
BEGUN: dict[str, Any] = {"image": PHOTO, "strength": 0.8, "num_inference_steps": 4}
FILLED = {**BEGUN, "mask_image": MASK}
SHOWN: dict[str, Any] = {"control_image": PHOTO}

OPENED: dict[str, tuple[str, dict[str, Any]]] = {
    "FluxImg2ImgPipeline": ("flux1", BEGUN),
    "FluxInpaintPipeline": ("flux1", FILLED),
    "FluxControlNetPipeline": ("flux1", SHOWN),
    "FluxControlNetImg2ImgPipeline": ("flux1", {**BEGUN, **SHOWN}),
    "FluxControlNetInpaintPipeline": ("flux1", {**FILLED, **SHOWN}),
    "FluxKontextPipeline": ("flux1", {"image": PHOTO, "max_area": 64 * 96, "_auto_resize": False}),
    "FluxKontextInpaintPipeline": ("flux1", {**FILLED, "max_area": 64 * 96, "_auto_resize": False}),
    "StableDiffusion3Img2ImgPipeline": ("sd3", BEGUN),
    "StableDiffusion3InpaintPipeline": ("sd3", FILLED),
    "StableDiffusion3ControlNetPipeline": ("sd3", SHOWN),
    "StableDiffusion3ControlNetInpaintingPipeline": ("sd3", {**SHOWN, "control_mask": MASK}),
    "ZImageImg2ImgPipeline": ("z_image", BEGUN),
    "ZImageInpaintPipeline": ("z_image", FILLED),
    "ZImageControlNetPipeline": ("z_image", SHOWN),
    "ZImageControlNetInpaintPipeline": ("z_image", {**SHOWN, "image": PHOTO, "mask_image": MASK}),
    "Flux2KleinInpaintPipeline": ("klein", FILLED),
}
"""By class: the family, and how it is called."""


def controlnet(kind: str, own: Any) -> Any:
    """A ControlNet of random weights; as made, its outputs are zero."""
    is_filling = "Inpaint" in kind
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind.startswith("StableDiffusion3"):
            transformer = copy.deepcopy(own.transformer)  # whose settings this changes
            net: Any = diffusers.SD3ControlNetModel.from_transformer(
                transformer, num_layers=1, num_extra_conditioning_channels=int(is_filling)
            )
        elif kind.startswith("Flux"):
            heads = {name: own.transformer.config[name] for name in ("attention_head_dim", "num_attention_heads")}
            net = diffusers.FluxControlNetModel.from_transformer(
                own.transformer, num_layers=1, num_single_layers=1, **heads
            )
        else:
            shape = {name: own.transformer.config[name] for name in ("dim", "n_heads", "n_kv_heads")}
            net = diffusers.ZImageControlNetModel(
                control_layers_places=[0, 1], control_in_dim=9 if is_filling else 4, n_refiner_layers=1, **shape
            )
        for weight in net.parameters():
            torch.nn.init.normal_(weight, std=0.1)
    return net.eval()


def made(kind: str, own: Any, **parts: Any) -> Any:
    """Such a pipeline with the parts of another."""
    pipeline = getattr(diffusers, kind)
    taken = inspect.signature(pipeline.__init__).parameters
    found = pipeline(**{name: part for name, part in own.components.items() if name in taken} | parts)
    found.set_progress_bar_config(disable=True)
    return found


def saved(opened: dict[str, Any], kind: str, folder: Path) -> Path:
    """A folder of such a pipeline with the tiny model's parts."""
    own = with_own_scheduler(opened[OPENED[kind][0]])
    parts = {"controlnet": controlnet(kind, own)} if "ControlNet" in kind else {}
    made(kind, own, **parts).save_pretrained(folder / "model")
    return folder / "model"


@pytest.mark.parametrize("kind", OPENED)
def test_a_folder_opens_as_what_it_is_and_is_drawn_with(opened: dict[str, Any], tmp_path: Path, kind: str) -> None:
    name, call = OPENED[kind]
    pipeline: Any = open_pipeline(saved(opened, kind, tmp_path), device="cpu")
    assert type(pipeline) is getattr(diffusers, kind)
    pipeline.set_progress_bar_config(disable=True)
    own = pictures(pipeline, prompt=TEXT, **call)
    if "ControlNet" in kind and call is SHOWN:
        assert np.abs(own - pictures(with_own_scheduler(opened[name]), prompt=TEXT)).max() > 1e-3
    assert np.array_equal(drawn(pipeline, subjects=PLAIN, call=call), own)
    placed = drawn(pipeline, subjects=subjects_for(opened[name]), layout=LAYOUT, call=call)
    assert np.abs(placed - own).max() > 1e-3
    assert np.array_equal(pictures(pipeline, prompt=TEXT, **call), own)


@pytest.mark.parametrize("kind", ["FluxControlNetPipeline", "ZImageInpaintPipeline"])
def test_a_hub_id_opens_as_what_it_is(
    opened: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    keep_in_cache(saved(opened, kind, tmp_path), "someone/joint", tmp_path, monkeypatch)
    pipe = Cones2Pipeline.from_pretrained("someone/joint", device="cpu")
    assert type(pipe.pipeline) is getattr(diffusers, kind)
    assert pipe.name_or_path == "someone/joint"


@pytest.mark.parametrize(
    ("kind", "changes", "value"),
    [
        (
            "FluxControlNetPipeline",
            {"num_attention_heads": 1},
            "num_attention_heads of its controlnet is 1, expected 2",
        ),
        ("StableDiffusion3ControlNetPipeline", {"extra_conditioning_channels": 1}, "controlnet is 1, expected 0"),
        ("ZImageControlNetPipeline", {"control_in_dim": 3}, "control_in_dim of its controlnet is 3, expected 4 to"),
        ("ZImageControlNetPipeline", {"control_layers_places": [0, 10**9]}, "from 0 to 127"),
        ("ZImageControlNetPipeline", {"control_layers_places": [0] * 100}, "from 0 to 127"),
    ],
)
def test_a_controlnet_that_does_not_fit(
    opened: dict[str, Any], tmp_path: Path, kind: str, changes: dict[str, Any], value: str
) -> None:
    folder = saved(opened, kind, tmp_path)
    file = folder / "controlnet/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    if "expected" in value:  # of these, the weights have to be as the file says
        shutil.rmtree(folder / "controlnet")
        net = controlnet(kind, opened[OPENED[kind][0]])
        type(net).from_config({**net.config, **changes}).save_pretrained(folder / "controlnet")
    with pytest.raises(ModelError, match=value) as caught:
        open_pipeline(folder, device="cpu")
    assert len(str(caught.value).splitlines()) == 1


def test_pipelines_whose_transformer_is_another_are_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["flux1"], tmp_path / "fill"))
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"FluxPipeline"', '"FluxFillPipeline"'))
    with pytest.raises(ModelError, match=r"FluxFillPipeline.*supported are"):
        open_pipeline(folder, device="cpu")


@pytest.mark.parametrize("kind", ["FluxControlPipeline", "FluxFillPipeline"])
def test_a_transformer_that_reads_a_picture_beside_the_latents(opened: dict[str, Any], kind: str) -> None:
    """FLUX.1's Control and Fill, by `Cones2Pipeline(pipe)`: their pictures are channels, which move no token."""
    own = with_own_scheduler(opened["flux1"])
    channels = {"FluxControlPipeline": 2 * 16, "FluxFillPipeline": 2 * 16 + 4 * 64}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = diffusers.FluxTransformer2DModel.from_config(
            {**own.transformer.config, "in_channels": channels, "out_channels": 16}
        )
    pipeline = made(kind, own, transformer=transformer.eval())
    call: dict[str, Any] = SHOWN if kind == "FluxControlPipeline" else {"image": PHOTO, "mask_image": MASK}
    plain = pictures(pipeline, prompt=TEXT, **call)
    assert np.array_equal(drawn(pipeline, subjects=PLAIN, call=call), plain)
    assert np.abs(drawn(pipeline, subjects=subjects_for(own), layout=LAYOUT, call=call) - plain).max() > 1e-3


# Z-Image's ControlNet, whose residuals are as long as the whole sequence


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_z_images_controlnet_adds_nothing_to_negative_texts(opened: dict[str, Any], scale: float) -> None:
    own = with_own_scheduler(opened["z_image"])
    pipeline = made("ZImageControlNetPipeline", own, controlnet=controlnet("ZImageControlNetPipeline", own))
    call: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    shown = {**SHOWN, "controlnet_conditioning_scale": scale}
    found = {}
    for negative in ("hat", "fog"):
        subjects = {"rex": Subject("cat", negative=negative), "cup": "teapot"}
        for name, each, more in (("shown", pipeline, shown), ("alone", own, {})):
            with predictions(each) as seen:
                drawn(each, subjects=subjects, layout=LAYOUT, guidance_scale=4.0, call=call | more)
            found[name, negative] = seen[0]
    prompt, without = zip(found["shown", "hat"], found["shown", "fog"], strict=True)
    assert torch.equal(*prompt)
    assert not torch.equal(*without)
    for negative in ("hat", "fog"):
        pairs = zip(found["shown", negative], found["alone", negative], strict=True)
        assert [torch.equal(*pair) for pair in pairs] == [scale == 0] * 2


def test_z_images_controlnet_without_negative_texts_is_called_as_ever(opened: dict[str, Any]) -> None:
    own = with_own_scheduler(opened["z_image"])
    pipeline = made("ZImageControlNetPipeline", own, controlnet=controlnet("ZImageControlNetPipeline", own))
    lengths: list[Any] = []
    hook = own.transformer.register_forward_pre_hook(
        lambda _, __, given: lengths.append({each.shape for each in given["controlnet_block_samples"].values()}),
        with_kwargs=True,
    )
    with conditioned(pipeline, PROMPT, subjects=PLAIN, layout=LAYOUT, guidance_scale=4.0) as inputs:
        pictures(pipeline, **inputs, **SHOWN, num_inference_steps=1)
        sequence = inputs.run.sequence
    hook.remove()
    assert sequence is not None
    assert lengths == [{(2, sequence.length, 32)}]
