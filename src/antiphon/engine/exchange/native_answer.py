"""The answer of an upstream that speaks Responses itself, on its way to the client.

Lives here: what is done with the answer's head, its bytes and its end. Not here: which models are native
(`model_routes.py`), what becomes of a request that fails (`native_request.py`), and what a request must not name
(`native_references.py`).

A stream goes on at once. What is no stream waits for its end: until then a failure can be an error object.

With a key of the gateway's and several owners, all clients share one account there: then the answers' headers say
nothing of the account.

Invariant: bytes are the upstream's, untouched, but for a key of ours in an error; nothing is put behind a stream that
broke off.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from antiphon.engine.exchange.answer_readers import AnswerReader
from antiphon.engine.exchange.call_headers import end_to_end, of_nobody
from antiphon.engine.ports.actions import Action, SendBody, SendHead
from antiphon.redaction import KnownSecrets, bytes_without
from antiphon.translation.passed_usage import usage_of_answer, usage_of_stream
from antiphon.known_secrets import KnownSecrets, bytes_without
from antiphon.translation.usage import usage_of_answer, usage_of_stream
from antiphon.types.response import UsageObject
from antiphon.types.transport import Headers, header_value

# The last event of a stream repeats the whole response; of a larger one the usage is not known.
_TAIL: Final = 1 << 18


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
