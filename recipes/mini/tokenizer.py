"""mini's tokenizer: CLIP's, with every word of the world as one token and bytes for everything else."""

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(words: tuple[str, ...], window: int) -> CLIPTokenizer:
    """Byte-level BPE whose merges build each word from left to right; the end token has the last id."""
    alphabet = sorted(ByteLevel.alphabet())
    pieces = [*alphabet, *(f"{letter}</w>" for letter in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        for pair in merges:  # what earlier merges already make of this word, in their order of rank
            parts = _merge(parts, pair)
        while len(parts) > 1:
            pair = (parts[0], parts[1])
            merges.append(pair)
            parts = _merge(parts, pair)
    vocabulary = list(dict.fromkeys([START, *pieces, *(first + second for first, second in merges), END]))
    vocabulary.remove(END)
    vocabulary.append(END)
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=window)  # type: ignore[arg-type]  # pairs do


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged
