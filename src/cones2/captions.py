"""Captions that contain a class word: made here, offline and reproducibly, or read from the user's own file.

Learning compares the tuned text encoder with the original one over 1,000 such captions (arXiv:2305.19327, Sec. 3.2 and
Eqs. 3, 5). The paper asks ChatGPT for them; here everyday words fill the sentence frames of `captions.toml`.
"""

import functools
import math
import random
import re
import tomllib
import unicodedata
from collections.abc import Collection, Iterator
from importlib import resources
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from cones2.errors import CaptionError, counted, is_unicode
from cones2.files import read_bounded
from cones2.prompts import check_class_word

MOST_CAPTIONS = 5000
LARGEST_CAPTION_FILE = 2**20

_FIELD = re.compile(r"\{(\w+)\}")
_WORD_OR_MARK = re.compile(r"[\w'-]+|[^\w\s]")
_MAX_SHARE_PERCENT = 3

# A vowel letter said as a consonant: a unicorn, a user, a ewer, a one-piece.
_CONSONANT_SOUND = re.compile(r"[^aeiou]|uni(?!d|m|n)|us[aeiu]|ut[ei]|uk|ur[aei]|ufo|eu|ew|one|once|oui")
# A consonant letter that is silent, and numbers said with a vowel: an hour glass, an 8-ball, an 18-wheeler.
_VOWEL_SOUND = re.compile(r"hour|honest|hono|heir|8|1[18](?!\d)")
# Spelled out although they could be said as a word; what has no vowel is always spelled out (an mp3 player).
_INITIALISMS = frozenset({"fbi", "led", "suv", "usa", "usb"})
_LETTERS_SAID_WITH_A_VOWEL = frozenset("aefhilmnorsx")

_PLURAL_BY_EXCEPTION = re.compile(
    r"cattle|children|clothes|dice|feet|geese|men|mice|people|police|teeth|women"
    r"|bikinis|emus|gnus|kiwis|menus|skis|taxis|tutus|zucchinis"
)
_SINGULAR_IN_S = re.compile(r".*(ss|us|is|'s)|atlas|canvas|christmas|gas|lens|rhinoceros|series|species|thermos")
_UNCOUNTED = re.compile(
    r"armou?r|bread|butter|cheese|clothing|cutlery|equipment|food|footwear|furniture|grass|hair|jewell?e?ry|luggage"
    r"|milk|money|pasta|pottery|rice|sand|silverware|spaghetti|sushi|water"
)


def photo_caption(class_word: str) -> str:
    """Return the caption of a photo of the subject: "a photo of a dog", "... of an owl", "... of sunglasses".

    arXiv:2305.19327, Sec. 3.2. It mentions the class word once: what is a photo itself is "a picture of a photo".
    """
    medium = "picture" if _mentions(check_class_word(class_word)).search("photo") else "photo"
    return filled(f"a {medium} of {{a}} {{subject}}", class_word)


def photo_prompt(class_word: str, name: str) -> str:
    """Return the caption of a photo with a placeholder where the class word stands: "a photo of a {rex}"."""
    caption = photo_caption(class_word)
    start, stop = find_class_word(caption, class_word)
    return f"{caption[:start]}{{{name}}}{caption[stop:]}"


def filled(frame: str, class_word: str) -> str:
    """Return a sentence frame such as "a rendering of {a} {subject}" with a class word in it, in agreement with it."""
    word = check_class_word(class_word)
    return _finished(_agreed(frame, word), word)


def find_class_word(caption: str, class_word: str) -> tuple[int, int]:
    """Return the span (start, stop), in characters, of the only mention of `class_word` in `caption`.

    Only whole words count ("hotdog", "dogs" and "dog-eared" do not mention "dog"), in capitals or not.

    Raises:
        CaptionError: the caption mentions it never or several times.
    """
    if not is_unicode(caption):
        raise CaptionError(f"caption {caption[:100]!r} holds half a character, which no model can read: type it again.")
    mentions = list(_mentions(class_word).finditer(caption))
    if len(mentions) != 1:
        raise CaptionError(f"caption {caption!r} mentions {class_word!r} {len(mentions)} times; expected once.")
    return mentions[0].span()


def read_captions(path: Path, class_word: str) -> tuple[str, ...]:
    """Return the captions in a UTF-8 text file: one a line, empty lines skipped, each with one `class_word`.

    Raises:
        CaptionError: the class word or the file can't be used; the message names the line.
    """
    word = check_class_word(class_word)
    content = read_bounded(path, limit=LARGEST_CAPTION_FILE, error=CaptionError)
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise CaptionError(f"{path}, line {line}: not UTF-8 text. Save the captions as UTF-8.") from error
    captions = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    if not captions:
        raise CaptionError(f"{path} holds no captions; expected one a line, each with {word!r}.")
    for number, caption in captions.items():
        try:
            find_class_word(caption, word)
        except CaptionError as error:
            raise CaptionError(f"{path}, line {number}: {error}") from error
    return tuple(captions.values())


def captions_for(
    class_word: str, *, count: int = 1000, seed: int = 0, lexicon: Collection[str] | None = None
) -> tuple[str, ...]:
    """Return `count` distinct, grammatical captions that mention `class_word` once, the same for the same arguments.

    Sentence frames take turns, so that any first part is as varied as the whole, and none makes more than 3 % of them.

    A plural class word makes the rest agree ("these sunglasses are"). With a `lexicon`, other words are avoided, except
    for the class word and "an".

    Raises:
        CaptionError: the class word can't be used, or so many captions can't be made, as when the lexicon is small.
    """
    word = check_class_word(class_word)
    if not 1 <= count <= MOST_CAPTIONS:
        raise CaptionError(f"asked for {count} captions; expected 1 to {MOST_CAPTIONS}.")
    rng = random.Random(seed)
    frames, slots = _usable(word, lexicon)
    share = max(1, count * _MAX_SHARE_PERCENT // 100)
    # Sorted by random(), whose numbers never change between versions of Python; shuffle() makes no such promise.
    columns = [islice(_fillings(frame, slots, rng), share) for frame in sorted(frames, key=lambda _: rng.random())]
    made: dict[str, None] = {}
    for turn in zip_longest(*columns):  # one caption of each frame
        made.update((_finished(caption, word), None) for caption in turn if caption is not None)
        if len(made) >= count:
            return tuple(made)[:count]
    known = "" if lexicon is None else " of words that the model knows"
    raise CaptionError(
        f"{counted(len(made), 'caption')} for {word!r} can be made{known}; expected {count}. Ask for fewer."
    )


def _usable(class_word: str, lexicon: Collection[str] | None) -> tuple[list[str], dict[str, list[str]]]:
    """Return the frames in agreement with the class word, and the slots, without it and without unknown words."""
    mention, own = _mentions(class_word), _telling_words(class_word)
    own = own | {f"{word}s" for word in own}
    lexicon = None if lexicon is None else frozenset(lexicon)

    def fits(text: str) -> bool:
        known = lexicon is None or lexicon.issuperset(_WORD_OR_MARK.findall(text))
        return known and not mention.search(text)

    slots = {
        name: [choice for choice in choices if fits(choice) and own.isdisjoint(_telling_words(choice))]
        for name, choices in _data()["slots"].items()
    }
    frames = [_agreed(frame, class_word) for frame in _data()["frames"]]
    return [frame for frame in frames if fits(_FIELD.sub(" ", frame))], slots


def _fillings(frame: str, slots: dict[str, list[str]], rng: random.Random) -> Iterator[str]:
    """Yield the frame with its slots filled, in all ways that repeat no word, neighbours as different as can be."""
    fields = [field for field in _FIELD.findall(frame) if field != "subject"]
    options = [slots[field.rstrip("23456789")] for field in fields]
    for index in _scattered(math.prod(map(len, options)), rng):
        words = []
        for choices in options:
            index, digit = divmod(index, len(choices))
            words.append(choices[digit])
        telling = [_telling_words(word) for word in words]
        if len(set().union(*telling)) == sum(map(len, telling)):
            yield frame.format(subject="{subject}", **dict(zip(fields, words, strict=True)))


def _scattered(size: int, rng: random.Random) -> Iterator[int]:
    """Yield each of 0..size-1 once, from a random start in golden-ratio strides: any first part is spread evenly."""
    start, stride = int(rng.random() * size), round(size * 0.618) or 1
    while math.gcd(stride, size) > 1 and size > 1:
        stride += 1
    return ((start + turn * stride) % size for turn in range(size))


def _telling_words(text: str) -> set[str]:
    return set(text.lower().split()) - {"a", "at", "by", "in", "of", "on", "the"}


def _agreed(frame: str, class_word: str) -> str:
    """Put the forms that the class word's number wants for `{a}`, `{is}` and `{this}`."""
    article = "a" if takes_article(class_word) else ""
    verb, pronoun = ("are", "these") if is_plural(class_word) else ("is", "this")
    return frame.replace("{a}", article).replace("{is}", verb).replace("{this}", pronoun)


def _finished(caption: str, class_word: str) -> str:
    """Put the class word for `{subject}`, and "an" for "a" where the next word wants it."""
    words = [word.replace("{subject}", class_word) for word in caption.split()]
    pairs = zip(words, [*words[1:], ""], strict=True)
    return " ".join(indefinite_article(after) if word == "a" and after else word for word, after in pairs)


def _mentions(class_word: str) -> re.Pattern[str]:
    spaced = r"\s+".join(map(re.escape, class_word.split()))
    return re.compile(rf"(?<![\w-]){spaced}(?![\w-])", re.IGNORECASE)


@functools.cache
def _data() -> dict[str, Any]:
    return tomllib.loads((resources.files("cones2") / "captions.toml").read_text(encoding="utf-8"))


# The little English grammar that captions need: a or an, singular or plural. Rules first, then exceptions.


def indefinite_article(phrase: str) -> str:
    """Return "a" or "an", as the first word of `phrase` sounds: a dog, an owl, an hour glass, a unicorn, an RC car."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", phrase) if not unicodedata.combining(char))
    word = re.split(r"[\s-]", plain, maxsplit=1)[0]
    lower = word.lower()
    short_capitals = word.isupper() and len(word) <= 3
    if short_capitals or lower in _INITIALISMS or not re.search(r"[aeiouy]|^\d", lower):  # spelled out
        has_vowel_sound = lower[:1] in _LETTERS_SAID_WITH_A_VOWEL
    else:
        has_vowel_sound = bool(_VOWEL_SOUND.match(lower)) or not _CONSONANT_SOUND.match(lower)
    return "an" if has_vowel_sound else "a"


def takes_article(noun: str) -> bool:
    """Return whether `noun` can follow "a" or "an": a dog, but neither sunglasses nor furniture."""
    return not is_plural(noun) and not _UNCOUNTED.fullmatch(_head(noun))


def is_plural(noun: str) -> bool:
    """Return whether `noun` wants "are": sunglasses and jeans do; dog, glass, bus and pair of jeans do not."""
    head = _head(noun)
    return bool(_PLURAL_BY_EXCEPTION.fullmatch(head)) or (head.endswith("s") and not _SINGULAR_IN_S.fullmatch(head))


def _head(noun: str) -> str:
    """Return the word that decides the number: the last one, or the last before "of", "with"..."""
    before = re.split(r"\s(?:of|with|without|in|on|for|from)\s", noun.lower())[0]
    return before.split()[-1]
