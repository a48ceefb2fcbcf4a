"""A chat server with every known or conceivable fault, for `scripts/lab faults`.

Lives here: the kinds of faults, and the permitted outcomes for a client of each. Not here: clients, gateways, the
verdict (`run.py`).

The model's name in a request selects the fault: `x:KIND` or `x:KIND:ARGUMENT`. The server answers any other model
correctly. An answer repeats the word after `echo:` in the last message, so that a client can detect an answer to
another request.

Invariant: the server ends when its standard input closes. An endless answer stops when its peer disconnects.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from typing import Any

GOOD, BAD, ANY = "good", "bad", "any"


class _Gone(Exception):
    """Raised when the peer disconnected, or when the server must close the connection."""


def _chunk(text: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {**({"content": text} if text is not None else {}), **more}
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def _event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


_USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
_END = _event(_chunk(finish="stop")) + _event({"id": "c", "choices": [], "usage": _USAGE}) + b"data: [DONE]\n\n"


def _whole(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"id": "c", "object": "chat.completion", "choices": [choice], "usage": _USAGE}).encode()


class Call:
    """One request and its connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: bool, word: str, argument: str
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.stream = stream
        self.word = word
        self.argument = argument

    @property
    def some(self) -> bytes:
        """The first part of a correct answer."""
        return b"".join(_event(_chunk(f"w{n} ")) for n in range(3)) if self.stream else _whole(self.word)[:60]

    @property
    def answer(self) -> bytes:
        """A complete, correct answer."""
        return _event(_chunk(self.word)) + _END if self.stream else _whole(self.word)

    @property
    def kind(self) -> str:
        return "text/event-stream" if self.stream else "application/json"

    async def send(self, data: bytes) -> None:
        if self._writer.is_closing():
            raise _Gone
        self._writer.write(data)
        try:
            await self._writer.drain()
        except OSError:
            raise _Gone from None

    async def head(self, status: str = "200 OK", kind: str | None = "", *more: str, length: int | None = None) -> None:
        kind = self.kind if kind == "" else kind
        framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
        lines = [f"HTTP/1.1 {status}", *([f"content-type: {kind}"] if kind else []), framing, *more]
        await self.send(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def part(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def body(self, data: bytes, status: str = "200 OK", kind: str = "application/json", *more: str) -> None:
        await self.head(status, kind, *more, length=len(data))
        await self.send(data)

    async def for_ever(self, data: bytes, pause: float = 0.0) -> None:
        while True:
            await self.part(data)
            await asyncio.sleep(pause)

    async def silence(self, seconds: float) -> None:
        """Wait for `seconds`, or until the peer disconnects."""
        reading = asyncio.ensure_future(self._reader.read(1))
        done, _ = await asyncio.wait({reading}, timeout=seconds)
        if done:
            raise _Gone
        reading.cancel()
        await asyncio.wait({reading})

    def cut(self) -> None:
        self._writer.close()
        raise _Gone

    def reset(self) -> None:
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        raise _Gone


# Correct answers in an unusual form.


async def _good(call: Call) -> None:
    if call.stream:
        await call.head()
        await call.part(call.answer)
        await call.end()
    else:
        await call.body(call.answer)


async def _delay(call: Call) -> None:
    await call.silence(float(call.argument))
    await _good(call)


async def _slow(call: Call) -> None:
    await call.head()
    if call.stream:
        for _ in range(10):
            await call.silence(float(call.argument) / 10)
            await call.part(_event(_chunk("")))
    else:
        await call.silence(float(call.argument))
    await call.part(call.answer)
    await call.end()


async def _pieces(call: Call) -> None:
    await call.head()
    data = call.answer
    for at in range(0, len(data), 7):
        await call.part(data[at : at + 7])
    await call.end()


async def _until_close(call: Call) -> None:
    await call.send(f"HTTP/1.1 200 OK\r\ncontent-type: {call.kind}\r\nconnection: close\r\n\r\n".encode() + call.answer)
    call.cut()


async def _early_hints(call: Call) -> None:
    for _ in range(3):
        await call.send(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
    await _good(call)


async def _compressed(call: Call) -> None:
    await call.head("200 OK", "", "content-encoding: gzip")
    await call.part(gzip.compress(call.answer))
    await call.end()


async def _hangs_after_done(call: Call) -> None:
    await call.head()
    await call.part(call.answer)
    if not call.stream:
        await call.end()
    await call.silence(3600)


async def _goes_on_after_done(call: Call) -> None:
    await call.head()
    await call.part(call.answer)
    if call.stream:
        await call.for_ever(b": x\n\n" * 500, 0.01)
    await call.end()


async def _burst(call: Call) -> None:
    if not call.stream:
        await _good(call)
        return
    await call.head()
    await call.part(_event(_chunk(call.word)) + b"".join(_event(_chunk(f" {n}")) for n in range(2000)) + _END)
    await call.end()


# Missing answers.


async def _never(call: Call) -> None:
    await call.silence(3600)


async def _head_alone(call: Call) -> None:
    await call.head()
    await call.silence(3600)


async def _silent(call: Call) -> None:
    await call.head()
    await call.part(call.some)
    await call.silence(3600)


async def _cut(call: Call) -> None:
    await call.head()
    await call.part(call.some)
    await asyncio.sleep(0.02)
    call.cut()


async def _cut_length(call: Call) -> None:
    await call.head(length=len(call.answer))
    await call.send(call.answer[: len(call.answer) // 2])
    await asyncio.sleep(0.02)
    call.cut()


async def _close_at_once(call: Call) -> None:
    call.cut()


async def _reset_at_once(call: Call) -> None:
    call.reset()


async def _reset(call: Call) -> None:
    await call.head()
    await call.part(call.some)
    await asyncio.sleep(0.02)
    call.reset()


async def _in_a_chunk(call: Call) -> None:
    await call.head()
    await call.send(b"fff\r\n" + call.some[:40])
    await asyncio.sleep(0.02)
    call.cut()


async def _bad_chunk(call: Call) -> None:
    await call.head()
    await call.send(b"zz\r\nhello\r\n")
    await call.silence(60)


async def _no_http(call: Call) -> None:
    await call.send(b"\x00\x01\x02 this is no HTTP\r\n\r\n")
    call.cut()


async def _html(call: Call) -> None:
    await call.body(b"<html><h1>Welcome</h1></html>", kind="text/html")


async def _empty(call: Call) -> None:
    await call.body(b"", kind=call.kind)


async def _null(call: Call) -> None:
    await call.body(b"null")


async def _no_json(call: Call) -> None:
    await call.body(b'{"choices": [{"mess')


async def _unfinished(call: Call) -> None:
    await call.head()
    await call.part(call.some)
    await call.end()


async def _error_inside(call: Call) -> None:
    inner = {"error": {"message": "inner", "code": 500, "type": "server_error"}}
    if call.stream:
        await call.head()
        await call.part(call.some + _event(inner))
        await call.end()
    else:
        await call.body(json.dumps(inner).encode())


async def _status(call: Call) -> None:
    status, _, retry = call.argument.partition("_")
    more = (f"retry-after: {retry}",) if retry else ()
    await call.body(
        b'{"error":{"message":"said no","type":"x","code":null}}', f"{status} Said", "application/json", *more
    )


async def _status_html(call: Call) -> None:
    await call.body(b"<html>" + b"x" * 5000, f"{call.argument} Said", "text/html")


async def _status_without_end(call: Call) -> None:
    await call.head(f"{call.argument} Said", "text/plain")
    await call.for_ever(b"y" * 16384, 0.01)


async def _status_in_silence(call: Call) -> None:
    await call.head(f"{call.argument} Said", "application/json")
    await call.part(b'{"error":')
    await call.silence(3600)


async def _redirect(call: Call) -> None:
    await call.head("302 Found", None, "location: http://169.254.169.254/", length=0)


async def _switching(call: Call) -> None:
    await call.send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello")
    await call.silence(10)


async def _hints_for_ever(call: Call) -> None:
    while True:
        await call.send(b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n")
        await asyncio.sleep(0.01)


# Endless answers. The server pauses between chunks, so that other programs get processor time.


def _endless(data: Callable[[Call], bytes], pause: float = 0.005) -> Callable[[Call], Awaitable[None]]:
    async def run(call: Call) -> None:
        await call.head("200 OK", "text/event-stream")
        await call.for_ever(data(call), pause)

    return run


def _odd(value: dict[str, Any]) -> dict[str, Any]:
    return {"id": "c", "choices": [value]}


_CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "x" * 2000}}
_LOGPROB = {"token": "x", "logprob": -1, "bytes": [1], "top_logprobs": []}


async def _json_without_end(call: Call) -> None:
    await call.head("200 OK", "application/json")
    await call.part(b'{"choices":[{"message":{"content":"')
    await call.for_ever(b"x" * 65536, 0.005)


async def _huge_line(call: Call) -> None:
    await call.head("200 OK", "text/event-stream")
    await call.part(b"data: ")
    for _ in range(160):
        await call.part(b"x" * 65536)
    await call.part(b"\n\n" + _END)
    await call.end()


async def _bomb(call: Call) -> None:
    packed = gzip.compress(b'{"choices":[{"message":{"content":"' + b"x" * (24 << 20) + b'"},"finish_reason":"stop"}]}')
    await call.body(packed, "200 OK", "application/json", "content-encoding: gzip")


# Answers with correct framing and strange content.


_STRANGE: dict[str, bytes] = {
    "nan": b'{"choices":[{"index":0,"delta":{"content":"a"}}],"usage":{"prompt_tokens":NaN}}',
    "surrogate": b'{"choices":[{"index":0,"delta":{"content":"a\\ud800b"}}]}',
    "utf8": b'{"choices":[{"index":0,"delta":{"content":"a\xff\xfe\xc3"}}]}',
    "nul": b'{"choices":[{"index":0,"delta":{"content":"a\\u0000b"}}]}',
    "deep": b'{"choices":[{"index":0,"delta":{"content":"a","x":' + b"[" * 50_000 + b"]" * 50_000 + b"}}]}",
    "list": b"[1,2,3]",
    "number": b"5",
    "choices": b'{"choices":{"0":1}}',
    "delta": b'{"choices":[{"index":0,"delta":null,"finish_reason":null}]}',
    "content": b'{"choices":[{"index":0,"delta":{"content":5}}]}',
    "finish": b'{"choices":[{"index":0,"delta":{},"finish_reason":17}]}',
    "index": b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":"zero","id":5,"function":null}]}}]}',
    "calls": json.dumps(
        _odd({"index": 0, "delta": {"tool_calls": [{**_CALL, "index": n} for n in range(500)]}})
    ).encode(),
}


async def _strange(call: Call) -> None:
    data = _STRANGE[call.argument]
    if call.stream:
        await call.head()
        await call.part(_event(_chunk("s ")) + _event(data) + _END)
        await call.end()
    else:
        await call.body(data.replace(b'"delta"', b'"message"'))


_RUN: dict[str, tuple[Callable[[Call], Awaitable[None]], str]] = {
    "good": (_good, GOOD),
    "delay": (_delay, GOOD),
    "slow": (_slow, GOOD),
    "pieces": (_pieces, GOOD),
    "until-close": (_until_close, ANY),
    "early-hints": (_early_hints, GOOD),
    "gzip": (_compressed, GOOD),
    "hangs-after-done": (_hangs_after_done, GOOD),
    "goes-on-after-done": (_goes_on_after_done, GOOD),
    "burst": (_burst, GOOD),
    "never": (_never, BAD),
    "head-alone": (_head_alone, BAD),
    "silent": (_silent, BAD),
    "cut": (_cut, BAD),
    "cut-length": (_cut_length, BAD),
    "close": (_close_at_once, BAD),
    "reset-at-once": (_reset_at_once, BAD),
    "reset": (_reset, BAD),
    "in-a-chunk": (_in_a_chunk, BAD),
    "bad-chunk": (_bad_chunk, BAD),
    "no-http": (_no_http, BAD),
    "html": (_html, BAD),
    "empty": (_empty, BAD),
    "null": (_null, BAD),
    "no-json": (_no_json, BAD),
    "unfinished": (_unfinished, BAD),
    "error-inside": (_error_inside, BAD),
    "status": (_status, BAD),
    "status-html": (_status_html, BAD),
    "status-without-end": (_status_without_end, BAD),
    "status-in-silence": (_status_in_silence, BAD),
    "redirect": (_redirect, BAD),
    "switching": (_switching, BAD),
    "hints-for-ever": (_hints_for_ever, BAD),
    "text-for-ever": (_endless(lambda _: _event(_chunk("x" * 1000)) * 16), BAD),
    "empty-for-ever": (_endless(lambda _: _event(_chunk("")) * 64), BAD),
    "comments-for-ever": (_endless(lambda _: b": x\n\n" * 500), BAD),
    "slow-comments-for-ever": (_endless(lambda _: b": x\n\n", 0.5), BAD),
    "reasoning-for-ever": (_endless(lambda _: _event(_chunk(reasoning_content="x" * 1000)) * 16), BAD),
    "arguments-for-ever": (_endless(lambda _: _event(_chunk(tool_calls=[_CALL])) * 8), BAD),
    "choices-for-ever": (
        _endless(lambda _: _event({"choices": [{"index": n, "delta": {"content": "x"}} for n in range(50)]})),
        BAD,
    ),
    "logprobs-for-ever": (
        _endless(
            lambda _: (
                _event(_odd({"index": 0, "delta": {"content": "x"}, "logprobs": {"content": [_LOGPROB] * 20}})) * 8
            )
        ),
        BAD,
    ),
    "json-for-ever": (_json_without_end, BAD),
    "huge-line": (_huge_line, BAD),
    "bomb": (_bomb, BAD),
    "strange": (_strange, ANY),
}

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "delay": ("0.2", "1"),
    "slow": ("0.5", "1.5"),
    "status": (
        *("400", "401", "403", "404", "402", "405", "409", "413", "415", "418", "422", "429", "429_1", "429_abc"),
        *("429_99999999999", "500", "501", "502", "503", "503_1", "504", "529", "599", "301", "204", "304"),
    ),
    "status-html": ("500", "404", "502"),
    "status-without-end": ("500", "429"),
    "status-in-silence": ("500", "401"),
    "strange": tuple(_STRANGE),
}
_STREAM_ALONE = frozenset(
    name for name in _RUN if name.endswith("-for-ever") and not name.startswith(("json", "hints"))
) | {"huge-line"}

KINDS: tuple[tuple[str, str, tuple[bool, ...]], ...] = tuple(
    (f"x:{name}" + (f":{argument}" if argument else ""), expected, (True,) if name in _STREAM_ALONE else (True, False))
    for name, (_, expected) in _RUN.items()
    for argument in _ARGUMENTS.get(name, ("",))
)
"""The models with a fault, each with the permitted outcome for a client, and whether the request may be a stream.
Outcomes are `good`, `any`, and `bad`, which is never a completed response."""


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            method, path, _ = line.decode("latin-1").split(" ", 2)
            headers: dict[str, str] = {}
            while (header := await reader.readline()) not in (b"\r\n", b""):
                name, _, value = header.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            body = await _body(reader, headers)
            await _answer(reader, writer, method, path, body)
    except (_Gone, OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass
    finally:
        writer.close()


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    parts = []
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
    return b"".join(parts)


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: bytes
) -> None:
    if method == "GET":
        listed = b'{"object":"list","data":[{"id":"ok","object":"model","created":1,"owned_by":"x"}]}'
        await Call(reader, writer, False, "", "").body(listed)
        return
    request = json.loads(body)
    prefix, _, name = str(request.get("model")).partition(":")
    kind, _, argument = name.partition(":")
    call = Call(reader, writer, bool(request.get("stream")), _word(request), argument)
    await (_RUN[kind][0] if prefix == "x" else _good)(call)


def _word(request: dict[str, Any]) -> str:
    for message in reversed(request.get("messages") or []):
        content = message.get("content")
        if isinstance(content, list):
            content = " ".join(str(part.get("text", "")) for part in content)
        if message.get("role") == "user" and isinstance(content, str) and "echo:" in content:
            return content.partition("echo:")[2].split()[0]
    return "hello"


async def _main() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, limit=1 << 22, backlog=1024)
    print(f"ready: http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    server.close()


def main() -> None:
    """Serve until standard input closes."""
    asyncio.run(_main())


if __name__ == "__main__":
    main()
