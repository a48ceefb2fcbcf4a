"""Sphinx's configuration for the site of the documentation (`scripts/docs build`).

The pages are the Markdown files of docs/, which read well on a code host too: this file adds what only the site needs,
the contents in the sidebar and addresses for links that leave docs/. Invariant: a built page loads nothing from another
host.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
_SOURCE = _PROJECT["urls"]["Source"]

project = "Antiphon"
author = _PROJECT["authors"][0]["name"]
copyright = f"{author}, {_PROJECT['license']}"
_version = re.search(r'__version__ = "([^"]+)"', (ROOT / "src" / "antiphon" / "__init__.py").read_text())
release = version = _version[1] if _version else ""

extensions = ["myst_parser", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["site/**"]
myst_heading_anchors = 4
myst_enable_extensions = ["smartquotes"]
# Generated pages repeat headings, and JSON blocks have "...".
suppress_warnings = ["misc.highlighting_failure", "myst.header"]
pygments_style = "friendly"
pygments_dark_style = "github-dark"
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = f"Antiphon {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}

_PARTS = (
    ("Tutorials", "tutorials", ("first-steps", "chat-app", "search-your-documents", "codex")),
    ("How-to", "how-to", ()),
    ("Reference", "reference", ("api", "compatibility", "command-line", "configuration")),
    ("Explanation", "explanation", ("../how-it-works",)),
    ("Contributing", "contributing", ("development",)),
)
"""The sidebar: a caption, the folder, and the pages that come first."""
_log = logging.getLogger(__name__)
_LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)((?:#[^)\s]*)?\))")


def contents() -> str:
    """The sidebar's contents, as MyST writes them. Every page of docs/ stands in it once."""
    blocks = []
    for caption, folder, first in _PARTS:
        found = sorted(path.relative_to(DOCS / folder).with_suffix("") for path in (DOCS / folder).rglob("*.md"))
        rest = [str(path) for path in found if str(path) not in first]
        names = [name for name in first if (DOCS / folder / f"{name}.md").exists()] + rest
        pages = "\n".join((Path(folder) / name).as_posix() for name in names).replace(f"{folder}/../", "")
        if names:
            blocks.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```")
    return "\n\n".join([*blocks, "```{toctree}\n:hidden:\n\nstyle\n```"])


def outside(text: str, page: Path) -> str:
    """The page with links to files that are not in docs/ led to the source's address."""

    def replaced(found: re.Match[str]) -> str:
        target = (page.parent / found[2]).resolve()
        if target.is_relative_to(DOCS) and target.suffix in (".md", ".png", ".svg", ".json"):
            return found[0]
        if not target.exists():
            _log.warning("%s: the link %s leads to no file", page.relative_to(ROOT), found[2])
        return f"{found[1]}{_SOURCE}/{target.relative_to(ROOT)}{found[3]}"

    return _LINK.sub(replaced, text)


def _read(_app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = outside(source[0], DOCS / f"{name}.md")
    if name == root_doc:
        source[0] += "\n\n" + contents()


def setup(app: Sphinx) -> None:
    """What Sphinx calls first."""
    app.connect("source-read", _read)
