"""Every supported family of models, at tiny size: open, learn, save, load, compose, and parity with diffusers."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch.testing import assert_close
from transformers import CLIPTextConfig, CLIPTextModel

from cones2.backbones import Backbone, make_scheduler, open_backbone
from cones2.backbones.fingerprint import fingerprint
from cones2.composing.loop import compose
from cones2.composing.records import PictureRecord, picture_record
from cones2.composing.settings import ComposeSettings
from cones2.errors import BackboneError, LearningError, ResidualMismatchError
from cones2.layout.regions import Layout
from cones2.learning.loop import learn
from cones2.learning.recipe import Recipe
from cones2.learning.study import LearnStep
from cones2.photos import Photo
from cones2.prompts import parse_prompt, tokenize_prompt
from cones2.residual.residual import Residual
from cones2.steps import finish
from cones2.subjects import Subject, embed_prompt
from families import FAMILIES
from little_hub import keep_in_cache

RECIPE = Recipe(steps=2, batch_size=2, learning_rate=1e-3, captions_per_step=2, caption_count=8)
PHOTO = Photo(Path("ted.png"), "a" * 64, Image.radial_gradient("L").convert("RGB"))
SETTINGS = ComposeSettings(steps=2, height=64, width=72, seeds=(5, 6))
LAYOUT = Layout.from_numbers({"ted": [(0.0, 0.0, 0.5, 1.0)], "rex": [(0.5, 0.0, 1.0, 1.0)]})


@pytest.fixture(scope="session")
def learned(opened: dict[str, Backbone]) -> dict[str, LearnStep]:
    return {family: finish(learn(opened[family], [PHOTO], "teddy bear", recipe=RECIPE)) for family in FAMILIES}


@pytest.fixture
def xl(opened: dict[str, Backbone]) -> Backbone:
    return opened["sdxl"]


def residual_of(step: LearnStep) -> Residual:
    assert step.residual is not None
    return step.residual


@pytest.mark.parametrize("family", FAMILIES)
def test_a_residual_learned_directly_goes_into_a_file_and_a_picture(
    opened: dict[str, Backbone], family: str, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPE, tune="residual", averaged=True)
    residual = residual_of(finish(learn(opened[family], [PHOTO], "teddy bear", recipe=recipe)))
    residual.save(tmp_path / "ted.safetensors")
    loaded = Residual.load(tmp_path / "ted.safetensors")
    assert loaded.to_bytes() == residual.to_bytes()
    with_it, without = (
        finish(compose(opened[family], "a {ted}", subjects={"ted": Subject("teddy bear", one)}, settings=SETTINGS))
        for one in (loaded, None)
    )
    assert not torch.equal(with_it.latents, without.latents)


# Parity


def diffusers_pictures(backbone: Backbone, folder: Path, settings: ComposeSettings, prompt: str) -> list[Image.Image]:
    """Draw with the pipeline that diffusers makes of the folder, on the same weights: where they lie in memory moves
    the last bits of a product."""
    encoders = zip(("text_encoder", "text_encoder_2"), backbone.text_encoders, strict=False)
    pipeline = DiffusionPipeline.from_pretrained(folder, unet=backbone.unet, vae=backbone.vae, **dict(encoders))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler("ddim", pipeline.scheduler)
    pipeline.vae.enable_slicing()  # decodes one by one, as here; the autoencoder is the backbone's own
    pictures: list[Image.Image] = pipeline(
        prompt,
        height=settings.height,
        width=settings.width,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        negative_prompt=settings.negative_prompt or None,
        num_images_per_prompt=len(settings.seeds),
        generator=[torch.Generator().manual_seed(seed) for seed in settings.seeds],
    ).images
    pipeline.vae.disable_slicing()
    return pictures


@pytest.mark.parametrize("changes", [{}, {"negative_prompt": "a dog"}, {"guidance_scale": 1.0}])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_added_is_diffusers_own_picture(
    opened: dict[str, Backbone], folders: dict[str, Path], family: str, changes: dict[str, Any]
) -> None:
    settings = dataclasses.replace(SETTINGS, **changes)
    pictures = finish(compose(opened[family], "a cat on the beach", settings=settings)).pictures
    expected = diffusers_pictures(opened[family], folders[family], settings, "a cat on the beach")
    for mine, theirs in zip(pictures, expected, strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_hub_id_opens_what_its_folder_does(
    folders: dict[str, Path], opened: dict[str, Backbone], family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_in_cache(folders[family], f"someone/{family}", tmp_path, monkeypatch)
    backbone = open_backbone(f"someone/{family}", device="cpu")
    assert backbone.name == f"someone/{family}"
    assert backbone.encoder_id.fits(opened[family].encoder_id)
    one, other = (finish(compose(each, "a cat", settings=SETTINGS)).latents for each in (backbone, opened[family]))
    assert torch.equal(one, other)


def test_an_empty_negative_prompt_is_what_the_models_index_says(xl: Backbone, folders: dict[str, Path]) -> None:
    assert json.loads((folders["sdxl"] / "model_index.json").read_text())["force_zeros_for_empty_prompt"] is True
    worded = dataclasses.replace(xl, zeros_for_empty_prompt=False)
    assert xl.zeros_for_empty_prompt
    one, other = (finish(compose(backbone, "a cat", settings=SETTINGS)).latents for backbone in (xl, worded))
    assert not torch.allclose(one, other)


def test_xl_reads_what_diffusers_reads(xl: Backbone) -> None:
    ids = tokenize_prompt(parse_prompt("a cat on the beach", {}), xl.tokenizer).input_ids
    embeddings, _, pooled, _ = xl.pipeline().encode_prompt("a cat on the beach", do_classifier_free_guidance=False)
    assert torch.equal(xl.embed(ids), embeddings)
    added = xl.added_conditions(ids, height=64, width=72)
    assert torch.equal(added["text_embeds"], pooled)
    assert added["time_ids"].tolist() == [[64, 72, 0, 0, 64, 72]]


def test_both_encoders_of_xl_read_an_exclamation_mark_as_one(xl: Backbone) -> None:
    assert xl.tokenizer_2 is not None
    ids = tokenize_prompt(parse_prompt("a cat!", {}), xl.tokenizer).input_ids
    second = xl._padded_anew(ids)
    end = ids[0].tolist().index(xl.tokenizer.eos_token_id)
    assert torch.equal(second[0, : end + 1], ids[0, : end + 1])
    assert set(second[0, end + 1 :].tolist()) == {xl.tokenizer_2.pad_token_id}
    assert xl.tokenizer_2.pad_token_id == xl.tokenizer_2.convert_tokens_to_ids("!") != xl.tokenizer.pad_token_id


def test_other_models_add_nothing_to_the_text(opened: dict[str, Backbone]) -> None:
    assert opened["sd2"].added_conditions(torch.tensor([[0, 1]]), height=64, width=64) == {}


# Opening


def test_what_each_family_is(opened: dict[str, Backbone]) -> None:
    assert [opened[family].prediction_type for family in FAMILIES] == ["epsilon", "epsilon", "v_prediction", "epsilon"]
    assert [opened[family].width for family in FAMILIES] == [32, 32, 32, 56]
    assert [len(opened[family].text_encoders) for family in FAMILIES] == [1, 1, 1, 2]
    assert {(backbone.window, backbone.default_size) for backbone in opened.values()} == {(77, (64, 64))}


def test_both_encoders_of_xl_have_a_fingerprint(xl: Backbone) -> None:
    mine = xl.encoder_id
    assert mine.widths == (32, 24)
    assert mine.second == fingerprint([xl.text_encoder_2], "sdxl")
    alone = fingerprint([xl.text_encoder], "sdxl")
    assert not alone.fits(mine)
    assert not mine.fits(alone)
    other = dataclasses.replace(mine, second=dataclasses.replace(mine.second, weights="0" * 64, probe=(9.0,) * 16))
    assert not other.fits(mine)
    assert mine.fits(dataclasses.replace(mine, name="renamed"))


# Learning, the file, composing


@pytest.mark.parametrize("family", FAMILIES)
def test_a_learned_residual_is_saved_loaded_and_drawn(
    opened: dict[str, Backbone], learned: dict[str, LearnStep], family: str, tmp_path: Path
) -> None:
    backbone, path = opened[family], tmp_path / "ted.safetensors"
    residual_of(learned[family]).save(path)
    residual = Residual.load(path)
    assert residual.to_bytes() == path.read_bytes()
    assert residual.encoder == backbone.encoder_id
    assert residual.tokens == tuple(backbone.tokenizer.tokenize("teddy bear"))
    assert [part.shape[1] for part in residual.parts] == list(backbone.encoder_id.widths)
    assert all(part.norm() > 0 for part in residual.parts)
    assert residual.vector.shape == (len(residual.tokens), backbone.width)
    subjects = {"ted": Subject("teddy bear", residual), "rex": Subject("dog")}
    drawn = finish(compose(backbone, "a {ted} and a {rex}", subjects=subjects, layout=LAYOUT, settings=SETTINGS))
    assert drawn.latents.isfinite().all()
    plain = {name: dataclasses.replace(subject, residual=None) for name, subject in subjects.items()}
    other = finish(compose(backbone, "a {ted} and a {rex}", subjects=plain, layout=LAYOUT, settings=SETTINGS))
    assert not torch.allclose(drawn.latents, other.latents, atol=1e-5)


def test_a_residual_of_one_family_is_refused_by_another(
    opened: dict[str, Backbone], learned: dict[str, LearnStep]
) -> None:
    for family, other, widths in (("sdxl", "sd1", r"32\+24"), ("sd1", "sdxl", "32")):
        with pytest.raises(ResidualMismatchError, match=rf"learned on {family} \(width {widths}\), this backbone is"):
            residual_of(learned[family]).check_fits(opened[other].encoder_id, force=True)


def test_learning_tunes_both_encoders_of_xl(xl: Backbone, learned: dict[str, LearnStep]) -> None:
    tuned = learned["sdxl"].tuned
    assert tuned is not None
    for before, after in zip(xl.text_encoders, tuned.text_encoders, strict=True):
        old, new = before.state_dict(), after.state_dict()
        assert not torch.equal(old[first := next(iter(old))], new[first])
        assert not any(parameter.requires_grad for parameter in after.parameters())


def test_the_residual_of_xl_is_the_mean_shift_of_each_encoder(xl: Backbone) -> None:
    captions = ["a teddy bear", "the teddy bear on the beach"]
    last = finish(learn(xl, [PHOTO], "teddy bear", recipe=RECIPE, captions=captions))
    assert last.tuned is not None
    shifts: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
    for caption in captions:
        prompt = tokenize_prompt(parse_prompt(caption.replace("teddy bear", "{x}"), {"x": "teddy bear"}), xl.tokenizer)
        ((start, stop),) = prompt.spans["x"]
        ids = (prompt.input_ids, xl._padded_anew(prompt.input_ids))
        for shift, before, after, own in zip(shifts, xl.text_encoders, last.tuned.text_encoders, ids, strict=True):
            states = [encoder(own, output_hidden_states=True).hidden_states[-2] for encoder in (before, after)]
            shift.append((states[1] - states[0])[0, start:stop])
    for part, shift in zip(residual_of(last).parts, shifts, strict=True):
        assert_close(part, torch.stack(shift).mean(dim=0), rtol=1e-4, atol=1e-6)


def test_a_residual_leaves_the_pooled_text_of_xl_alone(xl: Backbone, learned: dict[str, LearnStep]) -> None:
    subjects = {"ted": Subject("teddy bear", residual_of(learned["sdxl"]))}
    prompt = tokenize_prompt(parse_prompt("a {ted}", {"ted": "teddy bear"}), xl.tokenizer)
    difference = embed_prompt(xl, prompt, subjects) - xl.embed(prompt.input_ids)
    ((start, stop),) = prompt.spans["ted"]
    assert_close(difference[0, start:stop], residual_of(learned["sdxl"]).vector, atol=1e-6, rtol=0)
    assert difference[0, :start].abs().max() == difference[0, stop:].abs().max() == 0


def test_the_pooled_text_learned_under_is_the_untouched_encoders(xl: Backbone) -> None:
    seen: list[torch.Tensor] = []
    hook = xl.unet.register_forward_pre_hook(
        lambda _, __, options: seen.append(options["added_cond_kwargs"]["text_embeds"]), with_kwargs=True
    )
    try:
        finish(learn(xl, [PHOTO], "dog", recipe=RECIPE))
    finally:
        hook.remove()
    prompt = tokenize_prompt(parse_prompt("a photo of a dog", {}), xl.tokenizer)
    expected = xl.added_conditions(prompt.input_ids, height=64, width=64)["text_embeds"]
    assert len(seen) == RECIPE.steps
    for pooled in seen:
        assert_close(pooled, expected.expand(RECIPE.batch_size, -1))


def test_the_record_names_both_encoders(xl: Backbone) -> None:
    record = picture_record(xl, "a cat", 5, settings=SETTINGS)
    made = record["backbone"]
    assert PictureRecord.from_record(record).backbone.weights == [part.weights for part in xl.encoder_id.parts]
    assert (made["encoder"]["width"], made["encoder_2"]["width"]) == (32, 24)


def test_resuming_on_another_second_encoder(xl: Backbone, tmp_path: Path) -> None:
    next(learn(xl, [PHOTO], "dog", recipe=RECIPE, checkpoint=tmp_path, checkpoint_every=1))
    with torch.random.fork_rng():
        torch.manual_seed(99)
        other = dataclasses.replace(xl, text_encoder_2=type(xl.text_encoder_2)(xl.text_encoder_2.config).eval())
    with pytest.raises(LearningError, match="text encoder is"):
        next(learn(other, [PHOTO], "dog", recipe=RECIPE, checkpoint=tmp_path, resume=True))


# What is refused


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def xl_copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["sdxl"], tmp_path / "xl"))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        open_backbone(str(folder), device="cpu")
    assert len(str(caught.value).splitlines()) == 1


def test_xl_without_its_second_tokenizer(xl_copy: Path) -> None:
    edit_json(xl_copy / "model_index.json", tokenizer_2=[None, None])
    refused(xl_copy, "a StableDiffusionXLPipeline whose tokenizer_2 is missing: only Stable Diffusion 1.x, 2.x and XL")


def test_the_refiner_of_xl(xl_copy: Path) -> None:
    edit_json(xl_copy / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    refused(xl_copy, "whose tokenizer is missing: only Stable Diffusion 1.x, 2.x and XL are supported")


def test_a_unet_of_xl_with_one_text_encoder(xl_copy: Path) -> None:
    shutil.rmtree(xl_copy / "text_encoder")
    folder = xl_copy / "text_encoder"
    config = CLIPTextConfig(vocab_size=341, bos_token_id=0, eos_token_id=1, hidden_size=56, num_hidden_layers=1)
    CLIPTextModel(config).save_pretrained(folder)
    edit_json(xl_copy / "model_index.json", text_encoder_2=[None, None], tokenizer_2=[None, None])
    refused(xl_copy, "its UNet reads 72 numbers beside the text's tokens, its text encoders give 0; only Stable")


def test_an_autoencoder_that_shifts_its_latents(xl_copy: Path) -> None:
    edit_json(xl_copy / "vae" / "config.json", latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    refused(xl_copy, "its autoencoder shifts and scales each channel of the latents, which is not supported")


def test_a_second_encoder_of_another_width(xl_copy: Path) -> None:
    edit_json(xl_copy / "unet" / "config.json", projection_class_embeddings_input_dim=70)
    refused(xl_copy, "can't open .* Copy or download the model again")


def test_tokenizers_of_two_kinds(xl_copy: Path) -> None:
    path = xl_copy / "tokenizer_2" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["merges"].reverse()
    path.write_text(json.dumps(tokenizer))
    refused(xl_copy, "its two tokenizers split words differently, so a subject would have two places")
