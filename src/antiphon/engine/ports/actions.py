"""Defines the actions that an exchange requests, and the values that an exchange and its driver pass to each other.

The driver of an exchange is the code that performs its actions. The driver consists of the runner
(`engine/running/runner.py`) and the server that has the client's connection.

Lives here: the `Action` union and the plain values in it. The module holds only data and no logic. A value that every
request creates is a msgspec Struct, because a frozen dataclass takes ten times as long to create.

Invariant: the driver performs actions in the order in which `ResponseExchange.next_action()` returned them. The runner
performs every action except a `ClientAction`. The server that has the client's connection performs a `ClientAction`. In
relay mode an exchange requests only one `CallUpstream`, and the server lets Envoy make this call. No action ends a
model call. The driver ends its model call when the exchange requests another call, tools, or the end of the response.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from msgspec import Struct

from antiphon.engine.ports.callers import EVERYTHING, NO_CALLER, Access, Caller
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool
from antiphon.errors import ApiError
from antiphon.translation.values import PromptReference
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.response import UsageObject
from antiphon.types.transport import Headers, header_value


class RequestHead(Struct, frozen=True):
    """The client's request line and headers, and the owner of the request.

    The server derives `owner`, `access` and `caller` from a trusted header or the bearer token (`doors/owners.py`). The
    exchange passes the owner to the stores and never interprets it. `request_id` (`req_…`, or the client's
    `x-request-id`) identifies the request in logs.
    """

    method: str
    path: str
    headers: Headers
    owner: str
    request_id: str = ""
    access: Access = EVERYTHING
    caller: Caller = NO_CALLER

    def header(self, name: str) -> str | None:
        """Return the first value of the header whose lower-case name is `name`, or None."""
        return header_value(self.headers, name)


class StoredItem(Struct, frozen=True, gc=False):
    """An input or output item of a response, as the store holds it and as the endpoint `input_items` returns it.

    `body` is the item's JSON object, which repeats `id` and `type`. `shown` is JSON with text that the model saw but
    that the item lacks (`types/items.py`). Only later requests whose input includes the item read
    `shown`.
    """

    id: str
    type: str
    body: bytes
    shown: bytes | None = None

    @property
    def size(self) -> int:
        """The item's size in bytes. The size counts towards the maximum size of a history and towards the owner's
        storage limit."""
        return len(self.body) + len(self.shown or b"")


@dataclass(frozen=True, slots=True)
class Chain:
    """The history behind a `previous_response_id`: the input and output items of every response in the chain, oldest
    first."""

    items: tuple[StoredItem, ...]


@dataclass(frozen=True, slots=True)
class StoredPrompt:
    """One version of a prompt (`pmpt_…`). `metadata` and `body` (the template) are JSON objects.

    Versions are numbered from 1 on. Times are seconds since the epoch. `updated_at` is the time of the prompt's last
    change, such as a new version.
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
class ComparedResponse:
    """An earlier response whose prompt a request asks to compare. `body` is its JSON object without `output`.

    `prompt_items` are the items of its history and its input. `output_items` are the items that the response produced.
    `body` is empty if the store has the response but not its whole prompt.
    """

    body: bytes = b""
    prompt_items: tuple[StoredItem, ...] = ()
    output_items: tuple[StoredItem, ...] = ()

    @property
    def size(self) -> int:
        """The size in bytes of the items of the prompt."""
        return sum([item.size for item in self.prompt_items])


@dataclass(frozen=True, slots=True)
class Context:
    """The result of the action `LoadContext`.

    `chain` is None when this owner has no response with the requested `previous_response_id`. The result is the same if
    another owner has a response with that id, so no client can find out. `conversation` or `prompt` is None when this
    owner does not have the requested conversation or prompt. `items` maps the ids of the referenced items to the items
    that were found. `files` maps each requested URL and file id to the file or to an error. The error for a file has no
    `param`, because only the exchange knows which request parameter named the file. `keyless` is whether the upstream
    accepts calls without an API key. `keyless` is None when the sidecar could not find out. `compared` is None when
    this owner has no response with the id `LoadContext.compared`.
    """

    chain: Chain | None = None
    conversation: tuple[StoredItem, ...] | None = None
    prompt: StoredPrompt | None = None
    items: dict[str, StoredItem] = field(default_factory=dict)
    files: dict[str, FetchedFile | ApiError] = field(default_factory=dict)
    keyless: bool | None = None
    compared: ComparedResponse | None = None
    answered: dict[str, str] = field(default_factory=dict)
    """The approval requests that another response has already used. Maps the id of the approval request to the id of
    that response."""


# The average over the most common tokenizers, for English text.
_BYTES_PER_TOKEN = 4


class Usage(Struct, frozen=True):
    """The token counts of one response, as in OpenAI's usage object. No count is negative.

    By OpenAI's definition, `cached_tokens` are a part of `input_tokens`, and `reasoning_tokens` are a part of
    `output_tokens`.
    """

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
        """Estimate the token counts of a model call with a body of `asked` bytes and an answer of `written` bytes.

        The estimate counts four bytes as one token.
        """
        read, made = asked // _BYTES_PER_TOKEN, written // _BYTES_PER_TOKEN
        return cls(read, made, read + made)


@dataclass(frozen=True, slots=True)
class OnceOnly:
    """An owner's `Idempotency-Key` with the hash of the request that sends it.

    `fingerprint` is the result of `engine.ports.idempotency.fingerprint`: 64 hexadecimal digits.
    """

    owner: str
    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class ResponseRecord:
    """A finished response as the store holds it.

    `id` begins with `resp_`. `status` is a status of OpenAI's Response object, such as `completed`. Times are seconds
    since the epoch. `body` is the Response JSON object *without* its `output` array. `input_items` are the input of
    this request, without the history. `output_items` are the items that the response produced.
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
    """The idempotency key of the request. The transaction that stores the response also binds the key to this
    response."""
    sent_calls: bool = False
    """Whether the response sent tool calls that may have changed external state."""

    @property
    def size(self) -> int:
        """The size in bytes of the body and the items."""
        return len(self.body) + sum([item.size for item in (*self.input_items, *self.output_items)])

    @property
    def counts(self) -> bool:
        """Whether the response is the final result of its request, so that a repeated request does not run again. A
        failed response is final only if `sent_calls` is true."""
        return self.sent_calls or self.status in ("completed", "incomplete")

    @property
    def joins_conversation(self) -> bool:
        """Whether the store adds the response's items to the response's conversation."""
        return self.conversation_id is not None and self.counts


class UpstreamRequest(Struct, frozen=True):
    """One call of an upstream, usually of Chat Completions. `body` is JSON.

    `path` is relative to the upstream's base URL, and may have a query. When `above` is true, `path` replaces the `/v1`
    at the end of the base URL. `headers` are the client's headers that may reach the upstream. The HTTP client or Envoy
    makes the call and adds the credentials. `upstream` is the name of one upstream or of a list of upstreams. `tries`
    is the number of upstreams in the list that one call may try.

        json = ("content-type", "application/json")
        UpstreamRequest("POST", "/chat/completions", (json,), body, model="qwen3", stream=True, upstream="local")
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
    """Load the owner's objects to which the request refers. The runner passes these objects to `receive_context`.

    The exchange requests files (`file_urls`, `file_ids`) in a later action, because the history and the referenced
    items may name files too. `lock_for` is the id of the response that locks the conversation. `lock_for` is empty when
    the request only reads the conversation. The exchange loads `prompt` first, in a separate action, because the prompt
    may name further objects. If `keyless` names an upstream, the runner finds out whether this upstream accepts calls
    without an API key. The exchange requests this check in a separate action. `approvals` are the ids of the approval
    requests that the client's request answers. The runner marks these approval requests as used by the response
    `lock_for`. A client's answer to an approval request is valid for one response only.
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
    compared: str | None = None
    """The id of the response whose prompt the request asks to compare."""


@dataclass(frozen=True, slots=True)
class PrepareTools:
    """Get the functions that the model sees for these hosted tools. The runner passes the functions to `receive_tools`.

    If a tool creates stored data, the runner checks the storage limits that apply to `caller`.
    """

    owner: str
    response_id: str
    tools: tuple[HostedTool, ...]
    caller: Caller = NO_CALLER


@dataclass(frozen=True, slots=True)
class RunTools:
    """Run these hosted tool calls in parallel. The driver passes each result to `receive_tool_result`.

    `claim` is set when some calls may change external state. The store saves the response record in `claim` before the
    runner sends any call. If the store fails, the runner sends no call and passes the error to `receive_unclaimed`.
    """

    calls: tuple[HostedCall, ...]
    claim: ResponseRecord | None = None


class CallUpstream(Struct, frozen=True):
    """Make this model call. The driver passes the answer to `receive_upstream_head`, `receive_upstream_data` and
    `receive_upstream_end`."""

    request: UpstreamRequest


@dataclass(frozen=True, slots=True)
class ReleaseConversation:
    """Release the conversation lock, the idempotency key and the approvals that this response holds.

    The runner performs this action before the client gets the last event, so the client can send its next request
    immediately. `counts` is true if the response succeeded, or sent a call that may have changed external state. If
    `counts` is true, the key and the approvals stay used. This action has no result.
    """

    owner: str
    response_id: str
    counts: bool = False


@dataclass(frozen=True, slots=True)
class SaveResponse:
    """Store the finished response. The runner passes the outcome of the save to `receive_saved`."""

    record: ResponseRecord


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Store a queued response and the job that runs it. The runner passes the result to `receive_saved`.

    `request` is the job's payload (`jobs.JobRequest` as JSON). `events` are the first events of the stream. `events` is
    empty when the client requested no stream. `needs` lists the features that a worker must support
    (`engine/exchange/queued_request.py`).
    """

    record: ResponseRecord
    request: bytes
    events: bytes
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FollowResponse:
    """Send the client each event of this background response when the store has it, until the response ends. The
    driver then calls `receive_followed`."""

    owner: str
    response_id: str


class SendHead(Struct, frozen=True):
    """Send the client the head of the HTTP response. `streamed` is true when the body is a stream of events (SSE).

    `raw` is true when the body is the upstream's bytes. The sidecar must not insert anything into a raw body.
    """

    status: int
    headers: Headers
    streamed: bool = False
    raw: bool = False


class SendBody(Struct, frozen=True):
    """Send the client these bytes of the body. In an event stream, `data` contains whole events only."""

    data: bytes


class Finish(Struct, frozen=True):
    """End the HTTP response to the client. `outcome` is the final status of the response, or `error`, for metrics."""

    outcome: str
    usage: Usage | None = None
    model: str = ""


ClientAction = SendHead | SendBody | Finish
OwnAction = LoadContext | PrepareTools | SaveResponse | Enqueue | ReleaseConversation
"""The actions that the runner performs without the server that has the client's connection."""
Action = CallUpstream | RunTools | OwnAction | FollowResponse | ClientAction
