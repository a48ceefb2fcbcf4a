"""Makes model calls over HTTP: implements the `Upstream` port on aiohttp.

This module sends the request, reads the response, applies the timeouts and classifies transport failures. `http.py`
manages the connections, and the package `translation` parses the bytes.

Invariants: the client follows no redirect. A failed call always raises `UpstreamCallFailed`, whose message contains no
header and no body. If the caller ends a call before the body is complete, the connection closes immediately. Otherwise
another call can reuse the connection, so callers read the body to its end even after `[DONE]`.
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
"""The beginning of the error message after a failed TLS handshake. Other modules look for this text, and then advise
the operator to try `http://`."""

_CAUSES = 8
# Headers that describe the bytes on the wire. The client removes these headers, because they do not apply to the
# decoded bytes.
_WIRE_HEADERS = frozenset({"connection", "content-encoding", "content-length", "keep-alive", "transfer-encoding"})


class HttpUpstream:
    """Sends calls to one upstream over HTTP, with a connection pool. Each process has one client per upstream.

    `connect_seconds` limits the time for name resolution, TCP and TLS. `head_seconds` limits the time until the
    response head has arrived, including the time to connect. `idle_seconds` limits the time without bytes in the middle
    of the body. `body_limit` is the maximum size in bytes of a body that is not an event stream. The package
    `translation` limits the size of event streams. If a reused connection breaks within `stale_seconds`, the client
    sends the request again, because the server closed the idle connection before it received the request.
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
        """Send the request and wait for the response head. Yields the response, even if its status is an error.

        Raises `UpstreamCallFailed` when no head arrives: `UNREACHABLE` without a connection, `TIMED_OUT` after
        `head_seconds` for each of `request.tries`, `CUT` when the connection breaks. The end of the block closes the
        connection unless the body is complete.
        """
        try:
            # Behind Envoy a call may try several upstreams, and each may use the whole timeout.
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
            # The connection was established, but no HTTP head arrived. The server closed the connection or does not
            # speak HTTP.
            _let_go(error)
            raise _failed(UpstreamFault.CUT, f"{_breaking(error)} before the head of its answer") from None
        try:
            yield _UpstreamAnswer(response, self._idle_seconds, self._body_limit)
        finally:
            # After a complete body, aiohttp has already taken the connection back. After an incomplete body the
            # connection must close, so that the upstream notices immediately that no client reads its response.
            response.close()

    async def aclose(self) -> None:
        """Close the connections. A later call raises `UpstreamCallFailed` (`UNREACHABLE`)."""
        self._closed = True
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.aclose()

    def _open(self) -> Connections:
        # The connections are created at the first call, because they belong to the running event loop.
        if self._connections is None:
            if self._closed:
                raise _failed(UpstreamFault.UNREACHABLE, "the client is closed")
            self._connections = Connections(
                self._target, connect_seconds=self._connect_seconds, stale_seconds=self._stale_seconds
            )
        return self._connections


class _UpstreamAnswer:
    """A response whose head has arrived."""

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
        """Yield the chunks of the body as they arrive. A caller can read the body only once.

        Raises `UpstreamCallFailed` when the connection breaks (`CUT`), is silent for `idle_seconds` (`TIMED_OUT`), or
        a body that is no event stream exceeds `body_limit` (`TOO_LARGE`). The caller gets all bytes that arrived before
        a break or a silence.
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
                        # The failure's traceback refers to this frame, and the frame refers to the failure. Deleting
                        # the variable `failure` breaks this cycle.
                        del failure
                if not part:
                    return

    @contextmanager
    def _watched(self) -> Iterator[Silence]:
        """While the caller reads the body, detect a lost connection and an upstream that sends nothing."""
        silence = Silence(self._idle_seconds, self._give_up)
        protocol = self._response.protocol
        # After a broken chunk header aiohttp's C parser (3.14.5) closes the connection and does not tell the reader
        # (tests/faults found this). Without the callback `_on_lost` the read would wait until the idle timeout.
        lost = protocol.closed if protocol is not None else None
        if lost is None:
            self._break_off()
            yield silence
            return
        # `look_at` marks the result of the future as read. Without `look_at` asyncio would log the unread exception of
        # a finished connection.
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
        """Report the lost connection to the code that reads the body, unless the body is complete."""
        self._end(aiohttp.ClientPayloadError("the connection was lost"))

    def _end(self, error: aiohttp.ClientError) -> None:
        """Make the code that reads the body raise `error`, unless the body is complete."""
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(error)

    def _failure(self, error: Exception) -> UpstreamCallFailed:
        if isinstance(error, TimeoutError):
            return _failed(
                UpstreamFault.TIMED_OUT, (f"the upstream sent nothing for {self._idle_seconds:g} s (timeouts.idle)")
            )
        if isinstance(error, aiohttp.ClientPayloadError):
            return _failed(UpstreamFault.CUT, "the upstream ended the body early, or sent an invalid body")
        return _failed(UpstreamFault.CUT, f"{_breaking(error)} within the body")


def _let_go(error: BaseException) -> None:
    """Remove the tracebacks from an exception, because they would waste memory.

    aiohttp's connections keep a reference to the exception. The frames in its tracebacks refer to the connection, the
    request's body and the received part of the response.
    """
    one: BaseException | None = error
    for _ in range(_CAUSES):
        if one is None:
            return
        one.__traceback__ = None
        one = one.__cause__ or one.__context__


def _left_over(content: aiohttp.StreamReader) -> bytes:
    """Return the bytes that arrived before the failure, which aiohttp's reader would not return."""
    content.set_exception(None)  # type: ignore[arg-type]  # lets the reader continue; the caller has the failure
    return content.read_nowait()


def _describe(error: BaseException) -> str:
    """Describe a failure without addresses, headers or bodies."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or "not trusted"
        return f"the certificate was refused ({reason})"
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        # The error number is OpenSSL's, so `os.strerror` has no text for it.
        reason = str(getattr(error.os_error, "reason", "") or "no reason").lower().replace("_", " ")
        return f"{TLS_FAILED} ({reason})"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host name cannot be resolved"
    if isinstance(error, aiohttp.client_exceptions.UnixClientConnectorError):
        # Antiphon uses a Unix socket only to reach Envoy, never to reach an upstream.
        return f"{NO_MODEL_DOOR} ({os.strerror(error.errno or 0)})"
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno).lower()
    return type(error).__name__


def _breaking(error: BaseException) -> str:
    """Describe how an open connection to the upstream broke."""
    if isinstance(error, ConnectionResetError) or getattr(error, "errno", None) == errno.ECONNRESET:
        return "the upstream reset the connection"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the upstream closed the connection"
    if isinstance(error, aiohttp.ClientResponseError):
        return "the upstream's answer is not HTTP"
    return f"the connection to the upstream broke ({_describe(error)})"


def _failed(fault: UpstreamFault, detail: str) -> UpstreamCallFailed:
    return UpstreamCallFailed(UpstreamError(fault, detail))
