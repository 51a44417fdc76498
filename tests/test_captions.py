"""Captions: distinct, grammatical, varied, made of known words; class words and caption files checked."""

import hashlib
import json
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cones2
from cones2.captions import (
    captions_for,
    find_class_word,
    indefinite_article,
    is_plural,
    photo_caption,
    read_captions,
    takes_article,
)
from cones2.errors import CaptionError
from cones2.examples import EXAMPLES
from cones2.prompts import check_class_word

PACKAGE = Path(cones2.__file__).parent
DATA = tomllib.loads((PACKAGE / "captions.toml").read_text(encoding="utf-8"))
FRAMES, SLOTS = DATA["frames"], DATA["slots"]

CLASS_WORDS = ["dog", "owl", "sunglasses", "scissors", "teddy bear", "hour glass", "unicorn", "jeans", "hat", "red car"]

# What a model trained on a small world may know: no verbs, plurals, sizes or commas.
SMALL_LEXICON = frozenset(
    re.findall(
        r"\w+",
        "a an the and of on in at to with next behind wearing photo picture drawing left right top red blue green "
        "yellow purple orange pink white black brown striped spotted plain dog cat owl teddy bear sunglasses hat mug "
        "backpack ball car beach forest snow city kitchen night",
    )
)


def frame_pattern(frame: str, class_word: str) -> re.Pattern[str]:
    """Match what a frame can become, apart from a or an."""
    verbs = {"a": "an?|", "is": "is|are", "this": "this|these", "subject": re.escape(class_word)}

    def alternatives(match: re.Match[str]) -> str:
        name = match[1].rstrip("23")
        return f"(?:{verbs.get(name) or '|'.join(map(re.escape, SLOTS[name]))})"

    pattern = re.sub(r"\\\{(\w+)\\\}", alternatives, re.escape(frame))
    return re.compile(re.sub(r"\ba\\ ", r"an?\\ ", pattern).replace("(?:an?|)\\ ", "(?:an? |)"))


def frame_uses(captions: tuple[str, ...], class_word: str) -> Counter[str]:
    patterns = {frame: frame_pattern(frame, class_word) for frame in FRAMES}
    return Counter(frame for frame, pattern in patterns.items() for caption in captions if pattern.fullmatch(caption))


MINI_LEXICON = frozenset(json.loads((PACKAGE / "mini" / "cones2.json").read_text(encoding="utf-8"))["lexicon"])


@pytest.mark.parametrize("lexicon", [None, SMALL_LEXICON, MINI_LEXICON], ids=["any words", "small lexicon", "mini's"])
@pytest.mark.parametrize("class_word", CLASS_WORDS)
def test_a_thousand_varied_captions(class_word: str, lexicon: frozenset[str] | None) -> None:
    captions = captions_for(class_word, lexicon=lexicon)
    assert len(captions) == len(set(captions)) == 1000
    spans = [find_class_word(caption, class_word) for caption in captions]
    assert all(caption[slice(*span)] == class_word for caption, span in zip(captions, spans, strict=True))
    positions = Counter(len(caption[:start].split()) for caption, (start, _) in zip(captions, spans, strict=True))
    assert sum(count >= 10 for count in positions.values()) >= 8
    assert max(positions.values()) <= 250


@pytest.mark.parametrize("class_word", sorted({example.class_word for example in EXAMPLES.values()}))
def test_captions_for_mini_are_in_words_that_it_knows(class_word: str) -> None:
    captions = captions_for(class_word, lexicon=MINI_LEXICON)
    assert len(set(captions)) == 1000
    assert {word for caption in captions for word in re.findall(r"[a-z]+", caption.lower())} <= MINI_LEXICON


@pytest.mark.parametrize("lexicon", [None, SMALL_LEXICON], ids=["any words", "small lexicon"])
@pytest.mark.parametrize("class_word", ["dog", "sunglasses"])
def test_sixty_frames_none_above_three_percent(class_word: str, lexicon: frozenset[str] | None) -> None:
    uses = frame_uses(captions_for(class_word, lexicon=lexicon), class_word)
    assert len(uses) >= 60
    assert max(uses.values()) <= 30
    assert sum(uses.values()) == 1000


@pytest.mark.parametrize("class_word", CLASS_WORDS)
def test_grammar_of_articles_and_numbers(class_word: str) -> None:
    text = "\n".join(captions_for(class_word))
    plural = class_word in {"sunglasses", "scissors", "jeans"}
    article = "an" if class_word in {"owl", "hour glass"} else "a"
    assert bool(re.search(rf"\b{article} {class_word}\b", text)) is not plural
    assert not re.search(rf"\b{'a' if article == 'an' else 'an'} {class_word}\b", text)
    assert not re.search(
        rf"{class_word} {'is' if plural else 'are'}\b|\b{'this' if plural else 'these'} {class_word}", text
    )
    assert not re.search(r"\ba (apple|old|orange|ordinary|owl|umbrella|unusual)\b", text)
    assert set(re.findall(r"\ban (\w+)", text)) <= {
        "apple",
        "hour",
        "old",
        "orange",
        "ordinary",
        "owl",
        "umbrella",
        "unusual",
    }
    assert not re.search(r"\b(\w+) \1\b|  |[{}]|^ | $", text)


def test_captions_as_they_read() -> None:
    assert captions_for("sunglasses", count=6, seed=3) == (
        "these spotted sunglasses are in the garden",
        "the black shiny sunglasses on the grass",
        "your unusual sunglasses and the backpack",
        "this large sketch shows pink sunglasses in the room",
        "sunglasses and a chair in the desert",
        "a sketch of a panda wearing a backpack next to the sunglasses",
    )


def test_the_seed_decides() -> None:
    assert captions_for("dog", seed=1) == captions_for(" dog ", seed=1)
    assert len(set(captions_for("dog", seed=1)) & set(captions_for("dog", seed=2))) < 500


def test_fewer_captions_are_a_first_part_as_varied() -> None:
    few = captions_for("dog", count=40)
    assert few == captions_for("dog")[:40]
    assert len(frame_uses(few, "dog")) == 40


def test_only_words_of_the_lexicon_are_used() -> None:
    words = set(re.findall(r"\S+", " ".join(captions_for("zebra", lexicon=SMALL_LEXICON))))
    assert words <= SMALL_LEXICON | {"zebra"}
    assert words >= {"wearing", "behind", "striped", "photo", "night"}


def test_no_other_word_repeats_the_class_word() -> None:
    text = " ".join(captions_for("teddy bear"))
    assert not re.search(r"(?<!teddy )bear|teddy (?!bear)", text)
    assert "cats" in text
    assert "cats" not in " ".join(captions_for("cat"))


def test_too_small_a_lexicon() -> None:
    with pytest.raises(CaptionError, match="no captions for 'dog'"):
        captions_for("dog", lexicon={"red"})
    with pytest.raises(CaptionError, match="100"):
        captions_for("dog", count=100, lexicon={"a", "the", "photo", "of", "red", "blue"})


def test_counts_that_make_no_sense() -> None:
    for count in (0, -1, 5001):
        with pytest.raises(CaptionError, match=str(count)):
            captions_for("dog", count=count)
    assert len(set(captions_for("dog", count=5000))) == 5000


def test_captions_stay_what_they_are() -> None:
    """Residuals name the hash of their captions: another order of frames or words would make other residuals."""
    captions = [*captions_for("dog"), *captions_for("teddy bear", seed=7, lexicon=MINI_LEXICON), *captions_for("jeans")]
    digest = hashlib.sha256("\n".join(captions).encode()).hexdigest()
    assert digest == "cd69c3cf6222a26ae7d0d285eb1e904be3b4b692141a3f21d918748fdd2c1362"


@settings(max_examples=30)
@given(
    st.text("aehotxu -'1é{}\\.", min_size=1, max_size=12) | st.sampled_from(["of", "next", "photo", "in the", "two"])
)
def test_any_class_word_is_refused_or_mentioned_once_in_each_caption(class_word: str) -> None:
    try:
        captions = captions_for(class_word, count=40)
    except CaptionError:
        return
    for caption in captions:
        start, stop = find_class_word(caption, class_word)
        assert caption[start:stop] == check_class_word(class_word)


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        *(("dog", "a"), ("owl", "an"), ("hour glass", "an"), ("unicorn", "a"), ("uniform", "a"), ("umbrella", "an")),
        *(("ukulele", "a"), ("user", "a"), ("usher", "an"), ("ewer", "a"), ("eagle", "an"), ("heirloom", "an")),
        *(("horse", "a"), ("one-piece", "a"), ("onion", "an"), ("UFO", "a"), ("SUV", "an"), ("RC car", "an")),
        *(("mp3 player", "an"), ("tv", "a"), ("x-ray", "an"), ("t-shirt", "a"), ("8-ball", "an"), ("18 wheeler", "an")),
        *(("1 cent coin", "a"), ("180 page book", "a"), ("LEGO brick", "a"), ("étagère", "an"), ("犬", "a")),
    ],
)
def test_a_or_an(noun: str, expected: str) -> None:
    assert indefinite_article(noun) == expected


@pytest.mark.parametrize(
    ("noun", "plural", "article"),
    [
        *(("sunglasses", True, False), ("scissors", True, False), ("jeans", True, False), ("children", True, False)),
        *(("boots with laces", True, False), ("glass", False, True), ("bus", False, True), ("iris", False, True)),
        *(("lens", False, True), ("thermos", False, True), ("pair of jeans", False, True), ("skis", True, False)),
        *(("furniture", False, False), ("teddy bear", False, True), ("Glasses", True, False)),
    ],
)
def test_number_of_nouns(noun: str, plural: bool, article: bool) -> None:
    assert is_plural(noun) is plural
    assert takes_article(noun) is article


@pytest.mark.parametrize(
    ("class_word", "caption"),
    [
        *(("dog", "a photo of a dog"), ("owl", "a photo of an owl"), (" sunglasses ", "a photo of sunglasses")),
        *(("photo", "a picture of a photo"), ("Photo", "a picture of a Photo"), ("picture", "a photo of a picture")),
        ("photo album", "a photo of a photo album"),
    ],
)
def test_photo_caption(class_word: str, caption: str) -> None:
    assert photo_caption(class_word) == caption
    find_class_word(caption, class_word.strip())


def test_class_words_are_tidied() -> None:
    assert check_class_word("  Teddy \t bear ") == "Teddy bear"


@pytest.mark.parametrize(
    "class_word", ["", "  ", "?!", "a dog", "the", "dog-", "{dog}", "do\0g", "gr\udce9y dog", "x" * 61]
)
def test_class_words_that_can_not_be_used(class_word: str) -> None:
    for use in (check_class_word, photo_caption, captions_for):
        with pytest.raises(CaptionError):
            use(class_word)


def test_find_class_word() -> None:
    assert find_class_word("a hotdog, dogs, a dog-eared Dog.", "dog") == (28, 31)
    assert find_class_word("an old teddy  bear", "teddy bear") == (7, 18)
    with pytest.raises(CaptionError, match="'two dogs' mentions 'dog' 0 times"):
        find_class_word("two dogs", "dog")
    with pytest.raises(CaptionError, match="2 times"):
        find_class_word("a dog and a dog", "dog")


def test_a_caption_file(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("\ufeffa dog\r\n\n  the Dog in a café \n", encoding="utf-8")
    assert read_captions(tmp_path / "c.txt", "dog") == ("a dog", "the Dog in a café")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", r"c\.txt"),
        (b" \n\n", r"c\.txt"),
        (b"a dog\n\na cat\n", "line 3: .*'a cat'"),
        (b"a dog and a dog", "line 1: .* 2 times"),
        (b"a dog\na \xe9 dog", "line 2"),
        (b"a dog\n" * 200_000, "1,048,576"),
    ],
)
def test_caption_files_that_can_not_be_used(tmp_path: Path, content: bytes, named: str) -> None:
    (tmp_path / "c.txt").write_bytes(content)
    with pytest.raises(CaptionError, match=named):
        read_captions(tmp_path / "c.txt", "dog")


def test_a_missing_caption_file(tmp_path: Path) -> None:
    with pytest.raises(CaptionError, match=r"c\.txt"):
        read_captions(tmp_path / "c.txt", "dog")
