"""Makes the events of whole items. Such items belong to hosted tool calls, or to a stored response that answers a
repeated request.

This module makes the events of hosted calls at their start and end, in the order observed from OpenAI's service. The
module also makes the event stream of a finished response, for a request that repeats an earlier idempotency key.
`engine/exchange/tool_turns.py` decides when a tool runs. `builder.py` assigns the sequence numbers and output indices
of a running response. The module does not read stored streams of background responses.

The item in the event `response.output_item.added` of a hosted call has no content. The content follows in later events
and in `response.output_item.done`.

Invariants: the deltas of a hosted call together equal the finished item's text. In the stream that answers a repeated
request, sequence numbers have no gaps and begin at 0. Every item is opened and closed once, in order. A client that
applies the events gets the stored response. Antiphon does not store the original deltas, so each text is one delta. In
the stream that answers a repeated request, a hosted call has no events between `response.output_item.added` and
`response.output_item.done`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw

from antiphon.types import events as ev
from antiphon.types import items as it
from antiphon.types.json import decode_any, encode

Made = tuple[str, dict[str, object]]

_ENDS: Final = {"completed": "response.completed", "incomplete": "response.incomplete"}
_AT_THE_BEGINNING: Final[dict[str, object]] = {
    "status": "in_progress",
    "output": [],
    "usage": None,
    "completed_at": None,
    "error": None,
    "incomplete_details": None,
}


def replayed(response: bytes) -> bytes:
    """Return all events of a stored response, without the sentinel `[DONE]`."""
    whole: dict[str, Any] = decode_any(response)
    begun = whole | {name: value for name, value in _AT_THE_BEGINNING.items() if name in whole}
    begun.pop("prompt_cache_diagnostics", None)
    events: list[Made] = [("response.created", {"response": begun}), ("response.in_progress", {"response": begun})]
    for index, item in enumerate(_objects(whole, "output")):
        events += _item(item, index)
    events.append((_ENDS.get(whole.get("status", ""), "response.failed"), {"response": whole}))
    return b"".join(_framed(kind, number, fields) for number, (kind, fields) in enumerate(events))


def _framed(kind: str, number: int, fields: dict[str, object]) -> bytes:
    data = encode({"type": kind, "sequence_number": number, **fields})
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), data)


def _item(item: dict[str, object], index: int) -> Iterator[Made]:
    kind = item.get("type")
    bare = dict(item)
    if "status" in bare:
        bare["status"] = "in_progress"
    between: Iterator[Made] = iter(())
    if kind == "message":
        bare["content"] = []
        between = _content(item, index)
    elif kind == "reasoning":
        bare |= {"summary": []} | ({"content": []} if item.get("content") else {})
        between = _reasoning(item, index)
    elif kind in _CALLS:
        name, events = _CALLS[kind]
        bare[name] = ""
        between = _call(item, index, name, events)
    yield "response.output_item.added", {"output_index": index, "item": bare}
    yield from between
    yield "response.output_item.done", {"output_index": index, "item": item}


def _objects(value: dict[str, object], name: str) -> list[dict[str, object]]:
    """Return the objects in the list `name` of `value`. The result is empty if `value` has no such list."""
    found = value.get(name)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


_CALLS: Final = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}


def _call(item: dict[str, object], index: int, name: str, events: str) -> Iterator[Made]:
    place: dict[str, object] = {"item_id": item["id"], "output_index": index}
    text = item.get(name) or ""
    if text:
        yield f"{events}.delta", {**place, "delta": text}
    named = {"name": item.get("name", "")} if name == "arguments" else {}
    yield f"{events}.done", {**place, name: text, **named}


def _content(item: dict[str, object], index: int) -> Iterator[Made]:
    for at, part in enumerate(_objects(item, "content")):
        place: dict[str, object] = {"item_id": item["id"], "output_index": index, "content_index": at}
        if part.get("type") == "refusal":
            yield from _part(place, part, "content_part", "refusal", "refusal")
        else:
            logprobs = part.get("logprobs") or []
            empty = {**part, "text": "", "annotations": []} | ({"logprobs": []} if "logprobs" in part else {})
            yield "response.content_part.added", {**place, "part": empty}
            if part["text"]:
                yield "response.output_text.delta", {**place, "delta": part["text"], "logprobs": logprobs}
            for number, annotation in enumerate(_objects(part, "annotations")):
                noted = {**place, "annotation_index": number, "annotation": annotation}
                yield "response.output_text.annotation.added", noted
            yield "response.output_text.done", {**place, "text": part["text"], "logprobs": logprobs}
            yield "response.content_part.done", {**place, "part": part}


def _reasoning(item: dict[str, object], index: int) -> Iterator[Made]:
    place: dict[str, object] = {"item_id": item["id"], "output_index": index}
    for at, part in enumerate(_objects(item, "summary")):
        where = {**place, "summary_index": at}
        yield from _part(where, part, "reasoning_summary_part", "reasoning_summary_text", "text")
    for at, part in enumerate(_objects(item, "content")):
        yield from _part({**place, "content_index": at}, part, "content_part", "reasoning_text", "text")


def _part(place: dict[str, object], part: dict[str, object], whole: str, piece: str, name: str) -> Iterator[Made]:
    """Yield the events of a content part. `name` is the part's member that contains the text."""
    yield f"response.{whole}.added", {**place, "part": {**part, name: ""}}
    yield f"response.{piece}.delta", {**place, "delta": part[name]}
    yield f"response.{piece}.done", {**place, name: part[name]}
    yield f"response.{whole}.done", {**place, "part": part}


HostedEvent = tuple[Callable[..., ev.Event], tuple[str, ...]]
"""An event's class, and the values of the event's members. The members `sequence_number`, `item_id` and `output_index`
come before these values."""

_BEGUN: Final[dict[type, dict[str, object]]] = {
    it.FileSearchCall: {"status": "in_progress", "queries": [], "results": None},
    it.WebSearchCall: {"status": "in_progress", "action": UNSET},
    it.CodeInterpreterCall: {"status": "in_progress", "code": "", "outputs": None},
    it.McpCall: {"status": "in_progress", "arguments": "", "output": None, "error": None},
    it.McpListTools: {"tools": Raw(b"[]"), "error": UNSET},
    it.McpApprovalRequest: {},
    it.HostedToolSearchCall: {"status": "in_progress", "arguments": Raw(b"{}")},
    it.HostedToolSearchOutput: {"status": "in_progress", "tools": Raw(b"[]")},
}
"""For each kind of hosted item: the members that have other values in the event `response.output_item.added`."""

_BEFORE: Final[dict[type, tuple[tuple[type[ev.Event], str], ...]]] = {
    it.FileSearchCall: ((ev.FileSearchInProgress, ""), (ev.FileSearchSearching, "")),
    it.WebSearchCall: ((ev.WebSearchInProgress, ""), (ev.WebSearchSearching, "")),
    it.CodeInterpreterCall: (
        (ev.CodeInterpreterInProgress, ""),
        (ev.CodeInterpreterCodeDelta, "code"),
        (ev.CodeInterpreterCodeDone, "code"),
        (ev.CodeInterpreterInterpreting, ""),
    ),
    it.McpListTools: ((ev.McpListToolsInProgress, ""),),
    it.McpCall: (
        (ev.McpCallInProgress, ""),
        (ev.McpCallArgumentsDelta, "arguments"),
        (ev.McpCallArgumentsDone, "arguments"),
    ),
}
"""For each kind of hosted item: the events before the tool runs. An entry has the event's class, and the name of the
item's member that the event contains."""

_AFTER: Final[dict[type, tuple[type[ev.Event], type[ev.Event]]]] = {
    it.FileSearchCall: (ev.FileSearchCompleted, ev.FileSearchCompleted),
    it.WebSearchCall: (ev.WebSearchCompleted, ev.WebSearchCompleted),
    it.CodeInterpreterCall: (ev.CodeInterpreterCompleted, ev.CodeInterpreterCompleted),
    it.McpListTools: (ev.McpListToolsCompleted, ev.McpListToolsFailed),
    it.McpCall: (ev.McpCallCompleted, ev.McpCallFailed),
}
"""For each kind of hosted item: the event after the tool has run. The first class is for success, the second for
failure."""


def opened(item: it.HostedItem) -> it.HostedItem:
    """Return the item for the event `response.output_item.added`, without the content that follows in later events."""
    return msgspec.structs.replace(item, **_BEGUN[type(item)])


def begun(item: it.HostedItem) -> Iterator[HostedEvent]:
    """Yield the events after `response.output_item.added` and before the tool runs."""
    for event, told in _BEFORE.get(type(item), ()):
        if not told:
            yield event, ()
        elif (text := getattr(item, told)) or "delta" not in event.__struct_fields__:
            yield event, (text,)


def ended(item: it.HostedItem) -> Iterator[HostedEvent]:
    """Yield the events after the tool has run and before `response.output_item.done`."""
    if (events := _AFTER.get(type(item))) is not None:
        failed = (
            item.error is not UNSET if isinstance(item, it.McpListTools) else getattr(item, "status", "") == "failed"
        )
        yield events[failed], ()
