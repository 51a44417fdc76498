"""What is learned from: captions as tokens, photos as latents, and warnings of a small world."""

import dataclasses
import io
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from cones2.captions import captions_for
from cones2.errors import CaptionError, Cones2Warning
from cones2.examples import EXAMPLES
from cones2.families import family_of, native_size
from cones2.learning.data import (
    TextReader,
    check_suits,
    encode_images,
    encode_views,
    held_out_captions,
    strange_photos,
)
from cones2.models import MINI, ModelFacts, open_pipeline
from cones2.photos import Photo, crop_square, load_photos
from learning import with_parts

PHOTO = Photo(Path("rex.png"), "a" * 64, Image.radial_gradient("L").convert("RGB"))


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Any:
    return open_pipeline(str(small_folder), device="cpu")


@pytest.fixture(scope="module")
def reader(small: Any) -> TextReader:
    return TextReader.copy_of(small, family_of(small))


def test_the_class_words_own_tokens_spell_it(opened: dict[str, Any]) -> None:
    xl = opened["sdxl"]
    encoded = TextReader.copy_of(xl, family_of(xl)).tokenize(
        ["a teddy bear on the beach", "on the beach stands a teddy bear"], "teddy bear"
    )
    for ids, tokens in zip(encoded.input_ids, encoded.class_tokens, strict=True):
        assert ids.shape == encoded.own.shape == (2, 77)
        for row, own in zip(ids, encoded.own, strict=True):
            assert xl.tokenizer.decode(row[own]).strip() == "teddy bear"
            assert tuple(xl.tokenizer.convert_ids_to_tokens(row[own].tolist())) == tokens
    first, second = (ids[0, -1] for ids in encoded.input_ids)
    assert first != second  # the second tokenizer has another padding


@pytest.mark.parametrize(
    ("captions", "word", "told"),
    [
        (["a " + "very " * 16 + "big dog"], "very " * 16 + "big dog", r"\d\d tokens long"),
        (["a dog", "a cat"], "dog", "'a cat'"),
        (["very " * 80 + "big dog"], "dog", "77 tokens"),
    ],
)
def test_captions_that_can_not_be_used(reader: TextReader, captions: list[str], word: str, told: str) -> None:
    with pytest.raises(CaptionError, match=told):
        reader.tokenize(captions, word)


def test_a_caption_cut_off_after_the_class_word_is_usable(reader: TextReader) -> None:
    encoded = reader.tokenize([f"a dog that is {'very ' * 80}big"], "dog")
    assert encoded.own.sum() == len(encoded.class_tokens[0])


def test_held_out_captions_were_not_learned_from() -> None:
    learned = captions_for("dog", count=1000)
    unseen = held_out_captions("dog", learned)
    assert len(unseen) == len(set(unseen)) == 50
    assert not set(unseen) & set(learned)
    assert held_out_captions("dog", captions_for("dog", count=200, seed=1)) == ()


def test_views_are_encoded_as_the_autoencoder_does(small: Any) -> None:
    views = encode_views(small, [PHOTO, PHOTO], 3, torch.Generator().manual_seed(0))
    assert views.mean.shape == views.std.shape == (6, 4, 8, 8)
    assert_close(views.mean[0], views.mean[3])  # both photos' whole view
    assert not torch.equal(views.mean[1], views.mean[4])
    pixels = torch.linspace(-1, 1, 64)  # a horizontal ramp: columns, not rows, must differ
    ramp = Image.linear_gradient("L").rotate(90).resize((64, 64), Image.Resampling.BILINEAR).convert("RGB")
    with torch.no_grad():
        expected = small.vae.encode(pixels.expand(1, 3, 64, 64)).latent_dist.mean * small.vae.config.scaling_factor
    got = encode_views(small, [Photo(Path("ramp.png"), "b" * 64, ramp)], 1, torch.Generator())
    assert_close(got.mean, expected, rtol=0, atol=0.05)


def test_latents_of_an_autoencoder_with_units_of_its_own(opened: dict[str, Any]) -> None:
    """As Stable Diffusion XL's pipelines have it: decoding multiplies by std and adds mean, channel by channel."""
    xl, image = opened["sdxl"], crop_square(PHOTO.image, 64)
    vae = type(xl.vae).from_config({**xl.vae.config, "latents_mean": [1.0, 2, 3, 4], "latents_std": [2.0, 3, 5, 7]})
    vae.load_state_dict(xl.vae.state_dict())
    plain, shifted = encode_images(xl, [image]), encode_images(with_parts(xl, vae=vae.eval()), [image])
    scale = xl.vae.config.scaling_factor
    shift, spread = (torch.tensor(each)[:, None, None] for each in ([1.0, 2, 3, 4], [2.0, 3, 5, 7]))
    assert_close(shifted[0] * spread / scale + shift, plain[0] / scale, rtol=1e-5, atol=1e-5)
    assert_close(shifted[1] * spread, plain[1], rtol=1e-5, atol=1e-6)


def test_views_are_held_one_at_a_time(small: Any) -> None:
    """However many a recipe asks for: they would take gigabytes together."""
    made: list[weakref.ref[Image.Image]] = []

    def cut() -> Iterator[Image.Image]:
        for grey in range(5):
            image = Image.new("RGB", (64, 64), (grey,) * 3)
            made.append(weakref.ref(image))
            assert sum(each() is not None for each in made) <= 2
            yield image

    mean, _ = encode_images(small, cut())
    assert len(mean) == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_latents_in_half_precision(small: Any, small_folder: Path, dtype: torch.dtype) -> None:
    half = open_pipeline(str(small_folder), device="cpu", dtype=dtype)
    image = crop_square(PHOTO.image, 64)
    (mean, std), (expected, _) = encode_images(half, [image]), encode_images(small, [image])
    assert mean.dtype == std.dtype == torch.float32
    assert half.vae.dtype == dtype
    assert_close(mean, expected, rtol=0, atol=0.05)


def test_the_size_that_is_learned_at(small: Any, opened: dict[str, Any]) -> None:
    assert min(native_size(small)) == min(native_size(opened["sdxl"])) == 64


# --- what a model of a small world can't learn ---

PHOTOS = load_photos(EXAMPLES["rex"].folder / "photos")
MINI_FACTS = ModelFacts.model_validate_json((MINI / "cones2.json").read_text()).model_copy(update={"name": "mini"})


def noise(seed: int) -> Photo:
    pixels = np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    return Photo(Path(f"{seed}.png"), "0" * 64, Image.fromarray(pixels))


def test_photos_of_real_things_are_told_on_mini_and_how_to_name_another_model() -> None:
    (finding,) = strange_photos(MINI_FACTS, [noise(seed) for seed in range(3)])
    assert finding.kind == "model"
    assert re.search(r"real.*mini.*drawings.*[\w-]+/stable-diffusion.*from_pretrained.*--model", finding.text)


@pytest.mark.parametrize("name", EXAMPLES)
def test_drawings_of_mini_s_world_are_not_told(name: str) -> None:
    assert strange_photos(MINI_FACTS, load_photos(EXAMPLES[name].folder / "photos")) == ()


@pytest.mark.parametrize("quality", [60, 85])
def test_drawings_stay_drawings_as_jpeg_and_enlarged(quality: int) -> None:
    copies = []
    for photo in load_photos(EXAMPLES["rex"].folder / "photos"):
        content = io.BytesIO()
        photo.image.resize((500, 500)).save(content, "JPEG", quality=quality)
        copies.append(dataclasses.replace(photo, image=Image.open(content).convert("RGB")))
    assert strange_photos(MINI_FACTS, copies) == ()


def test_photos_of_real_things_suit_any_other_model() -> None:
    for facts in (ModelFacts(name="sd"), MINI_FACTS.model_copy(update={"class_words": ("dog",)})):
        assert strange_photos(facts, [noise(0)]) == ()


def test_learning_from_photos_of_real_things_warns() -> None:
    with pytest.warns(Cones2Warning, match="real things") as caught:
        check_suits(MINI_FACTS, [noise(0)], "dog", force=False)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("class_word", "told"),
    [
        ("dachshund", "'dachshund'; expected one of dog, cat, .*, car[.] Take"),
        ("glasses", "'glasses'.*Did you mean 'sunglasses'[?]"),
        ("Teddy bears", "'Teddy bears'.*Did you mean 'teddy bear'[?]"),
        ("fluffy dog", "'fluffy dog'"),
    ],
)
def test_a_class_word_that_the_model_does_not_know(class_word: str, told: str) -> None:
    with pytest.raises(CaptionError, match=f"mini .*{told}"):
        check_suits(MINI_FACTS, PHOTOS, class_word, force=False)
    check_suits(MINI_FACTS, PHOTOS, class_word, force=True)


@pytest.mark.parametrize("class_word", ["dog", "Teddy Bear", "red dog"])
def test_a_class_word_that_the_model_knows(class_word: str) -> None:
    check_suits(MINI_FACTS, PHOTOS, class_word, force=False)


def test_any_class_word_suits_a_model_that_says_nothing_of_its_words() -> None:
    check_suits(ModelFacts(name="sd"), [noise(0)], "axolotl", force=False)


def test_two_tokenizers_that_disagree(small: Any, reader: TextReader) -> None:
    """One of them has a word more, so that the class word is one token for it."""
    other = type(small.tokenizer).from_pretrained(Path(__file__).parent / "data" / "golden" / "tiny" / "tokenizer")
    other.add_tokens("axolotl")
    both = dataclasses.replace(reader, tokenizers=(small.tokenizer, other))
    with pytest.raises(CaptionError, match="'axolotl'"):
        both.tokenize(["an axolotl"], "axolotl")
