"""Requests framed to hide another one: the HTTP door refuses them, or answers one request and closes the connection.

Each row brings a second request behind or inside its first. A proxy that shares a connection among clients may see the
two borders elsewhere: what it takes for a body must never be answered, and nothing of one request may reach the next.
"""

from __future__ import annotations

import json

import pytest

from tests.support.http_door import RawAnswer, open_http_door

_BODY = json.dumps({"model": "demo-model", "input": "first"}).encode()
_CHUNKED = b"transfer-encoding: chunked\r\n"
_WEBSOCKET = (
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
_H2C = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"


def _request(
    extra: bytes = b"",
    body: bytes = _BODY,
    *,
    line: bytes = b"POST /v1/responses HTTP/1.1",
    length: bool = True,
    end: bytes = b"\r\n",
) -> bytes:
    sized = b"content-length: %d\r\n" % len(body) if length else b""
    return line + b"\r\nhost: x\r\ncontent-type: application/json\r\n" + sized + extra + end + body


def _sized(value: bytes) -> bytes:
    return _request(b"content-length:" + value + b"\r\n", length=False)


def _coded(value: bytes) -> bytes:
    return _request(b"transfer-encoding:" + value + b"\r\n", _chunk(_BODY) + b"0\r\n\r\n", length=False)


def _chunked(body: bytes, line: bytes = b"POST /v1/responses HTTP/1.1", extra: bytes = b"") -> bytes:
    return _request(_CHUNKED + extra, body, line=line, length=False)


def _chunk(data: bytes, size: bytes = b"%x\r\n") -> bytes:
    return (size % len(data) if b"%" in size else size) + data + b"\r\n"


_HIDDEN = _request(body=json.dumps({"model": "demo-model", "input": "hidden"}).encode())
_END = b"0\r\n\r\n"
_LENGTH = b"%d" % len(_BODY)
_SIZE = b"%x" % len(_BODY)

_REFUSED = {
    "length and coding": _request(_CHUNKED),
    "length and coding, the body chunked": _request(_CHUNKED, _chunk(_BODY) + _END),
    "coding before a length": _chunked(_END, extra=b"content-length: 4\r\n"),
    "the same length twice": _request(b"content-length: " + _LENGTH + b"\r\n"),
    "two lengths": _request(b"content-length: 5\r\n"),
    "two lengths of two cases": _request(b"CONTENT-LENGTH: 5\r\n"),
    "a space after content-length": _request(b"content-length : " + _LENGTH + b"\r\n", length=False),
    "a folded line": _request(b"x: a\r\n content-length: 3\r\n"),
    "a bare CR in a value": _request(b"x: a\rcontent-length: 3\r\n"),
    "a CR before the line's end": _request(b"x: a\r\r\n"),
    "a bare LF in the head": _request(b"x: a\ny: b\r\n"),
    "a NUL in a value": _request(b"x: a\0b\r\n"),
    "a NUL in a name": _request(b"x\0: b\r\n"),
    "a name with a space": _request(b"x y: b\r\n"),
    "no name": _request(b": b\r\n"),
    "no colon": _request(b"garbage\r\n"),
    "two hosts": _request(b"host: y\r\n"),
    "no length": _request(length=False),
    "a length of 0 before a body": _sized(b" 0"),
    "chunked twice": _request(_CHUNKED * 2, _chunk(_BODY) + _END, length=False),
    "chunked after identity": _request(
        b"transfer-encoding: identity\r\n" + _CHUNKED, _chunk(_BODY) + _END, length=False
    ),
    "HTTP/1.1x": _request(line=b"POST /v1/responses HTTP/1.1x"),
    "HTTP/1.9": _request(line=b"POST /v1/responses HTTP/1.9"),
    "a file's address": _request(line=b"POST file:///v1/responses HTTP/1.1"),
    "an authority": _request(line=b"POST x:80 HTTP/1.1"),
    "a tab in the first line": _request(line=b"POST\t/v1/responses HTTP/1.1"),
    "1 MB of one header": _request(b"x: " + b"a" * (1 << 20) + b"\r\n"),
    "1 MB of target": _request(line=b"POST /" + b"a" * (1 << 20) + b" HTTP/1.1"),
    "20,000 headers": _request(b"".join(b"x-%d: y\r\n" % number for number in range(20_000))),
    "one header 20,000 times": _request(b"x: y\r\n" * 20_000),
    "HTTP/2 without asking": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    **{
        f"length {value!r}": _sized(value)
        for value in (
            *(b" +41", b" -1", b" 0x29", b" 4_1", b" 41.0", b" 41 41", b" 1e2", b"", b" \xb2", b" \xa041"),
            *(b" " + _LENGTH + b", " + _LENGTH, b" " + b"9" * 30, b" 18446744073709551616", b" 18446744073709551657"),
        )
    },
    **{
        f"coding {value!r}": _coded(value)
        for value in (
            *(
                b" xchunked",
                b" identity",
                b" chunked, gzip",
                b" chunked, chunked",
                b" chunked, identity",
                b"",
                b" chunked,",
            ),
            *(b"\x0bchunked", b"\r\n chunked", b" chunked;q=1", b' "chunked"', b" chunked\0", " chun\u212aed".encode()),
        )
    },
    **{
        f"chunk {name}": _chunked(body)
        for name, body in {
            "of a negative size": b"-5\r\nhello\r\n" + _END,
            "of a size in C": _chunk(_BODY, b"0x" + _SIZE + b"\r\n") + _END,
            "of a size with a plus": _chunk(_BODY, b"+" + _SIZE + b"\r\n") + _END,
            "of a size with a line": _chunk(_BODY, b"2_9\r\n") + _END,
            "of more than 64 bits": _chunk(_BODY, b"1" + b"0" * 14 + _SIZE + b"\r\n") + _END,
            "of no size": _chunk(_BODY, b"\r\n") + _END,
            "after a space": _chunk(_BODY, b" " + _SIZE + b"\r\n") + _END,
            "before a space": _chunk(_BODY, _SIZE + b" \r\n") + _END,
            "with an LF": _SIZE + b"\n" + _BODY + b"\n0\n\n",
            "with an LF in its extension": _chunk(_BODY, _SIZE + b";a\nb\r\n") + _END,
            "with a CR in its extension": _chunk(_BODY, _SIZE + b";a\rb\r\n") + _END,
            "with an open quote": _chunk(_BODY, _SIZE + b';a="\r\n') + _END,
            "longer than it says": _SIZE + b"\r\n" + _BODY + b"XX" + _END,
            "at the end with an LF": _chunk(_BODY) + b"0\r\n\n",
            "at the end with a CR": _chunk(_BODY) + b"0\r\n\r",
            "before a length": _chunk(_BODY) + b"0\r\nx: y\r\ncontent-length: 9\r\n\r\n",
            "before a coding": _chunk(_BODY) + b"0\r\ntransfer-encoding: chunked\r\n\r\n",
            "before what is no header": _chunk(_BODY) + b"0\r\ngarbage\r\n\r\n",
            "before 20,000 trailers": _chunk(_BODY) + b"0\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        }.items()
    },
}


@pytest.mark.parametrize("name", _REFUSED)
async def test_a_request_without_certain_borders_is_refused_and_is_the_last(name: str) -> None:
    async with open_http_door() as door, door.client() as client:
        await client.send(_REFUSED[name] + _HIDDEN)
        got = await client.read()
        assert got.status == 400 and got.error["code"] in ("invalid_http", "invalid_body")
        assert await client.closed() and not door.chat.requests


_ALONE = {
    "chunked": (200, _chunked(_chunk(_BODY) + _END)),
    "chunked, with an extension": (200, _chunked(_chunk(_BODY, _SIZE + b";a=b\r\n") + _END)),
    "chunked, with an extension at the end": (200, _chunked(_chunk(_BODY) + b"0;a=b\r\n\r\n")),
    "chunked, with zeros": (200, _chunked(_chunk(_BODY, b"0" * 40 + _SIZE + b"\r\n") + _END)),
    "chunked, with a trailer": (200, _chunked(_chunk(_BODY) + b"0\r\nauthorization: Bearer other\r\n\r\n")),
    "chunked, in HTTP/1.0": (
        200,
        _chunked(_chunk(_BODY) + _END, b"POST /v1/responses HTTP/1.0", b"connection: keep-alive\r\n"),
    ),
    "chunked, where no body is read": (405, _chunked(_chunk(_HIDDEN) + _END, b"PATCH /v1/models HTTP/1.1")),
    "gzip, chunked": (200, _coded(b" gzip, chunked")),
    "an identity that is no coding": (200, _coded(b" identity, chunked")),
    "CONNECT": (400, b"CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n"),
    "CONNECT with a body": (
        400,
        b"CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\ncontent-length: %d\r\n\r\n" % len(_HIDDEN),
    ),
    "a WebSocket that is refused": (
        400,
        _request(_WEBSOCKET.replace(b"13", b"99"), b"", line=b"GET /v1/responses HTTP/1.1"),
    ),
    "a WebSocket elsewhere": (200, _request(_WEBSOCKET, b"", line=b"GET /health HTTP/1.1")),
    "a WebSocket by POST": (200, _request(_WEBSOCKET)),
    "a WebSocket in HTTP/1.0": (
        200,
        _request(b"connection: keep-alive, upgrade\r\n" + _WEBSOCKET[21:], b"", line=b"GET /v1/responses HTTP/1.0"),
    ),
    "HTTP/2 asked for": (200, _request(_H2C)),
    "TLS asked for": (200, _request(b"connection: upgrade\r\nupgrade: TLS/1.0\r\n")),
    "an unknown coding of the content": (415, _request(b"content-encoding: unknown\r\n")),
}


@pytest.mark.parametrize("name", _ALONE)
async def test_a_request_that_may_hide_another_is_the_last_of_its_connection(name: str) -> None:
    status, data = _ALONE[name]
    async with open_http_door() as door, door.client() as client:
        await client.send(data + _HIDDEN)
        got = await client.read()
        assert got.status == status
        # Without `keep-alive` an answer in HTTP/1.0 is the last.
        assert got.header("connection") == (None if "1.0" in name else "close")
        assert await client.closed()
        assert [request.json["messages"][0]["content"] for request in door.chat.requests if request.body] in (
            [],
            ["first"],
        )


_INSIDE = {
    "of a GET": _request(body=_HIDDEN, line=b"GET /v1/models HTTP/1.1"),
    "of a HEAD": _request(body=_HIDDEN, line=b"HEAD /health HTTP/1.1"),
    "of a DELETE": _request(body=_HIDDEN, line=b"DELETE /v1/responses/resp_x HTTP/1.1"),
    "of OPTIONS": _request(body=_HIDDEN, line=b"OPTIONS /v1/responses HTTP/1.1"),
    "of an unknown path": _request(body=_HIDDEN, line=b"POST /v1/nowhere HTTP/1.1"),
    "of a method that is not allowed": _request(body=_HIDDEN, line=b"POST /health HTTP/1.1"),
    "of an upload that is refused": _request(body=_HIDDEN, line=b"POST /v1/files HTTP/1.1"),
    "of a header that stands twice": _request(b"authorization: a\r\n" * 2, _HIDDEN),
    "of a compressed body that is none": _request(b"content-encoding: gzip\r\n", _HIDDEN),
}


@pytest.mark.parametrize("name", _INSIDE)
async def test_a_body_is_never_taken_for_a_request(name: str) -> None:
    async with open_http_door() as door, door.client() as client:
        await client.send(_INSIDE[name])
        got: RawAnswer = await client.read(bodiless=name == "of a HEAD")
        assert got.status != 101
        await client.send(_request(line=b"GET /health HTTP/1.1", body=b""))
        assert (await client.read()).json["status"] == "ok"
        assert not any(b"hidden" in request.body for request in door.chat.requests)
