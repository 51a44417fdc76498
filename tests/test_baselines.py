"""What all rivals promise: the caller's model stays as it is, files are small, sound and the same, layouts act."""

import json
import struct
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

import cones2
from cones2.baselines.attend_and_excite import AttendAndExcite, Excitation
from cones2.baselines.base import Lesson, Rival, with_articles
from cones2.baselines.cones import Cones
from cones2.baselines.cones_v2 import ConesV2
from cones2.baselines.custom_diffusion import CustomDiffusion, CustomDiffusionMerge
from cones2.baselines.dreambooth import DreamBooth
from cones2.baselines.encoder import Encoder
from cones2.baselines.exemplar import ExemplarInpainting
from cones2.baselines.freefuse import FreeFuse
from cones2.baselines.latexblend import LaTexBlend
from cones2.baselines.lora import LoRA
from cones2.baselines.ours import Ours, Plain
from cones2.baselines.stored import Tensors, read_tensors
from cones2.baselines.textual_inversion import TextualInversion
from cones2.baselines.token_embedding import TokenEmbedding
from cones2.baselines.trainer import Training, prior_pictures
from cones2.baselines.words import new_word, rare_words
from cones2.errors import CaptionError, LearningError, ModelError, ResidualError, SettingsError
from learning import RECIPE
from rivals import LAYOUT, PAIR, PRIORS, PROMPT, QUICK, drawn, finished, learn_each, weights_of
from subjects_for_tests import with_own_scheduler

RIVALS: Mapping[str, Rival] = {
    rival.name: rival
    for rival in (
        Plain(),
        Ours(recipe=RECIPE),
        DreamBooth(training=QUICK),
        CustomDiffusion(training=QUICK),
        CustomDiffusionMerge(training=QUICK),
        TextualInversion(training=QUICK),
        TokenEmbedding(training=QUICK),
        TokenEmbedding(training=QUICK, added=True),
        LoRA(training=QUICK),
        LoRA(training=QUICK, joint=True),
        Cones(training=QUICK),
        Cones(training=QUICK, mode="union"),
        Cones(training=replace(QUICK, steps=10), mode="tuned"),
        LaTexBlend(training=QUICK),
        ConesV2(training=QUICK),
        AttendAndExcite(base=Ours(recipe=RECIPE), settings=Excitation(refinements=2, level=1)),
        FreeFuse(base=Ours(recipe=RECIPE)),
    )
}


@pytest.fixture(scope="module")
def small(small_folder: Any) -> Any:
    from cones2.models import open_pipeline

    return with_own_scheduler(open_pipeline(str(small_folder), device="cpu"))


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers' Euler scheduler, for the authors' loop
@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.slow
def test_a_rival_learns_keeps_bytes_and_draws_and_the_model_stays_as_it_is(small: Any, name: str) -> None:
    rival, before = RIVALS[name], weights_of(small)
    assert isinstance(rival, Rival)
    learned = learn_each(rival, small, PAIR)
    assert set(learned.texts) == {"rex", "cup"}
    assert rival.load(learned.to_bytes()).to_bytes() == learned.to_bytes()
    with rival.drawing(small, learned) as draw:
        first = drawn(draw)
        assert torch.equal(drawn(draw), first)
        assert not torch.equal(drawn(draw, layout=LAYOUT), first)
    assert first.isfinite().all()
    after = weights_of(small)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(weight.requires_grad or weight.grad is not None for weight in small.unet.parameters())


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "plain"])
@pytest.mark.slow
def test_learning_again_gives_the_same_bytes(small: Any, name: str) -> None:
    rival = RIVALS[name]
    lessons = PAIR if rival.scope == "set" else {"rex": PAIR["rex"]}
    once, again = (finished(rival.learn(small, lessons, seed=5)).to_bytes() for _ in range(2))
    assert once == again
    assert finished(rival.learn(small, lessons, seed=6)).to_bytes() != once


def test_what_is_drawn_without_learning_is_the_models_own(small: Any) -> None:
    rival = Plain()
    learned = rival.combine(small, [finished(rival.learn(small, {name: each})) for name, each in PAIR.items()])
    pipe = cones2.Cones2Pipeline(small)
    with rival.drawing(small, learned) as draw:
        assert torch.equal(drawn(draw), drawn(pipe, "a dog and a mug on the beach"))


def test_a_set_is_learned_anew_and_a_subject_apart(small: Any) -> None:
    with pytest.raises(SettingsError, match="exactly 1"):
        TextualInversion(training=QUICK).learn(small, PAIR)
    with pytest.raises(SettingsError, match="at least 1"):
        DreamBooth(training=QUICK).learn(small, {})
    dog, cup = (Tensors("dreambooth", {name: name}, {name: name}, {}) for name in ("dog", "cup"))
    with pytest.raises(SettingsError, match="learn this set anew"):
        DreamBooth().combine(small, [dog, cup])
    with pytest.raises(SettingsError, match="different names"):
        Plain().combine(small, [dog, dog])
    with pytest.raises(SettingsError, match="can't use what dreambooth"):
        Plain().combine(small, [dog])


def test_an_identifier_stands_before_the_class_word_and_gets_its_layout(small: Any) -> None:
    learned = finished(DreamBooth(training=QUICK).learn(small, PAIR))
    assert learned.texts == {"rex": f"{new_word('rex')} dog", "cup": f"{new_word('cup')} mug"}
    with DreamBooth().drawing(small, learned) as draw:
        output = draw(PROMPT, LAYOUT, seed=0, num_inference_steps=1)
        assert output.records[0]["text"] == f"a {new_word('rex')} dog and a {new_word('cup')} mug on the beach"
        # Two tokens, identifier and class word, are hidden from the other's region.
        assert set(draw.subjects) == {"rex", "cup"}


def test_rare_words_are_short_single_tokens_and_no_articles(small: Any) -> None:
    rare = rare_words(small.tokenizer, known=("dog", "cat", "mug"))
    assert rare
    assert all(len(word) <= 3 and len(small.tokenizer(word)["input_ids"]) == 3 for word in rare)
    assert not {"a", "an", "the", "dog", "cat", "mug"} & set(rare)
    ids = [small.tokenizer(word)["input_ids"][1] for word in rare if len(word) == 3]
    assert ids == sorted(ids, reverse=True)


@pytest.mark.slow
def test_a_rare_identifier_needs_no_row(small: Any) -> None:
    learned = finished(DreamBooth(training=QUICK, identifier="rare").learn(small, {"rex": PAIR["rex"]}))
    assert isinstance(learned, Tensors)
    assert not learned.rows
    assert learned.texts["rex"].split()[0] in rare_words(small.tokenizer)


def test_articles_fit_the_words_that_come() -> None:
    texts = {"hugo": "vqx owl", "momo": "owl"}
    assert with_articles("an {hugo} and A {momo} by an {other}", texts) == "a {hugo} and An {momo} by an {other}"


@pytest.mark.slow
def test_masked_photos_are_learned_beside_whole_ones(small: Any) -> None:
    from PIL import Image

    photo = PAIR["rex"].pictures[0]
    half = Image.new("L", photo.image.size)
    half.paste(255, (0, 0, half.width, half.height // 2))
    lessons = {"rex": Lesson([replace(photo, mask=half)], "dog", PRIORS), "cup": PAIR["cup"]}
    assert finished(CustomDiffusion(training=QUICK).learn(small, lessons)).to_bytes()
    assert finished(Cones(training=QUICK).learn(small, lessons)).to_bytes()


def test_a_loss_that_is_not_finite_ends_learning(small: Any) -> None:
    fast = Training(steps=20, batch_size=1, learning_rate=1e30, views_per_photo=1)
    with pytest.raises(LearningError, match="below 1e"):
        list(DreamBooth(training=fast).learn(small, {"rex": PAIR["rex"]}))


@pytest.mark.parametrize(
    "settings",
    [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"prior_weight": -1.0}, {"learning_rate": float("nan")}],
)
@pytest.mark.usefixtures("unchecked_types")
def test_settings_outside_their_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(settings))):
        replace(QUICK, **settings)
    for make in (lambda: Cones(share=0.7), lambda: LoRA(rank=0), lambda: Excitation(level=-1)):
        with pytest.raises(SettingsError):
            make()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (DreamBooth, {"identifier": "New"}),
        (DreamBooth, {"training": 3}),
        (CustomDiffusion, {"training": 3}),
        (CustomDiffusionMerge, {"training": None}),
        (TextualInversion, {"training": "long"}),
        (TokenEmbedding, {"training": 3}),
        (TokenEmbedding, {"added": "no"}),
        (ConesV2, {"training": 3}),
        (LaTexBlend, {"training": 3}),
        (Ours, {"recipe": 3}),
        (Encoder, {"weights": 3}),
        (ExemplarInpainting, {"weights": None}),
        (AttendAndExcite, {"base": "plain"}),
        (AttendAndExcite, {"base": Plain(), "settings": 3}),
        (FreeFuse, {"base": "plain"}),
        (FreeFuse, {"base": Plain(), "own": "much"}),
        (FreeFuse, {"base": Plain(), "others": float("nan")}),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_settings_are_checked_when_a_rival_is_made(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=rf"^{list(settings)[-1]}(\.Recipe)? of "):
        kind(**settings)


def test_a_lesson_checks_class_word_and_photos() -> None:
    with pytest.raises(CaptionError):
        Lesson(PRIORS, "the dog")
    with pytest.raises(LearningError):
        Lesson([], "dog")


@pytest.mark.slow
def test_rivals_learn_on_models_of_one_text_encoder(opened: dict[str, Any]) -> None:
    for family in ("sdxl", "flux1"):
        with pytest.raises(ModelError):
            DreamBooth(training=QUICK).learn(opened[family], {"rex": PAIR["rex"]})


@pytest.mark.parametrize(("family", "names"), [("sd1", ("dreambooth", "latexblend")), ("sd2", ("textual_inversion",))])
@pytest.mark.slow
def test_rivals_learn_and_draw_on_each_stable_diffusion(
    opened: dict[str, Any], family: str, names: tuple[str, ...]
) -> None:
    own = with_own_scheduler(opened[family])
    for name in names:
        learned = learn_each(RIVALS[name], own, PAIR)
        with RIVALS[name].drawing(own, learned) as draw:
            assert drawn(draw, layout=LAYOUT).isfinite().all()


def test_a_model_at_work_is_not_copied(small: Any) -> None:
    learned = finished(Plain().learn(small, {"rex": PAIR["rex"]}))
    at_work = cones2.conditioned(small, "a {rex}", subjects={"rex": "dog"}, layout={"rex": (0, 0, 0.5, 1)})
    with at_work, pytest.raises(ModelError, match="at work"), Plain().drawing(small, learned):
        pass


def test_pictures_of_the_class_are_the_models_own(small: Any) -> None:
    once = prior_pictures(small, "dog", 3, seed=4, num_inference_steps=1)
    again = prior_pictures(small, "dog", 3, seed=4, num_inference_steps=1)
    assert [each.tobytes() for each in once] == [each.tobytes() for each in again]
    assert len({each.tobytes() for each in once}) == 3


@pytest.fixture(scope="module")
def content() -> bytes:
    words = {"rex": "dog"}
    return Tensors("plain", words, words, {"numbers": torch.arange(3.0)}).to_bytes()


@given(st.data())
def test_a_damaged_file_is_refused_or_read_whole(content: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[place] = data.draw(st.integers(0, 255))
    try:
        read_tensors(bytes(damaged[: data.draw(st.integers(0, len(content)))]), "plain")
    except ResidualError:
        return


def _with_document(**changes: Any) -> bytes:
    words = {"rex": "dog"}
    document = {"version": 1, "rival": "plain", "texts": words, "class_words": words, **changes}
    return safetensors.torch.save({"n": torch.zeros(1)}, {"cones2-baseline": json.dumps(document)})


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        struct.pack("<Q", 2**60) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        _with_document(version=2),
        _with_document(rival="other"),
        _with_document(texts={}),
        _with_document(texts={"../x": "dog"}),
        _with_document(texts={"rex": "the dog"}),
        _with_document(class_words={}),
        _with_document(more=1),
        safetensors.torch.save({"n": torch.zeros(1)}),
        safetensors.torch.save({"n": torch.zeros(1)}, {"cones2-baseline": "[" * 100_000}),
    ],
)
def test_files_of_anyone_are_checked(hostile: bytes) -> None:
    with pytest.raises(ResidualError):
        read_tensors(hostile, "plain")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool, torch.float8_e4m3fn])
def test_numbers_of_other_kinds_are_refused(dtype: torch.dtype) -> None:
    words = {"rex": "dog"}
    with pytest.raises(ResidualError, match="float32"):
        read_tensors(Tensors("plain", words, words, {"n": torch.zeros(2).to(dtype)}).to_bytes(), "plain")


@pytest.mark.usefixtures("unchecked_types")
def test_rows_of_words_that_do_not_fit_are_refused(small: Any) -> None:
    words = {"rex": "vxxxx dog"}
    for rows in (
        {"vxxxx": torch.zeros(32), "vyyyy": torch.zeros(31)},
        {"dog": torch.zeros(32)},
        {"v": torch.zeros(2, 32)},
    ):
        tensors = {f"token.{word}": row for word, row in rows.items()}
        with (
            pytest.raises(ResidualError, match="can't be added"),
            RIVALS["dreambooth"].drawing(small, Tensors("dreambooth", words, words, tensors)),
        ):
            pass


def test_numbers_that_are_not_finite_are_refused() -> None:
    words = {"rex": "dog"}
    with pytest.raises(ResidualError, match="NaN"):
        read_tensors(Tensors("plain", words, words, {"n": torch.tensor([1.0, float("inf")])}).to_bytes(), "plain")


@pytest.mark.parametrize(
    "name", ["dreambooth", "lora", "textual_inversion", "token_replaced", "latexblend", "cones_joint", "ours"]
)
def test_a_file_that_does_not_fit_the_model_says_so(small: Any, name: str) -> None:
    words = {"rex": "dog"}
    wrong = {
        "indices.rex": torch.tensor([-1], dtype=torch.int32),
        "token.vxx": torch.zeros(3),
        "rex": torch.zeros(2, 2),
    }
    tensors = {"textual_inversion": {"token.vxx": torch.zeros(3)}, "ours": {}}.get(name, wrong)
    if name != "textual_inversion":
        tensors = {key: value for key, value in tensors.items() if not key.startswith("token.")}
    if name == "lora":
        tensors = {"rex/conv_in.lora_A.weight": torch.zeros(1, 2), "rex/conv_in.lora_B.weight": torch.zeros(3, 1)}
    with pytest.raises(ResidualError), RIVALS[name].drawing(small, Tensors(name, words, words, tensors)):
        pass


@pytest.mark.slow
def test_a_rival_draws_while_another_thread_draws_with_the_same_model(small: Any) -> None:
    learned = finished(DreamBooth(training=QUICK).learn(small, PAIR))
    pipe, made = cones2.Cones2Pipeline(small), []
    alone = drawn(pipe, "a dog and a mug")
    with DreamBooth().drawing(small, learned) as draw:
        mine = drawn(draw)
        thread = threading.Thread(target=lambda: made.append(drawn(pipe, "a dog and a mug")))
        thread.start()
        assert torch.equal(drawn(draw), mine)
        thread.join()
    assert torch.equal(made[0], alone)
