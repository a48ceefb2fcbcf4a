"""Refuses native requests that name objects of an upstream account that several clients share.

Lives here: the search for such references. Not here: the decision to search a request (`native_request.py`).

When the gateway uses its own key for several owners, all clients share one account at the upstream. Anyone who knows an
id could then use the account's objects: responses, conversations, prompts, files, vector stores, containers. So a
request of such a client must not name such an object.
"""

from __future__ import annotations

from collections.abc import Iterator

from antiphon.engine.exchange.allowed_by_key import Pairs, pairs_of
from antiphon.errors import InvalidRequest

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
    """Yield the name of each field in `value` that holds the id of an object in the account."""
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
