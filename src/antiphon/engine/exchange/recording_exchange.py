"""Implements an exchange that the console can watch, record and stop.

For each request, this module records the start and end of steps such as loading, tool calls and saving. It also records
a list of parts: the client's request, the chat requests, the upstream's answers, and the events for the client. It
limits the size of the recording, and removes secrets. When an operator cancels a request in the console, this module
ends the request. `observability/journal_entry.py` writes the request's entry in the journal, and
`observability/observation.py` decides whether Antiphon stores the recording.

A process without the console uses `ResponseExchange`, so recording costs that process nothing. All bytes that the
upstream sends within `STEP` seconds become one part, and so do all events for the client. The exchange removes secrets
at the end of the request.

Invariants: a `RecordingExchange` behaves like a `ResponseExchange` until an operator cancels the request. No part
contains a credential of the request or a secret of the settings, as far as the searches find them. Apart from removed
secrets, a recording below its limit contains exactly the bytes that the upstream sent (`data` parts) and the client got
(`event` parts). A recording has at most `limit` bytes of data and `MOST` parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from antiphon.engine.exchange.failure import Failure, operation_in
from antiphon.engine.exchange.phase import ExchangeOptions
from antiphon.engine.exchange.response_exchange import TIMED, ResponseExchange
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import (
    Action,
    CallUpstream,
    Context,
    Enqueue,
    Finish,
    LoadContext,
    PrepareTools,
    RequestHead,
    RunTools,
    SaveResponse,
    SendBody,
    SendHead,
)
from antiphon.engine.ports.hosted_tools import PreparedTool, ToolResult
from antiphon.engine.ports.jobs import JobRequest
from antiphon.engine.ports.journal import PART, Part, Recording
from antiphon.errors import ApiError, StoreError
from antiphon.ids import Clock, IdFactory
from antiphon.redaction import KnownSecrets, SecretSearch, bearer_token, unescaped
from antiphon.spelled_secrets import pieces_without, still_spells
from antiphon.types.json import try_decode
from antiphon.types.transport import Headers, UpstreamError
from antiphon.types.views import DeclaredTools

LOOK: Final = 1.0
"""The maximum time in seconds from an operator's cancellation until the request ends."""
TOOL_BYTES: Final = 64 * 1024
"""The maximum size of a tool's output in a recording, in bytes."""
STOPPED: Final = "cancelled_by_operator"
_LOAD: Final = "load"
_SAVE: Final = "save"
_PASSING: Final = (SendBody, SendHead, CallUpstream, Finish)
"""The actions that begin no step. They are by far the most frequent ones."""


class Step(NamedTuple):
    """One step of a request, such as a tool call. `began` and `ended` are monotonic times in seconds. `kind` is one of
    the values of `JournalSpan.kind`."""

    kind: str
    name: str
    began: float
    ended: float
    error: str


class RecordingExchange(ResponseExchange):
    """A `ResponseExchange` that records its inputs and outputs. `ticks` is a monotonic clock. `search` looks for the
    secrets of the settings.

    `limit` is the maximum number of recorded bytes. With a `limit` of 0, the exchange records nothing. `unstored`:
    whether the exchange also records requests with `store: false`.
    """

    def __init__(
        self,
        options: ExchangeOptions,
        new_id: IdFactory,
        clock: Clock,
        ticks: Callable[[], float],
        search: SecretSearch,
        limit: int,
        unstored: bool,
    ) -> None:
        super().__init__(options, new_id, clock)
        self._ticks = ticks
        self._search = search
        self._record_limit = limit
        self._unstored = unstored
        self._begun: dict[str, tuple[str, str, float]] = {}
        self._asks_end = False
        self.parts: RecordedParts | None = None
        """The recorded parts, or None if the exchange does not record this request."""
        self.steps: list[Step] = []
        """The steps that have ended. The list stays short, because settings limit the number of tool calls."""
        self.path = ""
        """The path of the request, without its query."""

    @property
    def ignored(self) -> tuple[str, ...]:
        """The request fields and tools without effect, as the header `antiphon-ignored` names them."""
        return tuple(dict.fromkeys((*self._core.known.left_out, *self._core.answer.ignored)))

    def stop(self) -> bool:
        """End the request with an error, because an operator cancels it. Returns False if the request has ended, or if
        it only sends the events of a background response.

        The request ends at the next call of `receive_time` in a state that waits for the upstream or a tool.
        """
        if self.done or self.state is State.FOLLOWING:
            return False
        self._asks_end = True
        return True

    # Inputs

    def receive_request(self, head: RequestHead, body: bytes) -> None:
        self.path = head.path.partition("?")[0]
        if self._record_limit and self._options.stores(head.owner):
            declared = secrets_of_tools(body)
            secrets = (*bearer_token(head.header("authorization")), *(declared or ()))
            self.parts = RecordedParts(self._record_limit, self._ticks, self._search, secrets)
            facts = {"method": head.method, "path": self.path, "headers": shown_headers(head.headers)}
            self.parts.add("request", body if declared is not None else b"", facts)
        super().receive_request(head, body)
        self._forget_unstored()

    def receive_context(self, context: Context | ApiError) -> None:
        self._end_step(_LOAD, _code_of(context))
        super().receive_context(context)
        self._forget_unstored()

    def receive_tools(self, prepared: tuple[PreparedTool, ...] | ApiError) -> None:
        self._end_step(_LOAD, _code_of(prepared))
        super().receive_tools(prepared)

    def receive_tool_result(self, result: ToolResult) -> None:
        name = self._end_step(result.call_id, "failed" if result.failed else "")
        if self.parts is not None:
            output = result.output.encode("utf-8", "replace")
            facts = {"name": name, "call_id": result.call_id, "failed": result.failed, "size": len(output)}
            self.parts.add("tool", output[:TOOL_BYTES], facts)
        super().receive_tool_result(result)

    def receive_unclaimed(self, error: StoreError) -> None:
        for call_id in tuple(self._begun):
            self._end_step(call_id, "not_claimed")
        super().receive_unclaimed(error)

    def receive_upstream_head(self, status: int, headers: Headers) -> None:
        if self.parts is not None:
            self.parts.add("head", b"", {"status": status, "headers": shown_headers(headers)})
        super().receive_upstream_head(status, headers)

    def receive_upstream_data(self, data: bytes) -> None:
        if self.parts is not None:
            self.parts.flow("data", data)
        super().receive_upstream_data(data)

    def receive_upstream_end(self, error: UpstreamError | None = None) -> None:
        if self.parts is not None:
            facts = {"fault": error.fault.value, "detail": error.detail} if error is not None else {}
            self.parts.add("end", b"", facts)
        super().receive_upstream_end(error)

    def receive_saved(self, error: StoreError | ApiError | None = None) -> None:
        why = "" if error is None else _code_of(error) or "failed"
        self._end_step(_SAVE, why)
        if self.parts is not None:
            self.parts.add("saved", b"", {"error": why} if why else {})
        super().receive_saved(error)

    def receive_time(self, at: float) -> float:
        if self._asks_end and self.state in TIMED:
            self._asks_end = False
            error = stopped_by_operator()
            core = self._core
            why = Failure("cancelled", error.cause, error.status, STOPPED, operation_in(self.state), core.upstream_name)
            core.note_failure(why)
            self.receive_too_much(error)
        due = super().receive_time(at)
        return due if due < at + LOOK else at + LOOK

    # Outputs

    def actions(self) -> list[Action]:
        actions = super().actions()
        for action in actions:
            self._note(action)
        return actions

    def next_action(self) -> Action | None:
        action = super().next_action()
        if action is not None and (self.parts is not None or not isinstance(action, _PASSING)):
            self._note(action)
        return action

    def _note(self, action: Action) -> None:
        """Record an action of the exchange, such as a model call."""
        if self.parts is not None:
            _record(self.parts, action)
        if isinstance(action, _PASSING):
            return
        if isinstance(action, RunTools):
            for one in action.calls:
                name = one.target.name or one.tool.type
                server = f"{one.target.namespace}." if one.target.namespace else ""
                self._begin_step(one.call_id, "tool", server + name)
        elif isinstance(action, LoadContext):
            self._begin_step(_LOAD, _LOAD, "context")
        elif isinstance(action, PrepareTools):
            self._begin_step(_LOAD, _LOAD, "tools")
        elif isinstance(action, SaveResponse | Enqueue):
            self._begin_step(_SAVE, _SAVE, "response" if isinstance(action, SaveResponse) else "job")

    def _begin_step(self, key: str, kind: str, name: str) -> None:
        self._begun[key] = (kind, name, self._ticks())

    def _end_step(self, key: str, error: str) -> str:
        """End the step that `_begin_step` began with this key, and return the step's name. Returns an empty name if
        there is no such step."""
        kind, name, began = self._begun.pop(key, ("", "", 0.0))
        if kind:
            self.steps.append(Step(kind, name, began, self._ticks(), error))
        return name

    def _forget_unstored(self) -> None:
        """Delete the parts of a request with `store: false`, unless the settings allow such recordings."""
        if not self._unstored and not self._core.known.quoted:
            self.parts = None


def _record(parts: RecordedParts, action: Action) -> None:
    if isinstance(action, SendBody):
        parts.flow("event", action.data)
    elif isinstance(action, CallUpstream):
        call = action.request
        facts: dict[str, object] = {"path": call.path, "upstream": call.upstream, "model": call.model}
        facts |= {"stream": call.stream, "headers": shown_headers(call.headers)}
        parts.add("call", call.body, facts)
    elif isinstance(action, SendHead):
        headers = shown_headers(action.headers)
        parts.add("event_head", b"", {"status": action.status, "headers": headers, "streamed": action.streamed})
    elif isinstance(action, Finish):
        parts.add("finish", b"", {"outcome": action.outcome})


def record_unrun(exchange: ResponseExchange, job: JobRequest, owner: str, response_id: str) -> Recording | None:
    """Return the recording of a background response that ended before a worker ran it. It has only the client's
    request. Returns None if the settings record nothing. `exchange` is new, and the caller must not run it."""
    exchange.receive_job(job, owner, response_id, -1)
    parts = exchange.parts if isinstance(exchange, RecordingExchange) else None
    # With this start, the time of the part is 0.
    return parts.whole(math.inf) if parts is not None else None


def stopped_by_operator() -> ApiError:
    """Return the client's error for a request that an operator has cancelled in the console. Its header
    `x-should-retry: false` tells SDKs not to send the request again."""
    error = ApiError(
        "The request was cancelled by its owner or an operator of this server, in the console.",
        status=503,
        code=STOPPED,
        headers=(("x-should-retry", "false"),),
    )
    error.cause = "an operator cancelled the request in the console"
    return error


def _code_of(answer: object) -> str:
    """Return the code of the error with which a step ended, or an empty string if the step succeeded."""
    if isinstance(answer, ApiError):
        return answer.code or "failed"
    return ""


LEFT_OUT: Final = b"[redacted: these data spell a secret, in a form from which Antiphon cannot cut the secret]"
"""The content of a recorded stream that still spells a secret after the search."""
STEP: Final = 0.05
MOST: Final = 10_000
# Each part also takes memory for its object and its facts.
_PART_BYTES: Final = 64
_SHOWN: Final = frozenset(
    {
        *("accept", "cache-control", "content-encoding", "content-length", "content-type", "idempotency-key"),
        *("idempotent-replayed", "openai-beta", "openai-model", "openai-processing-ms", "openai-version"),
        *("retry-after", "retry-after-ms", "server", "traceparent", "user-agent", "x-antiphon-local-reply"),
        *("x-antiphon-tried", "x-request-id", "x-should-retry"),
    }
)
_WHOLE: Final = (b"\nevent: response.completed\n", b"\nevent: response.incomplete\n")
_SHOWN_FAMILIES: Final = ("antiphon-", "x-ratelimit-", "x-stainless-")
_NO_SECRETS: Final = frozenset({"accept", "accept-encoding", "accept-language", "content-type", "user-agent"})
_SCHEMES: Final = frozenset({"basic", "bearer", "token"})
_TOOLS: Final = msgspec.json.Decoder(DeclaredTools)


class _Flow:
    """The chunks of one stream within `STEP` seconds, which become one recorded part."""

    __slots__ = ("at", "kind", "pieces")

    def __init__(self, kind: PART, at: float) -> None:
        self.kind = kind
        self.at = at
        self.pieces: list[bytes] = []


class RecordedParts:
    """The recorded parts of one request: its inputs and its outputs. `ticks` is a monotonic clock, and `limit` is the
    maximum number of recorded bytes.

    No part contains a credential of the request (`secrets`) or a secret of the settings, which `search` finds. All
    requests of a process share `search`.
    """

    def __init__(self, limit: int, ticks: Callable[[], float], search: SecretSearch, secrets: KnownSecrets) -> None:
        self._ticks = ticks
        self._search = search
        self._secrets = secrets
        self._room = limit
        self._cut = False
        self._parts: list[Part] = []
        self._flows: list[_Flow] = []

    def add(self, kind: PART, data: bytes = b"", facts: Mapping[str, object] | None = None) -> None:
        """Add a part. If `data` does not fit into the limit, the part contains only the first bytes of `data`."""
        self._flush()
        self._append(kind, self._ticks(), self._fitting(data), facts or {})

    def flow(self, kind: PART, data: bytes) -> None:
        """Add a chunk of a stream. `kind` is `data` for bytes from the upstream, and `event` for bytes to the
        client."""
        if self._cut:
            return
        at = self._ticks()
        if self._flows and at - self._flows[0].at >= STEP:
            self._flush()
        for flow in self._flows:
            if flow.kind == kind:
                break
        else:
            flow = _Flow(kind, at)
            self._flows.append(flow)
        flow.pieces.append(self._fitting(data))

    def whole(self, started: float) -> Recording:
        """Return the whole recording, without secrets. `started` is the time at which the request began, on the clock
        `ticks`."""
        self._flush()
        search = self._search.joined(self._secrets)
        cleaned = _clean_parts(self._parts, search)
        parts = [
            Part(max(0.0, part.at - started), part.kind, data, _clean_facts(part.facts, search))
            for part, data in zip(self._parts, cleaned, strict=True)
        ]
        return Recording(tuple(parts), self._cut)

    def _flush(self) -> None:
        """Append one part for each stream that sent chunks since the last call, in the order of their first chunks."""
        for flow in self._flows:
            self._append(flow.kind, flow.at, b"".join(flow.pieces), {})
        self._flows.clear()

    def _append(self, kind: PART, at: float, data: bytes, facts: Mapping[str, object]) -> None:
        if len(self._parts) < MOST:
            self._room -= _PART_BYTES
            self._parts.append(Part(at, kind, data, facts))
        else:
            self._cut = True

    def _fitting(self, data: bytes) -> bytes:
        """Return as many of the first bytes of `data` as the limit still allows."""
        room = max(0, self._room)
        self._room -= len(data)
        if len(data) > room:
            self._cut = True
            return data[:room]
        return data


def shown_headers(headers: Headers) -> list[list[str]]:
    """Return the headers that a recording may contain, without credentials and cookies."""
    return [[name, value] for name, value in headers if name in _SHOWN or name.startswith(_SHOWN_FAMILIES)]


def secrets_of_tools(body: bytes) -> KnownSecrets | None:
    """Return the credentials for MCP servers in a request's body, or None if the body is invalid and may contain
    credentials."""
    declared = try_decode(_TOOLS, body)
    if declared is None:
        return None if b"mcp" in unescaped(body) else ()
    found: list[str] = []
    items = declared.input if isinstance(declared.input, list) else []
    tools: list[Any] = [tool for one in (declared, *items) for tool in one.tools or ()]
    while tools:
        tool = tools.pop()
        if not isinstance(tool, dict):
            continue
        if isinstance(nested := tool.get("tools"), list):
            tools += nested
        headers = tool.get("headers")
        values = [tool.get("authorization"), *_credentials_of(tool.get("server_url"))]
        if isinstance(headers, dict):
            values += [value for name, value in headers.items() if name.lower() not in _NO_SECRETS]
        for value in values:
            if isinstance(value, str):
                found.append(value)
                scheme, _, rest = value.partition(" ")
                if scheme.lower() in _SCHEMES:
                    found.append(rest)
    return tuple(dict.fromkeys(found))


def _credentials_of(url: object) -> list[str]:
    """Return the parts of a URL that may be credentials: the user information and the values of the query."""
    if not isinstance(url, str):
        return []
    before, _, query = url.partition("?")
    _, _, rest = before.partition("://")
    user, at, _ = rest.partition("/")[0].rpartition("@")
    found = [*user.split(":"), user] if at else []
    return found + [value for pair in query.partition("#")[0].split("&") if (value := pair.partition("=")[2])]


def _clean_parts(parts: Sequence[Part], search: SecretSearch) -> list[bytes]:
    """Return the data of each part without secrets. If a secret lies across two parts of a stream, the last part of the
    stream gets all its data."""
    cleaned = [part.data for part in parts]
    # The upstream's answer to one call is one stream, and so are the events for the client. Every other part is alone.
    streams: dict[tuple[str, int], list[int]] = {}
    call = 0
    for place, part in enumerate(parts):
        call += part.kind == "call"
        number = {"data": call, "event": 0}.get(part.kind, place)
        streams.setdefault((part.kind, number), []).append(place)
    spelled = False
    # The upstream's streams come first, because the deltas of the events contain the upstream's deltas.
    for (kind, _), places in sorted(streams.items(), key=lambda stream: stream[0][0] == "event"):
        whole = b"".join([cleaned[place] for place in places])
        clean = search.clean(whole)
        # The last event has every text as a whole, so the ordinary search finds a secret that the deltas spell.
        if kind == "data" or (kind == "event" and (spelled or clean != whole or not any(map(whole.count, _WHOLE)))):
            pieces = pieces_without([cleaned[place] for place in places], search)
            for place, data in zip(places, pieces, strict=True):
                spelled = spelled or data != cleaned[place]
                cleaned[place] = data
            whole = b"".join(pieces)
            clean = search.clean(whole)
        if kind in ("data", "event") and still_spells(clean, search):
            for place in places:
                cleaned[place] = b""
            cleaned[places[-1]], spelled = LEFT_OUT, True
            continue
        if clean is whole or clean == whole:
            continue
        each = [search.clean(cleaned[place]) for place in places]
        if b"".join(each) != clean:
            each = [*[b""] * (len(places) - 1), clean]
        for place, data in zip(places, each, strict=True):
            cleaned[place] = data
    return cleaned


def _clean_facts(facts: Mapping[str, object], search: SecretSearch) -> Mapping[str, object]:
    """Return the metadata of a recorded part, without secrets."""
    clean: dict[str, object] = {}
    for name, value in facts.items():
        if isinstance(value, str):
            value = _clean_text(value, search)
        elif isinstance(value, list):
            value = [[header, _clean_text(text, search)] for header, text in value]
        clean[name] = value
    return clean


def _clean_text(text: str, search: SecretSearch) -> str:
    return search.clean(text.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
