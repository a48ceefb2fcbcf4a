"""Implements one HTTP/2 connection of the fast transport: accepts calls and writes all their output.

This module handles the connection's events, its flow-control window, its writes and the limits for a misbehaving peer.
This module also tracks answered calls that the peer has not ended yet. The listener is in `transport_http2.py`, and
the calls with their gRPC framing are in `http2_call.py`.

Invariants: an exception in one call never affects another call. If `data_received` raised an exception, the connection
would end, and with it every stream of an Envoy worker thread. A call's queues are bounded in both directions. Only this
file imports `ngh2`.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

import structlog
from ngh2 import (
    Configuration,
    Connection,
    DataReceived,
    ErrorCode,
    Event,
    Header,
    NGH2Error,
    RequestReceived,
    Role,
    Setting,
    StreamReset,
    TrailersReceived,
)
from ngh2 import StreamClosed as StreamClosedEvent

from antiphon.doors.extproc.http2_call import Call, Http2Limits, prefix, status_trailers, timeout_seconds, with_prefix
from antiphon.doors.extproc.transport import (
    HEALTH_CHECK,
    PROCESS,
    STANDARD_STREAMS,
    TRACE_METADATA,
    CallFailed,
    GrpcStatus,
    Presented,
    StreamClosed,
)
from antiphon.types.transport import SECRET_HEADER

if TYPE_CHECKING:
    from antiphon.doors.extproc.transport_http2 import Http2Transport

_log = structlog.get_logger(__name__)

_PROCESS: Final = PROCESS.encode()
_CHECK: Final = HEALTH_CHECK.encode()
_STANDARD: Final = {path.encode(): path for path in STANDARD_STREAMS}
_SECRET: Final = SECRET_HEADER.encode()
_TRACE: Final = tuple((name.encode(), name) for name in TRACE_METADATA)
_HEAD: Final = ((b":status", b"200"), (b"content-type", b"application/grpc"))
_MAX_PER_WRITE: Final = 1 << 20
_LARGE: Final = 16 << 10


def configuration(limits: Http2Limits) -> Configuration:
    """Build the nghttp2 configuration that all connections of a server share."""
    # nghttp2 counts every reset, also those with which Envoy ends each call. So nghttp2's default limit would end
    # connections under load.
    unlimited = (1 << 40, 1 << 40)
    return Configuration(
        auto_window_update=False,
        stream_reset_rate_limit=unlimited,
        max_inbound_header_list_size=limits.header_bytes,
        max_inbound_header_count=limits.header_count,
    )


class Http2Connection:
    """One HTTP/2 connection; Envoy opens one per worker thread. The class has the methods of an `asyncio.Protocol`. The
    class does not inherit from `asyncio.Protocol`, because the compiled build gains nothing from the inheritance."""

    def __init__(self, owner: Http2Transport) -> None:
        self._owner = owner
        self.limits = owner.limits
        self._loop = asyncio.get_running_loop()
        self._http2 = Connection(Role.SERVER, owner.configuration)
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, Call] = {}
        self._checks: set[int] = set()
        self._flush_due = False
        self._paused = False
        self._blocked: list[Call] = []
        self.ending = EndingCalls(self._loop, owner.limits.sweep_seconds)
        self._lingering: set[int] = set()
        self._resets, self._resets_at = owner.limits.resets[0], self._loop.time()
        self._flooded = False
        # Caches the last decoded request head. An Envoy without tracing begins every call with the same head.
        self._usual: tuple[tuple[Header, ...], Presented, float | None] = ((), Presented(None), None)

    # Methods that asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        self._owner.connections.add(self)
        limits = self.limits
        self._http2.initiate_connection(
            {
                Setting.MAX_CONCURRENT_STREAMS: limits.calls,
                Setting.INITIAL_WINDOW_SIZE: limits.window,
                Setting.MAX_FRAME_SIZE: 1 << 18,
                Setting.MAX_HEADER_LIST_SIZE: limits.header_bytes,
            }
        )
        # Each call has its own window. The connection's window is as large as HTTP/2 allows, so a call that waits does
        # not stop the other calls.
        self._http2.set_local_window_size((1 << 31) - 1)
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            self._http2.receive_data(data)
            events = self._http2.events()
        except NGH2Error as error:
            self._fail(error)
            return
        for event in events:
            try:
                self._handle(event)
            except Exception as bug:
                _log.error("extproc_call_failed", error=type(bug).__name__, exc_info=True)
                self._reset(getattr(event, "stream_id", 0), ErrorCode.INTERNAL_ERROR)
        self.flush_soon()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.connections.discard(self)
        self._transport = None
        for call in tuple(self._calls.values()):
            self._forget(call)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    # Events

    def _handle(self, event: Event) -> None:
        if event.__class__ is DataReceived:
            call = self._calls.get(event.stream_id)
            if call is not None:
                call.take(event.data, event.end_stream)
            elif event.data:
                self._http2.acknowledge_received_data(len(event.data), event.stream_id)
        elif isinstance(event, RequestReceived):
            self._open(event)
        elif isinstance(event, TrailersReceived):
            call = self._calls.get(event.stream_id)
            if call is not None:
                call.take(b"", True)
        elif isinstance(event, StreamReset):
            self._count_reset(self._calls.get(event.stream_id))
        elif isinstance(event, StreamClosedEvent):
            self._lingering.discard(event.stream_id)
            call = self._calls.get(event.stream_id)
            if call is not None:
                self._forget(call)

    def _open(self, event: RequestReceived) -> None:
        call = Call(self, event.stream_id)
        if event.headers == self._usual[0]:
            self._calls[event.stream_id] = call
            call.ended = event.end_stream
            self._serve(call, *self._usual[1:])
            return
        headers = dict(event.headers)
        if headers.get(b":method") != b"POST" or not headers.get(b"content-type", b"").startswith(b"application/grpc"):
            # The write may fail, because the peer may have reset the stream already.
            with contextlib.suppress(NGH2Error):
                self._http2.send_response(event.stream_id, [(b":status", b"415")], end_stream=True)
            return
        path = headers.get(b":path")
        if path == _PROCESS or path in _STANDARD:
            self._calls[event.stream_id] = call
            call.ended = event.end_stream
            seconds = timeout_seconds(headers.get(b"grpc-timeout", b""))
            # Envoy sends the trace context of its span in these metadata.
            trace = tuple((name, headers[key].decode("latin-1")) for key, name in _TRACE if key in headers)
            presented = Presented(headers.get(_SECRET), trace)
            if path == _PROCESS:
                self._usual = (event.headers, presented, seconds)
            self._serve(call, presented, seconds, _STANDARD.get(path))
        elif path == _CHECK and len(self._checks) < self.limits.checks:
            self._calls[event.stream_id] = call
            self._checks.add(event.stream_id)
            call.start_unary(self._check)
        elif path == _CHECK:
            call.finish(GrpcStatus.RESOURCE_EXHAUSTED, "too many health checks at once")
        else:
            call.finish(GrpcStatus.UNIMPLEMENTED, "unknown method")

    def _serve(self, call: Call, presented: Presented, seconds: float | None, standard: str | None = None) -> None:
        """Serve a call if its peer has the secret, and refuse it otherwise. The call is for the processor, or for the
        standard service with the path `standard`."""
        owner = self._owner
        refusal = owner.calls.refusal(presented)
        if refusal is None:
            work = owner.process(call, presented) if standard is None else owner.standard(call, standard)
            call.start(owner.serve(self, call, work), seconds)
        else:
            call.refuse(refusal)

    def served(self, call: Call, status: GrpcStatus, message: str) -> None:
        """Handle the end of the processor's work on a call. The peer gets time to end an answered call. Any other call
        ends with its status immediately."""
        if call.lingers and status is GrpcStatus.OK and not (call.ended or call.gone):
            self.ending.add(call, call.lingers)
        else:
            call.finish(status, message)

    def _check(self, call: Call, message: bytes) -> None:
        """Answer one health check immediately."""
        try:
            answer = self._owner.calls.check(message)
        except CallFailed as failed:
            call.finish(failed.status, failed.message)
            return
        # The write may fail, because the peer may have reset the stream already.
        with contextlib.suppress(StreamClosed):
            self.send(call, answer)
        call.finish(GrpcStatus.OK)

    def _count_reset(self, call: Call | None) -> None:
        """Count a reset of an unanswered call. A peer that opens calls only to reset them loses its connection."""
        if call is None or call.headed or call.unary is not None:
            return
        burst, rate = self.limits.resets
        now = self._loop.time()
        self._resets = min(burst, self._resets + (now - self._resets_at) * rate) - 1
        self._resets_at = now
        if self._resets < 0 and not self._flooded:
            # The flood is logged once, because one read may contain thousands more resets.
            self._flooded = True
            _log.warning("extproc_reset_flood")
            self._http2.terminate_connection(ErrorCode.ENHANCE_YOUR_CALM)
            self._flush()
            if self._transport is not None:
                self._transport.close()

    # Methods that calls use.

    def begin(self, call: Call) -> None:
        """Send the response head of the call immediately, before the process does any other work. Raises
        `StreamClosed`."""
        call.begun = True
        try:
            self._http2.send_response(call.id, _HEAD)
        except NGH2Error as error:
            raise StreamClosed(type(error).__name__) from None
        self._flush()

    def send(self, call: Call, message: bytes) -> None:
        """Queue one message for the peer. Raises `StreamClosed`."""
        try:
            if not call.headed:
                call.headed = True
                if not call.begun:
                    call.begun = True
                    self._http2.send_response(call.id, _HEAD)
            if len(message) < _LARGE:
                self._http2.send_data(call.id, with_prefix(message))
            else:
                # nghttp2 keeps a large message without a copy, and copies it once into the output.
                self._http2.send_data(call.id, prefix(len(message)))
                self._http2.send_data(call.id, message)
        except NGH2Error as error:
            raise StreamClosed(type(error).__name__) from None
        self.flush_soon()

    def is_full(self, call: Call) -> bool:
        """Whether the call's send queue is over its limit, so the call must wait before it sends more."""
        return self._http2.queued_body_size(call.id) > self.limits.queued

    def is_queued(self, call: Call) -> bool:
        """Whether the call's send queue still has bytes that were not written to the socket."""
        return self._http2.queued_body_size(call.id) > 0

    def block(self, call: Call) -> None:
        """Remember a call that waits for room in its send queue. `_flush` calls `call.resume` after each write."""
        self._blocked.append(call)

    def consumed(self, call: Call, size: int) -> None:
        """Return `size` bytes of flow-control window to the peer, so that it may send as many more."""
        try:
            self._http2.acknowledge_received_data(size, call.id)
        except NGH2Error:
            return
        self.flush_soon()

    def finish(self, call: Call, status: GrpcStatus, message: str) -> None:
        """Send the status that ends the call, after the call's queued bytes."""
        self._calls.pop(call.id, None)
        self._checks.discard(call.id)
        self.ending.discard(call)
        trailers = status_trailers(status, message)
        try:
            if not call.begun:
                call.begun = True
                self._http2.send_response(call.id, _HEAD)
            self._http2.send_trailers(call.id, trailers)
        except NGH2Error:
            return
        if not call.ended:
            # The peer usually ends its side when it sees the status. A reset together with the status would overtake
            # queued bytes, and gRPC's client would report a failure. So the server resets a call only if the peer
            # leaves it open.
            self._lingering.add(call.id)
            self._loop.call_later(self.limits.linger_seconds, self._end_lingering, call.id)
        self.flush_soon()

    def flush_soon(self) -> None:
        """Schedule one write after all callbacks that are ready in the event loop."""
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    # Writing

    def _flush(self) -> None:
        self._flush_due = False
        transport = self._transport
        if transport is None:
            return
        http2 = self._http2
        try:
            while not self._paused and (data := http2.data_to_send(_MAX_PER_WRITE)):
                transport.write(data)
        except NGH2Error as error:
            self._fail(error)
            return
        if self._blocked:
            blocked, self._blocked = self._blocked, []
            for call in blocked:
                if not call.resume():
                    self._blocked.append(call)
        if not http2.want_read and not http2.want_write:
            transport.close()

    def _end_lingering(self, number: int) -> None:
        if number in self._lingering:
            self._lingering.discard(number)
            self._reset(number, ErrorCode.NO_ERROR)

    def _reset(self, number: int, code: ErrorCode) -> None:
        try:
            self._http2.reset_stream(number, code)
        except (NGH2Error, ValueError):
            return
        self.flush_soon()

    def _forget(self, call: Call) -> None:
        """Remove a call, because the peer ended it or the connection is closed."""
        self._calls.pop(call.id, None)
        self._checks.discard(call.id)
        self.ending.discard(call)
        call.lose()

    def _fail(self, error: NGH2Error) -> None:
        """Close the connection, because the peer violated HTTP/2 or a limit."""
        _log.warning("extproc_connection_failed", error=type(error).__name__, detail=str(error)[:200])
        transport = self._transport
        if transport is None:
            return
        with contextlib.suppress(NGH2Error):
            transport.write(self._http2.data_to_send())
        transport.close()

    # Ending

    def tasks(self) -> list[asyncio.Task[None]]:
        return [call.task for call in self._calls.values() if call.task is not None]

    def announce_end(self) -> None:
        """Announce the end of the connection with a GOAWAY frame. This GOAWAY refuses no call, because the peer may
        have sent calls that have not arrived yet."""
        try:
            self._http2.send_shutdown_notice()
        except NGH2Error:
            return
        self._flush()

    def end(self) -> None:
        self.ending.finish()
        with contextlib.suppress(NGH2Error):
            self._http2.send_goaway(ErrorCode.NO_ERROR)
        self._flush()
        if self._transport is not None:
            self._transport.close()


class EndingCalls:
    """Tracks the answered calls of one connection that their peer has not ended yet. One timer serves all tracked
    calls, so no call needs a waiting task.

    Envoy ends nearly every call itself with a reset, within milliseconds. If the server ended a call earlier, unread
    bytes could be lost. So a call with unsent bytes has a later deadline. A tracked call ends when its peer ends it or
    when the connection closes. If neither happens, the server sends the call's status at most `sweep` seconds after the
    call's deadline.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, sweep: float) -> None:
        self._loop = loop
        self._sweep_seconds = sweep
        # For each call, the deadline without unsent bytes and the deadline with unsent bytes.
        self._due: dict[Call, tuple[float, float]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._empty: asyncio.Future[None] | None = None

    @property
    def count(self) -> int:
        """The number of answered calls that their peer has not ended yet."""
        return len(self._due)

    def add(self, call: Call, seconds: float) -> None:
        """Give the peer `seconds` to end this call. While the call has unsent bytes, the peer gets `limits.seconds`
        instead."""
        now = self._loop.time()
        self._due[call] = (now + seconds, now + call.limits.seconds)
        if self._timer is None:
            self._timer = self._loop.call_later(self._sweep_seconds, self._sweep)

    def discard(self, call: Call) -> None:
        """Remove a call that has ended. A call that is not tracked is ignored."""
        self._due.pop(call, None)
        if not self._due and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def ended(self) -> asyncio.Future[None]:
        """Return a future that completes when no tracked call is left. Only one caller may await the future, after the
        last `add`."""
        self._empty = self._loop.create_future()
        if not self._due:
            self._empty.set_result(None)
        return self._empty

    def finish(self) -> None:
        """End all tracked calls immediately with the status OK."""
        for call in tuple(self._due):
            call.finish(GrpcStatus.OK)

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        for call, (due, last) in tuple(self._due.items()):
            if due <= now and (last <= now or not call.unsent):
                call.finish(GrpcStatus.OK)
        if self._due:
            self._timer = self._loop.call_later(self._sweep_seconds, self._sweep)
