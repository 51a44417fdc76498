"""Prompts that name subjects: `"a {rex} on the beach"` becomes the class word's text and exact token spans.

A brace always belongs to a placeholder `{name}`; there is no escape. Weights as other tools write them are refused
rather than read as words; see `check_no_weights`.
"""

import re
import unicodedata
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Int

from cones2.errors import CaptionError, Cones2Warning, PromptError, first_line, is_unicode

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_CLASS_WORD = 60
LONGEST_PROMPT = 10_000
"""Characters of a prompt, which may be a stranger's; no model reads a tenth of them."""

OTHER_TEXTS = ("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")
"""diffusers' arguments that are texts for single encoders."""

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_JOINS_WORDS = "-'\u2019\u2010\u2011{}"  # also what belongs to another placeholder
_WEIGHT = re.compile(
    r"""
    (?<!\\)(?:                                     # as in those tools, a backslash says that it is plain text
        \([^()]*[^()\s\d]\s*:\s*[+-]?(?:\d(?:\.\d*)?|\.\d+)\s*\)  # (dog:1.2), but neither (at 10:30) nor (anno:1999)
        | \(\([^()]+\)\)                            # ((dog)), but not (a dog (my own))
        | \[[^\[\]]+\]                              # [dog]
    )""",
    re.VERBOSE,
)

_ESCAPED = re.compile(r"\\([()\[\]])")

_MARK = "\ue000"
"""A character of no language, in a text's place."""

QWEN3_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role + '\\n' + message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""What Qwen3's chat template writes of plain messages; a stranger's template is a program, and may never end."""
_QWEN3_MARKS = ("<|im_start|>", "<|im_end|>", "<think>", "add_generation_prompt", "enable_thinking")

Span = tuple[int, int]


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of transformers' fast tokenizers."""

    model_max_length: int

    def __call__(self, text: str, **options: Any) -> Any:
        """Tokenize; `return_offsets_mapping` gives the characters of each token."""


@dataclass(frozen=True)
class Mention:
    """One place where a subject is named: characters `start` to `end` of the text hold its class word."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class ParsedPrompt:
    """The text that the model reads, and where subjects stand in it."""

    text: str
    mentions: tuple[Mention, ...]


@dataclass(frozen=True)
class TokenizedPrompt:
    """The same as token ids, padded to the model's window.

    Attributes:
        input_ids: start token, text, end token, padding.
        spans: by subject name, the (start, stop) token range of each mention.
    """

    text: str
    input_ids: "Int[Tensor, '1 tokens']"
    spans: Mapping[str, tuple[Span, ...]]


def check_no_weights(text: str) -> str:
    """Return a text as it is, where it has none of other tools' weights: `(dog:1.2)`, `((dog))`, `[dog]`.

    These would be read as punctuation. Plain parentheses are text, as in `a dog (my own)`, and so is a bracket after a
    backslash.

    Raises:
        PromptError: there is one, or the text can't be written in UTF-8.
    """
    if not is_unicode(text):
        raise PromptError(f"{text[:100]!r} holds half a character, which no model can read: type it again.")
    found = _WEIGHT.search(text)
    if found:
        raise PromptError(
            f"{found[0]!r} looks like a weight, and prompts have none here: use a subject's strength for how much of it"
            " is added, and plain words for the rest."
        )
    return text


def plain_text(text: str) -> str:
    r"""Return what the model reads of a text: without the backslashes by which a bracket is plain text, `\[open\]`."""
    return _ESCAPED.sub(r"\1", text)


def parse_prompt(template: str, class_words: Mapping[str, str]) -> ParsedPrompt:
    """Replace each `{name}` by its class word and remember where it went.

    Raises:
        PromptError: a brace is unmatched, a name is empty or unknown, text touches a placeholder, or something is
            weighed; or the prompt is longer than LONGEST_PROMPT.
    """
    if len(template) > LONGEST_PROMPT:
        raise PromptError(f"the prompt has {len(template):,} characters; expected at most {LONGEST_PROMPT:,}.")
    check_no_weights(template)
    text, mentions, position = "", [], 0
    for match in _PLACEHOLDER.finditer(template):
        _check_placeholder(match, template, class_words)
        text += plain_text(template[position : match.start()])
        class_word = class_words[match[1]]
        mentions.append(Mention(match[1], len(text), len(text) + len(class_word)))
        text += class_word
        position = match.end()
    text += plain_text(template[position:])
    if brace := re.search("[{}]", _PLACEHOLDER.sub(lambda match: " " * len(match[0]), template)):
        raise PromptError(
            f"unmatched {brace[0]!r} at character {brace.start()}: braces are only for subjects, as in {{rex}}."
        )
    return ParsedPrompt(text, tuple(mentions))


def placeholders(template: str) -> tuple[str, ...]:
    """Return the names of the subjects of a prompt, in the order in which they are first mentioned."""
    return tuple(dict.fromkeys(match[1] for match in _PLACEHOLDER.finditer(template)))


def _check_placeholder(match: re.Match[str], template: str, class_words: Mapping[str, str]) -> None:
    name = match[1]
    if not name:
        raise PromptError(f"empty placeholder {{}} at character {match.start()}: write a subject's name in it.")
    if name not in class_words:
        known = ", ".join(class_words) or "none"
        raise PromptError(
            f"no subject is called {name!r}, as the prompt has it; the subjects are: {known}. Load it, give a word for"
            " an untaught one, or write the word itself in place of the braces."
        )
    for neighbour in template[: match.start()][-1:] + template[match.end() :][:1]:
        is_mark = unicodedata.category(neighbour).startswith("M")
        if neighbour.isalnum() or is_mark or neighbour in _JOINS_WORDS:
            raise PromptError(
                f"{neighbour!r} touches {{{name}}}: that would make another word of it. Put a space between them."
            )


def is_qwen3_chat(template: object) -> bool:
    """Whether a chat template has the marks of Qwen3's, which all released ones of its kind have; it is not run."""
    return all(mark in str(template) for mark in _QWEN3_MARKS)


def in_chat(prompt: ParsedPrompt, tokenizer: Any, *, thinking: bool) -> ParsedPrompt:
    """Return a prompt as a user's message in the tokenizer's chat template, as diffusers asks language models.

    Raises:
        PromptError: the template fails, or does not repeat the text as it is.
    """

    def told(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        try:
            return str(
                tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
                )
            )
        except Exception as error:  # a template is a program: it raises anything
            raise PromptError(f"the model's chat template fails: {first_line(error)} Correct or replace it.") from error

    before, _, after = told(_MARK).partition(_MARK)
    if told(prompt.text) != before + prompt.text + after:
        raise PromptError(
            f"the model's chat template does not repeat {prompt.text[:100]!r} as it is, so no subject can be found in"
            " it: leave out spaces at its ends, and marks of the template's own."
        )
    moved = (Mention(each.name, each.start + len(before), each.end + len(before)) for each in prompt.mentions)
    return ParsedPrompt(before + prompt.text + after, tuple(moved))


def tokenize_prompt(
    prompt: ParsedPrompt, tokenizer: Tokenizer, *, window: int | None = None, is_unpadded: bool = False
) -> TokenizedPrompt:
    """Tokenize for the model's window; text that does not fit is cut with a warning, but never a subject.

    `prompt` is written into a chat template where the model has one; `window` is the most tokens that the model reads,
    None the tokenizer's own number; `is_unpadded` says that it reads no padding.

    Raises:
        PromptError: a subject would be cut off, or its tokens are not those of its class word alone.
    """
    whole = _tokenize(tokenizer, prompt.text)
    spans: dict[str, tuple[Span, ...]] = {}
    for mention in prompt.mentions:
        span = _find_span(whole["offset_mapping"], prompt.text, mention.start, mention.end)
        _check_tokens_alone(whole["input_ids"][slice(*span)], mention, prompt, tokenizer)
        spans[mention.name] = (*spans.get(mention.name, ()), span)
    window = min(window or tokenizer.model_max_length, tokenizer.model_max_length)
    _check_window(whole["input_ids"], spans, window)
    padded = tokenizer(
        prompt.text, padding="max_length", truncation=True, max_length=window, return_tensors="pt", verbose=False
    )
    ids: Tensor = padded["input_ids"]
    first = max(0, window - len(whole["input_ids"])) if getattr(tokenizer, "padding_side", "") == "left" else 0
    if is_unpadded:
        return TokenizedPrompt(prompt.text, ids[:, first : first + len(whole["input_ids"])], spans)
    moved = {name: tuple((first + start, first + stop) for start, stop in found) for name, found in spans.items()}
    return TokenizedPrompt(prompt.text, ids, moved)


def words_and_end(
    prompt: ParsedPrompt, tokenizer: Tokenizer, *, window: int, is_unpadded: bool = False
) -> tuple[int, int, int]:
    """Return the (start, stop) token range of a prompt's one mention and all that follows, and how long the whole is.

    What follows is an end token, or what a chat template says after it: where tokens read those before, it holds the
    whole. The whole is filled up to the window unless it `is_unpadded`; what exceeds the window is not counted.
    """
    offsets = _tokenize(tokenizer, prompt.text)["offset_mapping"][:window]
    first = (i for i, (_, end) in enumerate(offsets) if end > prompt.mentions[0].start)
    length = len(offsets) if is_unpadded else window
    before = length - len(offsets) if getattr(tokenizer, "padding_side", "") == "left" else 0
    return before + next(first, len(offsets) - 1), before + len(offsets), length


def token_span(tokenizer: Tokenizer, text: str, start: int, end: int) -> Span:
    """Return the (start, stop) range of tokens that hold characters `start` to `end` of `text`, and nothing else.

    Positions count the start token. Text longer than the window is not cut here.

    Raises:
        PromptError: those characters have no token, or share one with their neighbours.
    """
    return _find_span(_tokenize(tokenizer, text)["offset_mapping"], text, start, end)


def _tokenize(tokenizer: Tokenizer, text: str) -> Any:
    return tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)


def _find_span(offsets: Sequence[Span], text: str, start: int, end: int) -> Span:
    inside = [i for i, (first, last) in enumerate(offsets) if first < end and last > start]
    if not inside:
        raise PromptError(f"the tokenizer sees nothing in {text[start:end]!r}: choose another class word.")
    outside = text[offsets[inside[0]][0] : start] + text[end : offsets[inside[-1]][1]]
    if outside.strip():  # T5's tokens hold the space before them
        raise PromptError(f"{text[start:end]!r} shares a token with its neighbours in {text!r}: put spaces around it.")
    return inside[0], inside[-1] + 1


def _check_tokens_alone(ids: Sequence[int], mention: Mention, prompt: ParsedPrompt, tokenizer: Tokenizer) -> None:
    class_word = prompt.text[mention.start : mention.end]
    written = class_word, f" {class_word}"  # byte-level tokens hold the space before them, too
    alone = [list(tokenizer(each, add_special_tokens=False, verbose=False)["input_ids"]) for each in written]
    if list(ids) not in alone:
        raise PromptError(
            f"{class_word!r} gets other tokens in {prompt.text!r} than alone, so {{{mention.name}}} would be another"
            " word: put spaces around it."
        )


def _check_window(ids: Sequence[int], spans: Mapping[str, tuple[Span, ...]], window: int) -> None:
    if len(ids) <= window:
        return
    sizes = f"the prompt has {len(ids)} tokens with start and end, the model's window holds {window}"
    for name, ranges in spans.items():
        if ranges[-1][1] > window - 1:  # the last place is the end token's
            raise PromptError(f"{sizes}: {{{name}}} would be cut off. Shorten the prompt, or name the subject earlier.")
    left = len(ids) - window
    cut = "its last token is" if left == 1 else f"its last {left} tokens are"
    warnings.warn(f"{sizes}: {cut} not read.", Cones2Warning, stacklevel=3)


def unknown_words(text: str, lexicon: Collection[str]) -> list[str]:
    """Return the words of a text that a lexicon does not hold, in lower case, each once, in their order."""
    words = dict.fromkeys(re.findall(r"[^\W\d_]+", text.lower()))
    return [word for word in words if word not in lexicon]


def check_class_word(class_word: str) -> str:
    """Return `class_word` without outer and doubled spaces, its case as given; CaptionError where it can't be one."""
    word = " ".join(class_word.split())
    if not any(char.isalnum() for char in word):
        raise CaptionError(f"class word {class_word!r} has no letters; expected a word such as 'dog' or 'teddy bear'.")
    if len(word) > LONGEST_CLASS_WORD:
        raise CaptionError(f"class word of {len(word)} characters; expected at most {LONGEST_CLASS_WORD}.")
    if word.split()[0].lower() in {"a", "an", "the"}:
        raise CaptionError(f"class word {word!r} starts with an article; expected only the noun, such as 'dog'.")
    if not (word[0].isalnum() and word[-1].isalnum() and word.isprintable()):
        raise CaptionError(f"class word {word!r} holds marks; expected letters at both ends, such as 'teddy bear'.")
    return word
