"""Defines the journal: one entry per finished request, and the recorded contents of a request.

Lives here: the types of journal entries, and the ports with which the servers write entries and the console reads them.
Not here: the code that writes entries (`engine/running/journal.py`), their tables (`stores/journal.py`), the pages
(`console/`).

Invariant: an entry holds no content of a request. Only a `Recording` holds contents. Recordings exist only if the
console's settings enable them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from msgspec import Struct

REFUSED = "refused"
"""The outcome of a request that Antiphon refused for its key, its path or a lack of capacity. A client without a valid
key can cause such refusals, so the journal limits the number of their entries."""
QUEUED = "queued"
"""The outcome of a request that only queued a background response. The end of the response has a separate entry."""
PART = Literal["request", "call", "head", "data", "end", "tool", "saved", "event_head", "event", "finish"]


class JournalSpan(Struct, frozen=True, omit_defaults=True):
    """One step of a request, such as a model call. `start` and `end` are in seconds after the request's start. The time
    of a background response in the queue lies before its start, so `start` of a `queue` span is negative.
    A response that was cancelled in the queue has only a `queue` span, which starts at 0.

    `name` is the upstream of a `call` span. The name of a `tool` span is the function, after the label of its MCP
    server or its namespace: `trains.tickets`. Of other spans it is the loaded or saved object.

    A span of the kind `call` has the facts `operation`, `status`, `fault`, `head`, `first`, `input_tokens`,
    `output_tokens` and `estimated`. `head` and `first` are the seconds from the call's start to the answer's head and
    to its first byte. A call that a worker retried also has `attempts`, the number of all attempts, and `retry_cause`.
    `retry_cause` says why the last retried attempt failed. A span of another kind has the fact `error` if its step
    failed.
    """

    kind: str
    """`queue`, `load`, `compaction`, `call`, `first_token`, `tool` or `save`."""
    name: str
    start: float
    end: float
    facts: Mapping[str, Any] = {}


class Detail(Struct, frozen=True, omit_defaults=True):
    """The facts of a request that the console shows only on the request's page."""

    spans: tuple[JournalSpan, ...] = ()
    ignored: tuple[str, ...] = ()
    """The fields and tools of the request that Antiphon ignored."""
    message: str = ""
    """The message of the error that the client got."""
    cause: str = ""
    advice: str = ""
    upstream_status: int = 0
    request_bytes: int = 0
    output_bytes: int = 0
    events: int = 0
    fallback: str = ""
    trace_id: str = ""
    attempt: int = 0
    """The number of the attempt to run a background response, or 0."""
    path: str = ""
    """The path of the request, without its query."""
    operation: str = ""
    """The step that failed, such as `call_upstream`."""
    stream: bool = False
    alike: int = 0
    """The number of refused requests that share this entry, or 0 for the entry of one request."""
    held_by: str = ""
    """The process whose memory has the contents of a request with `store: false`. Empty if no process has such
    contents."""


class Entry(Struct, frozen=True):
    """One finished request.

    `id` (`entry_…`) is an id that Antiphon makes, because a client may choose `request_id`. Each attempt to run a
    background response has a separate entry. `fault` is empty if the request succeeded. `status` is the HTTP status
    that the client got, and `code` the error's code. `seconds` is the duration of the request. `ended_at` is the time
    at which the request ended, in seconds since the epoch. The store sets `ended_at` by the database's clock, and
    before that it is 0. `age` is the number of seconds from the end of the request until the store receives the entry.
    `cost` is in millionths of the prices' currency. `first` is the time in seconds to the first byte of the upstream's
    answer, None without an answer. `calls` counts the model calls. `stored` tells whether Antiphon stores the response
    `response_id`. When a completed or incomplete stored response is deleted, the store also deletes its recorded
    contents.
    """

    id: str
    owner: str
    request_id: str = ""
    key_id: str = ""
    key_name: str = ""
    team: str = ""
    door: str = ""
    model: str = ""
    upstream: str = ""
    response_id: str = ""
    previous_id: str = ""
    conversation_id: str = ""
    outcome: str = ""
    fault: str = ""
    code: str = ""
    status: int = 0
    stored: bool = False
    recorded: bool = False
    seconds: float = 0.0
    first: float | None = None
    calls: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False
    cost: int = 0
    detail: Detail = Detail()
    ended_at: float = 0.0
    age: float = 0.0

    @property
    def first_token(self) -> float | None:
        """The time in seconds to the first token, or None without a token. The result is also None for a failed request
        without output tokens, because its first byte may belong to an error."""
        return self.first if self.output_tokens or not self.fault else None

    @property
    def refused_early(self) -> bool:
        """Whether Antiphon refused the request before it began a response or called an upstream."""
        return self.outcome == REFUSED or bool(self.fault and not self.response_id and not self.calls)


class Part(Struct, frozen=True):
    """One recorded input or output of a request. `at` is in seconds after the request's start. `facts` has the values
    that belong to the part's kind, such as a status, headers without secrets, or a tool's name."""

    at: float
    kind: PART
    data: bytes = b""
    facts: Mapping[str, Any] = {}


class Recording(Struct, frozen=True):
    """The recorded contents of one request, in order. `cut` tells that parts are missing, because the recording reached
    the limit of the setting `console.record_request_bytes`."""

    parts: tuple[Part, ...] = ()
    cut: bool = False


class EntryFilter(Struct, frozen=True, omit_defaults=True):
    """Selects entries. An empty field selects all entries, and an entry must match every other field exactly.

    `failed` selects entries with a fault. `missed` selects entries that continue a response, but got less than half of
    their input tokens from the upstream's prompt cache. `thread` is the id of a response or of a conversation. `thread`
    selects the entries that created, continue or use this object. `unrefused` leaves out the entries with the outcome
    `refused`, and `ended` the entries with the outcome `queued`. `since` and `until` are in seconds since the epoch.

        EntryFilter(owner="n:anna", model="qwen3", failed=True, since=time.time() - 3600)
    """

    owner: str = ""
    outcome: str = ""
    fault: str = ""
    code: str = ""
    model: str = ""
    upstream: str = ""
    door: str = ""
    team: str = ""
    key_id: str = ""
    thread: str = ""
    failed: bool = False
    missed: bool = False
    unrefused: bool = False
    ended: bool = False
    since: float = 0.0
    until: float = 0.0


class EntryPage(Struct, frozen=True):
    """A page of entries, newest first. `total` counts all entries that the filter selects, at most `MOST_COUNTED`.

    `after` is the cursor of the next page, empty on the last page. Callers treat a cursor as opaque text. Its form is
    `1769817600123:entry_…`: the end of the page's last entry in milliseconds, and its id. `waiting` counts the entries
    that the store has not moved into its indexes yet. No filter selects them.
    """

    entries: tuple[Entry, ...]
    total: int
    after: str
    waiting: int = 0


MOST_COUNTED = 100_000
"""The largest `EntryPage.total`. The store stops counting at this number, because counting reads every entry."""


class Choices(Struct, frozen=True):
    """The distinct models, upstreams, outcomes, error codes, doors and teams of the newest entries, sorted. The console
    offers these values as choices of a filter."""

    models: tuple[str, ...] = ()
    upstreams: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    doors: tuple[str, ...] = ()
    teams: tuple[str, ...] = ()


class _Sums(Struct, frozen=True, kw_only=True):
    requests: int = 0
    failed: int = 0
    """The number of entries with a fault."""
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    cost: int = 0


class EntrySum(_Sums, frozen=True):
    """The requests, tokens and cost of one model, upstream or owner (`name`), summed over journal entries.

    `seconds` is a request's duration, and `first` the time to the first byte. Each is a pair of the median and the 95th
    percentile in seconds over the newest entries. `seconds` or `first` is None if no entry has such a value.
    """

    name: str
    seconds: tuple[float, float] | None = None
    first: tuple[float, float] | None = None


def quantiles(values: Sequence[int]) -> tuple[float, float] | None:
    """Return the median and the 95th percentile of `values` (durations in microseconds), converted to seconds."""
    if not values:
        return None
    ordered = sorted(values)
    median, high = (ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6 for share in (0.5, 0.95))
    return median, high


class Slot(_Sums, frozen=True):
    """The requests, tokens and cost in an interval of time, summed over journal entries. The interval begins at
    `start`, in seconds since the epoch."""

    start: float


class ThreadEntry(Struct, frozen=True):
    """The part of a journal entry that assigns the request to a thread, with the request's input tokens. The ids are
    empty if the request has no such object."""

    owner: str
    response_id: str
    previous_id: str
    conversation_id: str
    input_tokens: int
    cached_tokens: int


class LiveRequest(Struct, frozen=True):
    """One request in flight, as its process reports it.

    `id` is the id that the journal's entry gets (`entry_…`). `age` is the time since the start in seconds. `tokens`
    counts the output tokens so far. `first` is the time to the first byte in seconds. `client` is `connected`, `slow`
    or `gone`. `slow` means that the client does not read the bytes that the server sent. Only the HTTP server can
    detect a slow client. `client` is empty for the attempt of a background response, which has no client. `retries`
    counts the failed attempts to reach the upstream for the current model call, and `retry_cause` says why the last
    attempt failed. Only a background response retries its model calls.
    """

    id: str
    owner: str
    key_name: str
    door: str
    model: str
    upstream: str
    response_id: str
    state: str
    age: float
    tokens: int
    first: float | None
    calls: int
    stored: bool
    process: str = ""
    client: str = ""
    retries: int = 0
    retry_cause: str = ""


class LiveSnapshot(Struct, frozen=True):
    """The requests in flight of one process. `age` is the time in seconds since the process took the snapshot. `more`
    counts the requests that the snapshot leaves out."""

    process: str
    requests: tuple[LiveRequest, ...]
    age: float
    more: int = 0


class Journal(Protocol):
    """Receives the entries of finished requests. `note` never waits and never raises."""

    def note(self, entry: Entry, recording: Recording | None) -> None:
        """Receive the entry, and the request's contents if they are recorded."""
