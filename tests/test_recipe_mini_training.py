"""What `recipes/mini` trains with: encoded scenes, timesteps, layouts of the true boxes, recorded attention."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

RECIPE = Path(__file__).parents[1] / "recipes" / "mini"
sys.path.insert(0, str(RECIPE))

from batches import Batch, Pool, SceneStream, Slice, Speller, bounding_boxes, patch_components  # noqa: E402
from cones2.models import open_pipeline  # noqa: E402
from disc_world import disc_world  # noqa: E402
from model import WINDOW, Mini, save_model  # noqa: E402
from objective import draw_timesteps, layout_bias, object_weight, record_attention  # noqa: E402
from tokenizer import build_tokenizer  # noqa: E402
from vocabulary import CLASSES, lexicon  # noqa: E402


def batch_of(boxes: torch.Tensor, nouns: torch.Tensor) -> Batch:
    empty = torch.zeros(0)
    return Batch(empty, empty, boxes, empty, nouns, empty, empty, empty, empty)


def test_the_encoder_is_one_convolution() -> None:
    vae = open_pipeline("mini", device="cpu").vae
    weight, bias = patch_components(vae)
    pictures = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor
    found = torch.nn.functional.conv2d(pictures, weight, bias, stride=8)
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()
    assert vae.dtype == torch.float32


@pytest.fixture(scope="module")
def speller() -> Speller:
    return Speller(build_tokenizer(lexicon(), WINDOW))


def stream(speller: Speller, seed: int = 0) -> SceneStream:
    return SceneStream(disc_world(), speller, slice_size=6, seed=seed, close=False, captions=3)


def test_captions_as_tensors_say_what_the_scenes_hold(speller: Speller) -> None:
    words = {number: word for word, number in speller.ids.items()}
    scenes, captions = next(stream(speller).slices(0))
    for scene, input_ids, nouns, ends in zip(scenes, captions.input_ids, captions.nouns, captions.ends, strict=True):
        for row, marked, end in zip(input_ids.tolist(), nouns, ends.tolist(), strict=True):
            assert row[0] == speller.start
            assert {*row[end:]} == {speller.end}
            for placed, positions in zip(scene.objects, marked, strict=False):
                told = " ".join(words[row[position]] for position in positions.nonzero().flatten().tolist())
                assert told == CLASSES[placed.instance.class_index].word
            assert not marked[len(scene.objects) :].any()


def test_processes_draw_different_scenes_and_a_seed_the_same_ones(speller: Speller) -> None:
    found = [[next(slices)[1].input_ids for _ in range(4)] for slices in (stream(speller).slices(2) for _ in range(2))]
    assert all(map(torch.equal, *found))
    assert not any(torch.equal(one, other) for i, one in enumerate(found[0]) for other in found[0][:i])
    assert not torch.equal(next(stream(speller, seed=1).slices(2))[1].input_ids, found[0][0])


def test_a_slice_is_the_same_in_another_process(speller: Speller) -> None:
    world, drawn = disc_world(), next(stream(speller).drawn(np.random.default_rng(0)))
    here = Slice.of(*drawn, world.scene_names)
    there = Slice.from_bytes(here.to_bytes())
    one, other = (Pool(world, open_pipeline("mini", device="cpu").vae, speller, size=64, capacity=6) for _ in range(2))
    assert torch.equal(one.add(here).images, other.add(there).images)
    assert one.columns.keys() == other.columns.keys()
    assert all(torch.equal(one.columns[name], other.columns[name]) for name in one.columns)


def test_a_full_pool_replaces_its_oldest_scenes(speller: Speller) -> None:
    pool = Pool(disc_world(), open_pipeline("mini", device="cpu").vae, speller, size=32, capacity=10)
    slices = stream(speller).slices(0)
    drawn = [next(slices) for _ in range(3)]
    for each in drawn:
        pool.refill(*each)
    assert len(pool) == 10
    assert pool.columns["latents"].shape == (10, 8, 4, 4)
    expected = torch.cat([captions.input_ids for _, captions in drawn])[-10:]
    kept = pool.columns["input_ids"]
    assert all(any(torch.equal(one, other) for other in kept) for one in expected)


def test_a_batch_has_captions_of_its_scenes_or_empty_ones(speller: Speller) -> None:
    pool = Pool(disc_world(), open_pipeline("mini", device="cpu").vae, speller, size=32, capacity=6)
    scenes, captions = next(stream(speller).slices(0))
    pool.refill(scenes, captions)
    batch = pool.batch(20, drop=0.0)
    for latents, input_ids in zip(batch.latents, batch.input_ids, strict=True):
        [row] = [row for row in range(6) if torch.equal(pool.columns["latents"][row], latents)]
        assert any(torch.equal(input_ids, one) for one in captions.input_ids[row])
    empty = pool.batch(5, drop=1.0)
    assert {*empty.input_ids[:, 1:].flatten().tolist()} == {speller.end}
    assert not empty.nouns.any()
    assert not empty.coded.any()
    assert empty.labels.eq(-100).all()


def test_a_saved_model_opens_and_names_no_folder(tmp_path: Path) -> None:
    vae = open_pipeline("mini", device="cpu").vae
    save_model(tmp_path, Mini(None, 8), vae, half=True)
    configs = [json.loads(path.read_text()) for path in tmp_path.glob("*/config.json")]
    assert len(configs) == 3
    assert not any("_name_or_path" in config for config in configs)
    open_pipeline(tmp_path, device="cpu")


def test_a_box_goes_from_the_first_visible_cell_to_the_last() -> None:
    masks = torch.zeros(1, 2, 4, 5)
    masks[0, 0, 1, 1] = masks[0, 0, 2, 3] = 1.0
    masks[0, 1, 0, 0] = 0.2  # hardly visible
    expected = torch.zeros(1, 2, 4, 5)
    expected[0, 0, 1:3, 1:4] = 1
    assert torch.equal(bounding_boxes(masks), expected)


def test_a_noun_gains_in_its_own_box_and_is_kept_out_of_the_others() -> None:
    boxes = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]], [[0.0, 1.0, 1.0, 0.0]]]])  # two objects on a row of four cells
    nouns = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    bias = layout_bias(batch_of(boxes, nouns), torch.tensor([3.0]), blocked=20)
    assert bias[0, 0].tolist() == [[0, 0, 0, 0]]
    assert bias[0, 1].tolist() == [[3, 3, -20, 0]]
    assert bias[0, 2].tolist() == [[-20, 3, 3, 0]]
    assert not layout_bias(batch_of(boxes, nouns), torch.tensor([0.0])).any()


@pytest.mark.parametrize("centre", [0.3, 0.5])
def test_timesteps_are_spread_over_their_density(centre: float) -> None:
    torch.manual_seed(0)
    drawn = draw_timesteps(4000, 1000, centre=centre, spread=0.1, even=0.2)
    assert 0 <= drawn.min() <= drawn.max() <= 999
    near = ((drawn - 1000 * centre).abs() < 100).float().mean()  # one standard deviation, and a fifth of the even share
    assert near == pytest.approx(0.8 * 0.683 + 0.2 * 0.2, abs=0.01)


def test_objects_and_the_cells_around_them_weigh_six_times() -> None:
    masks = torch.zeros(1, 2, 5, 5)
    masks[0, 1, 0, 0] = 1.0
    weight = object_weight(masks)
    assert weight[0, 0, :2, :2].eq(6).all()
    assert weight.sum() == 25 + 5 * 4


@torch.no_grad()
def test_recording_attention_changes_nothing() -> None:
    unet = open_pipeline("mini", device="cpu").unet
    saved = dict(unet.attn_processors)
    maps: list[torch.Tensor] = []
    latents, text = torch.randn(1, 8, 8, 8), torch.randn(1, 5, 192)
    plain = unet(latents, 500, text).sample
    record_attention(unet, maps)
    assert torch.allclose(unet(latents, 500, text).sample, plain, atol=1e-5)
    unet.set_attn_processor(saved)
    assert {found.shape[1] for found in maps} == {64, 16, 4}
    assert all(torch.allclose(found.sum(-1), torch.ones(())) for found in maps)
