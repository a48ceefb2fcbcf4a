"""Holds the response under construction: its initial form, its event numbers and bytes, its finished items, and their
counts.

This module makes the Response object from a request's fields, with OpenAI's defaults for absent fields. A response
repeats some fields of its request. The module decides the order of the response's members. The module also makes the
repeated fields that the table in `translation/request/fields.py` cannot describe. The builder and its open items share
the state in `ResponseDraft`. `builder.py` and `open_items.py` decide the order of events, and `encode.py` encodes an
event as bytes.

Source: the observed responses of OpenAI, with the two differences below. If a request omits a function's `strict`, the
response shows `strict` as null, because Antiphon rewrites no schema. At the end, `service_tier` is the upstream's
value, or `default`.

Invariants: `sequence_number` has no gaps. If the text of the response exceeds `max_bytes`, the draft raises
`OutputTooLarge`.
"""

from __future__ import annotations

from typing import Final, NamedTuple, cast

import msgspec
from msgspec import UNSET, Raw, defstruct

from antiphon.ids import IdFactory
from antiphon.translation.events.encode import DeltaTemplate, PaddedTemplate, frame, padded
from antiphon.translation.request.fields import ECHOED, FORWARDED
from antiphon.translation.splice import cut
from antiphon.translation.tool_map import CallTarget
from antiphon.types import events as ev
from antiphon.types.items import OutputItem
from antiphon.types.json import given, quoted, raw
from antiphon.types.request import CreateResponse, TextOptions, ToolDeclaration
from antiphon.types.response import ConversationReference, Response

EMPTY: Final = Raw(b'""')
"""The text of a content part that has just begun."""

_PADDED_TO: Final = 16


class LaterCall(NamedTuple):
    """A call of a client's tool that waits for a hosted tool. `status` is the status that the emitted call gets. If
    `bare` is true, the arguments are the tool's input itself, without JSON around it. `size` is the call's size in
    bytes, which `ResponseDraft.size` already includes."""

    status: str
    bare: bool
    size: int


class OutputTooLarge(Exception):
    """The model's output grew past the limit."""


class ResponseDraft:
    """The response under construction. All items of the response write their text and events to this object.

    - `events`: whether the draft makes events.
    - `obfuscate`: whether deltas get padding that hides their length.
    - `max_bytes` limits all text of the response.
    - `number` is the sequence number of the next event.
    """

    __slots__ = (
        "calling",
        "cut_calls",
        "events",
        "hosted_calls",
        "later",
        "max_bytes",
        "new_id",
        "number",
        "obfuscate",
        "out",
        "output",
        "reasoned",
        "size",
        "template",
        "text",
        "written",
    )

    def __init__(self, new_id: IdFactory, *, events: bool, obfuscate: bool, max_bytes: int, number: int) -> None:
        self.new_id = new_id
        self.events = events
        self.obfuscate = obfuscate
        self.max_bytes = max_bytes
        self.number = number
        self.out: list[bytes] = []
        """The encoded server-sent events that `ResponseBuilder.take` has not yet returned."""
        self.output: list[OutputItem] = []
        """The finished items, in order."""
        # A bytearray instead of a list, because a token has only a few bytes and a separate object would need many
        # more.
        self.text = bytearray()
        """The current text of the open item: the concatenated fragments."""
        self.template: DeltaTemplate | None = None
        """The template of the open item's deltas."""
        self.size = 0
        """The current size of the output in bytes, including open items and log probabilities."""
        self.written = 0
        """The size in bytes of the text in all closed items, including calls of hosted tools."""
        self.reasoned = 0
        """The part of `written` that is reasoning, in bytes."""
        self.hosted_calls: list[tuple[CallTarget, str, str]] = []
        """Complete calls of hosted tools: the tool, the call's id, and the arguments as text. Calls of the client's
        tools that follow a hosted call wait in the same list."""
        self.later: dict[str, LaterCall] = {}
        """Maps the call id of each waiting call of a client tool to the call's state."""
        self.calling = False
        """Whether the model calls tools in the current model call. If so, the text of this model call is not the final
        answer."""
        self.cut_calls = False
        """Whether the response has an incomplete call, because the call's arguments have no valid form."""

    def next(self) -> int:
        """Return the sequence number of the next event, and increment the counter."""
        number = self.number
        self.number += 1
        return number

    def emit(self, event: ev.Event) -> None:
        """Append an event, if the draft makes events."""
        if self.events:
            self.out.append(frame(event))

    def emit_delta(self, event: ev.Event, fragment: bytes) -> None:
        """Append a delta event without a template. `fragment` is the delta's text, which determines the padding."""
        if self.events:
            self.out.append(padded(frame(event), self.padding(fragment)) if self.obfuscate else frame(event))

    def padding(self, fragment: bytes) -> bytes:
        """Return letters that pad a fragment. The length of fragment and padding together is a multiple of 16."""
        letters = self.new_id("pad").removeprefix("pad_").encode() * _PADDED_TO
        return letters[: -len(fragment) % _PADDED_TO]

    # Open text

    def begin_text(self, delta: ev.Event, *, padded: bool = True) -> None:
        """Begin an item's text. `delta` is the template of the item's delta events. `padded`: whether the deltas get
        padding if `obfuscate` is set."""
        if self.events:
            hides = padded and self.obfuscate
            self.template = PaddedTemplate(delta, self.padding) if hides else DeltaTemplate(delta)

    def add(self, fragment: bytes) -> None:
        """Add text, with a delta event. Raises `OutputTooLarge`."""
        self.size = size = self.size + len(fragment)
        if size > self.max_bytes:
            raise OutputTooLarge
        self.append(fragment)

    def append(self, fragment: bytes) -> None:
        """Add text with a delta event. The method checks no limit, because the end of an item must not fail. The caller
        has already counted the text, or the text has only a few bytes."""
        self.text += fragment
        template = self.template
        if template is not None:
            number = self.number
            self.out.append(template.render(number, fragment))
            self.number = number + 1

    def splice(self, data: bytes, before: bytes, behind: bytes, refused: bytes) -> tuple[bytes, int]:
        """Add the texts of the chunks at the beginning of `data`, with a delta event for each. Each chunk consists of
        `before`, a text and `behind`, as in `splice.cut`. Returns the added text and the chunks' size in bytes. If the
        text would exceed the limit, adds nothing and returns an empty text and 0."""
        template = self.template
        if template is None or isinstance(template, PaddedTemplate):
            return self._add_cut(template, *cut(data, before, behind, refused))
        events, text, count, used = template.splice(self.number, data, before, behind, refused)
        if text:
            size = self.size + len(text)
            if size > self.max_bytes:
                return b"", 0
            self.size = size
            self.text += text
            self.out.append(events)
            self.number += count
        return text, used

    def _add_cut(self, template: PaddedTemplate | None, texts: list[bytes], used: int) -> tuple[bytes, int]:
        """Add `texts`. `splice` calls this method if the draft makes no events, or if each delta needs separate
        padding."""
        text = b"".join(texts)
        size = self.size + len(text)
        if size > self.max_bytes:
            return b"", 0
        self.size = size
        self.text += text
        if template is not None and texts:
            self.out.append(template.render_many(self.number, texts))
            self.number += len(texts)
        return text, used

    def hold(self, fragment: bytes) -> None:
        """Add text without an event. Raises `OutputTooLarge`."""
        self.count(len(fragment))
        self.text += fragment

    def end_text(self) -> Raw:
        """End the item's text. Returns the whole text as a JSON string, and adds its size to `written`."""
        text = quoted(bytes(self.text))
        self.written += len(self.text)
        self.text = bytearray()
        self.template = None
        return text

    def take_text(self) -> bytes:
        """Remove and return the open item's text. `size` still includes this text, because the caller adds the text
        again."""
        text = bytes(self.text)
        self.text = bytearray()
        return text

    def count(self, size: int) -> None:
        """Add this number of bytes to the size of the output. Raises `OutputTooLarge`."""
        self.size += size
        if self.size > self.max_bytes:
            raise OutputTooLarge

    # Items

    def added(self, index: int, item: OutputItem) -> None:
        """Emit the event `response.output_item.added` of an item."""
        if self.events:
            self.emit(ev.OutputItemAdded(self.next(), index, item))

    def done(self, index: int, item: OutputItem) -> None:
        """Add a finished item to the output, and emit the item's last event, `response.output_item.done`."""
        self.output.append(item)
        if self.events:
            self.emit(ev.OutputItemDone(self.next(), index, item))

    def mute(self) -> None:
        """Stop making events, because the client reads no more events. Drops the events that are not yet sent."""
        self.events = False
        self.template = None
        self.out = []


_AUTO: Final = Raw(b'"auto"')
_NO_METADATA: Final = Raw(b"{}")
_FALLBACK: Final = "antiphon_upstream"
"""The metadata key for the name of the fallback upstream, if a fallback answered instead of the first upstream."""
_IGNORED: Final = "antiphon_ignored"
"""The metadata key for the names of the tools that the model did not see."""
_LONGEST_VALUE: Final = 512
_MOST_METADATA: Final = 16
_NO_REASONING: Final = Raw(b'{"effort":null,"summary":null}')


def _with_echoes() -> type[Response]:
    """Make the response type, with a member for each field that responses repeat. The members have OpenAI's order: five
    members have fixed positions, the others are sorted by name."""
    own = {
        field.name: (field.name, field.type) if field.required else (field.name, field.type, field.default)
        for field in msgspec.structs.fields(Response)
    }
    own |= {name: (name, row.echo_kind, row.echo) for name, row in ECHOED.items()}
    first = [own.pop(name) for name in ("id", "object", "created_at", "status")]
    last = own.pop("metadata")
    members = [*first, *(own[name] for name in sorted(own)), last]
    whole = defstruct("Response", members, kw_only=True, namespace={"__doc__": Response.__doc__})
    return cast(type[Response], whole)


WHOLE_RESPONSE: Final = _with_echoes()
"""The type of a whole response, as Antiphon sends and stores it."""
_HELD: Final = tuple(ECHOED.keys() - FORWARDED.keys())


def start_response(request: CreateResponse, response_id: str, created_at: float) -> Response:
    """Return the initial response, with the status `in_progress` and without output and usage."""
    return WHOLE_RESPONSE(
        id=response_id,
        created_at=int(created_at),
        model=request.model,
        status="in_progress",
        tools=[_tool(tool) for tool in request.tools],
        tool_choice=request.tool_choice.echo if request.tool_choice is not None else _AUTO,
        text=_text(request.text),
        reasoning=_reasoning(request),
        metadata=_metadata(request),
        conversation=ConversationReference(request.conversation) if request.conversation is not None else UNSET,
        instructions=_instructions(request),
        output=[],
        previous_response_id=request.previous_response_id,
        prompt=request.prompt if request.prompt is not None else UNSET,
        **{name: value for name in _HELD if (value := getattr(request, name)) is not None},
        **request.forwarded,
    )


def echo_configuration(response: Response, request: CreateResponse) -> None:
    """Repeat in the response the reasoning and text settings that items of the conversation have changed."""
    response.reasoning, response.text = _reasoning(request), _text(request.text)


def with_fallback(metadata: Raw, upstream: str) -> Raw:
    """Add the name of the fallback upstream that answered instead of the first upstream to the metadata."""
    return _with_pair(metadata, _FALLBACK, upstream)


def _metadata(request: CreateResponse) -> Raw:
    metadata = request.metadata or _NO_METADATA
    tools = request.unknown.tools
    if not tools:
        return metadata
    named = ", ".join(tools)
    if len(named) > _LONGEST_VALUE:
        named = named[: _LONGEST_VALUE - 5].rpartition(", ")[0] + ", ..."
    return _with_pair(metadata, _IGNORED, named)


def _with_pair(metadata: Raw, key: str, value: str) -> Raw:
    """Add a key-value pair to the metadata, unless the client's metadata already has the maximum number of pairs."""
    pairs = msgspec.json.decode(metadata, type=dict[str, Raw])
    if key not in pairs and len(pairs) >= _MOST_METADATA:
        return metadata
    return raw({**pairs, key: value})


def _instructions(request: CreateResponse) -> Raw | None:
    """Return the request's instructions. If the request's prompt has messages, the result is a list that ends with
    these messages, as in OpenAI's responses."""
    if not request.prompt_messages:
        return request.instructions
    said: list[object] = [item.source for item in request.prompt_messages]
    if request.instructions is not None:
        part = {"type": "input_text", "text": request.instructions}
        said.insert(0, {"type": "message", "role": "developer", "content": [part]})
    return raw(said)


def _tool(tool: ToolDeclaration) -> Raw:
    """Return a tool's declaration as the response repeats it. A function and a tool search get every key that OpenAI's
    responses have, with null for missing values. Declarations of other tools contain no secret and stay unchanged."""
    if tool.type == "mcp":
        return _mcp(tool.source)
    if tool.type not in ("function", "tool_search"):
        return tool.source
    shown: dict[str, object] = {
        "type": tool.type,
        "description": tool.description,
        "parameters": tool.parameters if given(tool.parameters) else None,
    }
    if tool.type == "tool_search":
        return raw({**shown, "execution": tool.execution} if tool.execution is not None else shown)
    shown |= {"name": tool.name, "strict": tool.strict}
    if tool.defer_loading:
        # OpenAI's responses have `defer_loading` only when the request set it.
        shown["defer_loading"] = True
    return raw(shown)


def _mcp(source: Raw) -> Raw:
    """Return an MCP server's declaration without the credentials."""
    shown = msgspec.json.decode(source, type=dict[str, Raw])
    shown.pop("authorization", None)
    return raw({"allowed_tools": None, "require_approval": "always", **shown, "headers": None})


def _text(text: TextOptions | None) -> Raw:
    verbosity = (text.verbosity if text is not None else None) or "medium"
    wanted: dict[str, object] = {"type": "text"}
    if text is not None and text.format is not None and text.format.type != "text":
        wanted = {"type": text.format.type}
        if text.format.type == "json_schema":
            wanted |= {
                "description": text.format.description,
                "name": text.format.name,
                "schema": text.format.schema,
                "strict": text.format.strict is not False,
            }
    return raw({"format": wanted, "verbosity": verbosity})


def _reasoning(request: CreateResponse) -> Raw:
    asked = request.reasoning
    if asked is None:
        return _NO_REASONING
    return raw({"effort": asked.effort, "summary": asked.summary or asked.generate_summary})
