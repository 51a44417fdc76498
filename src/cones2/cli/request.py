"""What `cones2 compose` is to draw: read before a model is opened, over a picture's record.

What takes long to import is imported where it is needed, so that mistakes in options are told before.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from cones2.cli.console import drawing
from cones2.cli.layout import Places
from cones2.cli.options import hint, number, open_model, read_residual, unique
from cones2.errors import LayoutError, ModelError, PictureError, ResidualError, ResidualMismatchError, SettingsError
from cones2.layout import Layout
from cones2.library import Library
from cones2.prompts import parse_prompt
from cones2.schedulers import make_scheduler as scheduler_of
from cones2.schedulers import scheduler_name
from cones2.shared import MOST_PICTURES, check_seed, threads
from cones2.subjects import Subject, check_mentioned

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from cones2.monitor import AttentionReading
    from cones2.pipeline import Cones2Pipeline
    from cones2.redraw import PictureRecord

_DEVICES = ("cuda", "mps", "cpu")
_WITH_PLACES = ("layout_scale", "layout_effect", "layout_levels", "layout_blocks", "guided_steps")
_ACTING = (*_WITH_PLACES, "preset", "weight_negative")


class Drawn(NamedTuple):
    """A picture, its seed, what it was before it was decoded, how it was made, and where attention went."""

    seed: int
    image: "Image"
    latents: "Tensor"
    record: dict[str, Any]
    attention: "tuple[AttentionReading, ...]"


@dataclass(frozen=True)
class SubjectOptions:
    """Texts of the options that name subjects, as the command line has them."""

    learned: Sequence[str] | None = None
    plain: Sequence[str] | None = None
    strengths: Sequence[str] | None = None
    during: Sequence[str] | None = None
    negatives: Sequence[str] | None = None

    def read(self, library: Library, made: "PictureRecord | None" = None) -> dict[str, Subject]:
        """Read the subjects, over those of a record."""
        named = [text if "=" in text else f"{text}={text}" for text in self.learned or ()]
        sources = unique("--subject", named, example="rex=rex.safetensors")
        named = [text if "=" in text else f"{text}={text}" for text in self.plain or ()]
        words = unique("--plain", named, example="cup=mug")
        for name in words.keys() & sources.keys():
            raise SettingsError(f"{name!r} is both a --subject and --plain: leave one out.")
        residuals = {name: read_residual(source, library) for name, source in sources.items()}
        subjects = {name: Subject(each.class_word, each) for name, each in residuals.items()}
        if made is not None:
            from cones2.redraw import recall_subjects

            lacking = {name: each for name, each in made.subjects.items() if name not in subjects}
            with hint(ResidualError, "On the command line: --subject NAME=FILE."):
                recalled = recall_subjects(made.model_copy(update={"subjects": lacking}), subjects)
            for name in made.subjects.keys() & subjects.keys():
                each = made.subjects[name]
                kept: dict[str, Any] = {"strength": each.strength, "during": each.during, "negative": each.negative}
                recalled[name] = replace(subjects[name], **kept)
            subjects = {**{name: recalled[name] for name in made.subjects}, **subjects, **recalled}
        subjects |= {name: Subject(word) for name, word in words.items()}
        for name, text in self._details("--strength", self.strengths, subjects, example="rex=0.8"):
            subjects[name] = replace(subjects[name], strength=number(f"--strength {name}", text))
        for name, text in self._details("--during", self.during, subjects, example="rex=0,0.6"):
            start, _, end = text.partition(",")
            part = (number(f"--during {name}", start), number(f"--during {name}", end))
            subjects[name] = replace(subjects[name], during=part)
        for name, text in self._details("--subject-negative", self.negatives, subjects, example="rex=grey"):
            subjects[name] = replace(subjects[name], negative=text)
        return subjects

    def _details(
        self, option: str, texts: Sequence[str] | None, subjects: Mapping[str, Subject], *, example: str
    ) -> Iterator[tuple[str, str]]:
        for name, text in unique(option, texts, example=example).items():
            taught = option == "--subject-negative" or (name in subjects and subjects[name].residual is not None)
            if name not in subjects or not taught:
                known = ", ".join(subjects) or "none"
                raise SettingsError(
                    f"{option} names {name!r}, which is no such subject; those that are given: {known}."
                )
            yield name, text


@dataclass(frozen=True, kw_only=True)
class Request:
    """Pictures to draw, checked as far as they can be without a model.

    Attributes:
        scheduler: its name; None is the record's, or the model's.
        keep: which picture of the record's batch is wanted; the others are drawn with it, since a batch moves the last
            bits. None is all.
    """

    prompt: str
    subjects: Mapping[str, Subject]
    layout: Layout | None
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    scheduler: str | None = None
    made: "PictureRecord | None" = None
    keep: int | None = None

    @classmethod
    def read(
        cls,
        prompt: str | None,
        made: "PictureRecord | None",
        subjects: Mapping[str, Subject],
        settings: Mapping[str, Any],
        *,
        seed: int | None,
        count: int | None,
    ) -> "Request":
        """Return what options ask for; a new prompt leaves out those of a picture's subjects that it does not name."""
        if made is None:
            if prompt is None:
                raise SettingsError("no prompt: give one, or a picture with --from.")
            seeds = _numbered(seed or 0, count)
            return cls(prompt=prompt, subjects=subjects, layout=None, settings=settings, seeds=seeds)
        if lacking := ", ".join([*made.inputs, *made.unrecorded]):
            raise PictureError(f"the picture was drawn with {lacking}, which it can't hold: use Cones2Pipeline.redraw.")
        call = made.arguments(subjects) | dict(settings)
        if prompt is not None and prompt != call["prompt"]:
            call["prompt"] = prompt
            old = made.subjects.keys() - {name for name in made.subjects if f"{{{name}}}" in prompt}
            call["subjects"] = {name: subject for name, subject in subjects.items() if name not in old}
            layout = call["layout"]
            call["layout"] = layout and Layout({n: each for n, each in layout.regions.items() if n not in old})
        batch: tuple[int, ...] = tuple(call.pop("seed", ()))
        keep: int | None = made.index
        del call["num_images_per_prompt"]
        if seed is not None or count is not None:
            first = seed if seed is not None else made.seed or 0
            batch, keep = _numbered(first, count), None
        if not batch:
            raise PictureError("the picture was drawn with generators: give --seed, or use Cones2Pipeline.redraw.")
        given = {name: call.pop(name) for name in ("prompt", "subjects", "layout")}
        return cls(**given, settings=call, seeds=batch, made=made, keep=keep)

    @classmethod
    def of_authors(
        cls, asked: Mapping[str, Any], settings: Mapping[str, Any], *, seed: int | None, count: int | None
    ) -> "Request":
        """Return what a config of the authors' script asks for, apart from what else is given."""
        call = {**asked, **settings}
        seeds = tuple(call.pop("seed"))
        if seed is not None or count is not None:
            seeds = _numbered(seed or 0, count)
        given = {name: call.pop(name) for name in ("prompt", "subjects", "layout")}
        return cls(**given, settings=call, seeds=seeds)

    def placed(self, places: Places, *, auto: bool) -> "Request":
        """Return the same with the layout that options make, over the record's."""
        words = {name: subject.class_word for name, subject in self.subjects.items()}
        parsed = parse_prompt(self.prompt, words)
        names = tuple(dict.fromkeys(mention.name for mention in parsed.mentions))
        check_mentioned(self.subjects, dict.fromkeys(names))
        aspect = (self.settings.get("width") or 1) / (self.settings.get("height") or 1)
        others = names if auto else ()
        layout = places.read(class_words=words, aspect=aspect, others=others, recorded=self.layout)
        for name in layout.names if layout else ():
            if name not in names:
                known = ", ".join(names) or "none"
                raise LayoutError(f"a place is for {name!r}, which the prompt does not name; it names: {known}.")
        for name in _WITH_PLACES if layout is None and self.made is None else ():
            if name in self.settings:
                option = f"--{name.replace('_', '-')}"
                raise SettingsError(
                    f"{option} says how a layout acts, and there is none: give places, or leave it out."
                )
        if self.scheduler is not None:
            scheduler_name(self.scheduler)
        if acting := {name: self.settings[name] for name in _ACTING if name in self.settings}:
            from cones2.run import LayoutSettings

            LayoutSettings(**acting)
        return replace(self, layout=layout)

    @property
    def count(self) -> int:
        """How many pictures it makes."""
        return len(self.seeds) if self.keep is None else 1

    def open(self, model: str | None, *, dtype: str | None = None, **options: Any) -> "Cones2Pipeline":
        """Open the model that is given, else the picture's with its scheduler, else `mini`."""
        import torch

        from cones2.redraw import check_pipeline, make_scheduler, warn_of_differences, with_scheduler

        made = self.made
        if made is None:
            pipe = open_model(model or "mini", dtype=dtype, **options)
        else:
            kind = made.device.split(":")[0]
            if options.get("device") is None and kind in _DEVICES and torch.get_device_module(kind).is_available():
                options["device"] = kind
            pipe = open_model(model or _trusted(made.model.name), dtype=dtype or made.dtype, **options)
            check_pipeline(made, pipe)
            warn_of_differences(made, pipe)
            pipe = with_scheduler(pipe, make_scheduler(made.scheduler, pipe.scheduler))
        return pipe

    def draw(
        self, pipe: "Cones2Pipeline", seeds: Sequence[int], *, what: str | None = None, attention: bool = False
    ) -> list[Drawn]:
        """Draw one batch under a bar that says `what`, else which seeds."""
        from cones2.redraw import with_scheduler

        first, last = seeds[0], seeds[-1]
        what = what or (f"drawing seed {first}" if len(seeds) == 1 else f"drawing seeds {first}-{last}")
        call: dict[str, Any] = {"subjects": self.subjects, "layout": self.layout, **self.settings}
        if self.scheduler is not None:
            pipe = with_scheduler(pipe, scheduler_of(self.scheduler, pipe.scheduler))
        with ExitStack() as stack:
            stack.enter_context(hint(ResidualMismatchError, "--force uses it all the same."))
            stack.enter_context(threads(self.made.threads) if self.made else ExitStack())
            call["callback_on_step_end"], latents = stack.enter_context(_watched(what))
            output = pipe(self.prompt, seed=list(seeds), measure_attention=attention, **call)
        readings = output.attention or [()] * len(seeds)
        rows = zip(seeds, output.images, latents[0].cpu(), output.records, readings, strict=True)
        drawn = [Drawn(*row) for row in rows]
        return drawn if self.keep is None else [drawn[self.keep]]


def _numbered(first: int, count: int | None) -> tuple[int, ...]:
    """Return the seeds of pictures that have numbers in a row; SettingsError where there are too many."""
    if (count or 1) > MOST_PICTURES:
        raise SettingsError(f"--count {count} is too many: expected at most {MOST_PICTURES}.")
    last = check_seed(first + (count or 1) - 1)
    return tuple(range(first, last + 1))


@contextmanager
def _watched(what: str) -> Iterator["tuple[Any, list[Tensor]]"]:
    """Show the steps of a drawing; the list holds the latents of the last one."""
    last: list[Tensor] = []
    with drawing(what) as show:

        def at_step_end(pipeline: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            last[:] = [tensors["latents"]]
            return show(pipeline, step, time, tensors)

        yield at_step_end, last


def _trusted(name: str) -> str:
    """Return the model that a picture names, if it is `mini` or on this machine: nobody's picture fetches a model."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        fetched = "/" in name and isinstance(try_to_load_from_cache(name, "model_index.json"), str)
    except HFValidationError:
        fetched = False
    if name == "mini" or fetched:
        return name
    raise ModelError(f"the picture was drawn on {name!r}: give that model, or another one, with --model.")
