"""Handles unknown fields and values in a request. By default, Antiphon ignores them and lists their names. In strict
mode, it refuses the request.

Clients often send items, content parts, tools and values that are newer than this version of Antiphon. Most of them do
not change the model's prompt, so an answer that ignores them helps the client more than an error.

The modules that parse a value have the lists of its known names. `CreateResponse.ignored` has the known fields without
effect.

For tools there is a separate list, and a separate setting (`refuse_tools`), because an answer without a tool may be
wrong. This list contains unknown tools, and known tools that the operator has not configured.

Invariants: `names` lists every ignored field or value, and `tools` lists every ignored tool. After 64 names, the entry
`...` stands for all further names. In strict mode Antiphon ignores no unknown field or value. Even without strict mode,
Antiphon refuses unknown tool outputs, and unknown restrictions of a response or a search. The callers raise these
errors themselves.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from antiphon.errors import InvalidRequest

_LONGEST: Final = 128
MAX_NAMES: Final = 64
"""The maximum number of ignored fields and values that one response lists."""
_MORE: Final = "..."


@dataclass(slots=True)
class Tolerance:
    """What the translation ignores in one request. `names` has the names of unknown fields and values. `tools` has the
    names of the tools that the model does not get. Both lists are in the order of the request, without duplicates."""

    strict: bool = False
    names: list[str] = field(default_factory=list)
    refuse_tools: bool = False
    not_started: frozenset[str] = frozenset()
    """The types of tools that the operator has enabled, but that could not start in this process."""
    tools: list[str] = field(default_factory=list)

    def unknown(self, names: Iterable[str], known: Container[str]) -> Iterator[str]:
        """Yield the names that are not in `known`. The iteration stops when `self.names` is full, because a request may
        have millions of unknown names."""
        for name in names:
            if name in known:
                continue
            if len(self.names) > MAX_NAMES and not self.strict:
                return
            yield name

    def leave_out(self, name: str, error: InvalidRequest) -> None:
        """Record the name of an unknown field or value, for example `input.future_call` or `include:future`.

        Raises `error` in strict mode.
        """
        if self.strict:
            raise error
        self.note(name)

    def leave_out_tool(self, name: str, error: InvalidRequest) -> None:
        """Record the name of a tool that the model does not get. Raises `error` instead if `refuse_tools` is set."""
        if self.refuse_tools:
            raise error
        name = name[:_LONGEST]
        if name not in self.tools and len(self.tools) < MAX_NAMES:
            self.tools.append(name)

    def note(self, name: str) -> None:
        """Add a name to `names`, even in strict mode."""
        name = name[:_LONGEST]
        if name not in self.names and len(self.names) <= MAX_NAMES:
            self.names.append(name if len(self.names) < MAX_NAMES else _MORE)
