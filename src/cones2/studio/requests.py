"""What a picture is asked with: checked and completed before it waits, and read back from strangers' files.

Nothing here needs the model: prompts are parsed by the library, tokens are counted by the worker where it is ready.
"""

import base64
import contextlib
import json
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic

from cones2.errors import (
    Cones2Error,
    LayoutError,
    PictureError,
    PromptError,
    ResidualError,
    SettingsError,
    printable,
)
from cones2.files import is_name, read_toml
from cones2.images import PNG, png_chunks
from cones2.layout import Layout
from cones2.places import auto_layout
from cones2.png import record_in
from cones2.prompts import LONGEST_PROMPT, check_class_word, parse_prompt, placeholders, unknown_words
from cones2.residual import describe_file
from cones2.schedulers import scheduler_name
from cones2.studio import schema
from cones2.studio.problems import InvalidError, NotReadyError
from cones2.studio.security import LARGEST_JSON
from cones2.studio.shelf import Shelf, keep_residual
from cones2.studio.supervisor import Supervisor

MASK_BYTES = 65_536
DEFAULT_STEPS = 50
_LARGEST_TEXT = 100_000
_LONGEST_SETTINGS = 10_000
_SETTING = re.compile(r'(?<![^,])\s*+([\w ()/-]{1,40}+):\s*+("(?:[^"\\]|\\.)*+"|[^,]*+)(?:,|$)')  # in linear time
_BOX_NAMES = ("bbox", "box", "box_2d", "tgt_bbox")


@contextlib.contextmanager
def _at(path: str) -> Iterator[None]:
    """Say where in a request the library's error is."""
    try:
        yield
    except InvalidError:
        raise
    except Cones2Error as error:
        raise InvalidError(path, str(error)) from error


def completed(request: schema.Request, shelf: Shelf, info: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a request as it is kept: checked, its subjects by hash, and the model's own numbers filled in.

    Raises:
        InvalidError: it can't be drawn.
    """
    subjects = [_found(each, number, shelf, info) for number, each in enumerate(request.subjects)]
    words = {each["name"]: each["class_word"] for each in subjects}
    if len(words) < len(subjects):
        raise InvalidError("subjects", "two subjects have one name: expected each name once.")
    with _at("prompt"):
        parse_prompt(request.prompt, words)
        for name in words:
            if name not in placeholders(request.prompt):
                raise PromptError(f"the prompt does not mention {{{name}}}: write it where that subject belongs.")
    layout = _checked_layout(request.layout, words)
    with _at("scheduler"):
        scheduler = scheduler_name(request.scheduler) if request.scheduler else None
    kept = request.model_dump() | {"subjects": subjects, "layout": layout, "scheduler": scheduler}
    if info is not None:
        kept["guidance_scale"] = info["guidance_scale"] if request.guidance_scale is None else request.guidance_scale
        for number, side in enumerate(("width", "height")):
            kept[side] = kept[side] or info["size"][number]
            low, high = info["sides"]
            if not low <= kept[side] <= high or kept[side] % info["multiple_of"]:
                expected = f"expected a multiple of {info['multiple_of']} in {low}..{high}"
                raise InvalidError(side, f"{side} {kept[side]} can't be drawn: {expected}.")
    return kept


def _found(use: schema.SubjectUse, number: int, shelf: Shelf, info: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a subject as it is kept: its class word, and the hash of its file, which is kept as well."""
    path = f"subjects.{number}"
    if use.source == "word":
        if use.class_word is None or use.sha256 is not None:
            raise InvalidError(path, f"{use.name!r} is a word alone: expected a class_word, and no sha256.")
        with _at(f"{path}.class_word"):
            return use.model_dump() | {"class_word": check_class_word(use.class_word)}
    with _at(path):
        found = None if use.sha256 is None else shelf.with_hash(use.sha256)
        if use.sha256 is None:
            found = shelf.find(use.name)
        if found is not None:
            if not found["fits"]:
                raise SettingsError(found["problem"])
            sha256 = shelf.store(found["name"])
            if use.sha256 not in (None, sha256):
                raise SettingsError(f"{use.name} was changed at this moment: ask again.")
            return use.model_dump() | {"class_word": found["class_word"], "sha256": sha256}
        content = shelf.stored(str(use.sha256)).read_bytes()
        facts = describe_file(content, origin=use.name)
        if info is not None and facts["parts"][0]["fits"] != info["name"]:
            raise SettingsError(f"{use.name} was learned on {facts['parts'][0]['fits']}: teach it again on this model.")
        return use.model_dump() | {"class_word": facts["class_word"]}


def _checked_layout(layout: Mapping[str, Any] | None, words: Mapping[str, str]) -> dict[str, Any] | None:
    if layout is None or not layout.get("regions"):
        return None
    with _at("layout"):
        _check_masks(layout)
        checked = Layout.from_json(json.dumps(layout))
        for name in checked.names:
            if name not in words:
                raise LayoutError(f"the region {name!r} is of no subject of this request: add it, or drop the region.")
        written: dict[str, Any] = json.loads(checked.to_json())
        return written


def _check_masks(value: Any) -> None:
    """Check that no mask takes more than its bytes, wherever it stands."""
    if isinstance(value, Mapping):
        png = value.get("png")
        if isinstance(png, str) and len(png) > MASK_BYTES * 4 // 3 + 4:
            raise LayoutError(f"a mask's PNG has over {MASK_BYTES:,} bytes: paint it on a smaller canvas.")
        for each in value.values():
            _check_masks(each)
    elif isinstance(value, list):
        for each in value:
            _check_masks(each)


# Prompts


def check_prompt(asked: schema.PromptCheck, supervisor: Supervisor) -> dict[str, Any]:
    """Return the text that the model reads, where subjects stand in it, and what is doubtful."""
    mentioned = placeholders(asked.prompt)
    known = {name: word or "thing" for name, word in asked.subjects.items()}
    problems = [
        _problem("unknown_name", f"{name!r} is no subject: add it, or write the word without braces.", name)
        for name in mentioned
        if name not in known
    ]
    text, spans = asked.prompt, []
    try:
        parsed = parse_prompt(asked.prompt, {**dict.fromkeys(mentioned, "thing"), **known})
        text, spans = parsed.text, [vars(each) for each in parsed.mentions]
    except PromptError as error:
        problems.append(_problem("other", str(error)))
    regions = None if asked.layout is None else asked.layout.get("regions")
    placed = None if asked.layout is None else set(regions) if isinstance(regions, dict) else set()
    for name in known:
        if name not in mentioned:
            problems.append(_problem("no_mention", f"the prompt does not mention {{{name}}}.", name))
        elif placed is not None and name not in placed:
            problems.append(_problem("no_place", f"{name} has no place: it may be anywhere.", name))
    lexicon = (supervisor.info or {}).get("lexicon")
    strange = unknown_words(text, lexicon) if lexicon else ()
    problems += [
        _problem("unknown_word", f"the model does not know {each!r}: expect nothing of that.") for each in strange
    ]
    tokens = limit = None
    with contextlib.suppress(NotReadyError):
        tokens, limit = supervisor.ask("tokens", text=text, seconds=2.0) or (None, None)
    if tokens is not None and limit is not None and tokens > limit:
        problems.append(_problem("too_long", f"{tokens - limit} of {tokens} tokens are not read: shorten the prompt."))
    return {"text": text, "tokens": tokens, "limit": limit, "spans": spans, "problems": problems[:100]}


def _problem(kind: str, text: str, name: str | None = None) -> dict[str, Any]:
    return {"kind": kind, "name": name, "text": text}


def suggest(asked: schema.Suggestion) -> dict[str, Any]:
    """Return a layout's JSON: subjects side by side, shaped like their class words."""
    words = {each.name: each.class_word for each in asked.subjects}
    layout: dict[str, Any] = json.loads(auto_layout(list(words), words, aspect=asked.width / asked.height).to_json())
    return layout


# Strangers' files


def read_request(content: bytes, shelf: Shelf, folder: Path) -> dict[str, Any]:
    """Return what a file says of how a picture was asked for, what is missing here, and notes.

    It may be a PNG of cones2 or of AUTOMATIC1111's web UI, a layout in JSON or TOML, or the table of boxes
    `[{"id": ..., "bbox": [top, left, bottom, right]}]` in 0..1000 that other tools share. Pixels are not decoded.

    Raises:
        Cones2Error: it is none of these, or damaged.
    """
    if content.startswith(PNG):
        with contextlib.suppress(PictureError):
            return _of_record(record_in(content, "the picture"), shelf, folder)
        text = _text_chunk(content, "parameters")
        if text is None:
            raise PictureError("the picture holds no record of how it was made: expected one of cones2, or its text.")
        return _of_infotext(text)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PictureError(
            "the file is no PNG picture and no text: expected a picture of cones2, or a layout."
        ) from error
    if len(content) > LARGEST_JSON:
        raise LayoutError(
            f"the layout has over {LARGEST_JSON:,} bytes, more than a request may: make its masks smaller."
        )
    data = _parsed(text)
    rows = data.get("boxes", data.get("regions")) if isinstance(data, dict) else data
    if isinstance(rows, list):
        return _of_table(rows)
    layout = Layout.from_json(json.dumps(data))
    return {"request": {"layout": json.loads(layout.to_json())}, "missing": [], "notes": []}


def _parsed(text: str) -> Any:
    """Return what a text in JSON or TOML says."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layout.toml"
        path.write_bytes(text.encode())
        try:
            data = read_toml(path, example="a layout's JSON, or [regions] with rex = [[0.05, 0.25, 0.5, 0.95]]")
        except SettingsError as error:
            raise LayoutError(str(error).replace(str(path), "the file")) from error
    return {"version": 1, **data}


class _Recorded(pydantic.BaseModel):
    """What is read of a picture's record; it may be anyone's."""

    prompt: schema.Text
    negative_prompt: schema.Text = ""
    subjects: dict[schema.Name, dict[str, Any]] = {}
    layout: dict[str, Any] | None = None
    seed: schema.Seed | None = None
    num_inference_steps: int = pydantic.Field(DEFAULT_STEPS, ge=1, le=schema.MOST_STEPS)
    guidance_scale: float | None = pydantic.Field(None, ge=0, le=100, allow_inf_nan=False)
    layout_settings: dict[str, Any] = {}
    options: dict[str, Any] = {}
    scheduler: dict[str, Any] = {}
    residuals: dict[str, str] = {}


def _of_record(record: Mapping[str, Any], shelf: Shelf, folder: Path) -> dict[str, Any]:
    try:
        found = _Recorded.model_validate(record)
        subjects = [_subject_of_record(name, each) for name, each in found.subjects.items()]
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise InvalidError("file", f"the picture's record is wrong at {place!r}: {problem['msg']}.") from error
    notes, missing = [], []
    for each in subjects:
        if each.sha256 is None:
            continue
        known = shelf.with_hash(each.sha256)
        if known is not None:
            each.source = known["source"]
        elif _keep_embedded(found.residuals.get(each.sha256), each.sha256, folder):
            notes.append(f"{each.name} came with the picture, and is not in your library.")
        else:
            missing.append({"name": each.name, "sha256": each.sha256, "class_word": each.class_word})
    layout = None if found.layout is None else json.loads(Layout.from_json(json.dumps(found.layout)).to_json())
    request = {
        "prompt": found.prompt,
        "negative_prompt": found.negative_prompt,
        "subjects": [each.model_dump() for each in subjects],
        "layout": layout,
        "num_inference_steps": found.num_inference_steps,
    }
    request |= {} if found.seed is None else {"seeds": [found.seed]}
    request |= {} if found.guidance_scale is None else {"guidance_scale": found.guidance_scale}
    request |= _sized(found)
    with contextlib.suppress(Cones2Error):
        request["scheduler"] = scheduler_name(str(found.scheduler.get("class_name", "")))
    if found.layout_settings.get("preset") in ("paper", "cones_v2"):
        request["preset"] = found.layout_settings["preset"]
    return {"request": request, "missing": missing, "notes": notes}


def _sized(found: _Recorded) -> dict[str, Any]:
    """Return the numbers of a record's options and settings that are such numbers."""
    sides = {side: found.options.get(side) for side in ("width", "height")}
    sized: dict[str, Any] = {side: value for side, value in sides.items() if type(value) is int and 16 <= value <= 4096}
    scale = found.layout_settings.get("layout_scale")
    if isinstance(scale, int | float) and 0 <= scale <= 100:
        sized["layout_scale"] = float(scale)
    return sized


def _subject_of_record(name: str, each: Mapping[str, Any]) -> schema.SubjectUse:
    return schema.SubjectUse(
        name=name,
        source="library" if each.get("residual") else "word",
        class_word=each.get("class_word"),
        sha256=each.get("residual"),
        strength=each.get("strength", 1.0),
        negative=each.get("negative", ""),
    )


def _keep_embedded(encoded: str | None, sha256: str, folder: Path) -> bool:
    """Keep a residual that came in a record, where it is sound and has the hash that it should."""
    if encoded is None:
        return False
    try:
        content = base64.b64decode(encoded, validate=True)
        if describe_file(content, origin="an embedded residual")["sha256"] != sha256:
            return False
    except (ValueError, ResidualError):
        return False
    keep_residual(folder / "residuals" / f"{sha256}.safetensors", content)
    return True


def _text_chunk(content: bytes, keyword: str) -> str | None:
    """Return the text of a PNG under a keyword, at most 100,000 characters; None where there is none."""
    start = keyword.encode() + b"\0"
    for _, (kind, chunk) in zip(range(10_000), png_chunks(content), strict=False):
        body = bytes(chunk[8 : 8 + 2 * _LARGEST_TEXT])[: len(chunk) - 12]
        if kind == b"tEXt" and body.startswith(start):
            return body[len(start) :][:_LARGEST_TEXT].decode("latin-1")
        if kind == b"iTXt" and body.startswith(start):
            is_packed, _, rest = body[len(start)], body[len(start) + 1 : len(start) + 2], body[len(start) + 2 :]
            text = rest.split(b"\0", 2)[-1]
            with contextlib.suppress(zlib.error):
                text = zlib.decompressobj().decompress(text, _LARGEST_TEXT) if is_packed else text
                return text[:_LARGEST_TEXT].decode(errors="replace")
        if kind == b"IEND":
            break
    return None


def _of_infotext(text: str) -> dict[str, Any]:
    """Read prompt, negative prompt and settings as AUTOMATIC1111's web UI writes them."""
    lines = text.strip().splitlines()
    has_settings = bool(lines) and lines[-1].startswith("Steps:")
    settings = (
        {key.strip(): value.strip() for key, value in _SETTING.findall(lines[-1][:_LONGEST_SETTINGS])}
        if has_settings
        else {}
    )
    body = "\n".join(lines[:-1] if has_settings else lines)
    prompt, _, negative = body.partition("Negative prompt:")
    request: dict[str, Any] = {
        "prompt": prompt.strip()[:LONGEST_PROMPT],
        "negative_prompt": negative.strip()[:LONGEST_PROMPT],
    }
    numbers = {"Steps": ("num_inference_steps", int), "CFG scale": ("guidance_scale", float), "Seed": ("seeds", int)}
    for key, (name, kind) in numbers.items():
        with contextlib.suppress(KeyError, ValueError):
            value = kind(settings[key])
            request[name] = [value] if name == "seeds" else value
    size = re.fullmatch(r"(\d{2,4})x(\d{2,4})", settings.get("Size", ""))
    request |= {"width": int(size[1]), "height": int(size[2])} if size else {}
    notes = ["It is another tool's picture: its prompt has no subjects; put braces around their names."]
    with contextlib.suppress(Cones2Error):
        request["scheduler"] = scheduler_name(settings.get("Sampler", ""))
    if re.match(r"[^({\[]*+[({\[][^)}\]]*+[)}\]]", request["prompt"]):
        notes.append("Its prompt holds brackets, which weigh words there: take them out.")
    return {"request": request, "missing": [], "notes": notes}


def _of_table(rows: list[Any]) -> dict[str, Any]:
    """Read a table of boxes, `[top, left, bottom, right]` in 0..1000, as a layout and untaught words."""
    regions: dict[str, Any] = {}
    subjects = []
    for number, row in enumerate(rows[: schema.MOST_SUBJECTS], 1):
        box = next((row[key] for key in _BOX_NAMES if key in row), None) if isinstance(row, dict) else None
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) for side in box)):
            expected = '{"id": "dog_1", "bbox": [top, left, bottom, right]} with numbers in 0..1000'
            raise LayoutError(f"row {number} of the table has no box: expected {expected}.")
        label = str(row.get("id") or row.get("name") or row.get("label") or row.get("desc") or f"thing_{number}")
        name = re.sub(r"\W+", "_", label, flags=re.ASCII).strip("_")[:60] or f"thing_{number}"
        name = name if is_name(name) else f"thing_{number}"
        top, left, bottom, right = (min(max(side, 0), 1000) / 1000 for side in box)
        said = str(row.get("desc") or row.get("label") or re.sub(r"[_\d]+$", "", name).replace("_", " "))
        word = printable(said[:60])[:60]
        if name not in regions:
            subjects.append({"name": name, "source": "word", "class_word": word, "strength": 1.0, "negative": ""})
        regions.setdefault(name, []).append([left, top, right, bottom])
    layout = Layout.from_json(json.dumps({"version": 1, "regions": regions}))
    return {"request": {"layout": json.loads(layout.to_json()), "subjects": subjects}, "missing": [], "notes": []}
