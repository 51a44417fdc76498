"""`cones2 learn`: a residual from photos."""

import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from cones2.cli import options as opt
from cones2.cli.check import Masks, Photos
from cones2.cli.console import follow, print_json, say, waiting
from cones2.cli.options import MODEL, hint, open_model, option, read_seed
from cones2.errors import (
    CaptionError,
    Cones2Warning,
    LearningError,
    LibraryError,
    OutputError,
    PhotoError,
    SettingsError,
    counted,
    first_line,
)

_INSIST = "--force learns a class word that the model does not know."
_PREVIEWS = "Previews"
_RECIPES = "paper, mini, direct or a .toml file; default: what suits the model."
_CLIP = "Measure them by the CLIP model in this folder; those of mini are measured by its judge."
_PATIENCE = "Stop after N previews that are no more like the photos, and keep the best."
Force = Annotated[bool, option("--force", "Learn also a class word that the model does not know.")]
SaveMemory = Annotated[bool, option("--save-memory", "Learn in less GPU memory; each step takes longer.", panel=MODEL)]


def learn(
    photos: Photos,
    class_word: Annotated[str, option("--class", "What it is, in a word or two.", "WORD")],
    name: Annotated[str | None, option("--name", "Keep it in your library under this name.", "NAME")] = None,
    out: Annotated[Path | None, option("--out -o", "Write it to this .safetensors file.", "FILE")] = None,
    model: opt.Model = "mini",
    recipe: Annotated[str | None, option("--recipe", _RECIPES, "NAME_OR_TOML")] = None,
    steps: Annotated[int | None, option("--steps", "How many; default: the recipe's.", "N")] = None,
    seed: Annotated[
        int, option("--seed", "For all that is drawn by chance: a number, or random.", "N", parser=read_seed)
    ] = 0,
    resume: Annotated[bool, option("--resume", "Go on where an interrupted learning stopped.")] = False,
    masks: Masks = None,
    captions: Annotated[Path | None, option("--captions", "Your own, one a line, each with WORD.", "FILE")] = None,
    preview: Annotated[
        int | None, option("--preview", "Draw it every N steps, into NAME-previews.", "N", _PREVIEWS, min=1)
    ] = None,
    clip: Annotated[Path | None, option("--clip", _CLIP, "DIR", _PREVIEWS)] = None,
    patience: Annotated[int | None, option("--patience", _PATIENCE, "N", _PREVIEWS, min=1)] = None,
    model_config: opt.ModelConfig = None,
    save_memory: SaveMemory = False,
    force: Force = False,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    compile: opt.Compile = False,  # noqa: A002  # the library's word
    library: opt.Library = None,
    replace: opt.Replace = False,
    as_json: opt.Json = False,
) -> None:
    """Learn a subject from 3 to 5 photos of it, and keep it in a file of about 5 KB.

    Example: cones2 learn photos/rex --class dog --name rex
    """
    began = time.monotonic()
    with waiting("starting"):
        from dataclasses import replace as changed

        from cones2.captions import read_captions
        from cones2.files import make_folder
        from cones2.learning.recipe import find_recipe
        from cones2.prompts import check_class_word

        class_word = check_class_word(class_word)
        kept = _Kept(name, out, library, replace=replace)
        chosen = find_recipe(recipe) if recipe is not None else None
        texts = read_captions(captions, class_word) if captions else None
        from cones2.photos import load_photos  # from here on with PyTorch

        folder = kept.check_checkpoints(resume=resume)
        previews = _Previews(preview, clip, patience, (out or Path(name or "")).with_suffix(""))
        previews.check(replace=replace or resume)
        loaded = load_photos(photos, masks=masks)
    pipe = open_model(model, device=device, dtype=dtype, config=model_config)
    with waiting("looking at the photos"):
        from cones2.learning.data import judge_photos

        findings = [finding.text for finding in judge_photos(pipe.pipeline, pipe.facts, loaded).findings]
    for finding in findings:
        warnings.warn(finding, Cones2Warning, stacklevel=2)
    chosen = chosen or find_recipe(pipe.facts.recipe or pipe.family.recipe)
    chosen = chosen if steps is None else changed(chosen, steps=steps)
    make_folder(kept.file.parent)
    options = {"seed": seed, "captions": texts, "resume": resume, "save_memory": save_memory, "force": force}
    options["compile"] = compile
    with _checkpoints_kept(folder):
        with waiting("looking at photos and captions"), hint(CaptionError, _INSIST):
            taken = pipe.learn_steps(loaded, class_word, chosen, checkpoint=folder, **options)
            taken = previews.drawn(taken, pipe, loaded, class_word=class_word, checkpoint=folder)
        last = follow(
            taken,
            f"learning {kept.file.stem}",
            tell=lambda step: ", ".join(f"{key} {value:.4f}" for key, value in _measured(step).items()),
            at_interrupt=lambda step: step.save_checkpoint(),
        )
        kept.save(last.residual)
    best = getattr(last, "best", None)
    # An early best step is kept without the encoder of that step.
    moved = _displacement(last) if best is None or best.step == last.step else None
    report = {
        "residual": str(kept.file),
        "name": name,
        "sha256": last.residual.sha256,
        "class_word": class_word,
        "tokens": {part.encoder.role: list(part.tokens) for part in last.residual.parts},
        "photos": [str(photo.path) for photo in loaded],
        "model": pipe.facts.name,
        "recipe": dict(last.residual.recipe),
        "findings": findings,
        "steps": best.step if best else last.step,
        "last_step": last.step,
        **(_measured(best) if best else _measured(last)),
        "displacement": moved and moved.relative,
        "preservation": moved and moved.preservation,
        "seconds": round(time.monotonic() - began, 3),
    }
    if as_json:
        print_json(report)
        return
    say(f"{kept.file}: {class_word!r} learned from {counted(len(loaded), 'photo')} in {report['seconds']:.0f} s.")
    if best is not None and best.step < last.step:
        say(f"Kept step {best.step} of {last.step}: its preview is most like the photos.")
    if moved is not None and moved.preservation:
        value = f"{100 * moved.relative:.1f} % of their length (Eq. 3: {moved.preservation:.3g})"
        say(f"Other words moved by {value}; near 0 is best.")
    say(f"Draw it with: {kept.command(model, model_config)}")


def _displacement(last: Any) -> Any:
    """Measure how far other words moved; None with a warning where that fails: the residual is kept already."""
    try:
        with waiting("measuring how far other words moved"):
            return getattr(last, "learned", last).displacement()
    except Exception as error:  # the device's own, such as a lack of memory, as well
        text = f"how far other words moved could not be measured: {first_line(error)} The residual is whole."
        warnings.warn(text, Cones2Warning, stacklevel=2)
        return None


def _measured(step: Any) -> dict[str, float]:
    """Return loss and, where it was measured, identity of a step or preview."""
    identity = getattr(step, "identity", None)
    loss = getattr(step, "learned", step).loss
    return {"loss": loss} if identity is None else {"loss": loss, "identity": identity}


class _Previews(NamedTuple):
    """What is drawn on the way, and what measures it."""

    every: int | None
    clip: Path | None
    patience: int | None
    base: Path

    @property
    def folder(self) -> Path:
        return self.base.with_name(f"{self.base.name}-previews")

    def check(self, *, replace: bool) -> None:
        if self.every is None and (self.clip is not None or self.patience is not None):
            raise SettingsError("--clip and --patience are about previews, and there are none: give --preview N.")
        if self.every is not None and self.folder.exists() and not replace:
            raise OutputError(f"{self.folder} is there already. Add --replace if it may be lost, or move it.")

    def drawn(self, steps: Any, pipe: Any, photos: Any, *, class_word: str, checkpoint: Path) -> Any:
        """Draw previews of steps and write them, with a table of what was measured."""
        from cones2.learning.previews import logged, with_previews

        if self.every is None:
            return steps
        identity = self._identity(pipe, photos, class_word)
        taken = with_previews(
            steps, pipe, every=self.every, identity=identity, patience=self.patience, checkpoint=checkpoint
        )
        return logged(taken, self.folder)

    def _identity(self, pipe: Any, photos: Any, class_word: str) -> Any:
        from cones2.judge import clip_similarity, judged_likeness, open_judge

        if self.clip is not None:
            return clip_similarity(photos, self.clip)
        if class_word in pipe.facts.class_words:
            with nullcontext() if self.patience else suppress(PhotoError):  # the judge may not see the subject in them
                return judged_likeness(photos, class_word, open_judge())
        if self.patience is not None:
            raise SettingsError("--patience needs a measure of identity, and here there is none: give --clip DIR.")
        return None


class _Kept:
    """Where a residual goes: a name in the library, a file, or both; checked before it is learned."""

    def __init__(self, name: str | None, out: Path | None, library: Path | None, *, replace: bool) -> None:
        from cones2.cli.outputs import check_folder, check_new
        from cones2.library import Library

        if name is None and out is None:
            raise SettingsError("where to keep it? Give --name NAME for your library, or --out NAME.safetensors.")
        self.name, self.out, self.shelf, self.replace = name, out, Library.open(library), replace
        if out is not None:
            check_new(out, suffix=".safetensors", replace=replace)
        if name is not None:
            check_folder(self.shelf.folder)
            with hint(LibraryError, "" if replace else "--replace replaces it."):
                self.shelf.check_can_add(name, replace=replace)
        self.file = out or self.shelf.path_of(name or "")

    def check_checkpoints(self, *, resume: bool) -> Path:
        """Return the hidden folder of checkpoints: nobody is at work in it, and what it holds is to be resumed."""
        from cones2.learning.checkpoints import is_waiting, remove_checkpoints

        folder = self.file.parent / f".{self.file.stem}.learning"
        if is_waiting(folder, self.file) and not resume:
            raise LearningError(
                f"a learning that was stopped waits in {folder}: add --resume to go on from it, or delete that folder."
            )
        if not resume:
            remove_checkpoints(folder)  # of a learning that was killed when all but this was done
        return folder

    def save(self, residual: Any) -> None:
        if self.out is not None:
            residual.save(self.out)
        if self.name is not None:
            self.shelf.add(self.name, residual, replace=self.replace)

    def command(self, model: str, config: str | None) -> str:
        """Return the command line that draws it."""
        name = self.name or (self.file.stem if self.file.stem.isidentifier() else "it")
        subject = name if self.name else f"{name}={self.file}"
        command = ["cones2", "compose", f"a {{{name}}} on the beach", "--subject", subject]
        command += ["--model", model] if model != "mini" else []
        command += ["--model-config", config] if config is not None else []
        return shlex.join(command)


@contextmanager
def _checkpoints_kept(folder: Path) -> Iterator[None]:
    """Remove the folder of checkpoints after success, or where none was made; say that they are kept otherwise."""
    from cones2.learning.checkpoints import remove_checkpoints

    try:
        yield
    except BaseException as error:
        if not any(folder.glob("step-*.json")):
            remove_checkpoints(folder)  # unless it is another learner's
        elif not isinstance(error, LearningError):
            error.add_note("The last checkpoint is kept: run the same command with --resume to go on from it.")
        raise
    remove_checkpoints(folder)
