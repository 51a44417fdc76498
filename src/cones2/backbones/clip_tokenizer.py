"""CLIP's tokenizer, made from the merges that come with the package.

OpenAI's vocabulary (MIT licence), which every Stable Diffusion model reads: 256 bytes, the same at a word's end, 48,894
merges in order of rank, and two special tokens.
"""

from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

_MERGES = Path(__file__).with_name("configs") / "merges.txt"
_WINDOW = 77


def clip_tokenizer(*, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """Make the tokenizer; Stable Diffusion XL's second text encoder pads with `!`."""
    merges: Any = [tuple(line.split(" ")) for line in _MERGES.read_text(encoding="utf-8").splitlines()[1:]]
    letters = list(_letters_of_bytes())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=_WINDOW)


def _letters_of_bytes() -> str:
    """Give the letter that stands for each byte, in CLIP's order: those that print, then the others from 256 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = range(256, 256 + 256 - len(printing))
    return "".join(map(chr, [*printing, *others]))
