"""Bytes that are no JSON object, sent to every route that takes a body: the client's fault, and never ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from antiphon.app.build import build
from antiphon.config.settings import load_settings
from antiphon.doors.http.server import HttpDoor
from tests.support.chat_server import Answer, ChatServer, Received, json_answer

BODIES = {
    "no UTF-8 in a value": b'{"model":"demo-model","name":"\xff","file_id":"\xff","query":"\xff","input":"\xff"}',
    "no UTF-8 in a name": b'{"\xff\xfe":1}',
    "half a surrogate": b'{"model":"demo-model","name":"\\ud800","file_id":"\\ud800","input":"\\udfff"}',
    "a list": b"[]",
    "null": b"null",
    "nothing but a quote": b'"',
    "deep": b'{"model":"demo-model","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep and open": b"[" * 100_000,
    "no JSON": b"\x00\x01\x02",
}
KINDS = ("application/json", "multipart/form-data; boundary=b", "text/plain", "application/json; charset=\xff")


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[tuple[str, list[tuple[str, str]]]]:
    async with ChatServer() as chat:
        well = chat.default

        def judge(request: Received) -> Answer:
            """A server that says what it thinks of what is passed on untouched."""
            try:
                json.loads(request.body.decode())["model"]
            except (ValueError, KeyError, TypeError, RecursionError):
                error = dict.fromkeys(("message", "type", "param", "code"), "no")
                return json_answer({"error": error}, 400)
            return well(request)

        chat.default = judge
        rules = [{"match": "alias", "model": "demo-model"}]
        settings = load_settings(
            {
                "data": tmp_path / "data",
                "upstream": {"url": chat.base_url, "auth": "none"},
                "background": {"workers": 0},
                "models": rules,
            }
        )
        app = await build(settings, door="http")
        door = HttpDoor(app.context)
        address = await door.start("127.0.0.1:0")
        routes = [
            (method, endpoint.pattern)
            for endpoint in app.context.router.endpoints
            for method in endpoint.methods
            if method in ("POST", "PUT", "PATCH")
        ]
        try:
            yield f"http://{address}", [("POST", "/v1/responses"), *routes]
        finally:
            await door.aclose()
            await app.aclose()


@pytest.mark.parametrize("body", BODIES)
async def test_every_route(door: tuple[str, list[tuple[str, str]]], body: str) -> None:
    url, routes = door
    assert len(routes) > 15
    async with aiohttp.ClientSession() as session:
        for method, pattern in routes:
            for kind in KINDS:
                where = f"{url}{pattern.replace('{}', 'x').replace('{*}', 'x')}"
                async with session.request(method, where, data=BODIES[body], headers={"content-type": kind}) as answer:
                    said = await answer.read()
                assert answer.status < 500, (method, pattern, kind, said)
                if answer.status >= 400:
                    assert set(json.loads(said)["error"]) - {"request_id"} == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "fields",
    [b'"previous_response_id":"\xff"', b'"stream_id":"\xff"', b'"generate":"\xff"', b'"\xff":1', b'"input":"\xff"'],
)
async def test_a_frame_that_is_no_utf_8(door: tuple[str, list[tuple[str, str]]], fields: bytes) -> None:
    """An error is a frame, and the next request is served."""
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{door[0]}/v1/responses") as socket:
        frame = b'{"type":"response.create","model":"demo-model","input":"Hi",' + fields + b"}"
        await socket.send_frame(frame, aiohttp.WSMsgType.TEXT)
        got = json.loads(await socket.receive_str(timeout=10))
        assert got["type"] == "error" and got["status"] == 400, got
        await socket.send_json({"type": "response.create", "model": "demo-model", "input": "Hi"})
        assert json.loads(await socket.receive_str(timeout=10))["type"] == "response.created"
