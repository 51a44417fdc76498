"""Several threads on one model: each draws its own right picture at the same time, also beside one without a layout."""

import dataclasses
import gc
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch

from cones2.attention import unedited
from cones2.conditioning import conditioned
from cones2.errors import ModelError
from cones2.models import open_pipeline
from cones2.pipeline import Cones2Pipeline
from learning import RECIPE, learn, residual_of
from subjects_for_tests import LAYOUT, PROMPT, TEXT, subjects_for, with_own_scheduler

SIZE = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "np"}
OTHER = {"rex": (0.5, 0.0, 1.0, 0.5), "cup": (0.0, 0.0, 0.4, 0.4)}


def draw(tiny: Any, layout: Any, *, taught: bool = True) -> np.ndarray:
    pipeline = with_own_scheduler(tiny)
    subjects = subjects_for(tiny) if taught else {"rex": "cat", "cup": "teapot"}
    with conditioned(pipeline, PROMPT, subjects=subjects, layout=layout) as inputs:
        images: np.ndarray = pipeline(**inputs, **SIZE, generator=torch.Generator().manual_seed(3)).images
    return images


def plain(tiny: Any) -> np.ndarray:
    pipeline = with_own_scheduler(tiny)
    images: np.ndarray = pipeline(TEXT, **SIZE, generator=torch.Generator().manual_seed(3)).images
    return images


def at_once(*jobs: Callable[[], Any], rounds: int = 3) -> list[list[Any]]:
    """Run each job several times in a thread of its own, all beginning each round together."""
    barrier = threading.Barrier(len(jobs))
    found: list[list[Any]] = [[] for _ in jobs]

    def work(index: int) -> None:
        for _ in range(rounds):
            barrier.wait()
            found[index].append(jobs[index]())

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_two_layouts_and_none_at_the_same_time(tiny: Any) -> None:
    processors = tiny.unet.attn_processors
    jobs: tuple[Callable[[], Any], ...] = (
        lambda: draw(tiny, LAYOUT),
        lambda: draw(tiny, OTHER, taught=False),
        lambda: plain(tiny),
    )
    expected = [job() for job in jobs]
    for results, right in zip(at_once(*jobs), expected, strict=True):
        assert len(results) == 3
        for result in results:
            np.testing.assert_allclose(result, right, atol=1e-5)
    assert all(tiny.unet.attn_processors[name] is processor for name, processor in processors.items())
    assert "forward" not in vars(tiny.unet)


def test_two_pictures_are_drawn_at_the_same_time(tiny: Any) -> None:
    """At the end of each step both wait for each other, which no lock around a picture would let them do."""
    pipe, together = Cones2Pipeline(with_own_scheduler(tiny)), threading.Barrier(2)

    def meet(*_: object) -> dict[str, object]:
        together.wait(60)
        return {}

    def job(layout: Any, **options: Any) -> np.ndarray:
        call: dict[str, Any] = {**SIZE, **options}
        images: np.ndarray = pipe(PROMPT, layout, subjects=subjects_for(tiny), seed=3, **call).images
        return images

    expected = [job(layout) for layout in (LAYOUT, OTHER)]
    found = at_once(*(lambda layout=layout: job(layout, callback_on_step_end=meet) for layout in (LAYOUT, OTHER)))
    for results, right in zip(found, expected, strict=True):
        assert len(results) == 3
        for result in results:
            np.testing.assert_allclose(result, right, atol=1e-5)


def test_a_shared_tokenizer_is_left_alone(tiny_folder: Any) -> None:
    """Its padding and truncation are those of its last call, which may be another thread's and still running."""
    own = open_pipeline(str(tiny_folder), device="cpu")
    state, subjects = own.tokenizer.backend_tokenizer, subjects_for(own, negative="a red dog")
    own.tokenizer("a dog", padding="longest", truncation=True, max_length=5)
    before = (state.padding, state.truncation)
    with conditioned(own, PROMPT, subjects=subjects, layout=LAYOUT):
        own.tokenizer.add_tokens("<new>")
        own.text_encoder.resize_token_embeddings(len(own.tokenizer))
    with conditioned(own, "a <new> {cup}", subjects={"cup": "teapot"}) as inputs:
        assert inputs["prompt_embeds"].shape[1] == own.tokenizer.model_max_length
    learn(own).close()
    assert (state.padding, state.truncation) == before


@pytest.mark.slow
def test_loras_at_several_scales(tiny_folder: Any) -> None:
    own = open_pipeline(str(tiny_folder), device="cpu")
    for model, targets in ((own.unet, ["to_q", "to_v"]), (own.text_encoder, ["q_proj"])):
        with torch.random.fork_rng():
            model.add_adapter(peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    own.set_progress_bar_config(disable=True)
    pipe = Cones2Pipeline(own)

    def job(scale: float) -> Callable[[], np.ndarray]:
        options: dict[str, Any] = {**SIZE, "seed": 3, "cross_attention_kwargs": {"scale": scale}}
        return lambda: pipe("a {cup}", {"cup": (0, 0, 0.5, 0.5)}, subjects={"cup": "teapot"}, **options).images

    jobs = [job(0.3), job(1.0), job(2.0)]
    expected = [each() for each in jobs]
    assert not np.allclose(expected[0], expected[2], atol=1e-3)
    for results, right in zip(at_once(*jobs), expected, strict=True):
        for result in results:
            np.testing.assert_allclose(result, right, atol=1e-5)


def test_a_call_beside_an_open_block_is_plain(tiny: Any) -> None:
    right, block = plain(tiny), with_own_scheduler(tiny)
    with conditioned(block, PROMPT, subjects=subjects_for(tiny), layout=LAYOUT):
        (results,) = at_once(lambda: plain(tiny), rounds=1)
        assert np.array_equal(results[0], right)
        with unedited():
            assert np.array_equal(plain(tiny), right)


@pytest.mark.parametrize("tune", ["residual", pytest.param("layers", marks=pytest.mark.slow)])
def test_learning_beside_drawing(small_folder: Path, tune: Any) -> None:
    own = open_pipeline(str(small_folder), device="cpu")
    recipe = dataclasses.replace(RECIPE, steps=8, tune=tune)
    taught = subjects_for(own)

    def drawn(layout: Any) -> np.ndarray:
        pipeline = with_own_scheduler(own)
        with conditioned(pipeline, PROMPT, subjects=taught, layout=layout) as inputs:
            images: np.ndarray = pipeline(**inputs, **SIZE, generator=torch.Generator().manual_seed(3)).images
        return images

    jobs: tuple[Callable[[], Any], ...] = (
        lambda: residual_of(learn(own, recipe)).to_bytes(),
        lambda: [drawn(LAYOUT) for _ in range(4)],
        lambda: [plain(own) for _ in range(4)],
        lambda: [drawn(None) for _ in range(4)],
    )
    alone = [job() for job in jobs]
    learned, *pictures = at_once(*jobs, rounds=2)
    assert learned == [alone[0]] * 2
    for results, right in zip(pictures, alone[1:], strict=True):
        np.testing.assert_allclose(results, [right] * 2, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in own.unet.parameters())
    assert "forward" not in vars(own.unet)


def test_nested_blocks_are_refused_on_one_model_and_independent_on_two(tiny: Any, tiny_folder: Path) -> None:
    other = open_pipeline(str(tiny_folder), device="cpu")
    right, other_right = draw(tiny, LAYOUT), draw(other, OTHER)
    outer, inner = with_own_scheduler(tiny), with_own_scheduler(other)
    options: dict[str, Any] = {"subjects": subjects_for(tiny)}
    with conditioned(outer, PROMPT, layout=LAYOUT, **options) as outer_inputs:
        for pipeline in (outer, with_own_scheduler(tiny)):
            with pytest.raises(ModelError), conditioned(pipeline, PROMPT, layout=OTHER, **options):
                pass
        with conditioned(inner, PROMPT, layout=OTHER, **options) as inputs:
            images = [
                pipeline(**given, **SIZE, generator=torch.Generator().manual_seed(3)).images
                for pipeline, given in ((inner, inputs), (outer, outer_inputs))
            ]
    assert np.array_equal(images[0], other_right)
    assert np.array_equal(images[1], right)
    assert "forward" not in vars(tiny.unet) | vars(other.unet)


def test_blocks_that_are_left_in_another_order(tiny: Any) -> None:
    right = plain(tiny)
    first, second = threading.Event(), threading.Event()

    def outer() -> None:
        with conditioned(with_own_scheduler(tiny), PROMPT, subjects=subjects_for(tiny), layout=LAYOUT):
            first.set()
            second.wait(60)

    thread = threading.Thread(target=outer)
    thread.start()
    first.wait(60)
    with conditioned(with_own_scheduler(tiny), PROMPT, subjects=subjects_for(tiny), layout=OTHER):
        second.set()
        thread.join()  # the first block has ended, and this one is still open
        assert "forward" in vars(tiny.unet)
    assert "forward" not in vars(tiny.unet)
    assert np.array_equal(plain(tiny), right)


def test_an_abandoned_block_ends_when_it_is_collected(tiny: Any) -> None:
    def steps() -> Any:
        with conditioned(with_own_scheduler(tiny), PROMPT, subjects=subjects_for(tiny), layout=LAYOUT):
            yield

    generator = steps()
    next(generator)
    thread = threading.Thread(target=generator.close)  # as a garbage collector in another thread would
    thread.start()
    thread.join()
    assert "forward" not in vars(tiny.unet)
    assert np.array_equal(draw(tiny, LAYOUT), draw(tiny, LAYOUT))


def test_an_abandoned_block_whose_thread_ends_holds_up_nobody(tiny: Any) -> None:
    right, pipeline = draw(tiny, LAYOUT), with_own_scheduler(tiny)
    abandoned: list[Any] = []

    def begin() -> None:
        block = conditioned(pipeline, PROMPT, subjects=subjects_for(tiny), layout=OTHER)
        block.__enter__()
        abandoned.append(block)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert np.array_equal(draw(tiny, LAYOUT), right)
    assert np.array_equal(plain(tiny), plain(tiny))
    del thread
    abandoned.clear()  # as where the thread's own variables go
    gc.collect()
    assert "forward" not in vars(tiny.unet)
    with conditioned(pipeline, PROMPT, subjects=subjects_for(tiny), layout=LAYOUT):
        pass


def with_two_blocks(unet: Any) -> Any:
    """A UNet of random weights and fewer blocks."""
    down, up = ["CrossAttnDownBlock2D", "DownBlock2D"], ["UpBlock2D", "CrossAttnUpBlock2D"]
    fewer: dict[str, Any] = {"down_block_types": down, "up_block_types": up}
    fewer |= {name: unet.config[name][:2] for name in ("block_out_channels", "attention_head_dim")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return type(unet).from_config({**unet.config, **fewer}).eval()


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "way", ["in place", *(pytest.param(way, marks=pytest.mark.slow) for way in ("whole", "blocks"))]
)
def test_compiled_models_get_their_layout(tiny_folder: Any, way: str) -> None:
    own = open_pipeline(str(tiny_folder), device="cpu")
    own.unet = with_two_blocks(own.unet)  # compiling takes seconds
    expected = [plain(own), draw(own, LAYOUT), draw(own, OTHER)]
    torch._dynamo.reset()
    if way == "whole":
        own.unet = torch.compile(own.unet, backend="eager")
    elif way == "in place":
        own.unet.compile(backend="eager")
    else:
        own.unet.compile_repeated_blocks(backend="eager")
    counters = torch._dynamo.utils.counters
    assert np.allclose(plain(own), expected[0], atol=1e-5)  # warmed up plain
    assert np.allclose(draw(own, LAYOUT), expected[1], atol=1e-5)
    counters.clear()
    for index in range(5):
        layout = {"rex": (0.0, 0.1 * index, 0.5, 1.0), "cup": (0.5, 0.0, 1.0, 0.5 + 0.1 * index)}
        assert not np.allclose(draw(own, layout), expected[0], atol=1e-3)
    assert np.allclose(draw(own, OTHER), expected[2], atol=1e-5)
    assert np.allclose(plain(own), expected[0], atol=1e-5)
    assert not counters["graph_break"]
    assert not counters["stats"].get("unique_graphs", 0)  # nothing was compiled anew
    torch._dynamo.reset()
