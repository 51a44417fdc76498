"""Learning residuals on joint-attention transformers: Stable Diffusion 3, FLUX.1, Z-Image and FLUX.2 klein.

Real classes at tiny size with random weights. They show that learning asks the transformer what drawing asks it, and
follows the gradient; they say nothing of likeness.
"""

# mypy: allow-untyped-calls

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from PIL import Image
from torch.testing import assert_close

from command import refused, run
from cones2.conditioning import conditioned
from cones2.denoisers import FlowCall, packed, unpacked
from cones2.errors import CaptionError, Cones2Warning, LearningError, ModelError, SettingsError
from cones2.families import family_of
from cones2.learning.data import encode_images, encode_views, random_numbers
from cones2.learning.learner import LearnStep, learn_steps
from cones2.learning.losses import add_flow_noise
from cones2.learning.model import FlowDenoiser
from cones2.learning.previews import with_previews
from cones2.learning.recipe import Recipe
from cones2.models import open_pipeline
from cones2.photos import Photo
from cones2.pipeline import Cones2Pipeline
from cones2.residual import Residual, describe_file
from families import JOINT, UNETS
from learning import PHOTOS, finish, learn, residual_of, stop_after, with_parts
from sample_photos import save_photos
from subjects_for_tests import with_own_scheduler

pytestmark = pytest.mark.joint_attention

RECIPE = Recipe(
    steps=3, batch_size=2, learning_rate=1e-2, weight_decay=0.0, views_per_photo=2, tune="residual", side=64
)
ONE = dataclasses.replace(RECIPE, steps=1, batch_size=1, views_per_photo=1)
GREY = Photo(Path("grey.png"), "c" * 64, Image.new("RGB", (64, 64), "grey"))
PLAIN = {"num_inference_steps": 1, "height": 64, "width": 96, "output_type": "latent"}
UNGUIDED = {"flux1": {}, "sd3": {"guidance_scale": 0.0}, "z_image": {"guidance_scale": 0.0}, "klein": {}}
EXTRA = {"klein": {"guidance_scale": 1.0}}
PREDICTED = "a photo of a dog"

every_family = pytest.mark.parametrize("name", JOINT)


def calls(pipeline: Any, work: Callable[[], Any]) -> list[dict[str, Any]]:
    """What a pipeline's transformer is called with while something works, by the names of its arguments."""
    made: list[dict[str, Any]] = []
    names = ("x", "t", "cap_feats")

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        made.append(dict(zip(names, args, strict=False)) | kwargs)

    hook = pipeline.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        work()
    finally:
        hook.remove()
    return made


def one_step(pipeline: Any, name: str, prompt: str = PREDICTED) -> tuple[dict[str, Any], torch.Tensor]:
    """What a picture of one step asks the transformer, and the velocity by which it steps, both as the pipeline's."""
    own = with_own_scheduler(pipeline)
    after: list[torch.Tensor] = []

    def keep(_pipe: Any, _step: int, _time: Any, given: dict[str, Any]) -> dict[str, Any]:
        after.append(given["latents"])
        return {}

    options = {**PLAIN, **UNGUIDED[name], **EXTRA.get(name, {}), "generator": torch.Generator().manual_seed(0)}
    (asked,) = calls(own, lambda: own(prompt=prompt, **options, callback_on_step_end=keep))
    before = torch.stack(asked["x"])[:, :, 0] if "x" in asked else asked["hidden_states"]
    first, last = own.scheduler.sigmas
    return asked, (after[0] - before) / (last - first)


def flow_call(pipeline: Any, asked: dict[str, Any], time: float) -> FlowCall:
    """The same question in the learner's terms."""
    if "x" in asked:
        return FlowCall(torch.stack(asked["x"])[:, :, 0], torch.tensor([time]), asked["cap_feats"][0][None], None, 1.0)
    latents = asked["hidden_states"]
    latents = latents if latents.ndim == 4 else unpacked(latents, 8, 12)
    scale = family_of(pipeline).usual_guidance(pipeline) or 1.0
    text, pooled = asked["encoder_hidden_states"], asked.get("pooled_projections")
    return FlowCall(latents, torch.tensor([time]), text, pooled, scale)


def learner_of(step: LearnStep) -> Any:
    return step._learner


# What the transformer is asked


@every_family
def test_the_velocity_is_that_by_which_a_picture_steps(opened: dict[str, Any], name: str) -> None:
    """In a picture that is not square; it holds packing, sign and time of each family."""
    pipeline = opened[name]
    asked, stepped = one_step(pipeline, name)
    velocity = family_of(pipeline).velocity
    assert velocity is not None
    with torch.no_grad():
        found = velocity(pipeline.transformer, flow_call(pipeline, asked, 1.0))
    assert_close(packed(found) if stepped.ndim == 3 else found, stepped, rtol=1e-4, atol=1e-4)


@every_family
def test_learning_asks_what_drawing_asks(opened: dict[str, Any], name: str) -> None:
    """Positions, guidance, summaries and text, down to the last number; what is drawn by chance apart."""
    pipeline = opened[name]
    asked, _ = one_step(pipeline, name)
    velocity = family_of(pipeline).velocity
    assert velocity is not None
    call = flow_call(pipeline, asked, 1.0)
    with torch.no_grad():
        (again,) = calls(pipeline, lambda: velocity(pipeline.transformer, call))
        (learned,) = calls(pipeline, lambda: finish(learn_steps(pipeline, GREY, "dog", ONE)))
    for key in asked.keys() - {"joint_attention_kwargs", "return_dict", "skip_layers"}:
        drawn, same, mine = (_tensors(each[key]) for each in (asked, again, learned))
        assert_close(same, drawn, rtol=0, atol=1e-6, msg=f"{key} of the same call")
        if key not in ("hidden_states", "timestep", "x", "t", "img_ids"):  # chance, and the size of the picture
            assert_close(mine, drawn, rtol=0, atol=1e-6, msg=f"{key} in learning")


def _tensors(value: Any) -> list[torch.Tensor]:
    """An argument as a list of float32 tensors; ids of a batch of one as those of their row."""
    rows = [] if value is None else value if isinstance(value, list) else [value]
    return [(row[0] if row.ndim == 3 and row.shape[-1] == 4 else row).detach().float() for row in rows]


@pytest.mark.slow
@every_family
def test_a_residual_that_is_learned_is_read_as_it_is_drawn(opened: dict[str, Any], name: str) -> None:
    """E(prompt) + Δ of the last step, for the class word in its place, is what `conditioned` makes of the file."""
    last = finish(learn(opened[name], RECIPE))
    learned, _ = learner_of(last).text.read(torch.zeros(0, dtype=torch.long))
    with conditioned(opened[name], "a photo of a {rex}", subjects={"rex": last.residual}) as inputs:
        drawn = inputs["prompt_embeds"][0]
    assert_close(learned[0].detach(), drawn, rtol=0, atol=1e-6)
    with conditioned(opened[name], PREDICTED) as inputs:
        plain = inputs["prompt_embeds"][0]
    moved = (drawn != plain).any(dim=1)
    assert moved.sum() == len({part.encoder.role.endswith("3") for part in last.residual.parts})  # CLIP's rows, T5's
    assert moved.sum() < len(moved) / 2


# Latents and noise


@every_family
def test_latents_are_in_the_pipelines_own_units(opened: dict[str, Any], name: str) -> None:
    pipeline = copy.copy(opened[name])
    vae = copy.deepcopy(opened[name].vae)
    if name == "klein":  # a new one has mean 0 and variance 1
        draw = torch.Generator().manual_seed(0)
        vae.bn.running_mean.copy_(torch.randn(16, generator=draw))
        vae.bn.running_var.copy_(torch.rand(16, generator=draw) + 0.5)
    vars(pipeline)["vae"] = vae
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    mean, std = encode_images(pipeline, [image])
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(64, 64, 3).permute(2, 0, 1)
    with torch.no_grad():
        posterior = vae.encode(pixels[None] / 127.5 - 1).latent_dist
        if name == "klein":
            expected = pipeline._encode_vae_image(pixels[None] / 127.5 - 1, None)
            assert_close(pipeline._patchify_latents(mean), expected, rtol=1e-4, atol=1e-5)
            stretched = pipeline._patchify_latents(posterior.std) / (vae.bn.running_var + 1e-4).sqrt()[:, None, None]
            assert_close(pipeline._patchify_latents(std), stretched, rtol=1e-3, atol=1e-5)
            return
    scale, shift = vae.config["scaling_factor"], vae.config["shift_factor"]
    assert_close(mean, (posterior.mean - shift) * scale, rtol=1e-4, atol=1e-5)
    assert_close(std, posterior.std * scale, rtol=1e-4, atol=1e-5)


def test_noise_along_a_straight_line() -> None:
    """σ = 1/4 of noise 8 and 3/4 of latent 4 are 5; the velocity is 8 - 4."""
    latents, noise = torch.full((2, 1, 1, 1), 4.0), torch.full((2, 1, 1, 1), 8.0)
    noised = add_flow_noise(latents, noise, torch.tensor([0.25, 1.0]))
    assert noised.latents.flatten().tolist() == [5.0, 8.0]
    assert noised.target.flatten().tolist() == [4.0, 4.0]


def test_noise_is_the_schedulers_own() -> None:
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    latents, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(7)
    expected = scheduler.scale_noise(latents, scheduler.timesteps[2:5], noise)
    noised = add_flow_noise(latents, noise, scheduler.sigmas[2:5])
    assert_close(noised.latents, expected)
    # A step to 0 by the target gives the photo back.
    assert_close(noised.latents - scheduler.sigmas[2:5, None, None, None] * noised.target, latents, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "density", "shift"),
    [("flux1", "none", 1.0), ("sd3", "logit_normal", 3.0), ("z_image", "none", 6.0), ("klein", "none", 1.0)],
)
def test_noise_levels_are_those_of_diffusers_training_scripts(
    opened: dict[str, Any], name: str, density: str, shift: float
) -> None:
    """`shift` moves them where it is the same for all sizes; a dynamic one acts in drawing alone."""
    pipeline = with_own_scheduler(opened[name])
    pipeline.scheduler.set_timesteps(3, mu=1.0 if shift == 1 else None)  # as after a picture
    denoiser = FlowDenoiser.of(pipeline, family_of(pipeline), None)
    views = encode_views(pipeline, [GREY], 1, torch.Generator().manual_seed(0), 64)
    draw = torch.Generator().manual_seed(5)
    batch = denoiser.draw(views, 6, draw)
    again = torch.Generator().manual_seed(5)
    for size in ((6,), (6, *views.mean.shape[1:]), (6, *views.mean.shape[1:])):
        torch.randint(1, size, generator=again) if len(size) == 1 else torch.randn(size, generator=again)
    shares = compute_density_for_timestep_sampling(density, 6, logit_mean=0.0, logit_std=1.0, generator=again)
    level = 1 - (shares * 1000).long() / 1000  # 1, 0.999, ... 0.001
    assert_close(batch.timesteps, shift * level / (1 + (shift - 1) * level))


# A step


@every_family
def test_the_first_step_goes_against_the_gradient_of_eq_2(opened: dict[str, Any], name: str) -> None:
    pipeline, family = opened[name], family_of(opened[name])
    first = finish(learn_steps(pipeline, GREY, "dog", ONE))
    draw = random_numbers(0, 1)
    mean, std = encode_images(pipeline, [GREY.image])
    torch.randint(1, (1,), generator=draw)
    sampled, noise = (torch.randn(mean.shape, generator=draw) for _ in range(2))
    share = torch.randn(1, generator=draw).sigmoid() if name == "sd3" else torch.rand(1, generator=draw)
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    sigma = scheduler.sigmas[(share * 1000).long()]
    photo = mean + std * sampled
    with conditioned(pipeline, PREDICTED) as inputs:
        given = {key: value for key, value in inputs.items() if key in ("prompt_embeds", "pooled_prompt_embeds")}
    text = given["prompt_embeds"][0][None].clone().requires_grad_()
    pooled = given.get("pooled_prompt_embeds")
    call = FlowCall((1 - sigma) * photo + sigma * noise, sigma, text, pooled, 3.5)
    assert family.velocity is not None
    loss = (family.velocity(pipeline.transformer, call) - (noise - photo)).square().mean()
    (slope,) = torch.autograd.grad(loss, text)
    assert first.subject_loss == pytest.approx(loss.item(), rel=1e-5)
    assert first.preservation_loss == 0
    with conditioned(pipeline, "a photo of a {rex}", subjects={"rex": first.residual}) as inputs:
        moved = inputs["prompt_embeds"][0] - text[0].detach()
    rows = moved.abs().sum(dim=1) > 0
    # AdamW's first step is the rate, against the slope's sign, where the slope is not tiny.
    steep = rows[:, None] & (slope[0].abs() > 1e-3 * slope[0][rows].abs().max()) & (moved != 0)
    assert steep.sum() > 8
    assert torch.equal(moved[steep].sign(), -slope[0][steep].sign())


@every_family
def test_a_first_step_is_a_share_of_the_words_own_length(opened: dict[str, Any], name: str) -> None:
    """AdamW's first step moves each number by the rate, in units of its token's and layer's root mean square."""
    residual = finish(learn_steps(opened[name], GREY, "dog", ONE)).residual
    family = family_of(opened[name])
    with conditioned(opened[name], "a photo of a {rex}", subjects={"rex": "dog"}) as inputs:
        text, spans = inputs["prompt_embeds"][0], inputs.run.spans["rex"]
    columns = {"text_encoder_2": 32} if name == "sd3" else {}
    row = dict(zip([part.encoder for part in family.text_parts], _starts(spans, len(family.text_parts)), strict=True))
    for part, facts in zip(residual.parts, family.text_parts, strict=True):
        start = columns.get(part.encoder.role, 0)
        own = text[row[part.encoder.role], start : start + part.encoder.width]
        layers = max(1, len(facts.layers))
        size = own.view(layers, -1).square().mean(dim=1).sqrt()
        steps = part.vector[0].view(layers, -1).abs().amax(dim=1)
        assert_close(steps, ONE.learning_rate * size, rtol=1e-2, atol=1e-7)


def _starts(spans: Any, parts: int) -> list[int]:
    """The first row of each part; Stable Diffusion 3's two CLIPs share one."""
    starts = [start for start, _ in spans]
    return starts if len(starts) == parts else [starts[0], *starts]


@pytest.mark.slow
@every_family
def test_learning_lowers_the_loss_on_noise_that_is_kept(
    opened: dict[str, Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("cones2.learning.learner.random_numbers", lambda seed, _step: random_numbers(seed, 1))
    steps = list(learn(opened[name], dataclasses.replace(RECIPE, steps=6, learning_rate=0.05)))
    losses = [step.loss for step in steps]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@every_family
def test_a_closed_learner_resumes_to_the_same_bytes(opened: dict[str, Any], tmp_path: Path, name: str) -> None:
    recipe = dataclasses.replace(RECIPE, averaged=True)
    stop_after(learn(opened[name], recipe, checkpoint=tmp_path), 2)
    resumed = list(learn(opened[name], recipe, checkpoint=tmp_path, resume=True))
    assert [step.step for step in resumed] == [3]
    assert resumed[-1].residual.to_bytes() == residual_of(learn(opened[name], recipe)).to_bytes()


@pytest.mark.slow
def test_resuming_with_other_noise_or_another_summary(opened: dict[str, Any], tmp_path: Path) -> None:
    flux, recipe = opened["flux1"], dataclasses.replace(RECIPE, batch_size=1)
    heun = diffusers.FlowMatchHeunDiscreteScheduler(shift=5.0)
    stop_after(learn(with_parts(flux, scheduler=heun), recipe, checkpoint=tmp_path))
    with pytest.raises(LearningError, match="noise levels is"):
        learn(flux, recipe, checkpoint=tmp_path, resume=True)
    summary = copy.deepcopy(flux.text_encoder)
    next(summary.parameters()).data += 1e-3
    with pytest.raises(LearningError, match="other text encoders is"):
        learn(with_parts(flux, scheduler=heun, text_encoder=summary), recipe, checkpoint=tmp_path, resume=True)


@pytest.mark.slow
@every_family
def test_less_memory_gives_the_same_bytes(opened: dict[str, Any], name: str) -> None:
    transformer = opened[name].transformer
    trained = [weight.requires_grad for weight in transformer.parameters()]
    saving = residual_of(learn(opened[name], RECIPE, save_memory=True))
    assert saving.to_bytes() == residual_of(learn(opened[name], RECIPE)).to_bytes()
    assert not transformer.is_gradient_checkpointing
    assert [weight.requires_grad for weight in transformer.parameters()] == trained


@pytest.mark.slow
@every_family
def test_offloading_gives_the_same(folders: dict[str, Path], opened: dict[str, Any], name: str) -> None:
    pipeline = open_pipeline(str(folders[name]), device="cpu")
    pipeline.enable_model_cpu_offload(device="cpu")  # moves nothing, but hooks every model as on a GPU
    hooked, plain = residual_of(learn(pipeline, RECIPE)), residual_of(learn(opened[name], RECIPE))
    for one, other in zip(hooked.parts, plain.parts, strict=True):
        assert_close(one.vector, other.vector, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@every_family
def test_in_bfloat16(folders: dict[str, Path], opened: dict[str, Any], name: str) -> None:
    pipeline = open_pipeline(str(folders[name]), device="cpu", dtype="bfloat16")
    half, full = finish(learn(pipeline, RECIPE)), finish(learn(opened[name], RECIPE))
    assert half.loss == pytest.approx(full.loss, rel=0.1)
    assert half.residual.fits([part.encoder for part in full.residual.parts])


def test_what_is_outside_the_mask_is_not_learned(opened: dict[str, Any]) -> None:
    """FLUX.2's latents keep their places, though its transformer packs them: noise outside a mask teaches nothing."""
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    photos = []
    for seed in (0, 1):
        image = Image.effect_noise((64, 64), 60 + seed).convert("RGB")
        image.paste("grey", (0, 0, 32, 64))
        photos.append(Photo(Path("half.png"), "d" * 64, image, mask))
    views = [encode_views(opened["klein"], [photo], 1, torch.Generator(), 64) for photo in photos]
    assert views[0].weights is not None
    assert views[0].weights.shape == (1, 1, 8, 8)
    assert views[0].weights[0, 0, :, :4].min() == 1
    assert views[0].weights[0, 0, :, 4:].max() == 0


# Settings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd2-base", "sd3", "klein"])
def test_a_residual_is_kept_within_its_limit(opened: dict[str, Any], name: str) -> None:
    recipe = dataclasses.replace(ONE, learning_rate=1.0, averaged=True, norm_limit=0.5)
    residual, free = (residual_of(learn(opened[name], each)) for each in (recipe, _without(recipe, norm_limit=None)))
    pairs = zip(_own_lengths(opened[name], residual), residual.parts, free.parts, strict=True)
    for (own, layers), part, other in pairs:
        found = part.vector[0].view(layers, -1).norm(dim=1)
        assert (found <= 0.5 * own * (1 + 1e-5)).all()
        assert (other.vector[0].view(layers, -1).norm(dim=1) > 0.5 * own).all()


def _without(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, **changes)


def _own_lengths(pipeline: Any, residual: Residual) -> list[tuple[torch.Tensor, int]]:
    """The length of the class word's own embedding, for each part, in each layer that it reads."""
    family = family_of(pipeline)
    found = []
    with conditioned(pipeline, "a photo of a {rex}", subjects={"rex": "dog"}) as inputs:
        text, spans = inputs["prompt_embeds"][0], inputs.run.spans["rex"]
    column = 0
    for index, (part, facts) in enumerate(zip(residual.parts, family.text_parts, strict=True)):
        column = column if facts.is_beside else 0
        row = _starts(spans, len(residual.parts))[index]
        layers = max(1, len(facts.layers))
        own = text[row, column : column + part.encoder.width]
        found.append((own.view(layers, -1).norm(dim=1), layers))
        column += part.encoder.width
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("sdxl", 64), ("flux1", 80)])
def test_views_of_another_side(opened: dict[str, Any], name: str, side: int) -> None:
    last = finish(learn(opened[name], dataclasses.replace(ONE, side=side)))
    assert learner_of(last).views.mean.shape[-2:] == (side // 8, side // 8)
    assert last.residual.recipe["side"] == side


@pytest.mark.parametrize("side", [32, 65, 8192])
def test_sides_that_no_view_has(side: int) -> None:
    with pytest.raises(SettingsError, match=f"side of a recipe is {side}"):
        dataclasses.replace(RECIPE, side=side)


def test_the_norm_limit_is_for_a_residual_that_is_learned_itself() -> None:
    with pytest.raises(SettingsError, match="norm_limit is for tune 'residual'"):
        Recipe(norm_limit=1.0)


def _distilled(pipeline: Any) -> None:
    pipeline.register_to_config(is_distilled=True)


def _inpainting(pipeline: Any) -> None:
    config = {**pipeline.transformer.config, "in_channels": 33}
    vars(pipeline)["transformer"] = type(pipeline.transformer).from_config(config)


def _of_another_scheduler(pipeline: Any) -> None:
    vars(pipeline)["scheduler"] = diffusers.DDIMScheduler()


def _compiled(pipeline: Any) -> None:
    pipeline.transformer.compile(backend="eager")


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("klein", _distilled, "FLUX.2-klein-base-4B"),
        ("sd3", _inpainting, "33 channels.*inpainting.*stable-diffusion-3.5"),
        ("flux1", _of_another_scheduler, "DDIMScheduler.*FlowMatchEulerDiscreteScheduler"),
        ("z_image", _compiled, "transformer is compiled"),
    ],
)
def test_models_that_can_not_be_learned_on(
    folders: dict[str, Path], name: str, change: Callable[[Any], None], told: str
) -> None:
    pipeline = open_pipeline(str(folders[name]), device="cpu")
    change(pipeline)
    with pytest.raises(ModelError, match=told) as caught:
        learn(pipeline, RECIPE)
    assert len(str(caught.value).splitlines()) == 1


def test_a_model_that_its_name_calls_turbo_is_warned_of(opened: dict[str, Any]) -> None:
    pipeline = copy.copy(opened["z_image"])
    pipeline.register_to_config(_name_or_path="Tongyi-MAI/Z-Image-Turbo")
    with pytest.warns(Cones2Warning, match="Z-Image-Turbo was distilled.*learn on Tongyi-MAI/Z-Image;"):
        learn(pipeline, RECIPE)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"recipe": "paper"}, r"FLUX\.1.*'direct'"),
        ({"recipe": dataclasses.replace(RECIPE, side=2048)}, "side is 2048: expected at most 1024"),
        ({"recipe": RECIPE, "captions": ["a dog"]}, "captions"),
        ({"recipe": RECIPE, "compile": True}, "compile"),
    ],
)
def test_settings_that_do_not_suit_these_models(opened: dict[str, Any], options: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        learn_steps(opened["flux1"], PHOTOS, "dog", **options)


def test_a_class_word_of_too_many_tokens(opened: dict[str, Any]) -> None:
    with pytest.raises(CaptionError, match="tokens long"):
        learn_steps(opened["flux1"], PHOTOS, "xylophonic zygomorphic quokka", RECIPE)


def test_without_a_word_the_recipe_is_the_direct_one(opened: dict[str, Any]) -> None:
    families = {name: family_of(opened[name]).recipe for name in (*UNETS, *JOINT)}
    assert families == {**dict.fromkeys(UNETS, "paper"), **dict.fromkeys(JOINT, "direct")}


# From photos to a picture


@pytest.mark.slow
@every_family
def test_a_subject_is_learned_and_drawn_in_its_place(opened: dict[str, Any], name: str, tmp_path: Path) -> None:
    pipe = Cones2Pipeline(opened[name])
    pipe.set_progress_bar_config(disable=True)
    taught = pipe.learn(PHOTOS, "dog", dataclasses.replace(RECIPE, learning_rate=1.0), progress=False)
    taught.save(tmp_path / "rex.safetensors")
    pipe.load_subject("rex", tmp_path / "rex.safetensors")
    told = describe_file((tmp_path / "rex.safetensors").read_bytes(), origin="rex")
    assert [part["role"] for part in told["parts"]] == [part.encoder for part in family_of(opened[name]).text_parts]
    options: dict[str, Any] = {
        "layout": {"rex": (0, 0, 0.5, 1)},
        "num_inference_steps": 2,
        "seed": 0,
        "height": 64,
        "width": 96,
    }
    prompt = "a {rex} on the beach"
    drawn, plain = (pipe(prompt, subjects=given, **options).images[0] for given in ({}, {"rex": "dog"}))
    assert drawn.tobytes() != plain.tobytes()
    assert drawn.tobytes() == pipe(prompt, **options).images[0].tobytes()


@pytest.mark.slow
def test_previews_are_drawn_on_the_way(opened: dict[str, Any]) -> None:
    pipe = Cones2Pipeline(opened["flux1"])
    pipe.set_progress_bar_config(disable=True)
    steps = pipe.learn_steps(PHOTOS, "dog", RECIPE)
    drawing = {"num_inference_steps": 1, "height": 64, "width": 64}
    *_, last = with_previews(steps, pipe, every=2, drawing=drawing)
    assert last.images
    assert last.residual.to_bytes() == residual_of(learn(opened["flux1"], RECIPE)).to_bytes()


def test_without_t5_a_subject_has_no_part_for_it(opened: dict[str, Any]) -> None:
    parts = {**opened["sd3"].components, "text_encoder_3": None, "tokenizer_3": None}
    residual = residual_of(learn(diffusers.StableDiffusion3Pipeline(**parts), ONE))
    assert [part.encoder.role for part in residual.parts] == ["text_encoder", "text_encoder_2"]


@pytest.mark.slow
def test_from_the_command_line(folders: dict[str, Path], tmp_path: Path) -> None:
    photos = save_photos(tmp_path / "photos", 64)
    recipe = tmp_path / "quick.toml"
    recipe.write_text('preset = "direct"\nsteps = 2\nbatch_size = 1\nside = 64\nviews_per_photo = 1\n')
    out = tmp_path / "rex.safetensors"
    learning = ("learn", photos, "--class", "dog", "--model", folders["sd3"], "--out", out)
    told = json.loads(run(*learning, "--recipe", recipe, "--json").stdout)
    assert told["tokens"].keys() == {"text_encoder", "text_encoder_2", "text_encoder_3"}
    shown = run("inspect", out).stdout
    assert "sd3" in shown
    assert "tune 'residual'" in refused(*learning, "--recipe", "paper", "--replace")
