"""Custom Diffusion's merge of subjects that were learned apart, in closed form (arXiv:2212.04488, Eq. 4 and App. A).

For each key or value matrix, W minimises the change on plain captions, `|W Cregᵀ - W0 Cregᵀ|`, under the constraint
that on the words of every subject it does what the model tuned on that subject does, `W Cᵀ = Vᵀ`:

    W = W0 + (Vᵀ - W0 Cᵀ) (D Cᵀ)⁻¹ D    with D = C G⁻¹ and G = Cregᵀ Creg

Written from that formula. The rows of C are the text's states at V*, the class word and the end. Those before V* are
the same for all subjects, since the text encoder looks only back, and would contradict one another. A little is added
to the diagonal of G, so that few captions do on a narrow encoder.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cones2.baselines.setup import Reader
from cones2.baselines.stored import Tensors
from cones2.captions import captions_for, find_class_word, photo_caption
from cones2.errors import SettingsError, counted
from cones2.models import facts_of
from cones2.prompts import token_span

_CAPTIONS = 200
_RIDGE = 1e-6  # of G's mean diagonal


def merged_weights(pipeline: Any, reader: Reader, learned: Sequence[Tensors]) -> dict[str, Tensor]:
    """Return keys and values of the merged model, float32, computed in float64.

    Args:
        pipeline: the model that all were learned on.
        reader: with the words of all subjects.
        learned: keys and values by weight, and one text each.

    Raises:
        SettingsError: there are more words to keep than the text encoder is wide.
    """
    own = [subject_states(reader, next(iter(each.texts.values()))) for each in learned]
    states = torch.cat(own)
    if len(states) > states.shape[1]:
        told = f"{counted(len(states), 'word')} of {counted(len(own), 'subject')}"
        raise SettingsError(f"{told} can't be merged at width {states.shape[1]}.")
    plain = plain_states(pipeline, reader, [word for each in learned for word in each.class_words.values()])
    original = dict(pipeline.unet.named_parameters())
    made = {}
    for name in learned[0].own:
        wanted = [rows @ each.own[name].double().T for rows, each in zip(own, learned, strict=True)]
        before = original[name].detach().double().cpu()
        made[name] = merge(before, states, torch.cat(wanted), plain).float()
    return made


def merge(
    before: Float[Tensor, "out dim"],
    states: Float[Tensor, "rows dim"],
    wanted: Float[Tensor, "rows out"],
    plain: Float[Tensor, "plain dim"],
) -> Float[Tensor, "out dim"]:
    """Return the matrix that maps `states` to `wanted` and changes least what `before` does on `plain`.

    arXiv:2212.04488, Eq. 4. All in float64.
    """
    gram = plain.T @ plain
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    directions = torch.linalg.solve(gram, states.T).T  # D = C G⁻¹
    merged: Tensor = before + (wanted.T - before @ states.T) @ torch.linalg.solve(directions @ states.T, directions)
    return merged


def subject_states(reader: Reader, text: str) -> Float[Tensor, "rows dim"]:
    """Return what the UNet reads at a subject's own words and the end, in "V* CLASS" and "a photo of a V* CLASS"."""
    rows = []
    for caption in (text, photo_caption(text)):
        start, stop = token_span(reader.tokenizer, caption, *find_class_word(caption, text))
        rows.append(reader.embed_once([caption])[0, start : stop + 1].double().cpu())
    return torch.cat(rows)


def plain_states(pipeline: Any, reader: Reader, words: Sequence[str]) -> Float[Tensor, "rows dim"]:
    """Return what the UNet reads of plain captions of the same classes, from the first word to the end."""
    lexicon, rows = facts_of(pipeline).lexicon, []
    each = max(1, _CAPTIONS // len(set(words)))
    captions = [text for word in sorted(set(words)) for text in captions_for(word, count=each, lexicon=lexicon)]
    for caption in captions:
        count = len(reader.tokenizer(caption)["input_ids"])
        rows.append(reader.embed_once([caption])[0, 1:count].double().cpu())
    return torch.cat(rows)
