"""An answer of an upstream that speaks Responses itself, on its way to the client.

Lives here: what is done with its head, its bytes and its end. Not here: which models are native (`routes.py`), calling.

A stream goes on at once. What is no stream waits for its end: until then a failure can be an error object.

Invariant: bytes are the upstream's, untouched; nothing is put behind a stream that broke off.
"""

from __future__ import annotations

from antiphon.engine.actions import Action, SendBody, SendHead
from antiphon.engine.call_headers import end_to_end
from antiphon.types.transport import Headers, header_value

__all__ = ["NativeAnswer"]


class NativeAnswer:
    """One answer; puts what the client gets into the exchange's actions."""

    def __init__(self, actions: list[Action], status: int, headers: Headers, most_bytes: int) -> None:
        self._actions = actions
        self._status = status
        self._headers = end_to_end(headers)
        self._left = most_bytes
        self._held: list[bytes] = []
        self.streamed = "text/event-stream" in (header_value(headers, "content-type") or "").lower()
        """Whether its head and bytes go to the client as they come."""
        if self.streamed:
            actions.append(SendHead(status, self._headers, streamed=True, raw=True))

    def receive(self, data: bytes) -> bool:
        """More bytes; False when there are too many of them."""
        self._left -= len(data)
        if self._left < 0:
            return False
        if self.streamed:
            self._actions.append(SendBody(data))
        else:
            self._held.append(data)
        return True

    def end(self) -> str:
        """It is whole; the outcome, for metrics."""
        if not self.streamed:
            body = b"".join(self._held)
            length = (("content-length", str(len(body))),) if self._status not in (204, 304) else ()
            self._actions.append(SendHead(self._status, (*self._headers, *length), raw=True))
            self._actions.append(SendBody(body))
        return "completed" if self._status < 400 else "error"
