"""`store: false` through whole gateways: neither the data folder, the database nor the log holds what was said."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from tests.support.chat_server import ChatServer, answer, completion, json_answer, text_stream
from tests.support.gateway import post, start_gateway
from tests.support.state import at_rest

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

IN, OUT = "QUESTIONxyzzy", "ANSWERplugh"
ASK = {"model": "demo-model", "input": f"Say {IN}.", "instructions": f"Be {IN}.", "store": False}
_ARGUMENTS = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}


@pytest.mark.parametrize("door", _ARGUMENTS)
async def test_nothing_is_at_rest(door: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with ChatServer() as server:
        server.default = lambda call: (
            answer(parts=text_stream(OUT)) if call.json.get("stream") else json_answer(completion(OUT))
        )
        gateway = await start_gateway(server.base_url, data, *_ARGUMENTS[door])
        url = f"{gateway.base_url}/responses"
        for stream in (False, True):
            answered = await post(url, {**ASK, "stream": stream})
            assert answered.status == 200 and OUT.encode() in answered.body
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            # A chain of two turns, which the connection alone remembers.
            previous = None
            for _ in range(2):
                await socket.send_json({"type": "response.create", **ASK, "previous_response_id": previous})
                while (told := json.loads((await socket.receive()).data))["type"] != "response.completed":
                    assert told["type"] != "error", told
                previous = told["response"]["id"]
            async with session.get(f"{url}/{previous}") as got:
                assert got.status == 404
        assert len(server.requests) == 4 and IN in json.dumps(server.requests[-1].json)
        assert at_rest(data, (IN, OUT)) == set()
        # What is stored would be found.
        assert (await post(url, {**ASK, "store": True})).status == 200
        assert at_rest(data, (IN, OUT))
        assert await gateway.stop() == 0
    assert not [line for line in gateway.log if IN in line or OUT in line]
