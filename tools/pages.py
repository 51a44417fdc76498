"""What `make docs` does with links to files beside docs/: the repository shows these, and the built pages lack them.

Pictures are put beside the pages, and other files are named instead.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\(\.\./(?P<path>[^)#\s]+)(?:#[^)\s]*)?\)")


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pictures that pages show, as mkdocs calls it once."""
    from mkdocs.structure.files import File  # type: ignore[import-not-found]  # in the environment of the docs alone

    pages = [page.content_string for page in files.documentation_pages()]
    shown = {found["path"] for page in pages for found in _LINK.finditer(page) if found["picture"]}
    for path in sorted(shown):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrite a page's links, as mkdocs calls it for each page."""
    return _LINK.sub(_rewritten, markdown)


def _rewritten(found: re.Match[str]) -> str:
    text, path = found["text"], found["path"]
    if found["picture"]:
        return f"![{text}]({path})"
    return text if path in text or Path(path).stem == text else f"{text} (`{path}`)"
