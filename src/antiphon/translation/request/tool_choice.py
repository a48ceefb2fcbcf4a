"""Reads `tool_choice`: its forms, the tools that each form allows, and the form in which a response repeats it.

`translation/chat/tools.py` makes the field `tool_choice` of the chat request. `translation/answer/tool_calls.py` drops
calls that the choice forbids.

Invariant: a returned choice names only tools that the model can call, or tools that an earlier request may have
declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import array_too_long, missing_parameter, unsupported_parameter, wrong_value
from antiphon.translation.request.checks import check_choice, read_string, read_value
from antiphon.translation.request.tools import NAMED, UNNAMED, decode_tools, hosted_name, why_not_here
from antiphon.types.json import given, raw
from antiphon.types.request import ToolChoice, ToolDeclaration
from antiphon.types.views import AnyToolChoice, NamedTool

_KnownTool = tuple[str | None, str | None, str | None]
"""The kind, name and namespace of a tool. A function and a custom tool with the same name are two tools."""

MODES: Final = ("auto", "none", "required")

_ONE_FUNCTION: Final = frozenset({"web_search", "file_search", "code_interpreter"})
"""The hosted tools that the model sees as a single function with the tool's name."""


CHOICE_MEMBERS: Final = frozenset(AnyToolChoice.__struct_fields__)
"""The known members of a choice, and of the tools that the choice names."""

_CHOICE: Final = msgspec.json.Decoder(AnyToolChoice)


def read_tool_choice(
    value: Raw,
    tools: list[ToolDeclaration],
    left_out: list[str],
    *,
    declared: Sequence[ToolDeclaration] = (),
    limit: int,
    continued: bool = False,
    hosted: frozenset[str] = frozenset(),
    not_started: frozenset[str] = frozenset(),
) -> ToolChoice | None:
    """Return the tool choice, or None if the request has no `tool_choice`. Raises `InvalidRequest`.

    - `declared` are the tools in the request's field `tools`. `tools` are those of them that the model can call, and
      the tools that items of the input declare.
    - `limit` is the maximal number of tools that the choice may name.
    - `continued` is true if earlier requests may have declared tools. The choice may then name unknown tools.
      `translation/chat/tools.py` checks unknown names a second time, with the tools that the history declares.
    """
    if not given(value):
        return None
    if bytes(value)[:1] == b'"':
        mode = read_string("tool_choice", value)
        check_choice("tool_choice", mode, MODES)
        if mode == "required" and not tools and not continued:
            raise wrong_value(
                "tool_choice 'required' needs a tool that can be called; none of the given tools runs here: "
                f"{', '.join(tool.type[:64] for tool in declared[:8])}."
                if declared
                else "tool_choice 'required' needs 'tools'.",
                "tool_choice",
            )
        return ToolChoice(mode, value)
    choice = read_value("tool_choice", _CHOICE, value)
    if len(choice.tools or ()) > limit:
        raise array_too_long("tool_choice.tools", limit, len(choice.tools or ()))
    known = None if continued else _known(tools)
    if choice.type == "allowed_tools":
        return _allowed(choice, known, hosted)
    if choice.type in ("function", "custom") and choice.name is None:
        nested = (
            " In the Responses API 'name' stands next to 'type', not under 'function'."
            if given(choice.function)
            else ""
        )
        raise missing_parameter("tool_choice.name", nested)
    if choice.type in hosted:
        pair = _hosted_pair(choice)
        if known is not None and (choice.type, *_hosted_pair(choice, whole=True)) not in known:
            why = "cannot run here as it is declared" if f"tools.{choice.type}" in left_out else "is not in 'tools'"
            raise wrong_value(f"tool_choice names the hosted tool {choice.type!r}, which {why}.", "tool_choice")
        return ToolChoice("required", raw(_echo(choice)), frozenset({pair}), single=True)
    name = (choice.name, choice.namespace) if choice.type in ("function", "custom") else (choice.type, None)
    if choice.type not in ("function", "custom") and choice.type not in UNNAMED:
        raise unsupported_parameter(
            f"tool_choice asks for {choice.type[:64]!r}, which cannot run here: "
            f"{why_not_here(choice.type, not_started)}.",
            "tool_choice",
        )
    if known is not None and (choice.type, *name) not in known:
        raise wrong_value(
            f"tool_choice names the {choice.type} {choice.name or choice.type!r}, which is not in 'tools'.",
            "tool_choice",
        )
    return ToolChoice("required", raw(_echo(choice)), frozenset({name}), single=True)


def _hosted_pair(named: NamedTool | AnyToolChoice, *, whole: bool = False) -> tuple[str | None, str | None]:
    """Return the name and the namespace of a hosted tool. An MCP server counts as a namespace. A tool of an extension
    package also counts as a namespace."""
    if named.type == "mcp":
        return (None if whole else named.name, named.server_label)
    name = hosted_name(named.type or "")
    return (name, None) if name in _ONE_FUNCTION else (None, name)


def _allowed(choice: AnyToolChoice, known: set[_KnownTool] | None, hosted: frozenset[str]) -> ToolChoice:
    mode = choice.mode or "auto"
    check_choice("tool_choice.mode", mode, MODES)
    allowed: set[tuple[str | None, str | None]] = set()
    listed = []
    for number, tool in enumerate(choice.tools or ()):
        if tool.type in ("function", "custom"):
            name: tuple[str | None, str | None] = (tool.name, tool.namespace)
        elif tool.type == "namespace":
            name = (None, tool.name)
        elif tool.type in UNNAMED:
            name = (tool.type, None)
        elif tool.type in hosted:
            name = _hosted_pair(tool)
        else:
            # Antiphon leaves out a hosted tool that it does not run, as it leaves out the tool's declaration.
            continue
        sought = _hosted_pair(tool, whole=True) if tool.type in hosted else name
        if known is not None and (tool.type, *sought) not in known:
            raise wrong_value(
                f"tool_choice allows the {tool.type} {tool.name or tool.type!r}, which is not in 'tools'.",
                f"tool_choice.tools[{number}]",
            )
        allowed.add(name)
        listed.append(_echo(tool))
    if not allowed:
        raise wrong_value("tool_choice allows no tool that can be called here.", "tool_choice.tools")
    echo = raw({"type": "allowed_tools", "mode": mode, "tools": listed})
    return ToolChoice(mode, echo, frozenset(allowed))


def _known(tools: list[ToolDeclaration]) -> set[_KnownTool]:
    known: set[_KnownTool] = set()
    for tool in tools:
        if tool.type == "namespace":
            known.add((tool.type, None, tool.name))
            known |= {(inner.type, inner.name, tool.name) for inner in decode_tools("tools", tool.tools)}
        elif tool.type == "mcp":
            known.add((tool.type, None, tool.server_label))
        elif tool.type not in NAMED and tool.type not in UNNAMED:
            known.add((tool.type, *_hosted_pair(NamedTool(type=tool.type))))
        else:
            known.add((tool.type, tool.type if tool.type in UNNAMED else tool.name, None))
    return known


def _echo(named: NamedTool | AnyToolChoice) -> dict[str, object]:
    shown = ("type", "server_label", "name", "namespace")
    return {key: value for key in shown if (value := getattr(named, key)) is not None}
