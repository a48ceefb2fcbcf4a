"""Makes model calls over HTTP: the `Upstream` port on aiohttp.

Lives here: one call (head, body, end), its time limits, and the meaning of a transport failure. Not here: connections
(`http.py`), and the meaning of the bytes (`translation/`).

Invariants: no redirect is followed. A call's failure is always an `UpstreamCallFailed` whose detail holds no header
and no body. Leaving a call before its end closes its connection at once. (A caller that wants to keep the connection
reads on to the end after `[DONE]`, as the runner does for a moment.)
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp

from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import UpstreamAnswer, UpstreamCallFailed
from antiphon.engine.waiting import look_at
from antiphon.types.transport import NO_MODEL_DOOR, Headers, UpstreamError, UpstreamFault
from antiphon.upstream.http import Connections, HttpAnswer, UpstreamTarget
from antiphon.upstream.silence import Silence

__all__ = ["HttpUpstream", "UpstreamTarget"]

TLS_FAILED = "the TLS handshake failed"
"""The start of a failure's text when the server may speak plain HTTP."""

_CAUSES = 8
# What described the bytes on the wire and is no longer true of the bytes handed on.
_WIRE_HEADERS = frozenset({"connection", "content-encoding", "content-length", "keep-alive", "transfer-encoding"})


class HttpUpstream:
    """One per process: a connection pool towards one upstream.

    `connect_seconds` limits names, TCP and TLS; `head_seconds` the wait for the head (connecting included);
    `idle_seconds` silence within the body; `body_limit` the bytes of a body that is not an event stream (a stream is
    judged by the text in it, which the translation limits). A kept connection that breaks within `stale_seconds` was
    closed before the server saw the request, which is sent again.
    """

    def __init__(
        self,
        target: UpstreamTarget,
        *,
        connect_seconds: float = 5.0,
        head_seconds: float = 600.0,
        idle_seconds: float = 300.0,
        body_limit: int = 64 << 20,
        stale_seconds: float = 1.0,
    ) -> None:
        self._target = target
        self._connect_seconds = connect_seconds
        self._head_seconds = head_seconds
        self._idle_seconds = idle_seconds
        self._body_limit = body_limit
        self._stale_seconds = stale_seconds
        self._connections: Connections | None = None
        self._closed = False

    @asynccontextmanager
    async def call(self, request: UpstreamRequest) -> AsyncIterator[UpstreamAnswer]:
        """Send the request and wait for the head; raises `UpstreamCallFailed` when there is none."""
        try:
            # Behind Envoy several may be asked in turn.
            head_seconds = self._head_seconds * request.tries
            async with asyncio.timeout(head_seconds):
                response = await self._open().send(request)
        except TimeoutError as error:
            _let_go(error)
            if isinstance(error, aiohttp.ConnectionTimeoutError):
                raise _failed(UpstreamFault.UNREACHABLE, f"no connection within {self._connect_seconds:g} s") from None
            raise _failed(UpstreamFault.TIMED_OUT, f"no answer within {head_seconds:g} s (timeouts.head)") from None
        except aiohttp.ClientConnectorError as error:
            _let_go(error)
            raise _failed(UpstreamFault.UNREACHABLE, _describe(error)) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Connected, and then no HTTP head: the peer hung up, or speaks something else.
            _let_go(error)
            raise _failed(UpstreamFault.CUT, f"{_breaking(error)} before the head of its answer") from None
        try:
            yield _UpstreamAnswer(response, self._idle_seconds, self._body_limit)
        finally:
            # At its end aiohttp has taken the connection back already; otherwise it must not be kept, and the
            # upstream shall learn at once that nobody listens any more.
            response.close()

    async def aclose(self) -> None:
        """Close the connections; calls after this fail."""
        self._closed = True
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.aclose()

    def _open(self) -> Connections:
        # Made on first use: connections belong to the running event loop.
        if self._connections is None:
            if self._closed:
                raise _failed(UpstreamFault.UNREACHABLE, "the client is closed")
            self._connections = Connections(
                self._target, connect_seconds=self._connect_seconds, stale_seconds=self._stale_seconds
            )
        return self._connections


class _UpstreamAnswer:
    """An answer whose head has arrived."""

    def __init__(self, response: HttpAnswer, idle_seconds: float, body_limit: int) -> None:
        self.status = response.status
        self.headers: Headers = tuple(
            (name, value)
            for name, value in ((name.lower(), value) for name, value in response.headers.items())
            if name not in _WIRE_HEADERS
        )
        self._response = response
        self._idle_seconds = idle_seconds
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._body_limit = None if kind == "text/event-stream" else body_limit

    async def body(self) -> AsyncIterator[bytes]:
        """Body parts as they arrive; raises `UpstreamCallFailed` when the connection breaks or falls silent.

        Everything that arrived is handed on before a failure is raised.
        """
        content = self._response.content
        received = 0
        with self._watched() as silence:
            while True:
                failure: UpstreamCallFailed | None = None
                if not content.is_eof():
                    silence.wait()
                try:
                    part = await content.readany()
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    _let_go(error)
                    failure = self._failure(error)
                    part = _left_over(content)
                silence.heard()
                if part:
                    received += len(part)
                    if self._body_limit is not None and received > self._body_limit:
                        raise _failed(UpstreamFault.TOO_LARGE, f"more than {self._body_limit} bytes")
                    yield part
                if failure is not None:
                    try:
                        raise failure
                    finally:
                        # Its traceback holds this frame.
                        del failure
                if not part:
                    return

    @contextmanager
    def _watched(self) -> Iterator[Silence]:
        """While the body is read, limit the silence, and notice a lost connection."""
        silence = Silence(self._idle_seconds, self._give_up)
        protocol = self._response.protocol
        # After a broken chunk header aiohttp's C parser drops the connection and tells its reader nothing (3.14.5,
        # found by tests/faults): without this the read would wait until the limit of silence.
        lost = protocol.closed if protocol is not None else None
        if lost is None:
            self._break_off()
            yield silence
            return
        # How a connection ended is nobody's news once its answer was read or left.
        lost.add_done_callback(look_at)
        lost.add_done_callback(self._on_lost)
        try:
            yield silence
        finally:
            lost.remove_done_callback(self._on_lost)
            silence.stop()

    def _give_up(self) -> None:
        self._end(aiohttp.SocketTimeoutError())

    def _on_lost(self, lost: asyncio.Future[None]) -> None:
        self._break_off()

    def _break_off(self) -> None:
        """Note that the connection is closed. An answer that is incomplete now stays incomplete."""
        self._end(aiohttp.ClientPayloadError("the connection was lost"))

    def _end(self, error: aiohttp.ClientError) -> None:
        """Raise this in the reader of the body, unless all has come."""
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(error)

    def _failure(self, error: Exception) -> UpstreamCallFailed:
        if isinstance(error, TimeoutError):
            return _failed(UpstreamFault.TIMED_OUT, f"silent for {self._idle_seconds:g} s (timeouts.idle)")
        if isinstance(error, aiohttp.ClientPayloadError):
            return _failed(UpstreamFault.CUT, "the upstream ended the body early, or sent a broken one")
        return _failed(UpstreamFault.CUT, f"{_breaking(error)} within the body")


def _let_go(error: BaseException) -> None:
    """Forget where a failure came from, which no caller reads.

    aiohttp's connections keep their exceptions. Their frames keep the connections alive, with the request's body and
    the read part of the answer."""
    one: BaseException | None = error
    for _ in range(_CAUSES):
        if one is None:
            return
        one.__traceback__ = None
        one = one.__cause__ or one.__context__


def _left_over(content: aiohttp.StreamReader) -> bytes:
    """The unread bytes from before the failure. aiohttp's reader raises before it returns them."""
    content.set_exception(None)  # type: ignore[arg-type]  # so that the reader goes on; the caller has the failure
    return content.read_nowait()


def _describe(error: BaseException) -> str:
    """The kind of a failure, without addresses, headers or bodies."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or "not trusted"
        return f"the certificate was refused ({reason})"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        # Its number is OpenSSL's, which the system's words for numbers do not fit.
        reason = str(getattr(error.os_error, "reason", "") or "no reason").lower().replace("_", " ")
        return f"{TLS_FAILED} ({reason})"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host name cannot be resolved"
    if isinstance(error, aiohttp.client_exceptions.UnixClientConnectorError):
        # No upstream is called by a socket, only Envoy.
        return f"{NO_MODEL_DOOR} ({os.strerror(error.errno or 0)})"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return type(error).__name__


def _breaking(error: BaseException) -> str:
    """How the upstream broke an open connection, in plain words."""
    if isinstance(error, ConnectionResetError) or getattr(error, "errno", None) == errno.ECONNRESET:
        return "the upstream reset the connection"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the upstream closed the connection"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the upstream sent what is not HTTP"
    return f"the connection to the upstream broke ({_describe(error)})"


def _failed(fault: UpstreamFault, detail: str) -> UpstreamCallFailed:
    return UpstreamCallFailed(UpstreamError(fault, detail))
