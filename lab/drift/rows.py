"""Decides whether Antiphon supports a field, value, item or event of a client, by looking it up in Antiphon's own
tables.

Lives here: the table for each kind. Not here: reasons for what has no row (`known.toml`).

- The table of supported features (`translation/request/field_support.py`): fields, values of `include`, tools, forms of
  `tool_choice`, items, content parts.
- Antiphon's OpenAPI document, made from the table of routes and from the types: routes, events, output items, their
  fields, values.
- The readers' own lists of items, parts, tools, and of the members of all three.
- The frames that a WebSocket accepts, and Antiphon's answer to an unknown one (`api/frames.py`).

Invariant: only an explicit entry counts as a row. That Antiphon would drop and report an unknown name does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from antiphon.translation.chat.content import KNOWN_PARTS
from antiphon.translation.item_kinds import HOSTED, ITEMS, members_of
from antiphon.translation.request.field_support import all_names
from antiphon.translation.request.tools import TOOL_MEMBERS
from antiphon.types.items import KnownPart
from lab.drift.found import Found, of_places
from tests.support.openai_client import WITHOUT
from tests.support.shapes import Shape, shape_of
from tests.support.whole_api import whole_document

_SCHEMAS = {"request": "CreateResponse", "response": "Response", "events": "StreamEvent"}
_FRAMES = frozenset({"response.create", "response.steer", "response.inject", "response.processed"})
_ANSWERS = {
    "response.steer.failed": ("error", "sequence_number", "steer"),
    "response.inject.failed": ("error", "sequence_number", "response_id", "stream_id", "input"),
}

_OF_GROUPS = frozenset({"tools", "tool_choice", "include"})
"""Fields whose rows are groups of the table."""

_WITHIN = {
    "item field": "item",
    "part field": "part",
    "tool field": "tool",
    "output field": "output",
    "event field": "event",
    "response field": "response field",
}


class Rows:
    """All rows. `names` has the names of the table of supported features, and `document` is Antiphon's OpenAPI
    document."""

    def __init__(self, names: Iterable[str], document: dict[str, Any]) -> None:
        shapes = {area: _shape(document, area) for area in _SCHEMAS}
        self._has: set[Found] = set()
        for area, shape in shapes.items():
            self._has |= of_places(area, shape.places)
        self._has -= {
            one
            for one in self._has
            if one.kind not in ("value", "output", "output field", "response field", "event", "event field")
        }
        self._choices = {one.name.partition("=")[0] for one in self._has if one.kind == "value"}
        self._open = of_places("response", shapes["response"].open)
        self._fields: set[str] = set()
        for name in names:
            self._add(name)
        self._has |= {Found("item", kind) for kind in ITEMS}
        self._has |= {Found("part", kind) for kind in KNOWN_PARTS}
        self._has |= {Found("frame", name) for name in _FRAMES} | {Found("event", name) for name in _ANSWERS}
        for kind, fields_of in (
            ("item field", {item: members_of(item) for item in ITEMS.keys() - HOSTED}),
            ("part field", dict.fromkeys(KNOWN_PARTS, KnownPart.__struct_fields__)),
            ("tool field", TOOL_MEMBERS),
            ("event field", _ANSWERS),
        ):
            self._has |= {Found(kind, f"{one}.{field}") for one, fields in fields_of.items() for field in fields}
        self._has |= {
            Found("route", f"{method.upper()} {re.sub(r'{[^}]*}', '{}', path.removeprefix('/v1'))}")
            for path, item in document["paths"].items()
            for method in item
        }
        self._words = {one.name for one in self._has}

    def has(self, found: Found) -> bool:
        """Whether the pair has a row. A part also has a row if its whole has a row without further detail."""
        kind, name = found.kind, found.name
        if found in self._has:
            return True
        if kind == "field":
            return name in _OF_GROUPS or any(_is_within(name, row) or _is_within(row, name) for row in self._fields)
        if kind == "value":
            # If the field accepts any string, Antiphon need not know its values.
            return name.partition("=")[0] not in self._choices
        if kind == "word":
            return name in self._words or any(one.endswith(f".{name}") for one in self._fields)
        if kind == "item field":
            # The model sees all fields of the items of hosted tools.
            return name.partition(".")[0] in HOSTED
        return kind == "response field" and Found(kind, name.partition(".")[0]) in self._open

    def _add(self, name: str) -> None:
        """Add a row of the table: `include:x`, `tools.x`, `tools.x.y`, `tool_choice.x`, `input.x`, `content.x`, or a
        field."""
        head, _, rest = name.partition(".")
        if name.startswith("include:"):
            self._has.add(Found("include", name.removeprefix("include:")))
        elif " " in name:
            # The row "any other" is for unknown names, so it is not a row for a known one.
            return
        elif head == "tools" and rest:
            self._has.add(Found("tool field" if "." in rest else "tool", rest))
        elif head == "tool_choice" and rest:
            self._has.add(Found("choice", rest))
        elif head == "input" and rest:
            self._has.add(Found("item", rest))
        elif head == "content" and rest:
            self._has.add(Found("part", rest.partition(".")[0]))
        else:
            self._fields.add(name)


def own_rows() -> Rows:
    """The rows of this version of Antiphon."""
    return Rows(all_names(), whole_document())


def within(found: Found) -> Found | None:
    """The item, part, tool, event or response that contains this field."""
    kind = _WITHIN.get(found.kind)
    name, _, _ = found.name.rpartition(".")
    return Found(kind, name) if kind is not None and name else None


def _shape(document: dict[str, Any], area: str) -> Shape:
    reference = {"$ref": f"#/components/schemas/{_SCHEMAS[area]}"}
    return shape_of(reference, document, without=WITHOUT[area])


def _is_within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")
