"""Forwards a request to an upstream that has the Responses API itself (native).

This module checks the request, and parses and forwards the answer. `model_routes.py` decides which models are native.

The sidecar forwards an event stream as it arrives. It buffers a JSON answer until the answer is complete, so that the
client gets an error object if the call fails.

If the gateway calls the upstream with its own key, all clients share one account at the upstream. Any client that knows
an id could then use the account's objects: responses, conversations, prompts, files, vector stores, containers. So with
several owners, a request must not name such an object, and the sidecar removes headers about the account from the
answer.

Invariants: The sidecar does not store the request or the response. The sidecar forwards the answer's bytes unchanged,
but removes the gateway's keys from an error. If the upstream breaks a stream off, the sidecar appends nothing to the
stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from antiphon.engine.exchange.allowed_by_key import check_body
from antiphon.engine.exchange.answer_readers import AnswerReader
from antiphon.engine.exchange.call_headers import end_to_end, of_nobody
from antiphon.engine.exchange.failure import not_answered, transport_failure
from antiphon.engine.exchange.model_routes import ModelRoute, no_such_model
from antiphon.engine.exchange.named_models import Pairs, check_model_once, fields_of, other_models, pairs_of
from antiphon.engine.exchange.phase import RESPONSES_PATH, ExchangeCore, Phase, whose
from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import Action, CancelReason, SendBody, SendHead, Usage
from antiphon.errors import ApiError, InvalidRequest, UpstreamFailed, UpstreamTimedOut
from antiphon.redacted_json import error_without
from antiphon.redaction import KnownSecrets
from antiphon.translation.token_usage import usage_of_answer, usage_of_stream
from antiphon.types.response import UsageObject
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault, header_value

# The number of bytes kept from the end of a stream. The last event contains the whole response with its usage. If the
# last event is larger than this number, the usage stays unknown.
_TAIL: Final = 1 << 18


class NativeAnswer(AnswerReader):
    """Parses one upstream answer, and appends the actions that forward the answer to the client.

    `own`: whether the upstream account belongs to this client alone. `limited` adds the headers of this gateway's
    quotas. `secrets`: the texts that the parser removes from an error body.
    """

    def __init__(
        self,
        actions: list[Action],
        status: int,
        headers: Headers,
        max_bytes: int,
        *,
        own: bool = True,
        limited: Callable[[Headers], Headers] = tuple,
        secrets: KnownSecrets = (),
    ) -> None:
        self._actions = actions
        self._status = status
        self._headers = limited(end_to_end(headers) if own else of_nobody(headers))
        self._secrets = secrets
        self._left = max_bytes
        # All chunks of an answer that is not a stream, or the last chunks of a stream.
        self._held: deque[bytes] = deque()
        self._holds = 0
        self.streamed = "text/event-stream" in (header_value(headers, "content-type") or "").lower()
        """Whether the answer is an event stream, which the sidecar forwards as it arrives."""
        if self.streamed:
            actions.append(SendHead(status, self._headers, streamed=True, raw=True))

    def receive(self, data: bytes) -> bool:
        """Receive more bytes of the answer. Returns True if the answer is too large."""
        self._left -= len(data)
        if self._left < 0:
            return True
        self._held.append(data)
        if self.streamed:
            self._actions.append(SendBody(data))
            self._holds += len(data)
            while self._holds > _TAIL:
                self._holds -= len(self._held.popleft())
        return False

    def usage(self) -> UsageObject | None:
        """Return the token usage that the upstream has reported so far, or None."""
        if self._status >= 400:
            return None
        heard = b"".join(self._held)
        return usage_of_stream(b"\n" + heard) if self.streamed else usage_of_answer(heard)

    def pass_end(self) -> str:
        """Forward a complete answer that is not a stream. Returns the outcome for metrics. For a stream, only return
        the outcome, because the client already has all bytes."""
        if not self.streamed:
            body = b"".join(self._held)
            if self._status >= 400:
                body = error_without(body, self._secrets)
            length = (("content-length", str(len(body))),) if self._status not in (204, 304) else ()
            self._actions.append(SendHead(self._status, (*self._headers, *length), raw=True))
            self._actions.append(SendBody(body))
        return "completed" if self._status < 400 else "error"


class NativeRequest(Phase):
    """The only phase of a request for a native upstream. `path` is the request's path without its query."""

    def __init__(self, core: ExchangeCore, route: ModelRoute, model: str, path: str) -> None:
        super().__init__(core)
        core.route, core.known.model = route, model
        core.known.needs_drive = path != RESPONSES_PATH
        self._path = path
        self._answer: NativeAnswer | None = None

    def begin(self, body: bytes) -> None:
        """Check the request, then append the action for its model call. Raises `ApiError` if the request is not
        allowed."""
        core, model = self.core, self.core.known.model
        if not core.route.serves(model):
            raise no_such_model(model, route=core.route)
        check_body(core.head.access, body)
        reservation = core.observer.reservation
        if core.head.access.models or reservation is not None:
            fields = fields_of(body)
            check_model_once(fields)
            if reservation is not None and reservation.by_model:
                reservation.others = other_models(model, fields)
        if core.options.several_owners and not core.route.passthrough:
            refuse_references(body)
        core.ask_upstream(self._path.removeprefix("/v1"), body, stream=True, native=True)

    def receive_head(self, status: int, headers: Headers) -> None:
        core = self.core
        core.call.reader = self._answer = NativeAnswer(
            core.actions,
            status,
            headers,
            core.options.limits.upstream_body_bytes,
            own=core.route.passthrough or not core.options.several_owners,
            limited=core.answer.limited,
            secrets=core.secrets,
        )
        core.answer.head_sent = self._answer.streamed
        core.machine.go(State.PASSING)

    def stop_reading(self) -> None:
        too_large = UpstreamFailed("The upstream's answer is too large.", code="upstream_too_large")
        self._break_off(UpstreamError(UpstreamFault.TOO_LARGE, "the stream has no end"), too_large)

    def receive_end(self, error: UpstreamError | None) -> None:
        answer = self._answer
        if answer is None or error is not None:
            self._break_off(error, transport_failure(error))
            return
        core = self.core
        outcome = answer.pass_end()
        if outcome == "error":
            status = core.call.status
            refused = ApiError("The upstream refused the request.", status=status) if status else None
            core.note_failure(core.failure_of(refused or not_answered(core.call.local_reply)))
        self._tell_usage()
        core.finish(outcome)

    def fail(self, error: ApiError) -> None:
        if isinstance(error, UpstreamTimedOut):
            fault = UpstreamError(UpstreamFault.TIMED_OUT, "the response took too long")
        else:
            fault = UpstreamError(UpstreamFault.TOO_LARGE, error.message)
        self._break_off(fault, error)

    def cancel(self, reason: CancelReason, message: str) -> None:
        self._tell_usage()
        super().cancel(reason, message)

    def _break_off(self, fault: UpstreamError | None, error: ApiError) -> None:
        """End the exchange with an HTTP error if the client got no byte yet. Otherwise break the client's stream off,
        because only a broken stream shows the client that the answer is incomplete.
        """
        core = self.core
        self._tell_usage()
        if fault is None or self._answer is None or not self._answer.streamed:
            core.refuse(error)
            return
        core.note_failure(whose(core.failure_of(transport_failure(fault)), fault))
        core.finish("cut")

    def _tell_usage(self) -> None:
        """Report the token usage that the upstream has returned, if any.

        The sidecar does not estimate usage, because byte counts do not include the context that the upstream stores.
        """
        used = self._answer.usage() if self._answer is not None else None
        if used is not None:
            self.core.known.spent = used
            self.core.observer.call_used(Usage.of(used))


_STATE = ("previous_response_id", "conversation", "prompt")
_KEPT_THERE = frozenset({"file_id", "file_ids", "vector_store_ids", "container"})
_WORDS = tuple(name.encode() for name in (*_STATE, *_KEPT_THERE, "item_reference"))


def refuse_references(body: bytes) -> None:
    """Raise `InvalidRequest` when the request names an object that the upstream stores in the gateway's account."""
    if b"\\u" not in body and not any(word in body for word in _WORDS):
        return
    for name, value in pairs_of(body):
        if name in _STATE and value is not None:
            raise _refused(name)
        if name in ("input", "tools"):
            for place in _references(value):
                raise _refused(place if place == "item_reference" else f"{name}: {place}")


def _references(value: object) -> Iterator[str]:
    """Yield the name of each field in `value` whose value is the id of an object in the upstream account."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, Pairs):
            for name, part in value:
                if (name in _KEPT_THERE and _is_id(part)) or (name == "type" and part == "item_reference"):
                    yield name if name != "type" else "item_reference"
                elif name not in ("parameters", "input_schema"):
                    waiting.append(part)
        elif isinstance(value, list):
            waiting += value


def _is_id(value: object) -> bool:
    if isinstance(value, list) and not isinstance(value, Pairs):
        return any(isinstance(part, str) for part in value)
    return isinstance(value, str)


def _refused(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{name}' refers to an object that the upstream stores under the gateway's account, which all "
        "clients share. Send the content itself. (The operator may set owner.source to single, or let "
        "clients send their own keys with auth: passthrough.)",
        param=name.rpartition(" ")[2] if name not in _STATE else name,
        code="unsupported_parameter",
    )
