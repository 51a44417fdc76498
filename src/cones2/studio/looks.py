"""What the worker shows of a picture: how it looks while it forms, and its files when it is there."""

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from cones2.files import write_atomically

SIDE = 256
"""Of previews and thumbnails, in pixels."""


def look_of(pipeline: Any, latents: Any) -> Any:
    """Return what latents of one picture look like, decoded at half their size where they are large.

    None where that can't be told cheaply: of packed latents, where the autoencoder overflows, with too little memory.
    """
    import torch
    from torch.nn.functional import avg_pool2d

    vae = pipeline.vae
    overflows = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
    if latents.ndim != 4 or overflows:
        return None
    while max(latents.shape[2:]) > 64:
        latents = avg_pool2d(latents, 2)
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    try:
        decoded = vae.decode(latents[:1].to(vae.dtype) / vae.config.scaling_factor + shift, return_dict=False)[0]
    except torch.OutOfMemoryError:
        return None
    return pipeline.image_processor.postprocess(decoded.detach(), output_type="pil")[0]


def as_webp(image: Any) -> str:
    """Return a picture as a small WebP in base64."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    content = io.BytesIO()
    small.save(content, format="WEBP", quality=80)
    return base64.b64encode(content.getvalue()).decode()


def keep_picture(folder: Path, name: str, output: Any) -> dict[str, Any]:
    """Write a picture, its thumbnail and its heat maps, and return what is to be known of them."""
    from cones2.rasterize import own_cells

    image, attention = output.images[0], []
    for number, reading in enumerate(output.attention[0] if output.attention else ()):
        write_atomically(folder / f"{name}-{number}.heat.png", _heat_map(reading.heat, image.size))
        cells = own_cells(output.layout, *reading.heat.shape).get(reading.subject)
        share = None if cells is None else float(cells.mean())
        attention.append({"name": reading.subject, "share": share, "inside": reading.own})
    write_atomically(folder / f"{name}.webp", base64.b64decode(as_webp(image)))
    output.save(folder / f"{name}.png")
    return {"id": name, "width": image.width, "height": image.height, "attention": attention}


def _heat_map(heat: Any, size: tuple[int, int]) -> bytes:
    """Return a PNG to lay over a picture: the more attention, the more opaque its orange."""
    values = (heat / heat.max().clamp(min=1e-12) * 255).byte().numpy()
    alpha = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
    picture = Image.new("RGBA", size, (255, 96, 0, 0))
    picture.putalpha(alpha)
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()
