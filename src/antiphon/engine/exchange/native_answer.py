"""The answer of an upstream that speaks Responses itself, on its way to the client.

Lives here: what is done with the answer's head, its bytes and its end, and what such a request must not name. Not here:
which models are native (`model_routes.py`), what becomes of a request that fails (`native_request.py`).

A stream goes on at once. What is no stream waits for its end: until then a failure can be an error object.

With a key of the gateway's and several owners, all clients share one account there, and what it keeps (responses,
conversations, prompts, files, vector stores, containers) is everybody's who knows an id. So such requests name nothing
of the kind, and their answers' headers say nothing of the account.

Invariant: bytes are the upstream's, untouched, but for a key of ours in an error; nothing is put behind a stream that
broke off.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any

from antiphon.engine.exchange.answer_readers import AnswerReader
from antiphon.engine.exchange.call_headers import end_to_end, of_nobody
from antiphon.engine.ports.actions import Action, SendBody, SendHead
from antiphon.errors import InvalidRequest
from antiphon.known_secrets import KnownSecrets, bytes_without
from antiphon.translation.passed_usage import usage_of_answer, usage_of_stream
from antiphon.types.response import UsageObject
from antiphon.types.transport import Headers, header_value

_STATE = ("previous_response_id", "conversation", "prompt")
_KEPT_THERE = frozenset({"file_id", "file_ids", "vector_store_ids", "container"})
# The last event of a stream repeats the whole response; of a larger one the usage is not known.
_TAIL = 1 << 18
_WORDS = tuple(name.encode() for name in (*_STATE, *_KEPT_THERE, "item_reference"))


class NativeAnswer(AnswerReader):
    """The reader of one answer; puts what the client gets into the exchange's actions.

    `own` says that the account is the client's own business; `secrets` must not stand in an error.
    """

    def __init__(
        self,
        actions: list[Action],
        status: int,
        headers: Headers,
        max_bytes: int,
        *,
        own: bool = True,
        secrets: KnownSecrets = (),
    ) -> None:
        self._actions = actions
        self._status = status
        self._headers = end_to_end(headers) if own else of_nobody(headers)
        self._secrets = secrets
        self._left = max_bytes
        # What is no stream is held as a whole, of a stream the end.
        self._held: deque[bytes] = deque()
        self._holds = 0
        self.streamed = "text/event-stream" in (header_value(headers, "content-type") or "").lower()
        """Whether its head and bytes go to the client as they come."""
        if self.streamed:
            actions.append(SendHead(status, self._headers, streamed=True, raw=True))

    def receive(self, data: bytes) -> bool:
        """More bytes; True when there are too many of them."""
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
        """What the upstream has said of its work so far."""
        if self._status >= 400:
            return None
        heard = b"".join(self._held)
        return usage_of_stream(b"\n" + heard) if self.streamed else usage_of_answer(heard)

    def pass_end(self) -> str:
        """It is whole; the outcome, for metrics."""
        if not self.streamed:
            body = b"".join(self._held)
            if self._status >= 400:
                body = bytes_without(body, self._secrets)
            length = (("content-length", str(len(body))),) if self._status not in (204, 304) else ()
            self._actions.append(SendHead(self._status, (*self._headers, *length), raw=True))
            self._actions.append(SendBody(body))
        return "completed" if self._status < 400 else "error"


def refuse_references(body: bytes) -> None:
    """Raises `InvalidRequest` when the request names something that the upstream keeps for the gateway's account."""
    if b"\\u" not in body and not any(word in body for word in _WORDS):
        return
    try:
        # Every pair, not the last of each name: which one the upstream takes is not known here.
        request = json.loads(body, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.", code="invalid_json") from None
    for name, value in request if isinstance(request, _Pairs) else ():
        if name in _STATE and value is not None:
            raise _refused(name)
        if name in ("input", "tools"):
            for place in _references(value):
                raise _refused(place if place == "item_reference" else f"{name}: {place}")


class _Pairs(list[tuple[str, Any]]):
    """An object as its pairs."""


def _references(value: Any) -> Iterator[str]:
    """Names under which ids of things that are kept there stand."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _Pairs):
            for name, part in value:
                if (name in _KEPT_THERE and _is_id(part)) or (name == "type" and part == "item_reference"):
                    yield name if name != "type" else "item_reference"
                elif name not in ("parameters", "input_schema"):
                    waiting.append(part)
        elif isinstance(value, list):
            waiting += value


def _is_id(value: Any) -> bool:
    if isinstance(value, list) and not isinstance(value, _Pairs):
        return any(isinstance(part, str) for part in value)
    return isinstance(value, str)


def _refused(name: str) -> InvalidRequest:
    return InvalidRequest(
        f"'{name}' names something that this model's upstream keeps for the gateway's account, which all clients "
        "share: send the content itself. (The operator may set owner.source to single, or let clients bring their own "
        "keys with auth: passthrough.)",
        param=name.rpartition(" ")[2] if name not in _STATE else name,
        code="unsupported_parameter",
    )
