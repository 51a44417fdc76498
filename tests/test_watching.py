"""Watching a learning: the same residual, pictures when asked for, an end where identity rises no more, and logs."""

import copy
import csv
import dataclasses
import shutil
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cones2.backbones import Backbone
from cones2.backbones.image_encoder import open_image_encoder
from cones2.composing.loop import compose
from cones2.composing.settings import ComposeSettings
from cones2.errors import BackboneError, LearningError, OutputError, SettingsError
from cones2.learning.loop import learn
from cones2.learning.recipe import Recipe
from cones2.photos import Photo
from cones2.picture import read_record
from cones2.steps import finish
from cones2.subjects import Subject
from cones2.watching.logs import FolderLog, Log, TensorBoardLog, WandbLog, logged
from cones2.watching.similarity import similarity_to
from cones2.watching.watch import Watch, WatchedStep, watch

RECIPE = Recipe(steps=4, batch_size=1, learning_rate=1e-3, captions_per_step=2, caption_count=6)
PHOTO = Photo(Path("a.png"), "a" * 64, Image.radial_gradient("L").convert("RGB"))
QUICK = ComposeSettings(seeds=(3, 4), steps=2)


@pytest.fixture(scope="module")
def small(tiny: Backbone) -> Backbone:
    """The tiny model, drawing 64 pixels instead of 768."""
    unet = copy.deepcopy(tiny.unet)
    unet.register_to_config(sample_size=8)
    return dataclasses.replace(tiny, unet=unet)


def watched(small: Backbone, *logs: Log, steps: int = 4, **plan: Any) -> list[WatchedStep]:
    recipe = dataclasses.replace(RECIPE, steps=steps)
    plan = {"every": 2, "settings": QUICK} | plan
    return list(logged(watch(learn(small, [PHOTO], "dog", recipe=recipe), small, plan=Watch(**plan)), logs))


def learned(small: Backbone, steps: int) -> torch.Tensor:
    return finish(learn(small, [PHOTO], "dog", recipe=dataclasses.replace(RECIPE, steps=steps))).residual.vector


def scripted(*values: float) -> Any:
    """A measure that gives these values in turn, whatever the pictures are."""
    left = iter(values)
    return lambda _: next(left)


def test_watching_changes_nothing(small: Backbone) -> None:
    last = watched(small, identity=scripted(0.1, 0.2))[-1]
    assert last.residual.sha256 == finish(learn(small, [PHOTO], "dog", recipe=RECIPE)).residual.sha256


def test_it_looks_every_few_steps_and_at_the_last(small: Backbone) -> None:
    steps = watched(small, steps=5, identity=scripted(0.1, 0.2, 0.3))
    assert [(step.step, len(step.pictures), step.identity) for step in steps] == [
        (1, 0, None),
        (2, 2, 0.1),
        (3, 0, None),
        (4, 2, 0.2),
        (5, 2, 0.3),
    ]
    assert {step.steps for step in steps} == {5}
    assert all(step.pictures == () for step in watched(small, every=None))


def test_a_picture_is_what_composing_draws(small: Backbone) -> None:
    step = watched(small)[-1]
    subjects = {"rex": Subject("dog", step.residual)}
    expected = finish(compose(small, "a photo of a {rex}", subjects=subjects, settings=QUICK)).pictures
    assert [picture.tobytes() for picture in step.pictures] == [picture.tobytes() for picture in expected]
    other = watched(small, prompt="a {subject} on the beach")[-1]
    assert other.pictures[0].tobytes() != step.pictures[0].tobytes()


def test_it_stops_when_identity_rises_no_more_and_keeps_the_best(small: Backbone) -> None:
    steps = watched(small, steps=9, every=1, patience=2, identity=scripted(0.1, 0.5, 0.5, 0.4, 0.9))
    assert [step.stopped for step in steps] == [False, False, False, True]
    assert torch.equal(steps[-1].residual.vector, learned(small, 2))


def test_a_rise_is_waited_for_again(small: Backbone) -> None:
    steps = watched(small, steps=6, every=1, patience=2, identity=scripted(0.1, 0.0, 0.2, 0.1, 0.3, 0.2))
    assert [step.stopped for step in steps] == [False] * 6
    assert torch.equal(steps[-1].residual.vector, learned(small, 5))


def test_without_patience_the_last_is_kept(small: Backbone) -> None:
    assert torch.equal(watched(small, identity=scripted(0.9, 0.1))[-1].residual.vector, learned(small, 4))


def test_the_best_look_tells_its_step(small: Backbone) -> None:
    steps = watched(small, steps=9, every=1, patience=2, identity=scripted(0.1, 0.5, 0.5, 0.4))
    best = steps[-1].best
    assert best is not None
    assert (best.step, best.identity, best.loss) == (2, 0.5, steps[1].learned.loss)
    assert best.residual.recipe["taken"] == 2
    assert watched(small)[-1].best is None


def test_stopping_closes_learning_and_writes_no_checkpoint(small: Backbone, tmp_path: Path) -> None:
    steps = learn(small, [PHOTO], "dog", recipe=RECIPE, checkpoint=tmp_path)
    plan = Watch(every=1, settings=QUICK, identity=scripted(0.2, 0.1), patience=1)
    *_, last = watch(steps, small, plan=plan)
    assert (last.step, last.stopped) == (2, True)
    assert list(tmp_path.glob("step-*")) == []
    assert list(steps) == []


# Patience and interruptions


def patient(small: Backbone, folder: Path, *identities: float, every: int = 50, resume: bool = True) -> Any:
    """Watch nine steps at most, looking at each; a measure that runs out of values fails."""
    recipe = dataclasses.replace(RECIPE, steps=9)
    steps = learn(small, [PHOTO], "dog", recipe=recipe, checkpoint=folder, checkpoint_every=every, resume=resume)
    plan = Watch(every=1, settings=QUICK, identity=scripted(*identities), patience=2)
    return watch(steps, small, plan=plan, checkpoint=folder)


IDENTITIES = (0.1, 0.5, 0.4, 0.3)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_interrupted_learning_stops_where_an_undisturbed_one_does(
    small: Backbone, tmp_path: Path, step: int
) -> None:
    *_, undisturbed = patient(small, tmp_path / "undisturbed", *IDENTITIES)
    begun = patient(small, tmp_path / "begun", *IDENTITIES[:step])
    for _ in range(step):
        next(begun)
    begun.close()
    first, *rest = patient(small, tmp_path / "begun", *IDENTITIES[step:])
    last = rest[-1] if rest else first
    assert first.step == step + 1
    assert (undisturbed.step, last.step, last.stopped) == (4, 4, True)
    assert last.best.step == 2
    assert last.residual.to_bytes() == undisturbed.residual.to_bytes()


def test_looks_behind_the_last_checkpoint_are_forgotten(small: Backbone, tmp_path: Path) -> None:
    begun = patient(small, tmp_path / "begun", 0.1, 0.5, 0.9, every=2)
    for _ in range(3):
        next(begun)
    shutil.copytree(tmp_path / "begun", tmp_path / "killed")  # as it is where the learner is killed at step 3
    begun.close()
    *_, last = patient(small, tmp_path / "killed", 0.4, 0.3)
    assert (last.step, last.best.step) == (4, 2)
    assert [path.name for path in sorted((tmp_path / "killed").glob("look-*"))] == [
        f"look-{step:08d}.json" for step in (1, 2, 3, 4)
    ]


def test_interrupted_at_a_look_it_looks_again(small: Backbone, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):  # the third look fails
        list(patient(small, tmp_path, 0.1, 0.5, every=1))
    first, last = patient(small, tmp_path, 0.4, 0.3)
    assert (first.step, last.step, last.best.step) == (3, 4, 2)


def test_interrupted_at_a_look_that_nothing_counts_it_keeps_the_step(small: Backbone, tmp_path: Path) -> None:
    steps = learn(small, [PHOTO], "dog", recipe=RECIPE, checkpoint=tmp_path)
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(watch(steps, small, plan=Watch(every=1, settings=QUICK, identity=scripted(0.1))))
    assert (tmp_path / "step-00000002.json").exists()


def test_looks_of_another_measure_are_not_compared(small: Backbone, tmp_path: Path) -> None:
    next(patient(small, tmp_path, 0.9))
    steps = learn(small, [PHOTO], "dog", recipe=dataclasses.replace(RECIPE, steps=9), checkpoint=tmp_path, resume=True)
    plan = Watch(every=1, settings=QUICK, identity=len, patience=2)
    with pytest.raises(LearningError, match=r"were measured or drawn in another way: resume with the options"):
        next(watch(steps, small, plan=plan, checkpoint=tmp_path))


def test_begun_again_it_forgets_all_looks(small: Backbone, tmp_path: Path) -> None:
    next(patient(small, tmp_path, 0.9))
    *_, last = patient(small, tmp_path, *IDENTITIES, resume=False)
    assert (last.step, last.best.step) == (4, 2)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"identity": 1, "loss": 1, "residual": "dear"}'])
def test_a_look_that_is_damaged(small: Backbone, tmp_path: Path, content: str) -> None:
    next(patient(small, tmp_path, 0.9))
    (tmp_path / "look-00000001.json").write_text(content)
    with pytest.raises(LearningError, match=r"look-00000001.json is damaged, expected a look at learning. Delete it"):
        next(patient(small, tmp_path, 0.1))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"every": 0}, "every is 0: expected at least 1"),
        ({"every": 1, "patience": 0, "identity": max}, "patience is 0: expected at least 1"),
        ({"every": 1, "patience": 1}, "patience needs pictures to look at and a measure of identity: give both"),
        ({"patience": 1, "identity": max}, "patience needs pictures to look at"),
    ],
)
def test_plans_that_make_no_sense(plan: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Watch(**plan)


# Logs


def test_a_folder_of_pictures_and_curves(small: Backbone, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "previews"
    steps = watched(small, FolderLog(folder), identity=scripted(0.25, 0.5))
    assert sorted(path.name for path in folder.iterdir()) == [
        "0002-0.png", "0002-1.png", "0004-0.png", "0004-1.png", "curves.csv",
    ]  # fmt: skip
    assert Image.open(folder / "0002-1.png").tobytes() == steps[1].pictures[1].tobytes()
    assert read_record(folder / "0002-1.png")["step"] == 2
    rows = list(csv.DictReader((folder / "curves.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["identity"] for row in rows] == ["", "0.25", "", "0.5"]
    assert [float(row["loss"]) for row in rows] == pytest.approx([step.learned.loss for step in steps], rel=1e-5)


def curves(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "curves.csv").read_text().splitlines()))


def test_a_resumed_learning_goes_on_with_its_curves(small: Backbone, tmp_path: Path) -> None:
    """Resumed from its checkpoint of step 2, it takes step 3 again."""
    recipe = dataclasses.replace(RECIPE, steps=6)
    begun = learn(small, [PHOTO], "dog", recipe=recipe, checkpoint=tmp_path / "begun", checkpoint_every=2)
    steps = logged(watch(begun, small, plan=Watch()), [FolderLog(tmp_path / "curves")])
    first = [next(steps) for _ in range(3)]
    shutil.copytree(tmp_path / "begun", tmp_path / "killed")
    steps.close()
    assert [row["step"] for row in curves(tmp_path / "curves")] == ["1", "2", "3"]
    resumed = learn(small, [PHOTO], "dog", recipe=recipe, checkpoint=tmp_path / "killed", resume=True)
    log = FolderLog(tmp_path / "curves")
    log.take(next(watch(resumed, small, plan=Watch())))
    log.close()
    rows = curves(tmp_path / "curves")
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    assert [float(row["loss"]) for row in rows] == pytest.approx([step.learned.loss for step in first], rel=1e-5)


def test_a_new_learning_replaces_the_curves(small: Backbone, tmp_path: Path) -> None:
    watched(small, FolderLog(tmp_path), steps=6)
    watched(small, FolderLog(tmp_path), steps=2, identity=scripted(0.5))
    assert [(row["step"], row["identity"]) for row in curves(tmp_path)] == [("1", ""), ("2", "0.5")]


def test_curves_stay_where_no_step_is_taken(small: Backbone, tmp_path: Path) -> None:
    watched(small, FolderLog(tmp_path), steps=2)
    FolderLog(tmp_path).close()
    assert [row["step"] for row in curves(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", b"\xff", b"step,loss,subject_loss,preservation_loss,identity\n1,2\n"]
)
def test_curves_that_are_something_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "curves.csv").write_bytes(content)
    with pytest.raises(OutputError, match=r"curves.csv is there, and cones2 did not write it. Move it away, or choose"):
        FolderLog(tmp_path)
    assert (tmp_path / "curves.csv").read_bytes() == content


def test_tensorboard_reads_it_back(small: Backbone, tmp_path: Path) -> None:
    steps = watched(small, TensorBoardLog(tmp_path / "events"), identity=scripted(0.25, 0.5))
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("identity")] == [(2, 0.25), (4, 0.5)]
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx([step.learned.loss for step in steps])
    assert set(events.Tags()["images"]) == {"picture/0", "picture/1"}
    assert [(event.step, event.width, event.height) for event in events.Images("picture/1")] == [
        (2, 64, 64),
        (4, 64, 64),
    ]


def test_wandb_is_told_by_its_public_interface(
    small: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for its module: the real one starts a service."""
    told: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda values, step: told.append((step, values)), finish=lambda: told.append("finished")
    )

    def init(*, project: str, config: dict[str, object], dir: Path) -> Any:  # noqa: A002
        told.append((project, config, dir))
        return run

    stand_in = types.SimpleNamespace(init=init, Error=OSError, Image=lambda picture: ("image", picture.size))
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    watched(small, WandbLog("pets", settings={"residual": "rex"}, folder=tmp_path), identity=scripted(0.25, 0.5))
    assert told[0] == ("pets", {"residual": "rex"}, tmp_path)
    assert [entry[0] for entry in told[1:5]] == [1, 2, 3, 4]
    assert set(told[1][1]) == {"loss", "subject_loss", "preservation_loss"}
    assert told[2][1]["identity"] == 0.25
    assert told[2][1]["pictures"] == [("image", (64, 64))] * 2
    assert told[5] == "finished"


def test_wandb_that_can_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise OSError("api_key not configured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init, Error=OSError))
    message = r"can't begin a run of 'pets': api_key not configured. Run `wandb login`, or set WANDB_MODE=offline."
    with pytest.raises(SettingsError, match=message):
        WandbLog("pets", settings={})


@pytest.mark.parametrize(("module", "extra"), [("torch.utils.tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_an_extra_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError, match=rf"{extra} is not installed: pip install 'cones2\[{extra}\]'"):
        TensorBoardLog(tmp_path) if extra == "tensorboard" else WandbLog("pets", settings={})


def test_logs_are_closed_when_learning_fails(small: Backbone, tmp_path: Path) -> None:
    def fail(_: Sequence[Image.Image]) -> float:
        raise RuntimeError("the measure failed")

    with pytest.raises(RuntimeError, match="the measure failed"):
        watched(small, FolderLog(tmp_path), identity=fail)
    assert (tmp_path / "curves.csv").read_text().startswith("step,loss,")


# Similarity by CLIP


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model's folder: the real classes, tiny and random."""
    folder = tmp_path_factory.mktemp("clip")
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision, text = part | {"image_size": 32, "patch_size": 8}, part | {"vocab_size": 50}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)).save_pretrained(folder)
    return folder


def test_embeddings_are_those_of_clip_itself(clip: Path) -> None:
    encoder = open_image_encoder(clip)
    pictures = [PHOTO.image, Image.linear_gradient("L").convert("RGB")]
    size = {"height": 32, "width": 32}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    pixels = processor(pictures, return_tensors="pt").pixel_values
    with torch.no_grad():
        features = CLIPModel.from_pretrained(clip).visual_projection(
            CLIPModel.from_pretrained(clip).vision_model(pixels).pooler_output
        )
    expected = torch.nn.functional.normalize(features, dim=-1)
    assert_close(encoder.embed(pictures), expected, rtol=1e-4, atol=1e-4)


def test_similarity_of_a_picture_with_itself_is_one(clip: Path) -> None:
    measure = similarity_to([PHOTO], open_image_encoder(clip))
    other = Image.effect_noise((64, 64), 90).convert("RGB")
    assert measure([PHOTO.image]) == pytest.approx(1, abs=1e-5)
    assert measure([other]) < 0.9999
    assert measure([PHOTO.image, other]) == pytest.approx((1 + measure([other])) / 2, abs=1e-5)


def test_folders_that_are_no_clip_model(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"can't open .* as a CLIP model: .* Give a folder with its config.json"):
        open_image_encoder(tmp_path / "nothing")
    (tmp_path / "config.json").write_text((clip / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(
        (tiny_folder / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    with pytest.raises(BackboneError, match=r"lacks \d+ weights of a CLIP model, .* first: copy it again"):
        open_image_encoder(tmp_path)
