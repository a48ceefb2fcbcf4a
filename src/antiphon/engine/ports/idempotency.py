"""`Idempotency-Key`: the values that make a repeated request have no second effect.

Lives here: what a key is, and what a request is told whose key is known. Not here: where keys are kept
(`stores/idempotency.py`: in the unit that stores what was made), the keys that responses of this process hold
(`engine/running/held_keys.py`), what is given again (`api/`, the exchange).

A key belongs to its owner and stands for one request: its method, path and body, byte for byte (of an upload: its
fields and its content). The same key with another request is a 422, as in the IETF's draft of the header; while the
first request runs, a second one is a 409, after which clients try again by themselves. A key is bound to what the
request made. A request that failed gives its key back, unless a call of it may have changed something: then its key
stays taken.

The store also records which response used the answer to an approval request: each answer is used once. It records the
responses that have claimed tool calls which may change something, before these calls are sent. No other response gets
the key of such a response, even after its process has died: the response ends as failed, with its calls.

Invariants: of several requests with one key at most one is being served, in all processes together; a request that was
served is given what it made before anything that it refers to is looked for, since that may be gone by now.
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
"""The prefix of the keys of responses that have claimed calls; the response's id follows."""
KEEP_APPROVALS = 366 * 86_400.0
"""Seconds for which the store remembers the answer to an approval request."""


class AlreadyMade(Exception):
    """The request was served before; `object_id` is what it made."""

    def __init__(self, object_id: str) -> None:
        super().__init__(object_id)
        self.object_id = object_id


class LeftBehind(Exception):
    """The request's process died, and its response `object_id` may have sent calls."""

    def __init__(self, object_id: str) -> None:
        super().__init__(object_id)
        self.object_id = object_id


def read_key(value: str | None) -> str | None:
    """The key in a header. Raises `InvalidRequest`."""
    if value is None:
        return None
    if not 0 < len(value) <= _MAX_LENGTH or not value.isascii() or not value.isprintable():
        raise InvalidRequest(
            f"An Idempotency-Key has 1 to {_MAX_LENGTH} printable ASCII characters.", code="invalid_idempotency_key"
        )
    return value


def fingerprint(method: str, path: str, *parts: bytes) -> str:
    """What tells requests apart."""
    digest = hashlib.sha256()
    for part in (method.encode(), path.encode(errors="surrogateescape"), *parts):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def approval_key(request_id: str) -> str:
    """The key of an answered approval request. The id is hashed, because a client may send any text of any length."""
    return APPROVALS + hashlib.sha256(request_id.encode(errors="surrogatepass")).hexdigest()


def calls_key(response_id: str) -> str:
    """The key of a response's claim."""
    return CALLS + response_id


def explain(once: OnceOnly, rows: Iterable[Iterable[Any]]) -> None:
    """Why the key is not free. Raises `AlreadyMade`, `LeftBehind` or `ApiError`; returns if `rows` is empty: the key is
    free by now. A row has the fingerprint, the object's id, the lease's end or None, and whether the holder died with
    claimed calls."""
    for known, object_id, lease_until, left in rows:
        if known != once.fingerprint:
            raise reused()
        if left:
            raise LeftBehind(object_id)
        if lease_until is not None:
            raise in_progress()
        raise AlreadyMade(object_id)


def reused() -> ApiError:
    """The key stands for another request."""
    return ApiError(
        "This Idempotency-Key was used with another request. Use a new key for every request that is not the same, "
        "byte for byte.",
        status=422,
        type="invalid_request_error",
        code="idempotency_key_reused",
    )


def in_progress() -> ApiError:
    """The request of this key is being served."""
    return ApiError(
        "A request with this Idempotency-Key is being served. Try again when it is over.",
        status=409,
        type="invalid_request_error",
        code="idempotency_key_in_use",
        headers=(("retry-after", "1"),),
    )
