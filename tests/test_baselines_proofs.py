"""Each rival's proof that it is the method it says: hand-worked numbers, parity, and what may not change."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F  # noqa: N812

import cones2
from cones2.baselines.attend_and_excite import AttendAndExcite, Excitation, token_maxima
from cones2.baselines.augmented import Placed
from cones2.baselines.base import Lesson
from cones2.baselines.cones import Cones, flattened, scores, shut_weights
from cones2.baselines.cones_v2 import ConesV2, preservation
from cones2.baselines.custom_diffusion import CustomDiffusion, CustomDiffusionMerge, keys_and_values, set_up_words
from cones2.baselines.dreambooth import DreamBooth
from cones2.baselines.encoder import Encoder, open_coder, thumbnail
from cones2.baselines.exemplar import ExemplarInpainting
from cones2.baselines.freefuse import FreeFuse, SoftBias
from cones2.baselines.latexblend import LaTexBlend, blending
from cones2.baselines.lora import LoRA, summed
from cones2.baselines.merge import merge, merged_weights, plain_states, subject_states
from cones2.baselines.ours import Plain, kept_residual
from cones2.baselines.setup import Reader, drawer_of
from cones2.baselines.stored import Tensors
from cones2.baselines.textual_inversion import TextualInversion
from cones2.baselines.token_embedding import TokenEmbedding
from cones2.baselines.trainer import Material, Shown, Training, denoiser_with, draw_row, joined, loss_of, part_loss
from cones2.baselines.twins import trainable_twin, twin_of, unet_with
from cones2.baselines.words import fresh_row, new_word, rare_words
from cones2.errors import LayoutError, ModelError, SettingsError
from cones2.learning.data import Views, encode_views, random_numbers
from cones2.models import open_pipeline
from cones2.photos import Photo
from cones2.prompts import token_span
from cones2.rasterize import own_cells
from learning import PHOTOS
from rivals import LAYOUT, PAIR, PRIORS, PROMPT, QUICK, drawn, finished, weights_of
from subjects_for_tests import residual_for, with_own_scheduler

WORDS = {"rex": "dog", "cup": "mug"}
TEXT = "a dog and a mug on the beach"


@pytest.fixture(scope="module")
def small(small_folder: Any) -> Any:
    return with_own_scheduler(open_pipeline(str(small_folder), device="cpu"))


@pytest.fixture(scope="module")
def plain(small: Any) -> torch.Tensor:
    """The model's own picture."""
    return drawn(cones2.Cones2Pipeline(small), TEXT)


def shown_at(pipeline: Any, unet: Any, reader: Reader, photos: Any, caption: str) -> float:
    """The loss on photos under a caption, at the same eight noises each time."""
    views = encode_views(pipeline, photos, 1, random_numbers(0, 0))
    denoiser, draw = denoiser_with(pipeline, unet), random_numbers(7, 1)
    batch = joined([draw_row(denoiser, Shown.of(views, [caption]), draw)[0] for _ in range(8)])
    with torch.no_grad():
        prediction = denoiser.predict(reader.embed_once([caption]), batch)
        return float(part_loss(prediction, batch, slice(None), denoiser.device))


@pytest.mark.slow
def test_dreambooth_learns_its_photo_and_the_prior_term_keeps_the_class(small: Any) -> None:
    lesson = Lesson(PHOTOS[:1], "dog", PRIORS[:1])
    after = {}
    for weight in (1.0, 0.0):
        training = Training(steps=60, batch_size=2, learning_rate=2e-3, prior_weight=weight, views_per_photo=1)
        learned = finished(DreamBooth(training=training).learn(small, {"rex": lesson}))
        assert isinstance(learned, Tensors)
        reader, unet = Reader(small, learned.rows), unet_with(small, learned.own)
        own = f"a photo of a {new_word('rex')} dog"
        own_loss = [shown_at(small, each, reader, lesson.pictures, own) for each in (small.unet, unet)]
        prior = Lesson(list(PRIORS[:1]), "dog").pictures
        prior_loss = [shown_at(small, each, reader, prior, "a photo of a dog") for each in (small.unet, unet)]
        assert own_loss[1] < 0.8 * own_loss[0]
        after[weight] = prior_loss[1] / prior_loss[0]
    assert after[1.0] < 1
    assert after[0.0] > 1.05 * after[1.0]


def test_the_two_halves_of_a_batch_are_weighed_apart(small: Any) -> None:
    reader, draw = Reader(small, {}), random_numbers(0, 0)
    material = Material(
        Shown.of(encode_views(small, PAIR["rex"].pictures, 1, draw), ["a photo of a dog"]),
        Shown.of(encode_views(small, PAIR["rex"].pictures, 1, draw), ["a dog"]),
    )
    denoiser = denoiser_with(small, small.unet)

    def loss(prior_weight: float) -> float:
        training = Training(steps=1, batch_size=2, learning_rate=1e-3, prior_weight=prior_weight)
        with torch.no_grad():
            return float(loss_of(denoiser, [material], reader.embed_once, training, random_numbers(3, 3)))

    assert loss(1.0) > 1.1 * loss(1e-12)
    assert loss(3.0) - loss(1.0) == pytest.approx(2 * (loss(1.0) - loss(1e-12)), rel=1e-4)


def test_a_subject_with_many_photos_is_drawn_no_more_often_than_one_with_few(small: Any) -> None:
    denoiser, counts = denoiser_with(small, small.unet), {"one": 0, "many": 0}

    def views(count: int) -> Views:
        moments = torch.zeros(count, small.unet.config.in_channels, 8, 8)
        return Views(moments, moments, None)

    materials = [Material(Shown.of(views(1), ["one"]), None), Material(Shown.of(views(50), ["many"]), None)]

    def embed(texts: Any) -> torch.Tensor:
        for text in texts:
            counts[text] += 1
        return torch.zeros(len(texts), 77, 32)

    training = Training(steps=1, batch_size=200, learning_rate=1.0, prior_weight=0.0)
    with torch.no_grad():
        loss_of(denoiser, materials, embed, training, random_numbers(0, 1))
    assert 70 < counts["one"] < 130


@pytest.mark.slow
def test_custom_diffusion_changes_keys_values_and_every_new_word_and_nothing_else(small: Any) -> None:
    rival = CustomDiffusion(training=QUICK)
    learned = finished(rival.learn(small, PAIR))
    assert isinstance(learned, Tensors)
    assert set(learned.own) == set(keys_and_values(small.unet))
    original = dict(small.unet.named_parameters())
    assert all(not torch.equal(value, original[name]) for name, value in learned.own.items())
    starts = [small.text_encoder.get_input_embeddings().weight]
    for row in learned.rows.values():  # diffusers#7294: the last one never moved
        assert not any(bool((row == start).all(1).any()) for start in starts)
    rows = torch.stack(list(learned.rows.values()))
    assert not torch.equal(rows[0], rows[1])


def test_keys_and_values_of_the_start_token_get_no_gradient() -> None:
    """A caption of the start token alone teaches keys and values nothing."""
    from cones2.baselines.custom_diffusion import _without_start

    layer = torch.nn.Linear(3, 2, bias=False)
    layer.register_forward_hook(_without_start)
    text = torch.tensor([[[1.0, 2.0, 3.0], [5.0, 7.0, 11.0]]])
    layer(text).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.tensor([[5.0, 7.0, 11.0]]).expand(2, 3))


def test_shrunken_photos_count_within_their_edges() -> None:
    place = Placed(left=20, top=8, side=40)
    valid = place.valid(64, 8)[0]
    expected = torch.zeros(8, 8)
    expected[2:5, 4:6] = 1  # whole cells are rows 1..5, columns 3..6 (24..56); one in from each edge
    assert torch.equal(valid, expected)
    assert Placed(-5, -9, 80).valid(64, 8).all()
    assert Placed(9, 9, 10).valid(64, 8).sum() == 1
    assert place.said(64) == ("",)
    assert Placed(0, 0, 30).said(64) != Placed(0, 0, 80).said(64)
    drawn_places = [Placed.draw(60, torch.Generator().manual_seed(seed)) for seed in range(300)]
    assert 0.55 < sum(each.side <= 60 for each in drawn_places) / 300 < 0.78
    assert all(20 <= each.side <= 84 and each.left + each.side >= 60 * (each.side > 60) for each in drawn_places)


def test_a_merge_keeps_its_constraint_and_moves_less_than_a_sum() -> None:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    before, states, plain_rows = numbers(5, 13), numbers(4, 13), numbers(60, 13)
    one, two = (before + 0.3 * numbers(5, 13) for _ in range(2))
    wanted = torch.cat([states[:2] @ one.T, states[2:] @ two.T])
    merged = merge(before, states, wanted, plain_rows)
    torch.testing.assert_close(states @ merged.T, wanted, rtol=0, atol=1e-9)
    summed_up = one + two - before
    moved = [(plain_rows @ (each - before).T).square().sum() for each in (merged, summed_up)]
    assert moved[0] < moved[1]
    # Least change: whatever else meets the constraint changes plain captions more.
    free = numbers(5, 13)
    free -= free @ torch.linalg.pinv(states) @ states
    assert (plain_rows @ (merged + 1e-2 * free - before).T).square().sum() > moved[0]


@pytest.mark.slow
def test_a_merge_of_one_model_is_that_model_on_its_words(small: Any) -> None:
    rival = CustomDiffusionMerge(training=QUICK)
    [learned] = [finished(rival.learn(small, {"rex": PAIR["rex"]}))]
    assert isinstance(learned, Tensors)
    reader = Reader(small, learned.rows)
    states = subject_states(reader, learned.texts["rex"])
    assert len(states) == 2 * 3  # V*, dog, end; in two captions
    rows = plain_states(small, reader, ["dog"])
    for name, tuned in learned.own.items():
        before = dict(small.unet.named_parameters())[name].double()
        merged = merge(before, states, states @ tuned.double().T, rows)
        torch.testing.assert_close(states @ merged.T, states @ tuned.double().T, rtol=0, atol=1e-9)


def test_new_words_begin_as_rare_ones_each_as_another_whoever_learns_beside(small: Any) -> None:
    rival, lessons = CustomDiffusion(training=QUICK), {f"subject{index}": PAIR["rex"] for index in range(40)}
    together = set_up_words(rival, small, lessons, 0).rows
    table, count = small.text_encoder.get_input_embeddings().weight, len(rare_words(small.tokenizer))
    assert count < 40  # so that names meet on one rare word
    begin = {int(torch.cdist(row[None], table).argmin()) for row in together.values()}
    assert len(begin) > count / 2
    rows = torch.stack(list(together.values()))
    assert (torch.cdist(rows, rows) + torch.eye(40)).min() > 1e-3
    for name in lessons:
        [apart] = set_up_words(rival, small, {name: PAIR["cup"]}, 0).rows.values()
        assert torch.equal(apart, together[new_word(name)])


@pytest.mark.slow
def test_a_merge_of_two_subjects_of_one_class_does_what_both_models_do(small: Any) -> None:
    rival, photos = CustomDiffusionMerge(training=QUICK), {"rex": PHOTOS, "fido": PHOTOS[::-1]}
    lessons = {name: Lesson(each, "dog", PRIORS) for name, each in photos.items()}
    apart = {name: finished(rival.learn(small, {name: lesson})) for name, lesson in lessons.items()}
    both, one = rival.combine(small, list(apart.values())), apart["rex"]
    assert isinstance(both, Tensors)
    assert isinstance(one, Tensors)
    original, reader = dict(small.unet.named_parameters()), Reader(small, both.rows)

    def moved(weights: Any) -> float:
        return math.sqrt(sum(float((value - original[name]).square().sum()) for name, value in weights.items()))

    assert moved(both.own) < 5 * moved(
        merged_weights(small, Reader(small, one.rows), [one])
    )  # some 100 where both begin alike
    for name, learned in apart.items():
        assert isinstance(learned, Tensors)
        states = subject_states(reader, both.texts[name])
        for key, tuned in learned.own.items():
            found, wanted, plain = (states @ each.double().T for each in (both.own[key], tuned, original[key]))
            assert (found - wanted).abs().max() < 1e-4 * (wanted - plain).abs().max()


def test_textual_inversion_leaves_all_other_rows_as_they_are(small: Any) -> None:
    learned = finished(TextualInversion(training=QUICK).learn(small, {"rex": PAIR["rex"]}))
    assert isinstance(learned, Tensors)
    with TextualInversion().drawing(small, learned) as draw:
        table = draw.pipeline.text_encoder.get_input_embeddings()  # type: ignore[attr-defined]
    own = small.text_encoder.get_input_embeddings().weight
    ids = torch.arange(len(own))[None]
    assert torch.equal(table(ids)[0], own)
    [row] = learned.rows.values()
    assert torch.equal(table(torch.tensor([[len(small.tokenizer)]]))[0, 0], row)
    dog = own[small.tokenizer("dog")["input_ids"][1]]
    assert not torch.equal(row, dog)
    assert (row - dog).abs().max() < 0.1  # where it began
    assert learned.own == {}


def test_a_token_that_says_what_the_encoder_says_draws_the_models_own_picture(small: Any, plain: torch.Tensor) -> None:
    states = Reader(small, {}).embed([TEXT])[0]
    spans = [token_span(small.tokenizer, TEXT, TEXT.index(word), TEXT.index(word) + 3) for word in WORDS.values()]
    replaced = {name: states[slice(*span)] for name, span in zip(WORDS, spans, strict=True)}
    texts = {name: new_word(f"{name} 0") for name in WORDS}
    with TokenEmbedding().drawing(small, Tensors("token_replaced", texts, WORDS, replaced)) as draw:
        torch.testing.assert_close(drawn(draw), plain, rtol=0, atol=1)  # of 255
    nothing = {name: torch.zeros_like(value) for name, value in replaced.items()}
    with TokenEmbedding(added=True).drawing(small, Tensors("token_added", texts, WORDS, nothing)) as draw:
        assert torch.equal(drawn(draw), plain)


def test_no_gradient_passes_the_text_encoder_for_a_token(small: Any) -> None:
    rival = TokenEmbedding(training=QUICK)
    embedded: list[torch.Tensor] = []
    put = rival.put

    def spy(states: torch.Tensor, vector: torch.Tensor, span: tuple[int, int]) -> torch.Tensor:
        embedded.append(states)
        return put(states, vector, span)

    object.__setattr__(rival, "put", spy)
    learned = finished(rival.learn(small, {"rex": PAIR["rex"]}))
    assert embedded
    assert not any(states.requires_grad for states in embedded)
    assert isinstance(learned, Tensors)
    assert learned.own["rex"].shape == (1, 32)


@pytest.mark.slow
def test_a_class_word_of_two_tokens_gets_two_vectors(small: Any) -> None:
    lesson = Lesson(PHOTOS, "teapot robot")
    rival = TokenEmbedding(training=QUICK)
    learned = finished(rival.learn(small, {"ted": lesson}))
    assert isinstance(learned, Tensors)
    count = len(small.tokenizer("teapot robot", add_special_tokens=False)["input_ids"])
    assert count > 1
    assert len(learned.own["ted"]) == len(learned.texts["ted"].split()) == count
    with rival.drawing(small, learned) as draw:
        drawn(draw, "a {ted} on the beach", {"ted": (0.0, 0.0, 0.5, 1.0)})


@pytest.mark.slow
def test_a_fresh_lora_is_the_plain_model_and_two_are_summed_as_peft_does(small: Any, plain: torch.Tensor) -> None:
    import peft

    names = {name for name, _ in small.unet.named_parameters()}
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
    assert f"{key}.weight" in names
    width = dict(small.unet.named_parameters())[f"{key}.weight"].shape
    generator = torch.Generator().manual_seed(0)
    down = {name: torch.randn(2, width[1], generator=generator) for name in WORDS}
    up = {name: torch.randn(width[0], 2, generator=generator) for name in WORDS}
    fresh = {f"rex/{key}.lora_A.weight": down["rex"], f"rex/{key}.lora_B.weight": torch.zeros(width[0], 2)}
    with LoRA().drawing(small, Tensors("lora", WORDS, WORDS, fresh)) as draw:
        assert torch.equal(drawn(draw), plain)
    tensors = {f"{name}/{key}.lora_A.weight": down[name] for name in WORDS}
    tensors |= {f"{name}/{key}.lora_B.weight": up[name] for name in WORDS}
    ours = unet_with(small, summed(small, tensors))
    both = copy.deepcopy(small.unet)
    both.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=[key]))
    state = {
        f"{key}.lora_A.weight": torch.cat([down["rex"], down["cup"]]),
        f"{key}.lora_B.weight": torch.cat([up["rex"], up["cup"]], dim=1),
    }
    peft.set_peft_model_state_dict(both, state)  # "cat"
    call = torch.randn(1, both.config.in_channels, 8, 8, generator=generator), torch.tensor(500)
    text = torch.randn(1, 77, 32, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(ours(*call, text)[0], both(*call, text)[0], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(ours(*call, text)[0], small.unet(*call, text)[0], atol=1e-4)


def test_lora_leaves_all_random_numbers_of_the_caller_as_they_are(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    state = torch.get_rng_state()
    LoRA(training=QUICK).learn(small, {"rex": PAIR["rex"]}, seed=5)
    assert seeded == []
    assert torch.equal(torch.get_rng_state(), state)


def test_cones_scores_are_what_shrinking_a_weight_saves(small: Any) -> None:
    unet, weights = trainable_twin(small, keys_and_values(small.unet))
    unet.double()
    reader, draw = Reader(small, {}), random_numbers(0, 0)
    material = Material(Shown.of(encode_views(small, PAIR["rex"].pictures, 1, draw), ["a photo of a dog"]), None)
    denoiser, training = denoiser_with(small, unet), Training(steps=1, batch_size=2, learning_rate=1.0)

    def loss() -> torch.Tensor:
        return loss_of(
            denoiser, [material], lambda texts: reader.embed_once(texts).double(), training, random_numbers(1, 1)
        )

    found = scores(weights, loss())
    values, place = flattened(weights), 0
    chosen = found.abs().topk(20).indices.tolist()
    for weight in weights.values():
        for index in [each - place for each in chosen if place <= each < place + weight.numel()]:
            number, part = weight.data.view(-1), 1e-3
            with torch.no_grad():
                number[index] = values[place + index] * (1 - part)
                less = loss()
                number[index] = values[place + index] * (1 + part)
                more = loss()
                number[index] = values[place + index]
            saved = float(more - less) / (2 * part)
            assert saved == pytest.approx(float(found[place + index]), rel=2e-2, abs=1e-7)
        place += weight.numel()


def test_cones_without_indices_is_the_plain_model_and_a_union_has_no_order(small: Any, plain: torch.Tensor) -> None:
    none = Tensors("cones_union", WORDS, WORDS, {"indices.rex": torch.zeros(0, dtype=torch.int32)})
    with Cones(mode="union").drawing(small, none) as draw:
        assert torch.equal(drawn(draw), plain)
    parts = [
        Tensors("cones_union", {name: word}, {name: word}, {f"indices.{name}": torch.tensor(some, dtype=torch.int32)})
        for (name, word), some in zip(WORDS.items(), ([3, 900], [900, 2, 7]), strict=True)
    ]
    rival = Cones(mode="union")
    one, other = (shut_weights(small, rival.combine(small, each)) for each in (parts, parts[::-1]))
    assert all(torch.equal(one[name], other[name]) for name in one)
    shut = torch.cat([value.flatten() for value in one.values()])
    before = torch.cat([dict(small.unet.named_parameters())[name].flatten() for name in one])
    assert torch.nonzero(shut != before)[:, 0].tolist() == [2, 3, 7, 900]
    assert shut[[2, 3, 7, 900]].tolist() == [0.0] * 4


def test_cones_keeps_four_bytes_an_index_and_only_weights_that_lower_the_loss(small: Any) -> None:
    learned = finished(Cones(training=QUICK, share=0.02, identifier="rare").learn(small, {"rex": PAIR["rex"]}))
    assert isinstance(learned, Tensors)
    [indices] = learned.own.values()
    count = sum(dict(small.unet.named_parameters())[name].numel() for name in keys_and_values(small.unet))
    assert len(indices) == round(0.02 * count)
    assert indices.dtype == torch.int32
    fewer = Tensors(learned.rival, learned.texts, learned.class_words, {"indices.rex": indices[:-10]})
    header = abs(len(learned.to_bytes()) - len(fewer.to_bytes()) - 40)
    assert header <= 16  # digits of lengths, and padding of the header


@pytest.mark.slow
def test_cones_tunes_only_what_it_shut(small: Any) -> None:
    learned = finished(
        Cones(training=Training(steps=20, batch_size=1, learning_rate=1e-2), mode="tuned").learn(
            small, {"rex": PAIR["rex"]}
        )
    )
    assert isinstance(learned, Tensors)
    assert learned.own["values.rex"].abs().min() > 0
    whole = torch.cat([value.flatten() for value in shut_weights(small, learned).values()])
    names = keys_and_values(small.unet)
    before = torch.cat([dict(small.unet.named_parameters())[name].flatten() for name in names])
    indices = learned.own["indices.rex"].long()
    assert torch.equal(whole[indices], learned.own["values.rex"])
    whole[indices] = before[indices]
    assert torch.equal(whole, before)


def test_attend_and_excite_that_moves_nothing_is_plain(small: Any, plain: torch.Tensor) -> None:
    settings = Excitation(altered=0, thresholds=())
    learned = Tensors("plain", WORDS, WORDS, {})
    with AttendAndExcite(base=Plain(), settings=settings).drawing(small, learned) as draw:
        assert torch.equal(drawn(draw), plain)
    with AttendAndExcite(base=Plain(), settings=Excitation(level=1, scale=1e4)).drawing(small, learned) as draw:
        assert not torch.equal(drawn(draw), plain)


@pytest.mark.exact
@pytest.mark.filterwarnings("ignore:torch.meshgrid")
@pytest.mark.slow
def test_attend_and_excite_with_the_whole_window_is_diffusers(small: Any) -> None:
    from diffusers import StableDiffusionAttendAndExcitePipeline  # a class without types

    parts = {name: copy.deepcopy(part) for name, part in small.components.items() if name != "image_encoder"}
    theirs: Any = StableDiffusionAttendAndExcitePipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    tokens = [
        theirs.tokenizer(TEXT)["input_ids"].index(theirs.tokenizer(word)["input_ids"][1]) for word in WORDS.values()
    ]
    expected = theirs(
        TEXT,
        tokens,
        num_inference_steps=3,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(3),
        max_iter_to_alter=2,
        thresholds={0: 0.2},
        scale_factor=20,
        attn_res=(4, 4),
        output_type="latent",
    ).images
    settings = Excitation(altered=33, level=1, thresholds=((0, 0.2),), whole_window=True)  # 2 of 3 steps
    with AttendAndExcite(base=Plain(), settings=settings).drawing(small, Tensors("plain", WORDS, WORDS, {})) as draw:
        found = draw(PROMPT, seed=3, num_inference_steps=3, guidance_scale=7.5, output_type="latent").images
    unmoved = cones2.Cones2Pipeline(small)(
        TEXT, seed=3, num_inference_steps=3, guidance_scale=7.5, output_type="latent"
    ).images
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (unmoved - expected).abs().max() > 1e-1


@pytest.mark.parametrize(
    ("steps", "altered", "thresholds"), [(50, 25, (0, 10, 20)), (20, 10, (0, 4, 8)), (100, 50, (0, 20, 40))]
)
def test_attend_and_excite_reaches_every_threshold_whatever_the_number_of_steps(
    steps: int, altered: int, thresholds: tuple[int, ...]
) -> None:
    scaled = Excitation().scaled(steps)
    assert scaled.altered == altered
    assert scaled.thresholds == tuple(zip(thresholds, (0.05, 0.5, 0.8), strict=True))
    assert Excitation(altered=0, thresholds=()).scaled(steps) == Excitation(altered=0, thresholds=())


def test_end_and_padding_take_no_part_in_the_softmax() -> None:
    """diffusers' reading gives 0 where most attention lies at the end token; the authors' gives nearly 1."""
    attention = torch.zeros(4, 4, 6)
    attention[..., 4] = 0.3
    attention[..., 2] = 0.2
    assert token_maxima(attention, [2], stop=4).item() == pytest.approx(1.0, abs=1e-6)
    assert token_maxima(attention, [2], stop=5).item() == pytest.approx(0.0, abs=1e-3)


def test_the_largest_attention_is_smoothed() -> None:
    """One cell of a 4 x 4 map: the middle of the 3 x 3 bell, whose side weights are e^-1 of it."""
    attention = torch.zeros(4, 4, 4)
    attention[1, 1, 1] = 1.0
    attention[..., 2] = 0.5
    middle = 1 / (1 + 2 * torch.exp(torch.tensor(-1.0))) ** 2
    assert token_maxima(attention, [1], stop=3).item() == pytest.approx(float(middle), abs=1e-5)


def test_a_bank_of_untrained_keys_and_values_draws_the_models_own_picture(small: Any) -> None:
    text = "a photo of a dog"
    states = Reader(small, {}).embed([text])[0, 5:6]
    weights = dict(small.unet.named_parameters())
    bank = {f"rex/{name}": F.linear(states, weights[name]) for name in keys_and_values(small.unet)}
    kept = Tensors("latexblend", {"rex": "dog"}, {"rex": "dog"}, bank)
    own = drawn(cones2.Cones2Pipeline(small), text)
    with LaTexBlend().drawing(small, kept) as draw:
        torch.testing.assert_close(drawn(draw, "a photo of a {rex}"), own, rtol=0, atol=1)  # of 255
    other = Tensors("latexblend", kept.texts, kept.class_words, {name: -3 * value for name, value in bank.items()})
    for until, is_same in ((0.0, True), (1.0, False)):
        drawer = blending(small, other, until)
        assert torch.equal(drawn(drawer, "a photo of a {rex}"), own) is is_same


def test_a_bank_acts_on_conditional_rows_at_its_own_span(small: Any) -> None:
    names = keys_and_values(small.unet)
    weights = dict(small.unet.named_parameters())
    bank = {f"rex/{name}": torch.full((1, len(weights[name])), 9.0) for name in names}
    drawer = blending(small, Tensors("latexblend", {"rex": "dog"}, {"rex": "dog"}, bank), 0.9)
    assert drawer.before is not None
    drawer.before("a {rex} on the beach")
    unet = drawer.pipeline.unet
    text = torch.randn(2, 77, 32, generator=torch.Generator().manual_seed(1))
    latents = torch.zeros(2, unet.config.in_channels, 8, 8)
    seen: list[torch.Tensor] = []
    layer = unet.get_submodule(names[0].removesuffix(".weight"))
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))  # noqa: ARG005
    with torch.no_grad():
        unet(latents, torch.tensor(899), encoder_hidden_states=text)
        unet(latents, torch.tensor(900), encoder_hidden_states=text)
        plain_keys = F.linear(text, weights[names[0]])
    expected = plain_keys.clone()
    expected[1, 2] = 9.0
    torch.testing.assert_close(seen[0], expected)
    torch.testing.assert_close(seen[1], plain_keys)


def test_the_authors_preservation_counts_lengths_not_squares() -> None:
    before = torch.zeros(5, 2)
    tuned = torch.tensor([[3.0, 4.0], [9.0, 9.0], [9.0, 9.0], [0.0, 5.0], [12.0, 0.0]])
    assert float(preservation(tuned, before, 3)) == pytest.approx(1e-2 * 5 + 1e-3 * 13)


def test_the_authors_recipe_moves_its_class_word(small: Any) -> None:
    learned = finished(ConesV2(training=QUICK).learn(small, {"rex": PAIR["rex"]}))
    assert isinstance(learned, Tensors)
    residual = cones2.Residual.from_bytes(learned.tensors["residual.rex"].numpy().tobytes())
    assert residual.class_word == "dog"
    assert residual.part("text_encoder").vector.abs().max() > 0


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers' schedulers
def test_the_authors_recipe_is_drawn_by_the_authors_loop_where_there_is_a_layout(small: Any) -> None:
    residuals = {name: residual_for(small, word) for name, word in WORDS.items()}
    kept = [kept_residual("cones_v2", name, residual) for name, residual in residuals.items()]
    with ConesV2().drawing(small, ConesV2().combine(small, kept)) as draw:
        found, without = drawn(draw, layout=LAYOUT), drawn(draw)
        ours = drawn(draw, layout=LAYOUT, sampler=None)
    pipe = cones2.Cones2Pipeline(small)
    own: dict[str, Any] = {"subjects": residuals}
    expected = drawn(pipe, layout=LAYOUT, preset="cones_v2", sampler="cones_v2", **own)
    assert torch.equal(found, expected)
    assert not torch.equal(found, ours)
    assert torch.equal(without, drawn(pipe, **own))


def test_twins_share_what_was_not_changed(small: Any) -> None:
    name = keys_and_values(small.unet)[0]
    twin = twin_of(small.unet, [name])
    own, its = dict(small.unet.named_parameters()), dict(twin.named_parameters())
    shared = [key for key in own if own[key].data_ptr() == its[key].data_ptr()]
    assert set(own) - set(shared) == {name}
    before = weights_of(small)
    with torch.no_grad():
        its[name].zero_()
    assert all(torch.equal(before[key], value) for key, value in weights_of(small).items())


def test_a_new_row_looks_like_the_others(small: Any) -> None:
    weight = small.text_encoder.get_input_embeddings().weight
    rows = torch.stack([fresh_row(small.text_encoder, f"v{index}", 0) for index in range(400)])
    torch.testing.assert_close(rows.mean(0), weight.mean(0), atol=4 * float(weight.std()) / 20, rtol=0)
    assert 0.9 < float(rows.std() / weight.std()) < 1.1


def test_a_layout_hides_identifier_and_class_word_from_the_others_region(small: Any) -> None:
    texts = {name: f"{new_word(name)} {word}" for name, word in WORDS.items()}
    rows = {new_word(name): fresh_row(small.text_encoder, name, 0) for name in WORDS}
    draw = drawer_of(small, texts, rows)
    with cones2.conditioned(draw.pipeline, PROMPT, subjects=dict(draw.subjects), layout=LAYOUT) as inputs:
        assert inputs.run.spans == {"rex": ((2, 4),), "cup": ((6, 8),)}


def test_freefuse_adds_its_constants_where_the_layout_says(small: Any) -> None:
    layout = cones2.Layout.of(LAYOUT)
    edit = SoftBias(small, layout, {"rex": ((2, 3),), "cup": ((5, 6),)}, 1.0, -5.0)
    weights = edit.weights((4, 4), 8).unflatten(0, (4, 4))
    own = own_cells(layout, 4, 4)
    rex, cup = (torch.from_numpy(own[name]) for name in ("rex", "cup"))
    assert torch.equal(weights[..., 2] == 1, rex)
    assert torch.equal(weights[..., 2] == -5, cup & ~rex)
    assert torch.equal(weights[..., 5] == 1, cup)
    assert torch.equal(weights[..., 5] == -5, rex & ~cup)
    assert not weights[..., [0, 1, 3, 4, 6, 7]].any()


def test_freefuse_without_its_constants_is_plain(small: Any, plain: torch.Tensor) -> None:
    learned = Tensors("plain", WORDS, WORDS, {})
    with FreeFuse(base=Plain(), own=0.0, others=0.0).drawing(small, learned) as draw:
        torch.testing.assert_close(drawn(draw, layout=LAYOUT), plain, rtol=0, atol=1)  # of 255
        assert torch.equal(drawn(draw), plain)
    with FreeFuse(base=Plain()).drawing(small, learned) as draw:
        assert (drawn(draw, layout=LAYOUT) - plain).abs().max() > 1
        with pytest.raises(LayoutError):
            drawn(draw, layout={"hugo": (0, 0, 1, 1)})


def test_the_coder_is_that_of_minis_training() -> None:
    from disc_world import RECIPE  # puts the recipe on the path
    from model import Coder as Theirs

    heads = RECIPE / "training_heads.safetensors"
    coder, theirs = open_coder(heads), Theirs()
    own = {name: value.float() for name, value in load_file(heads).items() if name.startswith("code.")}
    theirs.load_state_dict({name.removeprefix("code."): value for name, value in own.items()})
    thumbnails = torch.rand(3, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(coder(thumbnails), theirs(thumbnails.flatten(1)))


def test_a_masked_photo_becomes_a_thumbnail_over_grey() -> None:
    image, mask = Image.new("RGB", (100, 60), "red"), Image.new("L", (100, 60))
    mask.paste(255, (20, 10, 60, 50))  # 40 x 40
    mask.paste(0, (35, 25, 45, 35))  # with a hole in the middle
    found = thumbnail(Photo(Path("a.png"), "a" * 64, image, mask), "dog")
    assert found.shape == (4, 24, 24)
    assert found[:, 5, 18].tolist() == [1, 0, 0, 1]
    assert found[:, 12, 12].tolist() == [0.5, 0.5, 0.5, 0]
    assert 0.8 < float(found[3].mean()) < 0.9  # 0.95 squared, less a sixteenth


@pytest.mark.slow
def test_boxes_are_painted_over_and_the_rest_stays(small: Any) -> None:
    words = WORDS
    kept = [kept_residual("exemplar_inpainting", name, residual_for(small, word)) for name, word in words.items()]
    rival = ExemplarInpainting(weights="none.safetensors")
    latents: dict[str, Any] = {"seed": 3, "num_inference_steps": 3, "output_type": "latent"}
    with rival.drawing(small, rival.combine(small, kept)) as draw:
        painted = draw(PROMPT, LAYOUT, **latents).images
        with pytest.raises(SettingsError, match="give a layout"):
            draw(PROMPT, **latents)
        with pytest.raises(SettingsError, match="from seeds"):
            draw(PROMPT, LAYOUT, generator=torch.Generator(), **latents)
    own = cones2.Cones2Pipeline(small)(PROMPT, LAYOUT, subjects=words, **latents).images
    cells = own_cells(cones2.Layout.of(LAYOUT), 8, 8)
    boxes = torch.from_numpy(cells["rex"] | cells["cup"])
    assert torch.equal(painted[..., ~boxes], own[..., ~boxes])
    for name in words:
        box = torch.from_numpy(cells[name])
        assert not torch.isclose(painted[..., box], own[..., box]).any()


@pytest.mark.usefixtures("unchecked_types")
def test_a_file_that_holds_no_coder_is_refused(tmp_path: Path, small: Any) -> None:
    (tmp_path / "heads.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(ModelError, match="no coder"):
        open_coder(tmp_path / "heads.safetensors")
    with pytest.raises(ModelError, match="can't read"):
        open_coder(tmp_path / "none.safetensors")
    from disc_world import RECIPE

    with pytest.raises(ModelError, match="codes in width 192"):
        Encoder(weights=RECIPE / "training_heads.safetensors").learn(small, {"rex": PAIR["rex"]})
