"""Defines background jobs as values: the job, its stored event stream, its response, and the signals between processes.

The module also changes the status in a stored response object, and builds the last events of a response that ends
early. Processes notify each other of new events, ended responses and queued jobs through the port `Signals`.

Not here:

- the workers that run jobs (`engine/running/workers.py`), and the followers of their streams
  (`engine/running/followers.py`)
- the operations that end a response early (`engine/running/background.py`)
- the task that polls the store and decides when workers claim jobs (`engine/running/signal_watcher.py`)
- the store, SQL, and how a store receives notifications (`stores/`)

A job exists from the moment a background response is queued until the response ends. The worker or the request that
ends the response deletes the job, in one transaction with the final state and the last event. So a response can end
only once, and a reader of an ended response sees its whole stream.

A process polls the store at the rate that the store gives (`Pace`). A store that gets notifications from the other
processes allows slow polling. The only effect of a notification is an earlier poll. A notification may be duplicated,
late, spurious or lost.

The stream of a cancelled response ends with `response.failed`, which carries `status: cancelled` and no error. Neither
OpenAI nor Open Responses defines an event for a cancelled response, but every client ends its stream at
`response.failed`.

Invariants: only the holder of a job's lease writes the job's events and result. A write by a worker that lost its lease
changes nothing. A change of a stored response object affects only the fields that the caller names. The keys keep their
order. A process that gets no notifications still learns of every event, job and end of a response, because it polls at
the intervals of `Pace`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import Raw

from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.callers import Caller
from antiphon.errors import ApiError, InvalidRequest
from antiphon.types.json import encode

PATIENCE = 3600.0
"""The seconds for which a job waits for a worker with the features that the job needs. After that, a worker without
these features may claim the job. The response then fails, or runs without the missing tool."""

_END_OF_EVENT = b"\n\n"


def count_events(data: bytes) -> int:
    """Count the SSE events (WHATWG HTML) in `data`. Each event ends with a blank line and has no other blank line."""
    return data.count(_END_OF_EVENT)


def split_events(data: bytes) -> list[bytes]:
    r"""Split `data` into SSE events. Each event keeps the blank line that ends it.

    For example, `data: 1\n\ndata: 2\n\n` gives the events `data: 1\n\n` and `data: 2\n\n`.
    """
    return [part + _END_OF_EVENT for part in data.split(_END_OF_EVENT)[:-1]]


@dataclass(frozen=True, slots=True)
class EventPiece:
    r"""A chunk of consecutive, whole SSE events. `last` is the `sequence_number` of the last event in the chunk.

    `count` is the number of events. It is set only if `data` is sealed, because sealed events cannot be counted.

        piece = EventPiece(8, b"data: 7\n\ndata: 8\n\n")
        piece.first == 7 and piece.after(7) == b"data: 8\n\n"
    """

    last: int
    data: bytes
    count: int | None = None

    @property
    def first(self) -> int:
        """The `sequence_number` of the first event."""
        return self.last - (count_events(self.data) if self.count is None else self.count) + 1

    def after(self, number: int) -> bytes:
        """Return the bytes of the events whose `sequence_number` is greater than `number`. `data` must be readable."""
        first = self.first
        if number < first:
            return self.data
        return b"".join(split_events(self.data)[number - first + 1 :])


@dataclass(frozen=True, slots=True)
class EventPage:
    """A page of a response's stream, in order, with the response's status at the time of the read.

    `more` is true when further stored chunks follow this page.
    """

    status: str
    pieces: tuple[EventPiece, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """A response's status, and the `sequence_number` of the last event of its stream (-1 without events)."""

    status: str
    last_event: int


@dataclass(frozen=True, slots=True)
class Queue:
    """The number of jobs that wait for a worker, and the creation time of the oldest (unix time, or None)."""

    length: int
    oldest: float | None = None


class JobRequest(msgspec.Struct, frozen=True):
    """A request as a job stores it, so that a worker can run it: its body, and the headers that may reach the upstream.

    `headers` never contain credentials. Stored credentials are only in `sealed` (`engine/exchange/queueing.py`).
    `created_at` is in seconds since the epoch. `caller` has the readable name of the owner, the team, and the id of the
    client key. Each of these three values may be empty. `loaded_bytes` is the size of the request's history and files.
    The quotas counted this size as estimated usage when the request was queued.
    """

    body: Raw
    headers: list[tuple[str, str]]
    created_at: float
    request_id: str = ""
    sealed: str = ""
    caller: tuple[str, str, str] = ("", "", "")
    loaded_bytes: int = 0

    def sender(self, owner: str) -> Caller:
        """Return the caller of the request. `owner` is the present owner of the job, which may differ from the owner
        who sent the request."""
        return Caller(owner, *self.caller)


@dataclass(frozen=True, slots=True)
class Job:
    """A job, as the store returns it to the worker that claims the job.

    `request` is a `JobRequest` as JSON. `body` is the stored response object without output. `attempts` counts the
    claims, including this claim. `last_event` is the `sequence_number` of the last stored event, or -1 when the client
    wants no stream.
    """

    response_id: str
    owner: str
    request: bytes
    body: bytes
    attempts: int
    last_event: int


@dataclass(frozen=True, slots=True)
class JobEnd:
    """The end of a response that no worker will finish: cancelled, or failed.

    The store applies this end only if `last_event` is still the number of the stream's last event. If `worker` is set,
    this worker must hold the job.
    """

    response_id: str
    status: str
    body: bytes
    output_items: tuple[StoredItem, ...]
    last_event: int
    events: EventPiece | None
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class EndedJob:
    """The job that a `JobEnd` has ended. `status` is the status that the response had before: `queued` or
    `in_progress`. `request` is the `JobRequest` as JSON, or empty if a worker has claimed the job."""

    status: str
    request: bytes = b""


class TooManyJobs(ApiError):
    """The owner has reached the limit of unfinished background responses: a 429 (`rate_limit_exceeded`)."""

    status = 429
    type = "rate_limit_exceeded"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"You have {limit} unfinished background responses, the maximum for one owner on this server. "
            "Wait until some of them end, or cancel some.",
            code="rate_limit_exceeded",
            headers=(("retry-after", "5"),),
        )


@dataclass(frozen=True, slots=True)
class Pace:
    """The polling intervals of a process, in seconds.

    `look` is the time between two polls of the streams and jobs of this process. A worker with free slots looks for
    queued jobs every `claim` seconds. While it finds none, the interval grows to `claim_most`.
    """

    look: float
    claim: float
    claim_most: float


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of one poll of the store.

    `progress` maps the id of each polled response that exists to its progress. `held` are the response ids of the jobs
    that the worker holds.
    """

    progress: Mapping[str, Progress]
    held: frozenset[str]


@dataclass(frozen=True, slots=True)
class News:
    """A notification from another process: these responses have new events or have ended, or jobs are queued.

    `anything` is true when notifications may have been lost, or when the polling rate (`Pace`) has changed. The process
    then polls the store soon, without waiting for the next interval.
    """

    responses: frozenset[str] = frozenset()
    queued: bool = False
    anything: bool = False


class Signals(Protocol):
    """Sends and receives one process's signals."""

    @property
    def pace(self) -> Pace:
        """The intervals at which this process must poll the store at present."""

    async def look(self, followed: Collection[str], worker: str | None) -> Seen:
        """Poll the progress of these streams and the jobs that this worker holds, in one round trip.

        If the store has notifications, the method also subscribes to notifications about the followed responses. Raises
        `StoreError`.
        """

    def tell_queued(self) -> None:
        """Notify other processes of queued jobs that this process does not claim. The call never raises or blocks."""

    def listen(self, hear: Callable[[News], None]) -> None:
        """Register `hear`. The event loop calls `hear` with each later notification."""


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
    """Return whether a response with this status has ended: `completed`, `incomplete`, `failed` or `cancelled`."""
    return status in _OVER


def unfinished_response(response_id: str) -> InvalidRequest:
    """Return the error for a request that continues an unfinished response: 400, `previous_response_not_finished`."""
    return InvalidRequest(
        f"Previous response with id '{response_id}' is not finished yet. Wait until that response ends, or cancel it.",
        param="previous_response_id",
        code="previous_response_not_finished",
    )


def is_background(body: bytes) -> bool:
    """Return whether a stored response object has `background: true`."""
    return _KIND.decode(body).background


def with_status(body: bytes, status: str) -> bytes:
    """Return the stored response object with `status` as its status."""
    return _changed(body, status=status)


def ended_body(body: bytes, status: str, *, code: str = "", message: str = "") -> bytes:
    """Return the stored object of a response that ended early, with its `status`.

    The object of a `failed` response contains the error `{"code": …, "message": …}`.
    """
    if status == "failed":
        return _changed(body, status=status, error={"code": code, "message": message})
    return _changed(body, status=status)


def whole_body(body: bytes, items: Iterable[StoredItem]) -> bytes:
    """Return the whole Response object: `body`, which lacks `output`, with these items as its `output`.

    The function joins bytes, because `body` and the items are already JSON.
    """
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
    """Return the events that end a response's stream. The first of these events has the `sequence_number` `last + 1`.

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
