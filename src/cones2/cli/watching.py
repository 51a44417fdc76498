"""What `cones2 learn` shows on the way: pictures, curves, an identity measure, and an early end."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from cones2.backbones import Backbone
from cones2.backbones.image_encoder import open_image_encoder
from cones2.cli.progress import follow
from cones2.errors import PhotoError, SettingsError
from cones2.learning.loop import LearnStep
from cones2.photos import Photo
from cones2.watching.judge import judged_likeness, open_judge
from cones2.watching.logs import FolderLog, Log, TensorBoardLog, WandbLog, logged
from cones2.watching.similarity import similarity_to
from cones2.watching.watch import Identity, Watch, WatchedStep, watch


@dataclass(frozen=True)
class Looks:
    """What to show, as ordered on the command line.

    Attributes:
        preview: steps between two pictures.
        clip: the folder of a CLIP model that measures them; without it, the embedded model's judge measures its own.
        patience: looks without a rise before learning ends.
        tensorboard: a folder for TensorBoard's events.
        wandb: a project of Weights & Biases.

    Raises:
        SettingsError: one makes no sense without another, or is below 1.
    """

    preview: int | None = None
    clip: Path | None = None
    patience: int | None = None
    tensorboard: Path | None = None
    wandb: str | None = None

    def __post_init__(self) -> None:
        Watch(every=self.preview)
        if self.clip is not None and self.preview is None:
            raise SettingsError("--clip measures pictures, and there are none: give --preview N.")
        if self.patience is not None and self.preview is None:
            raise SettingsError("--patience counts previews, and there are none: give --preview N.")

    def follow(
        self,
        steps: Generator[LearnStep, None, None],
        backbone: Backbone,
        photos: Sequence[Photo],
        *,
        class_word: str,
        out: Path,
        checkpoint: Path,
    ) -> WatchedStep:
        """Follow learning, with its checkpoints in this folder, under a bar to its end, and show what is ordered.

        Raises:
            SettingsError: there is patience, and nothing that measures identity.
            PhotoError: there is patience, and the judge does not see the subject in the photos.
            BackboneError: the CLIP model can't be opened.
        """
        plan = Watch(every=self.preview, identity=self._identity(backbone, photos, class_word), patience=self.patience)
        watched = logged(watch(steps, backbone, plan=plan, checkpoint=checkpoint), self._logs(out))
        return follow(watched, f"learning {out.stem}", tell=_told, whole_steps=True)

    def _identity(self, backbone: Backbone, photos: Sequence[Photo], class_word: str) -> Identity | None:
        """Give what measures the previews: the CLIP model if there is one, for the embedded model its judge."""
        if self.clip is not None:
            return similarity_to(photos, open_image_encoder(self.clip))
        if self.preview is not None and backbone.lexicon is not None:
            with suppress(PhotoError) if self.patience is None else nullcontext():
                return judged_likeness(photos, class_word, open_judge())
        if self.patience is not None:
            raise SettingsError("--patience needs a measure of identity, and here there is none: give --clip DIR.")
        return None

    def _logs(self, out: Path) -> Iterator[Log]:
        if self.preview is not None:
            yield FolderLog(out.with_name(f"{out.stem}-previews"))
        if self.tensorboard is not None:
            yield TensorBoardLog(self.tensorboard)
        if self.wandb is not None:
            yield WandbLog(self.wandb, settings={"residual": out.stem}, folder=out.parent)


def _told(step: WatchedStep) -> str:
    identity = "" if step.identity is None else f", identity {step.identity:.3f}"
    return f"loss {step.learned.loss:.4f}{identity}"
