"""The judge: what it sees, where, and how like an individual that is."""

# mypy: allow-untyped-calls

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cones2.errors import ModelError, PhotoError
from cones2.examples import EXAMPLES
from cones2.judge import JUDGE_WEIGHTS, Judge, JudgeWorld, clip_similarity, crop, judged_likeness, open_judge, overlap
from cones2.photos import Photo

WORLD = JudgeWorld(classes=("dog", "hat"), worn=("hat",), colours=("red",), scenes=("beach",))


def test_overlap_by_hand() -> None:
    left, right = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
    assert overlap(left, (0.25, 0.0, 0.75, 1.0)) == pytest.approx(1 / 3)
    assert overlap(left, left) == 1
    assert overlap(left, right) == 0


def test_a_crop_is_the_square_around_a_box() -> None:
    picture = torch.zeros(1, 3, 128, 128)
    picture[:, :, 32:96, 32:96] = 1
    cut = crop(picture, torch.tensor([(0.25, 0.25, 0.75, 0.75)]), torch.tensor([0]))
    assert cut[0, :, 8:48, 8:48].min() > 0.999  # the box itself
    assert cut[0, :, :3].max() < 0.5  # its margin


def test_what_it_sees_is_surest_first_and_over_the_threshold() -> None:
    torch.manual_seed(0)
    (seen,) = Judge(WORLD, threshold=0.0).eval().look(torch.rand(1, 3, 128, 128))
    assert seen
    assert [one.score for one in seen] == sorted((one.score for one in seen), reverse=True)
    assert Judge(WORLD, threshold=1.0).eval().look(torch.rand(2, 3, 128, 128)) == [[], []]


def test_the_shipped_one_names_the_example_subjects() -> None:
    judge, right = open_judge(), []
    for example in EXAMPLES.values():
        picture = np.asarray(example.photos[4].image)
        (seen,) = judge.look(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255)
        right.append([judge.world.classes[one.class_index] for one in seen] == [example.class_word])
    assert sum(right) >= 0.8 * len(right)


def test_a_subject_is_most_like_its_own_photos() -> None:
    rex, fido = (EXAMPLES[name].photos for name in ("rex", "fido"))
    measure = judged_likeness(rex[:3], "dog", open_judge())
    own, other = ([photo.image for photo in photos[3:]] for photos in (rex, fido))
    assert measure(own) > measure(other)
    assert measure([rex[0].image.point(lambda _: 128)]) == 0  # a picture of nothing


def test_photos_of_nothing_that_it_knows() -> None:
    grey = Photo(Path("grey.png"), "0" * 64, EXAMPLES["rex"].photos[0].image.point(lambda _: 128))
    with pytest.raises(PhotoError, match="'dog' in 0 of 1"):
        judged_likeness([grey], "dog", open_judge())


def test_what_is_beside_the_subject_does_not_count() -> None:
    """A picture of a mug is nothing like a dog, whatever the mug is like."""
    rex, momo = EXAMPLES["rex"].photos, EXAMPLES["momo"].photos
    assert judged_likeness(rex, "dog", open_judge())([photo.image for photo in momo]) == 0
    with pytest.raises(PhotoError, match="'mug' in 0 of 5"):
        judged_likeness(rex, "mug", open_judge())


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_pictures_of_any_mode(mode: str) -> None:
    rex = EXAMPLES["rex"].photos
    measure = judged_likeness(rex, "dog", open_judge())
    assert -1 <= measure([photo.image.convert(mode) for photo in rex]) <= 1


@pytest.mark.parametrize("config", [None, "{}", '{"threshold": 0.3', " " * 2**17])
def test_a_folder_that_holds_no_judge(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=str(tmp_path)):
        open_judge(tmp_path)


def test_weights_of_another_judge(tmp_path: Path) -> None:
    for path in JUDGE_WEIGHTS.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b'"dog",', b""))
    with pytest.raises(ModelError, match=str(tmp_path)):
        open_judge(tmp_path)


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


PHOTO = Photo(Path("a.png"), "a" * 64, Image.radial_gradient("L").convert("RGB"))
OTHER = Image.linear_gradient("L").convert("RGB")


def clips_own_similarity(clip: Path, **processing: Any) -> float:
    """Return the similarity of `PHOTO` and `OTHER` by transformers' own processor and model."""
    size = {"height": 32, "width": 32}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size, **processing)
    pixels = processor([PHOTO.image, OTHER], return_tensors="pt").pixel_values
    model = CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(pixels).pooler_output)
    return float(torch.cosine_similarity(features[0], features[1], dim=0))


def test_similarity_is_that_of_clip_itself(clip: Path) -> None:
    assert clip_similarity([PHOTO], clip)([OTHER]) == pytest.approx(clips_own_similarity(clip), abs=1e-3)


def test_similarity_of_a_model_trained_on_other_pictures(clip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(clip, tmp_path / "clip"))
    processing = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.5, 0.6, 0.7)}
    (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    expected = clips_own_similarity(clip, **processing)
    assert clip_similarity([PHOTO], folder)([OTHER]) == pytest.approx(expected, abs=1e-3)
    assert expected != pytest.approx(clips_own_similarity(clip), abs=2e-3)


def test_measures_of_different_models_have_different_names(clip: Path, tmp_path: Path) -> None:
    def name(folder: Path) -> str:
        return clip_similarity([PHOTO], folder).__qualname__

    copy, other = Path(shutil.copytree(clip, tmp_path / "copy")), tmp_path / "other"
    assert name(copy) == name(clip)
    CLIPModel(CLIPModel.from_pretrained(clip).config).save_pretrained(other)  # of other weights
    (copy / "preprocessor_config.json").write_text(json.dumps({"image_mean": (0.1, 0.2, 0.3)}))
    assert len({name(folder) for folder in (clip, copy, other)}) == 3


def test_similarity_of_a_picture_with_itself_is_one(clip: Path) -> None:
    measure = clip_similarity([PHOTO], clip)
    other = Image.effect_noise((64, 64), 90).convert("RGB")
    assert measure([PHOTO.image]) == pytest.approx(1, abs=1e-5)
    assert measure([other]) < 0.9999
    assert measure([PHOTO.image, other]) == pytest.approx((1 + measure([other])) / 2, abs=1e-5)


def test_folders_that_are_no_clip_model(clip: Path, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing"):
        clip_similarity([PHOTO], tmp_path / "nothing")
    (tmp_path / "config.json").write_text((clip / "config.json").read_text())
    weights = tiny_folder / "vae" / "diffusion_pytorch_model.safetensors"
    (tmp_path / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(ModelError, match=r"lacks weights"):
        clip_similarity([PHOTO], tmp_path)
