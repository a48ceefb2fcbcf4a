"""What a model reads of a web page: its text.

Lives here: which kinds of pages have a text, where their links lead, a text by its lines, and the pieces of one around
a pattern. Not here: text out of HTML (`antiphon.html_text`), fetching (a guarded fetcher behind a port, `PageFetcher`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urldefrag, urljoin

from antiphon.html_text import decode_page, html_links, html_text
from antiphon.types.files import FetchedFile

_HTML = ("text/html", "application/xhtml+xml")
_MAX_LINKS = 200
_LONGEST_LINE = 500


@dataclass(frozen=True, slots=True)
class Link:
    """A link of a page: `url` is http or https."""

    text: str
    url: str


def page_text(page: FetchedFile) -> tuple[str, str]:
    """Title and text of a page; raises ValueError for what is no text."""
    kind = page.media_type
    if kind in _HTML:
        return html_text(decode_page(page.data))
    if kind.startswith("text/") or kind.endswith(("json", "xml", "yaml", "javascript")):
        return page.name, decode_page(page.data)
    raise ValueError(kind)


def around(text: str, pattern: str, *, limit: int = 10, reach: int = 300) -> list[str]:
    """The pieces of the text around a pattern, whatever its case; touching ones are one."""
    found: list[tuple[int, int]] = []
    for match in re.finditer(re.escape(pattern), text, re.IGNORECASE):
        start, end = max(0, match.start() - reach), min(len(text), match.end() + reach)
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return [text[start:end].strip() for start, end in found[:limit]]


def page_links(page: FetchedFile, url: str) -> list[Link]:
    """Where a page at this address leads, in the page's order; links within the page are none."""
    if page.media_type not in _HTML:
        return []
    links = []
    here = urldefrag(url).url
    for text, target in html_links(decode_page(page.data), _MAX_LINKS):
        try:
            leads = urljoin(url, target)
        except ValueError:
            continue
        if leads.startswith(("http://", "https://")) and urldefrag(leads).url != here:
            links.append(Link(text, leads))
    return links


def by_lines(text: str, first: int, limit: int) -> str:
    """The text from this line on (the first is 1), each line with its number, as far as the limit goes."""
    lines = [
        line[at : at + _LONGEST_LINE] for line in text.split("\n") for at in range(0, max(len(line), 1), _LONGEST_LINE)
    ]
    if first > len(lines):
        return f"The page has {len(lines)} lines."
    shown: list[str] = []
    room = limit
    for number, line in enumerate(lines[first - 1 :], first):
        room -= len(line) + 1
        if room < 0:
            shown.append(f"[The page goes on: it has {len(lines)} lines.]")
            break
        shown.append(f"L{number}: {line}")
    return "\n".join(shown)
