"""The run: learn, draw, judge and write down, for each row and each combination of a protocol.

It may be ended at any moment and run again: what is written is not done again, and what a combination needed is learned
again only where its pictures were not all drawn. One process at a time writes to a folder.
"""

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from cones2.baselines.base import Draw, Learned, Lesson, Rival
from cones2.batch.plan import weights_of
from cones2.errors import LearningError, OutputError, SettingsError
from cones2.evaluation.cases import Case, cases
from cones2.evaluation.identifiers import Identifiers, LearningIds
from cones2.evaluation.judging import NOTHING, judge_pictures
from cones2.evaluation.lines import LearnedLine, PictureLine, RowLines, alone
from cones2.evaluation.protocol import Protocol, Row, Tier
from cones2.files import make_folder, read_bounded, write_atomically
from cones2.judge import Judge
from cones2.photos import Photo, load_photos
from cones2.pipeline import Cones2Pipeline
from cones2.schedulers import make_scheduler

PICTURES = "pictures"
"""The folder of pictures that are kept."""
_LARGEST_LEARNED = 2**34

Priors = Callable[[Rival, Cones2Pipeline, str], Sequence[Image]]
"""From a rival, a pipeline and a class word, pictures of the class by the model itself, if the rival uses any."""
MakeRival = Callable[[Row], Rival]
"""From a protocol's row, what implements it."""


@dataclass(frozen=True)
class Progress:
    """Something is written down: so many of a row's pictures are done."""

    row: str
    combination: str
    done: int
    total: int


@dataclass(frozen=True, eq=False)
class Bench:
    """What an evaluation works with.

    Attributes:
        protocol: what to do.
        tier: how much of it.
        folder: where the results are.
        pipeline: the backbone, with the protocol's scheduler.
        weights: what identifies it.
        judge: of the pictures.
        photos: of each subject.
        make_rival: of a row.
        priors: of a class word; None where no rival wants any.
        keeps_pictures: whether they are written as `pictures/HASH.png`, for people to look at.
    """

    protocol: Protocol
    tier: Tier
    folder: Path
    pipeline: Cones2Pipeline
    weights: str
    judge: Judge
    photos: Mapping[str, tuple[Photo, ...]]
    make_rival: MakeRival
    priors: Priors | None = None
    keeps_pictures: bool = False


def open_bench(
    protocol: Protocol,
    tier: Tier,
    folder: Path,
    judge: Judge,
    make_rival: MakeRival,
    *,
    priors: Priors | None = None,
    keeps_pictures: bool = False,
) -> Bench:
    """Open a protocol's model as it says that pictures are drawn, on the CPU in float32; see `Bench`.

    Raises:
        ModelError, SettingsError: the model or the scheduler can't be used.
    """
    pipeline = Cones2Pipeline.from_pretrained(protocol.document.model, device="cpu", dtype="float32")
    pipeline.scheduler = make_scheduler(protocol.document.drawing.scheduler, pipeline.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    photos = {name: load_photos(protocol.photos(name)) for name in protocol.document.subjects}
    weights = weights_of(protocol.document.model)
    return Bench(protocol, tier, folder, pipeline, weights, judge, photos, make_rival, priors, keeps_pictures)


def run(bench: Bench, only: Sequence[str] = ()) -> Iterator[Progress]:
    """Do what is left of a tier, row by row; `only` these rows, if there are any.

    Raises:
        SettingsError: there is no such row, the folder has results of another protocol, or is at work already.
        Cones2Error: of the model, photos and rivals.
    """
    rows = bench.protocol.rows(bench.tier)
    if unknown := set(only) - {row.name for row in rows}:
        raise SettingsError(f"no rows {sorted(unknown)}: expected some of {', '.join(row.name for row in rows)}.")
    make_folder(bench.folder)
    with alone(bench.folder):
        for row in rows:
            if not only or row.name in only:
                yield from _RowRun(bench, row).run()


def picture_hash(image: Image) -> str:
    """Return the hash of a picture's pixels, by which it is named."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def keep_pictures(folder: Path, images: Sequence[Image]) -> None:
    """Write pictures into the folder of a run, each named by its hash, and so without a hint of who drew it.

    Raises:
        OutputError: they can't be written.
    """
    make_folder(folder / PICTURES)
    for image in images:
        content = io.BytesIO()
        image.save(content, "PNG")
        write_atomically(folder / PICTURES / f"{picture_hash(image)}.png", content.getvalue())


class _RowRun:
    """One row: what is done of it, and what is learned for it."""

    def __init__(self, bench: Bench, row: Row) -> None:
        self._bench, self._row = bench, row
        self._rival = bench.make_rival(row)
        self._ids = Identifiers(bench.protocol, row, self._rival, bench.photos, bench.weights)
        self._lines = RowLines(bench.folder / "rows", row.name)
        self._lines.cut_off_torn_line()
        self._done: set[str] = set()
        self._told: set[str] = set()
        for line in self._lines:
            if line.protocol != bench.protocol.sha256:
                raise SettingsError(f"{bench.folder} has results of another protocol: take another folder.")
            (self._told if isinstance(line, LearnedLine) else self._done).add(
                line.id if isinstance(line, LearnedLine) else line.case
            )

    def run(self) -> Iterator[Progress]:
        wanted = [
            (combination, list(cases(self._bench.protocol, self._row, combination, self._bench.tier)))
            for combination in self._bench.protocol.combinations(self._bench.tier)
            if len(combination.subjects) <= self._row.subjects
        ]
        total, done = sum(len(case.seeds) for _, some in wanted for case in some), 0
        for combination, some in wanted:
            ids = self._ids.learning(combination)
            left = [case for case in some if not self._done.issuperset(self._ids.pictures(case))]
            done += sum(len(case.seeds) for case in some) - sum(len(case.seeds) for case in left)
            for case in self._drawn(left, ids) if left else ():
                done += len(case.seeds)
                yield Progress(self._row.name, combination.name, done, total)

    def _drawn(self, left: Sequence[Case], ids: LearningIds) -> Iterator[Case]:
        """Learn what pictures need, draw them, and yield each case when it is written down."""
        try:
            learned = [self._learned(subjects, each) for subjects, each in ids.items()]
        except LearningError:  # told in a line: what fails counts as pictures of nothing
            for case in left:
                self._write(case, [None] * len(case.seeds), 0.0)
                yield case
            return
        together = learned[0] if len(learned) == 1 else self._rival.combine(self._bench.pipeline, learned)
        with self._rival.drawing(self._bench.pipeline, together) as draw:
            for case in left:
                began = time.perf_counter()
                images = self._draw(draw, case)
                self._write(case, images, (time.perf_counter() - began) / len(images))
                yield case
        if self._rival.scope == "set":  # no other combination needs it, and it may be as large as the model
            for each in ids.values():
                self._file(each).unlink(missing_ok=True)

    def _draw(self, draw: Draw, case: Case) -> list[Image]:
        how = self._bench.protocol.document.drawing
        size = {} if how.side is None else {"height": how.side, "width": how.side}
        output = draw(
            case.text,
            case.combination.places if case.layout else None,
            seed=list(case.seeds),
            num_inference_steps=how.num_inference_steps,
            guidance_scale=how.guidance_scale,
            **size,
        )
        return list(output.images)

    def _write(self, case: Case, images: Sequence[Image | None], seconds: float) -> None:
        drawn = [image for image in images if image is not None]
        if self._bench.keeps_pictures:
            keep_pictures(self._bench.folder, drawn)
        judged = iter(judge_pictures(self._bench.judge, drawn) if drawn else ())
        self._lines.append(
            *(
                PictureLine(
                    protocol=self._bench.protocol.sha256,
                    row=self._row.name,
                    case=each,
                    combination=case.combination.name,
                    prompt=case.prompt,
                    number=number,
                    layout=case.layout,
                    picture="" if image is None else picture_hash(image),
                    seconds=round(seconds, 3),
                    judged=NOTHING if image is None else next(judged),
                )
                for each, number, image in zip(self._ids.pictures(case), case.numbers, images, strict=True)
            )
        )

    def _learned(self, subjects: tuple[str, ...], learning: str) -> Learned:
        """Return what is learned of subjects, from its file or anew."""
        path = self._file(learning)
        if path.exists() and learning in self._told:  # what it cost is nowhere else
            return self._rival.load(read_bounded(path, limit=_LARGEST_LEARNED, error=OutputError))
        began, steps = time.perf_counter(), 0
        try:
            for step in self._rival.learn(self._bench.pipeline, self._material(subjects), seed=self._seed):
                steps = step.steps
            learned = step.learned
        except LearningError as error:
            self._tell(learning, subjects, 0, steps, time.perf_counter() - began, str(error))
            raise
        seconds, content = time.perf_counter() - began, learned.to_bytes()
        self._tell(learning, subjects, len(content), steps, seconds, "")
        make_folder(path.parent)
        write_atomically(path, content)
        return learned

    def _tell(self, learning: str, subjects: Sequence[str], size: int, steps: int, seconds: float, failed: str) -> None:
        if learning in self._told:
            return
        self._told.add(learning)
        about = {"protocol": self._bench.protocol.sha256, "row": self._row.name, "id": learning}
        told = {"subjects": list(subjects), "bytes": size, "steps": steps, "seconds": round(seconds, 2)}
        self._lines.append(LearnedLine.model_validate(about | told | {"failed": failed[:500]}))

    def _material(self, subjects: Sequence[str]) -> dict[str, Lesson]:
        bench, entries = self._bench, self._bench.protocol.document.subjects
        return {
            name: Lesson(
                bench.photos[name],
                entries[name].class_word,
                bench.priors(self._rival, bench.pipeline, entries[name].class_word) if bench.priors else (),
            )
            for name in subjects
        }

    @property
    def _seed(self) -> int:
        return self._bench.protocol.document.seed

    def _file(self, learning: str) -> Path:
        return self._bench.folder / "learned" / f"{learning}.safetensors"
