"""Background jobs as values, and the port that stores them.

Lives here: what a job is, and the stream of a background response in pieces. Not here: the store, who runs jobs
(`engine/running/workers.py`), who reads their streams (`engine/running/followers.py`), SQL.

A job is there from the moment a background response is queued until it is over: whoever deletes the job ends the
response, in one unit with its last state and its last event. So two can never end the same response, and whoever sees
a response that is over sees its whole stream.

Invariant: only the holder of a job's lease writes for it; whatever a worker that lost its lease still tries changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from msgspec import Raw

from antiphon.engine.ports.actions import StoredItem
from antiphon.errors import ApiError

PATIENCE = 3600.0
"""Seconds for which a job waits for somebody who is able to run it."""

_END_OF_EVENT = b"\n\n"


def count_events(data: bytes) -> int:
    """How many events these bytes are (framed events hold no other blank line)."""
    return data.count(_END_OF_EVENT)


def split_events(data: bytes) -> list[bytes]:
    """The events one by one, each with its blank line."""
    return [part + _END_OF_EVENT for part in data.split(_END_OF_EVENT)[:-1]]


@dataclass(frozen=True, slots=True)
class EventPiece:
    """Some whole framed events in a row; `last` is the `sequence_number` of the last one. `count`: how many they are,
    where `data` does not say (it is sealed)."""

    last: int
    data: bytes
    count: int | None = None

    @property
    def first(self) -> int:
        """The `sequence_number` of the first one."""
        return self.last - (count_events(self.data) if self.count is None else self.count) + 1

    def after(self, number: int) -> bytes:
        """The events whose number is greater than this one."""
        first = self.first
        if number < first:
            return self.data
        return b"".join(split_events(self.data)[number - first + 1 :])


@dataclass(frozen=True, slots=True)
class EventPage:
    """A part of a response's stream and the response's status, as of one moment.

    `more`: there are further pieces behind these.
    """

    status: str
    pieces: tuple[EventPiece, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """A response's status, and the number of the last event of its stream (-1 when there is none)."""

    status: str
    last_event: int


@dataclass(frozen=True, slots=True)
class Queue:
    """How many jobs wait for a worker, and when the first of them was made (unix time; None: there is none)."""

    length: int
    oldest: float | None = None


class JobRequest(msgspec.Struct, frozen=True):
    """All that is needed to run a request again: its body, and the headers that may reach the upstream. Credentials are
    never among them; where they are kept, it is in `sealed` (`engine/exchange/queueing.py`)."""

    body: Raw
    headers: list[tuple[str, str]]
    created_at: float
    request_id: str = ""
    sealed: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as whoever claimed it gets it.

    `request` is a `JobRequest` as JSON, `body` the stored response object (without output), `attempts` counts the
    claims, this one included; `last_event` is the number of the last event there is, -1 when none is wanted.
    """

    response_id: str
    owner: str
    request: bytes
    body: bytes
    attempts: int
    last_event: int


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a response ends that nobody runs to its end: cancelled, or failed.

    It counts only if `last_event` is still the stream's last event; `worker`, when given, must hold the job.
    """

    response_id: str
    status: str
    body: bytes
    output_items: tuple[StoredItem, ...]
    last_event: int
    events: EventPiece | None
    worker: str | None = None


class TooManyJobs(ApiError):
    """The owner has as many unfinished background responses as one may have."""

    status = 429
    type = "rate_limit_exceeded"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"There are {limit} unfinished background responses already, the most this server keeps for one owner. "
            "Wait for some of them to end, or cancel them.",
            code="rate_limit_exceeded",
            headers=(("retry-after", "5"),),
        )
