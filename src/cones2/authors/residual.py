"""Making a residual of ours from a residual file of the authors' code."""

import importlib.metadata
from pathlib import Path

from cones2.authors.tensor import AuthorsFile, read_authors_file
from cones2.backbones import Backbone
from cones2.captions.corpus import check_class_word
from cones2.errors import ResidualMismatchError
from cones2.residual.residual import Residual


def import_residual(backbone: Backbone, path: Path, class_word: str) -> Residual:
    """Read a `residual.pt` that the authors' training script wrote; nothing in it is ever executed.

    The file holds numbers alone. That they were learned on this backbone, at this class word, is for the caller to
    know: only their width and their number of tokens can be checked.

    Args:
        backbone: the model that it was learned on.
        path: the file.
        class_word: the word, or words, that it was learned at: their `--instance_prompt`.

    Raises:
        CaptionError: the class word can't be used.
        ResidualError: the file is anything but one tensor as that script saves it.
        ResidualMismatchError: it has another width than the backbone, or another number of tokens than the class word.
    """
    return adopt(backbone, read_authors_file(path), class_word, origin=str(path))


def adopt(backbone: Backbone, file: AuthorsFile, class_word: str, *, origin: str) -> Residual:
    """Make a residual of what was read; `origin` names it in errors. Raises as `import_residual` does."""
    class_word = check_class_word(class_word)
    ids = backbone.tokenizer(class_word, add_special_tokens=False, verbose=False)["input_ids"]
    if file.vector.shape[1] != backbone.width:
        raise ResidualMismatchError(
            f"{origin} has width {file.vector.shape[1]}, {backbone.name} has {backbone.width}: name the model that it"
            " was learned on."
        )
    if len(file.vector) != len(ids):
        raise ResidualMismatchError(
            f"{origin} has {len(file.vector)} tokens, {backbone.name} makes {len(ids)} of {class_word!r}: name the"
            " class word that it was learned at."
        )
    return Residual(
        class_word=class_word,
        vector=file.vector,
        tokens=tuple(backbone.tokenizer.convert_ids_to_tokens(ids)),
        encoder=backbone.encoder_id,
        recipe={"imported_from": "ali-vilab/Cones-V2", "sha256": file.sha256},
        photos=(),
        tool_version=importlib.metadata.version("cones2"),
    )
