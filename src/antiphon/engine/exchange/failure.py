"""Classifies the failure of a response for the log line: who is at fault (client, upstream or this server), in which
step, and why.

This module classifies all errors, including transport errors and local replies. A local reply is an answer that Envoy
sends because no upstream answered. `envoy/failures.py` and `envoy/picker_listener.py` configure a header that
identifies a local reply. `errors.py` and `translation/answer/upstream_errors.py` define the error that the client gets.
`observability/outcome.py` writes the log line.

Invariant: a failure contains no content of a request or of an answer. The only exception is an upstream's error
message, from which the sidecar has removed credentials.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import CancelReason
from antiphon.errors import ApiError, AtCapacity, ConnectorFailed, UpstreamFailed, UpstreamTimedOut
from antiphon.redaction import KnownSecrets
from antiphon.translation.answer.upstream_errors import map_transport_error, map_upstream_answer
from antiphon.types.transport import PICKER_REPLY, Headers, UpstreamError, UpstreamFault

Fault = Literal["client", "upstream", "ours", "cancelled", "unknown"]

_MAX_LENGTH: Final = 500
# The statuses with which an upstream rejects the client's request because of its content.
_ABOUT_THE_REQUEST: Final = frozenset({400, 413, 422})
# The client is at fault for an error with this code, whatever the status, because the client or an operator's rule
# chose the model's name.
_NAMED_BY_THE_CLIENT: Final = frozenset({"model_not_found"})
_OPERATIONS: Final = {
    State.NEW: "read_request",
    State.CONTEXT: "load",
    State.PREPARING: "prepare_tools",
    State.CALLING: "call_upstream",
    State.RUNNING: "run_tools",
    State.STREAMING: "read_answer",
    State.COLLECTING: "read_answer",
    State.REFUSED: "call_upstream",
    State.PASSING: "pass_on",
    State.SAVING: "save",
    State.FOLLOWING: "follow",
}
_NOT_QUOTED: Final = "the upstream's message is not logged (store: false)"
_AT_THE_UPSTREAM: Final = frozenset({State.CALLING, State.STREAMING, State.COLLECTING, State.REFUSED, State.PASSING})

_ENDED_BY: Final[dict[CancelReason, Fault]] = {
    CancelReason.CLIENT_GONE: "cancelled",
    CancelReason.CONNECTION_ENDED: "unknown",
    CancelReason.SHUTTING_DOWN: "ours",
}
_CANCELLED: Final = {
    CancelReason.CLIENT_GONE: "The client left before the response was complete.",
    CancelReason.CONNECTION_ENDED: (
        "The connection ended before the response was complete: the client left, or the upstream broke off its answer."
    ),
    CancelReason.SHUTTING_DOWN: "The server was shut down before the response was complete.",
}


_CONNECT_ERROR: Final = re.compile(r"connect_error:_([^|}]{1,200})")
"""The operating system's error in Envoy's response code details. Envoy replaces spaces by `_`."""
_PLAIN: Final = {
    "no_healthy_upstream": "Envoy has no address of it that works",
    "connection_timeout": "the connection timed out",
    "cluster_not_found": "Envoy does not know it",
    "TLS_error": "the TLS handshake failed",
}
"""Words for parts of Envoy's response code details."""
_TAKEN: Final = "connection_termination"
"""Envoy's response code details contain this text if the connection ended after the upstream had received the
request."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a response failed, as values for the log line.

    `status` is the HTTP status for the client. `upstream_status` is the status of the upstream's answer (0: no answer).
    """

    fault: Fault
    cause: str
    status: int = 0
    code: str = ""
    operation: str = ""
    upstream: str = ""
    upstream_status: int = 0
    counted: bool = False
    """Whether Antiphon only counts such failures, and does not log a line for each failure
    (`observability/repeated_failures.py`)."""

    @property
    def loud(self) -> bool:
        """Whether Antiphon logs the failure as a warning, because the operator may have to act.

        A client's error, or a client that disconnects, is not the operator's concern. An operator need not see the
        failure `connection_ended` either. In relay mode, a disconnected client and an upstream that aborts its answer
        look the same, and the client is the usual cause. An operator should see every other failure whose party at
        fault is unknown, because such failures are rare. For example, a stream may make no progress because the
        upstream is silent or because the client does not read.
        """
        if self.fault == "unknown":
            return self.code != CancelReason.CONNECTION_ENDED.value
        return self.fault in ("upstream", "ours")

    def fields(self) -> dict[str, str | int]:
        """Return the log fields of the failure, by name, without fields that have no value."""
        told: dict[str, str | int] = {
            "fault": self.fault,
            "cause": self.cause[:_MAX_LENGTH],
            "status": self.status,
            "code": self.code,
            "operation": self.operation,
            "upstream": self.upstream,
            "upstream_status": self.upstream_status,
        }
        return {name: value for name, value in told.items() if value}


def operation_in(state: State) -> str:
    """Return the name of the step that an exchange performs in this state, such as `call_upstream`. The log line names
    the step."""
    return _OPERATIONS.get(state, "")


def refusal(
    error: ApiError, state: State = State.NEW, upstream: str = "", upstream_status: int = 0, *, quoted: bool = True
) -> Failure:
    """Return the failure to log for an error that the client gets.

    `upstream` is the name of the upstream that the exchange called, or empty. An upstream's error message may contain
    text of the request. For requests with `store: false`, the caller sets `quoted` to False, so that the log does not
    contain the upstream's message.
    """
    at_it = state in _AT_THE_UPSTREAM
    fault: Fault = "client" if error.status < 500 else "ours"
    if isinstance(error, UpstreamFailed | UpstreamTimedOut):
        fault = "upstream"
    elif isinstance(error, ConnectorFailed):
        fault = "ours"
    elif at_it and upstream_status:
        theirs = error.status in _ABOUT_THE_REQUEST or error.code in _NAMED_BY_THE_CLIENT
        fault = "client" if theirs else "upstream"
    operation = error.operation or operation_in(state)
    cause = error.cause or (error.message if quoted or not (at_it and upstream_status) else _NOT_QUOTED)
    asked, answered = (upstream, upstream_status) if at_it else (error.upstream, 0)
    counted = isinstance(error, AtCapacity)
    return Failure(fault, cause, error.status, error.code or "", operation, asked, answered, counted)


def transport_failure(error: UpstreamError | None) -> ApiError:
    """Return the client's error for a call that failed in transport. The attribute `cause` of this error is only for
    the log."""
    error = error or UpstreamError(UpstreamFault.UNREACHABLE, "no answer")
    mapped = map_transport_error(error)
    mapped.cause = f"{error.fault.value}: {error.detail}"
    return mapped


def local_fault(told: str) -> UpstreamFault:
    """Return the fault of a call that Envoy answered with a local reply. The fault is `CUT` if the connection ended
    after the upstream had received the request, else `UNREACHABLE`. `told` is the value of the `LOCAL_REPLY` header."""
    cut = told.partition(":")[0] != PICKER_REPLY and _TAKEN in told
    return UpstreamFault.CUT if cut else UpstreamFault.UNREACHABLE


def not_answered(told: str, headers: Headers = (), said: bytes = b"", secrets: KnownSecrets = ()) -> ApiError:
    """Return the client's error for a call that Envoy answered with a local reply.

    `told` is the value of the `LOCAL_REPLY` header, and `said` is the body of Envoy's answer.
    """
    kind, _, why = told.partition(":")
    if kind == PICKER_REPLY:
        status, _, why = why.partition(":")
        error = map_upstream_answer(int(status) if status.isdecimal() else 503, headers, said, secrets)
        if error.status == 429:
            # The endpoint picker answers 429 when its endpoint pool is full. The client is not at fault.
            error = UpstreamFailed(
                error.message, status=429, type=error.type, code=error.code, param=error.param, headers=error.headers
            )
        error.cause = f"endpoint picker: {why or 'the picker refused the request: ' + error.message}"
        return error
    fault = local_fault(told)
    what = (
        "the connection ended before the upstream answered"
        if fault is UpstreamFault.CUT
        else "Envoy could not reach the upstream"
    )
    return transport_failure(UpstreamError(fault, f"{what}: {in_words(why)}" if why else what))


def in_words(details: str) -> str:
    """Return Envoy's response code details with plain words before them: `connection refused (…)`. Details without
    known words stay unchanged."""
    if (error := _CONNECT_ERROR.search(details)) is not None:
        words = error[1].replace("_", " ").strip()
        plain = words[:1].lower() + words[1:]
    else:
        plain = next((words for part, words in _PLAIN.items() if part in details), "")
    return f"{plain} ({details})" if plain else details


def ended_early(failure: Failure, details: str, status: int, *, client_left: bool) -> Failure:
    """Return the failure of a relayed stream whose connection ended, after Envoy has reported whether the client or the
    upstream ended it. Before Envoy's report, the failure has the fault `unknown`."""
    status = status or failure.status
    if client_left:
        gone = CancelReason.CLIENT_GONE
        return replace(failure, fault=_ENDED_BY[gone], cause=_CANCELLED[gone], code=gone.value, status=status)
    what = "the upstream broke off its answer"
    if "protocol_error" in details:
        # Over HTTP/1, Envoy also reports a connection that ends in the middle of a body as a protocol error.
        what = "the upstream closed the connection in the middle of its answer, or broke the rules of HTTP"
    cut = transport_failure(UpstreamError(UpstreamFault.CUT, f"{what} ({details})" if details else what))
    return replace(failure, fault="upstream", cause=cut.cause or "", code=cut.code or "", status=status)


def cancelled(reason: CancelReason, state: State, upstream: str) -> Failure:
    """Return the failure to log for an exchange that the server cancelled."""
    asked = upstream if state in _AT_THE_UPSTREAM else ""
    return Failure(_ENDED_BY[reason], _CANCELLED[reason], 0, reason.value, operation_in(state), asked)
