"""Handles unknown fields and values in a request. Antiphon ignores them and lists their names, or refuses the request
in strict mode.

The API grows faster than any gateway: clients send items, parts, tools and values that are newer than this version of
Antiphon. Most newer values do not change the model's prompt. A client is worse off with a refused request than with an
answer that ignores an unknown value.

Lives here: the decision about unknown fields and values, and the list of ignored names. Not here: the lists of known
names, which are in the modules that read the values, and known fields without effect (`CreateResponse.ignored`).

Tools have a separate list and a separate setting (`refuse_tools`). An answer without a tool that the client relies on
may be wrong. The model may lack an unknown tool, or a known tool that the operator has not configured.

Invariants: `names` lists every ignored field or value, and `tools` lists every ignored tool. In each list, the 65th
name is `...`, which stands for all further names. In strict mode Antiphon ignores no unknown field or value. In both
modes Antiphon refuses a request whose tool call has an output of unknown type. In both modes Antiphon also refuses a
request that restricts a response or a search in an unknown way. The callers never pass these two cases to this module.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from antiphon.errors import InvalidRequest

_LONGEST: Final = 128
MAX_NAMES: Final = 64
"""The maximum number of names that one response lists. The names are those of ignored unknown parts, and of parts
without effect."""
_MORE: Final = "..."


@dataclass(slots=True)
class Tolerance:
    """The unknown fields and values and the tools of one request that the translation ignores. `names` has the names of
    the unknown fields and values. `tools` has the tools that the model does not see, known or unknown. Each list has
    the order of the request, without duplicates."""

    strict: bool = False
    names: list[str] = field(default_factory=list)
    refuse_tools: bool = False
    tools: list[str] = field(default_factory=list)

    def unknown(self, names: Iterable[str], known: Container[str]) -> Iterator[str]:
        """Yield the names that are not in `known`. The iteration stops when `self.names` is full, because a request may
        have millions of names."""
        for name in names:
            if name in known:
                continue
            if len(self.names) > MAX_NAMES and not self.strict:
                return
            yield name

    def leave_out(self, name: str, error: InvalidRequest) -> None:
        """Record the name of an unknown field or value, in the form that the client gets, for example
        `input.future_call` or `include:future`.

        Raises `error` in strict mode.
        """
        if self.strict:
            raise error
        self.note(name)

    def leave_out_tool(self, name: str, error: InvalidRequest) -> None:
        """Record a tool that the model does not see. Raises `error` if the settings refuse a request with such a
        tool."""
        if self.refuse_tools:
            raise error
        name = name[:_LONGEST]
        if name not in self.tools and len(self.tools) < MAX_NAMES:
            self.tools.append(name)

    def note(self, name: str) -> None:
        """Add a name to `names`, in strict mode too."""
        name = name[:_LONGEST]
        if name not in self.names and len(self.names) <= MAX_NAMES:
            self.names.append(name if len(self.names) < MAX_NAMES else _MORE)
