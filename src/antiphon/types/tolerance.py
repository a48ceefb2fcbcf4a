"""Handles unknown fields and values: leaves them out and names them, or refuses them (`strict`).

The API grows faster than any gateway: clients send items, parts, tools and values that came after this version. Most
of them do not change the model's prompt. A client that is refused for one is worse off than a client whose answer
lacks it.

Lives here: the decision, and the names of ignored parts. Not here: the known names (each reader has its own), known
parts without effect (`CreateResponse.ignored`).

Tools are separate. An answer without a tool that the client relies on may be wrong. This holds even if the tool is
known but not set up here. So they have their own list and their own decision (`refuse_tools`).

Invariants: every ignored part has its name in `names` (the 65th and all further ones are `...`), and an ignored tool in
`tools`. In strict mode nothing unknown is left out. What a call waits for, and what restricts an answer or a search,
never comes here: that is refused in any case.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from antiphon.errors import InvalidRequest

_LONGEST: Final = 128
MAX_NAMES: Final = 64
"""The maximal number of names of left-out parts, and of parts without effect."""
_MORE: Final = "..."


@dataclass(slots=True)
class Tolerance:
    """The leftovers of one request. `names`: the unknown names that the translation leaves out. `tools`: the tools that
    it leaves out, known or unknown. Each stands once, in the order of the request."""

    strict: bool = False
    names: list[str] = field(default_factory=list)
    refuse_tools: bool = False
    tools: list[str] = field(default_factory=list)

    def unknown(self, names: Iterable[str], known: Container[str]) -> Iterator[str]:
        """The names that are not `known`, up to the limit of names, because a request may have millions."""
        for name in names:
            if name in known:
                continue
            if len(self.names) > MAX_NAMES and not self.strict:
                return
            yield name

    def leave_out(self, name: str, error: InvalidRequest) -> None:
        """Note an unknown part, by the name that the client gets: `input.future_call`, `include:future`.

        Raises `error` in strict mode."""
        if self.strict:
            raise error
        self.note(name)

    def leave_out_tool(self, name: str, error: InvalidRequest) -> None:
        """Record a tool that the model does not see. Raises `error` if the settings refuse such a request."""
        if self.refuse_tools:
            raise error
        name = name[:_LONGEST]
        if name not in self.tools and len(self.tools) < MAX_NAMES:
            self.tools.append(name)

    def note(self, name: str) -> None:
        """Add a name to the ignored parts, whether `strict` is set or not."""
        name = name[:_LONGEST]
        if name not in self.names and len(self.names) <= MAX_NAMES:
            self.names.append(name if len(self.names) < MAX_NAMES else _MORE)
