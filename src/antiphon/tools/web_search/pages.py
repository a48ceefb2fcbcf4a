"""What a model reads of a web page: its text.

Lives here: text out of HTML, and the pieces of a text around a pattern. Not here: fetching (a guarded fetcher behind
the port `FileFetcher`).

Invariant: markup never reaches the model, and neither do scripts, styles and what a page hides.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

from antiphon.types.files import FetchedFile

__all__ = ["around", "page_text"]

_SKIPPED = frozenset(
    {"script", "style", "noscript", "template", "svg", "canvas", "iframe", "object", "nav", "footer", "head"}
)
_BLOCKS = frozenset(
    {
        *("p", "div", "section", "article", "main", "aside", "header", "ul", "ol", "table", "tr", "blockquote", "pre"),
        *("h1", "h2", "h3", "h4", "h5", "h6", "br", "hr", "dl", "dt", "dd", "figure", "figcaption"),
    }
)
_VOID = frozenset(
    {"br", "hr", "img", "input", "meta", "link", "source", "wbr", "area", "base", "col", "embed", "track"}
)
_CHARSET = re.compile(rb"charset=[\"']?([A-Za-z0-9_.:-]{1,40})", re.IGNORECASE)
_BLANKS = re.compile(r"[ \t\r\f\v\u00a0]+")
_LINES = re.compile(r"\n{3,}")


def page_text(page: FetchedFile) -> tuple[str, str]:
    """Title and text of a page; raises ValueError for what is no text."""
    kind = page.media_type
    if kind in ("text/html", "application/xhtml+xml"):
        reader = _Reader()
        reader.feed(_decoded(page.data))
        reader.close()
        return reader.title, reader.text
    if kind.startswith("text/") or kind.endswith(("json", "xml", "yaml", "javascript")):
        return page.name, _decoded(page.data)
    raise ValueError(kind)


def around(text: str, pattern: str, *, most: int = 10, reach: int = 300) -> list[str]:
    """The pieces of the text around a pattern, whatever its case; touching ones are one."""
    found: list[tuple[int, int]] = []
    for match in re.finditer(re.escape(pattern), text, re.IGNORECASE):
        start, end = max(0, match.start() - reach), min(len(text), match.end() + reach)
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return [text[start:end].strip() for start, end in found[:most]]


def _decoded(data: bytes) -> str:
    named = _CHARSET.search(data[:2048])
    for encoding in (named[1].decode("ascii") if named else "utf-8", "utf-8", "cp1252"):
        try:
            return data.decode(encoding)
        except (LookupError, UnicodeDecodeError):
            continue
    return data.decode("utf-8", "replace")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self._parts: list[str] = []
        self._skipping: list[str] = []
        self._in_title = False

    @property
    def text(self) -> str:
        """All text, blocks on lines of their own."""
        lines = "\n".join(_BLANKS.sub(" ", line).strip() for line in "".join(self._parts).split("\n"))
        return _LINES.sub("\n\n", lines).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title"
        if tag == "body":
            # The end of the head need not be written.
            self._skipping.clear()
        if tag in _VOID:
            if tag == "br":
                self._parts.append("\n")
            return
        hidden = any(name in ("hidden", "aria-hidden") and value != "false" for name, value in attrs)
        if self._skipping:
            if tag == self._skipping[0]:
                self._skipping.append(tag)
        elif tag in _SKIPPED or hidden:
            self._skipping.append(tag)
        elif tag == "li":
            self._parts.append("\n- ")
        elif tag in ("td", "th"):
            self._parts.append(" | ")
        elif tag in _BLOCKS:
            self._parts.append("\n\n" if tag[0] in "hp" else "\n")

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False
        if self._skipping:
            if tag == self._skipping[0]:
                self._skipping.pop()
        elif tag in _BLOCKS:
            self._parts.append("\n")

    def handle_data(self, data: str) -> None:
        if self._in_title and not self.title:
            self.title = _BLANKS.sub(" ", data).strip()[:300]
        elif not self._skipping:
            self._parts.append(data)
