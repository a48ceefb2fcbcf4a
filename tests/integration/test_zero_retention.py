"""`store: false` leaves nothing at rest: data folder and database are searched, byte by byte, for all there was."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.background_app import BackgroundApp, Processes, processes
from tests.support.chat_server import Wait, answer, chunk, completion, event, json_answer, text_stream
from tests.support.judge import parse_sse
from tests.support.metrics import value_of
from tests.support.state import at_rest

IN, OUT, THOUGHT, ERROR = "QUESTIONxyzzy", "ANSWERplugh", "THOUGHTfrotz", "TOLDnitfol"
_TEXTS = (IN, OUT, THOUGHT, ERROR)
_REASONING = chunk({"reasoning_content": f"I think {THOUGHT}"})
ASK: dict[str, Any] = {
    "model": "m",
    "instructions": f"Be {IN}.",
    "input": [{"role": "user", "content": f"Say {IN}."}],
    "metadata": {"about": IN},
    "tools": [{"type": "function", "name": "f", "description": IN, "parameters": {"type": "object"}}],
}


@pytest.fixture
async def many(tmp_path: Path) -> AsyncIterator[Processes]:
    async with processes(tmp_path / "data") as opened:
        yield opened


async def post(app: BackgroundApp, **more: Any) -> tuple[int, bytes]:
    async with app.session.post(f"{app.url}/responses", json={**ASK, **more}) as got:
        return got.status, await got.read()


def streamed() -> list[Any]:
    return [event(_REASONING), *text_stream(f"It is {OUT}.")]


async def answers_of_every_kind(many: Processes, app: BackgroundApp, **more: Any) -> None:
    """Whole, streamed, failed, refused, and left by their clients."""
    many.chat.script(
        json_answer(completion(OUT)),
        answer(parts=streamed()),
        json_answer({"error": {"message": ERROR}}, 400),
        answer(parts=[event(OUT), event({"error": {"message": ERROR}})]),
    )
    assert (await post(app, **more))[0] == 200
    status, body = await post(app, stream=True, include=["reasoning.encrypted_content"], **more)
    assert status == 200 and parse_sse(body)[-1]["type"] == "response.completed"
    assert (await post(app, **more))[0] == 400
    status, body = await post(app, stream=True, **more)
    assert status == 200 and parse_sse(body)[-1]["type"] == "response.failed"
    # A client that leaves in the middle.
    gone = asyncio.Event()
    many.chat.script(answer(parts=[event(OUT), Wait(gone)]))
    before = len(many.chat.requests)
    async with aiohttp.ClientSession() as session:
        got = await session.post(f"{app.url}/responses", json={**ASK, "stream": True, **more})
        assert OUT.encode() in await got.content.readuntil(f'"delta":"{OUT}"'.encode())
        got.close()
    async with asyncio.timeout(30):
        await many.chat.requests[before].gone.wait()


async def test_nothing_of_what_is_not_stored_is_at_rest(many: Processes, capsys: pytest.CaptureFixture[str]) -> None:
    app = await many.start()
    await answers_of_every_kind(many, app, store=False)
    _, listed = await app.ask()
    assert listed["data"] == []
    assert at_rest(many.data, _TEXTS) == set()
    many.opened.remove(app)
    await app.stop()
    # After the log was folded into the database as well.
    assert at_rest(many.data, _TEXTS) == set()
    logged = capsys.readouterr()
    assert not [text for text in _TEXTS if text in logged.out + logged.err]


@pytest.mark.parametrize("never", ("single", "*"))
async def test_of_some_owners_nothing_is_stored_whatever_they_ask_for(many: Processes, never: str) -> None:
    app = await many.start(owner="single", store_never=("h:other", never))
    await answers_of_every_kind(many, app, store=True)
    many.chat.script(json_answer(completion(OUT)))
    status, body = await post(app)
    made = json.loads(body)
    assert status == 200 and made["store"] is False
    async with app.session.get(f"{app.url}/responses/{made['id']}") as got:
        assert got.status == 404
    asked = len(many.chat.requests)
    status, body = await post(app, background=True)
    error = json.loads(body)["error"]
    assert status == 400 and error["param"] == "background" and "'owner.store_never'" in error["message"]
    assert len(many.chat.requests) == asked
    assert at_rest(many.data, _TEXTS) == set()


async def test_other_owners_store(many: Processes) -> None:
    app = await many.start(owner="single", store_never=("h:other",))
    many.chat.script(json_answer(completion(OUT)))
    assert json.loads((await post(app))[1])["store"] is True
    assert OUT in at_rest(many.data, _TEXTS)


async def test_the_search_would_find_it(many: Processes) -> None:
    app = await many.start()
    await answers_of_every_kind(many, app, store=True)
    assert at_rest(many.data, _TEXTS) == {IN, OUT, THOUGHT, ERROR}


async def test_what_is_not_stored_only_reads_its_conversation(many: Processes) -> None:
    app = await many.start()
    async with app.session.post(
        f"{app.url}/conversations", json={"items": [{"role": "user", "content": "Remember the tea."}]}
    ) as got:
        conversation = (await got.json())["id"]
    many.chat.script(json_answer(completion(OUT)))
    assert (await post(app, store=False, conversation=conversation))[0] == 200
    assert "Remember the tea." in json.dumps(many.chat.requests[0].json)
    async with app.session.get(f"{app.url}/conversations/{conversation}/items") as got:
        assert len((await got.json())["data"]) == 1
    assert at_rest(many.data, _TEXTS) == set()


async def test_a_chain_that_its_client_carries_keeps_the_models_thoughts(many: Processes) -> None:
    """Stateless: the client sends everything again, reasoning sealed, and the model sees its thought once more."""
    app = await many.start(upstream_profile="deepseek")
    many.chat.script(answer(parts=streamed()), answer(parts=text_stream("ok")))
    status, body = await post(app, stream=True, store=False, include=["reasoning.encrypted_content"])
    output = parse_sse(body)[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message"]
    sealed = output[0]["encrypted_content"]
    assert THOUGHT not in sealed
    carried = [{**output[0], "content": [], "summary": []}, output[1]]
    status, body = await post(
        app, stream=True, store=False, input=[*ASK["input"], *carried, {"role": "user", "content": "And?"}]
    )
    assert status == 200
    assert THOUGHT in json.dumps(many.chat.requests[-1].json)
    assert at_rest(many.data, _TEXTS) == set()
    # Nobody else can open it.
    async with app.session.post(
        f"{app.url}/responses",
        json={**ASK, "input": [*carried, {"role": "user", "content": "And?"}]},
        headers={"authorization": "Bearer sk-stranger"},
    ) as got:
        assert got.status == 400 and (await got.json())["error"]["code"] == "invalid_encrypted_content"
    counted = app.app.context.telemetry.metrics.render().decode()
    assert value_of(counted, "antiphon_sealed_content_refused_total") == 1
