"""What is told of a model call that Envoy answered itself, because no upstream did.

Lives here: reading the header by which Envoy says so. Not here: which answers have it (`envoy/local_replies.py`,
`envoy/picker_listener.py`), what an upstream's own errors mean (`translation/upstream_errors.py`).

Invariant: the upstream is not said to have answered.
"""

from __future__ import annotations

from antiphon.engine.exchange.failure import transport_failure
from antiphon.errors import ApiError, UpstreamFailed
from antiphon.known_secrets import KnownSecrets
from antiphon.translation.upstream_errors import map_upstream_answer
from antiphon.types.transport import PICKER_REPLY, Headers, UpstreamError, UpstreamFault


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
    detail = f"Envoy could not reach it: {why}" if why else "Envoy could not reach it"
    return transport_failure(UpstreamError(UpstreamFault.UNREACHABLE, detail))
