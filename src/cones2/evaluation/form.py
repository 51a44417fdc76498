"""The user study for people: a page that needs nothing but itself, and what their answers say.

The questions are those that the judge answers (arXiv:2305.19327, Table 2). Pictures stand in an order of chance and
carry no name, so that nobody can tell who drew what; a question is known by a hash alone.
"""

import base64
import csv
import hashlib
import html
import io
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cones2.captions import photo_caption
from cones2.errors import SettingsError
from cones2.evaluation.lines import PictureLine
from cones2.evaluation.measures import look_at
from cones2.evaluation.questions import kappa
from cones2.evaluation.run import PICTURES
from cones2.evaluation.scores import Scorer
from cones2.files import read_bounded
from cones2.photos import Photo, load_photos

QUESTIONS = 48
"""Of one person: about ten minutes."""
_LARGEST_ANSWERS = 2**20
_SIDE = 256  # pixels of what a person sees

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 52rem; padding: 0 1rem; }
fieldset { border: 1px solid #ccc; margin: 1rem 0; } img { width: 12rem; } .photos img { width: 6rem; }
label { margin-right: 2rem; } button { font-size: 1rem; }
"""
_SCRIPT = """
function save() {
  const lines = ["question,answer"];
  for (const each of document.querySelectorAll("fieldset")) {
    const chosen = each.querySelector("input:checked");
    if (!chosen) { each.scrollIntoView(); return; }
    lines.push(each.dataset.question + "," + chosen.value);
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\\n") + "\\n"], {type: "text/csv"}));
  link.download = "answers.csv";
  link.click();
}
"""


@dataclass(frozen=True)
class Question:
    """One question about one picture.

    Attributes:
        id: by which an answer names it.
        row: whose picture; not shown.
        picture: its hash.
        text: what is asked.
        subject: whose photos are shown beside it; "" for none.
        judged: the judge's answer.
    """

    id: str
    row: str
    picture: str
    text: str
    subject: str
    judged: bool


def questions_of(scorer: Scorer, lines: Iterable[PictureLine]) -> Iterator[Question]:
    """Yield the questions of pictures: of each subject whether it is this one, of each class whether it is there."""
    for line in lines:
        if not line.picture:
            continue
        combination = scorer.combination(line)
        seen, wanted = line.judged.seen(), scorer.wanted(combination, layout=line.layout)
        outcome = look_at(seen, wanted)
        words = [scorer.protocol.document.subjects[name].class_word for name in combination.subjects]
        told = zip(combination.subjects, words, outcome.identity.tolist(), outcome.told.tolist(), strict=True)
        for name, word, is_there in ((one, word, yes) for one, word, yes, is_told in told if is_told):
            asked = f"Does the picture show this very {word}?"
            yield _question(line, asked, name, judged=is_there)
        for word in dict.fromkeys(words):
            count, kind = words.count(word), scorer.judge.world.classes.index(word)
            found = int((seen.classes == kind).sum())
            mention = photo_caption(word).partition(" of ")[2] if count == 1 else f"exactly {count} of these: {word}"
            judged = found >= 1 if count == 1 else found == count
            yield _question(line, f"Does the picture show {mention}?", "", judged=judged)


def _question(line: PictureLine, text: str, subject: str, *, judged: bool) -> Question:
    named = hashlib.sha256(f"{line.row}|{line.case}|{text}|{subject}".encode()).hexdigest()[:16]
    return Question(named, line.row, line.picture, text, subject, judged)


def write_form(scorer: Scorer, lines: Sequence[PictureLine], folder: Path, *, seed: int = 0) -> str:
    """Return a page of 48 questions about pictures of a run that were kept, as many of each row.

    Raises:
        SettingsError: no picture was kept.
        PhotoError: one can't be read.
    """
    kept = [line for line in lines if (folder / PICTURES / f"{line.picture}.png").is_file()]
    if not kept:
        raise SettingsError(f"{folder} keeps no pictures: run again with pictures kept, into a new folder.")
    chosen = _drawn(list(questions_of(scorer, kept)), random.Random(seed))
    parts = [_asked(scorer, folder, question) for question in chosen]
    head = f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>Pictures</title><style>{_STYLE}</style>'
    told = (
        "<h1>Pictures</h1><p>Please answer every question with yes or no, without thinking for long. Then press the "
        "button, and send the file that it saves.</p>"
    )
    button = '<button type="button" onclick="save()">Save my answers</button>'
    return "\n".join([head, told, *parts, button, f"<script>{_SCRIPT}</script></html>\n"])


def _drawn(questions: Sequence[Question], chance: random.Random) -> list[Question]:
    """Draw the questions of a page, in turn from each row, and shuffle them."""
    by_row: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_row[question.row].append(question)
    for some in by_row.values():
        chance.shuffle(some)
    chosen: list[Question] = []
    while len(chosen) < QUESTIONS and any(by_row.values()):
        chosen += [some.pop() for some in by_row.values() if some]
    chosen = chosen[:QUESTIONS]
    chance.shuffle(chosen)
    return chosen


def _asked(scorer: Scorer, folder: Path, question: Question) -> str:
    (picture,) = load_photos([folder / PICTURES / f"{question.picture}.png"])
    photos = load_photos(scorer.protocol.photos(question.subject))[:3] if question.subject else ()
    answers = "".join(
        f'<label><input type="radio" name="{question.id}" value="{value}"> {value}</label>' for value in ("yes", "no")
    )
    return (
        f'<fieldset data-question="{question.id}">{_image(picture)}<p>{html.escape(question.text)}</p>'
        f'<p class="photos">{"".join(map(_image, photos))}</p>{answers}</fieldset>'
    )


def _image(photo: Photo) -> str:
    """Return a picture within the page, written anew, so that nothing but its pixels is there."""
    small, written = photo.image.copy(), io.BytesIO()
    small.thumbnail((_SIDE, _SIDE))
    small.save(written, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}">'


@dataclass(frozen=True)
class Study:
    """What people answered.

    Attributes:
        yes: the mean yes of each row over people's answers, 0 to 1.
        answers: how many.
        people: how many.
        agreement: Cohen's kappa of people's answers and the judge's.
    """

    yes: dict[str, float]
    answers: int
    people: int
    agreement: float


def read_answers(questions: Iterable[Question], files: Sequence[Path]) -> Study:
    """Score the files that pages saved, one of each person.

    Raises:
        SettingsError: one can't be read, has another question, or answers none.
    """
    known = {question.id: question for question in questions}
    by_row: dict[str, list[bool]] = defaultdict(list)
    said: list[bool] = []
    judged: list[bool] = []
    for path in files:
        for question, answer in _answers(path, known):
            by_row[question.row].append(answer)
            said.append(answer)
            judged.append(question.judged)
    if not said:
        raise SettingsError("got no answers: expected at least one file that the page saved.")
    means = {row: float(np.mean(each)) for row, each in sorted(by_row.items())}
    return Study(means, len(said), len(files), kappa(said, judged))


def _answers(path: Path, known: dict[str, Question]) -> Iterator[tuple[Question, bool]]:
    try:
        text = read_bounded(path, limit=_LARGEST_ANSWERS, error=SettingsError).decode("utf-8-sig")
        for row in csv.DictReader(io.StringIO(text)):
            yield known[row["question"]], {"yes": True, "no": False}[row["answer"]]
    except (UnicodeDecodeError, csv.Error, KeyError) as error:
        expected = "question,answer and then a question of this run with yes or no in each line"
        raise SettingsError(
            f"can't read {path} as answers: expected {expected}. Save it from the page again."
        ) from error
