"""A whole process: which tool was left out of a request is in every form of its response, for as long as it is kept."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from antiphon.app.build import build
from antiphon.config.settings import load_settings
from antiphon.doors.http.server import HttpDoor
from tests.support.chat_server import ChatServer, answer, completion, json_answer, text_stream
from tests.support.waiting import until

ASK = {"model": "m", "input": "hi", "tools": [{"type": "web_search"}, {"type": "weather"}]}
NAMED = {"antiphon_ignored": "tools.web_search, tools.weather"}


@asynccontextmanager
async def _serving(folder: Path, **settings: Any) -> AsyncIterator[tuple[str, ChatServer, aiohttp.ClientSession]]:
    async with ChatServer() as chat, aiohttp.ClientSession() as session:
        given = {"data": folder / "data", "upstream": {"url": chat.base_url, "profile": "generic"}, **settings}
        app = await build(load_settings(given), door="http")
        door = HttpDoor(app.context)
        try:
            yield f"http://{await door.start('127.0.0.1:0')}/v1/responses", chat, session
        finally:
            await door.aclose()
            await app.aclose()


async def test_it_is_in_the_response_however_that_is_asked_for(tmp_path: Path) -> None:
    with capture_logs() as lines:
        async with _serving(tmp_path) as (url, chat, session):
            made = {}
            for form in ({}, {"stream": True}, {"background": True}):
                said = answer(parts=text_stream("hi")) if form.get("stream") else json_answer(completion("hi"))
                chat.script(said)
                async with session.post(url, json={**ASK, **form}) as got:
                    assert got.status == 200, await got.text()
                    text = await got.text()
                if form.get("stream"):
                    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
                    shown = [one["response"] for one in events if "response" in one]
                    assert all(one["metadata"] == NAMED for one in shown) and len(shown) >= 3
                    made["stream"] = shown[-1]["id"]
                else:
                    response = json.loads(text)
                    assert response["metadata"] == NAMED
                    made[response["status"]] = response["id"]
            assert len(made) == 3
            for response_id in made.values():

                async def kept(response_id: str = response_id) -> dict[str, Any]:
                    async with session.get(f"{url}/{response_id}") as got:
                        found: dict[str, Any] = await got.json()
                        return found

                while (response := await kept())["status"] != "completed":
                    assert response["status"] in ("queued", "in_progress"), response
                assert response["metadata"] == NAMED
    told = [line for line in lines if line["event"] == "response" and line["outcome"] == "completed"]
    assert len(told) == 3
    for line in told:
        assert sorted(line["ignored"]) == ["tools.weather", "tools.web_search"] and line["log_level"] == "warning"


async def test_a_known_tool_is_no_warning(tmp_path: Path) -> None:
    """Codex offers a web search with every request."""
    with capture_logs() as lines:
        async with _serving(tmp_path) as (url, chat, session):
            chat.script(json_answer(completion("hi")))
            async with session.post(url, json={**ASK, "tools": [{"type": "web_search"}]}) as got:
                assert got.status == 200
            await until(lambda: [line for line in lines if line["event"] == "response"])
    (line,) = [line for line in lines if line["event"] == "response"]
    assert (line["ignored"], line["log_level"]) == (("tools.web_search",), "info")


@pytest.mark.parametrize("form", [{}, {"stream": True}, {"background": True}])
async def test_it_is_refused_where_the_operator_wants_that(tmp_path: Path, form: dict[str, Any]) -> None:
    async with _serving(tmp_path, tools={"unavailable": "refuse"}) as (url, chat, session):
        async with session.post(url, json={**ASK, **form}) as got:
            error = (await got.json())["error"]
            assert (got.status, error["code"], error["param"]) == (400, "unsupported_tool", "tools[0].type")
            assert "'web_search.provider'" in error["message"]
        assert not chat.requests
        async with session.get(url.replace("/responses", "/antiphon/capabilities")) as got:
            tools = (await got.json())["tools"]
        assert tools["tools.image_generation"]["support"] == tools["any other tool"]["support"] == "rejected"
        assert tools["tools.function"]["support"] == "sent"
        assert tools["tools.function.output_schema"]["support"] == "ignored"


async def test_a_sandbox_that_did_not_start_is_named_in_the_answer_and_in_the_log(tmp_path: Path) -> None:
    python = tmp_path / "no-python"
    with capture_logs() as lines:
        async with _serving(tmp_path, code_interpreter={"sandbox": "local", "python": str(python)}) as (
            url,
            _,
            session,
        ):
            tool = {"type": "code_interpreter", "container": {"type": "auto"}}
            async with session.post(url, json={**ASK, "tools": [tool]}) as got:
                error = (await got.json())["error"]
                assert (got.status, error["code"]) == (400, "unsupported_tool")
    assert "the operator has enabled the tool, but its sandbox did not start" in error["message"]
    (line,) = [line for line in lines if line["event"] == "code_interpreter_unavailable"]
    assert str(python) in line["reason"]
