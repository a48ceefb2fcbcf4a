"""A create-response body becomes a `CreateResponse`, or an error that says what to change.

Lives here: types, ranges, combinations, and the fate of every field that is not translated (ignored and named, or a
400). Not here: tools (`read_tools.py`), the echo (`echo.py`), the chat request (`chat_request.py`).

Invariant: whatever the bytes, the outcome is a valid `CreateResponse` or an `InvalidRequest` with `param`; no field
is dropped without being named in `ignored`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest
from antiphon.ids import is_name
from antiphon.translation.checks import (
    ENCRYPTED,
    IGNORABLE_INCLUDES,
    LOGPROBS,
    NAME,
    check_choice,
    check_include,
    check_metadata,
    read_string,
    wrong_type,
)
from antiphon.translation.compaction import take_trigger
from antiphon.translation.prompt_template import (
    PromptNotLoaded,
    PromptTemplate,
    fill,
    read_reference,
    show_reference,
)
from antiphon.translation.read_items import read_items
from antiphon.translation.read_tools import decode_tools, read_tools
from antiphon.translation.tool_choice import read_tool_choice
from antiphon.types.items import InputItem
from antiphon.types.json import ABSENT, encode, first, given
from antiphon.types.request import (
    ContextManagement,
    CreateResponse,
    PromptCacheOptions,
    ReasoningOptions,
    StreamOptions,
    TextOptions,
)
from antiphon.types.tools import Tool

__all__ = ["missing_input", "read_model", "read_request"]

_OPTIONAL: dict[str, Any] = {
    "previous_response_id": str | None,
    "parallel_tool_calls": bool | None,
    "temperature": float | None,
    "top_p": float | None,
    "presence_penalty": float | None,
    "frequency_penalty": float | None,
    "max_output_tokens": int | None,
    "max_tool_calls": int | None,
    "store": bool | None,
    "stream": bool | None,
    "text": TextOptions | None,
    "reasoning": ReasoningOptions | None,
    "truncation": str | None,
    "prompt_cache_key": str | None,
    "prompt_cache_retention": str | None,
    "safety_identifier": str | None,
    "user": str | None,
    "background": bool | None,
    "include": list[str] | None,
    "stream_options": StreamOptions | None,
    "prompt_cache_options": PromptCacheOptions | None,
    "top_logprobs": int | None,
    "service_tier": str | None,
    "metadata": dict[str, str] | None,
    "context_management": list[ContextManagement] | None,
}
_DECODERS = {name: msgspec.json.Decoder(kind) for name, kind in _OPTIONAL.items()}
_INPUT = msgspec.json.Decoder(list[InputItem])
_SOURCES = msgspec.json.Decoder(list[Raw])
_PLAIN_ITEMS = frozenset({None, "message", "function_call", "function_call_output", "reasoning", "item_reference"})
_TOP = msgspec.json.Decoder(dict[str, Raw])

_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "top_logprobs": (0, 20),
    "max_output_tokens": (16, 2**53),
    "max_tool_calls": (1, 2**53),
}
_CHOICES = {
    "truncation": ("auto", "disabled"),
    "service_tier": ("auto", "default", "flex", "scale", "priority", "fast", "ultrafast"),
}
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_SUMMARIES = ("auto", "concise", "detailed")
_VERBOSITIES = ("low", "medium", "high")
_LENGTHS = {"safety_identifier": 64, "prompt_cache_key": 64}

_CHAT_FIELDS = {
    "messages": "'messages' belongs to Chat Completions; the Responses API takes 'input'.",
    "response_format": "'response_format' belongs to Chat Completions; the Responses API takes 'text.format'.",
    "max_tokens": "'max_tokens' belongs to Chat Completions; the Responses API takes 'max_output_tokens'.",
    "max_completion_tokens": "'max_completion_tokens' belongs to Chat Completions; "
    "the Responses API takes 'max_output_tokens'.",
    "functions": "'functions' belongs to Chat Completions; the Responses API takes 'tools'.",
    "function_call": "'function_call' belongs to Chat Completions; the Responses API takes 'tool_choice'.",
    "reasoning_effort": "'reasoning_effort' belongs to Chat Completions; the Responses API takes 'reasoning.effort'.",
    "verbosity": "'verbosity' belongs to Chat Completions; the Responses API takes 'text.verbosity'.",
    "logprobs": "'logprobs' belongs to Chat Completions; the Responses API takes 'include' with "
    "'message.output_text.logprobs', and 'top_logprobs'.",
}


class _Conversation(msgspec.Struct):
    id: str


_CONVERSATION = msgspec.json.Decoder(str | _Conversation)


class _OnlyModel(msgspec.Struct):
    model: str | None = None


_ONLY_MODEL = msgspec.json.Decoder(_OnlyModel)


def read_model(body: bytes) -> str | None:
    """The model a body names, without looking at anything else; None when it names none."""
    try:
        return _ONLY_MODEL.decode(body).model
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None


def read_request(
    body: bytes,
    *,
    most_items: int,
    most_tools: int,
    hosted: frozenset[str] = frozenset(),
    prompt: PromptTemplate | None = None,
) -> CreateResponse:
    """Read a create-response body; `hosted` are the types of tools that run here, `prompt` what its `prompt` names.

    Raises `InvalidRequest`, and `PromptNotLoaded` for a body that names a prompt when none is given.
    """
    fields = _read_object(body)
    messages: list[InputItem] = []
    reference = read_reference(fields.get("prompt", ABSENT))
    if reference is not None:
        if prompt is None:
            raise PromptNotLoaded(reference)
        filled = fill(prompt.body, reference.variables)
        # What the request says itself wins.
        fields = {**filled.fields, **{name: value for name, value in fields.items() if given(value)}}
        fields["prompt"] = show_reference(reference, prompt)
        messages = _prompt_messages(filled.messages, most_items)
    values: dict[str, Any] = {}
    ignored: list[str] = []
    # A request has few of the many fields there are: only those are looked at.
    for name, value in fields.items():
        if name in _DECODERS:
            values[name] = _read(name, value)
        elif name in _CHAT_FIELDS and given(value):
            raise InvalidRequest(_CHAT_FIELDS[name], param=name, code="unsupported_parameter")
        elif name not in _READ_APART:
            ignored.append(name)
    ignored.sort()
    _check_values(values)
    ignored += _ignored_inside(fields)
    ignored += _ignored_values(values, hosted)
    if values.get("background") and values.get("store") is False:
        raise InvalidRequest(
            "'background' needs 'store': a response that runs in the background is kept until it is fetched.",
            param="background",
            code="invalid_value",
        )
    include: list[str] = values.get("include") or []
    options: StreamOptions | None = values.get("stream_options")
    tools, left_out = read_tools("tools", decode_tools("tools", fields.get("tools", ABSENT)), most_tools, hosted)
    items = _read_input(fields.get("input", ABSENT), most_items)
    compact = take_trigger(items)
    brought, others = _brought_tools(items, most_tools)
    ignored += sorted({*left_out, *others})
    request = CreateResponse(
        model=_read_model(fields.get("model", ABSENT)),
        input=items,
        instructions=_read_instructions(fields.get("instructions", ABSENT)),
        previous_response_id=values.get("previous_response_id") or None,
        prompt=fields.get("prompt"),
        prompt_messages=messages,
        conversation=_read_conversation(fields.get("conversation", ABSENT), values.get("previous_response_id")),
        tools=tuple(tools),
        tool_choice=read_tool_choice(
            fields.get("tool_choice", ABSENT),
            [*tools, *brought],
            left_out,
            continued=bool(values.get("previous_response_id")) or given(fields.get("conversation", ABSENT)),
            hosted=hosted,
        ),
        parallel_tool_calls=values.get("parallel_tool_calls"),
        temperature=values.get("temperature"),
        top_p=values.get("top_p"),
        presence_penalty=values.get("presence_penalty"),
        frequency_penalty=values.get("frequency_penalty"),
        max_output_tokens=values.get("max_output_tokens"),
        max_tool_calls=values.get("max_tool_calls"),
        metadata=fields.get("metadata") if values.get("metadata") is not None else None,
        store=values.get("store") is not False,
        stream=bool(values.get("stream")),
        background=bool(values.get("background")),
        text=values.get("text"),
        reasoning=values.get("reasoning"),
        truncation=values.get("truncation") or "disabled",
        prompt_cache_key=values.get("prompt_cache_key"),
        prompt_cache_retention=values.get("prompt_cache_retention"),
        safety_identifier=values.get("safety_identifier"),
        user=values.get("user"),
        service_tier=values.get("service_tier"),
        top_logprobs=values.get("top_logprobs"),
        logprobs=LOGPROBS in include or bool(values.get("top_logprobs")),
        encrypted_reasoning=ENCRYPTED in include,
        obfuscation=bool(options is not None and options.include_obfuscation),
        prewarm=bool((cache := values.get("prompt_cache_options")) is not None and cache.prewarm),
        include=frozenset(include),
        compact=compact,
        compact_threshold=_read_threshold(values.get("context_management") or []),
        ignored=tuple(ignored),
    )
    if not (request.input or request.previous_response_id or request.conversation or messages):
        raise missing_input()
    return request


def _prompt_messages(sources: list[Raw], most: int) -> list[InputItem]:
    """The messages of a prompt's template."""
    items = read_items("prompt.input", Raw(encode(sources)), most)
    for item in items:
        item.type = "message"
    return items


def missing_input() -> InvalidRequest:
    """The error for a request that leaves the model nothing to answer."""
    return InvalidRequest(
        "'input' is missing or empty. Send a string or a list of items.",
        param="input",
        code="missing_required_parameter",
    )


_INSIDE = {
    "text": frozenset(TextOptions.__struct_fields__),
    "reasoning": frozenset(ReasoningOptions.__struct_fields__),
    "stream_options": frozenset(StreamOptions.__struct_fields__),
    "prompt_cache_options": frozenset(PromptCacheOptions.__struct_fields__),
}
_READ_APART = frozenset({"model", "input", "instructions", "tools", "tool_choice", "conversation", "prompt"})


def _brought_tools(items: list[InputItem], most: int) -> tuple[list[Tool], list[str]]:
    """The tools that items of the input bring (Codex, tool searches), and what of them is left out."""
    tools: list[Tool] = []
    left_out: list[str] = []
    for number, item in enumerate(items):
        if item.type in ("additional_tools", "tool_search_output"):
            where = f"input[{number}].tools"
            kept, others = read_tools(where, decode_tools(where, item.tools), most)
            tools += kept
            left_out += others
    return tools, left_out


def _read_object(body: bytes) -> dict[str, Raw]:
    try:
        if not body.isascii():
            body.decode()
        return _TOP.decode(body)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"The request body is not valid UTF-8 (byte {error.start}).", code="invalid_json"
        ) from None
    except msgspec.ValidationError:
        raise InvalidRequest("The request body must be a JSON object.", code="invalid_type") from None
    except (msgspec.DecodeError, RecursionError) as error:
        what = "The request body is empty." if not body.strip() else f"The request body is not valid JSON: {error}"
        raise InvalidRequest(what, code="invalid_json") from None


def _read(name: str, value: Raw) -> Any:
    try:
        return _DECODERS[name].decode(value)
    except msgspec.ValidationError as error:
        raise wrong_type(name, error) from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest(f"'{name}' is not valid JSON.", param=name, code="invalid_json") from None


def _check_values(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if value is None:
            continue
        limits = _RANGES.get(name)
        if limits is not None and not limits[0] <= value <= limits[1]:
            low, high = limits
            below = value < low
            kind = "integer" if isinstance(value, int) else "decimal"
            raise InvalidRequest(
                f"Invalid '{name}': {value} is {'below the minimum' if below else 'above the maximum'} of "
                f"{low if below else high:g}.",
                param=name,
                code=f"{kind}_{'below_min' if below else 'above_max'}_value",
            )
        if name in _CHOICES:
            check_choice(name, value, _CHOICES[name])
        most = _LENGTHS.get(name)
        if most is not None and len(value) > most:
            raise InvalidRequest(
                f"Invalid '{name}': it may have at most {most} characters.",
                param=name,
                code="string_above_max_length",
            )
    text: TextOptions | None = values.get("text")
    if text is not None:
        _check_text(text)
    reasoning: ReasoningOptions | None = values.get("reasoning")
    if reasoning is not None:
        check_choice("reasoning.effort", reasoning.effort, _EFFORTS)
        check_choice("reasoning.summary", reasoning.summary, _SUMMARIES)
        check_choice("reasoning.generate_summary", reasoning.generate_summary, _SUMMARIES)
    check_metadata(values.get("metadata") or {})
    check_include(values.get("include") or ())


def _read_threshold(entries: list[ContextManagement]) -> int | None:
    threshold = None
    for number, entry in enumerate(entries):
        where = f"context_management[{number}]"
        check_choice(f"{where}.type", entry.type, ("compaction",))
        if entry.compact_threshold is not None and entry.compact_threshold < 1000:
            raise InvalidRequest(
                f"Invalid '{where}.compact_threshold': {entry.compact_threshold} is below the minimum of 1000.",
                param=f"{where}.compact_threshold",
                code="integer_below_min_value",
            )
        threshold = entry.compact_threshold or 0
    return threshold


def _check_text(text: TextOptions) -> None:
    check_choice("text.verbosity", text.verbosity, _VERBOSITIES)
    if text.format is None:
        return
    check_choice("text.format.type", text.format.type, ("text", "json_object", "json_schema"))
    if text.format.type == "json_schema":
        if not text.format.name:
            raise InvalidRequest(
                "Missing required parameter: 'text.format.name'.",
                param="text.format.name",
                code="missing_required_parameter",
            )
        if not NAME.fullmatch(text.format.name):
            raise InvalidRequest(
                "Invalid 'text.format.name': use 1 to 64 letters, digits, underscores or dashes.",
                param="text.format.name",
                code="invalid_value",
            )
        if not given(text.format.schema):
            raise InvalidRequest(
                "Missing required parameter: 'text.format.schema'.",
                param="text.format.schema",
                code="missing_required_parameter",
            )
        if first(text.format.schema) != b"{":
            raise InvalidRequest(
                "Invalid type for 'text.format.schema': expected an object, the JSON schema of the answer.",
                param="text.format.schema",
                code="invalid_type",
            )


def _ignored_inside(fields: dict[str, Raw]) -> list[str]:
    """Unknown keys of the fields that are objects, as dotted names."""
    return [
        f"{name}.{key}"
        for name, known in _INSIDE.items()
        if name in fields and first(fields[name]) == b"{"
        for key in sorted(_TOP.decode(fields[name]))
        if key not in known
    ]


def _ignored_values(values: dict[str, Any], hosted: frozenset[str]) -> list[str]:
    """Known fields whose value has no effect here."""
    return [
        f"include:{include}"
        for include in values.get("include") or ()
        if include in IGNORABLE_INCLUDES and include.partition("_call")[0] not in hosted
    ]


def _read_model(value: Raw) -> str:
    if not given(value):
        raise InvalidRequest("Missing required parameter: 'model'.", param="model", code="missing_required_parameter")
    model = read_string("model", value)
    if not model.strip():
        raise InvalidRequest("Invalid 'model': it is empty.", param="model", code="invalid_value")
    return model


def _read_conversation(value: Raw, previous: str | None) -> str | None:
    """The id, given as a string or in an object."""
    if not given(value):
        return None
    if previous:
        raise InvalidRequest(
            "Mutually exclusive parameters: 'previous_response_id' and 'conversation'. Ensure you are only providing "
            "one of them.",
            param="conversation",
            code="mutually_exclusive_parameters",
        )
    try:
        named = _CONVERSATION.decode(value)
    except msgspec.ValidationError as error:
        raise wrong_type("conversation", error) from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest("'conversation' is not valid JSON.", param="conversation", code="invalid_json") from None
    conversation = named if isinstance(named, str) else named.id
    if not is_name(conversation):
        raise InvalidRequest(
            "Invalid 'conversation': an id has 1 to 64 letters, digits, underscores or dashes.",
            param="conversation",
            code="invalid_value",
        )
    return conversation


def _read_instructions(value: Raw) -> Raw | None:
    if not given(value):
        return None
    read_string("instructions", value)
    return value


def _read_input(value: Raw, most: int) -> list[InputItem]:
    if not given(value):
        return []
    data = bytes(value)
    if data[:1] == b'"':
        read_string("input", value)
        return [InputItem(type="message", role="user", content=value)] if data != b'""' else []
    try:
        items = _INPUT.decode(data)
    except msgspec.ValidationError as error:
        if data[:1] != b"[":
            raise InvalidRequest(
                "Invalid type for 'input': expected a string or a list of items.", param="input", code="invalid_type"
            ) from None
        raise wrong_type("input", error) from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest("'input' is not valid JSON.", param="input", code="invalid_json") from None
    if any(item.type not in _PLAIN_ITEMS for item in items):
        # What is shown or stored as it came needs its bytes; the usual items do not.
        for item, source in zip(items, _SOURCES.decode(data), strict=True):
            item.source = source
    if len(items) > most:
        raise InvalidRequest(
            f"'input' has {len(items)} items; at most {most} are allowed.",
            param="input",
            code="array_above_max_length",
        )
    return items
