"""The words of mini's world: classes, colours, patterns, scenes, and how a class is written in a sentence."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassWord:
    """One kind of object: its word, the icons that draw it, whether it takes an article, and who may wear it."""

    word: str
    icons: tuple[str, ...]
    plural: bool = False
    animal: bool = False
    worn: str | None = None  # where on an animal it goes: "eyes" or "head"

    def phrase(self, adjectives: str = "", article: str = "a") -> str:
        """The noun with its adjectives and article: "an orange owl", "red sunglasses"."""
        words = f"{adjectives} {self.word}".strip()
        if self.plural:
            return f"the {words}" if article == "the" else words
        if article == "a" and words[0] in "aeiou":
            article = "an"
        return f"{article} {words}"


CLASSES: tuple[ClassWord, ...] = (
    ClassWord("dog", ("dog-face", "dog"), animal=True),
    ClassWord("cat", ("cat-face", "cat"), animal=True),
    ClassWord("owl", ("owl",), animal=True),
    ClassWord("teddy bear", ("teddy-bear",), animal=True),
    ClassWord("sunglasses", ("sunglasses",), plural=True, worn="eyes"),
    ClassWord("hat", ("top-hat",), worn="head"),
    ClassWord("mug", ()),
    ClassWord("backpack", ("backpack",)),
    ClassWord("ball", ("soccer-ball",)),
    ClassWord("car", ("automobile",)),
)

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.13),
    "orange": (0.96, 0.52, 0.10),
    "yellow": (0.97, 0.83, 0.18),
    "green": (0.20, 0.62, 0.25),
    "blue": (0.15, 0.38, 0.85),
    "purple": (0.50, 0.22, 0.70),
    "pink": (0.97, 0.55, 0.73),
    "brown": (0.48, 0.30, 0.17),
    "white": (0.95, 0.95, 0.93),
    "black": (0.14, 0.14, 0.16),
}

PATTERNS: tuple[str, ...] = ("plain", "striped", "spotted", "patched")

SCENES: dict[str, str] = {
    "beach": "on the beach",
    "snow": "in the snow",
    "forest": "in the forest",
    "city": "in the city",
    "kitchen": "in the kitchen",
    "night": "at night",
}

# Further words that captions use; with the words above they are the lexicon that the model knows.
SENTENCE_WORDS: tuple[str, ...] = ("photo", "picture", "drawing", "image", "left", "right", "top", "side")
SENTENCE_WORDS += ("a", "an", "the", "and", "of", "on", "in", "at", "to", "with", "next", "behind", "wearing")
SENTENCE_WORDS += ("one", "two", "this", "is", "there", "here", ",", ".")


def lexicon() -> tuple[str, ...]:
    """Every word of the world, sorted."""
    words = set(SENTENCE_WORDS) | set(COLOURS) | set(PATTERNS) | set(SCENES)
    for class_word in CLASSES:
        words.update(class_word.word.split())
    return tuple(sorted(words))
