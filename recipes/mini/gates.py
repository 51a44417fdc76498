"""Three gates that a mini in training must pass before more compute goes in: `python gates.py --model FOLDER`.

Oracle: can a residual change a subject at all? Attention: does a noun look at its object? Swap: do objects follow
their boxes?
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cones2.evaluation.boxes import fits
from cones2.fingerprint import fingerprint
from cones2.judge import PICTURE, Corners, Judge, Sighting
from cones2.layout import Layout
from cones2.pipeline import Cones2Pipeline
from cones2.prompts import TokenizedPrompt, parse_prompt, tokenize_prompt
from cones2.rasterize import cover
from cones2.residual import Residual, ResidualPart
from cones2.subjects import Subject
from drawing import SETTINGS, make_sheet, open_for_drawing, to_picture, to_tensor
from evaluation_cases import NAMES, mention
from judge import load_judge
from judge_data import judge_world, visible_box
from metrics import Wanted, at_place, rate
from objective import record_attention
from shipped import measured_hash
from sprites import SpriteAtlas
from vocabulary import CLASSES
from world import World

SEED = 6000
ORACLES = (("dog", "red", "cat"), ("cat", "blue", "owl"), ("backpack", "green", "dog"), ("mug", "yellow", "car"))
SWAPS = (("dog", "mug"), ("cat", "ball"), ("owl", "backpack"), ("teddy bear", "car"))
SWAP_BOXES = ((0.05, 0.3, 0.45, 0.7), (0.55, 0.3, 0.95, 0.7))
NOISE_TIME = 600
MOST_AREA = 0.25  # of an object whose attention is measured; a third of the picture can't hold three times its share
KINDS = {word.word: number for number, word in enumerate(CLASSES)}


@dataclass(frozen=True)
class Setup:
    """What the gates look at: a model, the judge, and how many pictures of which size."""

    pipe: Cones2Pipeline
    judge: Judge
    world: World
    pictures: int
    size: int
    layout_scale: float

    def draw(
        self, prompt: str, subjects: dict[str, Subject], seeds: tuple[int, ...], layout: Layout | None = None
    ) -> Tensor:
        """Pictures of one prompt in 0..1."""
        options = {**SETTINGS, "layout_scale": self.layout_scale, "height": self.size, "width": self.size}
        return to_tensor(self.pipe(prompt, layout, subjects=subjects, seed=seeds, **options).images)

    def seeds(self, prompts: int) -> tuple[int, ...]:
        """As many seeds as give each of the prompts its share of the pictures."""
        return tuple(range(SEED, SEED + max(self.pictures // prompts, 1)))


@dataclass(frozen=True)
class Gate:
    """A gate's figure, what it must reach, and pictures to look at."""

    name: str
    figure: float
    least: float
    detail: str
    pictures: tuple[Tensor, ...] = ()

    def __str__(self) -> str:
        verdict = "pass" if self.figure >= self.least else "FAIL"
        return f"{verdict}  {self.name}: {self.figure:.2f}, at least {self.least:g}  ({self.detail})"


def oracle_gate(setup: Setup) -> Gate:
    """E("a red dog") - E("a dog") at the noun, with no learning, turns the dog red and leaves the cat as it is."""
    turned, before, kept, drawn = [], [], [], []
    judge, seeds = setup.judge, setup.seeds(2 * len(ORACLES))
    for word, colour, other in ORACLES:
        oracle = Subject(word, oracle_residual(setup.pipe, word, colour))
        names = {NAMES[0]: oracle, NAMES[1]: Subject(other)}
        pair = f"{mention(KINDS[word], NAMES[0])} and {mention(KINDS[other], NAMES[1])}"
        for prompt in (f"{mention(KINDS[word], NAMES[0])} on the beach", pair):
            subjects = {name: subject for name, subject in names.items() if f"{{{name}}}" in prompt}
            plain = {name: Subject(subject.class_word) for name, subject in subjects.items()}
            images, without = setup.draw(prompt, subjects, seeds), setup.draw(prompt, plain, seeds)
            alone = NAMES[1] not in subjects
            turned += [one == colour for one in colours_of(judge, images, word, alone=alone)]
            before += [one == colour for one in colours_of(judge, without, word, alone=alone)]
            if not alone:
                kept += [one is not None and one != colour for one in colours_of(judge, images, other)]
            drawn += [*images, *without]
    # a stray vector would also recolour the other object, so both count
    figure = min(rate(turned).share, rate(kept).share)
    detail = f"turned {rate(turned)}, without the residual {rate(before)}, the other object unturned {rate(kept)}"
    return Gate("oracle residual", figure, 0.8, detail, tuple(drawn))


def oracle_residual(pipe: Cones2Pipeline, word: str, adjective: str) -> Residual:
    """What an adjective adds to a noun's own vector."""
    with_adjective = embed_noun(pipe, mention(KINDS[word], NAMES[0], adjective), word)
    vector = with_adjective - embed_noun(pipe, mention(KINDS[word], NAMES[0]), word)
    encoder = fingerprint(pipe.text_encoder, "text_encoder", pipe.facts.name)
    part = ResidualPart(encoder, tuple(pipe.tokenizer.tokenize(word)), vector)
    return Residual(class_word=word, parts=(part,), recipe={}, photos=(), tool_version="oracle")


def embed_noun(pipe: Cones2Pipeline, prompt: str, word: str) -> Tensor:
    """The vectors of a prompt's only placeholder, `[tokens, dim]`."""
    embeddings, tokenized = embed(pipe, prompt, {NAMES[0]: word})
    ((start, stop),) = tokenized.spans[NAMES[0]]
    return embeddings[0, start:stop]


@torch.no_grad()
def embed(pipe: Cones2Pipeline, prompt: str, words: Mapping[str, str]) -> tuple[Tensor, TokenizedPrompt]:
    """A prompt's vectors, `[1, tokens, dim]`, and where its placeholders stand."""
    parsed = parse_prompt(prompt, words)
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    return pipe.encode_prompt(parsed.text, **options)[0], tokenize_prompt(parsed, pipe.tokenizer)


def attention_gate(setup: Setup) -> Gate:
    """On noised renders, a noun's attention falls into its object's box at least three times its share of the area."""
    share, area = attention_in_boxes(setup, NOISE_TIME)
    return Gate("attention", share / area, 3.0, f"{share:.2f} of it in {area:.2f} of the area")


def attention_in_boxes(setup: Setup, timestep: int) -> tuple[float, float]:
    """The mean share of a noun's attention inside its object's box, and the boxes' mean share of the area."""
    rng = np.random.default_rng(SEED)
    shares: list[float] = []
    areas: list[float] = []
    torch.manual_seed(SEED)
    while len(shares) < setup.pictures:
        scene = setup.world.scene(rng, count=2, close=setup.size < PICTURE)
        rendered = setup.world.render([scene], setup.size)
        kinds = [placed.instance.class_index for placed in scene.objects]
        boxes = [visible_box(mask) for mask in rendered.masks[0, : len(kinds)]]
        small = [box for box in boxes if box is not None and _area(box) <= MOST_AREA]
        if len(set(kinds)) < len(kinds) or len(small) < len(boxes):
            continue
        with torch.no_grad():
            latents = setup.pipe.vae.encode(rendered.images * 2 - 1).latent_dist.mean
        latents = latents * setup.pipe.vae.config.scaling_factor
        alpha = setup.pipe.scheduler.alphas_cumprod[timestep]
        noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * torch.randn_like(latents)
        shares += attention_shares(setup.pipe, noised, timestep, dict(zip(kinds, small, strict=True)))
        areas += [_area(box) for box in small]
    return float(np.mean(shares)), float(np.mean(areas))


@torch.no_grad()
def attention_shares(pipe: Cones2Pipeline, noised: Tensor, timestep: int, places: Mapping[int, Corners]) -> list[float]:
    """For each object's class and box, the share of its noun's attention inside its box, averaged over layers."""
    names = dict(zip(NAMES, places, strict=False))
    prompt = " and ".join(mention(kind, name) for name, kind in names.items())
    words = {name: CLASSES[kind].word for name, kind in names.items()}
    embeddings, tokenized = embed(pipe, prompt, words)
    maps: list[Tensor] = []
    saved = dict(pipe.unet.attn_processors)
    record_attention(pipe.unet, maps)
    try:
        pipe.unet(noised, torch.tensor(timestep), embeddings)
    finally:
        pipe.unet.set_attn_processor(saved)
    found = []
    for name, kind in names.items():
        layout, ((start, stop),) = Layout.of({name: places[kind]}), tokenized.spans[name]
        parts = []
        for weights in maps:
            side = round(weights.shape[1] ** 0.5)
            noun = weights[0, :, start:stop].sum(1)
            inside = torch.from_numpy(cover(layout, side, side)[name].cover).flatten()
            parts.append(float((noun * inside).sum() / noun.sum()))
        found.append(float(np.mean(parts)))
    return found


def swap_gate(setup: Setup) -> Gate:
    """The same seed with two boxes exchanged: the objects follow."""
    followed, placed, drawn = [], [], []
    seeds = setup.seeds(2 * len(SWAPS))
    for words in SWAPS:
        subjects = {name: Subject(word) for name, word in zip(NAMES, words, strict=False)}
        prompt = " and ".join(mention(KINDS[word], name) for name, word in zip(NAMES, words, strict=False))
        outcomes = []
        for boxes in (SWAP_BOXES, SWAP_BOXES[::-1]):
            layout = Layout.of(dict(zip(NAMES, boxes, strict=False)))
            images = setup.draw(prompt, subjects, seeds, layout)
            drawn += [*images]
            seen = setup.judge.look(images)
            wanted = [Wanted(KINDS[word], box) for word, box in zip(words, boxes, strict=True)]
            outcomes.append([[_centred(sightings, one) for one in wanted] for sightings in seen])
            placed += [_fits(sightings, one) for sightings in seen for one in wanted]
        followed += [
            here and there for one, two in zip(*outcomes, strict=True) for here, there in zip(one, two, strict=True)
        ]
    detail = f"centres in both {rate(followed)}, IoU of 0.4 too in one {rate(placed)}"
    return Gate("swap", rate(followed).share, 0.8, detail, tuple(drawn))


def _centred(sightings: Sequence[Sighting], wanted: Wanted) -> bool:
    seen = at_place(sightings, wanted)
    if seen is None or wanted.box is None:
        return False
    x, y = (seen.box[0] + seen.box[2]) / 2, (seen.box[1] + seen.box[3]) / 2
    return wanted.box[0] <= x <= wanted.box[2] and wanted.box[1] <= y <= wanted.box[3]


def _fits(sightings: Sequence[Sighting], wanted: Wanted) -> bool:
    seen = at_place(sightings, wanted)
    return seen is not None and fits(seen.box, wanted.box)


def colours_of(judge: Judge, images: Tensor, word: str, *, alone: bool = False) -> list[str | None]:
    """The colour of the one object of a class in each picture; None where there is none.

    The colour of an object that is `alone` counts even when its class can't be told: shapes come late in training.
    """
    found: list[str | None] = []
    for row, sightings in enumerate(judge.look(images)):
        surest = sightings[0] if alone and sightings else None
        seen = at_place(sightings, Wanted(KINDS[word])) or surest
        place = None if seen is None else (torch.tensor([seen.box]), torch.tensor([row]))
        found.append(None if place is None else judge.colours(images, *place)[0])
    return found


def _area(box: Corners) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def main() -> None:
    """Run the gates that are named, or all three and keep what they reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gates", nargs="*", choices=["oracle", "attention", "swap", []], default=[])
    parser.add_argument("--model", default="mini", help="mini, or a diffusers folder")
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--size", type=int, default=PICTURE, help="64 for a model in its first stage")
    parser.add_argument("--layout-scale", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--sheets", type=Path, help="a folder for what was drawn")
    arguments = parser.parse_args()
    pipe, judge = open_for_drawing(arguments.model), load_judge()
    world = judge_world(SpriteAtlas.load(arguments.work / "sprites.safetensors"), backgrounds_per_scene=8)
    setup = Setup(pipe, judge, world, arguments.pictures, arguments.size, arguments.layout_scale)
    gates = {"oracle": oracle_gate, "attention": attention_gate, "swap": swap_gate}
    told = []
    for name in arguments.gates or gates:
        start = time.monotonic()
        gate = gates[name](setup)
        told.append({key: value for key, value in vars(gate).items() if key != "pictures"})
        print(f"{gate}  {time.monotonic() - start:.0f} s", flush=True)
        if arguments.sheets and gate.pictures:
            arguments.sheets.mkdir(parents=True, exist_ok=True)
            pictures = [
                to_picture(image, (), sightings) for image in gate.pictures for sightings in judge.look(image[None])
            ]
            make_sheet(pictures, 8).save(arguments.sheets / f"{name}.png")
    if not arguments.gates:
        about = {"model": measured_hash(arguments.model), "pictures": arguments.pictures, "gates": told}
        arguments.results.mkdir(parents=True, exist_ok=True)
        (arguments.results / "gates.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
