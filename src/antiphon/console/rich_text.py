"""Turns texts of models and clients into safe HTML.

This module renders Markdown, and indents JSON. Templates write all other HTML.

Invariant: the resulting HTML has only tags and attributes of the module's allow list. Links are `http`, `https` or
`mailto`, and images become links, so a page never loads content from another server.
"""

from __future__ import annotations

import html
import json
from functools import cache
from typing import Final

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup

_LONGEST: Final = 10_000
"""The maximum number of characters that the parser renders as Markdown. The limit bounds the parser's time, which for
hostile text is 5 microseconds a character."""
_SHOWN: Final = 100_000
"""The maximum number of characters of JSON that a page shows. Indentation multiplies the size of deeply nested JSON."""
_CUT: Final = "\n… cut here, because a page shows at most 100,000 characters"
_TAGS: Final = frozenset(
    {
        *("a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "li", "ol"),
        *("p", "pre", "s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
    }
)
_ATTRIBUTES: Final = {"a": {"href", "title"}, "code": {"class"}}
_SCHEMES: Final = {"http", "https", "mailto"}


def markdown(text: str) -> Markup:
    """Render Markdown. Only the first 10,000 characters become Markdown. The rest follows as plain text."""
    made = _parser().render(text[:_LONGEST])
    safe = nh3.clean(
        made,
        tags=set(_TAGS),
        attributes={tag: set(names) for tag, names in _ATTRIBUTES.items()},
        url_schemes=set(_SCHEMES),
        link_rel="noopener noreferrer nofollow",
    )
    rest = text[_LONGEST : _LONGEST + _SHOWN]
    return Markup(safe + (f"<pre>{html.escape(rest)}</pre>" if rest else ""))


def pretty_json(value: object) -> str:
    """Indent JSON. Bytes and text that are not JSON stay unchanged. The result has at most about 100,000 characters.
    The result is not HTML: the templates escape it."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return _shortened(str(value))
    return indented(value)


def indented(value: object) -> str:
    """Return the value as indented JSON. After about 100,000 characters, the encoder stops, and the text ends."""
    parts: list[str] = []
    size = 0
    try:
        for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
            parts.append(part)
            size += len(part)
            if size > _SHOWN:
                return "".join(parts)[:_SHOWN] + _CUT
    except (ValueError, TypeError, RecursionError):
        return _shortened(str(value) if not isinstance(value, (dict, list)) else "".join(parts))
    return "".join(parts)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + _CUT


@cache
def _parser() -> MarkdownIt:
    # Without the rule for images, an image becomes a link. An image on another server would tell that server who reads
    # the page.
    made = MarkdownIt("commonmark", {"html": False, "linkify": False})
    return made.enable(["table", "strikethrough"]).disable("image")
