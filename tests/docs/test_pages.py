"""All pages: the index links each of them, and the guides keep to the style rule about dates."""

from __future__ import annotations

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
