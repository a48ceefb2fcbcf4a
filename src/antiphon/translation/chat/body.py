"""Builds the Chat Completions request body from a create-response request.

This module builds all fields except messages and tools, in the form that the upstream's profile demands. The module
also checks the items that a client adds to a conversation or a prompt, so that later requests do not fail.
`translation/request/body.py` reads and checks the request. `messages.py` makes the messages, and `tools.py` the tools.

Invariants: a chat request has nothing that a strict server would refuse, such as an empty `tools`, a `tool_choice`
without tools, `stream_options` without a stream. A later request can refuse a checked item for two reasons only. Either
the item is an output whose call is missing, or the model's server does not accept the content (images, files).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw, UnsetType, defstruct

from antiphon.errors import invalid_parameter, invalid_value, unsupported_parameter, wrong_value
from antiphon.translation.chat.call_items import call_of, native_output
from antiphon.translation.chat.content import ContentRules, FileNotFetched, joined_text, message_content, output_content
from antiphon.translation.chat.context_size import keep_latest
from antiphon.translation.chat.foreign_items import agent_content
from antiphon.translation.chat.messages import instruct, translate_items
from antiphon.translation.chat.tools import make_chat_tools
from antiphon.translation.item_kinds import CALLS, COMPACTIONS, FOREIGN_MESSAGES, FOREIGN_REASONING, OUTPUTS, ROLES
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.request.checks import required
from antiphon.translation.request.configuration import CONFIGURATION, read_updates
from antiphon.translation.request.fields import EFFORTS, FORWARDED, SAMPLING, Field
from antiphon.translation.request.openai_forms import check_json_word
from antiphon.translation.request.parameters import laid_over
from antiphon.translation.request.tools import decode_tools, read_tools
from antiphon.translation.tool_map import HostedFunction
from antiphon.translation.values import ChatTranslation, ItemSources
from antiphon.types.chat import ChatMessage, ChatRequest
from antiphon.types.items import InputItem
from antiphon.types.json import encode, raw
from antiphon.types.request import CreateResponse, ReasoningOptions, TextOptions
from antiphon.types.tolerance import Tolerance

_CHAT_REQUEST: Final = cast(
    type[ChatRequest],
    defstruct(
        "ChatRequest",
        [(name, row.kind | UnsetType, UNSET) for name, row in FORWARDED.items()],
        bases=(ChatRequest,),
        omit_defaults=True,
    ),
)
"""The class `ChatRequest`, extended by a member for each request field that Antiphon sends to the server unchanged."""
_USAGE: Final = Raw(b'{"include_usage":true}')
_JSON_OBJECT: Final = Raw(b'{"type":"json_object"}')
_SOME_OBJECT: Final = Raw(b'{"type":"json_object","schema":{"type":"object"}}')
_ANY_OBJECT: Final = Raw(b'{"type":"json_schema","json_schema":{"name":"object","schema":{"type":"object"}}}')


def translate_request(
    request: CreateResponse,
    items: Sequence[tuple[str, InputItem]],
    profile: UpstreamProfile,
    *,
    model: str | None = None,
    sources: ItemSources,
    max_tools: int = 1024,
    context_tokens: int | None = None,
    hosted: Mapping[int, Sequence[HostedFunction]] | None = None,
    extra: Mapping[str, Raw] | None = None,
) -> ChatTranslation:
    """Translate a whole request. Raises `InvalidRequest`.

    - `items` are the items of the history and the input. `sources` has the content to which these items refer.
    - `model` is the upstream's name for the model, if it differs from the name in the client's request.
    - `context_tokens` is the model's context size, if it is known.
    - `hosted` maps the index of a tool that Antiphon runs to the functions of this tool.
    - `extra` has fields that the operator adds to every request for the model. Fields of the request override the
      fields in `extra`.
    """
    made = make_chat_tools(
        request.tools,
        request.tool_choice,
        items,
        profile,
        parallel=request.parallel_tool_calls,
        limit=max_tools,
        hosted=hosted,
    )
    ignored: list[str] = []
    if made.strict_left_out:
        ignored.append("tools.function.strict")
    if profile.replay_reasoning == "off" and any(item.type in _REASONING for item in request.input):
        ignored.append("input.reasoning")
    if request.truncation == "auto":
        if context_tokens is None:
            ignored.append("truncation")
        else:
            fixed = sum(len(bytes(tool)) for tool in made.declarations) + len(bytes(request.instructions or b""))
            items = keep_latest(items, context_tokens - fixed // 4 - (request.max_output_tokens or 0))
    if request.logprobs and not profile.logprobs:
        raise unsupported_parameter(
            "The server of this model returns no log probabilities. Leave 'top_logprobs' and "
            "'message.output_text.logprobs' out.",
            "top_logprobs" if request.top_logprobs else "include",
        )
    reasoning, text = request.reasoning, request.text
    sent: dict[str, str] = {}
    messages = translate_items(request.instructions, items, profile, sources, sent, made.map)
    if not messages and not all(item.type == "additional_tools" for _, item in items):
        # No chat server answers an empty list of messages. Codex sends only tools when it warms up a connection.
        raise wrong_value("'input' has no message or call that a model could answer.", "input")
    if sources.tolerance.strict and text is not None and text.format is not None and text.format.type == "json_object":
        check_json_word(messages)
    response_format = _response_format(text, profile, messages)
    chat = _CHAT_REQUEST(
        model=model or request.model,
        messages=messages,
        stream=True if request.stream else UNSET,
        stream_options=_USAGE if request.stream and profile.stream_usage else UNSET,
        tools=made.declarations or UNSET,
        tool_choice=made.choice,
        parallel_tool_calls=_or_unset(request.parallel_tool_calls)
        if made.declarations and profile.parallel_tool_calls
        else UNSET,
        response_format=response_format,
        reasoning_effort=_effort(reasoning, profile, ignored),
        logprobs=True if request.logprobs else UNSET,
        top_logprobs=_or_unset(request.top_logprobs) if request.logprobs else UNSET,
    )
    _forward(_SAMPLING, request, chat, profile, ignored)
    if text is not None and text.verbosity is not None:
        if profile.verbosity:
            chat.verbosity = text.verbosity
        else:
            ignored.append("text.verbosity")
    _forward(_OTHERS, request, chat, profile, ignored)
    if request.max_output_tokens is not None:
        setattr(chat, profile.token_limit_field, request.max_output_tokens)
    more = _more_members(chat, request, profile, extra or {}, ignored)
    body = encode(chat)
    if more:
        body = b"%b,%b" % (body[:-1], encode(more)[1:])
    return ChatTranslation(body, made.map, tuple(ignored), sent)


_SAMPLING: Final = [row for row in FORWARDED.values() if row.name in SAMPLING]
_OTHERS: Final = [row for row in FORWARDED.values() if row.name not in SAMPLING]


def _forward(
    rows: list[Field], request: CreateResponse, chat: ChatRequest, profile: UpstreamProfile, ignored: list[str]
) -> None:
    """Copy the request fields in `rows` into the chat request if the upstream accepts them. Adds the names of the
    fields that the upstream does not accept to `ignored`."""
    if not request.forwarded:
        return
    for row in rows:
        value = request.forwarded.get(row.name)
        if value is None or value in row.unsent:
            continue
        if row.forwarded_to(profile):
            setattr(chat, row.name, value)
        else:
            ignored.append(row.name)


def _more_members(
    chat: ChatRequest,
    request: CreateResponse,
    profile: UpstreamProfile,
    extra: Mapping[str, Raw],
    ignored: list[str],
) -> dict[str, Raw]:
    """Return the members of the chat request that are not fields of `ChatRequest`: parameters, and the operator's
    `extra` fields."""
    asked: dict[str, Raw] = {}
    for name, value in request.parameters.items():
        if name in profile.parameters or name in request.allowed:
            asked[profile.seed_field if name == "seed" else name] = value
        else:
            ignored.append(name)
    if not extra:
        return asked
    unsaid = {name: value for name, value in extra.items() if getattr(chat, name, UNSET) is UNSET}
    return laid_over(unsaid, asked)


_REASONING: Final = frozenset({"reasoning", *FOREIGN_REASONING})


# `default` stands for every effort above none: some models can only switch reasoning on or off.
_PLACES: Final = {**{name: place for place, name in enumerate(EFFORTS)}, "default": EFFORTS.index("medium")}


def _effort(reasoning: ReasoningOptions | None, profile: UpstreamProfile, ignored: list[str]) -> str | UnsetType:
    """Return the server's effort value that is nearest to the requested effort. Returns UNSET if Antiphon sends no
    effort."""
    if reasoning is None or reasoning.effort is None or reasoning.effort not in EFFORTS:
        # The request's reader has already listed an unknown effort as ignored.
        return UNSET
    if not profile.reasoning_effort:
        ignored.append("reasoning.effort")
        return UNSET
    return nearest_effort(reasoning.effort, profile)


def nearest_effort(effort: str, profile: UpstreamProfile) -> str:
    """Return the effort that Antiphon sends to the server if the client requests `effort` (one of `EFFORTS`)."""
    known = profile.effort_values
    if known is None or effort in known:
        return effort
    place = _PLACES[effort]
    if place:
        # A request for some reasoning must not become a request without reasoning.
        known = tuple(value for value in known if value != "none") or known
    # If two efforts are equally near, choose the higher one.
    return min(known, key=lambda value: (abs(_PLACES[value] - place), -_PLACES[value]))


_T = TypeVar("_T")


def _or_unset(value: _T | None) -> _T | UnsetType:
    return UNSET if value is None else value


def _response_format(
    text: TextOptions | None, profile: UpstreamProfile, messages: list[ChatMessage]
) -> Raw | UnsetType:
    """Convert `text.format` to the field `response_format` of the chat request.

    Some servers accept only JSON without a schema, or no `response_format` at all. For these servers, the schema
    becomes an instruction in the messages.
    """
    if text is None or text.format is None or text.format.type == "text":
        return UNSET
    kind = profile.structured_output
    if text.format.type == "json_object":
        if kind == "off" or not profile.json_object:
            instruct(messages, "Answer with one JSON object and nothing else.")
            return UNSET if kind == "off" else _ANY_OBJECT
        return _SOME_OBJECT if profile.json_object_schema else _JSON_OBJECT
    if kind != "json_schema":
        schema = bytes(text.format.schema).decode()
        instruct(messages, f"Answer with JSON that matches this JSON schema, and nothing else:\n{schema}")
        return _JSON_OBJECT if kind == "json_object" else UNSET
    schema_format: dict[str, object] = {"name": text.format.name, "schema": text.format.schema}
    if text.format.description is not None:
        schema_format["description"] = text.format.description
    if text.format.strict is not None:
        schema_format["strict"] = text.format.strict
    return raw({"type": "json_schema", "json_schema": schema_format})


_MAX_TOOLS: Final = 1_024
_TAKES_ALL: Final = UpstreamProfile("any", images=True, files="part", audio_input=True)


def check_item(where: str, item: InputItem, tolerance: Tolerance) -> None:
    """Raise `InvalidRequest` for an item that no model can read. `tolerance` decides whether unknown content parts are
    ignored or refused. The caller has already removed items of unknown types (`only_known`)."""
    rules = ContentRules(_TAKES_ALL, {}, tolerance=tolerance)
    kind = item.type or ("message" if item.role is not None else None)
    if kind is None:
        required(where, "type", item.type)
    try:
        if kind == "message":
            if item.role not in ROLES:
                raise invalid_value(
                    f"{where}.role", f"{str(item.role)[:64]!r}. Supported values are: {', '.join(ROLES)}"
                )
            message_content(where, item.role, item.content, rules)
        elif kind == "reasoning":
            joined_text(where, item.content, rules)
            joined_text(where, item.summary, rules)
        elif kind in CALLS:
            call_of(where, item, 0)
        elif kind in OUTPUTS:
            if native_output(where, item) is None:
                output_content(where, item.output, rules)
        elif kind in COMPACTIONS:
            required(where, "encrypted_content", item.encrypted_content)
        elif kind in FOREIGN_MESSAGES:
            message_content(where, "user", agent_content(item)[0], rules)
        elif kind == "additional_tools":
            where = f"{where}.tools"
            read_tools(where, decode_tools(where, item.tools), _MAX_TOOLS, tolerance=tolerance, brought=kind)
        elif kind == CONFIGURATION:
            read_updates([(where, item)], tolerance)
        elif kind in ("item_reference", "compaction_trigger"):
            raise invalid_value(
                f"{where}.type", f"items of type {kind!r} are not allowed in a conversation or a prompt"
            )
    except FileNotFetched:
        pass  # the exchange fetches the file when a response needs it
    except (ValueError, RecursionError, msgspec.MsgspecError):
        raise invalid_parameter(where, "Antiphon cannot read the item's content") from None
