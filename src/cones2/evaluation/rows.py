"""Which class of `cones2.baselines` a row of a protocol is, and with which settings."""

import importlib
import pkgutil
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from PIL.Image import Image

import cones2.baselines
from cones2.baselines.base import Rival
from cones2.baselines.trainer import prior_pictures
from cones2.errors import Cones2Error, SettingsError, first_line
from cones2.evaluation.identifiers import with_bases
from cones2.evaluation.protocol import Protocol, Row
from cones2.evaluation.run import Priors
from cones2.pipeline import Cones2Pipeline


def find_rivals() -> dict[str, type[Any]]:
    """Return all rivals of `cones2.baselines`, by the names of their classes."""
    found: dict[str, type[Any]] = {}
    for module in pkgutil.iter_modules(cones2.baselines.__path__, "cones2.baselines."):
        for name, thing in vars(importlib.import_module(module.name)).items():
            is_own = getattr(thing, "__module__", None) == module.name
            if (
                is_own
                and isinstance(thing, type)
                and is_dataclass(thing)
                and all(hasattr(thing, each) for each in ("learn", "combine", "drawing"))
            ):
                found[name] = thing
    return found


def make_rival(row: Row) -> Rival:
    """Make the rival of a row with its settings.

    Raises:
        SettingsError: there is no such rival, or it has no such setting or value.
    """
    try:
        return _rival(row.rival, row.settings)
    except Cones2Error as error:
        raise SettingsError(f"row {row.name!r}: {error}") from error


def _rival(name: str, settings: Mapping[str, Any]) -> Rival:
    rivals = find_rivals()
    if name not in rivals:
        raise SettingsError(f"no rival {name!r}: expected one of {', '.join(sorted(rivals))}.")
    made: Rival = _made(rivals[name], settings)
    return made


def _made(kind: type[Any], settings: Mapping[str, Any]) -> Any:
    """Make a dataclass of settings, whose tables are its own dataclasses or rivals, and whose lists are tuples."""
    hints, known = typing.get_type_hints(kind), {each.name: each for each in fields(kind) if each.init}
    if unknown := settings.keys() - known.keys():
        raise SettingsError(f"{kind.__name__} has no {sorted(unknown)}: expected {', '.join(known) or 'nothing'}.")
    try:
        return kind(**{name: _value(hints[name], known[name].default, value) for name, value in settings.items()})
    except TypeError as error:
        raise SettingsError(f"settings of {kind.__name__}: {first_line(error)}") from error


def _value(hint: Any, default: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(None, None, each) for each in value)
    if not isinstance(value, Mapping):
        return value
    if "rival" in value:
        return _rival(str(value["rival"]), {name: each for name, each in value.items() if name != "rival"})
    if is_dataclass(default) and not isinstance(default, type):  # what a table leaves out stays as it is
        kept = {each.name: getattr(default, each.name) for each in fields(default) if each.init}
        return _made(type(default), kept | dict(value))
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)]
    return _made(kinds[0], value) if kinds else value


def priors_of(protocol: Protocol) -> Priors:
    """Return what draws the class's own pictures, as many as a protocol says, once for each class."""
    drawn: dict[str, list[Image]] = {}
    how = protocol.document.drawing
    options = {"num_inference_steps": how.num_inference_steps, "guidance_scale": how.guidance_scale}
    options |= {} if how.side is None else {"height": how.side, "width": how.side}

    def priors(rival: Rival, pipeline: Cones2Pipeline, class_word: str) -> list[Image]:
        if not any(getattr(getattr(each, "training", None), "prior_weight", 0) for each in with_bases(rival)):
            return []
        if class_word not in drawn:
            count, seed = protocol.document.priors, protocol.document.seed
            drawn[class_word] = prior_pictures(pipeline, class_word, count, seed=seed, **options)
        return drawn[class_word]

    return priors
