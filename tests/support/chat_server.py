"""A real, scriptable chat server, which can send Antiphon any bytes that a faulty upstream might send.

Lives here: an HTTP/1.1 server on asyncio protocols that answers from a script and records the requests. Not here: any
check of answers. The server sends the test's bytes, even if no correct server would.

    async with ChatServer() as server:                       # or ChatServer(unix_path=…), ChatServer(tls=context)
        gate = asyncio.Event()
        server.script(answer(parts=[event("Hel"), Wait(gate), event("lo"), Reset()]))
        …                                                    # server.base_url, server.url("/…")
        call = await server.received()                       # the next request: method, path, headers, body, .json
        await call.gone.wait()                               # its connection was closed by the other side

Invariant: no step sleeps. A step that must wait waits for an event of the test, or until the peer disconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

DEADLINE = 30.0
"""The maximum seconds of any wait in a test."""

DONE_EVENT = b"data: [DONE]\n\n"
CHAT_MODELS = ("demo-model", "other/model:7b")


# Steps of a script.


@dataclass(frozen=True)
class Wait:
    """Pause the script until the test sets the event, or the peer disconnects."""

    event: asyncio.Event


@dataclass(frozen=True)
class Mark:
    """Set the event, which tells the test that all earlier steps have been written."""

    event: asyncio.Event


@dataclass(frozen=True)
class WaitGone:
    """Pause the script until the peer disconnects, like an upstream that sends nothing more."""


@dataclass(frozen=True)
class Reset:
    """Break the connection with RST."""


@dataclass(frozen=True)
class Close:
    """Close the connection with FIN, even in the middle of an answer."""


@dataclass(frozen=True)
class Raw:
    """Send these bytes without any framing."""

    data: bytes


Step = bytes | Raw | Mark | Wait | WaitGone | Reset | Close


@dataclass(frozen=True)
class Answer:
    """One scripted answer as a list of steps. `bytes` among the steps are body data, framed as `framing` names.

    `framing`: `chunked`, `length` (the head has the body's length), `close` (the body ends with the connection), or
    `none` (the server adds nothing, not even a head).
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    parts: tuple[Step, ...] = ()
    framing: str = "chunked"
    announced: int | None = None
    """Overrides the length in the head (`framing="length"`), for a body that ends too early."""


Responder = Callable[["Received"], Answer]


@dataclass
class Received:
    """One request as it arrived."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int
    """The number of the request's connection, from 0. Requests with the same number used the same connection."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when either side has closed the connection."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    def header_values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


# Building answers.


def chunk(delta: dict[str, Any] | None = None, **top: Any) -> dict[str, Any]:
    """A chat completion chunk. `finish_reason` becomes a field of the choice, and all other arguments top-level
    fields."""
    finish = top.pop("finish_reason", None)
    choices = top.pop("choices", [{"index": 0, "delta": delta or {}, "finish_reason": finish}])
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "demo-model"}
    return {**base, "choices": choices, **top}


def event(value: str | dict[str, Any]) -> bytes:
    """One event of a stream. A string becomes a content delta."""
    data = chunk({"content": value}) if isinstance(value, str) else value
    return b"data: " + json.dumps(data).encode() + b"\n\n"


_USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def text_stream(*texts: str, finish: str = "stop", usage: bool = True, done: bool = True) -> list[bytes]:
    """The events of a complete streamed text answer."""
    events = [event(chunk({"role": "assistant", "content": ""}))]
    events += [event(text) for text in texts]
    events.append(event(chunk(finish_reason=finish)))
    if usage:
        events.append(event(chunk(choices=[], usage=_USAGE)))
    if done:
        events.append(DONE_EVENT)
    return events


def completion(text: str = "Hello", **message: Any) -> dict[str, Any]:
    """A complete chat completion."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "demo-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "finish_reason": "tool_calls" if "tool_calls" in message else "stop",
            }
        ],
        "usage": _USAGE,
    }


_SSE = (("content-type", "text/event-stream; charset=utf-8"),)


def answer(
    status: int = 200,
    headers: Iterable[tuple[str, str]] = _SSE,
    parts: Iterable[Step] = (),
    *,
    framing: str = "chunked",
    announced: int | None = None,
) -> Answer:
    """An answer with any status, headers and steps. The default head is that of an event stream."""
    return Answer(status, tuple(headers), tuple(parts), framing, announced)


def json_answer(value: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Answer:
    """A JSON answer with a `content-length` header."""
    return answer(
        status, (("content-type", "application/json"), *headers), [json.dumps(value).encode()], framing="length"
    )


def gzipped(whole: Answer) -> Answer:
    """The same answer in gzip, although the client did not accept gzip. Only for answers whose steps are plain
    bytes."""
    body = b"".join(part for part in whole.parts if isinstance(part, bytes))
    headers = (*whole.headers, ("content-encoding", "gzip"))
    return Answer(whole.status, headers, (gzip.compress(body),), whole.framing)


def never() -> Answer:
    """An answer that never comes: the connection stays open and silent."""
    return Answer(parts=(WaitGone(),), framing="none")


def split(data: bytes, size: int) -> list[bytes]:
    """The same bytes in parts of `size` bytes."""
    return [data[at : at + size] for at in range(0, len(data), size)]


def _default(request: Received) -> Answer:
    """Answer as a correct server: the list of models, and "Hello" as JSON or as a stream."""
    if request.method == "GET" and request.path.endswith("/models"):
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "test"} for name in CHAT_MODELS]
        return json_answer({"object": "list", "data": data})
    if not request.path.endswith("/chat/completions"):
        return json_answer({"error": {"message": "no such path", "type": "x", "param": None, "code": None}}, 404)
    if request.json.get("stream"):
        return answer(parts=text_stream("Hel", "lo"))
    return json_answer(completion())


# The server.


class ChatServer:
    """Answers each request with the next scripted answer, or with `default` if the script is empty."""

    def __init__(
        self, *, unix_path: Path | None = None, tls: ssl.SSLContext | None = None, base_path: str = "/v1", port: int = 0
    ) -> None:
        self.requests: list[Received] = []
        self.default: Responder = _default
        self.connections = 0
        """The number of connections accepted so far."""
        self.unix_path = unix_path
        self.port = port
        self._base_path = base_path
        self._tls = tls
        self._script: deque[Answer | Responder] = deque()
        self._arrived: asyncio.Queue[Received] = asyncio.Queue()
        self.connected: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    def script(self, *answers: Answer | Responder) -> None:
        """Queue answers for the next requests."""
        self._script.extend(answers)

    def forget_script(self) -> None:
        """Remove all queued answers, so that `default` answers again."""
        self._script.clear()

    def forget(self) -> None:
        """Remove all queued answers and all recorded requests."""
        self.forget_script()
        self.requests.clear()
        while not self._arrived.empty():
            self._arrived.get_nowait()

    @property
    def base_url(self) -> str:
        """The URL for `upstream.url`."""
        return self.url(self._base_path)

    def url(self, path: str) -> str:
        # A certificate needs a host name. Tests without TLS use the address, which needs no name resolution.
        return f"https://localhost:{self.port}{path}" if self._tls else f"http://127.0.0.1:{self.port or 80}{path}"

    @property
    def open_connections(self) -> int:
        """The number of open connections."""
        return len(self.connected)

    async def received(self) -> Received:
        """The next request that no earlier call returned. Fails after `DEADLINE` seconds."""
        async with asyncio.timeout(DEADLINE):
            return await self._arrived.get()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        if self.unix_path is not None:
            self._server = await loop.create_unix_server(lambda: _Connection(self), str(self.unix_path))
        else:
            self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, ssl=self._tls)
            self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections and break the open ones."""
        if self._server is not None:
            self._server.close()
            for connection in list(self.connected):
                connection.abort()
            await self._server.wait_closed()
            self._server = None
        while self.connected:
            await asyncio.gather(*(connection.finished.wait() for connection in list(self.connected)))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def respond(self, request: Received) -> Answer:
        self.requests.append(request)
        self._arrived.put_nowait(request)
        chosen = self._script.popleft() if self._script else self.default
        return chosen if isinstance(chosen, Answer) else chosen(request)


class _Connection(asyncio.Protocol):
    """One connection: parses requests and sends scripted answers."""

    def __init__(self, server: ChatServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self.finished = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._number = self._server.connections
        self._server.connections += 1
        self._server.connected.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._news.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone.set()
        self._news.set()
        self._writable.set()
        if self._task is not None and self._task.done():
            self._forget()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _forget(self) -> None:
        self._server.connected.discard(self)
        self.finished.set()

    async def _serve(self) -> None:
        assert self._transport is not None
        try:
            while (request := await self._read_request()) is not None:
                if not await self._play(self._server.respond(request)):
                    break
        except EOFError:
            pass
        finally:
            self._transport.close()
            if self._gone.is_set():
                self._forget()

    # Reading.

    async def _more(self) -> None:
        if self._gone.is_set():
            raise EOFError
        self._news.clear()
        await self._news.wait()

    async def _until(self, mark: bytes) -> bytes:
        while (at := self._buffer.find(mark)) < 0:
            await self._more()
        return self._take(at + len(mark))

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            await self._more()
        return self._take(size)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def _read_request(self) -> Received | None:
        lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        pairs = [line.split(":", 1) for line in lines[1:] if line]
        headers = tuple((name.strip().lower(), value.strip()) for name, value in pairs)
        found = dict(headers)
        body = b""
        if found.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self._until(b"\r\n")).split(b";")[0], 16):
                body += await self._exactly(size)
                await self._exactly(2)
            await self._until(b"\r\n")
        elif length := int(found.get("content-length", "0")):
            body = await self._exactly(length)
        return Received(method, path, headers, body, self._number, self._gone)

    # Writing.

    async def _play(self, script: Answer) -> bool:
        """Perform one answer. Returns False if the connection cannot be used for another request."""
        await self._write(self._head(script))
        for step in script.parts:
            if not await self._step(step, script.framing):
                return False
        if script.framing == "chunked":
            await self._write(b"0\r\n\r\n")
        return script.framing in ("chunked", "length")

    def _head(self, script: Answer) -> bytes:
        if script.framing == "none":
            return b""
        headers: Sequence[tuple[str, str]] = script.headers
        if script.framing == "chunked":
            headers = (*headers, ("transfer-encoding", "chunked"))
        elif script.framing == "length":
            size = sum(len(part) for part in script.parts if isinstance(part, bytes))
            headers = (*headers, ("content-length", str(script.announced if script.announced is not None else size)))
        else:
            headers = (*headers, ("connection", "close"))
        lines = [f"HTTP/1.1 {script.status} Scripted", *(f"{name}: {value}" for name, value in headers)]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"

    async def _step(self, step: Step, framing: str) -> bool:
        assert self._transport is not None
        if isinstance(step, bytes):
            if step:
                await self._write(b"%x\r\n%b\r\n" % (len(step), step) if framing == "chunked" else step)
        elif isinstance(step, Raw):
            await self._write(step.data)
        elif isinstance(step, Mark):
            step.event.set()
        elif isinstance(step, Wait):
            await self._wait(step.event)
        elif isinstance(step, WaitGone):
            await self._gone.wait()
        elif isinstance(step, Reset):
            raw = self._transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
            return False
        else:
            return False
        return not self._gone.is_set()

    async def _wait(self, wanted: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(wanted.wait()), asyncio.ensure_future(self._gone.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._gone.is_set():
            self._transport.write(data)
            await self._writable.wait()
            # Let the event loop run once, so that the network can deliver the parts separately.
            await asyncio.sleep(0)
