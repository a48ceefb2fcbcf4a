"""Background work as values, and the port that keeps it.

Lives here: what a job is, the stream of a background response in pieces, and `JobStore`. Not here: who runs jobs
(`engine/running/workers.py`), who reads their streams (`engine/running/followers.py`), SQL.

A job is there from the moment a background response is queued until it is over: whoever deletes the job ends the
response, in one unit with its last state and its last event. So two can never end the same response, and whoever sees
a response that is over sees its whole stream.

Invariant: only the holder of a job's lease writes for it; whatever a worker that lost its lease still tries changes
nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import msgspec
from msgspec import Raw

from antiphon.engine.ports.actions import ResponseRecord, StoredItem
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


class JobStore(Protocol):
    """Jobs and the streams of background responses. Leases last so many seconds by the store's own clock; raises
    `StoreError`."""

    async def enqueue(
        self,
        record: ResponseRecord,
        request: bytes,
        events: EventPiece | None,
        *,
        limit: int,
        needs: Collection[str] = (),
    ) -> None:
        """Store the queued response with its input and its job, all or nothing. `needs`: what a worker must be able to,
        to run it.

        Raises `TooManyJobs` when the owner has `limit` jobs. Of a `previous_response_id` holds what holds for
        `ResponseStore.save`.
        """

    async def claim(
        self,
        worker: str,
        seconds: float,
        limit: int,
        besides: Collection[str] = (),
        *,
        able: Collection[str] | None = None,
    ) -> list[Job]:
        """Take up to `limit` jobs that nobody holds, and hold them for so long: first those whose holder is gone, then
        by turns of their owners, an owner's oldest first. All of them or, with an error, none. One that somebody writes
        to at this moment may be left for the next time.

        Only what needs nothing but what the worker is `able` to (None: everything), and what was made more than
        `PATIENCE` seconds ago: where nobody is able to run it, whoever takes it says so.

        None of those `besides`, which the worker still runs: nobody takes over from itself. What the worker holds
        already and is not among them comes along: an earlier claim of which it heard nothing. Their responses are
        `in_progress` from now on.
        """

    async def held(self, worker: str) -> frozenset[str]:
        """The responses whose jobs this worker holds. What it claimed and is not in here is over."""

    async def queue(self) -> Queue:
        """What waits for a worker, whoever was its last."""

    async def renew(self, worker: str, response_ids: Collection[str], seconds: float) -> frozenset[str]:
        """Hold these of the worker's jobs for so many seconds from now; returns which of them it still held."""

    async def release(self, worker: str, response_id: str, *, pause: float = 0.0, attempted: bool = False) -> None:
        """Give a job back; nobody takes it up for `pause` seconds. `attempted`: whether the claim counts as an
        attempt."""

    async def append(self, worker: str, response_id: str, events: EventPiece, *, restart: bool = False) -> bool:
        """Add to the stream; False when the worker does not hold the job. `restart`: these are the first events of an
        attempt, those of earlier ones but for `created` and `queued` go.

        What the same attempt has written from these numbers on is written anew: whoever did not hear what became of a
        write may repeat it, and may add to it.
        """

    async def finish(
        self, worker: str, record: ResponseRecord, events: EventPiece | None, *, restart: bool = False
    ) -> bool:
        """End the response with this record (its input is stored already) and these last events; the job goes.

        False when the worker does not hold the job, or the response's conversation is not its own any more: nothing is
        changed. `restart` as in `append`.
        """

    async def end(self, ending: JobEnd) -> bool:
        """End a response early; the job goes. False when it is over already, or its stream went on meanwhile."""

    async def unlock(self, response_id: str) -> None:
        """Give back the conversation that this response has locked, if its job is gone: a worker that did not know that
        yet may have taken the lock again."""

    async def progress(self, response_ids: Collection[str]) -> dict[str, Progress]:
        """How far these responses are; those that do not exist are left out."""

    async def events(self, owner: str, response_id: str, after: int, limit: int) -> EventPage | None:
        """Up to `limit` pieces with events after this number, or None when there is no such response."""
