"""The actions that an exchange requests, and the values it exchanges with its driver.

Lives here: the `Action` union and the plain values in it. Data only: nothing here decides or performs anything. What
every request makes is a Struct: a frozen dataclass takes ten times as long to make.

Invariant: actions are performed in the order in which `ResponseExchange.next_action()` gave them. The runner performs
all but a `ClientAction`, which is the door's; in relay the door has Envoy make the one `CallUpstream`. There is no
action that ends a call: whoever makes it ends it when the exchange asks for another call, for tools, or for the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool
from antiphon.errors import ApiError
from antiphon.translation.values import PromptReference
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.response import UsageObject
from antiphon.types.transport import Headers, header_value


class RequestHead(Struct, frozen=True):
    """The client's request line and headers, and whose request it is.

    `owner` was derived by the door from a trusted header or the bearer token (`doors/owners.py`); the core only
    hands it on. `request_id` names the request in logs.
    """

    method: str
    path: str
    headers: Headers
    owner: str
    request_id: str = ""

    def header(self, name: str) -> str | None:
        """The first value of a header, by lower-case name."""
        return header_value(self.headers, name)


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item as it is stored and as `input_items` returns it: `body` is its whole JSON object.

    `shown` is for later requests alone: what the model was shown of it beyond that (`types/shown.py`), as JSON.
    """

    id: str
    type: str
    body: bytes
    shown: bytes | None = None

    @property
    def size(self) -> int:
        """How many bytes it takes, for a history and for its owner."""
        return len(self.body) + len(self.shown or b"")


@dataclass(frozen=True, slots=True)
class Chain:
    """The history behind a `previous_response_id`: all items, input and output of every turn, oldest first."""

    items: tuple[StoredItem, ...]


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """One version of a prompt. Times in seconds; `metadata` and `body` (the template) are JSON objects.

    `updated_at` is the prompt's: of its last version, or of another change.
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

    `chain` is None when a `previous_response_id` was asked for and does not exist for this owner (missing and
    forbidden look alike), `conversation` and `prompt` likewise. `items` holds the referenced items that were found, by
    id. `files` holds for every URL and every file's id asked for the file, or why there is none (an error without
    `param`: the place is known to whoever asked). `keyless` is None when it could not be learned.
    """

    chain: Chain | None = None
    conversation: tuple[StoredItem, ...] | None = None
    prompt: StoredPrompt | None = None
    items: dict[str, StoredItem] = field(default_factory=dict)
    files: dict[str, FetchedFile | ApiError] = field(default_factory=dict)
    keyless: bool | None = None
    answered: dict[str, str] = field(default_factory=dict)
    """The approvals that another response has already used, each with that response."""


# Of the most usual vocabularies, in English.
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
        """What a response's usage object says."""
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
        """What a call of so many bytes, and an answer of so many, may have taken."""
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
    """A finished response, as the store keeps it.

    `body` is the Response JSON object *without* its `output` array; `input_items` are this request's own input
    (never the history), `output_items` what was produced.
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
    """The key that is bound to it in the unit that stores it; it is held for this response by then."""
    sent_calls: bool = False
    """Whether the response sent calls that may have changed something."""

    @property
    def size(self) -> int:
        """The bytes of its body and its items."""
        return len(self.body) + sum([item.size for item in (*self.input_items, *self.output_items)])

    @property
    def counts(self) -> bool:
        """Whether it is the final result of its request: a failed response is not, unless it has sent calls."""
        return self.sent_calls or self.status in ("completed", "incomplete")

    @property
    def joins_conversation(self) -> bool:
        """Whether its items become part of its conversation."""
        return self.conversation_id is not None and self.counts


class UpstreamRequest(Struct, frozen=True):
    """One Chat Completions call: `path` is below the upstream's base (`/chat/completions`), `body` is JSON.

    `headers` are the client's headers that may reach the upstream; credentials are added by whoever makes the call.
    `upstream` is the name of the upstream to call, or of several, of which `tries` may be asked in turn. With `above`
    the path is not below the base's last `/v1` but beside it.
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
    """Why an exchange is ended from outside."""

    CLIENT_GONE = "client_gone"
    CONNECTION_ENDED = "connection_ended"
    SHUTTING_DOWN = "shutting_down"


@dataclass(frozen=True, slots=True)
class LoadContext:
    """Load what the request refers to, for this owner; answered by `receive_context`.

    Asked for twice when a request has files to fetch: history and referenced items may name some as well. `lock_for` is
    the id of the response that the conversation is to be locked for; empty when it is only read. A `prompt` is asked
    for alone and first: what else there is to load may stand in it. So is `keyless`, the upstream of which is to be
    known whether it works without a key. `approvals` are the requests for approval that the response `lock_for`
    answers: they are used with that, each once.
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
    """Learn what the model is to be shown of these tools; answered by `receive_tools`."""

    owner: str
    response_id: str
    tools: tuple[HostedTool, ...]


@dataclass(frozen=True, slots=True)
class RunTools:
    """Run these calls, all at once; `receive_tool_result` takes each result. `claim`: some calls may change something,
    so the store records this claim before any call is sent. If the store fails, no call is sent, and
    `receive_unclaimed` takes the error.
    """

    calls: tuple[HostedCall, ...]
    claim: ResponseRecord | None = None


class CallUpstream(Struct, frozen=True):
    """Make this model call; answered by `receive_upstream_head`, `_data` and `_end`."""

    request: UpstreamRequest


@dataclass(frozen=True, slots=True)
class ReleaseConversation:
    """Give back what this response holds: the lock of its conversation, its idempotency key and the approvals that it
    uses; nothing is answered. Performed before the client hears the end, so that it can come back at once.

    `counts`: the key and the approvals stay used, because the response succeeded or sent a call that may have changed
    something."""

    owner: str
    response_id: str
    counts: bool = False


@dataclass(frozen=True, slots=True)
class SaveResponse:
    """Store the finished response; answered by `receive_saved`."""

    record: ResponseRecord


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Store a queued response and the job that runs it; answered by `receive_saved`.

    `request` is the job's payload (`jobs.JobRequest` as JSON), `events` what its stream begins with, empty when no
    stream was asked for; `needs` what a worker must be able to (`engine/exchange/queued_request.py`).
    """

    record: ResponseRecord
    request: bytes
    events: bytes
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FollowResponse:
    """Send the client the events of this background response as they come, to its end; answered by
    `receive_followed`."""

    owner: str
    response_id: str


class SendHead(Struct, frozen=True):
    """The client's response head. `streamed` says that body parts follow over time (SSE); `raw` that they are somebody
    else's bytes, into which nothing may be put."""

    status: int
    headers: Headers
    streamed: bool = False
    raw: bool = False


class SendBody(Struct, frozen=True):
    """Body bytes for the client; whole events only."""

    data: bytes


class Finish(Struct, frozen=True):
    """The client's response is complete. `outcome` is the response's final status or `error`, for metrics."""

    outcome: str
    usage: Usage | None = None
    model: str = ""


ClientAction = SendHead | SendBody | Finish
OwnAction = LoadContext | PrepareTools | SaveResponse | Enqueue | ReleaseConversation
"""What the runner performs by itself."""
Action = CallUpstream | RunTools | OwnAction | FollowResponse | ClientAction
