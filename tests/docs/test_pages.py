"""All pages: the index links each of them, guides have no dates of runs, and diagrams are as new as their sources."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

_DOCS = Path(__file__).parents[2] / "docs"
_FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
_DATE = re.compile(r"\b20\d\d-\d\d(?:-\d\d)?\b")
_GUIDES = sorted(path for folder in ("how-to", "tutorials") for path in (_DOCS / folder).glob("*.md"))


def _unlinked(index: str, pages: set[str]) -> set[str]:
    """The pages that no link of the index opens."""
    return pages - {target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", index)}


def _dates(page: str) -> list[str]:
    """The dates in the prose of a page, without code."""
    return _DATE.findall(re.sub(r"`[^`]*`", "", _FENCE.sub("", page)))


def test_the_index_links_every_page() -> None:
    pages = {path.relative_to(_DOCS).as_posix() for path in _DOCS.rglob("*.md")} - {"index.md"}
    assert len(pages) > 50 and _unlinked((_DOCS / "index.md").read_text(), pages) == set()


def test_a_page_without_a_link_is_found() -> None:
    assert _unlinked("[a](a.md#part), `b.md`", {"a.md", "b.md"}) == {"b.md"}


@pytest.mark.parametrize("page", _GUIDES, ids=lambda path: path.name)
def test_a_guide_has_no_date_of_a_run(page: Path) -> None:
    """Dated runs belong into `docs/contributing/measurements.md`."""
    assert _dates(page.read_text()) == []


def test_dates_in_code_are_no_dates_of_a_run() -> None:
    assert _dates("On 2026-01-02 it ran.\n```\n2026-01-03\n```\n`--since 2026-01-04`") == ["2026-01-02"]


def _stale(folder: Path) -> list[str]:
    """The diagrams that were not rendered from the present sources."""
    style = (folder / "mermaid.json").read_bytes()
    found = []
    for source in sorted(folder.glob("*.mmd")):
        digest = hashlib.sha256(source.read_bytes() + style).hexdigest()
        picture = source.with_suffix(".svg")
        if not picture.exists() or not picture.read_text().endswith(f"sha256 {digest} -->\n"):
            found.append(source.name)
    return found


def test_every_diagram_is_rendered_from_its_present_source() -> None:
    assert len(list((_DOCS / "images").glob("*.mmd"))) > 5
    assert _stale(_DOCS / "images") == [], "run scripts/docs images"


def test_a_changed_diagram_is_found(tmp_path: Path) -> None:
    for name in ("mermaid.json", "relay.mmd", "relay.svg", "parts.mmd", "parts.svg"):
        (tmp_path / name).write_text((_DOCS / "images" / name).read_text())
    assert _stale(tmp_path) == []
    (tmp_path / "relay.mmd").write_text((tmp_path / "relay.mmd").read_text().replace("Client", "Browser"))
    assert _stale(tmp_path) == ["relay.mmd"]
