import copy
import dataclasses
import math
import re
import warnings
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from cones2.backbones import Backbone
from cones2.errors import CaptionError, Cones2Warning
from cones2.learning.data import encode_captions, encode_views, rebuild_error, warn_if_strange
from cones2.photos import Photo, crop_square

PHOTO = Photo(Path("rex.png"), "a" * 64, Image.radial_gradient("L").convert("RGB"))


@pytest.fixture(scope="module")
def small(tiny: Backbone) -> Backbone:
    """The tiny model, drawing 64 pixels instead of 768."""
    unet = copy.deepcopy(tiny.unet)
    unet.register_to_config(sample_size=8)
    return dataclasses.replace(tiny, unet=unet)


def test_the_class_words_own_tokens_spell_it(tiny: Backbone) -> None:
    captions = ["a teddy bear on the beach", "on the beach stands a teddy bear"]
    encoded = encode_captions(tiny, captions, "teddy bear")
    assert encoded.input_ids.shape == encoded.own.shape == (2, tiny.window)
    for ids, own in zip(encoded.input_ids, encoded.own, strict=True):
        assert tiny.tokenizer.decode(ids[own]).strip() == "teddy bear"
        assert len(ids[own]) == encoded.class_tokens


def test_a_class_word_of_more_tokens_than_a_residual_can_have(tiny: Backbone) -> None:
    word = "very " * 16 + "big dog"
    with pytest.raises(
        CaptionError, match=r"is \d\d tokens long for tiny, expected at most 16. Take a shorter class word"
    ):
        encode_captions(tiny, [f"a {word}"], word)


def test_a_caption_without_the_class_word(tiny: Backbone) -> None:
    with pytest.raises(CaptionError, match="mentions 'dog' 0 times"):
        encode_captions(tiny, ["a dog", "a cat"], "dog")


def test_a_caption_that_is_cut_off(tiny: Backbone) -> None:
    with pytest.raises(CaptionError, match=r"is cut off before the class word ends, at 77 tokens. Put the class word"):
        encode_captions(tiny, [f"{'very ' * 80}big dog"], "dog")


def test_a_caption_cut_off_after_the_class_word_is_usable(tiny: Backbone) -> None:
    encoded = encode_captions(tiny, [f"a dog that is {'very ' * 80}big"], "dog")
    assert encoded.own.sum() == encoded.class_tokens


def test_views_are_encoded_as_the_backbone_does(small: Backbone) -> None:
    moments = encode_views(small, [PHOTO, PHOTO], 3, torch.Generator().manual_seed(0))
    assert moments.mean.shape == moments.std.shape == (6, 4, 8, 8)
    assert_close(moments.mean[0], moments.mean[3])  # both photos' whole view
    assert not torch.equal(moments.mean[1], moments.mean[4])
    pixels = torch.linspace(-1, 1, 64)  # a horizontal ramp: columns, not rows, must differ
    ramp = Image.linear_gradient("L").rotate(90).resize((64, 64), Image.Resampling.BILINEAR).convert("RGB")
    expected = small.encode_images(pixels.expand(1, 3, 64, 64))
    got = encode_views(small, [Photo(Path("ramp.png"), "b" * 64, ramp)], 1, torch.Generator())
    assert_close(got.mean, expected.mean, rtol=0, atol=0.05)


def test_rebuild_error_is_psnr(small: Backbone) -> None:
    image = crop_square(PHOTO.image, 64)
    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None] / 255
    (rebuilt,) = small.decode(small.encode_images(pixels * 2 - 1).mean)
    error = (torch.from_numpy(numpy.array(rebuilt)).permute(2, 0, 1)[None] / 255 - pixels).square().mean()
    assert rebuild_error(small, [PHOTO, PHOTO]) == pytest.approx([-10 * math.log10(error)] * 2, rel=1e-5)


def test_warnings_of_a_small_world(small: Backbone) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_strange(dataclasses.replace(small, lexicon=frozenset({"dog", "guppy", "red"})), [PHOTO], "Red puppy")
    word, photo = caught
    assert word.category is photo.category is Cones2Warning
    assert str(word.message) == "tiny does not know 'puppy'; the nearest word that it knows is 'guppy'."
    assert re.match(r"tiny can't draw rex.png well \(PSNR \d+ dB, 22 is fair\): expect", str(photo.message))


def test_a_word_is_near_to_what_can_be_drawn(small: Backbone) -> None:
    lexicon = frozenset({"at", "dog", "cat", "teddy", "bear"})
    knowing = dataclasses.replace(small, lexicon=lexicon, class_words=("dog", "cat", "teddy bear"))
    told = "tiny does not know 'mat'; the nearest word that it knows is 'cat'. It draws dog, cat, teddy bear."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_strange(knowing, [PHOTO], "mat")
    assert str(caught[0].message) == told


def test_no_warning_of_a_large_world(small: Backbone) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_strange(small, [PHOTO], "axolotl")
