"""What is told of a model call that Envoy answered itself, because no upstream did.

Lives here: reading the header by which Envoy says so. Not here: which answers have it (`envoy/local_replies.py`,
`envoy/picker_listener.py`), what an upstream's own errors mean (`translation/upstream_errors.py`).

Invariant: the upstream is not said to have answered.
"""

from __future__ import annotations

from typing import Final

from antiphon.engine.exchange.failure import transport_failure
from antiphon.errors import ApiError, UpstreamFailed
from antiphon.redaction import KnownSecrets
from antiphon.translation.upstream_errors import map_upstream_answer
from antiphon.types.transport import PICKER_REPLY, Headers, UpstreamError, UpstreamFault

_TAKEN: Final = "connection_termination"
"""Envoy's word for a connection that ended after the upstream had taken the request."""


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
