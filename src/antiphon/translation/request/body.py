"""Reads a create-response body into a `CreateResponse`, or raises an error that says what the client must change.

This module checks the types and the combinations of fields. If Antiphon cannot translate a field, the response lists
the field as ignored, or the request gets a 400. The module also reads lists of items, which conversations and prompts
use.

`fields.py` reads plain fields and checks their limits, with one row for each field. `tools.py` reads tools.
`translation/events/response_draft.py` makes the response object, and `translation/chat/body.py` the chat request.

Invariant: for any bytes, the outcome is a valid `CreateResponse`, a `PromptNotLoaded` or an `InvalidRequest`. The error
has `param` unless the body is not a JSON object. Every field that Antiphon drops is listed in `ignored`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw

from antiphon.errors import (
    InvalidRequest,
    array_too_long,
    invalid_parameter,
    invalid_type,
    missing_parameter,
    missing_value,
    mutually_exclusive,
    too_many_entries,
    unknown_parameter,
    unsupported_parameter,
    wrong_value,
)
from antiphon.ids import is_name
from antiphon.translation.item_kinds import note_members, only_known
from antiphon.translation.request.checks import not_json, not_utf8, read_string, read_value
from antiphon.translation.request.fields import (
    ENCRYPTED,
    FIELDS,
    FORWARDED,
    IGNORED_FIELDS,
    INCLUDES,
    LOGPROBS,
    OF_CHAT,
    READ_APART,
    REQUEST_FIELDS,
    SAMPLING,
    check_values,
    read_threshold,
)
from antiphon.translation.request.parameters import PARAMETER_KINDS, read_parameter, spread_extra_body
from antiphon.translation.request.prompt_template import PromptNotLoaded, fill, read_reference, show_reference
from antiphon.translation.request.tool_choice import CHOICE_MEMBERS, read_tool_choice
from antiphon.translation.request.tools import decode_tools, found_on_servers, read_tools
from antiphon.translation.values import PromptTemplate
from antiphon.types.items import InputItem, KnownItem
from antiphon.types.json import ABSENT, first, given, raw, try_decode
from antiphon.types.request import (
    CreateResponse,
    PromptCacheOptions,
    StreamOptions,
    ToolDeclaration,
)
from antiphon.types.tolerance import MAX_NAMES, Tolerance
from antiphon.types.views import ConversationName, Manner, OnlyModel

_Object = TypeVar("_Object")

_DECODERS: Final = {name: msgspec.json.Decoder(row.kind | None) for name, row in FIELDS.items() if row.kind is not None}
_HELD: Final = frozenset(CreateResponse.__struct_fields__)
_INPUT: Final = msgspec.json.Decoder(list[InputItem])
_KNOWN_INPUT: Final = msgspec.json.Decoder(list[KnownItem])
_SOURCES: Final = msgspec.json.Decoder(list[Raw])
_PLAIN_ITEMS: Final = frozenset(
    {None, "message", "function_call", "function_call_output", "reasoning", "item_reference"}
)
_TOP: Final = msgspec.json.Decoder(dict[str, Raw])

_CONVERSATION: Final = msgspec.json.Decoder(str | ConversationName)


_ONLY_MODEL: Final = msgspec.json.Decoder(OnlyModel)
_MANNER: Final = msgspec.json.Decoder(Manner)


def read_model(body: bytes) -> str | None:
    """Return the model that a body names, or None if the body names no model. The function checks no other field."""
    found = try_decode(_ONLY_MODEL, body)
    return found.model if found is not None else None


def read_manner(body: bytes) -> Manner:
    """Return the fields `stream` and `background` of a body that `read_request` has already checked."""
    return try_decode(_MANNER, body) or Manner()


def read_request(
    body: bytes,
    *,
    max_items: int,
    max_tools: int,
    hosted: frozenset[str] = frozenset(),
    prompt: PromptTemplate | None = None,
    max_prompt_bytes: int = 1 << 26,
    strict: bool = False,
    refuse_tools: bool = False,
    not_started: frozenset[str] = frozenset(),
) -> CreateResponse:
    """Read a create-response body.

    - `hosted` are the types of tools that Antiphon runs.
    - `prompt` is the template that the request's `prompt` refers to. The template with its variables may take at most
      `max_prompt_bytes`.
    - `strict`: whether to refuse unknown parts of the request.
    - `refuse_tools`: whether to refuse a request with hosted tools that Antiphon does not run.
    - `not_started` are the types of tools that the operator has enabled, but that could not start.

    Raises `InvalidRequest`, and `PromptNotLoaded` if the body refers to a prompt and `prompt` is None.
    """
    fields = read_object(body, _TOP)
    tolerance = Tolerance(strict=strict, refuse_tools=refuse_tools, not_started=not_started)
    messages: list[InputItem] = []
    reference = read_reference(fields.get("prompt", ABSENT))
    if reference is not None:
        if prompt is None:
            raise PromptNotLoaded(reference)
        said, filled = fill(prompt.body, reference.variables, max_prompt_bytes)
        # The request's own fields override the template's fields.
        fields = {**filled, **{name: value for name, value in fields.items() if given(value)}}
        fields["prompt"] = show_reference(reference, prompt)
        messages = read_items("prompt.input", raw(said), max_items)
        for message in messages:
            message.type = "message"
    values: dict[str, Any] = {}
    ignored: list[str] = []
    if "extra_body" in fields:
        fields, ignored = spread_extra_body(fields, REQUEST_FIELDS - SAMPLING)
    parameters: dict[str, Raw] = {}
    unknown: dict[str, Raw] = {}
    # A request has few of the known fields, so the loop runs over the request's fields instead of the table.
    for name, value in fields.items():
        if name in _DECODERS:
            if (decoded := read_value(name, _DECODERS[name], value)) is not None:
                values[name] = decoded
        elif name in PARAMETER_KINDS:
            if (parameter := read_parameter(name, value)) is not None:
                parameters[name] = parameter
        elif name in OF_CHAT and given(value):
            wanted = f"'{name}' belongs to Chat Completions; the Responses API takes {OF_CHAT[name]}."
            raise unsupported_parameter(wanted, name)
        elif name not in READ_APART:
            unknown[name] = value
    ignored += IGNORED_FIELDS.intersection(unknown)
    ignored.sort()
    check_values(values, tolerance)
    ignored += _ignored_inside(fields)
    ignored += _ignored_values(values, hosted)
    if values.get("background") and values.get("store") is False:
        raise wrong_value(
            "'background' needs 'store', because the client fetches a background response from the store.",
            "background",
        )
    include: list[str] = values.pop("include", [])
    options: StreamOptions | None = values.get("stream_options")
    cache: PromptCacheOptions | None = values.get("prompt_cache_options")
    previous: str | None = values.pop("previous_response_id", None) or None
    declared = decode_tools("tools", fields.get("tools", ABSENT))
    tools, left_out = read_tools("tools", declared, max_tools, hosted, tolerance)
    items = only_known("input", _read_input(fields.get("input", ABSENT), max_items, tolerance), tolerance)
    compact = take_trigger(items)
    brought, others = _brought_tools(items, tools, max_tools, tolerance)
    ignored += islice(sorted({*left_out, *others}), MAX_NAMES)
    request = CreateResponse(
        model=_read_model(fields.get("model", ABSENT)),
        input=items,
        instructions=_read_instructions(fields.get("instructions", ABSENT)),
        previous_response_id=previous,
        prompt=fields.get("prompt"),
        prompt_messages=messages,
        conversation=_read_conversation(fields.get("conversation", ABSENT), previous),
        tools=tuple(tools),
        tool_choice=read_tool_choice(
            fields.get("tool_choice", ABSENT),
            [*tools, *brought],
            left_out,
            declared=declared,
            limit=max_tools,
            continued=previous is not None or given(fields.get("conversation", ABSENT)),
            hosted=hosted - {"tool_search"},
            not_started=not_started,
        ),
        metadata=fields["metadata"] if values.pop("metadata", None) is not None else None,
        logprobs=LOGPROBS in include or bool(values.get("top_logprobs")),
        encrypted_reasoning=ENCRYPTED in include,
        obfuscation=bool(options is not None and options.include_obfuscation),
        prewarm=bool(cache is not None and cache.prewarm),
        comparison_response_id=(cache.comparison_response_id or None) if cache is not None else None,
        include=frozenset(include),
        compact=compact,
        compact_threshold=read_threshold(values.get("context_management", []), tolerance),
        parameters=parameters,
        others=unknown,
        ignored=tuple(ignored),
        unknown=tolerance,
        forwarded={name: value for name, value in values.items() if name in FORWARDED},
        **{name: value for name, value in values.items() if name in _HELD},
    )
    if not (request.input or request.previous_response_id or request.conversation or messages):
        raise missing_input(tolerance.names)
    return request


def allow_fields(request: CreateResponse, names: frozenset[str]) -> None:
    """Forward the additional fields that the operator allows, even if the server's profile does not have them. Leave
    out fields that are neither known nor allowed. With `strict`, raises `InvalidRequest` for such unknown fields."""
    for name in request.unknown.unknown(request.others, names | IGNORED_FIELDS):
        error = unknown_parameter(name[:128], "This version does not know the parameter. Leave the parameter out.")
        request.unknown.leave_out(name, error)
    request.allowed = names
    allowed = {name: value for name, value in request.others.items() if name in names}
    if allowed:
        request.parameters = {**request.parameters, **allowed}
        request.ignored = tuple(name for name in request.ignored if name not in allowed)


def missing_input(left_out: Sequence[str] = ()) -> InvalidRequest:
    """Return the error for a request without any input for the model. `left_out` names the request's unknown parts."""
    unknown = [name for name in left_out if name.startswith("input.")]
    if unknown:
        return missing_value(
            (f"Antiphon supports none of the items in 'input' and ignored them: {', '.join(unknown)}."), "input"
        )
    return missing_value("'input' is missing or empty. Send a string or a list of items.", "input")


_INSIDE: Final = {
    **{place: names for row in FIELDS.values() for place, names in row.members()},
    **dict.fromkeys(("tool_choice", "tool_choice.tools[]"), CHOICE_MEMBERS),
}
"""Maps the path of each object inside a field to the members that Antiphon knows."""
_WITH_MEMBERS: Final = frozenset(place.partition(".")[0].removesuffix("[]") for place in _INSIDE)


def _brought_tools(
    items: list[InputItem], declared: list[ToolDeclaration], limit: int, tolerance: Tolerance
) -> tuple[list[ToolDeclaration], list[str]]:
    """Return the tools that items of the input declare (Codex, tool searches), and the names of ignored tools."""
    servers = {tool.server_label for tool in declared if tool.type == "mcp"}
    tools: list[ToolDeclaration] = []
    left_out: list[str] = []
    for number, item in enumerate(items):
        if item.type in ("additional_tools", "tool_search_output"):
            where = f"input[{number}].tools"
            sent = decode_tools(where, item.tools)
            kept, others = read_tools(where, sent, limit, tolerance=tolerance, brought=item.type)
            if any(label not in servers for label, _ in found_on_servers(sent)):
                left_out.append("tools.mcp")
            tools += kept
            left_out += others
    return tools, left_out


def read_object(body: bytes, decoder: msgspec.json.Decoder[_Object]) -> _Object:
    """Decode a body that must be a JSON object. Raises `InvalidRequest`."""
    try:
        if not body.isascii():
            body.decode()
        return decoder.decode(body)
    except UnicodeDecodeError as error:
        raise not_utf8(error) from None
    except msgspec.ValidationError:
        raise InvalidRequest("The request body must be a JSON object.", code="invalid_type") from None
    except (msgspec.DecodeError, RecursionError) as error:
        if not body.strip():
            raise InvalidRequest("The request body is empty.", code="invalid_json") from None
        raise not_json(body, str(error)) from None


def _ignored_inside(fields: dict[str, Raw]) -> list[str]:
    """Return the dotted names of unknown keys in fields whose values are objects. The result has no duplicates and at
    most `MAX_NAMES` names."""
    if _WITH_MEMBERS.isdisjoint(fields):
        return []
    unknown = {
        f"{place.replace('[]', '')}.{key}": None
        for place, known in _INSIDE.items()
        if place.partition(".")[0].removesuffix("[]") in fields
        for inside in _objects(fields, place.split("."))
        for key in islice((key for key in inside if key not in known), MAX_NAMES)
    }
    return sorted(islice(unknown, MAX_NAMES))


def _objects(fields: dict[str, Raw], path: list[str]) -> Iterator[dict[str, Raw]]:
    """Yield the objects at a path: one object for `text.format`, or one object for each list entry of
    `tool_choice.tools[]`."""
    name, *further = path
    value = fields.get(name.removesuffix("[]"), ABSENT)
    inner = _SOURCES.decode(value) if name.endswith("[]") and first(value) == b"[" else [value]
    for one in inner:
        if first(one) == b"{":
            yield from _objects(_TOP.decode(one), further) if further else [_TOP.decode(one)]


def _ignored_values(values: dict[str, Any], hosted: frozenset[str]) -> list[str]:
    """Return the known values of `include` that have no effect, because they belong to tools that Antiphon does not
    run."""
    return [
        f"include:{include}"
        for include in values.get("include") or ()
        if include not in (ENCRYPTED, LOGPROBS) and include in INCLUDES and include.partition("_call")[0] not in hosted
    ]


def _read_model(value: Raw) -> str:
    if not given(value):
        raise missing_parameter("model")
    model = read_string("model", value)
    if not model.strip():
        raise invalid_parameter("model", "it is empty")
    return model


def _read_conversation(value: Raw, previous: str | None) -> str | None:
    """Return the conversation's id, or None if the request names no conversation. The request contains the id as a
    string or in an object."""
    if not given(value):
        return None
    if previous:
        raise mutually_exclusive("previous_response_id", "conversation")
    named = read_value("conversation", _CONVERSATION, value)
    conversation = named if isinstance(named, str) else named.id
    if not is_name(conversation):
        raise invalid_parameter("conversation", "an id has 1 to 64 letters, digits, underscores or dashes")
    return conversation


def _read_instructions(value: Raw) -> Raw | None:
    if not given(value):
        return None
    read_string("instructions", value)
    return value


def _read_input(value: Raw, limit: int, tolerance: Tolerance) -> Sequence[InputItem]:
    if not given(value):
        return []
    data = bytes(value)
    if data[:1] == b'"':
        read_string("input", value)
        return [InputItem(type="message", role="user", content=value)] if data != b'""' else []
    if data[:1] != b"[":
        raise invalid_type("input", "expected a string or a list of items")
    try:
        items: Sequence[InputItem] = _KNOWN_INPUT.decode(data)
        known = not [item for item in items if item.source is not ABSENT]
    except (msgspec.ValidationError, RecursionError):
        loose = read_value("input", _INPUT, value)
        items, known = loose, False
    if not known or not _PLAIN_ITEMS.issuperset([item.type for item in items]):
        # Antiphon keeps the bytes of items that the model sees unchanged, or that the store keeps unchanged. Other
        # items do not need their bytes.
        for item, source in zip(items, _SOURCES.decode(data), strict=True):
            item.source = source
    if not known:
        note_members("input", items, tolerance)
    if len(items) > limit:
        raise too_many_entries("input", len(items), limit, "items")
    return items


_ITEM: Final = msgspec.json.Decoder(InputItem)


def read_items(name: str, value: Raw, limit: int) -> list[InputItem]:
    """Return the items of a list, each with its JSON text as `source`. The result is empty if the list is null or
    absent. Raises `InvalidRequest`."""
    if not given(value):
        return []
    sources = read_value(name, _SOURCES, value)
    if len(sources) > limit:
        raise array_too_long(name, limit, len(sources))
    items = []
    for number, source in enumerate(sources):
        item = read_value(f"{name}[{number}]", _ITEM, source)
        item.source = source
        items.append(item)
    return items


def take_trigger(items: list[InputItem]) -> bool:
    """Remove a `compaction_trigger` from the end of the input, and return whether there was one. Raises
    `InvalidRequest` for a trigger at any other position."""
    asked = bool(items) and items[-1].type == "compaction_trigger"
    if asked:
        items.pop()
    for number, item in enumerate(items):
        if item.type == "compaction_trigger":
            raise wrong_value(
                f"Invalid 'input[{number}]': a 'compaction_trigger' must be the last item.", f"input[{number}]"
            )
    return asked
