"""Implements one gRPC call on an HTTP/2 connection: its two queues, its limits and its end.

Lives here: the two queues of a call, its limits, its end. Not here: the processor's waits (`transport_http2.py`),
HTTP/2 (`http2_connection.py`), gRPC's bytes (`grpc_framing.py`).

Invariants: the queue for the processor is bounded, because the peer gets window back only for consumed bytes. While a
call waits for its peer, it withholds less than a part of the window. A call that ends returns all of its share of the
connection's window. No waiter stays behind when a call ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final, Protocol

from antiphon.doors.extproc.grpc_framing import MessageSplitter
from antiphon.doors.extproc.transport import CallFailed, GrpcStatus, StreamClosed

_PARTS: Final = 8
"""The call returns its window in parts of at least 1/8."""


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """The limits for one peer.

    In bytes: one message; the queues of a call in both directions; a call's receive window. `seconds`: how long the
    peer may read nothing of a full queue. `resets`: the burst and the rate per second of calls that the peer resets
    before an answer. (Envoy ends every call with a reset, but after an answer, so only unanswered calls count.)

    Any peer may make health checks: at most `checks` at once on a connection, each with a message of at most
    `check_message` bytes within `check_seconds`. `refused_seconds` is the time that a call without the secret may stay
    open. A peer that does not end its side of an answered call within `linger_seconds` gets a reset. Calls that were
    answered to the end are checked every `sweep_seconds`.
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
    """The connection, as a call uses it."""

    limits: Http2Limits

    def begin(self, call: Call) -> None:
        """Send the head of the answer. Raises `StreamClosed`."""

    def send(self, call: Call, message: bytes) -> None:
        """Queue one message. Raises `StreamClosed`."""

    def is_full(self, call: Call) -> bool:
        """Whether the call must wait before it sends more."""

    def is_queued(self, call: Call) -> bool:
        """Whether the peer has not read all bytes of the call yet."""

    def block(self, call: Call) -> None:
        """Call `resume` when the call may send again."""

    def consumed(self, call: Call, size: int) -> None:
        """Let the peer send this many more bytes."""

    def finish(self, call: Call, status: GrpcStatus, message: str) -> None:
        """Send the call's status."""


class Call:
    """One call: the processor's side (which never waits), and the connection's side."""

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
        """The bytes in the queue for the processor."""
        self._withheld = 0
        self.waiter: asyncio.Future[bytes | None] | None = None
        """The waiter for a message."""
        self.room: asyncio.Future[None] | None = None
        """The waiter for room in the send queue."""
        self._timer: asyncio.TimerHandle | None = None
        self.task: asyncio.Task[None] | None = None
        self.unary: Callable[[Call, bytes], None] | None = None
        self.begun = False
        """Whether the head was sent, alone or with the first message."""
        self.headed = False
        """Whether any message was sent."""
        self.lingers = 0.0
        """Seconds that the peer may still send after the answer or the refusal; 0 before. The server drops these
        bytes."""
        self.verdict = (GrpcStatus.OK, "")
        """The status of a lingering call."""
        self.ended = False
        self.gone = False

    # The processor's side (its waits are in `transport_http2.py`)

    def receive_now(self) -> bytes | None:
        """The next message, if it has arrived."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        self.queued -= len(message)
        self._make_room()
        return message

    def until_message(self) -> asyncio.Future[bytes | None]:
        """A future for the next message, or None at the end. For one caller at a time."""
        waiter = self.waiter = self._loop.create_future()
        self._hand_over()
        return waiter

    def begin(self) -> None:
        """Send the head, unless it was sent. Raises `StreamClosed`."""
        if self.gone:
            raise StreamClosed("the peer ended the call")
        if not self.begun:
            self._connection.begin(self)

    def send_now(self, message: bytes) -> bool:
        """Send one message. Returns whether more may follow at once, because the queue is not full. Raises
        `StreamClosed`."""
        if self.gone:
            raise StreamClosed("the peer ended the call")
        connection = self._connection
        connection.send(self, message)
        return not connection.is_full(self)

    @property
    def unsent(self) -> bool:
        """Whether the queue has unsent bytes."""
        return self._connection.is_queued(self)

    def until_room(self) -> asyncio.Future[None] | None:
        """A future that completes when the queue has room or the call has ended; None if that is so now."""
        if self.gone or not self._connection.is_full(self):
            return None
        self.room = self._loop.create_future()
        self._connection.block(self)
        return self.room

    def let_end(self, seconds: float) -> None:
        """Let the peer end the call; the connection waits for it."""
        self.lingers = seconds
        self._give_back()

    # The connection's side

    def start(self, work: Coroutine[object, object, None], seconds: float | None) -> None:
        """Serve the call in its own task, for at most `seconds`."""
        loop = self._loop
        self.task = loop.create_task(work)
        self.task.add_done_callback(self._served)
        if seconds is not None:
            self._timer = loop.call_later(seconds, self._expire)

    def start_unary(self, answer: Callable[[Call, bytes], None]) -> None:
        """Read one message of at most `check_message` bytes within `check_seconds`, then answer."""
        limits = self.limits
        self.unary = answer
        self._splitter = MessageSplitter(limits.check_message)
        self._timer = self._loop.call_later(limits.check_seconds, self._expire)

    def refuse(self, refusal: CallFailed) -> None:
        """Buffer no bytes of the call, and fail it after the peer's first message. (gRPC's client reports an earlier
        status as an internal error.)"""
        self.verdict, self.lingers = (refusal.status, refusal.message), self.limits.refused_seconds
        if self.ended:
            self.finish(*self.verdict)
        else:
            self._timer = self._loop.call_later(self.lingers, self.finish, *self.verdict)

    def take(self, data: bytes, end: bool) -> None:
        """Process bytes from the peer."""
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
                self._cancel(GrpcStatus.INTERNAL, "more than one message")
            elif end:
                self.unary(self, self._messages[0] if self._messages else b"")
        elif self.waiter is not None:
            self._hand_over()

    def resume(self) -> bool:
        """Check for room in the queue; False when it is still full."""
        if self.room is None or self.room.done():
            return True
        if not self.gone and self._connection.is_full(self):
            return False
        self.room.set_result(None)
        return True

    def finish(self, status: GrpcStatus, message: str = "") -> None:
        """End the call with a status."""
        if self._timer is not None:
            self._timer.cancel()
        if self.gone:
            return
        self.gone = True
        self._give_back()
        self._connection.finish(self, status, message)

    def lose(self) -> None:
        """The peer ended the call: end the waits, then cancel the task."""
        self._give_back()
        self.gone = self.ended = True
        self._hand_over()
        room = self.room
        if room is not None and not room.done():
            room.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if self.task is not None and not self.task.done():
            # The waiter for a message gets the end in order first.
            self._loop.call_soon(self.task.cancel)

    def _hand_over(self) -> None:
        """Give the waiter the next message, or the end."""
        waiter = self.waiter
        if waiter is None:
            return
        if waiter.done():
            # The waiter was cancelled.
            self.waiter = None
            return
        message = self.receive_now()
        if message is not None or self.ended:
            self.waiter = None
            waiter.set_result(message)

    def _make_room(self) -> None:
        """Return window to the peer in larger amounts: most calls end before the peer would have to wait."""
        limits = self.limits
        if self._withheld >= limits.window // _PARTS and self.queued <= limits.queued:
            self._connection.consumed(self, self._withheld)
            self._withheld = 0

    def _give_back(self) -> None:
        """Return the whole window, because the connection's window is shared by all calls."""
        self._messages.clear()
        self.queued = 0
        if self._withheld:
            self._connection.consumed(self, self._withheld)
            self._withheld = 0

    def _served(self, task: asyncio.Task[None]) -> None:
        # A cancelled task keeps its frames, and these keep the call: the whole exchange would stay until the next
        # garbage collection.
        self.task = None
        if not task.cancelled():
            task.exception()

    def _expire(self) -> None:
        limit = "its grpc-timeout" if self.unary is None else f"{self.limits.check_seconds:g} seconds"
        self._cancel(GrpcStatus.DEADLINE_EXCEEDED, f"the call took longer than {limit}")

    def _cancel(self, status: GrpcStatus, message: str) -> None:
        self.finish(status, message)
        self.lose()
