"""Where a subject's tokens stand in T5's text and in a chat, also where the text is cut."""

from typing import Any

import pytest
import torch

from cones2.conditioning import conditioned
from cones2.errors import Cones2Warning, PromptError, ResidualMismatchError
from cones2.prompts import in_chat, parse_prompt, tokenize_prompt
from families import JOINT, qwen_tokenizer, t5_tokenizer
from subjects_for_tests import subjects_for, with_own_scheduler

pytestmark = pytest.mark.joint_attention

TEMPLATES = ("{rex} at sea", "a {rex} and a cup", "red, {rex}", "a {rex} on a {rex}", "({rex})")
WORDS = ("dog", "teapot", "teddy bear", "zebra")
LONG = " and a hat on the beach" * 30


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("template", TEMPLATES[:4])
@pytest.mark.parametrize("word", WORDS)
def test_spans_in_t5s_text(side: str, template: str, word: str) -> None:
    """At the start, in the middle, behind a comma, twice, and words of one piece, two, and one for each letter."""
    tokenizer = t5_tokenizer()
    tokenizer.padding_side = side
    found = tokenize_prompt(parse_prompt(template, {"rex": word}), tokenizer, window=64)
    assert len(found.spans["rex"]) == template.count("{rex}")
    for start, stop in found.spans["rex"]:
        assert str(tokenizer.decode(found.input_ids[0, start:stop])).strip() == word
        assert tokenizer.pad_token_id not in found.input_ids[0, start:stop].tolist()


def test_words_in_pieces() -> None:
    tokenizer = t5_tokenizer()
    counts = {word: len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in WORDS}
    assert counts["dog"] == 1
    assert counts["teddy bear"] == 2
    assert counts["teapot"] > 1
    assert counts["zebra"] > 2


@pytest.mark.parametrize("kind", ["t5", "chat", "chat, unpadded"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_text_that_is_cut_keeps_its_subjects_or_is_refused(kind: str, side: str) -> None:
    tokenizer: Any = t5_tokenizer() if kind == "t5" else qwen_tokenizer()
    tokenizer.padding_side = side

    def tokenized(template: str) -> Any:
        prompt = parse_prompt(template, {"rex": "teapot"})
        prompt = prompt if kind == "t5" else in_chat(prompt, tokenizer, thinking=True)
        return tokenize_prompt(prompt, tokenizer, window=48, is_unpadded=kind.endswith("unpadded"))

    with pytest.warns(Cones2Warning, match="the model's window holds 48"):
        found = tokenized("a {rex}" + LONG)
    assert found.input_ids.shape == (1, 48)
    ((start, stop),) = found.spans["rex"]
    assert str(tokenizer.decode(found.input_ids[0, start:stop])).strip() == "teapot"
    with pytest.raises(PromptError, match=r"\{rex\} would be cut off"):
        tokenized("a hat" + LONG + " and a {rex}")


@pytest.mark.parametrize("name", JOINT)
def test_a_residual_stands_at_its_tokens_in_a_text_that_is_cut(opened: dict[str, Any], name: str) -> None:
    pipeline = with_own_scheduler(opened[name])
    options: dict[str, Any] = {"max_sequence_length": 64}
    subjects = {"rex": subjects_for(pipeline)["rex"]}
    long = " and a hat on the beach" * 20
    found = []
    for prompt, given in (("a {rex}", subjects), ("a cat", {})):
        with (
            pytest.warns(Cones2Warning, match="window holds"),
            conditioned(pipeline, prompt + long, subjects=given, **options) as inputs,
        ):
            found.append((inputs["prompt_embeds"][0].clone(), inputs.run.spans.get("rex", ())))
    (taught, spans), (plain, _) = found
    moved = (taught - plain).any(1)
    assert int(moved.sum()) == sum(stop - start for start, stop in spans)
    assert all(bool(moved[start:stop].all()) for start, stop in spans)
    assert len(moved) == {"sd3": 77 + 64}.get(name, 64)
    with (
        pytest.raises(PromptError, match="cut off"),
        conditioned(pipeline, f"a hat{long} and a {{rex}}", subjects=subjects, **options),
    ):
        pass


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("template", TEMPLATES[:4])
def test_spans_in_the_text_of_each_family(opened: dict[str, Any], name: str, template: str) -> None:
    """Where the residual was added, the same words without it differ, and nowhere else."""
    pipeline = with_own_scheduler(opened[name])
    if template.startswith("{rex}") and name in ("z_image", "klein"):  # the tiny vocabulary has " cat" alone
        with pytest.raises(ResidualMismatchError, match="this model makes 3"):
            conditioned(pipeline, template, subjects={"rex": subjects_for(pipeline)["rex"]}).__enter__()
        return
    with conditioned(pipeline, template, subjects={"rex": subjects_for(pipeline)["rex"]}) as inputs:
        taught, spans = inputs["prompt_embeds"][0].clone(), inputs.run.spans["rex"]
    with conditioned(pipeline, template.replace("{rex}", "cat")) as inputs:
        moved = (taught - inputs["prompt_embeds"][0]).any(1)
    rows = torch.zeros(len(moved), dtype=torch.bool)
    for start, stop in spans:
        rows[start:stop] = True
    assert torch.equal(moved, rows)
    assert len(spans) == template.count("{rex}") * (2 if name == "sd3" else 1)
