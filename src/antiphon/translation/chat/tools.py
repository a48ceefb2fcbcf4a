"""Converts tool declarations into chat functions.

This module makes the chat declaration of every kind of tool, and the field `tool_choice` of the chat request.
`translation/request/tools.py` reads declarations, and `translation/tool_map.py` makes the chat names of tools.
`translation/call_arguments.py` and `translation/events/builder.py` convert calls back into items.

A kind of tool that chat servers do not know becomes a function, whose schema describes the input of the client's tool.
The function of a custom tool has one string argument, `input`, for the tool's text. The tool's grammar is part of the
description. The sidecar does not enforce the grammar.

Invariant: the sidecar changes a schema in only two ways. An object without `properties` gets an empty `properties`,
because servers refuse it otherwise. The sidecar removes the keyword `encrypted` from the schemas of properties. The
keyword asks OpenAI's server to encrypt the arguments. The sidecar does not encrypt arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import wrong_value
from antiphon.translation.chat.call_items import known_id
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.request.tools import (
    SEARCHED,
    decode_tools,
    found_on_servers,
    local_skills,
    may_be_called,
    read_tools,
)
from antiphon.translation.tool_map import CallKind, CallTarget, HostedFunction, ToolMap, flat_name
from antiphon.translation.values import ChatTools
from antiphon.types.items import HistoryItem, InputItem
from antiphon.types.json import ABSENT, first, given, raw
from antiphon.types.request import ToolChoice, ToolDeclaration
from antiphon.types.views import CustomFormat

_NO_PARAMETERS: Final = Raw(b'{"type":"object","properties":{}}')
_CUSTOM_PARAMETERS: Final = Raw(
    b'{"type":"object","properties":{"input":{"type":"string","description":"The whole input, unchanged."}},'
    b'"required":["input"],"additionalProperties":false}'
)
_SCHEMA: Final = msgspec.json.Decoder(dict[str, Raw])
_OBJECT: Final = b'"object"'
_UNCALLED: Final = frozenset({None, "message", "reasoning"})
_NAMED_CALLS: Final = ("function_call", "custom_tool_call")
_SHAPES: Final = frozenset({"properties", "$ref", "anyOf", "oneOf", "allOf"})
_STRINGS: Final = {"type": "array", "items": {"type": "string"}}


def _schema(*required: str, **properties: object) -> Raw:
    return raw({"type": "object", "properties": properties, "required": required})


_NATIVE: Final[dict[str, tuple[CallKind, str, Raw]]] = {
    "local_shell": (
        CallKind.LOCAL_SHELL,
        "Run a command on the user's machine and get its output.",
        _schema(
            "command",
            command={**_STRINGS, "description": 'Program and arguments, e.g. ["ls", "-l"].'},
            working_directory={"type": "string"},
            timeout_ms={"type": "integer"},
            env={"type": "object", "additionalProperties": {"type": "string"}},
        ),
    ),
    "shell": (
        CallKind.SHELL,
        "Run shell commands on the user's machine and get their output.",
        _schema(
            "commands",
            commands={**_STRINGS, "description": "Command lines, run in this order."},
            timeout_ms={"type": "integer"},
            max_output_length={"type": "integer"},
        ),
    ),
    "apply_patch": (
        CallKind.APPLY_PATCH,
        "Create, change or delete one file on the user's machine. `diff` is in V4A form: lines begin with `+`, `-` or "
        "a space, hunks with `@@`; a file is created with `+` lines alone.",
        _schema(
            *("type", "path"),
            type={"type": "string", "enum": ["create_file", "update_file", "delete_file"]},
            path={"type": "string"},
            diff={"type": "string", "description": "Needed unless the file is deleted."},
        ),
    ),
    "tool_search": (
        CallKind.TOOL_SEARCH,
        "Search for further tools; those that are found can be called afterwards.",
        _schema("query", query={"type": "string"}),
    ),
}


def make_chat_tools(
    tools: Iterable[ToolDeclaration],
    choice: ToolChoice | None,
    items: Iterable[tuple[str, InputItem]],
    profile: UpstreamProfile,
    *,
    parallel: bool | None,
    limit: int,
    hosted: Mapping[int, Sequence[HostedFunction]] | None = None,
) -> ChatTools:
    """Return the members of the chat request that concern tools. Raises `InvalidRequest`.

    `items` is the whole input including the history, because `additional_tools` and `tool_search_output` items declare
    tools. `hosted` maps the index of a tool that Antiphon runs to the functions of this tool.
    """
    # If the model may search, its search has to find the tools that the choice names before the model sees them.
    maker = _Maker(profile, choice if choice is not None and not choice.searches else None)
    tools = list(tools)
    searching = any(tool.type == "tool_search" for tool in tools)
    for number, tool in enumerate(tools):
        if hosted is not None and number in hosted:
            for function in hosted[number]:
                maker.add_hosted(f"tools[{number}]", function, hide_deferred=searching)
        elif tool.type == "tool_search" and tool.execution != "client":
            # A tool search needs deferred hosted tools. Without `hosted` functions there is nothing to search.
            continue
        else:
            maker.add(f"tools[{number}]", tool, hide_deferred=searching)
    earlier = []
    found: set[str] = set()
    for where, item in items:
        if item.type not in _UNCALLED and (known := known_id(item)) is not None:
            maker.map.call_ids.add(known)
        if isinstance(item, HistoryItem) and item.shown is not None:
            maker.map.call_ids.update(call.call_id for call in item.shown.calls)
        if item.type in ("additional_tools", SEARCHED):
            where = f"{where}.tools"
            sent = decode_tools(where, item.tools)
            brought, _ = read_tools(where, sent, limit, brought=item.type)
            before = set(maker.targets)
            for number, tool in enumerate(brought):
                maker.add(f"{where}[{number}]", tool, hide_deferred=False)
            if item.type == SEARCHED:
                maker.show_hosted(found_on_servers(sent))
                found |= maker.targets.keys() - before
        elif item.name is not None and item.type in _NAMED_CALLS:
            earlier.append(CallTarget(CallKind(item.type), item.name, item.namespace))
    for target in earlier:
        # The model may repeat an earlier call, and the client gets that call as the same kind of item.
        maker.map.remember(target)
    made = ChatTools(maker.map, maker.declarations(), strict_left_out=maker.strict_left_out)
    made.map.single = parallel is False
    if choice is not None:
        _choose(made, choice, maker, found, profile)
    return made


def _choose(made: ChatTools, choice: ToolChoice, maker: _Maker, found: set[str], profile: UpstreamProfile) -> None:
    """Set the chat request's `tool_choice`. The function hides tools that the model must not call. `found` are the
    names of the tools that a search returned."""
    made.map.required = choice.mode == "required"
    if choice.mode == "none":
        made.map.callable = frozenset()
    elif choice.tools is not None:
        meant = {name for name, target in maker.targets.items() if _is_meant(target, choice)}
        if choice.searches and not any(_is_meant(target, choice) for target in maker.deferred) and not meant & found:
            meant |= found
        made.map.callable = frozenset(meant)
        if not made.map.callable:
            raise wrong_value(
                "tool_choice names a tool that neither 'tools' nor an item of the input declares.", "tool_choice"
            )
        if not choice.single or profile.named_tool_choice == "required" or len(made.map.callable) > 1:
            made.declarations = maker.declarations(made.map.callable)
    if not made.declarations:
        if choice.mode == "required":
            raise wrong_value(
                "tool_choice 'required' needs a tool that can be called, but the request has none.", "tool_choice"
            )
        return
    if choice.single and profile.named_tool_choice == "native" and made.map.callable and len(made.map.callable) == 1:
        (name,) = made.map.callable
        made.choice = raw({"type": "function", "function": {"name": name}})
    else:
        made.choice = raw(choice.mode)


def _is_meant(target: CallTarget, choice: ToolChoice | None) -> bool:
    return choice is not None and choice.means(target.name, target.namespace)


class _Maker:
    """Collects tool declarations under their chat names. `wanted` is a tool choice: the model sees the tools of this
    choice even if they are deferred (`defer_loading`). `targets` are the tools that the model sees, and `deferred` are
    the tools that the model does not see yet."""

    def __init__(self, profile: UpstreamProfile, wanted: ToolChoice | None) -> None:
        self._profile = profile
        self._wanted = wanted
        self.map = ToolMap()
        self.targets: dict[str, CallTarget] = {}
        self.deferred: list[CallTarget] = []
        self._hidden: dict[str, HostedFunction] = {}
        self._made: dict[str, Raw] = {}
        self.strict_left_out = False

    def declarations(self, names: frozenset[str] | None = None) -> list[Raw]:
        return [made for name, made in self._made.items() if names is None or name in names]

    def add_hosted(self, where: str, function: HostedFunction, *, hide_deferred: bool) -> None:
        name = self.map.add(function.target, where)
        if hide_deferred and function.deferred and not _is_meant(function.target, self._wanted):
            self.deferred.append(function.target)
            self._hidden[name] = function
        else:
            self._show(name, function)

    def show_hosted(self, found: Iterable[tuple[str, str]]) -> None:
        """Declare the hidden functions that a search has found. `found` has the namespaces and names of these
        functions."""
        for space, tool in found:
            name = flat_name(tool, space)
            if (function := self._hidden.pop(name, None)) is not None:
                self._show(name, function)

    def _show(self, name: str, function: HostedFunction) -> None:
        self.targets[name] = function.target
        shown = {"name": name, "description": function.description, "parameters": function.parameters}
        self._made[name] = raw({"type": "function", "function": shown})

    def add(
        self, where: str, tool: ToolDeclaration, *, hide_deferred: bool, namespace: ToolDeclaration | None = None
    ) -> None:
        if tool.type == "namespace":
            for number, inner in enumerate(decode_tools(f"{where}.tools", tool.tools)):
                if not may_be_called(inner):
                    continue
                inner.defer_loading = inner.defer_loading or tool.defer_loading
                self.add(f"{where}.tools[{number}]", inner, hide_deferred=hide_deferred, namespace=tool)
            return
        space = namespace.name if namespace is not None else None
        if tool.type in _NATIVE:
            kind, description, parameters = _NATIVE[tool.type]
            target = CallTarget(kind, tool.type)
            description = _with_skills(tool.description or description, local_skills(where, tool.environment))
            parameters = _sound_schema(tool.parameters) if given(tool.parameters) else parameters
        elif tool.type == "custom":
            target = CallTarget(CallKind.CUSTOM, tool.name or "", space)
            description, parameters = _custom_description(tool), _CUSTOM_PARAMETERS
        else:
            description = tool.description or ""
            parameters, encrypted = _plain_schema(_sound_schema(tool.parameters))
            target = CallTarget(CallKind.FUNCTION, tool.name or "", space, told_plain=encrypted)
        name = self.map.add(target, f"{where}.name")
        if tool.unhurried:
            self.map.unhurried.add(name)
        if hide_deferred and tool.defer_loading and not _is_meant(target, self._wanted):
            # The model finds the tool by a search, and the search's output declares it.
            self.deferred.append(target)
            return
        self.targets[name] = target
        if namespace is not None and namespace.description and not self._has(space):
            # The first declared tool of a namespace carries the namespace's description. The chat names already show
            # which tools belong to the namespace.
            description = f"{description}\n\n(The tools {space}__… : {namespace.description})".strip()
        function: dict[str, object] = {"name": name}
        if description:
            function["description"] = description
        elif tool.description is not None:
            function["description"] = ""
        function["parameters"] = parameters
        if tool.strict is not None and tool.type == "function":
            if self._profile.strict_tools:
                function["strict"] = tool.strict
            else:
                self.strict_left_out = True
        self._made[name] = raw({"type": "function", "function": function})

    def _has(self, namespace: str | None) -> bool:
        return any(target.namespace == namespace for name, target in self.targets.items() if name in self._made)


def _with_skills(description: str, skills: list[str]) -> str:
    """Append to a shell tool's description a list of the skills that the request names for the client's machine."""
    if not skills:
        return description
    listed = "\n".join(f"- {skill}" for skill in skills)
    return f"{description}\n\nSkills on that machine; read the files of one at its path before you use it:\n{listed}"


def _sound_schema(parameters: Raw) -> Raw:
    """Return the schema. An object schema without `properties` gets an empty `properties`."""
    if not given(parameters):
        return _NO_PARAMETERS
    schema = _SCHEMA.decode(parameters)
    if not schema:
        return _NO_PARAMETERS
    kind = bytes(schema.get("type", _OBJECT))
    # An invalid `type` counts as a missing `type`. The server judges a schema with another valid type.
    if _SHAPES.isdisjoint(schema) and (kind == _OBJECT or kind[:1] not in b'"['):
        return raw({"type": None, **schema, "properties": {}} | {"type": Raw(_OBJECT)})
    return parameters


def _plain_schema(parameters: Raw) -> tuple[Raw, bool]:
    """Remove the keyword `encrypted` from the schema's properties. Also returns whether a property had this keyword."""
    if b'"encrypted"' not in bytes(parameters):
        return parameters, False
    schema = _SCHEMA.decode(parameters)
    properties = _members(schema.get("properties", ABSENT))
    marked = False
    for name, value in properties.items():
        members = _members(value)
        if first(members.pop("encrypted", ABSENT)) == b"t":
            properties[name] = raw(members)
            marked = True
    return (raw({**schema, "properties": properties}), True) if marked else (parameters, False)


def _members(value: Raw) -> dict[str, Raw]:
    return _SCHEMA.decode(value) if first(value) == b"{" else {}


def _custom_description(tool: ToolDeclaration) -> str:
    parts = [tool.description] if tool.description else []
    # `read_tools` has checked the format: a grammar has its definition.
    form = msgspec.json.decode(tool.format, type=CustomFormat) if given(tool.format) else None
    if form is not None and form.type == "grammar":
        parts.append(f"The `input` must match this {form.syntax or 'lark'} grammar exactly:\n{form.definition}")
    else:
        parts.append("The `input` is free text.")
    return "\n\n".join(parts)
