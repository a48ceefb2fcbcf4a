"""Defines the values of `Idempotency-Key`, so that a repeated request has no second effect.

Lives here: the format of a key, and the errors for a request whose key is in use. Not here: the storage of keys
(`stores/idempotency.py`), which shares a transaction with the created object. Not here: the keys that responses of this
process hold (`engine/running/held_keys.py`), and the replay of an answer (`api/`, the exchange).

A key belongs to its owner and stands for one request. The request counts byte for byte: method, path and body (of an
upload: its fields and its content). The same key with another request gives a 422, as in the IETF's draft of the
header. While the first request runs, a second one gives a 409, after which clients retry by themselves. The store binds
the key to the object that the request created. A request that failed releases its key. If a call of the request may
have changed something, the key stays in use.

The store also records which response used the answer to an approval request: each answer is used once. It records the
responses that have claimed tool calls which may change something, before these calls are sent. No other response gets
the key of such a response, even after its process has died: the response ends as failed, with its calls.

Invariants: Of several requests with one key, at most one runs at a time, across all processes. A repeated request gets
its object before the sidecar loads what the request refers to, because that may be deleted by now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from antiphon.engine.ports.actions import OnceOnly
from antiphon.errors import ApiError, InvalidRequest

HEADER = "idempotency-key"
_MAX_LENGTH = 255
APPROVALS = "approval\t"
"""The prefix of the keys of answered approvals. No client can send such a key: a key must be printable."""
CALLS = "calls\t"
"""The prefix of the keys of responses that have claimed tool calls. The response's id follows the prefix."""
KEEP_APPROVALS = 366 * 86_400.0
"""Seconds for which the store remembers the answer to an approval request."""


class AlreadyMade(Exception):
    """A request with this key was served before. `object_id` names the object that it created."""

    def __init__(self, object_id: str) -> None:
        super().__init__(object_id)
        self.object_id = object_id


class LeftBehind(Exception):
    """The process that served the request died, and its response `object_id` may have sent calls."""

    def __init__(self, object_id: str) -> None:
        super().__init__(object_id)
        self.object_id = object_id


def read_key(value: str | None) -> str | None:
    """Read and check the key in a header's value. Raises `InvalidRequest`."""
    if value is None:
        return None
    if not 0 < len(value) <= _MAX_LENGTH or not value.isascii() or not value.isprintable():
        raise InvalidRequest(
            f"An Idempotency-Key has 1 to {_MAX_LENGTH} printable ASCII characters.", code="invalid_idempotency_key"
        )
    return value


def fingerprint(method: str, path: str, *parts: bytes) -> str:
    """The SHA-256 of a request, in hexadecimal digits. Two requests are the same if their fingerprints are equal."""
    digest = hashlib.sha256()
    for part in (method.encode(), path.encode(errors="surrogateescape"), *parts):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def approval_key(request_id: str) -> str:
    """The key of an answered approval request. The id is hashed, because a client may send any text of any length."""
    return APPROVALS + hashlib.sha256(request_id.encode(errors="surrogatepass")).hexdigest()


def calls_key(response_id: str) -> str:
    """The key under which the store records a response's claim of calls."""
    return CALLS + response_id


def explain(once: OnceOnly, rows: Iterable[Iterable[Any]]) -> None:
    """Raise the reason why the key is in use: `AlreadyMade`, `LeftBehind` or `ApiError`.

    Returns if `rows` is empty, because the key has become free. A row has the fingerprint, the object's id, the lease's
    end or None, and whether the holder died with claimed calls.
    """
    for known, object_id, lease_until, left in rows:
        if known != once.fingerprint:
            raise reused()
        if left:
            raise LeftBehind(object_id)
        if lease_until is not None:
            raise in_progress()
        raise AlreadyMade(object_id)


def reused() -> ApiError:
    """The 422 for a key that stands for another request."""
    return ApiError(
        "This Idempotency-Key was used with a different request. Use a new key for each request; a retry "
        "must have the same bytes.",
        status=422,
        type="invalid_request_error",
        code="idempotency_key_reused",
    )


def in_progress() -> ApiError:
    """The 409 for a key whose request still runs."""
    return ApiError(
        "Another request with this Idempotency-Key is in progress. Try again when it has ended.",
        status=409,
        type="invalid_request_error",
        code="idempotency_key_in_use",
        headers=(("retry-after", "1"),),
    )
