"""The benchmarks' baselines do what they stand for, and the arithmetic of their figures is right."""

import copy
import dataclasses
import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from safetensors import safe_open
from torch.testing import assert_close

from cones2.backbones import Backbone, open_backbone
from cones2.composing.loop import compose
from cones2.composing.settings import ComposeSettings
from cones2.layout.regions import Layout
from cones2.learning.objective import add_noise, subject_loss
from cones2.learning.recipe import Recipe
from cones2.photos import Photo
from cones2.residual.residual import Residual
from cones2.steps import finish
from cones2.subjects import Subject
from families import FAMILIES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts, not a package
authors_composing, authors_learning, composing_pairs, learning_pairs, pairs, report = map(
    importlib.import_module,
    ("authors_composing", "authors_learning", "composing_pairs", "learning_pairs", "pairs", "report"),
)
ladder, memory, operations, photo_measures, random_models, sending, two_ways = map(
    importlib.import_module,
    ("ladder", "memory", "operations", "photo_measures", "random_models", "sending", "two_ways"),
)

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

PHOTOS = tuple(Photo(Path(f"{i}.png"), str(i) * 64, Image.radial_gradient("L").convert("RGB")) for i in range(3))


@pytest.fixture(scope="module")
def small(tiny: Backbone) -> Backbone:
    """The tiny model, drawing 64 pixels instead of 768."""
    unet = copy.deepcopy(tiny.unet)
    unet.register_to_config(sample_size=8)
    return dataclasses.replace(tiny, unet=unet)


def golden_run(name: str, backbone: Backbone) -> tuple[dict[str, Any], torch.Tensor]:
    """A run of the authors' own sampler: how it was made, as `draw_latents` takes it, and its latents."""
    with safe_open(ROOT / "tests" / "data" / "golden" / f"{name}.safetensors", "pt") as file:
        made, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    boxes = json.loads(made["boxes"])
    subjects = {
        word: Subject(word, Residual(word, tensors[f"residual.{word}"], (word,), backbone.encoder_id, {}, (), "0"))
        for word in boxes
    }
    prompt = made["prompt"]
    for word in boxes:
        prompt = prompt.replace(word, f"{{{word}}}")
    drawing = authors_composing.Drawing(
        steps=int(made["steps"]), guided=int(made["gsteps"]), guidance_scale=float(made["cfg"]), seed=int(made["seed"])
    )
    layout = Layout.from_numbers({word: [box] for word, box in boxes.items()})
    order = {"prompt": prompt, "subjects": subjects, "layout": layout, "drawing": drawing}
    return order, tensors["latents"]


@pytest.fixture
def fused_self_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the 9216 x 9216 scores of a 768 pixel picture: fused, self-attention gives the same much sooner."""
    materialised, fused = authors_composing._MaterialisedAttention.__call__, AttnProcessor2_0()

    def attend(self: Any, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, **options: Any) -> Any:
        if encoder_hidden_states is None:
            return fused(attn, hidden_states)
        return materialised(self, attn, hidden_states, encoder_hidden_states, **options)

    monkeypatch.setattr(authors_composing._MaterialisedAttention, "__call__", attend)


@pytest.mark.usefixtures("fused_self_attention")
def test_the_authors_loop_draws_what_their_code_drew(tiny: Backbone) -> None:
    order, expected = golden_run("sampler_1of2", tiny)  # one guided step, run twice, and one plain step
    latents = authors_composing.draw_latents(tiny, **order)
    assert (latents - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize(("preset", "passes"), [("official", 2), ("official-layout", 1)])
def test_the_authors_loop_draws_what_we_draw(small: Backbone, preset: str, passes: int) -> None:
    subjects = {name: composing_pairs._subject(small, word) for name, word in {"rex": "dog", "tom": "cat"}.items()}
    order = {"subjects": subjects, "layout": composing_pairs.LAYOUT}
    settings = ComposeSettings(steps=4, guided_steps=3, scheduler="euler", preset=preset, seeds=(3,))
    ours = finish(compose(small, composing_pairs.PROMPT, settings=settings, **order)).latents
    drawing = authors_composing.Drawing(steps=4, guided=3, passes=passes, seed=3)
    theirs = authors_composing.draw_latents(small, composing_pairs.PROMPT, drawing=drawing, **order)
    assert (ours - theirs).norm() <= 1e-4 * ours.norm()


def test_the_authors_loop_leaves_the_unet_as_it_was(small: Backbone) -> None:
    before = dict(small.unet.attn_processors)
    subjects = {"rex": Subject("dog"), "tom": Subject("cat")}
    drawing = authors_composing.Drawing(steps=1)
    authors_composing.draw(
        small, composing_pairs.PROMPT, subjects=subjects, layout=composing_pairs.LAYOUT, drawing=drawing
    )
    assert small.unet.attn_processors == before


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_the_authors_denoising_loss_is_ours(small: Backbone, prediction_type: str) -> None:
    scheduler = copy.deepcopy(small.scheduler)
    scheduler.register_to_config(prediction_type=prediction_type)
    backbone = dataclasses.replace(small, scheduler=scheduler)
    learner = authors_learning.AuthorsLearner(backbone, PHOTOS, "dog")
    image, draw = authors_learning.as_tensor(PHOTOS[0], 64), learner._draw()
    theirs = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours = theirs.detach().clone().requires_grad_()
    learner.denoising_loss(theirs, image, draw).backward()

    moments = backbone.encode_images(image)
    latents = moments.mean + moments.std * draw.spread
    noised = add_noise(latents, draw.noise, scheduler.alphas_cumprod[draw.timestep], prediction_type)
    subject_loss(backbone.predict(noised.latents, draw.timestep, ours), noised.target).backward()
    assert theirs.grad is not None
    assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4 * float(theirs.grad.abs().max()))


def test_an_authors_step_tunes_the_whole_copy_and_not_the_backbone(small: Backbone) -> None:
    learner = authors_learning.AuthorsLearner(small, PHOTOS, "dog")
    before = {name: weight.clone() for name, weight in small.text_encoder.state_dict().items()}
    learner.step()
    assert all(torch.equal(before[name], weight) for name, weight in small.text_encoder.state_dict().items())
    moved = [name for name, weight in learner.encoder.state_dict().items() if not torch.equal(before[name], weight)]
    assert any("embeddings" in name for name in moved)
    assert any("layers" in name for name in moved)


# The arithmetic


def test_the_interval_of_15_pairs_is_their_4th_and_12th() -> None:
    interval = pairs.median_interval([float(value) for value in range(15, 0, -1)])
    assert interval[:3] == (8, 4, 12)
    assert interval.level == pytest.approx(0.9648, abs=1e-4)  # 1 - 2 * (1 + 15 + 105 + 455) / 2**15


def test_few_pairs_say_that_they_cover_less() -> None:
    assert pairs.median_interval([2.0, 1.0, 3.0]) == (2, 1, 3, 0.75)
    assert pairs.median_interval([1.0]) == (1, 1, 1, 0)


@pytest.mark.parametrize(("speed", "ratio", "meets"), [(False, 0.5, True), (True, 2.0, True)])
def test_ratios_are_taken_within_pairs(speed: bool, ratio: float, meets: bool) -> None:
    pair = pairs.Pair("a", "b", lambda: None, lambda: None, aim=1.0, speed=speed)
    timing = pairs.Timing(pair, ours=(1.0, 2.0, 3.0), other=(2.0, 4.0, 6.0))
    assert timing.ratio.median == ratio
    assert timing.meets_aim is meets


def test_calls_take_turns_after_one_each_that_is_not_counted() -> None:
    calls: list[str] = []
    pair = pairs.Pair("a", "b", lambda: calls.append("A"), lambda: calls.append("B"), aim=None)
    timing = pairs.measure(pair, 2)
    assert "".join(calls) == "ABABAB"
    assert len(timing.ours) == len(timing.other) == 2
    assert timing.meets_aim is None


def test_every_pair_runs_and_the_table_has_a_row_for_each(small: Backbone) -> None:
    recipe = Recipe(batch_size=2, caption_count=8)
    learning = learning_pairs.learning_pairs(small, PHOTOS, recipe, name="mini")
    all_pairs = composing_pairs.composing_pairs(small, steps=1) + learning
    measured = [pairs.measure(pair, 1) for pair in all_pairs]
    about = report.machine(small)
    table = report.as_markdown(measured, about)
    assert table.count("\n| a ") == len(measured) == 7
    found = json.loads(report.as_json(measured, about))
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert [len(pair["ours_seconds"]) for pair in found["pairs"]] == [1] * 7


def test_spoilt_photos_are_spoilt_as_they_say() -> None:
    grey = Image.new("RGB", (40, 20), (100, 50, 200))
    # Two stops are a factor of 4 in light: of 4 ** (1 / 2.2) = 1.878 in the picture's numbers.
    assert photo_measures.expose(grey, 2).getpixel((0, 0)) == (188, 94, 255)
    assert photo_measures.expose(grey, 0).getpixel((0, 0)) == (100, 50, 200)
    assert photo_measures.blur(grey, 10, 1).size == (20, 10)
    assert photo_measures.shrink(grey).size == (120, 60)
    assert photo_measures.shrink(grey).getpixel((60, 30)) == (100, 50, 200)


def test_photo_measures_count_what_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    photo_measures.tell_all([PHOTOS], 256)
    lines = capsys.readouterr().out.splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "| dHash, two photos of a subject | 0 | 0 | 0 | 3 of 3 |" in lines


def test_both_ways_are_compared_on_the_same_noise(small: Backbone) -> None:
    recipes = {
        "tuned": Recipe(steps=2, batch_size=2, learning_rate=1e-3, caption_count=8),
        "direct": Recipe(steps=2, batch_size=2, learning_rate=1e-9, caption_count=8, tune="residual"),
    }
    rows = [row.strip("| ").split(" | ") for row in two_ways.compare(small, PHOTOS, "dog", recipes)]
    none, tuned, direct = rows
    assert [row[0] for row in rows] == ["none", "tuned", "direct"]
    assert direct[2:4] == none[2:4]  # a residual of next to no length changes nothing
    assert (direct[5], float(tuned[5]) > 0) == ("0.0000", True)


def test_every_rung_learns_and_is_timed_with_the_one_below(small: Backbone) -> None:
    recipe = Recipe(batch_size=8, learning_rate=1e-3, captions_per_step=2)
    steps = list(ladder.rungs(small, PHOTOS, recipe, compiled=False))
    timings = list(ladder.climb(list(itertools.pairwise(steps)), 1))
    assert [timing.pair.what for timing in timings] == [rung.name for rung in steps[1:]]
    assert [rung.lesson.recipe.batch_size for rung in steps] == [4, 4, 4, 8, 8, 8, 8]


def test_texts_read_one_by_one_give_the_gradient_of_one_pass(small: Backbone) -> None:
    recipe = Recipe(batch_size=8, learning_rate=1e-3, captions_per_step=2)
    _, separate, together, *_ = ladder.rungs(small, PHOTOS, recipe, compiled=False)
    gradients = []
    for rung in (separate, together):
        way = rung.way(rung.lesson)
        way.parameters[0].data += 0.1  # at the start nothing has moved, and Eq. 3 has no gradient
        subject, preservation = way.losses(ladder.random_numbers(0, 1))
        (subject + preservation).backward()
        gradients.append(
            torch.cat([parameter.grad.flatten() for parameter in way.parameters if parameter.grad is not None])
        )
    assert_close(*gradients, rtol=1e-4, atol=1e-5 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_made_of_configurations_has_the_shapes_of_the_one_with_weights(
    folders: dict[str, Path], family: str
) -> None:
    made = random_models.make_model(folders[family], device="cpu", dtype=torch.bfloat16)
    opened = open_backbone(str(folders[family]), device="cpu", dtype="bfloat16")
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        mine, theirs = ((part.state_dict() if part else {}) for part in (getattr(made, name), getattr(opened, name)))
        assert {k: (v.shape, v.dtype) for k, v in mine.items()} == {k: (v.shape, v.dtype) for k, v in theirs.items()}
    assert made.prediction_type == opened.prediction_type
    assert bool(made.unet.conv_in.weight.float().std() > 0)


@pytest.mark.parametrize("model", ["sd2-base", "sdxl"])
def test_a_layout_sends_a_gpu_at_most_a_twentieth_more_operations(model: str) -> None:
    plain, edited = operations.count(model)
    assert plain < edited <= 1.05 * plain


@pytest.mark.parametrize("model", ["sd2-base", "sdxl"])
def test_a_thin_unet_has_all_layers_of_the_model(model: str) -> None:
    whole = random_models.make_model(random_models.CONFIGS / model, device="meta", dtype=torch.float32).unet
    thin = sending.thin_unet(model)
    assert [name for name, _ in thin.named_modules()] == [name for name, _ in whole.named_modules()]
    assert (
        sum(weight.numel() for weight in thin.parameters()) < sum(weight.numel() for weight in whole.parameters()) / 80
    )


def test_many_photos_are_encoded_in_the_memory_of_one() -> None:
    backbone = random_models.make_model(random_models.CONFIGS / "sd2-base", device="meta", dtype=torch.float32)
    most = []
    for count in (1, 6):
        images = torch.zeros(count, 3, 256, 256, device="meta")
        with memory.LiveBytes([images, *backbone.vae.parameters()]) as live:
            backbone.encode_images(images)
        most.append(live.most)
    assert most[1] < 1.01 * most[0]


@pytest.mark.parametrize(
    "command",
    [  # as the docs show them, but for fewer repeats: there they take minutes
        "run.py --quick",
        "two_ways.py --steps 2",
        "ladder.py --pairs 1 --no-compile",
        "memory.py",
        "operations.py",
        "sending.py --pairs 1",
        "photo_measures.py src/cones2/examples --inside photos --size 128",
    ],
)
def test_a_benchmark_prints_its_table(command: str) -> None:
    script, *options = command.split()
    run = [sys.executable, ROOT / "benchmarks" / script, *options]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("| ") for line in done.stdout.splitlines()) >= 4


@pytest.mark.parametrize("command", ["run.py --only nothing", "ladder.py --only nothing --no-compile"])
def test_a_name_that_nothing_has_is_told(command: str) -> None:
    script, *options = command.split()
    run = [sys.executable, ROOT / "benchmarks" / script, *options]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode > 0
    assert "has 'nothing' in its name" in done.stderr
    assert "| " not in done.stdout


def test_a_report_needs_no_git(small: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert report.machine(small)["commit"] == "unknown"
