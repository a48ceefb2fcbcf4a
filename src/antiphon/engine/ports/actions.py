"""Defines the actions that an exchange requests, and the values that it passes to and from its driver.

Lives here: the `Action` union and the plain values in it. The module holds data only: it decides and performs nothing.
A value that every request creates is a Struct, because a frozen dataclass takes ten times as long to create.

Invariant: the driver performs actions in the order in which `ResponseExchange.next_action()` returned them. The runner
performs all actions but a `ClientAction`, which the server (the "door") performs. In relay mode the door lets Envoy
make the one `CallUpstream`. No action ends a call. The driver that makes a call ends it when the exchange requests
another call, tools, or the end of the response.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from antiphon.engine.ports.callers import EVERYTHING, Access
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool
from antiphon.errors import ApiError
from antiphon.translation.values import PromptReference
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.response import UsageObject
from antiphon.types.transport import Headers, header_value


class RequestHead(Struct, frozen=True):
    """The client's request line and headers, and the owner of the request.

    The door derives `owner` and `access` from a trusted header or the bearer token (`doors/owners.py`). The core only
    passes the owner on. `request_id` names the request in logs.
    """

    method: str
    path: str
    headers: Headers
    owner: str
    request_id: str = ""
    access: Access = EVERYTHING

    def header(self, name: str) -> str | None:
        """The first value of a header, by lower-case name."""
        return header_value(self.headers, name)


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item as the store holds it and as `input_items` returns it. `body` is its whole JSON object.

    `shown` is JSON for later requests only. It has text that the model saw and that the item lacks (`types/shown.py`).
    """

    id: str
    type: str
    body: bytes
    shown: bytes | None = None

    @property
    def size(self) -> int:
        """The bytes that the item counts, in a history's limit and in its owner's."""
        return len(self.body) + len(self.shown or b"")


@dataclass(frozen=True, slots=True)
class Chain:
    """The history behind a `previous_response_id`: the input and output items of every turn, oldest first."""

    items: tuple[StoredItem, ...]


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """One version of a prompt. Times in seconds; `metadata` and `body` (the template) are JSON objects.

    `updated_at` is the time of the prompt's last version or of another change.
    """

    id: str
    name: str | None
    version: int
    default_version: int
    last_version: int
    created_at: float
    updated_at: float
    metadata: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Context:
    """The answer to `LoadContext`.

    `chain` is None when the requested `previous_response_id` does not exist for this owner. A missing response and
    another owner's response look alike. The same holds for `conversation` and `prompt`. `items` maps ids to the
    referenced items that were found. `files` maps each requested URL and file id to the file or to the error. The error
    has no `param`, because the exchange knows which parameter named the file. `keyless` is None when the sidecar could
    not find out.
    """

    chain: Chain | None = None
    conversation: tuple[StoredItem, ...] | None = None
    prompt: StoredPrompt | None = None
    items: dict[str, StoredItem] = field(default_factory=dict)
    files: dict[str, FetchedFile | ApiError] = field(default_factory=dict)
    keyless: bool | None = None
    answered: dict[str, str] = field(default_factory=dict)
    """The approvals that another response has already used, each with that response."""


# An average of the most common tokenizers, for English text.
_BYTES_PER_TOKEN = 4


class Usage(Struct, frozen=True):
    """Token counts of one response (all non-negative)."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0

    @classmethod
    def of(cls, usage: UsageObject) -> Usage:
        """Read the token counts from a response's usage object."""
        read, written = usage.input_tokens_details, usage.output_tokens_details
        return cls(
            usage.input_tokens,
            usage.output_tokens,
            usage.total_tokens,
            read.cached_tokens,
            read.cache_write_tokens,
            written.reasoning_tokens,
        )

    @classmethod
    def estimated(cls, asked: int, written: int) -> Usage:
        """Estimate token counts from sizes: a call of `asked` bytes, and an answer of `written` bytes."""
        read, made = asked // _BYTES_PER_TOKEN, written // _BYTES_PER_TOKEN
        return cls(read, made, read + made)


@dataclass(frozen=True, slots=True)
class OnceOnly:
    """An `Idempotency-Key` with the request that it stands for, hashed (`engine/ports/idempotency.py`)."""

    owner: str
    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ResponseRecord:
    """A finished response as the store holds it.

    `body` is the Response JSON object *without* its `output` array. `input_items` are the input of this request, never
    the history. `output_items` are the items that the response produced.
    """

    id: str
    owner: str
    previous_response_id: str | None
    status: str
    model: str
    created_at: float
    completed_at: float | None
    body: bytes
    input_items: tuple[StoredItem, ...]
    output_items: tuple[StoredItem, ...]
    usage: Usage | None = None
    conversation_id: str | None = None
    once: OnceOnly | None = None
    """The request's idempotency key. The response holds it, and the transaction that stores the response binds it."""
    sent_calls: bool = False
    """Whether the response sent calls that may have changed something."""

    @property
    def size(self) -> int:
        """The size in bytes of the body and the items."""
        return len(self.body) + sum([item.size for item in (*self.input_items, *self.output_items)])

    @property
    def counts(self) -> bool:
        """Whether it is the final result of its request. A failed response is not, unless it has sent calls."""
        return self.sent_calls or self.status in ("completed", "incomplete")

    @property
    def joins_conversation(self) -> bool:
        """Whether the store adds the response's items to its conversation."""
        return self.conversation_id is not None and self.counts


class UpstreamRequest(Struct, frozen=True):
    """One Chat Completions call. `path` is relative to the upstream's base (`/chat/completions`). `body` is JSON.

    `headers` are the client's headers that may reach the upstream. The HTTP client or Envoy, which makes the call, adds
    the credentials. `upstream` is the name of one upstream, or of a list of which `tries` may be called in turn. With
    `above`, `path` replaces the base's last `/v1` instead of following it.
    """

    method: str
    path: str
    headers: Headers
    body: bytes = b""
    model: str = ""
    stream: bool = False
    upstream: str = "default"
    above: bool = False
    tries: int = 1


class CancelReason(Enum):
    """Why the driver ends an exchange early."""

    CLIENT_GONE = "client_gone"
    CONNECTION_ENDED = "connection_ended"
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True, slots=True)
class LoadContext:
    """Load the objects that the request refers to, for this owner. The answer goes to `receive_context`.

    The exchange requests this twice when a request has files to fetch, because history and referenced items may name
    files too. `lock_for` is the id of the response that locks the conversation. It is empty when the conversation is
    only read. A `prompt` is requested first and alone, because it may name further objects to load. So is `keyless`: an
    upstream, to find out whether it works without a key. `approvals` are the approval requests that the response
    `lock_for` answers. This load marks each of them as used, and each can be used once.
    """

    owner: str
    previous_response_id: str | None
    item_ids: tuple[str, ...] = ()
    file_urls: tuple[str, ...] = ()
    conversation: str | None = None
    lock_for: str = ""
    prompt: PromptReference | None = None
    file_ids: tuple[str, ...] = ()
    keyless: str | None = None
    approvals: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PrepareTools:
    """Get the functions that the model sees for these hosted tools. The answer goes to `receive_tools`."""

    owner: str
    response_id: str
    tools: tuple[HostedTool, ...]


@dataclass(frozen=True, slots=True)
class RunTools:
    """Run these calls in parallel. `receive_tool_result` takes each result.

    `claim` is set when some calls may change something: the store records it before any call is sent. If the store
    fails, no call is sent, and `receive_unclaimed` takes the error.
    """

    calls: tuple[HostedCall, ...]
    claim: ResponseRecord | None = None


class CallUpstream(Struct, frozen=True):
    """Make this model call. The answer goes to `receive_upstream_head`, `receive_upstream_data` and
    `receive_upstream_end`."""

    request: UpstreamRequest


@dataclass(frozen=True, slots=True)
class ReleaseConversation:
    """Release what this response holds: its conversation's lock, its idempotency key and the approvals that it uses.

    There is no answer. The runner performs it before the client gets the end, so that the client can continue at once.
    `counts`: the key and the approvals stay used, because the response succeeded or sent a call that may have changed
    something.
    """

    owner: str
    response_id: str
    counts: bool = False


@dataclass(frozen=True, slots=True)
class SaveResponse:
    """Store the finished response. The answer goes to `receive_saved`."""

    record: ResponseRecord


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Store a queued response and the job that runs it. The answer goes to `receive_saved`.

    `request` is the job's payload (`jobs.JobRequest` as JSON). `events` are the first events of the stream, empty when
    the client requested no stream. `needs` lists what a worker must support (`engine/exchange/queued_request.py`).
    """

    record: ResponseRecord
    request: bytes
    events: bytes
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FollowResponse:
    """Send the client the events of this background response as they come, until it ends. The answer goes to
    `receive_followed`."""

    owner: str
    response_id: str


class SendHead(Struct, frozen=True):
    """The head of the HTTP response to the client. `streamed`: the body follows in parts over time (SSE). `raw`: the
    body is the upstream's bytes, and the sidecar may insert nothing into it."""

    status: int
    headers: Headers
    streamed: bool = False
    raw: bool = False


class SendBody(Struct, frozen=True):
    """Body bytes for the client. A stream's bytes are whole events."""

    data: bytes


class Finish(Struct, frozen=True):
    """The response to the client is complete. `outcome` is the response's final status or `error`, for metrics."""

    outcome: str
    usage: Usage | None = None
    model: str = ""


ClientAction = SendHead | SendBody | Finish
OwnAction = LoadContext | PrepareTools | SaveResponse | Enqueue | ReleaseConversation
"""The actions that the runner performs alone, without the door."""
Action = CallUpstream | RunTools | OwnAction | FollowResponse | ClientAction
