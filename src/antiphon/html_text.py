"""Extracts the text, title and links of an HTML page.

This module also decodes the bytes of a page. The pages come from the web search tool, and from the module that extracts
the text of files for vector stores.

Invariants: markup, scripts, styles and hidden elements never reach the model. The running time is linear in the page's
length, even if elements are not closed.
"""

from __future__ import annotations

import codecs
import re
from html import unescape

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
_WEB_ENCODING = re.compile(
    r"utf-8(-sig)?|utf-16(-[lb]e)?|ascii|iso8859-\d+|cp(125\d|874|866|932|949)|koi8-[ru]|gbk|gb2312|gb18030|big5(hkscs)?|"
    r"euc_(jp|kr)|shift_jis|iso2022_jp|mac-(roman|cyrillic)"
)
_NAME = re.compile(r"[a-zA-Z][^\s/>]{0,64}")
_IN_TAG = re.compile(r">|=\s{0,16}[\"']")
_HIDDEN = re.compile(r"\s(aria-hidden|hidden)(?![^\s/=])(?!=false)")
_MAX_ATTRIBUTES = 4_096
_ANCHOR = re.compile(r"<a(?=\s)", re.IGNORECASE)
_ANCHOR_END = re.compile(r"</a", re.IGNORECASE)
_HREF = re.compile(r"\shref\s{0,8}=\s{0,8}(\"[^\"]*|'[^']*|[^\s\"']+)", re.IGNORECASE)
_LONGEST_LABEL = 200
_RAW = frozenset({"script", "style"})
_LONG_REFERENCE = re.compile(r"&#[xX]?[0-9a-fA-F]{8,}")
_SPACE = re.compile(r"[ \t\r\n\f]+")
_BLANKS = re.compile(r"[ \t\r\f\v\u00a0]+")
_LINES = re.compile(r"\n{3,}")


def html_text(html: str) -> tuple[str, str]:
    """Return the title and the text of a page. Each block element is on a separate line of the text."""
    reader = _Reader()
    reader.read(html)
    return reader.title, reader.text


def html_links(html: str, most: int) -> list[tuple[str, str]]:
    """Return the first `most` links of a page in order: for each link, its text and its target (`href`) as written."""
    found: list[tuple[str, str]] = []
    at = 0
    while len(found) < most and (begun := _ANCHOR.search(html, at)) is not None:
        end = html.find(">", begun.end())
        if end < 0:
            break
        at = end + 1
        target = _HREF.search(html[begun.end() : min(end, begun.end() + _MAX_ATTRIBUTES)])
        if target is None:
            continue
        over = _ANCHOR_END.search(html, at, at + _MAX_ATTRIBUTES)
        said = html_text(html[at : over.start()])[1] if over is not None else ""
        found.append((" ".join(said.split())[:_LONGEST_LABEL], unescape(target[1].strip("\"' "))))
    return found


def decode_page(data: bytes) -> str:
    """Decode a page with the encoding that it declares. If that encoding fails, try UTF-8, then Windows-1252."""
    named = _CHARSET.search(data[:2048])
    for encoding in (_web_encoding(named[1].decode("ascii")) if named else "utf-8", "utf-8", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return data.decode("utf-8", "replace")


def _web_encoding(name: str) -> str:
    """The encoding `name` if browsers support it too, else UTF-8. Some other encodings of Python are very slow, or do
    not produce text."""
    try:
        found = codecs.lookup(name).name
    except LookupError:
        return "utf-8"
    return found if _WEB_ENCODING.fullmatch(found) else "utf-8"


class _Reader:
    """Extracts the text of HTML in one pass. The reader scans each character once, even if elements are not closed.

    A tag or comment that is not closed extends to the end of the page, as in browsers.
    """

    def __init__(self) -> None:
        self.title = ""
        self._parts: list[str] = []
        self._skipping: list[str] = []
        self._preformatted = 0
        self._in_title = False

    @property
    def text(self) -> str:
        """All text, each block on a separate line."""
        lines = "\n".join(_BLANKS.sub(" ", line).strip() for line in "".join(self._parts).split("\n"))
        return _LINES.sub("\n\n", lines).strip()

    def read(self, html: str) -> None:
        """Read a whole page."""
        at = 0
        while at < len(html):
            start = html.find("<", at)
            if start < 0:
                self._data(html[at:])
                return
            if start > at:
                self._data(html[at:start])
            following = html[start + 1 : start + 2]
            if following.isascii() and following.isalpha():
                at = self._start_tag(html, start)
            elif following == "/":
                end = html.find(">", start)
                name = _NAME.match(html, start + 2)
                if name is not None:
                    self._end(name[0].lower())
                at = end + 1 if end >= 0 else len(html)
            elif following in ("!", "?"):
                closer = "-->" if html.startswith("<!--", start) else ">"
                end = html.find(closer, start + 2)
                at = end + len(closer) if end >= 0 else len(html)
            else:
                self._data("<")
                at = start + 1

    def _start_tag(self, html: str, start: int) -> int:
        """Read the tag that begins at `start`. Returns the index after the tag."""
        name = _NAME.match(html, start + 1)
        assert name is not None
        tag, at = name[0].lower(), name.end()
        # The attributes, with at most the first eight characters of each value.
        bare: list[str] = []
        while True:
            mark = _IN_TAG.search(html, at)
            if mark is None:
                return len(html)
            bare.append(html[at : mark.start()])
            if mark[0] == ">":
                break
            end = html.find(mark[0][-1], mark.end())
            if end < 0:
                return len(html)
            value = html[mark.end() : min(end, mark.end() + 8)].strip()
            bare.append(f"={value} " if " " not in value else "=… ")
            at = end + 1
        self._start(tag, bool(_HIDDEN.search("".join(bare)[:_MAX_ATTRIBUTES].lower())))
        if tag in _RAW:
            end_tag = re.compile(f"</{tag}", re.IGNORECASE).search(html, mark.end())
            return end_tag.start() if end_tag is not None else len(html)
        return mark.end()

    def _start(self, tag: str, hidden: bool) -> None:
        self._in_title = tag == "title"
        if tag == "body":
            # HTML allows a page to leave out </head>.
            self._skipping.clear()
        if tag in _VOID:
            if tag == "br":
                self._parts.append("\n")
            return
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
            self._preformatted += tag == "pre"
            self._parts.append("\n\n" if tag[0] in "hp" else "\n")

    def _end(self, tag: str) -> None:
        self._in_title = False
        if self._skipping:
            if tag == self._skipping[0]:
                self._skipping.pop()
        elif tag in _BLOCKS:
            self._preformatted = max(0, self._preformatted - (tag == "pre"))
            self._parts.append("\n")

    def _data(self, data: str) -> None:
        if self._skipping and not self._in_title:
            return
        data = unescape(_LONG_REFERENCE.sub("\ufffd", data))
        if self._in_title and not self.title:
            self.title = _BLANKS.sub(" ", data.replace("\n", " ")).strip()[:300]
        elif not self._skipping:
            self._parts.append(data if self._preformatted else _SPACE.sub(" ", data))
