"""Learning: the method's truths, resuming to the same bytes, and what is refused."""

import copy
import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from cones2.captions import captions_for, find_class_word, photo_caption
from cones2.errors import CaptionError, LearningError, OutputError, PhotoError, SettingsError
from cones2.learning.data import hash_of, masks_hash, random_numbers
from cones2.learning.learner import LearnStep, learn_steps
from cones2.learning.losses import add_noise, subject_loss
from cones2.learning.recipe import RECIPES
from cones2.models import open_pipeline
from cones2.photos import Photo
from cones2.prompts import token_span
from learning import PHOTOS, RECIPE, finish, learn, residual_of, stop_after, with_parts

WHITE = Image.new("L", (256, 256), 255)
DIRECT = dataclasses.replace(RECIPE, tune="residual", averaged=True)


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Any:
    """The tiny model, drawing 64 pixels."""
    return open_pipeline(str(small_folder), device="cpu")


@pytest.fixture(scope="module")
def learned(small: Any) -> LearnStep:
    return finish(learn(small))


def embed(pipeline: Any, text: str, encoder: Any = None) -> torch.Tensor:
    tokenizer, encoder = pipeline.tokenizer, encoder or pipeline.text_encoder
    batch = tokenizer(text, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    with torch.no_grad():
        states: torch.Tensor = encoder(batch.input_ids).last_hidden_state
    return states


def span_in(pipeline: Any, caption: str, class_word: str) -> slice:
    return slice(*token_span(pipeline.tokenizer, caption, *find_class_word(caption, class_word)))


def test_every_step_is_told_and_the_last_holds_the_residual(small: Any) -> None:
    steps = list(learn(small))
    assert [(step.step, step.steps) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for step in steps:
        weighted = RECIPE.preservation_weight * step.preservation_loss
        assert step.loss == pytest.approx(step.subject_loss + weighted, rel=1e-5)
    assert steps[0].preservation_loss == pytest.approx(0, abs=1e-6)
    assert steps[-1].preservation_loss > 1e-3


def test_the_residual_says_what_it_is(learned: LearnStep) -> None:
    residual = learned.residual
    assert residual.class_word == "dog"
    (part,) = residual.parts
    assert part.encoder.role == "text_encoder"
    assert part.encoder.name == "small"
    assert "".join(part.tokens).removesuffix("</w>") == "dog"
    said = {name: value for name, value in dataclasses.asdict(RECIPE).items() if value is not None}
    assert residual.recipe == said | {
        "taken": 4,
        "seed": 0,
        "captions": hash_of(captions_for("dog", count=RECIPE.caption_count)),
        "masks": None,
    }
    assert residual.photos == ("a" * 64, "b" * 64)


@pytest.mark.parametrize("class_word", ["dog", "teddy bear"])
def test_the_residual_is_the_mean_shift_at_the_class_word(small: Any, class_word: str) -> None:
    captions = captions_for(class_word, count=RECIPE.caption_count)
    last = finish(learn_steps(small, PHOTOS, class_word, RECIPE, captions=captions))
    (tuned,) = last.tuned_encoders
    shifts = [
        (embed(small, caption, tuned) - embed(small, caption))[0, span_in(small, caption, class_word)]
        for caption in captions
    ]
    assert_close(last.residual.parts[0].vector, torch.stack(shifts).mean(dim=0), rtol=1e-4, atol=1e-6)


def test_the_pipeline_stays_as_it_is(small_folder: Path) -> None:
    own = open_pipeline(str(small_folder), device="cpu")
    parts = (own.text_encoder, own.unet, own.vae)
    own.unet.conv_in.requires_grad_()  # as where a user opened the model himself
    before = [copy.deepcopy(part.state_dict()) for part in parts]
    finish(learn(own, save_memory=True))
    assert own.unet.conv_in.weight.requires_grad
    assert not own.unet.is_gradient_checkpointing
    for part, state in zip(parts, before, strict=True):
        assert not part.training
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
        assert all(parameter.grad is None for parameter in part.parameters())


@pytest.mark.parametrize(
    ("tune", "changed"), [("all", {"embeddings", "encoder", "final_layer_norm"}), ("layers", {"encoder"})]
)
def test_what_is_tuned(small: Any, tune: str, changed: set[str]) -> None:
    last = finish(learn(small, dataclasses.replace(RECIPE, tune=tune)))  # type: ignore[arg-type]
    (tuned,) = last.tuned_encoders
    assert all(not parameter.requires_grad for parameter in tuned.parameters())
    before, after = small.text_encoder.state_dict(), tuned.state_dict()
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == changed


# Directly, at the text encoder's output (Table A1)


@pytest.mark.parametrize("class_word", ["dog", "teddy bear"])
def test_the_first_direct_step_goes_against_the_gradient_of_eq_2(small: Any, class_word: str) -> None:
    recipe = dataclasses.replace(DIRECT, steps=1, batch_size=1, views_per_photo=1, weight_decay=0.0)
    photo = Photo(Path("grey.png"), "c" * 64, Image.new("RGB", (64, 64), "grey"))
    first = finish(learn_steps(small, photo, class_word, recipe))
    # The random numbers of step 1 in their order: which view, its latent, the noise, the timestep.
    draw = random_numbers(0, 1)
    _ = torch.randint(1, (1,), generator=draw)
    shape = (1, 4, 8, 8)
    sampled, noise = torch.randn(shape, generator=draw), torch.randn(shape, generator=draw)
    timestep = torch.randint(1000, (1,), generator=draw)
    pixels = torch.full((1, 3, 64, 64), 128 / 127.5 - 1)
    with torch.no_grad():
        latents = small.vae.encode(pixels).latent_dist
    scale = small.vae.config.scaling_factor
    noised = add_noise(
        scale * (latents.mean + latents.std * sampled), noise, small.scheduler.alphas_cumprod[timestep], "v_prediction"
    )
    caption = photo_caption(class_word)
    embeddings = embed(small, caption).requires_grad_()
    loss = subject_loss(small.unet(noised.latents, timestep, embeddings).sample, noised.target)
    (slope,) = torch.autograd.grad(loss, embeddings)
    assert first.subject_loss == pytest.approx(loss.item(), rel=1e-5)
    assert first.preservation_loss == 0
    slope = slope[0, span_in(small, caption, class_word)]
    # AdamW's first step, whatever the gradient's length: rate * gradient / (|gradient| + 1e-8).
    expected = -recipe.learning_rate * slope / (slope.abs() + 1e-8)
    assert_close(first.residual.parts[0].vector, expected, rtol=1e-3, atol=1e-6)


def test_direct_learning_lowers_the_loss_and_moves_no_other_word(small: Any) -> None:
    recipe = dataclasses.replace(DIRECT, steps=8, batch_size=32, learning_rate=0.3)
    steps = list(learn_steps(small, PHOTOS[:1], "dog", recipe))
    assert sum(step.subject_loss for step in steps[-3:]) < sum(step.subject_loss for step in steps[:3])
    assert steps[-1].residual.recipe["tune"] == "residual"
    assert steps[-1].displacement() == (0, 0)
    assert steps[-1].tuned_encoders == ()


def test_a_direct_residual_is_the_average_of_what_its_steps_came_to(small: Any) -> None:
    single = dataclasses.replace(DIRECT, averaged=False, steps=3)
    first, second, third = (step.residual.parts[0].vector for step in taken(learn(small, single)))
    averaged = residual_of(learn(small, dataclasses.replace(DIRECT, steps=3))).parts[0].vector
    assert_close(averaged, first / 15 + 4 * second / 15 + 10 * third / 15, rtol=1e-5, atol=1e-7)


def taken(steps: Any) -> list[LearnStep]:
    """All steps, each with its residual computed while it was the last."""
    return [step for step in steps if step.residual]


def test_a_direct_residual_that_is_not_a_number(small: Any) -> None:
    with pytest.raises(LearningError, match="diverged"):
        finish(learn(small, dataclasses.replace(DIRECT, steps=3, learning_rate=1e38)))


# Both ways


def test_the_same_seed_gives_the_same_residual(small: Any, learned: LearnStep) -> None:
    assert residual_of(learn(small)).sha256 == learned.residual.sha256
    other = residual_of(learn(small, seed=1))
    assert not torch.equal(other.parts[0].vector, learned.residual.parts[0].vector)


def test_learning_in_less_memory_gives_the_same_residual(small: Any, learned: LearnStep) -> None:
    steps = learn(small, save_memory=True)
    next(steps)
    assert small.unet.is_gradient_checkpointing
    assert residual_of(steps).sha256 == learned.residual.sha256
    assert not small.unet.is_gradient_checkpointing


def test_learning_lowers_the_loss(small: Any) -> None:
    # One photo, one caption and many draws a step, so that the loss falls by more than its noise.
    recipe = dataclasses.replace(RECIPE, steps=8, batch_size=32, learning_rate=3e-3, preservation_weight=0.0)
    losses = [step.subject_loss for step in learn_steps(small, PHOTOS[:1], "dog", recipe)]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_lambda_keeps_other_words_where_they_are(small: Any) -> None:
    def moved(weight: float) -> float:
        found = finish(learn(small, dataclasses.replace(RECIPE, steps=6, preservation_weight=weight))).displacement()
        assert found is not None
        return found.relative

    assert moved(10.0) < 0.5 * moved(0.0)


def test_displacement_where_no_caption_can_be_held_out(small: Any) -> None:
    every = captions_for("dog", count=200, seed=1)
    last = finish(learn(small, dataclasses.replace(RECIPE, steps=1), captions=every))
    assert last.displacement() is None


def test_any_step_gives_the_residual_of_a_learning_that_ends_there(small: Any) -> None:
    steps = learn(small)
    next(steps)
    second = next(steps)
    shorter = residual_of(learn(small, dataclasses.replace(RECIPE, steps=2)))
    assert torch.equal(second.residual.parts[0].vector, shorter.parts[0].vector)
    assert (second.residual.recipe["steps"], second.residual.recipe["taken"]) == (4, 2)
    steps.close()
    assert not any(parameter.requires_grad for each in second.tuned_encoders for parameter in each.parameters())


def test_asking_for_a_residual_does_not_change_what_follows(small: Any, learned: LearnStep) -> None:
    assert taken(learn(small))[-1].residual.sha256 == learned.residual.sha256


def test_a_step_that_is_gone(small: Any, tmp_path: Path) -> None:
    steps = learn(small, checkpoint=tmp_path)
    first = next(steps)
    next(steps)
    for ask in (lambda: first.residual, lambda: first.tuned_encoders, first.displacement, first.save_checkpoint):
        with pytest.raises(LearningError, match="step 1 is gone: learning is at step 2"):
            ask()


def test_masks_of_all_white_change_nothing(small: Any, learned: LearnStep) -> None:
    white = tuple(dataclasses.replace(photo, mask=WHITE) for photo in PHOTOS)
    masked = residual_of(learn_steps(small, white, "dog", RECIPE))
    assert masked.recipe["masks"] == masks_hash(white)
    # The crops differ: without a mask they are slid to where most detail is. These pictures are square.
    assert_close(masked.parts[0].vector, learned.residual.parts[0].vector, rtol=1e-3, atol=1e-5)


def test_what_is_outside_the_mask_is_not_learned(small: Any) -> None:
    """Two photos that differ only outside the mask give nearly the same loss; without a mask they do not."""
    recipe = dataclasses.replace(RECIPE, steps=1, views_per_photo=1, batch_size=8)

    def loss(background: str, *, masked: bool) -> float:
        image = Image.new("RGB", (64, 64), background)
        image.paste(PHOTOS[0].image.resize((32, 64)), (0, 0))
        mask = Image.new("L", (64, 64))
        mask.paste(255, (0, 0, 16, 64))  # well inside, since the autoencoder looks a little around
        photo = Photo(Path("a.png"), "a" * 64, image, mask if masked else None)
        return next(learn_steps(small, [photo], "dog", recipe)).subject_loss

    inside, outside = (
        abs(loss("white", masked=True) - loss("red", masked=True)),
        abs(loss("white", masked=False) - loss("red", masked=False)),
    )
    assert inside < outside


# Checkpoints


@pytest.mark.parametrize("recipe", [RECIPE, DIRECT], ids=["tuned", "direct"])
def test_a_closed_learner_resumes_to_the_same_bytes(small: Any, tmp_path: Path, recipe: Any) -> None:
    undisturbed = residual_of(learn(small, recipe))
    for number in (1, 2, 3):
        stop_after(learn(small, recipe, checkpoint=tmp_path, resume=True), number)
        assert (tmp_path / f"step-{number:08d}.json").exists()
    assert residual_of(learn(small, recipe, checkpoint=tmp_path, resume=True)).to_bytes() == undisturbed.to_bytes()


def test_closing_alone_writes_nothing(small: Any, tmp_path: Path) -> None:
    steps = learn(small, checkpoint=tmp_path)
    first = next(steps)
    steps.close()
    assert list(tmp_path.glob("step-*")) == []
    with pytest.raises(LearningError, match="checkpoint"):
        first.save_checkpoint()
    with pytest.raises(LearningError, match="checkpoint"):
        stop_after(learn(small))


@pytest.mark.slow
def test_a_killed_learner_resumes_to_the_same_bytes(small_folder: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_learner.py")
    command = [sys.executable, str(script), str(small_folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    undisturbed, killed = tmp_path / "undisturbed.safetensors", tmp_path / "killed.safetensors"
    assert undisturbed.read_bytes() == killed.read_bytes()


def test_a_step_that_fails_keeps_the_one_before(small: Any, learned: LearnStep, tmp_path: Path) -> None:
    steps = learn(small, checkpoint=tmp_path)
    next(steps)
    second = next(steps)
    fail = small.unet.register_forward_pre_hook(lambda *_: [][0])
    with pytest.raises(IndexError):
        next(steps)
    fail.remove()
    assert (tmp_path / "step-00000002.json").exists()
    second.save_checkpoint()  # there is one
    resumed = learn(small, checkpoint=tmp_path, resume=True)
    assert next(resumed).step == 3
    assert residual_of(resumed).sha256 == learned.residual.sha256


def test_without_resume_it_begins_again(small: Any, tmp_path: Path) -> None:
    for _ in range(2):
        step = next(learn(small, checkpoint=tmp_path))
        assert step.step == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 1}, "seed is 1, but it began with 0"),
        ({"class_word": "cat"}, "class word is cat, but it began with dog"),
        ({"photos": PHOTOS[:1]}, "photos is"),
        ({"captions": ["a dog"]}, "captions is"),
        ({"photos": (dataclasses.replace(PHOTOS[0], mask=WHITE), PHOTOS[1])}, "masks is"),
        ({"recipe": dataclasses.replace(RECIPE, batch_size=1)}, "batch_size is 1, but it began with 2"),
        ({"recipe": DIRECT}, "tune is residual, but it began with all"),
    ],
)
def test_resuming_with_something_else(small: Any, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    began: dict[str, Any] = {"photos": PHOTOS, "class_word": "dog", "recipe": RECIPE, "checkpoint": tmp_path}
    stop_after(learn_steps(small, **began))
    with pytest.raises(LearningError, match=told):
        learn_steps(small, **began | change, resume=True)


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("text_encoder", "text encoder"),
        ("unet", "UNet"),
        ("vae", "autoencoder"),
        ("scheduler prediction_type=epsilon", "prediction type"),
        ("scheduler beta_schedule=linear", "noise levels"),
    ],
)
def test_resuming_with_another_model(small: Any, tmp_path: Path, part: str, told: str) -> None:
    recipe = dataclasses.replace(RECIPE, caption_count=2)
    stop_after(learn(small, recipe, checkpoint=tmp_path))
    part, _, setting = part.partition(" ")
    module = copy.deepcopy(getattr(small, part))
    if setting:
        name, _, value = setting.partition("=")
        module = type(module).from_config(module.config, **{name: value})
    else:
        next(module.parameters()).data += 1e-3  # as a fine-tune changes all
    with pytest.raises(LearningError, match=f"{told} is"):
        learn(with_parts(small, **{part: module}), recipe, checkpoint=tmp_path, resume=True)


def test_resuming_with_more_steps_is_as_if_begun_with_them(small: Any, tmp_path: Path) -> None:
    longer = dataclasses.replace(RECIPE, steps=6)
    steps = learn(small, checkpoint=tmp_path, checkpoint_every=1)
    assert [step.step for step in steps] == [1, 2, 3, 4]
    resumed = list(learn(small, longer, checkpoint=tmp_path, resume=True))
    assert [step.step for step in resumed] == [4, 5, 6]  # the last of four steps left no checkpoint
    assert resumed[-1].residual.sha256 == residual_of(learn(small, longer)).sha256


def test_a_loss_that_is_not_a_number(small: Any, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=20, learning_rate=1e30)
    with pytest.raises(LearningError, match=r"loss nan, gradient nan at step 2 of 20.* below 1e\+30"):
        finish(learn(small, recipe, checkpoint=tmp_path, checkpoint_every=50))
    (newest,) = tmp_path.glob("step-*.safetensors")
    assert newest.name == "step-00000001.safetensors"  # the last good state, whether or not one was due


def test_a_residual_that_is_not_a_number(small: Any) -> None:
    with pytest.raises(LearningError, match="diverged"):
        finish(learn(small, dataclasses.replace(RECIPE, steps=1, learning_rate=1e30)))


# What is refused at the call, before any step


def test_two_learners_in_one_folder(small: Any, tmp_path: Path) -> None:
    first = learn(small, checkpoint=tmp_path)
    next(first)
    with pytest.raises(LearningError, match="another learner"):
        learn(small, checkpoint=tmp_path)


def test_resuming_with_fewer_steps_than_taken(small: Any, tmp_path: Path) -> None:
    stop_after(learn(small, checkpoint=tmp_path))
    with pytest.raises(LearningError, match="1 steps are taken already, and steps is 1"):
        learn(small, dataclasses.replace(RECIPE, steps=1), checkpoint=tmp_path, resume=True)


def test_arguments_that_can_not_be_used(small: Any, tmp_path: Path) -> None:
    between = Image.new("L", (512, 64))
    for left in (0, 504):
        between.paste(255, (left, 0, left + 8, 64))  # the square view is between the two
    hidden = Photo(Path("a.png"), "a" * 64, Image.new("RGB", (512, 64)), between)
    beyond = dataclasses.replace(RECIPE, caption_count=10**6)
    (tmp_path / "file").touch()
    for error, told, change in (
        (LearningError, "no photos", {"photos": []}),
        (SettingsError, "seed -1 can't be used", {"seed": -1}),
        (SettingsError, f"seed {2**63} can't be used", {"seed": 2**63}),
        (PhotoError, "nowhere", {"photos": tmp_path / "nowhere.png"}),
        (PhotoError, "a.png", {"photos": [hidden]}),
        (CaptionError, "'...'", {"class_word": "..."}),
        (CaptionError, "'a cat'", {"captions": ["a cat"]}),
        (CaptionError, "1000000", {"recipe": beyond}),
        (SettingsError, "'fast'", {"recipe": "fast"}),
        (SettingsError, "checkpoint_every is 0", {"checkpoint_every": 0}),
        (SettingsError, "resume", {"resume": True}),
        (OutputError, "file", {"checkpoint": tmp_path / "file"}),
    ):
        given: dict[str, Any] = {"photos": PHOTOS, "class_word": "dog", "recipe": RECIPE, **change}
        with pytest.raises(error, match=told) as caught:
            learn_steps(small, **given)
        assert len(str(caught.value).splitlines()) == 1


def test_a_recipe_is_what_the_model_says_suits_it(small: Any, tiny_copy: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("steps = 2\ncaption_count = 5")
    (tiny_copy / "cones2.json").write_text('{"recipe": "direct"}')
    config = tiny_copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 96', '"sample_size": 8'))
    direct = open_pipeline(str(tiny_copy), device="cpu")

    def steps(pipeline: Any, *recipe: Any) -> int:
        return next(learn_steps(pipeline, PHOTOS[:1], "dog", *recipe, captions=["a dog"])).steps

    assert steps(small) == RECIPES["paper"].steps
    assert steps(direct) == RECIPES["direct"].steps
    assert steps(direct, "mini") == RECIPES["mini"].steps
    assert steps(direct, tmp_path / "mine.toml") == 2


def test_photos_as_files_folders_and_images(small: Any, tmp_path: Path) -> None:
    recipe = dataclasses.replace(DIRECT, steps=1)
    for photo in PHOTOS:
        photo.image.save(tmp_path / photo.path)
    images: list[Any] = [photo.image for photo in PHOTOS]
    sources: tuple[Any, ...] = (
        tmp_path,
        [tmp_path / "a.png", tmp_path / "b.png"],
        PHOTOS,
        images,
        [images[0], tmp_path / "b.png"],
    )
    vectors = [residual_of(learn_steps(small, source, "dog", recipe)).parts[0].vector for source in sources]
    assert all(torch.equal(vector, vectors[0]) for vector in vectors)
    hashes = [residual_of(learn_steps(small, images, "dog", recipe)).photos for _ in range(2)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 2
