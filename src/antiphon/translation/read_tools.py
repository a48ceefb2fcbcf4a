"""Tools and the choice among them, read from a create-response body.

Lives here: which tools can be called, which are left out and named, which are refused, and every form of `tool_choice`.
Not here: the other fields (`read_request.py`), the chat form of tools (`chat_request.py`).

Invariant: a choice that is kept names only tools that are kept.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest
from antiphon.translation.checks import NAME, check_choice, read_string, wrong_type
from antiphon.types.json import encode, first, given
from antiphon.types.request import FunctionTool

__all__ = ["read_tool_choice", "read_tools"]

# Hosted tools that cannot run here: left out and named, except those without which the answer would be wrong.
_REFUSED_TOOLS = ("code_interpreter", "mcp")


def read_tools(tools: list[FunctionTool], most: int) -> tuple[list[FunctionTool], list[str]]:
    if len(tools) > most:
        raise InvalidRequest(
            f"'tools' has {len(tools)} entries; at most {most} are allowed.",
            param="tools",
            code="array_above_max_length",
        )
    kept: list[FunctionTool] = []
    left_out: list[str] = []
    names: set[str] = set()
    for number, tool in enumerate(tools):
        where = f"tools[{number}]"
        if tool.type in _REFUSED_TOOLS:
            raise InvalidRequest(
                f"The hosted tool '{tool.type}' cannot run here; remove it from 'tools'.",
                param=f"{where}.type",
                code="unsupported_tool",
            )
        if tool.type != "function":
            left_out.append(f"tools.{tool.type}")
            continue
        if tool.name is None:
            raise InvalidRequest(
                f"Missing required parameter: '{where}.name'.",
                param=f"{where}.name",
                code="missing_required_parameter",
            )
        if not NAME.fullmatch(tool.name):
            raise InvalidRequest(
                f"Invalid '{where}.name': use 1 to 64 letters, digits, underscores or dashes.",
                param=f"{where}.name",
                code="invalid_value",
            )
        if tool.name in names:
            raise InvalidRequest(
                f"Two tools are called {tool.name!r}; names must be unique.",
                param=f"{where}.name",
                code="invalid_value",
            )
        if given(tool.parameters) and first(tool.parameters) != b"{":
            raise InvalidRequest(
                f"Invalid type for '{where}.parameters': expected an object.",
                param=f"{where}.parameters",
                code="invalid_type",
            )
        names.add(tool.name)
        kept.append(tool)
    return kept, left_out


class _NamedTool(msgspec.Struct):
    type: str | None = None
    name: str | None = None


class _ToolChoice(msgspec.Struct):
    type: str
    name: str | None = None
    mode: str | None = None
    tools: list[_NamedTool] | None = None


def read_tool_choice(value: Raw, tools: list[FunctionTool], left_out: list[str]) -> Raw | None:
    """The choice as it is echoed: a string, a function, or allowed tools with their mode."""
    if not given(value):
        return None
    if bytes(value)[:1] == b'"':
        choice = read_string("tool_choice", value)
        check_choice("tool_choice", choice, ("auto", "none", "required"))
        if choice == "required" and not tools:
            raise InvalidRequest(
                "tool_choice 'required' needs a tool that can be called; none of 'tools' can run here."
                if left_out
                else "tool_choice 'required' needs 'tools'.",
                param="tool_choice",
                code="invalid_value",
            )
        return value
    try:
        choice_object = msgspec.json.decode(value, type=_ToolChoice)
    except msgspec.ValidationError as error:
        raise wrong_type("tool_choice", error) from None
    names = {tool.name for tool in tools}
    if choice_object.type == "function":
        if choice_object.name not in names:
            raise InvalidRequest(
                f"tool_choice names the function {choice_object.name!r}, which is not in 'tools'.",
                param="tool_choice",
                code="invalid_value",
            )
        return Raw(encode({"type": "function", "name": choice_object.name}))
    if choice_object.type == "allowed_tools":
        mode = choice_object.mode or "auto"
        check_choice("tool_choice.mode", mode, ("none", "auto", "required"))
        chosen = choice_object.tools or []
        for number, tool in enumerate(chosen):
            if tool.type == "function" and tool.name not in names:
                raise InvalidRequest(
                    f"tool_choice allows the function {tool.name!r}, which is not in 'tools'.",
                    param=f"tool_choice.tools[{number}]",
                    code="invalid_value",
                )
        if not any(tool.type == "function" for tool in chosen):
            raise InvalidRequest(
                "tool_choice allows no tool that can be called here.", param="tool_choice.tools", code="invalid_value"
            )
        listed = [{"type": tool.type, "name": tool.name} for tool in chosen if tool.type == "function"]
        return Raw(encode({"type": "allowed_tools", "mode": mode, "tools": listed}))
    raise InvalidRequest(
        f"tool_choice asks for {choice_object.type[:64]!r}, which cannot run here.",
        param="tool_choice",
        code="unsupported_parameter",
    )
