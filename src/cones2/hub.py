"""Subjects on the Hugging Face Hub: a repository with a residual, its model card and, if you like, a sample picture."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from cones2.errors import Cones2Error, HubError, PictureError, SettingsError, counted, first_line
from cones2.files import is_hub_id, read_bounded
from cones2.library import check_name
from cones2.residual import MAX_FILE_BYTES, Residual

RESIDUAL_FILE = "residual.safetensors"
SAMPLE_FILE = "sample.png"

_LARGEST_SAMPLE = 2**28
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")


def push(
    residual: Residual,
    repo_id: str,
    *,
    license: str,  # noqa: A002 - the Hub's own word
    name: str | None = None,
    base_model: str | None = None,
    sample: Path | None = None,
    sample_prompt: str = "",
    private: bool = False,
    api: HfApi | None = None,
) -> str:
    """Push a subject to a new repository, or as a new commit to one of yours, and return its address.

    Args:
        residual: the subject. Its photos stay with you; their hashes are in its file.
        repo_id: of the repository, `owner/name`.
        license: the Hub's short name of the licence that you give it, such as `cc-by-4.0`.
        name: what its users may call it; None makes one of the repository's.
        base_model: Hub id of the model that it fits; None takes the residual's, where that is a Hub id.
        sample: a PNG picture of the subject.
        sample_prompt: what the sample shows.
        private: whether a new repository is for your eyes only; False leaves it to the owner's settings.
        api: the Hub's client.

    Raises:
        HubError: an id does not look like the Hub's, or the Hub refuses the subject or can't be reached.
        Cones2Error: the name, the licence or the sample can't be used.
    """
    _check_repo_id(repo_id)
    if base_model is not None:
        _check_repo_id(base_model)
    if not _LICENSE.fullmatch(license):
        raise SettingsError(f"{license[:100]!r} is not a licence of the Hub: expected one such as 'cc-by-4.0'.")
    name = name_for(repo_id) if name is None else check_name(name)
    learned_on = residual.parts[0].encoder.name
    data = ModelCardData(
        base_model=base_model or (learned_on if is_hub_id(learned_on) else None),
        license=license,
        library_name="cones2",
        pipeline_tag="text-to-image",
        tags=["cones2", "text-to-image", "personalization"],
        instance_prompt=f"a {{{name}}}",
        widget=[{"text": sample_prompt, "output": {"url": SAMPLE_FILE}}] if sample else None,
    )
    files = {
        "README.md": str(_card(residual, repo_id, name, data)).encode(errors="replace"),
        RESIDUAL_FILE: residual.to_bytes(),
    }
    if sample is not None:
        files[SAMPLE_FILE] = read_bounded(sample, limit=_LARGEST_SAMPLE, error=PictureError)
        if not files[SAMPLE_FILE].startswith(b"\x89PNG"):
            raise PictureError(f"{sample} is not a PNG picture: expected one that cones2 drew.")
    api = api or HfApi(library_name="cones2")
    with _asking(repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        additions = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=content) for file, content in files.items()]
        api.create_commit(repo_id, additions, commit_message=f"Add {name}")
    return f"{api.endpoint}/{repo_id}"


def pull(repo_id: str, *, revision: str | None = None, api: HfApi | None = None) -> Residual:
    """Get a subject from the Hub; it is checked like any stranger's file, and its size before it is downloaded.

    Raises:
        HubError: there is no such repository or file, it is too large, or the Hub can't be reached.
        ResidualError: the file is not a sound residual.
    """
    _check_repo_id(repo_id)
    api = api or HfApi(library_name="cones2")
    with tempfile.TemporaryDirectory() as folder:
        with _asking(repo_id):
            url = hf_hub_url(repo_id, RESIDUAL_FILE, revision=revision, endpoint=api.endpoint)
            found = api.get_hf_file_metadata(url=url)
            if found.size is None or found.size > MAX_FILE_BYTES:
                limit = f"expected at most {MAX_FILE_BYTES:,}"
                raise HubError(f"{RESIDUAL_FILE} of {repo_id} has {found.size} bytes: {limit}.")
            path = api.hf_hub_download(repo_id, RESIDUAL_FILE, revision=found.commit_hash, local_dir=folder)
        content = read_bounded(Path(path), limit=MAX_FILE_BYTES, error=HubError)
    return Residual.from_bytes(content, origin=f"{RESIDUAL_FILE} of {repo_id}")


def name_for(repo_id: str) -> str:
    """Return a subject's name made of a repository's, `my_dog` of `ann/my-dog`; LibraryError where it gives none."""
    return check_name(re.sub(r"\W", "_", repo_id.rpartition("/")[2], flags=re.ASCII))


def _card(residual: Residual, repo_id: str, name: str, data: Any) -> ModelCard:
    """Return the model card: what the subject is, what it fits, and how to use it."""
    model, class_word = _plain(data.base_model or residual.parts[0].encoder.name), _plain(residual.class_word)
    weights = ", ".join(f"`{part.encoder.weights[:12]}`" for part in residual.parts)
    settings = "\n".join(f"| {_plain(key)} | {_plain(str(value))} |" for key, value in sorted(residual.recipe.items()))
    shown = f"![A picture of it]({SAMPLE_FILE})\n\n*{_plain(data.widget[0]['text'])}*\n\n" if data.widget else ""
    return ModelCard(f"""---
{data.to_yaml()}
---

# {name}, a {class_word}

{shown}A subject for [cones2](https://arxiv.org/abs/2305.19327); `cones2 pull {repo_id} --name {name}` gets it.

```python
import cones2

pipe = cones2.Cones2Pipeline.from_pretrained({model!r})
pipe.load_subject("{name}", "{repo_id}")
pipe("a {{{name}}} on the beach").images[0].save("beach.png")
```

It fits the text encoder of {model} (sha256 of its weights {weights}), and no other. It was learned from
{counted(len(residual.photos), "photo")}, not kept here, with cones2 {_plain(residual.tool_version)}.

| setting | value |
| --- | --- |
{settings}
""")


def _check_repo_id(repo_id: str) -> None:
    if not is_hub_id(repo_id):
        raise HubError(f"{repo_id[:100]!r} is not a repository of the Hub: expected OWNER/NAME.")


@contextmanager
def _asking(repo_id: str) -> Iterator[None]:
    """Turn what the Hub, the network or its client raises into one line."""
    try:
        yield
    except Cones2Error:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        advice = "check the name, or log in with 'hf auth login'"
        raise HubError(f"the Hub has no {repo_id}, or no such revision, or it is private: {advice}.") from error
    except EntryNotFoundError as error:
        raise HubError(f"{repo_id} holds no {RESIDUAL_FILE}: expected a repository that cones2 made.") from error
    except Exception as error:  # the client raises its own errors, its transport's and the system's
        advice = "Check the network and your login."
        raise HubError(f"the Hub did not take or give {repo_id}: {first_line(error)} {advice}") from error


def _plain(text: str) -> str:
    """Return any text in one line, without Markdown's signs."""
    return " ".join(re.sub(r"[`*|<>\[\]\\]", "", text).split())
