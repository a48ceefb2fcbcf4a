"""However slowly an upstream refuses or answers oddly, the client gets one whole answer, and the connection goes on.

Lives here: upstreams that fall silent for longer than the time of a keep-alive comment, anywhere in an answer that is
no event stream, asked through each door that calls the model itself. Not here: relay, whose calls Envoy makes
(`tests/integration/test_extproc_relay.py`).
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.chat_server import Answer, Step, Wait, answer, completion
from tests.support.effort import examples
from tests.support.extproc_door import open_door, request_body
from tests.support.http_door import open_http_door, post_bytes

_KEEPALIVE = 0.003
_SILENCE = 0.02
_STREAM: dict[str, Any] = {"model": "demo-model", "input": "Hi", "stream": True}
_ERROR = json.dumps({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}).encode()
_BODIES = {
    "application/json": (_ERROR, json.dumps(completion()).encode(), b'{"id":1}', b"{", b""),
    "text/html": (b"<html>down</html>", b""),
    "": (b"no", b""),
}


@st.composite
def _answers(draw: st.DrawFn) -> tuple[int, str, list[bytes | None]]:
    """A status, a type, and the body's pieces; None is a silence."""
    status = draw(st.sampled_from([200, 201, 400, 404, 429, 500, 503, 302]))
    kind = draw(st.sampled_from(sorted(_BODIES)))
    body = draw(st.sampled_from(_BODIES[kind]))
    at = draw(st.integers(0, len(body)))
    pieces: list[bytes | None] = [body[:at], None, body[at:]]
    return status, kind, pieces + ([None] if draw(st.booleans()) else [])


@contextmanager
def _scripted(status: int, kind: str, pieces: list[bytes | None]) -> Iterator[Answer]:
    """The answer, whose silences end by themselves: a slow machine makes them longer, which changes nothing."""
    timers: list[asyncio.TimerHandle] = []

    def silence() -> Wait:
        over = asyncio.Event()
        timers.append(asyncio.get_running_loop().call_later(_SILENCE * (len(timers) + 1), over.set))
        return Wait(over)

    steps: list[Step] = [silence() if piece is None else piece for piece in pieces if piece != b""]
    try:
        yield answer(status, [("content-type", kind)] if kind else [], steps)
    finally:
        for timer in timers:
            timer.cancel()


def _check_error(body: bytes) -> dict[str, Any]:
    error = json.loads(body)["error"]
    assert set(error) - {"request_id"} == {"message", "type", "param", "code"}
    found: dict[str, Any] = error
    return found


@settings(max_examples=examples(25), deadline=None)
@given(_answers())
async def test_the_http_door(scripted: tuple[int, str, list[bytes | None]]) -> None:
    async with open_http_door(keepalive=_KEEPALIVE) as door, door.client() as client:
        with _scripted(*scripted) as slow:
            door.chat.script(slow)
            await client.send(post_bytes(_STREAM))
            first = await client.read()
        assert first.whole and b": keep-alive" not in first.body
        if first.status == 200:
            assert first.events[-1]["type"] == "response.completed"
        else:
            assert _check_error(first.body)["message"]
            assert first.header("content-length") == str(len(first.body))
        # The same connection, and a stream that is one.
        await client.send(post_bytes(_STREAM))
        second = await client.read()
        assert second.status == 200 and second.events[-1]["type"] == "response.completed"


@settings(max_examples=examples(15), deadline=None)
@given(_answers())
async def test_drive(scripted: tuple[int, str, list[bytes | None]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_door(Path(folder), mode="drive", keepalive=_KEEPALIVE) as opened:
            with _scripted(*scripted) as slow:
                opened.chat.script(slow)
                stream = opened.stream()
                await stream.request(request_body(stream=True))
                client = await stream.complete()
            assert b": keep-alive" not in client.body
            if client.status == 200:
                assert b"event: response.completed\n" in client.body
            else:
                _check_error(client.body)
                assert client.header("content-length") == str(len(client.body))


@settings(max_examples=examples(15), deadline=None)
@given(_answers())
async def test_a_websocket(scripted: tuple[int, str, list[bytes | None]]) -> None:
    """The error has the code that it has over HTTP, and the next turn is served."""
    async with open_http_door(keepalive=_KEEPALIVE) as door:
        with _scripted(*scripted) as slow:
            door.chat.script(slow)
            over_http = await door.ask(post_bytes(_STREAM))
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{door.base_url}/responses") as socket:
            with _scripted(*scripted) as slow:
                door.chat.script(slow)
                last = await _turn(socket)
            if over_http.status == 200:
                assert last["type"] == "response.completed"
            else:
                assert (last["type"], last["status"]) == ("error", over_http.status)
                assert last["error"]["code"] == over_http.json["error"]["code"]
            assert (await _turn(socket))["type"] == "response.completed"


async def _turn(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    """Ask, and read to the turn's last event."""
    await socket.send_json({"type": "response.create", "model": "demo-model", "input": "Hi"})
    while True:
        event: dict[str, Any] = json.loads(await socket.receive_str(timeout=10))
        if event["type"] in ("response.completed", "response.failed", "response.incomplete", "error"):
            return event
