"""Represents what clients of the Responses API can send and parse, as pairs of a kind and a name.

Lives here: the kinds, and the conversion of schema positions (`tests/support/shapes.py`) and of a program's words into
pairs. Not here: reading a package (`read_python.py`, `python_types.py`, `typescript.py`, `codex.py`), the pairs that
Antiphon supports (`rows.py`).

Invariant: a name has the spelling of the table of supported features (`tools.function.strict` is the tool field
`function.strict`). So a recorded reason stays valid from version to version.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

KINDS = {
    "field": "request field",
    "value": "value of a request field",
    "item": "item of `input`",
    "item field": "field of such an item",
    "part": "content part",
    "part field": "field of such a part",
    "include": "value of `include`",
    "tool": "tool",
    "tool field": "field of a tool",
    "choice": "form of `tool_choice`",
    "output": "output item",
    "output field": "field of an output item",
    "response field": "field of a response",
    "event": "event",
    "event field": "field of an event",
    "frame": "event that clients send",
    "route": "route",
    "word": "`type` in a program that is nothing of the above",
}
"""Every kind, with its description for a table."""

_KIND = r"<([^<>]+)>"
_REQUEST = (
    (re.compile(rf"\.input\[\]{_KIND}"), "item"),
    (re.compile(rf"\.input\[\]{_KIND}\.(\w+)"), "item field"),
    (re.compile(rf"\.input\[\]<[^<>]+>\.(?:content|output|summary)(?:\[\])?{_KIND}"), "part"),
    (re.compile(rf"\.input\[\]<[^<>]+>\.(?:content|output|summary)(?:\[\])?{_KIND}\.(\w+)"), "part field"),
    (re.compile(r"\.include\[\]=(.+)"), "include"),
    (re.compile(rf"(?:\.input\[\]<[^<>]+>)?(?:\.tools\[\](?:<namespace>)?)+{_KIND}"), "tool"),
    (re.compile(rf"(?:\.input\[\]<[^<>]+>)?(?:\.tools\[\](?:<namespace>)?)+{_KIND}\.(\w+)"), "tool field"),
    (re.compile(rf"\.tool_choice{_KIND}"), "choice"),
    (re.compile(r"\.tool_choice=(.+)"), "choice"),
    (re.compile(r"\.(\w+)"), "field"),
    (re.compile(r"\.(?!input|tools|tool_choice)(\w+)\.(\w+)"), "field"),
    (re.compile(rf"\.(?!input|tools|tool_choice)(\w+(?:\.\w+)?)(?:\[\])?{_KIND}"), "field"),
    (re.compile(r"\.(?!model|include|tool_choice)(\w+(?:\.\w+)?=.+)"), "value"),
)
_RESPONSE = (
    (re.compile(rf"\.output\[\]{_KIND}"), "output"),
    (re.compile(rf"\.output\[\]{_KIND}\.(\w+)"), "output field"),
    (re.compile(r"\.(\w+)"), "response field"),
    (re.compile(r"\.(?!output|tools|tool_choice|text|reasoning|instructions)(\w+)\.(\w+)"), "response field"),
)
_EVENTS = ((re.compile(_KIND), "event"), (re.compile(rf"{_KIND}\.(\w+)"), "event field"))
_FRAMES = ((re.compile(_KIND), "frame"),)
_PATTERNS = {"request": _REQUEST, "response": _RESPONSE, "events": _EVENTS, "frames": _FRAMES}
_TYPE_OF_ALL = ("item field", "part field", "tool field", "output field", "event field")


@dataclass(frozen=True, order=True)
class Found:
    """One field, value, item or event that a client can send or parse."""

    kind: str
    name: str


@dataclass
class Reading:
    """The result of reading one client. `sure` describes the reliability of the reading. `typed` has the values that
    the client's types allow for a `type`, at any depth. The types that contain these values have a row or a reason."""

    client: str
    version: str
    sure: str
    found: set[Found] = field(default_factory=set)
    typed: set[str] = field(default_factory=set)

    def add(self, kind: str, names: Iterable[str]) -> None:
        """Add names of one kind."""
        self.found |= {Found(kind, name) for name in names}

    def add_places(self, area: str, places: Iterable[str]) -> None:
        """Add the schema positions of a type: of a `request`, a `response`, `events` or `frames`."""
        places = list(places)
        self.found |= of_places(area, places)
        self.typed |= {word for place in places for word in re.findall(_KIND, place)}

    def needs(self, *names: tuple[str, str]) -> None:
        """Raise ValueError unless the reading has these pairs, which every client has. A reading without them is
        broken, and would otherwise look like a client without differences."""
        missing = [f"{kind} {name}" for kind, name in names if Found(kind, name) not in self.found]
        if missing:
            raise ValueError(f"{self.client} {self.version} was not read as it should be: no {', '.join(missing)}")


def of_places(area: str, places: Iterable[str]) -> set[Found]:
    """The pairs for schema positions of one area."""
    found = set()
    for place in places:
        for pattern, kind in _PATTERNS[area]:
            match = pattern.fullmatch(place)
            if match is not None:
                name = ".".join(match.groups())
                # The discriminator (`type`) of an object is not a field of it.
                if not (kind in _TYPE_OF_ALL and name.endswith(".type")):
                    found.add(Found(kind, name))
    return found
