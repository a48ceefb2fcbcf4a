"""Reads tools from a create-response body, and from items that declare tools.

This module decides which tools the model can call, which tools Antiphon ignores, and which tools Antiphon rejects.
`tool_choice.py` reads the choice among tools, and `translation/chat/tools.py` converts tools to chat functions.

The model can call the tools that the client runs: functions, custom tools, namespaces with such tools, shells,
apply_patch and the client's tool search. If this sidecar cannot run a hosted tool, the request still succeeds without
the tool. The sidecar refuses the request only if the answer would be wrong without that tool.

Invariant: every tool in the result has a valid name and, within one list, appears once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import (
    InvalidRequest,
    invalid_parameter,
    invalid_type,
    invalid_value,
    missing_parameter,
    too_many_entries,
    unsupported_parameter,
    wrong_value,
)
from antiphon.translation.request.checks import check_choice, known_choice, read_value, required
from antiphon.types.json import ABSENT, first, given, try_decode
from antiphon.types.request import ToolDeclaration
from antiphon.types.tolerance import MAX_NAMES, Tolerance
from antiphon.types.views import AllowedTools, CustomFormat, Skills, ToolEnvironment

NAMED: Final = ("function", "custom", "namespace")
"""Types of tools whose declaration has a name."""

UNNAMED: Final = ("local_shell", "shell", "apply_patch", "tool_search")
"""Types of tools that the client runs and whose name is their type."""

SEARCHED: Final = "tool_search_output"
"""The type of items that declare the tools that a search has found."""

WEB_SEARCHES: Final = (
    *("web_search", "web_search_2025_08_26"),
    *("web_search_preview", "web_search_preview_2025_03_11"),
)
"""The versions of the hosted web search tool."""

_REFUSED: Final = {
    "code_interpreter": "the operator has not enabled the tool ('code_interpreter.sandbox')",
    "mcp": "the server lacks the extra 'mcp', or the operator has disabled the tool ('mcp.enabled')",
}
"""The hosted tools without which an answer would be wrong. If Antiphon does not run such a tool, Antiphon refuses the
request. The values are the reasons, with the setting that enables the tool."""

_NOT_STARTED: Final = (
    "the operator has enabled the tool, but its sandbox did not start; the operator finds the cause in Antiphon's log"
)
_NONE: Final = "this server does not implement the tool"
_NOT_HERE: Final = {
    "web_search": "the operator has not enabled the tool ('web_search.provider')",
    "file_search": "the operator has disabled the tool ('vector_stores.enabled')",
    "image_generation": _NONE,
    "computer": _NONE,
    "computer_use_preview": _NONE,
    "programmatic_tool_calling": _NONE,
}
"""The other known hosted tools. If Antiphon does not run such a tool, Antiphon leaves the tool out. The values are the
reasons."""

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]+")
_LONGEST_NAME: Final = 128
_RAW_LIST: Final = msgspec.json.Decoder(list[Raw])
_TOOL: Final = msgspec.json.Decoder(ToolDeclaration)


_FOUND: Final = msgspec.json.Decoder(AllowedTools)
_ENVIRONMENT: Final = msgspec.json.Decoder(ToolEnvironment)
_SKILLS: Final = msgspec.json.Decoder(Skills)
_FORMAT: Final = msgspec.json.Decoder(CustomFormat)
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_NESTED: Final = " In the Responses API, the fields of a function stand next to 'type', not under 'function'."


def decode_tools(where: str, value: Raw) -> list[ToolDeclaration]:
    """Return the declarations in a JSON array, each with its undecoded JSON text as `source`. Raises
    `InvalidRequest`."""
    if not given(value):
        return []
    sources = read_value(where, _RAW_LIST, value)
    tools = []
    for number, source in enumerate(sources):
        tool = read_value(f"{where}[{number}]", _TOOL, source)
        tool.source = source
        tools.append(tool)
    return tools


def found_on_servers(tools: Sequence[ToolDeclaration]) -> list[tuple[str, str]]:
    """Return the tools of MCP servers among the tools that a search has found. A result has the server's label and the
    tool's name."""
    found = []
    for tool in tools:
        if tool.type == "mcp" and tool.server_label is not None:
            names = _FOUND.decode(tool.source).allowed_tools
            found += [(tool.server_label, name) for name in (names if isinstance(names, list) else ())]
    return found


def hosted_name(kind: str) -> str:
    """Return the name by which a tool choice refers to a hosted tool. All versions of a tool have the same name."""
    return "web_search" if kind.startswith("web_search") else kind


def why_not_here(kind: str, not_started: frozenset[str] = frozenset()) -> str:
    """Return the reason why Antiphon does not run a hosted tool of this type. If a setting enables the tool, the reason
    names it. `not_started` are the types of enabled tools that could not start."""
    if kind in not_started:
        return _NOT_STARTED
    return _REFUSED.get(kind) or _NOT_HERE.get(hosted_name(kind), _NONE)


def runs_here(tool: ToolDeclaration, hosted: frozenset[str]) -> bool:
    """Whether Antiphon runs a declared tool. `hosted` are the types of tools that Antiphon runs."""
    return tool.type in hosted and (tool.type != "tool_search" or tool.execution != "client")


def read_tools(
    where: str,
    tools: list[ToolDeclaration],
    limit: int,
    hosted: frozenset[str] = frozenset(),
    tolerance: Tolerance | None = None,
    *,
    brought: str | None = None,
) -> tuple[list[ToolDeclaration], list[str]]:
    """Return the tools that the model can call, and the names of ignored tools (`tools.web_search`). Raises
    `InvalidRequest`.

    `hosted` are the types of tools that Antiphon runs. `tolerance` decides whether unknown members are ignored or
    refused. `brought` is the type of the item that declares the tools. Antiphon never runs tools that an item declares,
    except tools of MCP servers that a search found (`found_on_servers`).
    """
    if len(tools) > limit:
        raise _too_many(where, len(tools), limit)
    count = len(tools)
    kept: list[ToolDeclaration] = []
    left_out: list[str] = []
    names: set[str] = set()
    for number, tool in enumerate(tools):
        place = f"{where}[{number}]"
        if runs_here(tool, hosted):
            name = f"{hosted_name(tool.type)} {tool.server_label or ''} (hosted)"
            if name in names:
                raise wrong_value(f"The hosted tool {hosted_name(tool.type)!r} is declared twice.", place)
            names.add(name)
            left_out += _unused(place, tool, (), tolerance)
            if not may_be_called(tool):
                left_out.append(_left_out(f"{place}.allowed_callers", _uncallable(place), tolerance))
            elif hosted_name(tool.type) == "web_search" and bytes(tool.external_web_access) not in _LIVE:
                # The client wants a search without web access, but Antiphon has no cached copy of the web.
                left_out.append(_left_out(f"tools.{tool.type}", _uncached(where, place), tolerance))
            else:
                kept.append(tool)
            continue
        if tool.type == "mcp" and brought == SEARCHED:
            continue
        if tool.type in _REFUSED:
            not_started = tolerance.not_started if tolerance is not None else frozenset()
            raise _refused(where, place, tool, not_started, brought=brought is not None)
        if not _is_callable(tool):
            name, known = f"tools.{tool.type}", hosted_name(tool.type) in _NOT_HERE or tool.type in UNNAMED
            if tolerance is not None and not known:
                tolerance.leave_out(name, _unknown(place, tool))
                _left_out(name, _unknown(place, tool), tolerance)
            else:
                left_out.append(_left_out(name, _unavailable(where, place, tool), tolerance))
            continue
        members = decode_tools(f"{place}.tools", tool.tools) if tool.type == "namespace" else []
        name = _check(place, tool, members)
        left_out += _unused(place, tool, members, tolerance)
        if tool.type == "namespace":
            count += len(members)
            if count > limit:
                raise _too_many(where, count, limit)
            inner = [f"{place}.tools[{at}]" for at, one in enumerate(members) if not may_be_called(one)]
            left_out += [_left_out(f"{one}.allowed_callers", _uncallable(one), tolerance) for one in inner]
        elif not may_be_called(tool):
            left_out.append(_left_out(f"{place}.allowed_callers", _uncallable(place), tolerance))
            continue
        if name in names:
            raise wrong_value(f"Two tools are called {name!r}; names must be unique.", f"{place}.name")
        names.add(name)
        kept.append(tool)
    return kept, left_out


def _too_many(where: str, count: int, limit: int) -> InvalidRequest:
    return too_many_entries(where, count, limit, "entries, including the tools in namespaces")


def _unsupported(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="unsupported_tool")


def _refused(
    where: str, place: str, tool: ToolDeclaration, not_started: frozenset[str], *, brought: bool
) -> InvalidRequest:
    if not brought:
        return _unavailable(where, place, tool, not_started)
    why = f"cannot be declared by an item. Declare the tool in 'tools' instead of '{where}'"
    return _unsupported(f"{place}.type", f"The hosted tool '{tool.type}' {why}.")


def _left_out(name: str, error: InvalidRequest, tolerance: Tolerance | None) -> str:
    """Leave a tool out, and return `name`. Raises `error` if the settings refuse a request with such a tool."""
    if tolerance is not None:
        tolerance.leave_out_tool(name, error)
    return name


def _unavailable(
    where: str, place: str, tool: ToolDeclaration, not_started: frozenset[str] = frozenset()
) -> InvalidRequest:
    why = f"cannot run here: {why_not_here(tool.type, not_started)}. Remove the tool from '{where}'"
    return _unsupported(f"{place}.type", f"The hosted tool '{tool.type}' {why}.")


def _uncached(where: str, place: str) -> InvalidRequest:
    return _unsupported(
        f"{place}.external_web_access",
        "'external_web_access' is false, and this server has no offline copy of the web to search. Leave the "
        f"field out, or remove the tool from '{where}'.",
    )


def _uncallable(place: str) -> InvalidRequest:
    return _unsupported(
        f"{place}.allowed_callers",
        "'allowed_callers' allows only programmatic calls, which this server does not support. Add "
        "'direct' to 'allowed_callers', or remove the tool.",
    )


_COMMON: Final = frozenset({"type", "allowed_callers", "defer_loading"})
_WEB_SEARCH: Final = frozenset(
    {
        *("type", "filters", "user_location", "search_context_size", "search_content_types"),
        "external_web_access",
    }
)
TOOL_MEMBERS: Final = {
    "function": _COMMON | {"name", "description", "parameters", "strict", "async", "output_schema"},
    "custom": _COMMON | {"name", "description", "format", "async"},
    "namespace": _COMMON | {"name", "description", "tools"},
    "local_shell": _COMMON,
    "shell": _COMMON | {"environment"},
    "apply_patch": _COMMON,
    "tool_search": _COMMON | {"execution", "description", "parameters"},
    **dict.fromkeys(WEB_SEARCHES, _WEB_SEARCH),
    "file_search": frozenset(
        {"type", "vector_store_ids", "vector_store_id", "max_num_results", "filters", "filter", "ranking_options"}
    ),
    "code_interpreter": frozenset({"type", "allowed_callers", "container"}),
    "mcp": _COMMON
    | {"server_label", "server_url", "connector_id", "tunnel_id", "server_description", "authorization", "headers"}
    | {"allowed_tools", "require_approval"},
}
"""The known members of each tool type's declaration."""
_NO_EFFECT: Final = frozenset({"output_schema", "search_content_types"})
_OF_A_CLIENTS_SEARCH: Final = frozenset({"description", "parameters"})
_EXECUTIONS: Final = ("client", "server")
_LIVE: Final = (b"", b"null", b"true", b'"live"')
"""Values of `external_web_access` that let a search access the web."""


_INSIDE: Final = {
    "custom": {"format": frozenset({"type", "syntax", "definition"})},
    "shell": {"environment": frozenset({"type", "skills"})},
    "web_search": {"user_location": frozenset({"type", "country", "region", "city", "timezone"})},
    "file_search": {"ranking_options": frozenset({"ranker", "score_threshold", "hybrid_search"})},
    "code_interpreter": {"container": frozenset({"type", "file_ids", "memory_limit", "network_policy"})},
}
"""For each tool type: the objects inside the tool's declaration, with the members that Antiphon knows."""


def _unused(
    where: str, tool: ToolDeclaration, members: Sequence[ToolDeclaration], tolerance: Tolerance | None
) -> list[str]:
    """Return the names of the known members of a declaration that have no effect. The function records unknown members
    in `tolerance`.

    The list is empty for a tool of an extension package, since only that package knows the tool's members. The list is
    also empty if `tolerance` is None. In that case, an earlier call of `read_tools` has already listed the members of
    the same tools.
    """
    known = TOOL_MEMBERS.get(tool.type)
    if known is None or tolerance is None:
        return []
    no_effect = _NO_EFFECT
    if tool.type == "tool_search":
        execution = tool.execution
        if not known_choice(f"{where}.execution", execution, _EXECUTIONS, tolerance) or execution != "client":
            no_effect |= _OF_A_CLIENTS_SEARCH
    declared = _OBJECT.decode(tool.source)
    for name in tolerance.unknown(declared, known):
        error = unsupported_parameter(f"Unknown member: '{where}.{name}'.", f"{where}.{name}")
        tolerance.leave_out(f"tools.{tool.type}.{name}", error)
    unused = [f"tools.{tool.type}.{name}" for name in sorted(no_effect & known) if given(declared.get(name, ABSENT))]
    for place, known_inside in _INSIDE.get(tool.type, {}).items():
        inside = declared.get(place, ABSENT)
        names = _OBJECT.decode(inside) if first(inside) == b"{" else ()
        unused += [
            f"tools.{tool.type}.{place}.{name}"
            for name in islice((name for name in names if name not in known_inside), MAX_NAMES)
        ]
    if _for_programs_too(tool):
        unused.append(f"tools.{tool.type}.allowed_callers")
    for number, inner in enumerate(members):
        unused += _unused(f"{where}.tools[{number}]", inner, (), tolerance)
    return unused


def _for_programs_too(tool: ToolDeclaration) -> bool:
    """Whether a tool may be called by the model, and also by programs that the model writes."""
    return (
        first(tool.allowed_callers) == b"[" and may_be_called(tool) and len(_RAW_LIST.decode(tool.allowed_callers)) > 1
    )


def may_be_called(tool: ToolDeclaration) -> bool:
    """Whether the model may call this tool directly. Antiphon drops a tool that only programs of the model may call,
    because Antiphon runs no such programs."""
    callers = tool.allowed_callers
    if first(callers) != b"[":
        return True
    named = _RAW_LIST.decode(callers)
    return not named or b'"direct"' in map(bytes, named)


def _unknown(place: str, tool: ToolDeclaration) -> InvalidRequest:
    # difflib is needed only for an unknown type.
    import difflib

    near = difflib.get_close_matches(tool.type[:64], TOOL_MEMBERS, n=1, cutoff=0.8)
    meant = (
        f"Did you mean '{near[0]}'?"
        if near
        else ("This version of Antiphon does not support this tool. Leave the tool out.")
    )
    return wrong_value(f"Unknown type of tool: {tool.type[:64]!r}. {meant}", f"{place}.type")


def _is_callable(tool: ToolDeclaration) -> bool:
    if tool.type == "tool_search":
        # If Antiphon does not search for tools, the model sees all tools, so the model needs no search.
        return tool.execution == "client"
    if tool.type == "shell":
        # A shell in a container of the server is a hosted tool.
        return _environment(tool.environment) in (None, "local")
    return tool.type in NAMED or tool.type in UNNAMED


def _environment(value: Raw) -> str | None:
    """Return the type of a shell's environment, or None if the shell has no environment. The client runs a shell
    without an environment."""
    found = try_decode(_ENVIRONMENT, value) if given(value) else ToolEnvironment()
    return found.type if found is not None else "unknown"


def local_skills(where: str, environment: Raw) -> list[str]:
    """Return the skills that the request names for a client's shell, one line of text for each skill. Raises
    `InvalidRequest`."""
    if not given(environment):
        return []
    skills = read_value(f"{where}.environment", _SKILLS, environment).skills or []
    lines = (f"{one.name}{f' ({one.path})' if one.path else ''}: {one.description or ''}" for one in skills)
    return [line.rstrip(": ") for line in lines]


def _check(where: str, tool: ToolDeclaration, members: Sequence[ToolDeclaration], *, spaced: bool = False) -> str:
    """Check a declaration, and return the tool's name. `members` are the tools of a namespace. `spaced` is true if the
    tool is inside a namespace."""
    if given(tool.parameters) and first(tool.parameters) != b"{":
        raise invalid_type(f"{where}.parameters", "expected an object")
    if tool.type in UNNAMED:
        if tool.type == "shell":
            local_skills(where, tool.environment)
        return tool.type
    if tool.name is None:
        raise missing_parameter(f"{where}.name", _NESTED if _is_nested(tool.source) else "")
    if tool.type == "namespace":
        if not tool.name or len(tool.name) > 256:
            raise invalid_parameter(f"{where}.name", "use 1 to 256 characters")
        names: set[str] = set()
        for number, inner in enumerate(members):
            place = f"{where}.tools[{number}]"
            if inner.type not in ("function", "custom"):
                raise invalid_value(f"{place}.type", "a namespace may contain only functions and custom tools")
            name = _check(place, inner, (), spaced=True)
            if name in names:
                raise wrong_value(
                    f"Two tools of the namespace {tool.name!r} are called {name!r}; names must be unique.",
                    f"{place}.name",
                )
            names.add(name)
        return f"{tool.name} (namespace)"
    # Names of MCP tools (in namespaces) may hold any character. The model sees a chat name that fits
    # (`translation/tool_map.py`).
    if not (0 < len(tool.name) <= _LONGEST_NAME and (spaced or _NAME.fullmatch(tool.name))):
        raise invalid_parameter(f"{where}.name", f"use 1 to {_LONGEST_NAME} letters, digits, underscores or dashes")
    if tool.type == "custom" and given(tool.format):
        _check_format(f"{where}.format", tool.format)
    return tool.name


def _is_nested(source: Raw) -> bool:
    """Whether a function is declared in the form of Chat Completions."""
    return first(source) == b"{" and "function" in _OBJECT.decode(source)


def _check_format(where: str, value: Raw) -> None:
    """Check a custom tool's format: text, or a grammar with its definition."""
    form = read_value(where, _FORMAT, value)
    check_choice(f"{where}.type", form.type, ("text", "grammar"))
    if form.type == "grammar":
        required(where, "definition", form.definition)
        check_choice(f"{where}.syntax", form.syntax, ("lark", "regex"))
