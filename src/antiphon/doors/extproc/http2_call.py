"""Implements one gRPC call on an HTTP/2 connection: its framing, its two queues, its limits and its end.

A call connects the processor, which serves one client request, with the HTTP/2 connection to Envoy (the peer).
`transport_http2.py` waits on the queues for the processor, and `http2_connection.py` handles HTTP/2.

Source of the framing: gRPC's PROTOCOL-HTTP2 document.

Invariants: the queue for the processor is bounded, because a call returns flow-control window to the peer only while
this queue is short. A call that waits for its peer withholds less than 1/8 of its flow-control window from that peer. A
call that ends returns all withheld window to the peer. A call that ends also completes the futures of its waiters.
`MessageSplitter` returns the same messages for any split of the received bytes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final, Protocol
from urllib.parse import quote

from antiphon.doors.extproc.transport import CallFailed, GrpcStatus, StreamClosed

_PREFIX: Final = 5
_UNITS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_LONGEST_MESSAGE: Final = 1024
_PARTS: Final = 8
"""A call returns flow-control window to the peer in amounts of at least 1/8 of its window."""


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """The limits that a connection applies to one peer.

    `message` is the largest message, `queued` the limit of each queue of a call, and `window` a call's receive window,
    all in bytes. If a send queue is full and the peer reads no byte for `seconds`, the call ends. `resets` limits the
    calls that the peer resets before an answer: the burst, and the rate per second. Envoy ends every call with a reset
    after the answer, so `resets` does not count these resets.

    Every peer may make health checks, also without the sidecar's shared secret. A connection serves at most `checks`
    health checks concurrently. A health check may send a message of `check_message` bytes within `check_seconds`. A
    call without the secret may stay open for `refused_seconds`. If the peer does not end its side of an answered call
    within `linger_seconds`, the server resets the call. Every `sweep_seconds` the server looks for answered calls whose
    deadline has passed.
    """

    message: int = 64 << 20
    queued: int = 128 << 10
    window: int = 256 << 10
    calls: int = 20_000
    resets: tuple[float, float] = (10_000.0, 1_000.0)
    header_bytes: int = 64 << 10
    header_count: int = 256
    seconds: float = 600.0
    checks: int = 100
    check_message: int = 4 << 10
    check_seconds: float = 5.0
    refused_seconds: float = 1.0
    linger_seconds: float = 5.0
    sweep_seconds: float = 1.0


class CallOwner(Protocol):
    """The methods of the HTTP/2 connection that a call uses."""

    limits: Http2Limits

    def begin(self, call: Call) -> None:
        """Send the response head of the call. Raises `StreamClosed`."""

    def send(self, call: Call, message: bytes) -> None:
        """Queue one message for the peer. Raises `StreamClosed`."""

    def is_full(self, call: Call) -> bool:
        """Whether the call's send queue is over its limit, so the call must wait before it sends more."""

    def is_queued(self, call: Call) -> bool:
        """Whether the call's send queue still has bytes that were not written to the socket."""

    def block(self, call: Call) -> None:
        """Remember a call that waits for room in its send queue. The connection calls `call.resume` after each
        write."""

    def consumed(self, call: Call, size: int) -> None:
        """Return `size` bytes of flow-control window to the peer, so that it may send as many more."""

    def finish(self, call: Call, status: GrpcStatus, message: str) -> None:
        """Send the status that ends the call."""


class Call:
    """One gRPC call. The processor calls the methods from `receive_now` to `let_end`, and none of them waits. The
    connection calls the other methods."""

    __slots__ = (
        "_connection",
        "_loop",
        "_messages",
        "_splitter",
        "_timer",
        "_withheld",
        "begun",
        "ended",
        "gone",
        "headed",
        "id",
        "limits",
        "lingers",
        "queued",
        "room",
        "task",
        "unary",
        "verdict",
        "waiter",
    )

    def __init__(self, connection: CallOwner, number: int) -> None:
        self._connection = connection
        self.id = number
        self._loop = asyncio.get_running_loop()
        self.limits = connection.limits
        self._splitter = MessageSplitter(self.limits.message)
        self._messages: deque[bytes] = deque()
        self.queued = 0
        """The number of bytes in the queue for the processor."""
        self._withheld = 0
        self.waiter: asyncio.Future[bytes | None] | None = None
        """The future on which the processor waits for a message, or None while the processor does not wait."""
        self.room: asyncio.Future[None] | None = None
        """The future on which the processor waits for room in the send queue, or None while the processor does not
        wait."""
        self._timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.unary: Callable[[Call, bytes], None] | None = None
        self.begun = False
        """Whether the response head was sent, either separately or with the first message."""
        self.headed = False
        """Whether any message was sent to the peer."""
        self.lingers = 0.0
        """How many seconds the peer may still send after the answer or the refusal. The number is 0 until then. The
        server drops the bytes that the peer sends in this time."""
        self.verdict = (GrpcStatus.OK, "")
        """The status that ends the call when `lingers` is over."""
        self.ended = False
        self.gone = False

    # Methods for the processor; `transport_http2.py` waits on the futures.

    def receive_now(self) -> bytes | None:
        """Return the next message, or None when none has arrived."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        self.queued -= len(message)
        self._make_room()
        return message

    def until_message(self) -> asyncio.Future[bytes | None]:
        """Return a future for the next message; its result is None at the end of the call. Only one caller may wait for
        a message at a time."""
        waiter = self.waiter = self._loop.create_future()
        self._hand_over()
        return waiter

    def begin(self) -> None:
        """Send the response head, unless it was sent. Raises `StreamClosed`."""
        if self.gone:
            raise StreamClosed("the peer ended the call")
        if not self.begun:
            self._connection.begin(self)

    def send_now(self, message: bytes) -> bool:
        """Queue one message for the peer. Returns whether the send queue has room for more. Raises `StreamClosed`."""
        if self.gone:
            raise StreamClosed("the peer ended the call")
        connection = self._connection
        connection.send(self, message)
        return not connection.is_full(self)

    @property
    def unsent(self) -> bool:
        """Whether the send queue has bytes that were not written to the socket."""
        return self._connection.is_queued(self)

    def until_room(self) -> asyncio.Future[None] | None:
        """Return a future that completes when the send queue has room or the call has ended. Returns None when no wait
        is needed."""
        if self.gone or not self._connection.is_full(self):
            return None
        self.room = self._loop.create_future()
        self._connection.block(self)
        return self.room

    def let_end(self, seconds: float) -> None:
        """After the answer, give the peer `seconds` to end the call. The connection waits for the peer in this time."""
        self.lingers = seconds
        self._give_back()

    # Methods for the connection.

    def start(self, work: Coroutine[object, object, None], seconds: float | None) -> None:
        """Serve the call in a new task. `seconds` is the deadline from `grpc-timeout`, or None."""
        loop = self._loop
        self.task = loop.create_task(work)
        self.task.add_done_callback(self._served)
        if seconds is not None:
            self._timer = loop.call_later(seconds, self._expire)

    def start_unary(self, answer: Callable[[Call, bytes], None]) -> None:
        """Read one message of at most `check_message` bytes within `check_seconds`. After that, call `answer` with the
        message."""
        limits = self.limits
        self.unary = answer
        self._splitter = MessageSplitter(limits.check_message)
        self._timer = self._loop.call_later(limits.check_seconds, self._expire)

    def refuse(self, refusal: CallFailed) -> None:
        """Refuse the call with this status after the peer's first message. The server drops all bytes of the call.
        gRPC's client would report an earlier status as an internal error."""
        self.verdict, self.lingers = (refusal.status, refusal.message), self.limits.refused_seconds
        if self.ended:
            self.finish(*self.verdict)
        else:
            self._timer = self._loop.call_later(self.lingers, self.finish, *self.verdict)

    def take(self, data: bytes, end: bool) -> None:
        """Process received bytes. `end` is True when the peer has ended its side."""
        if self.lingers:
            self._connection.consumed(self, len(data))
            self.ended = self.ended or end
            if end or self.verdict[0] is not GrpcStatus.OK:
                self.finish(*self.verdict)
            return
        if data:
            try:
                messages = self._splitter.feed(data)
            except CallFailed as failed:
                self._connection.consumed(self, len(data))
                self._cancel(failed.status, failed.message)
                return
            for message in messages:
                self._messages.append(message)
                self.queued += len(message)
            self._withheld += len(data)
            self._make_room()
        if end:
            self.ended = True
            if self._splitter.held:
                self._cancel(GrpcStatus.INTERNAL, "the call ended inside a message")
                return
        if self.unary is not None:
            if len(self._messages) > 1:
                self._cancel(GrpcStatus.INTERNAL, "the call has more than one request message")
            elif end:
                self.unary(self, self._messages[0] if self._messages else b"")
        elif self.waiter is not None:
            self._hand_over()

    def resume(self) -> bool:
        """Complete the future `room` when the send queue has room. Returns False while the queue is full."""
        if self.room is None or self.room.done():
            return True
        if not self.gone and self._connection.is_full(self):
            return False
        self.room.set_result(None)
        return True

    def finish(self, status: GrpcStatus, message: str = "") -> None:
        """Send the status that ends the call."""
        if self._timer is not None:
            self._timer.cancel()
        if self.gone:
            return
        self.gone = True
        self._give_back()
        self._connection.finish(self, status, message)

    def lose(self) -> None:
        """Handle a call that the peer has ended: complete the waiters' futures, then cancel the task."""
        self._give_back()
        self.gone = self.ended = True
        self._hand_over()
        room = self.room
        if room is not None and not room.done():
            room.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if self.task is not None and not self.task.done():
            # The cancellation runs later, so that a processor that waits for a message gets the regular end first.
            self._loop.call_soon(self.task.cancel)

    def _hand_over(self) -> None:
        """Complete the processor's future with the next message, or with None at the end."""
        waiter = self.waiter
        if waiter is None:
            return
        if waiter.done():
            # The processor's wait was cancelled.
            self.waiter = None
            return
        message = self.receive_now()
        if message is not None or self.ended:
            self.waiter = None
            waiter.set_result(message)

    def _make_room(self) -> None:
        """Return flow-control window to the peer once the call has withheld enough of it. Larger amounts save
        WINDOW_UPDATE frames, because most calls end before the peer runs out of window."""
        limits = self.limits
        if self._withheld >= limits.window // _PARTS and self.queued <= limits.queued:
            self._connection.consumed(self, self._withheld)
            self._withheld = 0

    def _give_back(self) -> None:
        """Drop the queued messages and return the withheld window, because all calls share the connection's window."""
        self._messages.clear()
        self.queued = 0
        if self._withheld:
            self._connection.consumed(self, self._withheld)
            self._withheld = 0

    def _served(self, task: asyncio.Task[None]) -> None:
        # A cancelled task keeps its stack frames, and these frames refer to the call. Without this assignment the whole
        # exchange would stay in memory until the next garbage collection.
        self.task = None
        if not task.cancelled():
            task.exception()

    def _expire(self) -> None:
        limit = "its grpc-timeout" if self.unary is None else f"{self.limits.check_seconds:g} seconds"
        self._cancel(GrpcStatus.DEADLINE_EXCEEDED, f"the call took longer than {limit}")

    def _cancel(self, status: GrpcStatus, message: str) -> None:
        self.finish(status, message)
        self.lose()


def prefix(size: int) -> bytes:
    """Return the five-byte prefix of a message with this size: the flag "uncompressed" and the length."""
    return b"\x00%b" % size.to_bytes(4, "big")


def with_prefix(message: bytes) -> bytes:
    """Return a message in its wire form: the flag "uncompressed", the length and the bytes."""
    return b"\x00%b%b" % (len(message).to_bytes(4, "big"), message)


class MessageSplitter:
    """Splits a call's received bytes into messages of at most `limit` bytes."""

    __slots__ = ("_limit", "_rest", "_wanted")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._wanted = _PREFIX

    @property
    def held(self) -> int:
        """The number of buffered bytes of an incomplete message."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that these bytes complete. Raises `CallFailed` for a compressed or oversized message."""
        size = len(data)
        if not self._rest and size >= _PREFIX and int.from_bytes(data[1:_PREFIX], "big") == size - _PREFIX:
            # Fast path: the data is exactly one message.
            self._check(data[0], size - _PREFIX)
            return [data[_PREFIX:]]
        rest = self._rest
        rest += data
        if len(rest) < self._wanted:
            return []
        messages = []
        at = 0
        while len(rest) - at >= _PREFIX:
            length = int.from_bytes(rest[at + 1 : at + _PREFIX], "big")
            self._check(rest[at], length)
            end = at + _PREFIX + length
            if end > len(rest):
                self._wanted = end - at
                break
            # A memoryview avoids a second copy of the buffer's slice.
            with memoryview(rest) as view:
                messages.append(bytes(view[at + _PREFIX : end]))
            at = end
        else:
            self._wanted = _PREFIX
        del rest[:at]
        return messages

    def _check(self, flag: int, length: int) -> None:
        if flag:
            raise CallFailed(GrpcStatus.UNIMPLEMENTED, "compressed messages are not supported")
        if length > self._limit:
            raise CallFailed(
                GrpcStatus.RESOURCE_EXHAUSTED, f"a message of {length} bytes is larger than {self._limit} bytes"
            )


def status_trailers(status: GrpcStatus, message: str = "") -> list[tuple[bytes, bytes]]:
    """Return the trailers that end a call. The message is percent-encoded and truncated."""
    trailers = [(b"grpc-status", b"%d" % status)]
    if message:
        trailers.append((b"grpc-message", quote(message[:_LONGEST_MESSAGE], safe=" !#$&'()*+,/:;=?@[]").encode()))
    return trailers


def timeout_seconds(value: bytes) -> float | None:
    """Return the timeout in a `grpc-timeout` header value, in seconds. Returns None unless the value is one to eight
    digits and a unit."""
    text = value.decode("ascii", "replace")
    if not 2 <= len(text) <= 9 or not text[:-1].isdecimal() or text[-1] not in _UNITS:
        return None
    return int(text[:-1]) * _UNITS[text[-1]]
