import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch.testing import assert_close

from cones2.backbones import Backbone
from cones2.captions.corpus import captions_for, find_class_word, photo_caption
from cones2.errors import CaptionError, LearningError, SettingsError
from cones2.learning.data import encode_captions
from cones2.learning.displacement import displacement, held_out_captions
from cones2.learning.lesson import Lesson, denoising_loss, hash_of, masks_hash, random_numbers
from cones2.learning.loop import LearnStep, learn
from cones2.learning.recipe import Recipe
from cones2.learning.study import Study
from cones2.photos import Photo
from cones2.prompts import token_span
from cones2.residual.residual import Residual

RECIPE = Recipe(steps=4, batch_size=2, learning_rate=1e-3, captions_per_step=3, caption_count=12, views_per_photo=2)
PHOTOS = tuple(
    Photo(Path(f"{name}.png"), name * 64, gradient.convert("RGB"))
    for name, gradient in (("a", Image.radial_gradient("L")), ("b", Image.linear_gradient("L")))
)
WHITE = Image.new("L", (256, 256), 255)


@pytest.fixture(scope="module")
def small(tiny: Backbone) -> Backbone:
    """The tiny model, drawing 64 pixels instead of 768."""
    unet = copy.deepcopy(tiny.unet)
    unet.register_to_config(sample_size=8)
    return dataclasses.replace(tiny, unet=unet)


def finish(steps: Iterator[LearnStep]) -> LearnStep:
    *_, last = steps
    return last


def residual_of(steps: Iterator[LearnStep]) -> Residual:
    return finish(steps).residual


@pytest.fixture(scope="module")
def learned(small: Backbone) -> LearnStep:
    return finish(learn(small, PHOTOS, "dog", recipe=RECIPE))


def test_every_step_is_told_and_the_last_holds_the_residual(small: Backbone) -> None:
    steps = list(learn(small, PHOTOS, "dog", recipe=RECIPE))
    assert [(step.step, step.steps) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for step in steps:
        weighted = RECIPE.preservation_weight * step.preservation_loss
        assert step.loss == pytest.approx(step.subject_loss + weighted, rel=1e-5)
    assert steps[0].preservation_loss == pytest.approx(0, abs=1e-6)
    assert steps[-1].preservation_loss > 1e-3


def test_the_residual_says_what_it_is(small: Backbone, learned: LearnStep) -> None:
    residual = learned.residual
    assert residual.class_word == "dog"
    assert "".join(residual.tokens).removesuffix("</w>") == "dog"
    assert residual.encoder == small.encoder_id
    assert residual.recipe == dataclasses.asdict(RECIPE) | {
        "taken": 4,
        "seed": 0,
        "captions": hash_of(captions_for("dog", count=RECIPE.caption_count, lexicon=small.lexicon)),
        "masks": None,
    }
    assert residual.photos == ("a" * 64, "b" * 64)


@pytest.mark.parametrize("class_word", ["dog", "teddy bear"])
def test_the_residual_is_the_mean_shift_at_the_class_word(small: Backbone, class_word: str) -> None:
    captions = captions_for(class_word, count=RECIPE.caption_count)
    last = finish(learn(small, PHOTOS, class_word, recipe=RECIPE, captions=captions))
    shifts = []
    for caption in captions:
        batch = small.tokenizer(caption, return_tensors="pt", return_offsets_mapping=True)
        start, stop = find_class_word(caption, class_word)
        own = [left >= start and right <= stop and right > left for left, right in batch.offset_mapping[0].tolist()]
        shifts.append((last.tuned.embed(batch.input_ids) - small.embed(batch.input_ids))[0, own])
    assert_close(last.residual.vector, torch.stack(shifts).mean(dim=0), rtol=1e-4, atol=1e-6)


def test_the_backbone_stays_as_it_is(small: Backbone) -> None:
    parts = (small.text_encoder, small.unet, small.vae)
    before = [copy.deepcopy(part.state_dict()) for part in parts]
    finish(learn(small, PHOTOS, "dog", recipe=RECIPE))
    for part, state in zip(parts, before, strict=True):
        assert not part.training
        assert all(torch.equal(tensor, state[name]) for name, tensor in part.state_dict().items())
        assert all(not parameter.requires_grad and parameter.grad is None for parameter in part.parameters())


TUNED = {"all": {"embeddings", "encoder", "final_layer_norm"}, "layers": {"encoder"}, "residual": set[str]()}


@pytest.mark.parametrize(("tune", "changed"), TUNED.items())
def test_what_is_tuned(small: Backbone, tune: str, changed: set[str]) -> None:
    last = finish(learn(small, PHOTOS, "dog", recipe=dataclasses.replace(RECIPE, tune=tune)))
    assert all(not parameter.requires_grad for parameter in last.tuned.text_encoder.parameters())
    before = small.text_encoder.state_dict()
    after = last.tuned.text_encoder.state_dict()
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == changed


# Directly, at the text encoder's output (Table A1)

DIRECT = dataclasses.replace(RECIPE, tune="residual", averaged=True)


@pytest.mark.parametrize("class_word", ["dog", "teddy bear"])
def test_the_first_direct_step_goes_against_the_gradient_of_eq_2(small: Backbone, class_word: str) -> None:
    recipe = dataclasses.replace(DIRECT, steps=1, weight_decay=0.0)
    captions = captions_for(class_word, count=4)
    lesson = Lesson.prepare(small, PHOTOS, class_word, captions=captions, recipe=recipe, seed=0)
    caption = photo_caption(class_word)
    embeddings = small.embed(tokenize(small, caption)).requires_grad_()
    loss = denoising_loss(lesson, embeddings, random_numbers(0, 1))
    (slope,) = torch.autograd.grad(loss, embeddings)
    first = finish(learn(small, PHOTOS, class_word, recipe=recipe, captions=captions))
    assert first.subject_loss == pytest.approx(loss.item(), rel=1e-6)
    assert first.preservation_loss == 0
    span = token_span(small.tokenizer, caption, *find_class_word(caption, class_word))
    # AdamW's first step, whatever the gradient's length: rate * gradient / (|gradient| + 1e-8).
    expected = -recipe.learning_rate * slope[0, slice(*span)] / (slope[0, slice(*span)].abs() + 1e-8)
    assert_close(first.residual.vector, expected, rtol=1e-3, atol=1e-6)


def tokenize(backbone: Backbone, caption: str) -> torch.Tensor:
    batch = backbone.tokenizer(caption, padding="max_length", max_length=backbone.window, return_tensors="pt")
    ids: torch.Tensor = batch.input_ids
    return ids


def test_direct_learning_lowers_the_loss_and_moves_no_other_word(small: Backbone) -> None:
    recipe = dataclasses.replace(DIRECT, steps=8, batch_size=32, learning_rate=0.3)
    steps = list(learn(small, PHOTOS[:1], "dog", recipe=recipe))
    assert sum(step.subject_loss for step in steps[-3:]) < sum(step.subject_loss for step in steps[:3])
    last = steps[-1]
    assert last.residual.recipe["tune"] == "residual"
    assert displacement(small, last.tuned, captions_for("dog", count=5), class_word="dog") == (0, 0)


def test_a_closed_direct_learner_resumes_to_the_same_bytes(small: Backbone, tmp_path: Path) -> None:
    undisturbed = residual_of(learn(small, PHOTOS, "dog", recipe=DIRECT))
    for step in (1, 2, 3):
        assert next(learn(small, PHOTOS, "dog", recipe=DIRECT, checkpoint=tmp_path, resume=True)).step == step
    resumed = residual_of(learn(small, PHOTOS, "dog", recipe=DIRECT, checkpoint=tmp_path, resume=True))
    assert resumed.to_bytes() == undisturbed.to_bytes()
    next(learn(small, PHOTOS, "dog", recipe=DIRECT, checkpoint=tmp_path))  # leaves a checkpoint
    with pytest.raises(LearningError, match="tune is all, but it began with residual"):
        next(learn(small, PHOTOS, "dog", recipe=RECIPE, checkpoint=tmp_path, resume=True))


def test_a_direct_residual_is_the_average_of_what_its_steps_came_to(small: Backbone) -> None:
    taken = []
    for step in learn(small, PHOTOS, "dog", recipe=dataclasses.replace(DIRECT, steps=3)):
        taken.append(step.study.parameters[0].detach().clone())
    first, second, third = taken
    assert torch.allclose(step.residual.vector, first / 15 + 4 * second / 15 + 10 * third / 15, rtol=1e-5)
    last = dataclasses.replace(DIRECT, steps=3, averaged=False)
    assert torch.equal(residual_of(learn(small, PHOTOS, "dog", recipe=last)).vector, third)


def test_a_direct_residual_that_is_not_a_number(small: Backbone) -> None:
    recipe = dataclasses.replace(DIRECT, steps=3, learning_rate=1e38)
    with pytest.raises(LearningError, match="learning diverged"):
        finish(learn(small, PHOTOS, "dog", recipe=recipe))


# Both ways


def test_the_same_seed_gives_the_same_residual(small: Backbone, learned: LearnStep) -> None:
    assert residual_of(learn(small, PHOTOS, "dog", recipe=RECIPE)).sha256 == learned.residual.sha256
    other = residual_of(learn(small, PHOTOS, "dog", recipe=RECIPE, seed=1))
    assert not torch.equal(other.vector, learned.residual.vector)


def test_learning_lowers_the_loss(small: Backbone) -> None:
    # One photo, one caption and many draws a step, so that the loss falls by more than its noise.
    recipe = dataclasses.replace(RECIPE, steps=8, batch_size=32, learning_rate=3e-3, preservation_weight=0.0)
    losses = [step.subject_loss for step in learn(small, PHOTOS[:1], "dog", recipe=recipe)]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_lambda_keeps_other_words_where_they_are(small: Backbone) -> None:
    held_out = captions_for("dog", count=20, seed=1)

    def moved(weight: float) -> float:
        recipe = dataclasses.replace(RECIPE, steps=6, preservation_weight=weight)
        tuned = finish(learn(small, PHOTOS, "dog", recipe=recipe)).tuned
        return displacement(small, tuned, held_out, class_word="dog").relative

    assert displacement(small, small, held_out, class_word="dog") == (0, 0)
    assert moved(10.0) < 0.5 * moved(0.0)


def test_a_backbone_that_predicts_noise(small: Backbone) -> None:
    residual_of(learn(predicting_noise(small), PHOTOS, "dog", recipe=RECIPE))


def predicting_noise(backbone: Backbone) -> Backbone:
    scheduler = DDIMScheduler.from_config(backbone.scheduler.config, prediction_type="epsilon")
    return dataclasses.replace(backbone, scheduler=scheduler)


def test_a_closed_learner_resumes_to_the_same_bytes(small: Backbone, learned: LearnStep, tmp_path: Path) -> None:
    for step in (1, 2, 3):
        assert next(learn(small, PHOTOS, "dog", recipe=RECIPE, checkpoint=tmp_path, resume=True)).step == step
    residual = residual_of(learn(small, PHOTOS, "dog", recipe=RECIPE, checkpoint=tmp_path, resume=True))
    assert residual.sha256 == learned.residual.sha256


def test_a_killed_learner_resumes_to_the_same_bytes(tiny_copy: Path, tmp_path: Path) -> None:
    config = tiny_copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 96', '"sample_size": 8'))
    script = Path(__file__).with_name("killed_learner.py")
    command = [sys.executable, str(script), str(tiny_copy), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    undisturbed, killed = tmp_path / "undisturbed.safetensors", tmp_path / "killed.safetensors"
    assert undisturbed.read_bytes() == killed.read_bytes()


def test_without_resume_it_begins_again(small: Backbone, tmp_path: Path) -> None:
    for _ in range(2):
        assert next(learn(small, PHOTOS, "dog", recipe=RECIPE, checkpoint=tmp_path)).step == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 1, but it began with 0"),
        ({"class_word": "cat"}, "class word is cat, but it began with dog"),
        ({"photos": PHOTOS[:1]}, "photos' hash is"),
        ({"captions": ["a dog"]}, "captions' hash is"),
        ({"photos": (dataclasses.replace(PHOTOS[0], mask=WHITE), PHOTOS[1])}, "masks' hash is"),
        ({"recipe": dataclasses.replace(RECIPE, batch_size=1)}, "batch_size is 1, but it began with 2"),
    ],
)
def test_resuming_with_something_else(small: Backbone, tmp_path: Path, change: dict[str, object], message: str) -> None:
    began: dict[str, object] = {"photos": PHOTOS, "class_word": "dog", "recipe": RECIPE}
    next(learn(small, **began, checkpoint=tmp_path, checkpoint_every=1))  # type: ignore[arg-type]
    with pytest.raises(LearningError, match=message):
        next(learn(small, **began | change, checkpoint=tmp_path, resume=True))  # type: ignore[arg-type]


def finetuned(backbone: Backbone, part: str) -> Backbone:
    """Change one small weight of a part, as a fine-tune does with all."""
    module = copy.deepcopy(getattr(backbone, part))
    next(module.parameters()).data += 1e-3
    return dataclasses.replace(backbone, **{part: module})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda small: finetuned(small, "text_encoder"), "text encoder is [0-9a-f]{64}, but it began with"),
        (lambda small: finetuned(small, "unet"), "UNet is [0-9a-f]{64}, but it began with"),
        (lambda small: finetuned(small, "vae"), "autoencoder is [0-9a-f]{64}, but it began with"),
        (lambda small: in_dtype(small, torch.bfloat16), "UNet's dtype is bfloat16, but it began with float32"),
        (lambda small: predicting_noise(small), "prediction type is epsilon, but it began with v_prediction"),
    ],
)
def test_resuming_with_another_model(
    small: Backbone, tmp_path: Path, change: Callable[[Backbone], Backbone], message: str
) -> None:
    recipe = dataclasses.replace(RECIPE, caption_count=2)
    next(learn(small, PHOTOS, "dog", recipe=recipe, checkpoint=tmp_path))
    with pytest.raises(LearningError, match=message):
        next(learn(change(small), PHOTOS, "dog", recipe=recipe, checkpoint=tmp_path, resume=True))


def test_resuming_with_more_steps_is_as_if_begun_with_them(small: Backbone, tmp_path: Path) -> None:
    longer = dataclasses.replace(RECIPE, steps=6)
    steps = learn(small, PHOTOS, "dog", recipe=RECIPE, checkpoint=tmp_path, checkpoint_every=1)
    assert [step.step for step in steps] == [1, 2, 3, 4]
    resumed = list(learn(small, PHOTOS, "dog", recipe=longer, checkpoint=tmp_path, resume=True))
    assert [step.step for step in resumed] == [4, 5, 6]  # the last of four steps left no checkpoint
    assert resumed[-1].residual.sha256 == residual_of(learn(small, PHOTOS, "dog", recipe=longer)).sha256


def test_resuming_with_fewer_steps_than_taken(small: Backbone, tmp_path: Path) -> None:
    next(learn(small, PHOTOS, "dog", recipe=RECIPE, checkpoint=tmp_path))
    fewer = dataclasses.replace(RECIPE, steps=1)
    with pytest.raises(LearningError, match=r"1 steps are taken already, and steps is 1. Resume with more steps"):
        next(learn(small, PHOTOS, "dog", recipe=fewer, checkpoint=tmp_path, resume=True))


def test_any_step_gives_the_residual_of_a_learning_that_ends_there(small: Backbone) -> None:
    steps = learn(small, PHOTOS, "dog", recipe=RECIPE)
    next(steps)
    second = next(steps)
    shorter = residual_of(learn(small, PHOTOS, "dog", recipe=dataclasses.replace(RECIPE, steps=2)))
    assert torch.equal(second.residual.vector, shorter.vector)
    assert (second.residual.recipe["steps"], second.residual.recipe["taken"]) == (4, 2)
    steps.close()
    assert not any(parameter.requires_grad for parameter in second.tuned.text_encoder.parameters())


def test_asking_for_a_residual_does_not_change_what_follows(small: Backbone, learned: LearnStep) -> None:
    for step in learn(small, PHOTOS, "dog", recipe=RECIPE):
        assert torch.isfinite(step.residual.vector).all()
    assert step.residual.sha256 == learned.residual.sha256


def test_a_step_that_is_gone(small: Backbone) -> None:
    steps = learn(small, PHOTOS, "dog", recipe=RECIPE)
    first = next(steps)
    next(steps)
    with pytest.raises(LearningError, match=r"step 1 is gone: learning is at step 2. Ask for what a step has learned"):
        _ = first.residual
    with pytest.raises(LearningError, match="step 1 is gone"):
        _ = first.tuned
    with pytest.raises(LearningError, match="step 1 is gone"):
        first.keep_on_close(False)


def test_masks_of_all_white_change_nothing(small: Backbone, learned: LearnStep) -> None:
    white = tuple(dataclasses.replace(photo, mask=WHITE) for photo in PHOTOS)
    masked = residual_of(learn(small, white, "dog", recipe=RECIPE))
    assert masked.recipe["masks"] == masks_hash(white)
    # The crops differ: without a mask they are slid to where most detail is. These pictures are square.
    assert_close(masked.vector, learned.residual.vector, rtol=1e-3, atol=1e-5)


def test_what_is_outside_the_mask_is_not_learned(small: Backbone) -> None:
    """Two photos that differ only outside the mask give nearly the same loss; without a mask they do not."""
    recipe = dataclasses.replace(RECIPE, steps=1, views_per_photo=1, batch_size=8)

    def loss(background: str, *, masked: bool) -> float:
        image = Image.new("RGB", (64, 64), background)
        image.paste(PHOTOS[0].image.resize((32, 64)), (0, 0))
        mask = Image.new("L", (64, 64))
        mask.paste(255, (0, 0, 16, 64))  # well inside, since the autoencoder looks a little around
        photo = Photo(Path("a.png"), "a" * 64, image, mask if masked else None)
        return next(learn(small, [photo], "dog", recipe=recipe)).subject_loss

    inside, outside = (
        abs(loss("white", masked=True) - loss("red", masked=True)),
        abs(loss("white", masked=False) - loss("red", masked=False)),
    )
    assert inside < outside


def test_displacement_by_hand(small: Backbone) -> None:
    captions = captions_for("dog", count=3)
    tuned = dataclasses.replace(small, text_encoder=copy.deepcopy(small.text_encoder))
    norm = tuned.text_encoder.final_layer_norm
    with torch.no_grad():
        norm.weight.mul_(1.5)
        norm.bias.mul_(1.5)  # every embedding is half as long again
    encoded = encode_captions(small, captions, "dog")
    lengths = small.embed(encoded.input_ids).square().sum(-1).masked_fill(encoded.own, 0).sum(-1)
    moved = displacement(small, tuned, captions, class_word="dog")
    assert moved.preservation == pytest.approx(0.25 * float(lengths.mean()), rel=1e-4)
    assert moved.relative == pytest.approx(0.5, rel=1e-5)


def test_held_out_captions_were_not_learned_from() -> None:
    learned = captions_for("dog", count=1000)
    unseen = held_out_captions("dog", learned)
    assert len(unseen) == len(set(unseen)) == 50
    assert not set(unseen) & set(learned)
    with pytest.raises(CaptionError, match="every caption for 'dog' was learned from"):
        held_out_captions("dog", captions_for("dog", count=40, seed=1), count=10)


def test_two_learners_in_one_folder(small: Backbone, tmp_path: Path) -> None:
    first = learn(small, PHOTOS, "dog", recipe=RECIPE, checkpoint=tmp_path)
    next(first)
    with pytest.raises(LearningError, match="another learner is at work"):
        next(learn(small, PHOTOS, "dog", recipe=RECIPE, checkpoint=tmp_path))


def test_a_loss_that_is_not_a_number(small: Backbone, tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, steps=20, learning_rate=1e30)
    message = r"learning diverged: loss nan, gradient nan at step 2 of 20.* no residual was written. .* below 1e\+30"
    with pytest.raises(LearningError, match=message):
        finish(learn(small, PHOTOS, "dog", recipe=recipe, checkpoint=tmp_path, checkpoint_every=50))
    (newest,) = tmp_path.glob("step-*.safetensors")
    assert newest.name == "step-00000001.safetensors"  # the last good state, whether or not one was due


def test_a_residual_that_is_not_a_number(small: Backbone) -> None:
    recipe = dataclasses.replace(RECIPE, steps=1, learning_rate=1e30)
    with pytest.raises(LearningError, match="learning diverged: the residual is not finite"):
        finish(learn(small, PHOTOS, "dog", recipe=recipe))


def test_no_photos(small: Backbone) -> None:
    with pytest.raises(LearningError, match="no photos to learn from: give at least 1; 3 to 5 are best"):
        next(learn(small, [], "dog", recipe=RECIPE))


def in_dtype(small: Backbone, dtype: torch.dtype) -> Backbone:
    return dataclasses.replace(small, unet=copy.deepcopy(small.unet).to(dtype))


def test_bfloat16(small: Backbone) -> None:
    residual_of(learn(in_dtype(small, torch.bfloat16), PHOTOS, "dog", recipe=RECIPE))


def test_float16_learns_nearly_the_same(small: Backbone, learned: LearnStep) -> None:
    half = finish(learn(in_dtype(small, torch.float16), PHOTOS, "dog", recipe=RECIPE))
    assert half.loss == pytest.approx(learned.loss, rel=1e-2)
    error = half.residual.vector - learned.residual.vector
    assert error.norm() < 0.05 * learned.residual.vector.norm()


@pytest.mark.parametrize("tune", ["all", "residual"])
def test_small_gradients_do_not_vanish_in_float16(small: Backbone, tune: str) -> None:
    half = in_dtype(small, torch.float16)
    half.unet.conv_out.weight.data *= 2**-9  # so that unscaled gradients would be at the least that float16 can hold
    full = in_dtype(half, torch.float32)
    recipe = dataclasses.replace(RECIPE, tune=tune, preservation_weight=0.0)
    found, expected = (first_gradient(backbone, recipe) for backbone in (half, full))
    assert (found - expected).norm() < 0.02 * expected.norm()


def first_gradient(backbone: Backbone, recipe: Recipe) -> torch.Tensor:
    lesson = Lesson.prepare(backbone, PHOTOS, "dog", captions=captions_for("dog", count=4), recipe=recipe, seed=0)
    study = Study(lesson)
    steps = study.steps(after=0)
    next(steps)
    gradients = [parameter.grad for parameter in study.parameters]
    steps.close()
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def test_a_float16_learner_resumes_to_the_same_bytes(small: Backbone, tmp_path: Path) -> None:
    half = in_dtype(small, torch.float16)
    undisturbed = residual_of(learn(half, PHOTOS, "dog", recipe=RECIPE))
    for step in (1, 2, 3):
        assert next(learn(half, PHOTOS, "dog", recipe=RECIPE, checkpoint=tmp_path, resume=True)).step == step
    resumed = residual_of(learn(half, PHOTOS, "dog", recipe=RECIPE, checkpoint=tmp_path, resume=True))
    assert resumed.to_bytes() == undisturbed.to_bytes()


def test_float16_that_overflows(small: Backbone) -> None:
    half = in_dtype(small, torch.float16)
    half.unet.conv_out.weight.data *= 1e4
    with pytest.raises(LearningError, match=r"learning diverged: loss .* at step 1 of 4.* or another dtype"):
        finish(learn(half, PHOTOS, "dog", recipe=RECIPE))


def test_checkpoints_every_zero_steps(small: Backbone) -> None:
    with pytest.raises(SettingsError, match="checkpoint_every is 0: expected at least 1 step"):
        next(learn(small, PHOTOS, "dog", recipe=RECIPE, checkpoint_every=0))


def test_an_unusable_class_word(small: Backbone) -> None:
    with pytest.raises(CaptionError):
        next(learn(small, PHOTOS, "...", recipe=RECIPE))
