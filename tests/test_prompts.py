"""Placeholders become class words and exact token spans, on the real CLIP tokenizer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cones2.captions import find_class_word
from cones2.errors import CaptionError, Cones2Warning, PromptError
from cones2.prompts import LONGEST_PROMPT, Mention, ParsedPrompt, parse_prompt, token_span, tokenize_prompt
from cones2.subjects import Subject
from families import t5_tokenizer

WORDS = {"rex": "dog", "ted": "teddy bear", "cup": "mug"}


@pytest.fixture(scope="module")
def tokenizer(tiny: Any) -> Any:
    return tiny.tokenizer


# Parsing


def test_names_become_class_words() -> None:
    parsed = parse_prompt("a {rex} and a {ted}, with a {cup}", WORDS)
    assert parsed.text == "a dog and a teddy bear, with a mug"
    assert parsed.mentions == (Mention("rex", 2, 5), Mention("ted", 12, 22), Mention("cup", 31, 34))


def test_two_subjects_of_one_class_stay_apart() -> None:
    parsed = parse_prompt("{rex} and {fido}", {"rex": "dog", "fido": "dog"})
    assert parsed.text == "dog and dog"
    assert [mention.name for mention in parsed.mentions] == ["rex", "fido"]


def test_a_subject_may_be_mentioned_twice() -> None:
    assert len(parse_prompt("{rex}, {rex}", {"rex": "dog"}).mentions) == 2


def test_a_prompt_without_subjects_is_itself() -> None:
    assert parse_prompt("a dog-sized cat's 2 balls", {}) == ParsedPrompt("a dog-sized cat's 2 balls", ())


def test_a_prompt_has_an_end() -> None:
    assert parse_prompt("a" * LONGEST_PROMPT, {}).text == "a" * LONGEST_PROMPT
    with pytest.raises(PromptError, match="the prompt has 10,001 characters; expected at most 10,000"):
        parse_prompt("{rex} " * 1666 + "     ", {"rex": "dog"})


def test_punctuation_may_touch() -> None:
    assert parse_prompt('({rex}), {rex}. {rex}! "{rex}"', {"rex": "dog"}).text == '(dog), dog. dog! "dog"'


@pytest.mark.parametrize(
    "prompt", ["{rex}s", "{rex}-like", "my{rex}", "2{rex}", "{rex}2", "{rex}'s", "'{rex}", "{rex}’s"]
)
def test_text_that_touches(prompt: str) -> None:
    with pytest.raises(PromptError, match=r"touches \{rex\}: that would make another word of it. Put a space"):
        parse_prompt(prompt, {"rex": "dog"})


def test_an_accent_that_touches() -> None:
    with pytest.raises(PromptError, match=r"touches \{rex\}"):
        parse_prompt("{rex}\u0301", {"rex": "dog"})


def test_placeholders_that_touch() -> None:
    with pytest.raises(PromptError, match=r"'\{' touches \{rex\}"):
        parse_prompt("{rex}{ted}", WORDS)


def test_an_empty_placeholder() -> None:
    with pytest.raises(PromptError, match=r"empty placeholder \{\} at character 2: write a subject's name in it"):
        parse_prompt("a {}", WORDS)


def test_an_unknown_name() -> None:
    with pytest.raises(
        PromptError, match=r"no subject is called 'max', as the prompt has it; the subjects are: rex, ted, cup\."
    ):
        parse_prompt("a {max}", WORDS)
    with pytest.raises(PromptError, match=r"the subjects are: none\."):
        parse_prompt("a {max}", {})


@pytest.mark.parametrize(("prompt", "brace", "position"), [("a {rex", "{", 2), ("rex} b", "}", 3), ("{rex} {", "{", 6)])
def test_an_unmatched_brace(prompt: str, brace: str, position: int) -> None:
    with pytest.raises(PromptError, match=f"unmatched '{brace}' at character {position}: braces are only for subjects"):
        parse_prompt(prompt, {"rex": "dog"})


def test_a_subject_need_not_be_mentioned() -> None:
    assert [mention.name for mention in parse_prompt("{rex} and {ted}", WORDS).mentions] == ["rex", "ted"]


# Tokens


def test_spans_count_the_start_token(tokenizer: Any) -> None:
    tokenized = tokenize_prompt(parse_prompt("a {ted} and a {ted}", {"ted": "cat"}), tokenizer)
    ids = tokenized.input_ids[0].tolist()
    assert tokenized.input_ids.shape == (1, 77)
    assert ids == tokenizer("a cat and a cat", padding="max_length")["input_ids"]
    first, second = tokenized.spans["ted"]
    assert ids[slice(*first)] == ids[slice(*second)] == tokenizer("cat", add_special_tokens=False)["input_ids"]
    assert first[0] == 2
    assert second[0] == first[1] + 2


def test_token_span_of_a_phrase(tokenizer: Any) -> None:
    text = "a big teddy bear"
    start, stop = token_span(tokenizer, text, 6, 16)
    assert tokenizer.decode(tokenizer(text)["input_ids"][start:stop]).strip() == "teddy bear"


def test_a_part_of_a_token_has_no_span(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="'an' shares a token with its neighbours in 'and': put spaces around it"):
        token_span(tokenizer, "and", 0, 2)


def test_nothing_has_no_span(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="the tokenizer sees nothing in ' ': choose another class word"):
        token_span(tokenizer, "a  b", 2, 3)


def test_other_tokens_than_alone(tokenizer: Any) -> None:
    glued = ParsedPrompt("dogs", (Mention("rex", 0, 3),))
    with pytest.raises(
        PromptError, match=r"'dog' gets other tokens in 'dogs' than alone, so \{rex\} would be another word: put"
    ):
        tokenize_prompt(glued, tokenizer)


def test_a_subject_that_would_be_cut_off(tokenizer: Any) -> None:
    count = len(tokenizer("a " * 80 + "dog")["input_ids"])
    with pytest.raises(
        PromptError, match=rf"has {count} tokens .* window holds 77: \{{rex\}} would be cut off. Shorten"
    ):
        tokenize_prompt(parse_prompt("a " * 80 + "{rex}", {"rex": "dog"}), tokenizer)


def test_only_a_later_mention_is_cut_off(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="would be cut off"):
        tokenize_prompt(parse_prompt("{rex} " + "a " * 80 + "{rex}", {"rex": "dog"}), tokenizer)


def test_other_text_is_cut_with_a_warning(tokenizer: Any) -> None:
    with pytest.warns(Cones2Warning, match="window holds 77: its last 6 tokens are not read"):
        tokenized = tokenize_prompt(parse_prompt("{rex} " + "a " * 80, {"rex": "a"}), tokenizer)
    assert tokenized.input_ids.shape == (1, 77)
    assert tokenized.spans == {"rex": ((1, 2),)}
    with pytest.warns(Cones2Warning, match="its last token is not read"):
        tokenize_prompt(parse_prompt("{rex} " + "a " * 75, {"rex": "a"}), tokenizer)


@pytest.mark.parametrize("before", range(70, 77))
def test_the_window_is_used_to_its_last_place(tokenizer: Any, before: int) -> None:
    parsed = parse_prompt("a " * before + "{rex}", {"rex": "a"})
    if before + 1 <= 75:
        span = tokenize_prompt(parsed, tokenizer).spans["rex"][0]
        assert span == (before + 1, before + 2)
    else:
        with pytest.raises(PromptError, match="would be cut off"):
            tokenize_prompt(parsed, tokenizer)


# Weights


@pytest.mark.parametrize(
    "prompt",
    [
        "a (dog:1.2)",
        "a ({rex}:1.2)",
        "(a big dog : .5 )",
        "((dog))",
        "(((dog)))",
        "a [dog]",
        "[cat:dog:0.5]",
        "(fog:-1)",
    ],
)
def test_weights_are_refused(prompt: str) -> None:
    with pytest.raises(PromptError, match="looks like a weight") as caught:
        parse_prompt(prompt, {"rex": "dog"})
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "prompt",
    [
        "a dog (my own)",
        "a dog (my own (old)) dog",
        "(a (dog) and a (cat))",
        "a clock (at 10:30)",
        "a film (16:9)",
        "a car (model T: 1908)",
        "a face :) or :(",
        "a dog: 1.2 m",
        r"a back\slash",
        "()",
        "[]",
    ],
)
def test_plain_parentheses_are_text(prompt: str) -> None:
    assert parse_prompt(prompt, {}).text == prompt


def test_a_bracket_after_a_backslash_is_text_and_the_backslash_is_not() -> None:
    assert parse_prompt(r"a shop, \[open\], \(dog:1.2\) \\ \n", {}).text == r"a shop, [open], (dog:1.2) \\ \n"
    parsed = parse_prompt(r"\[a {rex} \(old\)\] and a {rex}", {"rex": "dog"})
    assert parsed.text == "[a dog (old)] and a dog"
    assert [parsed.text[mention.start : mention.end] for mention in parsed.mentions] == ["dog", "dog"]


# Any prompt

filler = st.text(st.characters(exclude_characters="{}[](", exclude_categories=["Cs"]), max_size=12)
class_word = st.sampled_from(["cat", "teddy bear", "dog", "sunglasses", "mug"])


@given(
    st.lists(st.tuples(filler, st.sampled_from("abc")), min_size=1, max_size=4), st.tuples(*[class_word] * 3), filler
)
def test_spans_hold_the_class_words_tokens(
    tokenizer: Any, parts: list[tuple[str, str]], words: tuple[str, str, str], end: str
) -> None:
    class_words = dict(zip("abc", words, strict=True))
    template = "".join(f"{text} {{{name}}} " for text, name in parts) + end
    parsed = parse_prompt(template, class_words)
    whole = tokenizer(parsed.text)["input_ids"]
    if len(whole) > 77:
        return
    tokenized = tokenize_prompt(parsed, tokenizer)
    ids = tokenized.input_ids[0].tolist()
    assert ids[: len(whole)] == whole
    assert sum(map(len, tokenized.spans.values())) == len(parts)
    for name, spans in tokenized.spans.items():
        alone = tokenizer(class_words[name], add_special_tokens=False)["input_ids"]
        for start, stop in spans:
            assert ids[start:stop] == alone
            assert tokenizer.decode(ids[start:stop]).strip() == class_words[name]


def test_half_an_emoji_is_no_text() -> None:
    for broken in ("a dog \ud83d", "a dog \udce9"):
        with pytest.raises(PromptError, match="half a character"):
            parse_prompt(broken, {})
        with pytest.raises(PromptError, match="half a character"):
            Subject("dog", negative=broken)
        with pytest.raises(CaptionError, match="half a character"):
            find_class_word(f"a dog {broken}", "dog")
        with pytest.raises(CaptionError, match="marks"):
            Subject(f"dog{broken}dog")


@given(st.text(max_size=30))
def test_any_template_parses_or_is_a_prompt_error(template: str) -> None:
    try:
        parsed = parse_prompt(template, {"a": "dog"})
    except PromptError:
        return
    assert [parsed.text[mention.start : mention.end] for mention in parsed.mentions] == ["dog"] * len(parsed.mentions)


def test_the_spaces_before_t5_s_tokens_are_no_neighbours() -> None:
    parsed = parse_prompt("a {rex} by a {ted}", {"rex": "cat", "ted": "dog"})
    tokens = tokenize_prompt(parsed, t5_tokenizer(), window=32)
    for name, word in (("rex", "cat"), ("ted", "dog")):
        ((start, stop),) = tokens.spans[name]
        assert str(t5_tokenizer().decode(tokens.input_ids[0, start:stop])).strip() == word
