"""The types of tool declarations, and of the choice among tools.

Lives here: one tolerant type for all tool declarations, and one type for all forms of `tool_choice`. Not here: the tool
types that the model can call (`translation/request/tools.py`), and the chat form of tools
(`translation/chat/tools.py`).

Invariant: schemas and grammars stay raw slices of the request.
"""

from __future__ import annotations

from msgspec import Raw, Struct, field

from antiphon.types.json import ABSENT


class ToolDeclaration(Struct):
    """Any tool declaration. `tools` are the tools of a namespace. `source` is the unchanged declaration, which the
    response repeats. `unhurried` (`async` in JSON): the conversation may continue before calls of the tool have their
    output."""

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
    """The choice that all forms of `tool_choice` reduce to. `mode` is auto, none or required.

    - `tools` are the (name, namespace) pairs that the model may call. None allows all tools. (None, namespace) allows a
      whole namespace.
    - `single`: the request names exactly one tool.
    - `echo` is the value that the response repeats.
    """

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
        """Whether the choice names a tool of this namespace, or the whole namespace."""
        return self.tools is not None and any(space == namespace for _, space in self.tools)

    @property
    def searches(self) -> bool:
        """Whether the choice names `tool_search` among several tools, so that the model may search for tools.

        The model may find the deferred tools that the choice names. If the choice names no deferred tool, the model may
        find all of them.
        """
        return not self.single and self.means("tool_search", None)
