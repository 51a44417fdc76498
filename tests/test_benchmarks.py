"""The benchmarks' baselines do what they stand for, and the arithmetic of their figures is right."""

import copy
import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from cones2.learning.data import encode_images
from cones2.learning.losses import add_noise, subject_loss
from cones2.learning.recipe import Recipe
from cones2.models import open_pipeline
from cones2.photos import Photo, crop_square
from cones2.pipeline import Cones2Pipeline
from cones2.schedulers import make_scheduler
from families import UNETS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts, not a package
cones_v2_drawing, cones_v2_learning, drawing_pairs, ladder, layout_cost, learning_pairs = map(
    importlib.import_module,
    ("cones_v2_drawing", "cones_v2_learning", "drawing_pairs", "ladder", "layout_cost", "learning_pairs"),
)
memory, pairs, random_models, report, two_ways = map(
    importlib.import_module, ("memory", "pairs", "random_models", "report", "two_ways")
)

# diffusers' own schedulers hand tensors to NumPy in a way that NumPy deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

PHOTOS = tuple(Photo(Path(f"{i}.png"), str(i) * 64, Image.radial_gradient("L").convert("RGB")) for i in range(3))


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Cones2Pipeline:
    """The tiny model, drawing 64 pixels instead of 768."""
    pipe = Cones2Pipeline.from_pretrained(small_folder, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


# The authors' loops


@pytest.mark.parametrize("passes", [1, 2])
def test_the_authors_loop_draws_what_we_draw(small: Cones2Pipeline, passes: int) -> None:
    words = {"rex": "dog", "tom": "cat"}
    subjects = {name: drawing_pairs.random_subject(small, word) for name, word in words.items()}
    given: dict[str, Any] = {"subjects": subjects, "layout": drawing_pairs.LAYOUT}
    drawing = cones_v2_drawing.Drawing(steps=4, guided=3, passes=passes, seed=3)
    theirs = cones_v2_drawing.draw_latents(small, drawing_pairs.PROMPT, drawing=drawing, **given)
    own = Cones2Pipeline(copy.copy(small.pipeline))
    options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 7.5}
    last: list[torch.Tensor] = []

    def keep(_: Any, __: int, ___: Any, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        last[:] = [tensors["latents"]]
        return {}

    if passes == 2:
        given["sampler"] = "cones_v2"
    else:
        vars(own.pipeline)["scheduler"] = make_scheduler("euler", small.scheduler)
    given |= {"preset": "cones_v2", "guided_steps": 3, "seed": 3}
    own(drawing_pairs.PROMPT, **given, **options, callback_on_step_end=keep)
    assert (last[0] - theirs).norm() <= 1e-4 * last[0].norm()


def test_the_authors_loop_leaves_the_unet_as_it_was(small: Cones2Pipeline) -> None:
    before = dict(small.unet.attn_processors)
    drawing = cones_v2_drawing.Drawing(steps=1)
    image = cones_v2_drawing.draw(
        small,
        drawing_pairs.PROMPT,
        subjects={"rex": "dog", "tom": "cat"},
        layout=drawing_pairs.LAYOUT,
        drawing=drawing,
    )
    assert image.size == (64, 64)
    assert small.unet.attn_processors == before


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_the_authors_denoising_loss_is_ours(small: Cones2Pipeline, prediction_type: str) -> None:
    scheduler = copy.deepcopy(small.scheduler)
    scheduler.register_to_config(prediction_type=prediction_type)
    pipeline: Any = copy.copy(small.pipeline)
    vars(pipeline)["scheduler"] = scheduler
    learner = cones_v2_learning.ConesV2Learner(pipeline, PHOTOS, "dog")
    image, chance = cones_v2_learning.as_tensor(PHOTOS[0], 64), learner.draw()
    theirs = torch.randn(1, 77, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours = theirs.detach().clone().requires_grad_()
    torch.autograd.backward(learner.denoising_loss(theirs, image, chance))

    mean, std = encode_images(pipeline, [crop_square(PHOTOS[0].image, 64)])
    latents = mean + std * chance.spread
    noised = add_noise(latents, chance.noise, scheduler.alphas_cumprod[chance.timestep], prediction_type)
    prediction = pipeline.unet(noised.latents, chance.timestep, ours, return_dict=False)[0]
    torch.autograd.backward(subject_loss(prediction, noised.target))
    assert ours.grad is not None
    assert theirs.grad is not None
    assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4 * float(theirs.grad.abs().max()))


def test_an_authors_step_tunes_the_whole_copy_and_not_the_model(small: Cones2Pipeline) -> None:
    learner = cones_v2_learning.ConesV2Learner(small.pipeline, PHOTOS, "dog")
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


# Whole runs, shortened


@pytest.mark.slow
def test_every_pair_runs_and_the_table_has_a_row_for_each(small: Cones2Pipeline) -> None:
    recipe = Recipe(batch_size=2, caption_count=8)
    learning = learning_pairs.learning_pairs(small.pipeline, PHOTOS, recipe, name="mini")
    all_pairs = drawing_pairs.drawing_pairs(small, steps=1) + learning
    measured = [pairs.measure(pair, 1) for pair in all_pairs]
    about = report.machine(small)
    table = report.as_markdown(measured, about)
    assert table.count("\n| a ") == len(measured) == 7
    found = json.loads(report.as_json(measured, about))
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert [len(pair["ours_seconds"]) for pair in found["pairs"]] == [1] * 7


@pytest.mark.slow
def test_pairs_of_xl_leave_the_authors_out(folders: dict[str, Path]) -> None:
    pipe = Cones2Pipeline.from_pretrained(folders["sdxl"], device="cpu")
    learning = learning_pairs.learning_pairs(pipe.pipeline, PHOTOS, Recipe(batch_size=2, caption_count=8), name="mini")
    measured = [pairs.measure(pair, 1) for pair in drawing_pairs.drawing_pairs(pipe, steps=1) + learning]
    assert len(measured) == 3


@pytest.mark.slow
def test_both_ways_are_compared_on_the_same_noise(small: Cones2Pipeline) -> None:
    recipes = {
        "tuned": Recipe(steps=2, batch_size=2, learning_rate=1e-3, caption_count=8),
        "direct": Recipe(steps=2, batch_size=2, learning_rate=1e-9, caption_count=8, tune="residual"),
    }
    rows = [row.strip("| ").split(" | ") for row in two_ways.compare(small, PHOTOS, "dog", recipes)]
    none, tuned, direct = rows
    assert [row[0] for row in rows] == ["none", "tuned", "direct"]
    assert direct[2:4] == none[2:4]  # a residual of next to no length changes nothing
    assert (direct[5], float(tuned[5]) > 0) == ("0.0000", True)


@pytest.mark.slow
def test_every_rung_learns_and_is_timed_with_the_one_below(small: Cones2Pipeline) -> None:
    recipe = Recipe(batch_size=8, learning_rate=1e-3, captions_per_step=2, caption_count=8)
    steps = list(ladder.rungs(small.pipeline, recipe))
    timings = list(ladder.climb(list(itertools.pairwise(steps)), PHOTOS, 1))
    assert [timing.pair.what for timing in timings] == [rung.name for rung in steps[1:]]
    assert [rung.recipe.batch_size * rung.steps for rung in steps] == [8] * 5


@pytest.mark.parametrize("family", UNETS)
def test_a_model_made_of_configurations_has_the_shapes_of_the_one_with_weights(
    folders: dict[str, Path], family: str
) -> None:
    made = random_models.make_model(folders[family], device="cpu", dtype=torch.bfloat16)
    opened: Any = open_pipeline(str(folders[family]), device="cpu", dtype="bfloat16")
    assert type(made) is type(opened)
    for name, part in opened.components.items():
        if isinstance(part, torch.nn.Module):
            mine, theirs = made.components[name].state_dict(), part.state_dict()
            shapes = {key: (weight.shape, weight.dtype) for key, weight in theirs.items()}
            assert {key: (weight.shape, weight.dtype) for key, weight in mine.items()} == shapes
    assert made.scheduler.config["prediction_type"] == opened.scheduler.config["prediction_type"]
    assert bool(made.unet.conv_in.weight.float().std() > 0)


@pytest.mark.parametrize("model", ["sd2-base", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_layout_sends_a_gpu_at_most_a_twentieth_more_operations(model: str) -> None:
    plain, edited = layout_cost.count(model)
    assert plain < edited <= 1.05 * plain


@pytest.mark.parametrize("model", ["sd2-base", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_a_thin_unet_has_all_layers_of_the_model(model: str) -> None:
    whole = random_models.make_model(random_models.CONFIGS / model, device="meta", dtype=torch.float32).unet
    thin = layout_cost.thin_unet(model)
    assert [name for name, _ in thin.named_modules()] == [name for name, _ in whole.named_modules()]
    assert (
        sum(weight.numel() for weight in thin.parameters()) < sum(weight.numel() for weight in whole.parameters()) / 80
    )


def test_many_photos_are_encoded_in_the_memory_of_one() -> None:
    pipeline = random_models.make_model(random_models.CONFIGS / "sd2-base", device="meta", dtype=torch.float32)
    most = []
    for count in (1, 6):
        images = [Image.new("RGB", (256, 256))] * count
        with memory.LiveBytes(list(pipeline.vae.parameters())) as live:
            encode_images(pipeline, images)
        most.append(live.most - count * images[0].width * images[0].height * 3 * 4 * 3)  # the pixels themselves
    assert most[1] < 1.01 * most[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [  # as the docs show them, but for fewer repeats: there they take minutes
        "run.py --quick",
        "two_ways.py --steps 2",
        "ladder.py --pairs 1",
        "memory.py",
        "layout_cost.py --pairs 1",
        "joint_gain.py --side 256",
        "joint_speed.py --tiny --side 128 --pairs 1",
        "joint_speed.py --count --side 256 --only 3.5",
    ],
)
def test_a_benchmark_prints_its_table(command: str) -> None:
    script, *options = command.split()
    run = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(line.startswith("| ") for line in done.stdout.splitlines()) >= 4


@pytest.mark.slow
def test_a_gpus_benchmark_is_rehearsed_without_one(tmp_path: Path) -> None:
    sizes = ["--model", "mini", "--large=", "--steps", "2", "--repeats", "1"]
    options = [*sizes, "--scopes", "nothing", "--last", "nothing", "--out"]
    run = [sys.executable, str(ROOT / "benchmarks/gpu.py"), *options, str(tmp_path)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    drawn = ("with a layout, eager", "with a layout, nothing", "8 pictures at once, nothing", "8 subjects, nothing")
    for name in drawn:
        assert rows[f"mini: {name}"]["seconds"] > 0
    assert max(rows["mini: with a layout, nothing"]["differs"].values()) < 1e-4
    assert rows["mini: a step of paper, eager"]["seconds"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run.py --only nothing", "ladder.py --only nothing"])
def test_a_name_that_nothing_has_is_told(command: str) -> None:
    script, *options = command.split()
    run = [sys.executable, str(ROOT / "benchmarks" / script), *options]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode > 0
    assert "'nothing'" in done.stderr
    assert "| " not in done.stdout


def test_a_report_needs_no_git(small: Cones2Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert report.machine(small)["commit"] == "unknown"
