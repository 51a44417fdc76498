"""How large pictures and their latents are."""

from cones2.backbones import Backbone
from cones2.composing.settings import ComposeSettings
from cones2.errors import SettingsError


def latent_shape(backbone: Backbone, settings: ComposeSettings) -> tuple[int, int, int]:
    """Give channels, height and width of the latents of one picture."""
    height, width = picture_size(backbone, settings)
    for name, side in (("height", height), ("width", width)):
        if side % backbone.vae_factor:
            nearest = max(1, round(side / backbone.vae_factor)) * backbone.vae_factor
            raise SettingsError(
                f"{name} {side} does not suit {backbone.name}: expected a multiple of {backbone.vae_factor},"
                f" such as {nearest}."
            )
    channels = int(backbone.unet.config["in_channels"])
    return channels, height // backbone.vae_factor, width // backbone.vae_factor


def picture_aspect(backbone: Backbone, settings: ComposeSettings) -> float:
    """Give width by height."""
    height, width = picture_size(backbone, settings)
    return width / height


def picture_size(backbone: Backbone, settings: ComposeSettings) -> tuple[int, int]:
    """Give height and width in pixels."""
    return settings.height or backbone.default_size[0], settings.width or backbone.default_size[1]
