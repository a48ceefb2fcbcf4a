"""Defines background jobs, and the stored event stream of a background response, as values.

Lives here: a job, the state of the job queue, and the event stream in chunks. Not here: the workers that run jobs
(`engine/running/workers.py`), the followers that read their streams (`engine/running/followers.py`), the store, SQL.

A job exists from the moment a background response is queued until the response ends. The worker or the request that
ends the response deletes the job, in one transaction with the final state and the last event. So a response can end
only once, and a reader of an ended response sees its whole stream.

Invariant: only the holder of a job's lease writes the job's events and result. A write by a worker that lost its
lease changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import Raw

from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.callers import Caller
from antiphon.errors import ApiError

PATIENCE = 3600.0
"""The seconds for which a job waits for a worker that can run the job."""

_END_OF_EVENT = b"\n\n"


def count_events(data: bytes) -> int:
    """Count the SSE events in `data`. Each event ends with a blank line and contains no other blank line."""
    return data.count(_END_OF_EVENT)


def split_events(data: bytes) -> list[bytes]:
    """Split `data` into framed events. Each event keeps the blank line that ends it."""
    return [part + _END_OF_EVENT for part in data.split(_END_OF_EVENT)[:-1]]


@dataclass(frozen=True, slots=True)
class EventPiece:
    """A chunk of consecutive, whole, framed events. `last` is the `sequence_number` of the last event.

    `count` is the number of events when `data` is encrypted (sealed). `count` is None when `data` is readable.
    """

    last: int
    data: bytes
    count: int | None = None

    @property
    def first(self) -> int:
        """The `sequence_number` of the first event."""
        return self.last - (count_events(self.data) if self.count is None else self.count) + 1

    def after(self, number: int) -> bytes:
        """Return the bytes of the events whose `sequence_number` is greater than `number`."""
        first = self.first
        if number < first:
            return self.data
        return b"".join(split_events(self.data)[number - first + 1 :])


@dataclass(frozen=True, slots=True)
class EventPage:
    """A page of a response's stream, with the response's status at the time of the read.

    `more` is true when further chunks of the stream follow this page.
    """

    status: str
    pieces: tuple[EventPiece, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """A response's status, and the number of the last event of its stream (-1 without events)."""

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
    `caller` has the readable name of the owner, the team, and the id of the client key. Each may be empty.
    """

    body: Raw
    headers: list[tuple[str, str]]
    created_at: float
    request_id: str = ""
    sealed: str = ""
    caller: tuple[str, str, str] = ("", "", "")

    def sender(self, owner: str) -> Caller:
        """The caller who sent the request. `owner`: the job's owner, who may have changed since then."""
        return Caller(owner, *self.caller)


@dataclass(frozen=True, slots=True)
class Job:
    """A job, as the store returns it to the worker that claims the job.

    `request` is a `JobRequest` as JSON. `body` is the stored response object without output. `attempts` counts the
    claims, including this claim. `last_event` is the number of the last stored event, or -1 when the client wants no
    stream.
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


class TooManyJobs(ApiError):
    """The owner has reached the limit of unfinished background responses."""

    status = 429
    type = "rate_limit_exceeded"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"You have {limit} unfinished background responses, the maximum for one owner on this server. "
            "Wait until some of them end, or cancel some.",
            code="rate_limit_exceeded",
            headers=(("retry-after", "5"),),
        )
