"""Set an `AutoencoderKL` encoder to the principal components of 8 x 8 patches, exactly.

An encoder that has to be learned holds up everything behind it: text encoder and UNet can only start when it stands,
and start over when it moves. For flat drawings the principal components of patches keep nearly as much, they are there
after a second of linear algebra, they make smooth latents of natural spread, and they never move: the decoder, which
does the real work, can go on learning for as long as anyone likes.

diffusers' encoder ends in group norm and SiLU, which are not linear. Each group therefore holds a large constant pair
(+K, -K), which fixes what it is divided by, and pairs (v, -v), of which `silu(v) - silu(-v) = v`.
"""

import torch
from torch import Tensor

from parts import Autoencoder

ANCHOR = 100.0
LOG_VARIANCE = -8.0
EVENING = 0.35
"""How much the latents' channels are evened out: at 0 brightness drowns colour, at 1 detail does."""


@torch.no_grad()
def set_linear_encoder(model: Autoencoder, pictures: Tensor) -> None:
    """Fit the components to `pictures` `[batch, 3, height, width]` in -1..1 and write them into the encoder."""
    encoder = model.encoder
    for name, parameter in encoder.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    _pass_on(encoder.conv_in.weight[:, :, 1:2, 1:2])
    features = encoder.conv_in(pictures)
    for block in encoder.down_blocks[:-1]:
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None:
            _pass_on(shortcut.weight)
        features = block.resnets[0](features, None)
        conv = block.downsamplers[0].conv
        blocks = _blocks(features)
        components = _components(blocks, conv.out_channels)
        conv.weight[: len(components), :, :2, :2] = components.reshape(-1, conv.in_channels, 2, 2)
        features = block.downsamplers[0](features)
    _write_head(model, features)


def _write_head(model: Autoencoder, features: Tensor) -> None:
    """Project to the latents' channels through the last shortcut, norm, SiLU and convolution."""
    encoder, channels = model.encoder, model.config.latent_channels
    vectors = features.permute(0, 2, 3, 1).flatten(0, 2)
    mean = vectors.mean(0)
    components = _components(vectors - mean, channels)
    components /= ((vectors - mean) @ components.T).std(0)[:, None] ** EVENING
    shortcut, norm = encoder.down_blocks[-1].resnets[0].conv_shortcut, encoder.conv_norm_out
    size = norm.num_channels // norm.num_groups
    for channel in range(channels):
        first = channel * size
        shortcut.bias[first], shortcut.bias[first + 1] = ANCHOR, -ANCHOR
        for row, sign in ((first + 2, 1), (first + 3, -1)):
            shortcut.weight[row, :, 0, 0] = sign * components[channel]
            shortcut.bias[row] = -sign * (components[channel] @ mean)
            encoder.conv_out.weight[channel, row, 1, 1] = sign
    norm.weight.fill_(ANCHOR * (2 / size) ** 0.5)
    norm.bias.zero_()
    encoder.conv_out.bias[channels:] = LOG_VARIANCE
    for conv in (model.quant_conv, model.post_quant_conv):
        conv.weight.zero_()
        conv.bias.zero_()
        _pass_on(conv.weight)


def _pass_on(weight: Tensor) -> None:
    """Set a 1 x 1 convolution to copy its inputs, as many as fit."""
    for channel in range(min(weight.shape[:2])):
        weight[channel, channel, 0, 0] = 1


def _blocks(features: Tensor) -> Tensor:
    """Cut features into 2 x 2 blocks: `[blocks, channels * 4]`."""
    blocks = features.unfold(2, 2, 2).unfold(3, 2, 2)  # batch, channels, rows, columns, 2, 2
    return blocks.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)


def _components(vectors: Tensor, count: int) -> Tensor:
    """The `count` strongest orthonormal directions of vectors: `[<= count, dim]`."""
    _, values, directions = torch.linalg.svd(vectors.T @ vectors / len(vectors))
    strongest: Tensor = directions[: min(count, int((values > 1e-8).sum()))]
    return strongest
