"""Turns texts of models and clients into safe HTML.

Lives here: Markdown and indented JSON. Not here: any other HTML, which templates write.

Invariant: the result holds only the tags and attributes that nh3's allow list has. Links are `http`, `https` or
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

_LONGEST: Final = 200_000
_TAGS: Final = frozenset(
    {
        *("a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "li", "ol"),
        *("p", "pre", "s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
    }
)
_ATTRIBUTES: Final = {"a": {"href", "title"}, "code": {"class"}}
_SCHEMES: Final = {"http", "https", "mailto"}


def markdown(text: str) -> Markup:
    """Render Markdown. Of a text that is longer than 200,000 characters, the rest follows as plain text."""
    made = _parser().render(text[:_LONGEST])
    safe = nh3.clean(
        made,
        tags=set(_TAGS),
        attributes={tag: set(names) for tag, names in _ATTRIBUTES.items()},
        url_schemes=set(_SCHEMES),
        link_rel="noopener noreferrer nofollow",
    )
    rest = text[_LONGEST:]
    return Markup(safe + (f"<pre>{html.escape(rest)}</pre>" if rest else ""))


def pretty_json(value: object) -> str:
    """Indent JSON. Bytes and text that are no JSON stay as they are. Templates escape the result."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return str(value)
    try:
        return json.dumps(value, indent=2, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return str(value)


@cache
def _parser() -> MarkdownIt:
    # Without the rule for images, an image becomes a link. An image would tell another server who reads the page.
    made = MarkdownIt("commonmark", {"html": False, "linkify": False})
    return made.enable(["table", "strikethrough"]).disable("image")
