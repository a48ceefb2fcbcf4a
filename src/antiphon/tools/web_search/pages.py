"""What a model reads of a web page: its text.

Lives here: which kinds of pages have a text, and the pieces of a text around a pattern. Not here: text out of HTML
(`antiphon.html_text`), fetching (a guarded fetcher behind the port `FileFetcher`).
"""

from __future__ import annotations

import re

from antiphon.html_text import decode_page, html_text
from antiphon.types.files import FetchedFile


def page_text(page: FetchedFile) -> tuple[str, str]:
    """Title and text of a page; raises ValueError for what is no text."""
    kind = page.media_type
    if kind in ("text/html", "application/xhtml+xml"):
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
