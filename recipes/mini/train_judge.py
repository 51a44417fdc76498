"""Train the judge: `python recipes/mini/train_judge.py --minutes 15`, once more from its weights with `--resume`."""

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import cross_entropy

from cones2.judge import GRID, JUDGE_WEIGHTS, Detections, Judge, crop
from judge import WORLD, load_judge, save_judge
from judge_data import Block, augment, draw_block, judge_world
from parts import Autoencoder
from sprites import SpriteAtlas
from vocabulary import CLASSES

TEMPERATURE = 0.08
WEIGHTS_OF_LOSSES = {"heat": 1.0, "box": 2.0, "scene": 0.3, "identity": 1.0, "class": 1.0, "colour": 1.0}


def heat_targets(block: Block) -> Tensor:
    """Gaussians at the objects' centres: `[scenes, classes, GRID, GRID]`, exactly 1 at the centre's cell."""
    targets = torch.zeros(len(block.images), len(CLASSES), GRID, GRID)
    cells = torch.arange(GRID)
    for row, kind, (x0, y0, x1, y1) in zip(block.rows, block.kinds, block.boxes.tolist(), strict=True):
        x, y = int((x0 + x1) / 2 * GRID * 0.9999), int((y0 + y1) / 2 * GRID * 0.9999)
        across = torch.exp(-0.5 * ((cells - x) / max(0.5, 0.13 * (x1 - x0) * GRID)) ** 2)
        down = torch.exp(-0.5 * ((cells - y) / max(0.5, 0.13 * (y1 - y0) * GRID)) ** 2)
        targets[row, kind] = torch.maximum(targets[row, kind], down[:, None] * across)
    return targets


def heat_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """CenterNet's focal loss (arXiv:1904.07850, Eq. 1), per object."""
    chance = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    centre = targets == 1
    hits = centre * (1 - chance) ** 2 * chance.log()
    misses = ~centre * (1 - targets) ** 4 * chance**2 * (1 - chance).log()
    return -(hits + misses).sum() / centre.sum()


def box_loss(detections: Detections, block: Block, targets: Tensor) -> Tensor:
    """1 - IoU of the boxes that cells near the centre give."""
    losses = []
    for row, kind, box in zip(block.rows, block.kinds, block.boxes, strict=True):
        centre = ((box[:2] + box[2:]) / 2 * GRID * 0.9999).int()
        y, x = slice(max(centre[1] - 1, 0), centre[1] + 2), slice(max(centre[0] - 1, 0), centre[0] + 2)
        near = targets[row, kind, y, x] > 0.4
        losses.append(detections.boxes[row, int(CLASSES[kind].worn is not None), :, y, x][:, near].T)
    wanted = torch.cat([box.expand(len(part), 4) for box, part in zip(block.boxes, losses, strict=True)])
    given = torch.cat(losses).float()
    inner = (torch.minimum(given[:, 2:], wanted[:, 2:]) - torch.maximum(given[:, :2], wanted[:, :2])).clamp(min=0)
    shared = inner.prod(1)
    union = (given[:, 2:] - given[:, :2]).prod(1) + (wanted[:, 2:] - wanted[:, :2]).prod(1) - shared
    return (1 - shared / union).mean() + (given - wanted).abs().mean()


def identity_loss(embeddings: Tensor, identities: Tensor) -> Tensor:
    """InfoNCE: each object should find the same individual's other drawing among all others."""
    scores = embeddings @ embeddings.T / TEMPERATURE
    scores.fill_diagonal_(-torch.inf)
    same = identities[:, None] == identities
    same.fill_diagonal_(False)
    paired = same.any(1)
    chances = scores.log_softmax(1)
    return -chances[paired].masked_fill(~same[paired], -torch.inf).logsumexp(1).mean()


def jitter(boxes: Tensor, amount: float = 0.06) -> Tensor:
    """Boxes as a detector would give them: off by a few percent of their sides."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + amount * sides * torch.randn_like(boxes)


def training_loss(judge: Judge, block: Block) -> tuple[Tensor, dict[str, float]]:
    """All losses of one block."""
    images = (block.images.float() / 255).contiguous(memory_format=torch.channels_last)
    targets = heat_targets(block)
    with torch.autocast(images.device.type, torch.bfloat16):
        detections = judge.detector(images)
        identities, kinds, colours = judge.embedder(crop(images, jitter(block.boxes), block.rows))
    parts = {
        "heat": heat_loss(detections.heat.float(), targets),
        "box": box_loss(detections, block, targets),
        "scene": cross_entropy(detections.scene.float(), block.scenes),
        "identity": identity_loss(identities.float(), block.identities),
        "class": cross_entropy(kinds.float(), block.kinds),
        "colour": cross_entropy(colours.float(), block.colours, reduction="sum") / len(colours),
    }
    total = torch.stack([WEIGHTS_OF_LOSSES[name] * part for name, part in parts.items()]).sum()
    return total, {name: part.item() for name, part in parts.items()}


def make_optimizer(judge: Judge) -> torch.optim.Optimizer:
    """AdamW, slower for the one dense layer, where each step adds up over thousands of inputs."""
    dense = list(judge.embedder.identity[-1].parameters())
    others = [p for p in judge.parameters() if all(p is not own for own in dense)]
    groups = [{"params": others, "share": 1.0}, {"params": dense, "share": 0.15}]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.98), weight_decay=0.02)


def load_vae(folder: Path) -> Autoencoder | None:
    """The autoencoder, when there is one yet."""
    if not (folder / "diffusion_pytorch_model.safetensors").exists():
        return None
    vae = AutoencoderKL.from_pretrained(folder).float().eval().requires_grad_(False)
    return vae.to(memory_format=torch.channels_last)


def main() -> None:
    """Train for a stretch of time; the weights are saved every two minutes and at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work")
    parser.add_argument("--out", type=Path, default=JUDGE_WEIGHTS)
    parser.add_argument("--resume", action="store_true", help="start from the weights in --out")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--learning-rate", type=float, default=2.5e-3)
    parser.add_argument("--pool", type=int, default=150, help="blocks of scenes kept in memory")
    parser.add_argument("--seed", type=int, default=7000)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    rng = np.random.default_rng(arguments.seed)
    world = judge_world(SpriteAtlas.load(arguments.work / "sprites.safetensors"))
    judge = load_judge(arguments.out).requires_grad_(True) if arguments.resume else Judge(WORLD)
    judge.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types lack it
    optimizer = make_optimizer(judge)
    start, limit, saved = time.monotonic(), 60 * arguments.minutes, time.monotonic()
    vae = load_vae(arguments.work / "vae")
    blocks: list[Block] = []
    for step in itertools.count():
        elapsed = time.monotonic() - start
        if elapsed > limit:
            break
        if step % 3 == 0 or len(blocks) < 10:
            blocks = [*blocks, draw_block(world, rng, vae)][-arguments.pool :]
        rate = arguments.learning_rate * min((step + 1) / 50, 0.02 + 0.49 * (1 + np.cos(np.pi * elapsed / limit)))
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"]
        loss, parts = training_loss(judge, augment(blocks[rng.integers(len(blocks))], rng))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 5.0)
        optimizer.step()
        if step % 25 == 0:
            print(
                f"step {step} {elapsed / 60:.1f} min " + " ".join(f"{k} {v:.3f}" for k, v in parts.items()), flush=True
            )
        if time.monotonic() - saved > 120:
            saved = time.monotonic()
            save_judge(judge, arguments.out)
            vae = load_vae(arguments.work / "vae")  # it may have got better, or be there by now
    save_judge(judge, arguments.out)
    print(f"{step} steps, autoencoded pictures: {vae is not None}", flush=True)


if __name__ == "__main__":
    main()
