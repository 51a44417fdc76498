"""What a layout adds to attention scores: arXiv:2305.19327, Eq. 7, as pure functions of tensors.

Wherever the image reads text, `softmax(QKᵀ/√d) · V` becomes `softmax(QKᵀ/√d + η(t)·M) · V`. For the tokens of a
subject, M is γ+ in its own region, γ- where it is irrelevant, and 0 elsewhere; for tokens of no subject it is 0. η(t)
is `strength(t) · std(QKᵀ/√d)`: a number that falls with the noise, times the spread of the scores. How M and the
strength are chosen is a preset's (`cones2.presets`); no model is known here.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cones2.errors import PromptError

Query = Float[Tensor, "rows heads pixels dim"]
Key = Float[Tensor, "rows heads tokens dim"]
Bias = Float[Tensor, "rows 1 pixels tokens"]
Spans = Mapping[str, tuple[tuple[int, int], ...]]
"""By subject, the (start, stop) token range of each mention."""

_FEW_SCORES = 2**16
"""Of a sample, on a CPU: up to here, building them takes less time than the closed form."""

_MOST_SCORES = 2**26
"""Of a sample, elsewhere: up to here they are built. A GPU waits longer to be sent the closed form's twenty operations
than it takes for these; Stable Diffusion XL at 1024 pixels has 2**22 scores in a layer.
"""


class RegionWeights(NamedTuple):
    """M of one subject on a grid: `gain` is multiplied by η; `blocked` cells get the dtype's floor whatever η is."""

    gain: Float[Tensor, "height width"]
    blocked: Bool[Tensor, "height width"]


class TokenWeights(NamedTuple):
    """M of all subjects, for every pixel of a grid (row by row) and every token."""

    gain: Float[Tensor, "pixels tokens"]
    blocked: Bool[Tensor, "pixels tokens"]


class LayoutTensors(NamedTuple):
    """What Eq. 7 needs in one call.

    Attributes:
        strength: η / std(scores) of each row; 0 where a row is not guided.
        guided: 1 for each row that a layout acts on, 0 for the others.
        masks: by the number of a grid's pixels: M, and what hides blocked tokens; columns are tokens, filled up.
    """

    strength: Float[Tensor, "rows"]
    guided: Float[Tensor, "rows"]
    masks: Mapping[int, tuple[Float[Tensor, "pixels columns"], Float[Tensor, "pixels columns"]]]


def token_weights(regions: Mapping[str, RegionWeights], spans: Spans, tokens: int) -> TokenWeights:
    """Lay M out: each subject's weights in the columns of its tokens, 0 elsewhere; PromptError for tokens cut off."""
    pixels = math.prod(next(iter(regions.values())).gain.shape) if regions else 0
    gain = torch.zeros(pixels, tokens, dtype=torch.float32, device="cpu")
    blocked = torch.zeros(pixels, tokens, dtype=torch.bool, device="cpu")
    for name, region in regions.items():
        for start, stop in spans[name]:
            if not 0 <= start < stop <= tokens:
                raise PromptError(f"tokens {start} to {stop} of {name!r} are not among {tokens}: shorten the prompt.")
            gain[:, start:stop] = region.gain.reshape(-1, 1)
            blocked[:, start:stop] = region.blocked.reshape(-1, 1)
    return TokenWeights(gain, blocked)


def layout_bias(
    query: Query,
    key: Key,
    gain: Float[Tensor, "pixels tokens"],
    floor: Float[Tensor, "pixels tokens"],
    strength: Float[Tensor, "rows"],
) -> Float[Tensor, "rows 1 pixels tokens"]:
    """Return η(t)·M: what is added to the scores `QKᵀ/√d` before the softmax (arXiv:2305.19327, Eq. 7).

    Each row has its own std, so it does not depend on its batch mates; the authors' code takes one over the whole
    batch.

    Args:
        query: of the rows that a layout guides.
        key: of the same rows.
        gain: M, on the queries' device.
        floor: added whatever η is: `floor_of` the queries' dtype where a token is blocked, 0 elsewhere.
        strength: η / std(scores) of each row.

    Example:
        Two pixels and two tokens, of which the first belongs to a subject whose region is the first pixel. The scores
        are 0, 0, 2 and 2, their std is 2/√3 = 1.1547; with γ+ = 2.5 and a strength of 0.5, η·γ+ is 1.4434. The second
        pixel is in another subject's region, so the first token is hidden from it.

        >>> query = torch.tensor([[[[0.0], [1.0]]]])
        >>> key = torch.tensor([[[[2.0], [2.0]]]])
        >>> hidden = floor_of(torch.float32)
        >>> gain, floor = torch.tensor([[2.5, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [hidden, 0.0]])
        >>> bias = layout_bias(query, key, gain, floor, torch.tensor([0.5]))
        >>> [round(number, 4) for number in bias[0, 0, 0].tolist()]
        [1.4434, 0.0]
        >>> bias[0, 0, 1].tolist() == [hidden, 0.0]
        True
    """
    return weighted(strength * product_std(query, key), gain, floor, query)


def weighted(
    scale: Float[Tensor, "rows"],
    gain: Float[Tensor, "pixels columns"],
    floor: Float[Tensor, "*rows pixels columns"],
    query: Query,
) -> Float[Tensor, "rows 1 pixels columns"]:
    """Return `floor + scale/√d · M`, with d and the bounds those of `query`."""
    lowest = floor_of(query.dtype)  # and as far above 0: an infinite bias would give NaN either way
    return torch.addcmul(floor, scale.view(-1, 1, 1, 1), gain, value=1 / math.sqrt(query.shape[3])).clamp_(
        lowest, -lowest
    )


def product_std(query: Query, key: Key) -> Float[Tensor, "rows"]:
    """Return std over heads, pixels and tokens of each row's `QKᵀ`, which is √d times that of its scores.

    The products are built only where that is faster. Otherwise there is a closed form: the sum of their squares is
    `Σ tr(QᵀQ·KᵀK)` over heads, their sum is `Σ (Σq)·(Σk)`, so at most d x d numbers. It is unbiased like `torch.std`,
    which the authors' code uses (the paper says nothing of std). Products of bfloat16 are built in bfloat16, since what
    they scale is rounded to it as well.
    """
    _, heads, pixels, _ = query.shape
    count = heads * pixels * key.shape[2]
    if count <= (_FEW_SCORES if query.device.type == "cpu" else _MOST_SCORES):
        if query.dtype == torch.float16:  # before the division by √d they can be too large for it
            query, key = query.float(), key.float()
        return (query @ key.mT).std((1, 2, 3))
    query, key = _widened(query), _widened(key)
    squares = ((query.mT @ query) * (key.mT @ key)).sum((1, 2, 3))
    total = (query.sum(2) * key.sum(2)).sum((1, 2))
    variance = (squares - total.square() / count) / (count - 1)
    return variance.clamp(min=0).sqrt().float()


def floor_of(dtype: torch.dtype) -> float:
    """Return what hides a token in scores of a dtype: finite, so that a row of nothing else still has a softmax."""
    return torch.finfo(dtype).min / 2


def level_grids(height: int, width: int, levels: int) -> tuple[tuple[int, int], ...]:
    """Return the grid of each level of a UNet: each halves the sides of the one before, rounding up."""
    grids = [(height, width)]
    while len(grids) < levels:
        height, width = (height + 1) // 2, (width + 1) // 2
        grids.append((height, width))
    return tuple(grids)


def _widened(values: Tensor) -> Tensor:
    """Widen to double on a CPU; elsewhere to float, as float64 is slow on most GPUs and missing on Apple's."""
    return values.double() if values.device.type == "cpu" else values.float()
