"""Teach a text-to-image model your own subjects and place any number of them in one picture (arXiv:2305.19327).

Example:
    ```python
    import cones2

    backbone = cones2.open_backbone("mini")
    photos = cones2.EXAMPLES["rex"].photos  # or cones2.load_photos(Path("photos/rex"))
    learned = cones2.finish(cones2.learn(backbone, photos, "dog", recipe=cones2.RECIPES["direct"]))
    subjects = {"rex": cones2.Subject("dog", learned.residual), "ball": cones2.Subject("ball")}
    layout = cones2.Layout.from_numbers({"rex": [(0.05, 0.2, 0.5, 0.95)], "ball": [(0.55, 0.5, 0.95, 0.95)]})
    prompt = "a {rex} and a {ball} on the beach"
    drawn = cones2.finish(cones2.compose(backbone, prompt, subjects=subjects, layout=layout))
    drawn.pictures[0].save("beach.png")
    ```

`learn` and `compose` are generators: loop over them for a bar, for logs or to stop early.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cones2.adapter import adapt
    from cones2.arranging.automatic import auto_layout, place_subjects
    from cones2.authors.colours import read_colour_map
    from cones2.authors.config import OfficialConfig
    from cones2.authors.order import OfficialOrder, order_official
    from cones2.authors.residual import import_residual
    from cones2.backbones import SCHEDULERS, Backbone, make_scheduler, open_backbone
    from cones2.backbones.image_encoder import ImageEncoder, open_image_encoder
    from cones2.captions.corpus import captions_for, read_captions
    from cones2.composing.again import compose_again
    from cones2.composing.grid import Axis, Cell, plan_grid
    from cones2.composing.heat import draw_attention
    from cones2.composing.latents import write_latents
    from cones2.composing.loop import compose
    from cones2.composing.records import PictureRecord, picture_record
    from cones2.composing.sampler import ComposeStep
    from cones2.composing.settings import ComposeSettings
    from cones2.errors import (
        BackboneError,
        CaptionError,
        Cones2Error,
        Cones2Warning,
        HubError,
        LayoutError,
        LearningError,
        LibraryError,
        OutputError,
        PhotoError,
        PictureError,
        PromptError,
        ResidualError,
        ResidualMismatchError,
        SettingsError,
    )
    from cones2.examples import EXAMPLES, Example
    from cones2.guidance.attention import edited_cross_attention
    from cones2.guidance.layout_guidance import LayoutGuidance
    from cones2.guidance.leakage import Leakage
    from cones2.guidance.presets import PRESETS
    from cones2.hub import Publication, pull, push
    from cones2.layout.box import Box
    from cones2.layout.drawing import draw_layout
    from cones2.layout.masks import Mask
    from cones2.layout.region import Region
    from cones2.layout.regions import Layout
    from cones2.layout.shapes import Polygon, Rest
    from cones2.learning.displacement import Displacement, displacement, held_out_captions
    from cones2.learning.loop import LearnStep, learn
    from cones2.learning.manifest import Assignment, read_manifest
    from cones2.learning.many import LearnAllStep, Outcome, learn_all
    from cones2.learning.recipe import RECIPES, Recipe, find_recipe
    from cones2.library import Library
    from cones2.photos import Finding, Photo, PhotoFacts, PhotoReport, load_photos, photo_report
    from cones2.picture import Row, contact_sheet, read_record, write_picture
    from cones2.prompts import parse_prompt, tokenize_prompt
    from cones2.residual.residual import EncoderId, Residual
    from cones2.steps import finish
    from cones2.subjects import Subject, embed_prompt
    from cones2.watching.judge import Judge, judged_likeness, open_judge
    from cones2.watching.logs import FolderLog, TensorBoardLog, WandbLog, logged
    from cones2.watching.similarity import similarity_to
    from cones2.watching.watch import Watch, WatchedStep, watch

_NAMES = {
    "adapter": "adapt",
    "arranging.automatic": "auto_layout place_subjects",
    "authors.colours": "read_colour_map",
    "authors.config": "OfficialConfig",
    "authors.order": "OfficialOrder order_official",
    "authors.residual": "import_residual",
    "guidance.attention": "edited_cross_attention",
    "backbones": "SCHEDULERS Backbone make_scheduler open_backbone",
    "captions.corpus": "captions_for read_captions",
    "composing.again": "compose_again",
    "composing.grid": "Axis Cell plan_grid",
    "composing.heat": "draw_attention",
    "composing.latents": "write_latents",
    "composing.loop": "compose",
    "composing.records": "PictureRecord picture_record",
    "composing.sampler": "ComposeStep",
    "composing.settings": "ComposeSettings",
    "errors": "BackboneError CaptionError Cones2Error Cones2Warning HubError LayoutError LearningError LibraryError"
    " OutputError PhotoError PictureError PromptError ResidualError ResidualMismatchError SettingsError",
    "examples": "EXAMPLES Example",
    "guidance.leakage": "Leakage",
    "hub": "Publication pull push",
    "guidance.layout_guidance": "LayoutGuidance",
    "guidance.presets": "PRESETS",
    "layout.box": "Box",
    "layout.drawing": "draw_layout",
    "layout.masks": "Mask",
    "layout.region": "Region",
    "layout.regions": "Layout",
    "layout.shapes": "Polygon Rest",
    "learning.manifest": "Assignment read_manifest",
    "learning.many": "LearnAllStep Outcome learn_all",
    "learning.displacement": "Displacement displacement held_out_captions",
    "learning.loop": "LearnStep learn",
    "photos": "Finding Photo PhotoFacts PhotoReport load_photos photo_report",
    "library": "Library",
    "picture": "Row contact_sheet read_record write_picture",
    "prompts": "parse_prompt tokenize_prompt",
    "learning.recipe": "RECIPES Recipe find_recipe",
    "residual.residual": "EncoderId Residual",
    "steps": "finish",
    "subjects": "Subject embed_prompt",
    "watching.watch": "Watch WatchedStep watch",
    "watching.judge": "Judge judged_likeness open_judge",
    "watching.logs": "FolderLog TensorBoardLog WandbLog logged",
    "watching.similarity": "similarity_to",
    "backbones.image_encoder": "ImageEncoder open_image_encoder",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "EXAMPLES",
    "PRESETS",
    "RECIPES",
    "SCHEDULERS",
    "Assignment",
    "Axis",
    "Backbone",
    "BackboneError",
    "Box",
    "CaptionError",
    "Cell",
    "ComposeSettings",
    "ComposeStep",
    "Cones2Error",
    "Cones2Warning",
    "Displacement",
    "EncoderId",
    "Example",
    "Finding",
    "FolderLog",
    "HubError",
    "ImageEncoder",
    "Judge",
    "Layout",
    "LayoutError",
    "LayoutGuidance",
    "Leakage",
    "LearnAllStep",
    "LearnStep",
    "LearningError",
    "Library",
    "LibraryError",
    "Mask",
    "OfficialConfig",
    "OfficialOrder",
    "Outcome",
    "OutputError",
    "Photo",
    "PhotoError",
    "PhotoFacts",
    "PhotoReport",
    "PictureError",
    "PictureRecord",
    "Polygon",
    "PromptError",
    "Publication",
    "Recipe",
    "Region",
    "Residual",
    "ResidualError",
    "ResidualMismatchError",
    "Rest",
    "Row",
    "SettingsError",
    "Subject",
    "TensorBoardLog",
    "WandbLog",
    "Watch",
    "WatchedStep",
    "adapt",
    "auto_layout",
    "captions_for",
    "compose",
    "compose_again",
    "contact_sheet",
    "displacement",
    "draw_attention",
    "draw_layout",
    "edited_cross_attention",
    "embed_prompt",
    "find_recipe",
    "finish",
    "held_out_captions",
    "import_residual",
    "judged_likeness",
    "learn",
    "learn_all",
    "load_photos",
    "logged",
    "make_scheduler",
    "open_backbone",
    "open_image_encoder",
    "open_judge",
    "order_official",
    "parse_prompt",
    "photo_report",
    "picture_record",
    "place_subjects",
    "plan_grid",
    "pull",
    "push",
    "read_captions",
    "read_colour_map",
    "read_manifest",
    "read_record",
    "similarity_to",
    "tokenize_prompt",
    "watch",
    "write_latents",
    "write_picture",
]


def __getattr__(name: str) -> object:
    """Import a public name's module when the name is first used: PyTorch and diffusers take seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"cones2.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
