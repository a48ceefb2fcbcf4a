"""An HTTP/2 peer that sends single frames, for behaviour that gRPC's own client never shows.

Lives here: one connection with an event per call, and a service to call. Not here: the expected results.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import ngh2

from antiphon.doors.extproc.http2_call import Http2Limits, with_prefix
from antiphon.doors.extproc.standard_services import StandardServices
from antiphon.doors.extproc.transport import SERVICE, CallFailed, MessageStream, Presented
from antiphon.doors.extproc.transport_http2 import Http2Transport

PROCESS = f"/{SERVICE}/Process"
DEADLINE = 30.0


class Service:
    """The `Calls` of a service whose behaviour a test sets."""

    def __init__(self) -> None:
        self.behave: Callable[[MessageStream], object] = self.echo
        self.cancelled = 0
        self.ended = 0
        self._standard = StandardServices()

    async def process(self, stream: MessageStream, presented: Presented) -> None:
        try:
            await self.behave(stream)  # type: ignore[misc]
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.ended += 1

    async def echo(self, stream: MessageStream) -> None:
        while (message := await stream.receive()) is not None:
            await stream.send(message)

    def refusal(self, presented: Presented) -> CallFailed | None:
        return None

    def check(self, message: bytes) -> bytes:
        return self._standard.check(message)

    async def standard(self, path: str, stream: MessageStream) -> None:
        await self._standard.serve(path, stream)


@asynccontextmanager
async def serving(folder: Path, limits: Http2Limits | None = None) -> AsyncIterator[tuple[Service, str]]:
    """Start a transport with a service on a Unix socket."""
    service = Service()
    transport = Http2Transport(service, limits)
    path = str(folder / "http2.sock")
    await transport.listen(f"unix:{path}")
    try:
        yield service, path
    finally:
        await transport.aclose(0.0)


class Http2Peer:
    """One connection, to a socket's path or to HOST:PORT. It stores the received `data`, `trailers` and `reset` for
    each stream."""

    def __init__(self, path: str, *, window: int = 1 << 20, auto_window: bool = True) -> None:
        self._path = path
        self._window = window
        self.http2 = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(auto_window_update=auto_window))
        self.data: dict[int, bytes] = {}
        self.headers: dict[int, dict[bytes, bytes]] = {}
        self.resets: dict[int, int] = {}
        self.closed: set[int] = set()
        self.goaway: int | None = None
        self.pongs = 0
        self.lost = asyncio.Event()
        self._changed = asyncio.Event()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        host, _, port = self._path.rpartition(":")
        opened = asyncio.open_connection(host, int(port)) if host else asyncio.open_unix_connection(self._path)
        self._reader, self._writer = await opened
        self.http2.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: self._window})
        self.flush()
        self._task = asyncio.get_running_loop().create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._writer is not None and self._task is not None
        self._writer.close()
        self._task.cancel()
        await asyncio.wait({self._task})

    def abort(self) -> None:
        """Break the connection off."""
        assert self._writer is not None
        self._writer.transport.abort()

    def close_half(self) -> None:
        """Close the sending side, and continue to read."""
        assert self._writer is not None
        self._writer.write_eof()

    def flush(self) -> None:
        """Send what is pending."""
        assert self._writer is not None
        if (data := self.http2.data_to_send()) and not self._writer.is_closing():
            self._writer.write(data)

    def write(self, data: bytes) -> None:
        """Send raw bytes."""
        assert self._writer is not None
        self._writer.write(data)

    def call(self, path: str = PROCESS, *headers: tuple[str, str], content_type: str = "application/grpc") -> int:
        """Open a call; returns its stream id."""
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")]
        fields += [("content-type", content_type), ("te", "trailers"), *headers]
        number = self.http2.send_request([(name.encode(), value.encode()) for name, value in fields])
        self.flush()
        return number

    def send(self, number: int, message: bytes, *, end: bool = False) -> None:
        """Send one message."""
        self.send_bytes(number, with_prefix(message), end=end)

    def send_bytes(self, number: int, data: bytes, *, end: bool = False) -> None:
        """Send raw bytes of a call, in a separate DATA frame."""
        self.http2.send_data(number, data, end_stream=end)
        self.flush()

    def end(self, number: int) -> None:
        """End this side of the call."""
        self.http2.end_stream(number)
        self.flush()

    def reset(self, number: int, code: int = 2) -> None:
        """Reset the call, as Envoy ends every call."""
        self.http2.reset_stream(number, code)
        self.flush()

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until `happened` is true. Checks it after each received frame."""
        async with asyncio.timeout(DEADLINE):
            while not happened():
                self._changed.clear()
                if not happened():
                    await self._changed.wait()

    async def status(self, number: int) -> int:
        """Wait for the call's gRPC status."""
        await self.until(lambda: b"grpc-status" in self.headers.get(number, {}))
        return int(self.headers[number][b"grpc-status"])

    async def answered(self, number: int, size: int) -> bytes:
        """Wait until the call has received `size` bytes. Returns the data."""
        await self.until(lambda: len(self.data.get(number, b"")) >= size)
        return self.data[number]

    async def _read(self) -> None:
        assert self._reader is not None
        try:
            while data := await self._reader.read(1 << 16):
                self.http2.receive_data(data)
                for event in self.http2.events():
                    self._take(event)
                self.flush()
                self._changed.set()
        except (ngh2.NGH2Error, ConnectionError):
            pass
        finally:
            self.lost.set()
            self._changed.set()

    def _take(self, event: ngh2.Event) -> None:
        if isinstance(event, ngh2.DataReceived):
            self.data[event.stream_id] = self.data.get(event.stream_id, b"") + event.data
        elif isinstance(event, ngh2.ResponseReceived | ngh2.TrailersReceived):
            self.headers.setdefault(event.stream_id, {}).update(dict(event.headers))
        elif isinstance(event, ngh2.StreamReset):
            self.resets[event.stream_id] = event.error_code
        elif isinstance(event, ngh2.StreamClosed):
            self.closed.add(event.stream_id)
        elif isinstance(event, ngh2.GoAwayReceived):
            self.goaway = event.error_code
        elif isinstance(event, ngh2.PingAcknowledged):
            self.pongs += 1
