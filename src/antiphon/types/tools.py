"""Tools as clients declare them, and the choice among them.

Lives here: the one tolerant shape of all tool types, and what every form of `tool_choice` comes down to. Not here:
which types can be called (`translation/request/tools.py`) and what they become (`translation/chat/tools.py`).

Invariant: schemas and grammars stay raw slices of the request.
"""

from __future__ import annotations

from msgspec import Raw, Struct, field

from antiphon.types.json import ABSENT


class ToolDeclaration(Struct):
    """Any tool declaration. `tools` are a namespace's; `source` is the declaration as it was sent (for the echo).
    `unhurried` (`async`): the conversation continues before its calls have their output."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: Raw = ABSENT
    strict: bool | None = None
    format: Raw = ABSENT
    tools: Raw = ABSENT
    execution: str | None = None
    environment: Raw = ABSENT
    defer_loading: bool | None = None
    allowed_callers: Raw = ABSENT
    server_label: str | None = None
    external_web_access: Raw = ABSENT
    unhurried: bool | None = field(name="async", default=None)
    source: Raw = ABSENT


class ToolChoice(Struct, frozen=True):
    """`mode` is auto, none or required. `tools` are the (name, namespace) pairs that may be called, None for all;
    a whole namespace is (None, namespace). `single` says that exactly one tool was named. `echo` is what the response
    repeats."""

    mode: str
    echo: Raw
    tools: frozenset[tuple[str | None, str | None]] | None = None
    single: bool = False

    def means(self, name: str | None, namespace: str | None) -> bool:
        """Whether the choice names this tool, or its whole namespace."""
        if self.tools is None:
            return False
        return (name, namespace) in self.tools or (namespace is not None and (None, namespace) in self.tools)

    def means_of(self, namespace: str | None) -> bool:
        """Whether the choice names a tool of this namespace, or the whole of it."""
        return self.tools is not None and any(space == namespace for _, space in self.tools)

    @property
    def searches(self) -> bool:
        """Whether it allows a search for tools, among others.

        The model may find the deferred tools that the choice names, or all of them where it names none."""
        return not self.single and self.means("tool_search", None)
