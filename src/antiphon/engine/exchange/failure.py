"""Classifies why a response failed: whose fault, during which step, and the cause. The log line uses this.

Lives here: whose fault it was, what was being done, and the cause; an error in transport with its cause, and one of a
call that Envoy answered itself, because no upstream did. Not here: what the client is told (`errors.py`,
`translation/answer/upstream_errors.py`), which answers are Envoy's (`envoy/local_replies.py`,
`envoy/picker_listener.py`), where the line is written (the doors, by `observability/outcome.py`).

Invariant: nothing in it is content of a request or of an answer but an upstream's own error message, which was searched
for credentials before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from antiphon.engine.exchange.states import State
from antiphon.engine.ports.actions import CancelReason
from antiphon.errors import ApiError, AtCapacity, UpstreamFailed, UpstreamTimedOut
from antiphon.redaction import KnownSecrets
from antiphon.translation.answer.upstream_errors import map_transport_error, map_upstream_answer
from antiphon.types.transport import PICKER_REPLY, Headers, UpstreamError, UpstreamFault

Fault = Literal["client", "upstream", "ours", "cancelled", "unknown"]

_MAX_LENGTH: Final = 500
# What an upstream finds wrong with a request that its client wrote.
_ABOUT_THE_REQUEST: Final = frozenset({400, 413, 422})
# ... whatever its status: the name is the client's, or that of a rule of the operator's.
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
_NOT_QUOTED: Final = "what the upstream said is kept nowhere (store: false)"
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


_TAKEN: Final = "connection_termination"
"""Envoy's word for a connection that ended after the upstream had taken the request."""


@dataclass(frozen=True, slots=True)
class Failure:
    """`status` is what the client got as an HTTP status, `upstream_status` what an upstream answered (0: nothing)."""

    fault: Fault
    cause: str
    status: int = 0
    code: str = ""
    operation: str = ""
    upstream: str = ""
    upstream_status: int = 0
    counted: bool = False
    """Whether it is told with all others of its kind, as a number (`observability/refusals.py`)."""

    @property
    def loud(self) -> bool:
        """Whether an operator should see it: what a client did wrong, or that it left, is its own affair, and what may
        be that (in relay a client that leaves and an upstream that breaks off look alike) is mostly that. Another
        failure of which nobody knows whose it is (silence that may be an unread stream's) is rare enough."""
        if self.fault == "unknown":
            return self.code != CancelReason.CONNECTION_ENDED.value
        return self.fault in ("upstream", "ours")

    def fields(self) -> dict[str, Any]:
        """What there is to say, by name."""
        told = {
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
    """What is done in this state."""
    return _OPERATIONS.get(state, "")


def refusal(
    error: ApiError, state: State = State.NEW, upstream: str = "", upstream_status: int = 0, *, quoted: bool = True
) -> Failure:
    """The failure behind an error that a client gets; `upstream` is the one that was asked, if any was.

    An upstream's error may quote the request: with `quoted` False its words are left out, for requests that are to
    leave nothing at rest.
    """
    at_it = state in _AT_THE_UPSTREAM
    fault: Fault = "client" if error.status < 500 else "ours"
    if isinstance(error, UpstreamFailed | UpstreamTimedOut):
        fault = "upstream"
    elif at_it and upstream_status:
        theirs = error.status in _ABOUT_THE_REQUEST or error.code in _NAMED_BY_THE_CLIENT
        fault = "client" if theirs else "upstream"
    operation = error.operation or operation_in(state)
    cause = error.cause or (error.message if quoted or not (at_it and upstream_status) else _NOT_QUOTED)
    asked, answered = (upstream, upstream_status) if at_it else (error.upstream, 0)
    counted = isinstance(error, AtCapacity)
    return Failure(fault, cause, error.status, error.code or "", operation, asked, answered, counted)


def transport_failure(error: UpstreamError | None) -> ApiError:
    """What the client is told of a call that failed in transport; the log gets the detail."""
    error = error or UpstreamError(UpstreamFault.UNREACHABLE, "no answer")
    mapped = map_transport_error(error)
    mapped.cause = f"{error.fault.value}: {error.detail}"
    return mapped


def local_fault(told: str) -> UpstreamFault:
    """How the call behind such an answer failed."""
    cut = told.partition(":")[0] != PICKER_REPLY and _TAKEN in told
    return UpstreamFault.CUT if cut else UpstreamFault.UNREACHABLE


def not_answered(told: str, headers: Headers = (), said: bytes = b"", secrets: KnownSecrets = ()) -> ApiError:
    """The error behind such an answer; `told` is the value of its `LOCAL_REPLY` header, `said` its body."""
    kind, _, why = told.partition(":")
    if kind == PICKER_REPLY:
        status, _, why = why.partition(":")
        error = map_upstream_answer(int(status) if status.isdecimal() else 503, headers, said, secrets)
        if error.status == 429:
            # The pool's doing, not the client's: nobody has said that who asks this asks too much.
            error = UpstreamFailed(
                error.message, status=429, type=error.type, code=error.code, param=error.param, headers=error.headers
            )
        error.cause = f"endpoint picker: {why or 'it refused the request: ' + error.message}"
        return error
    fault = local_fault(told)
    what = "the connection ended before the answer" if fault is UpstreamFault.CUT else "Envoy could not reach it"
    return transport_failure(UpstreamError(fault, f"{what}: {why}" if why else what))


def ended_early(failure: Failure, details: str, status: int, *, client_left: bool) -> Failure:
    """The failure of a relayed stream (see `CONNECTION_ENDED`), after Envoy has reported who ended it."""
    status = status or failure.status
    if client_left:
        gone = CancelReason.CLIENT_GONE
        return replace(failure, fault=_ENDED_BY[gone], cause=_CANCELLED[gone], code=gone.value, status=status)
    cut = transport_failure(UpstreamError(UpstreamFault.CUT, details))
    return replace(failure, fault="upstream", cause=cut.cause or "", code=cut.code or "", status=status)


def cancelled(reason: CancelReason, state: State, upstream: str) -> Failure:
    """The failure of what was ended from outside."""
    asked = upstream if state in _AT_THE_UPSTREAM else ""
    return Failure(_ENDED_BY[reason], _CANCELLED[reason], 0, reason.value, operation_in(state), asked)
