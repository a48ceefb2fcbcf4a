"""Edits the stored body of an unfinished background response, and ends one that no worker will finish.

Lives here: changing the status in a stored body, the last event of a response that was cancelled or given up, and
what of its output can be kept. Not here: when a response ends early (`engine/running/background.py`), SQL.

A cancelled response's stream ends with `response.failed` that carries `status: cancelled` and no error: neither OpenAI
nor Open Responses has an event of its own for it, and every client takes this one for the end.

Invariant: nothing but what is named changes in a stored body; keys keep their order.
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
    """Whether a response of this status changes no more."""
    return status in _OVER


def unfinished_response(response_id: str) -> InvalidRequest:
    """Why a response that is not over cannot be continued."""
    return InvalidRequest(
        f"Previous response with id '{response_id}' is not finished yet. Wait until it is, or cancel it.",
        param="previous_response_id",
        code="previous_response_not_finished",
    )


def is_background(body: bytes) -> bool:
    """Whether a stored response was made in the background."""
    return _KIND.decode(body).background


def with_status(body: bytes, status: str) -> bytes:
    """The stored object with another status."""
    return _changed(body, status=status)


def ended_body(body: bytes, status: str, *, code: str = "", message: str = "") -> bytes:
    """The stored object of a response that ended early; a `failed` one says why."""
    if status == "failed":
        return _changed(body, status=status, error={"code": code, "message": message})
    return _changed(body, status=status)


def whole_body(body: bytes, items: Iterable[StoredItem]) -> bytes:
    """The response object with its output: spliced, since both are stored as JSON."""
    output = b",".join(item.body for item in items)
    return b'%b,"output":[%b]}' % (body.rstrip()[:-1], output)


def finished_items(pieces: Iterable[EventPiece]) -> tuple[StoredItem, ...]:
    """The output items that a stream has emitted whole."""
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
    """What ends the stream of a response behind the event number `last`: `error` for one that failed, and
    `response.failed` with the whole object."""
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
