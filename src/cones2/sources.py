"""Where residuals come from: files, the library, the examples and the Hub, tried in this order."""

from pathlib import Path

from cones2.checking import is_hub_id
from cones2.files import expanded
from cones2.library import Library
from cones2.residual import Residual


def find_residual(source: str | Path) -> Residual:
    """Return the residual that a user names.

    Args:
        source: a file, or any path that ends in `.safetensors`; a name in the library; the name of an example; or a Hub
            id, `owner/name`.

    Raises:
        ResidualError: the file is not a sound residual.
        LibraryError: neither the library nor the examples have this name.
        HubError: the Hub does not have this id, or can't be reached.
    """
    path, name = expanded(source), str(source)
    if path.is_file() or path.suffix == ".safetensors":
        return Residual.load(path)
    if is_hub_id(name):
        from cones2.hub import pull

        return pull(name)
    from cones2.examples import EXAMPLES

    library = Library.open()
    if name in EXAMPLES and not library.path_of(name).exists():
        return EXAMPLES[name].residual
    return library.load(name)


def find_by_hash(sha256: str) -> Residual | None:
    """Return the residual of the library or of the examples whose file has this sha256; None where there is none."""
    from cones2.examples import EXAMPLES

    found = Library.open().find(sha256)
    examples = (example.residual for example in EXAMPLES.values())
    return found or next((residual for residual in examples if residual.sha256 == sha256), None)
