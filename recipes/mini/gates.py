"""Three gates that a mini in training must pass before more compute goes in: `python gates.py --model FOLDER`.

Oracle: can a residual change a subject at all? Attention: does a noun look at its object? Swap: do objects follow
their boxes?
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from cones2.backbones import Backbone, open_backbone
from cones2.composing.loop import compose
from cones2.layout.regions import Layout
from cones2.residual.residual import Residual
from torch import Tensor

from cones2.judge import PICTURE, Judge, Sighting
from cones2.prompts import parse_prompt, tokenize_prompt
from cones2.subjects import Subject
from drawing import SETTINGS, make_sheet, to_picture, to_tensor
from evaluation_cases import NAMES, mention
from judge import load_judge
from judge_data import judge_world, visible_box
from metrics import Wanted, at_place, fits, rate
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

    backbone: Backbone
    judge: Judge
    world: World
    pictures: int
    size: int
    layout_scale: float

    def draw(
        self, prompt: str, subjects: dict[str, Subject], seeds: tuple[int, ...], layout: Layout | None = None
    ) -> Tensor:
        """Pictures of one prompt in 0..1."""
        settings = replace(SETTINGS, seeds=seeds, layout_scale=self.layout_scale, height=self.size, width=self.size)
        *_, last = compose(self.backbone, prompt, subjects=subjects, layout=layout, settings=settings)
        return to_tensor(last.pictures)

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
        oracle = Subject(word, oracle_residual(setup.backbone, word, colour))
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


def oracle_residual(backbone: Backbone, word: str, adjective: str) -> Residual:
    """What an adjective adds to a noun's own vector."""
    with_adjective = embed_noun(backbone, mention(KINDS[word], NAMES[0], adjective), word)
    vector = with_adjective - embed_noun(backbone, mention(KINDS[word], NAMES[0]), word)
    return Residual(
        class_word=word,
        vector=vector.float().cpu(),
        tokens=tuple(backbone.tokenizer.tokenize(word)),
        encoder=backbone.encoder_id,
        recipe={},
        photos=(),
        tool_version="oracle",
    )


def embed_noun(backbone: Backbone, prompt: str, word: str) -> Tensor:
    """The vectors of a prompt's only placeholder, `[tokens, dim]`."""
    tokenized = tokenize_prompt(parse_prompt(prompt, {NAMES[0]: word}), backbone.tokenizer)
    ((start, stop),) = tokenized.spans[NAMES[0]]
    return backbone.embed(tokenized.input_ids)[0, start:stop]


def attention_gate(setup: Setup) -> Gate:
    """On noised renders, a noun's attention falls into its object's box at least three times its share of the area."""
    share, area = attention_in_boxes(setup, NOISE_TIME)
    return Gate("attention", share / area, 3.0, f"{share:.2f} of it in {area:.2f} of the area")


def attention_in_boxes(setup: Setup, timestep: int) -> tuple[float, float]:
    """The mean share of a noun's attention inside its object's box, and the boxes' mean share of the area."""
    rng, shares, areas = np.random.default_rng(SEED), [], []
    torch.manual_seed(SEED)
    while len(shares) < setup.pictures:
        scene = setup.world.scene(rng, count=2, close=setup.size < PICTURE)
        rendered = setup.world.render([scene], setup.size)
        kinds = [placed.instance.class_index for placed in scene.objects]
        boxes = [visible_box(mask) for mask in rendered.masks[0, : len(kinds)]]
        if len(set(kinds)) < len(kinds) or any(box is None or _area(box) > MOST_AREA for box in boxes):
            continue
        latents = setup.backbone.encode_images(rendered.images * 2 - 1).mean
        alpha = setup.backbone.scheduler.alphas_cumprod[timestep]
        noised = alpha.sqrt() * latents + (1 - alpha).sqrt() * torch.randn_like(latents)
        shares += attention_shares(setup.backbone, noised, timestep, dict(zip(kinds, boxes, strict=True)))
        areas += [_area(box) for box in boxes]
    return float(np.mean(shares)), float(np.mean(areas))


@torch.no_grad()
def attention_shares(
    backbone: Backbone, noised: Tensor, timestep: int, places: Mapping[int, tuple[float, float, float, float]]
) -> list[float]:
    """For each object's class and box, the share of its noun's attention inside its box, averaged over layers."""
    names = dict(zip(NAMES, places, strict=False))
    prompt = " and ".join(mention(kind, name) for name, kind in names.items())
    words = {name: CLASSES[kind].word for name, kind in names.items()}
    tokenized = tokenize_prompt(parse_prompt(prompt, words), backbone.tokenizer)
    maps: list[Tensor] = []
    saved = dict(backbone.unet.attn_processors)
    record_attention(backbone.unet, maps)
    try:
        backbone.predict(noised, torch.tensor(timestep), backbone.embed(tokenized.input_ids))
    finally:
        backbone.unet.set_attn_processor(saved)
    found = []
    for name, kind in names.items():
        layout, ((start, stop),) = Layout.from_numbers({name: [places[kind]]}), tokenized.spans[name]
        parts = []
        for weights in maps:
            side = round(weights.shape[1] ** 0.5)
            noun = weights[0, :, start:stop].sum(1)
            parts.append(float((noun * layout.coverage(name, side, side).flatten()).sum() / noun.sum()))
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
            layout = Layout.from_numbers({name: [box] for name, box in zip(NAMES, boxes, strict=False)})
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


def _area(box: tuple[float, float, float, float]) -> float:
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
    parser.add_argument("--sheets", type=Path, help="a folder for what was drawn")
    arguments = parser.parse_args()
    backbone, judge = open_backbone(arguments.model, device="cpu"), load_judge()
    world = judge_world(SpriteAtlas.load(arguments.work / "sprites.safetensors"), backgrounds_per_scene=8)
    setup = Setup(backbone, judge, world, arguments.pictures, arguments.size, arguments.layout_scale)
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
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "gates.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
