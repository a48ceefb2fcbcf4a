"""Makes the page docs/reference/code-map.md, which lists every module with the first sentences of its docstring.

Lives here: reading the docstrings and the page's form. Not here: writing the page (`generate_docs.py`).

Invariant: the page holds only text from docstrings, so it cannot differ from the code.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

_HEAD = """# Code map

This page lists every module of `src/antiphon`, by folder. An entry says what the module does, what it contains, and
which invariants it keeps. `scripts/docs` writes this page from the modules' docstrings. [How it
works](../how-it-works.md) explains the design. [Where a change goes](../contributing/where-a-change-goes.md) names the
module for each kind of change.
"""

_SHOWN = ("Lives here", "This module", "This package", "Invariant")


def page(package: Path, chart: Path) -> str:
    """The page, for the modules below one folder and the templates of a chart."""
    folders = sorted({path.parent for path in package.rglob("*.py") if "_pb" not in path.parts})
    templates = [
        f"- `deployments/helm/antiphon/templates/{path.name}`: {match[1]}"
        for path in sorted((chart / "templates").glob("_*.tpl"))
        if (match := re.match(r"{{/\* (.*?) \*/}}", path.read_text()))
    ]
    helm = f"## Parts of the Helm chart\n\n{chr(10).join(templates)}\n"
    return "\n".join([_HEAD, *(_section(package, folder) for folder in folders), helm])


def _section(package: Path, folder: Path) -> str:
    title = "The package's own modules" if folder == package else f"`{folder.relative_to(package)}/`"
    rows = [
        f"- `{path.relative_to(package)}`: {_said(package, path)}"
        for path in sorted(folder.glob("*.py"))
        if path.name != "__init__.py"
    ]
    about = [] if folder == package else [_said(package, folder / "__init__.py")]
    return "\n\n".join((f"## {title}", *about, *(["\n".join(rows)] if rows else []))) + "\n"


def _said(package: Path, path: Path) -> str:
    """The first paragraph of a docstring, and the paragraphs that begin with words in `_SHOWN`. File names become
    paths in the package."""
    # A list becomes the sentences of its entries.
    paragraphs = [
        " ".join(re.sub(r"(?m)^\s*- ", "", one).split())
        for one in (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")
    ]
    more = [one.partition(" Not here:")[0] for one in paragraphs[1:] if one.startswith(_SHOWN)]
    text = " ".join((paragraphs[0], *more))

    def whole(match: re.Match[str]) -> str:
        beside = (path.parent / match[1]).resolve()
        return f"`{beside.relative_to(package)}`" if beside.exists() else match[0]

    return re.sub(r"`([\w./]+\.py)`", whole, text)
