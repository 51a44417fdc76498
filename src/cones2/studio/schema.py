"""What the studio's API takes and gives, as pydantic models; unknown keys are refused.

A layout is the library's own JSON, as `Layout.to_json` writes it. All texts are valid Unicode, all numbers finite.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from cones2.errors import is_unicode
from cones2.files import is_name, name_hint
from cones2.prompts import LONGEST_CLASS_WORD, LONGEST_PROMPT
from cones2.shared import LARGEST_SEED

MOST_SEEDS = 8
MOST_SUBJECTS = 64
MOST_STEPS = 1000

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Kind = Literal["draw", "learn", "push"]
WorkerState = Literal["starting", "ready", "restarting"]
FINAL = ("succeeded", "failed", "cancelled")


def _unicode(text: str) -> str:
    if not is_unicode(text):
        raise ValueError("it holds half a character: type it again")
    return text


def _name(text: str) -> str:
    if not is_name(text):
        raise ValueError(name_hint(text))
    return text


Text = Annotated[str, Field(max_length=LONGEST_PROMPT), AfterValidator(_unicode)]
Word = Annotated[str, Field(min_length=1, max_length=LONGEST_CLASS_WORD), AfterValidator(_unicode)]
Name = Annotated[str, Field(max_length=64), AfterValidator(_name)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Side = Annotated[int, Field(ge=16, le=4096)]
Scale = Annotated[float, Field(ge=0, le=100)]


class Strict(BaseModel):
    """The base of what clients send: nothing unknown, nothing converted, no infinities."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class SubjectUse(Strict):
    """A subject of a picture: taught (of the library or an example), or an untaught word that gets a place.

    Attributes:
        sha256: of the residual's file; null takes the one that has the name now.
    """

    name: Name
    source: Literal["library", "example", "word"]
    class_word: Word | None = None
    sha256: Sha256 | None = None
    strength: Annotated[float, Field(ge=-10, le=10)] = 1.0
    negative: Text = ""


class Request(Strict):
    """What a picture is asked with. `layout` is the library's layout JSON; `null` numbers are the model's own."""

    prompt: Text
    negative_prompt: Text = ""
    subjects: Annotated[list[SubjectUse], Field(max_length=MOST_SUBJECTS)] = []
    layout: dict[str, JsonValue] | None = None
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MOST_SEEDS)]
    num_inference_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 50
    guidance_scale: Scale | None = None
    layout_scale: Scale = 1.0
    width: Side | None = None
    height: Side | None = None
    preset: Literal["paper", "cones_v2"] = "paper"
    scheduler: Annotated[str, Field(max_length=60), AfterValidator(_unicode)] | None = None
    measure_attention: bool = False


class LearnRequest(Strict):
    """What a subject is learned with; the photos are in the job's folder."""

    name: Name
    class_word: Word
    recipe: Annotated[str, Field(max_length=20)] | None = None
    steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    seed: Seed = 0
    force_class: bool = False


class PushRequest(Strict):
    """Where a subject goes on the Hub, and the short name of its licence there."""

    repository: Annotated[str, Field(min_length=3, max_length=200), AfterValidator(_unicode)]
    private: bool = True
    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$")] = "other"


class NewName(Strict):
    """A subject's new name."""

    name: Name


class PictureChange(Strict):
    """What a person may change of a picture; what is not given stays."""

    starred: bool | None = None
    note: Annotated[str, Field(max_length=2000), AfterValidator(_unicode)] | None = None


class PromptCheck(Strict):
    """A prompt to check: the class words of its subjects (null where unknown), and its layout's JSON."""

    prompt: Text
    subjects: Annotated[dict[str, Text | None], Field(max_length=MOST_SUBJECTS)] = {}
    layout: dict[str, JsonValue] | None = None


class NamedWord(Strict):
    """A subject to place, and its class word."""

    name: Name
    class_word: Word


class Suggestion(Strict):
    """Subjects to place in a picture of this size."""

    subjects: Annotated[list[NamedWord], Field(min_length=1, max_length=MOST_SUBJECTS)]
    width: Side
    height: Side


class JobError(BaseModel):
    """Why a job failed."""

    type: str
    title: str
    detail: str


class Job(BaseModel):
    """A job of the queue.

    Attributes:
        position: in the queue, from 1; null when it does not wait.
        eta_s: seconds until its end, by the speed measured so far; null where nothing was measured.
        attempt: from 1; it grows when the server or the worker died over it.
        mine: whether this client queued it, and so may cancel it.
        losses: `[step, loss]`, at most 200 of them.
        likenesses: `[step, likeness]` of the pictures that a learning draws, -1 to 1; none where nothing measures it.
        kept: the step that a learning kept; null before its end.
        preview: the address of the latest preview.
    """

    id: str
    kind: Kind
    state: State
    position: int | None
    eta_s: float | None
    step: int
    steps: int
    attempt: int
    created: str
    started: str | None
    finished: str | None
    mine: bool
    request: dict[str, Any]
    results: list[str]
    subject: str | None
    losses: list[tuple[int, float]]
    likenesses: list[tuple[int, float]]
    kept: int | None
    preview: str | None
    warnings: list[str]
    error: JobError | None


class Jobs(BaseModel):
    """Jobs, the newest first."""

    jobs: list[Job]


class Subject(BaseModel):
    """A taught subject: one of the library, or an example that comes with cones2."""

    name: str
    class_word: str | None
    source: Literal["library", "example"]
    sha256: str | None
    bytes: int
    fits: bool
    problem: str | None
    learned_on: str | None
    thumb: str | None
    created: str | None


class Subjects(BaseModel):
    """The library's subjects, then the examples."""

    subjects: list[Subject]


class Binned(BaseModel):
    """A subject in the bin."""

    id: str
    name: str
    class_word: str | None
    deleted: str


class Bin(BaseModel):
    """Subjects that were deleted, the newest first."""

    subjects: list[Binned]


class Emptied(BaseModel):
    """How many pictures and subjects went for good."""

    pictures: int
    subjects: int


class Attention(BaseModel):
    """Where a picture's attention to a subject went.

    Attributes:
        share: the part of the picture that its region covers; null without a region.
        inside: the part of its attention that fell into its region; even attention would be `share`.
    """

    name: str
    share: float | None
    inside: float | None


class Picture(BaseModel):
    """A picture of the gallery."""

    id: str
    job: str
    created: str
    width: int
    height: int
    seed: int
    prompt: str
    subjects: list[str]
    starred: bool
    note: str
    deleted: bool
    attention: list[Attention]
    layout: dict[str, Any] | None
    file: str
    thumb: str


class Pictures(BaseModel):
    """A page of the gallery, the newest first; `next` is the cursor of the page after it."""

    pictures: list[Picture]
    next: str | None


class PhotoDoubts(BaseModel):
    """What was found of one photo."""

    name: str
    ok: bool
    width: int | None = None
    height: int | None = None
    doubts: list[str]
    preview: str | None = None


class PhotosChecked(BaseModel):
    """What was found of each photo, and of all together."""

    photos: list[PhotoDoubts]
    doubts: list[str]


class Span(BaseModel):
    """Where a subject stands in the text that the model reads, in characters."""

    name: str
    start: int
    end: int


class PromptProblem(BaseModel):
    """What is doubtful about a prompt."""

    kind: Literal["unknown_name", "no_place", "no_mention", "unknown_word", "too_long", "other"]
    name: str | None
    text: str


class PromptChecked(BaseModel):
    """The text that the model reads; `tokens` and `limit` are null while the model opens."""

    text: str
    tokens: int | None
    limit: int | None
    spans: list[Span]
    problems: list[PromptProblem]


class Suggested(BaseModel):
    """A layout's JSON."""

    layout: dict[str, Any]


class Missing(BaseModel):
    """A subject that a picture was drawn with and that is not here."""

    name: str
    sha256: str | None
    class_word: str | None


class RequestRead(BaseModel):
    """What a file says of how a picture was asked for: a `Request`, or some of its fields."""

    request: dict[str, Any]
    missing: list[Missing]
    notes: list[str]


class Health(BaseModel):
    """Whether the model is there."""

    status: Literal["ok", "starting", "restarting"]
    version: str


class FieldProblem(BaseModel):
    """What is wrong with one field."""

    path: str
    got: str
    expected: str
    hint: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] = []
