"""An endpoint picker and the model door: what the sidecar calls itself is picked too, by a whole `antiphon up`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.support.chat_server import ChatServer, Wait, answer, chunk, event, json_answer, text_stream
from tests.support.fake_picker import Abort, AbortInAnswer, Decision, FakePicker, Refuse, To
from tests.support.gateway import DEADLINE, Gateway, post, start_gateway
from tests.support.judge import check_stream, parse_sse

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ASK: dict[str, Any] = {"model": "demo-model", "input": "Rain?"}
SEARCH = {**ASK, "tools": [{"type": "web_search"}]}
_CALL = {
    "index": 0,
    "id": "call_1",
    "type": "function",
    "function": {"name": "web_search", "arguments": '{"query": "rain"}'},
}
_SEARCHES = [event(chunk({"tool_calls": [_CALL]})), event(chunk(finish_reason="tool_calls")), b"data: [DONE]\n\n"]
_FOUND = {
    "query": "x",
    "results": [{"url": "https://a.example", "title": "A", "content": "It rains."}],
    "infoboxes": [],
}


@dataclass
class Setup:
    gateway: Gateway
    chat: ChatServer
    picker: FakePicker

    async def ask(self, body: dict[str, Any]) -> tuple[int, Any]:
        got = await post(f"{self.gateway.base_url}/responses", body)
        return got.status, json.loads(got.body)

    async def ended(self, response_id: str) -> Any:
        """A background response, once it is over."""
        async with asyncio.timeout(DEADLINE), aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{self.gateway.base_url}/responses/{response_id}") as got:
                    value = await got.json()
                if value["status"] not in ("queued", "in_progress"):
                    return value
                await asyncio.sleep(0.02)


@asynccontextmanager
async def _up(folder: Path, mode: str, **more: Any) -> AsyncIterator[Setup]:
    async with ChatServer() as chat, ChatServer() as search, FakePicker(f"127.0.0.1:{chat.port}") as picker:
        search.default = lambda asked: json_answer(_FOUND)
        settings = {
            "mode": mode,
            "web_search": {"provider": "searxng", "url": search.url("").rstrip("/")},
            "envoy": {"endpoint_picker": {"tls": "off"}},
            **more,
        }
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        flags = ("--config", str(folder / "settings.yaml"), "--endpoint-picker", picker.address, "--auth", "none")
        gateway = await start_gateway("http://192.0.2.1:9/v1", folder / "data", *flags)
        try:
            yield Setup(gateway, chat, picker)
        finally:
            await gateway.stop()


@pytest.mark.parametrize("mode", ["auto", "drive"])
async def test_whatever_calls_the_model_is_picked(tmp_path: Path, mode: str) -> None:
    async with _up(tmp_path, mode) as setup:
        picks, chat = setup.picker.picks, setup.chat
        picks.clear()
        # The whole history is in what the picker sees.
        _, first = await setup.ask(ASK)
        status, _ = await setup.ask({**ASK, "input": "Still?", "previous_response_id": first["id"]})
        assert status == 200 and [one["content"] for one in picks[-1].json["messages"]] == ["Rain?", "Hello", "Still?"]
        # Both model calls of a tool turn.
        chat.script(answer(parts=_SEARCHES), answer(parts=text_stream("It ", "rains.")))
        streamed = await post(f"{setup.gateway.base_url}/responses", {**SEARCH, "stream": True})
        check_stream(parse_sse(streamed.body))
        assert [pick.json["messages"][-1]["role"] for pick in picks[2:]] == ["user", "tool"]
        # In the background.
        _, queued = await setup.ask({**ASK, "background": True})
        assert (await setup.ended(queued["id"]))["status"] == "completed"
        assert len(picks) == 5
        async with aiohttp.ClientSession() as session, session.get(f"{setup.gateway.base_url}/models") as got:
            assert got.status == 200 and [one["id"] for one in (await got.json())["data"]]
        assert picks[-1].headers[":path"] == "/v1/models"
        assert len(chat.requests) >= 6


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_what_goes_wrong_behind_the_model_door_is_told(tmp_path: Path, stream: bool) -> None:
    async with _up(tmp_path, "auto") as setup:
        base, refusal = setup.gateway.base_url, Refuse(429, b"saturated", (("retry-after", "7"),))
        chosen = To(setup.picker.endpoint)
        for decision, code in ((refusal, "rate_limit_exceeded"), (Abort(), "endpoint_picker_unavailable")):
            setup.chat.script(answer(parts=_SEARCHES))
            # The picker fails between the turns.
            setup.picker.script(chosen, decision)
            got = await post(f"{base}/responses", {**SEARCH, "stream": stream})
            if stream:
                last = check_stream(parse_sse(got.body))
                assert last["status"] == "failed" and last["error"]["code"] == code
            else:
                assert json.loads(got.body)["error"]["code"] == code, got
            line = await setup.gateway.log_line('"operation":"call_upstream"')
            assert json.loads(line)["code"] == code and json.loads(line)["cause"].startswith("endpoint picker: ")
            setup.gateway.log.clear()
        # In the background it waits for a picker that is away.
        setup.picker.script(Abort(), Abort())
        _, queued = await setup.ask({**ASK, "background": True})
        assert (await setup.ended(queued["id"]))["status"] == "completed"


def _chats(server: ChatServer) -> list[Any]:
    """What it was asked for; which models there are may have been asked too, once, when the gateway began."""
    return [one for one in server.requests if one.path != "/v1/models"]


async def test_another_upstream_is_asked_where_the_picker_has_none(tmp_path: Path) -> None:
    async with ChatServer() as spare:
        more = {
            "upstreams": {"spare": {"url": spare.base_url, "auth": "none"}},
            "models": [{"match": "*", "upstream": ["default", "spare"], "profile": "generic"}],
        }
        async with _up(tmp_path, "auto", **more) as setup:
            status, _ = await setup.ask(ASK)
            picked = [pick for pick in setup.picker.picks if pick.headers[":path"] != "/v1/models"]
            assert status == 200 and len(_chats(setup.chat)) == len(picked) == 1
            failures: list[Decision] = [Refuse(429, b"saturated"), Refuse(503), Abort(), To(None)]
            for number, decision in enumerate(failures, 1):
                setup.picker.script(decision)
                status, _ = await setup.ask(ASK)
                assert status == 200 and len(_chats(spare)) == number
            assert len(_chats(setup.chat)) == 1


@pytest.mark.parametrize("mode", ["relay", "drive"])
async def test_a_picker_that_ends_in_the_middle_of_an_answer(tmp_path: Path, mode: str) -> None:
    async with _up(tmp_path, mode) as setup:
        more, parts = asyncio.Event(), text_stream("Hel", "lo")
        setup.chat.script(answer(parts=[*parts[:2], Wait(more), *parts[2:]]))
        setup.picker.script(AbortInAnswer(setup.picker.endpoint or "", at=b'"lo"'))
        data = b""
        url = f"{setup.gateway.base_url}/responses"
        async with aiohttp.ClientSession() as session, session.post(url, json={**ASK, "stream": True}) as got:
            try:
                async for part in got.content.iter_any():
                    data += part
                    if b'"Hel"' in data:
                        more.set()
            except aiohttp.ClientPayloadError:
                assert mode == "relay"
        if mode == "drive":
            failed = check_stream(parse_sse(data))
            assert failed["status"] == "failed" and failed["error"]["code"] == "upstream_cut"
        assert b"response.completed" not in data
        assert "ext_proc_error" in await setup.gateway.log_line('"pick_failed"')
