"""Subjects on the Hugging Face Hub: a repository with a residual, its model card and, if you like, a sample picture."""

import re
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from cones2.checking import is_hub_id
from cones2.errors import Cones2Error, HubError, OutputError, PictureError, SettingsError
from cones2.files import make_folder, read_bounded, write_atomically
from cones2.library import check_name
from cones2.picture import LARGEST_PICTURE, read_record
from cones2.residual.format import MAX_FILE_BYTES
from cones2.residual.residual import Residual

RESIDUAL_FILE = "residual.safetensors"
SAMPLE_FILE = "sample.png"
CARD_FILE = "README.md"

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_TAGS = ("cones2", "text-to-image", "stable-diffusion", "personalization", "multi-subject")


@dataclass(frozen=True, eq=False)
class Publication:
    """A subject as others will find it.

    Attributes:
        name: what its users may call it.
        residual: what it is.
        license: the Hub's short name of the licence you give it, such as `cc-by-4.0`.
        base_model: Hub id of the model that it fits; None takes the residual's, where that is a Hub id.
        sample: a picture of it that `compose` wrote.

    Raises:
        LibraryError: the name can't be one.
        SettingsError: licence or base model do not look like the Hub's.
        PictureError: the sample is not a picture of cones2.
    """

    name: str
    residual: Residual
    license: str
    base_model: str | None = None
    sample: Path | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if not _LICENSE.fullmatch(self.license):
            raise SettingsError(f"{self.license[:100]!r} is no licence of the Hub: expected one such as 'cc-by-4.0'.")
        if self.base_model is not None:
            _check_repo_id(self.base_model)
        if self.sample is not None and not isinstance(read_record(self.sample).get("text"), str):
            raise PictureError(f"{self.sample} is not a picture of subjects: expected one that 'cones2 compose' wrote.")

    def card(self, repo_id: str) -> ModelCard:
        """Give the model card for a repository: what it is, what it fits, and how to use it.

        Raises:
            HubError: the repository's name does not look like one.
        """
        _check_repo_id(repo_id)
        learned_on = self.residual.encoder.name
        base_model = self.base_model or (learned_on if is_hub_id(learned_on) else None)
        extra: dict[str, Any] = {"base_model_relation": "adapter"} if base_model else {}
        if self.sample:
            extra["widget"] = [{"text": self._sample_text(), "output": {"url": SAMPLE_FILE}}]
        data = ModelCardData(
            base_model=base_model,
            license=self.license,
            library_name="cones2",
            pipeline_tag="text-to-image",
            tags=[*_TAGS, _slug(self.residual.class_word)],
            instance_prompt=f"a {{{self.name}}}",
            **extra,
        )
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{self._text(repo_id, base_model)}")

    def write(self, folder: Path, repo_id: str) -> None:
        """Write what the repository will hold.

        Raises:
            HubError: the repository's name does not look like one.
            OutputError: the folder can't be written, or has a README.md of something else.
        """
        card, path = self.card(repo_id), folder / CARD_FILE
        make_folder(folder)
        if path.exists() and "library_name: cones2" not in path.read_text(encoding="utf-8", errors="replace"):
            raise OutputError(f"{path} is there, and cones2 did not write it. Give the draft a folder of its own.")
        self.residual.save(folder / RESIDUAL_FILE)
        write_atomically(path, str(card).encode())
        if self.sample is not None:
            content = read_bounded(self.sample, limit=LARGEST_PICTURE, error=PictureError)
            write_atomically(folder / SAMPLE_FILE, content)

    def _sample_text(self) -> str:
        return str(read_record(self.sample)["text"]) if self.sample else ""

    def _text(self, repo_id: str, base_model: str | None) -> str:
        residual, name = self.residual, self.name
        model = base_model or residual.encoder.name
        asked = "" if model == "mini" else f" --model {shlex.quote(_plain(model))}"
        how = "\n".join(f"| {_plain(key)} | {_plain(str(value))} |" for key, value in sorted(residual.recipe.items()))
        sample = f"![A picture of it]({SAMPLE_FILE})\n\n*{_plain(self._sample_text())}*\n\n" if self.sample else ""
        return f"""# {name}, a {_plain(residual.class_word)}

A subject for [cones2](https://arxiv.org/abs/2305.19327): {residual.vector.numel()} numbers that turn the embedding of
"{_plain(residual.class_word)}" into this one. Any number of subjects go into one picture.

{sample}## Use

```sh
cones2 pull {repo_id} --name {name}
cones2 compose "a {{{name}}} on the beach" --subject {name}{asked} --out pictures
```

## What it fits

The text encoder of {_plain(model)} (sha256 of its weights `{residual.encoder.weights[:12]}`), and no other.

## How it was learned

From {len(residual.photos)} photos, which are not here, with cones2 {_plain(residual.tool_version)}.

| setting | value |
| --- | --- |
{how}
"""


def push(publication: Publication, repo_id: str, *, api: HfApi, private: bool = False) -> str:
    """Bring a subject to the Hub, into a new repository or as a new commit of one of yours; give its address.

    Raises:
        HubError: the repository's name makes no sense, or the Hub refuses or can't be reached.
    """
    _check_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as folder, _asking(repo_id):
        publication.write(Path(folder), repo_id)
        api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: as the owner's default is
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=f"Add {publication.name}")
    return f"{api.endpoint}/{repo_id}"


def pull(repo_id: str, *, api: HfApi, revision: str | None = None) -> Residual:
    """Get a subject from the Hub; what comes is checked like any stranger's file, and its size before it comes.

    Raises:
        HubError: there is no such repository or file, it is too large, or the Hub can't be reached.
        ResidualError: the file is no sound residual.
    """
    _check_repo_id(repo_id)
    with tempfile.TemporaryDirectory() as folder:
        with _asking(repo_id):
            found = api.get_hf_file_metadata(
                url=hf_hub_url(repo_id, RESIDUAL_FILE, revision=revision, endpoint=api.endpoint)
            )
            if found.size is None or found.size > MAX_FILE_BYTES:
                raise HubError(
                    f"{RESIDUAL_FILE} of {repo_id} has {found.size} bytes: expected at most {MAX_FILE_BYTES:,}."
                )
            path = api.hf_hub_download(repo_id, RESIDUAL_FILE, revision=found.commit_hash, local_dir=folder)
        content = read_bounded(Path(path), limit=MAX_FILE_BYTES, error=HubError)
    return Residual.from_bytes(content, origin=f"{RESIDUAL_FILE} of {repo_id}")


def name_for(repo_id: str) -> str:
    """Make a subject's name of a repository's: `ann/my-dog` is `my_dog`.

    Raises:
        LibraryError: it makes none.
    """
    return check_name(re.sub(r"\W", "_", repo_id.rpartition("/")[2], flags=re.ASCII))


def _check_repo_id(repo_id: str) -> None:
    if not is_hub_id(repo_id):
        raise HubError(f"{repo_id[:100]!r} is no repository of the Hub: expected OWNER/NAME.")


@contextmanager
def _asking(repo_id: str) -> Iterator[None]:
    """Say in one line what the Hub, the network or its client made of it."""
    try:
        yield
    except Cones2Error:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        advice = "check the name, or log in with 'hf auth login'"
        raise HubError(f"the Hub has no {repo_id}, or no such revision, or it is private: {advice}.") from error
    except EntryNotFoundError as error:
        raise HubError(f"{repo_id} holds no {RESIDUAL_FILE}: expected what 'cones2 push' brought there.") from error
    except Exception as error:  # the client raises its own errors, its transport's and the system's
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise HubError(
            f"the Hub did not take or give {repo_id}: {lines[0].rstrip('.')}. Check the network and your login."
        ) from error


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def _plain(text: str) -> str:
    """Make one line of any text, without Markdown's signs."""
    return " ".join(re.sub(r"[`*|<>\[\]\\]", "", text).split())
