"""Edits the stored body of a background response, for example to end a response that no worker will finish.

Lives here: the change of a status in a stored body. Also: the last events of a response that ends early, and the part
of its output that the store keeps. Not here: when a response ends early (`engine/running/background.py`), SQL.

The stream of a cancelled response ends with `response.failed`, which carries `status: cancelled` and no error. Neither
OpenAI nor Open Responses defines an event for a cancelled response, but every client ends its stream at
`response.failed`.

Invariant: an edit changes only the named fields of a stored body. Keys keep their order.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Raw

from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.jobs import EventPiece, split_events
from antiphon.errors import InvalidRequest
from antiphon.types.json import encode

_OVER = frozenset({"completed", "incomplete", "failed", "cancelled"})
_BODY = msgspec.json.Decoder(dict[str, Raw])
_DONE_LINE = b"event: response.output_item.done\n"
_DATA = b"data: "


class _BackgroundFlag(msgspec.Struct):
    background: bool = False


class _StoredItem(msgspec.Struct):
    id: str = ""
    type: str = ""


class _ItemDone(msgspec.Struct):
    item: Raw


_KIND = msgspec.json.Decoder(_BackgroundFlag)
_ITEM = msgspec.json.Decoder(_StoredItem)
_ITEM_DONE = msgspec.json.Decoder(_ItemDone)


def is_over(status: str) -> bool:
    """Return whether a response with this status is over."""
    return status in _OVER


def unfinished_response(response_id: str) -> InvalidRequest:
    """Return the 400 for a request that continues an unfinished response."""
    return InvalidRequest(
        f"Previous response with id '{response_id}' is not finished yet. Wait until it is, or cancel it.",
        param="previous_response_id",
        code="previous_response_not_finished",
    )


def is_background(body: bytes) -> bool:
    """Whether a stored response is a background response."""
    return _KIND.decode(body).background


def with_status(body: bytes, status: str) -> bytes:
    """Return the stored response object with `status` as its status."""
    return _changed(body, status=status)


def ended_body(body: bytes, status: str, *, code: str = "", message: str = "") -> bytes:
    """Return the stored object of a response that ended early. A `failed` response's object contains the error."""
    if status == "failed":
        return _changed(body, status=status, error={"code": code, "message": message})
    return _changed(body, status=status)


def whole_body(body: bytes, items: Iterable[StoredItem]) -> bytes:
    """Return the response object with its output. The function joins bytes, because both are already JSON."""
    output = b",".join(item.body for item in items)
    return b'%b,"output":[%b]}' % (body.rstrip()[:-1], output)


def finished_items(pieces: Iterable[EventPiece]) -> tuple[StoredItem, ...]:
    """Return the output items for which the stream has a `response.output_item.done` event."""
    items = []
    for piece in pieces:
        if _DONE_LINE not in piece.data:
            continue
        for event in split_events(piece.data):
            if event.startswith(_DONE_LINE):
                raw = bytes(_ITEM_DONE.decode(event[event.index(_DATA) + len(_DATA) :]).item)
                known = _ITEM.decode(raw)
                items.append(StoredItem(known.id, known.type, raw))
    return tuple(items)


def last_events(
    last: int, body: bytes, items: tuple[StoredItem, ...], *, code: str = "", message: str = ""
) -> EventPiece:
    """Return the events that end a response's stream. The first of these events has the number `last + 1`.

    The last event is `response.failed` with the whole response object. If `code` is set, an `error` event comes first.
    """
    events = b""
    number = last
    if code:
        number += 1
        detail = {"type": "server_error", "code": code, "message": message, "param": None}
        error = {"type": "error", "sequence_number": number, "code": code, "message": message, "param": None}
        events += b"event: error\ndata: %b\n\n" % encode({**error, "error": detail})
    number += 1
    response = whole_body(body, items)
    events += b'event: response.failed\ndata: {"type":"response.failed","sequence_number":%d,"response":%b}\n\n' % (
        number,
        response,
    )
    return EventPiece(number, events)


def _changed(body: bytes, **values: object) -> bytes:
    fields: dict[str, object] = dict(_BODY.decode(body))
    fields.update(values)
    return encode(fields)
