"""A picture's settings as the text that AUTOMATIC1111's web UI writes into a PNG, and that many other tools read."""

import json
from collections.abc import Mapping
from typing import Any

INFOTEXT_KEY = "parameters"

_SAMPLERS = {
    "ddim": "DDIM",
    "dpm++": "DPM++ 2M",
    "dpm++-2m-sde": "DPM++ 2M SDE",
    "dpm++-sde": "DPM++ SDE",
    "dpm2": "DPM2",
    "dpm2-a": "DPM2 a",
    "euler": "Euler",
    "euler-a": "Euler a",
    "heun": "Heun",
    "lcm": "LCM",
    "lms": "LMS",
    "pndm": "PLMS",
    "unipc": "UniPC",
}


def infotext(record: Mapping[str, Any], size: tuple[int, int]) -> str | None:
    """Give prompt, negative prompt and settings of a picture of `size`; None for a record that has no such things.

    A prompt is as the model read it, without placeholders. Subjects and layout have no place in this format: they are
    in the record alone.
    """
    settings = record.get("settings")
    if not isinstance(settings, Mapping) or "text" not in record:
        return None
    sampler, karras, _ = str(record.get("sampler") or "").partition("-karras")
    values = {
        "Steps": settings.get("steps"),
        "Sampler": _SAMPLERS.get(sampler, sampler) or None,
        "Schedule type": "Karras" if karras else None,
        "CFG scale": settings.get("guidance_scale"),
        "Seed": record.get("seed"),
        "Size": f"{size[0]}x{size[1]}",
        "Model": record.get("backbone", {}).get("name"),
    }
    negative = settings.get("negative_prompt")
    lines = [record["text"], *([f"Negative prompt: {negative}"] if negative else [])]
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in values.items() if value is not None))
    # An undecodable byte of a command line has no place in UTF-8.
    return "\n".join(lines).encode(errors="backslashreplace").decode()


def _quoted(value: object) -> str:
    """Quote what holds a separator, as the web UI does."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(sign in text for sign in ",:\n") else text
