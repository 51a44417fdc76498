"""The little English grammar that captions need: a or an, singular or plural. Rules first, then exceptions."""

import re
import unicodedata

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


def indefinite_article(phrase: str) -> str:
    """Return "a" or "an", as the first word of `phrase` sounds: a dog, an owl, an hour glass, a unicorn, an RC car."""
    words = re.split(r"[\s-]", _without_accents(phrase), maxsplit=1)
    return "an" if _starts_with_vowel_sound(words[0]) else "a"


def takes_article(noun: str) -> bool:
    """Tell whether `noun` can follow "a" or "an": a dog, but neither sunglasses nor furniture."""
    return not is_plural(noun) and not _UNCOUNTED.fullmatch(_head(noun))


def is_plural(noun: str) -> bool:
    """Tell whether `noun` wants "are": sunglasses, scissors and jeans do; dog, glass, bus and pair of jeans do not."""
    head = _head(noun)
    return bool(_PLURAL_BY_EXCEPTION.fullmatch(head)) or (head.endswith("s") and not _SINGULAR_IN_S.fullmatch(head))


def _head(noun: str) -> str:
    """Return the word that decides the number: the last one, or the last before "of", "with"..."""
    before = re.split(r"\s(?:of|with|without|in|on|for|from)\s", noun.lower())[0]
    return before.split()[-1]


def _without_accents(text: str) -> str:
    return "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))


def _starts_with_vowel_sound(word: str) -> bool:
    lower = word.lower()
    if _is_spelled_out(word):
        return lower[:1] in _LETTERS_SAID_WITH_A_VOWEL
    return bool(_VOWEL_SOUND.match(lower)) or not _CONSONANT_SOUND.match(lower)


def _is_spelled_out(word: str) -> bool:
    short_capitals = word.isupper() and len(word) <= 3
    return short_capitals or word.lower() in _INITIALISMS or not re.search(r"[aeiouy]|^\d", word.lower())
