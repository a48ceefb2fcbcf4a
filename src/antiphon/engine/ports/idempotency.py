"""Defines the meaning of `Idempotency-Key`, the header by which a repeated request has no second effect.

Lives here: the format of a key, and the errors for a request whose key is in use. Not here: the stored keys
(`stores/idempotency.py`), the keys of running requests (`engine/running/idempotency.py`), and the answer to a repeated
request (`api/`, the exchange).

A key belongs to its owner and identifies one request. Two requests are the same if their methods, paths and bodies have
the same bytes. For an upload, the form fields and the file's content replace the body. A different request with the
same key gets a 422, as in the IETF's draft of the header (draft-ietf-httpapi-idempotency-key-header). A repeated
request gets a 409 while the first request runs, because clients retry after a 409. The store binds the key to the
object that the request created. A failed request releases its key, unless one of its tool calls may have changed
external state.

The store also records which response used the client's answer to an MCP approval request. Each answer is valid for one
response only. Before a response sends tool calls that may change external state, the store records that the response
has claimed these calls. If the process of such a response dies, the idempotency key stays bound to this response. The
response then ends as failed, and its output contains the claimed calls.

Invariants: Of several requests with one key, at most one runs at a time, across all processes. For a repeated request,
the sidecar returns the object that the first request created. The sidecar does not load the objects to which the
request refers, because they may have been deleted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from antiphon.engine.ports.actions import OnceOnly
from antiphon.errors import ApiError, InvalidRequest

HEADER = "idempotency-key"
"""The header's name in lower case."""
_MAX_LENGTH = 255
APPROVALS = "approval\t"
"""The prefix of the keys under which the store records answered approval requests. The prefix contains a tab.
`read_key` accepts only printable characters, so no client can send such a key."""
CALLS = "calls\t"
"""The prefix of the keys under which the store records that a response has claimed tool calls. The response's id
follows the prefix."""
KEEP_APPROVALS = 366 * 86_400.0
"""The seconds for which the store keeps the record of an answered approval request."""


class AlreadyMade(Exception):
    """A request with this key was served before. `object_id` names the object that the earlier request created."""

    def __init__(self, object_id: str) -> None:
        super().__init__(object_id)
        self.object_id = object_id


class LeftBehind(Exception):
    """The process that ran the first request with this key died. The response `object_id` of that request had claimed
    tool calls."""

    def __init__(self, object_id: str) -> None:
        super().__init__(object_id)
        self.object_id = object_id


def read_key(value: str | None) -> str | None:
    """Return the key in the header's value, or None without a header.

    A key has 1 to 255 printable ASCII characters. Raises `InvalidRequest` (`invalid_idempotency_key`) for any other
    text.
    """
    if value is None:
        return None
    if not 0 < len(value) <= _MAX_LENGTH or not value.isascii() or not value.isprintable():
        raise InvalidRequest(
            f"An Idempotency-Key has 1 to {_MAX_LENGTH} printable ASCII characters.", code="invalid_idempotency_key"
        )
    return value


def fingerprint(method: str, path: str, *parts: bytes) -> str:
    """Return the SHA-256 of a request in hexadecimal digits. Equal fingerprints mean that two requests are the same.

    `parts` is the request's body. For an upload, `parts` are the values of the form fields.
    """
    digest = hashlib.sha256()
    for part in (method.encode(), path.encode(errors="surrogateescape"), *parts):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def approval_key(request_id: str) -> str:
    """Return the key under which the store records an answered approval request. The key contains a hash of
    `request_id`, because the client chooses this id and may send any text."""
    return APPROVALS + hashlib.sha256(request_id.encode(errors="surrogatepass")).hexdigest()


def calls_key(response_id: str) -> str:
    """Return the key under which the store records that a response has claimed tool calls."""
    return CALLS + response_id


def explain(once: OnceOnly, rows: Iterable[tuple[object, str, object, object]]) -> None:
    """Raise the error that tells why the key is in use. If `rows` is empty, the key is free, and the function returns.

    - `AlreadyMade`: an earlier request with this key has created its object.
    - `LeftBehind`: the process of that request died after it claimed tool calls.
    - `ApiError`: the earlier request still runs (`in_progress`), or differs from this request (`reused`).

    Each row describes the earlier request: its fingerprint, its object's id, the end of its lease, and whether its
    process died with claimed calls.
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
    """Return the 422 (`idempotency_key_reused`) for a key that was first used with a different request."""
    return ApiError(
        "This Idempotency-Key was used with a different request. Use a new key for each request; a retry "
        "must have the same bytes.",
        status=422,
        type="invalid_request_error",
        code="idempotency_key_reused",
    )


def in_progress() -> ApiError:
    """Return the 409 (`idempotency_key_in_use`) for a key whose first request still runs."""
    return ApiError(
        "Another request with this Idempotency-Key is in progress. Try again when it has ended.",
        status=409,
        type="invalid_request_error",
        code="idempotency_key_in_use",
        headers=(("retry-after", "1"),),
    )
