"""Background responses whose client brought a key: run without one where none is wanted, else refused or sealed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from antiphon.config.upstreams import AuthMode
from antiphon.engine.running.background import Keyless
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from tests.support.background_app import BackgroundApp, Processes, processes
from tests.support.chat_server import (
    Answer,
    ChatServer,
    Received,
    Wait,
    answer,
    completion,
    event,
    json_answer,
    never,
    text_stream,
)
from tests.support.state import at_rest

CANARY = "sk-CANARYxyzzy42"
BEARER = {"authorization": f"Bearer {CANARY}"}


@pytest.fixture
async def many(tmp_path: Path) -> AsyncIterator[Processes]:
    async with processes(tmp_path / "data") as opened:
        yield opened


def wants_a_key(request: Received) -> Answer:
    """A server that lets nobody in without the key."""
    if request.header("authorization") != BEARER["authorization"]:
        return json_answer({"error": {"message": "no key"}}, 401)
    if request.json.get("stream"):
        return answer(parts=text_stream("ok"))
    return json_answer(completion("ok"))


async def create(app: BackgroundApp, **fields: Any) -> tuple[int, Any]:
    body = {"model": "m", "input": "hi", "background": True, **fields}
    async with app.session.post(f"{app.url}/responses", json=body, headers=BEARER) as got:
        return got.status, await got.json()


async def ended(app: BackgroundApp, response_id: str) -> Any:
    async with asyncio.timeout(60):
        while True:
            async with app.session.get(f"{app.url}/responses/{response_id}", headers=BEARER) as got:
                value = await got.json()
            if value["status"] not in ("queued", "in_progress"):
                return value
            await asyncio.sleep(0.005)


async def test_a_server_that_wants_no_key_gets_none(many: Processes) -> None:
    app = await many.start(auth=AuthMode.PASSTHROUGH)
    for _ in range(2):
        status, made = await create(app)
        assert status == 200, made
        assert (await ended(app, made["id"]))["status"] == "completed"
    question, *calls = many.chat.requests
    # Asked once, with nothing of the client; and no call has the key.
    assert question.json == {"messages": [], "max_tokens": 1} and len(calls) == 2
    assert all(request.header("authorization") is None for request in many.chat.requests)
    assert not at_rest(many.data, (CANARY,))


async def test_a_conversation_goes_on_in_the_background(many: Processes) -> None:
    app = await many.start(auth=AuthMode.PASSTHROUGH)
    async with app.session.post(f"{app.url}/conversations", json={}, headers=BEARER) as got:
        conversation = (await got.json())["id"]
    for _ in range(2):
        status, made = await create(app, conversation=conversation)
        assert status == 200, made
        assert (await ended(app, made["id"]))["status"] == "completed"
    assert len(many.chat.requests[-1].json["messages"]) == 3


async def test_a_server_that_wants_a_key_is_a_400_that_names_the_setting(many: Processes) -> None:
    many.chat.default = wants_a_key
    app = await many.start(auth=AuthMode.PASSTHROUGH)
    for _ in range(2):
        status, body = await create(app)
        error = body["error"]
        assert (status, error["param"], error["code"]) == (400, "background", "unsupported_parameter")
        assert "background.client_credentials" in error["message"]
    assert len(many.chat.requests) == 1 and not at_rest(many.data, (CANARY,))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_sealed_key_is_used_and_gone_when_the_response_is_over(many: Processes, stream: bool) -> None:
    many.chat.default = wants_a_key
    app = await many.start(auth=AuthMode.PASSTHROUGH, client_credentials="seal")
    if stream:
        body = {"model": "m", "input": "hi", "background": True, "stream": True}
        async with app.session.post(f"{app.url}/responses", json=body, headers=BEARER) as got:
            assert b"response.completed" in await got.read()
    else:
        status, made = await create(app)
        assert status == 200 and (await ended(app, made["id"]))["status"] == "completed"
    assert many.chat.requests[-1].header("authorization") == BEARER["authorization"]
    assert many.sql("SELECT * FROM jobs") == [] and not at_rest(many.data, (CANARY,))


async def test_a_sealed_key_survives_a_process_and_goes_with_a_cancellation(many: Processes) -> None:
    gate = asyncio.Event()

    def slow(request: Received) -> Answer:
        if request.header("authorization") != BEARER["authorization"]:
            return json_answer({"error": {"message": "no key"}}, 401)
        return answer(parts=[event("one"), Wait(gate)])

    many.chat.default = slow
    app = await many.start(auth=AuthMode.PASSTHROUGH, client_credentials="seal")
    _, first = await create(app)
    _, second = await create(app)
    async with asyncio.timeout(60):
        while len(many.chat.requests) < 3:
            await asyncio.sleep(0.005)
    ((kept,), _) = many.sql("SELECT request FROM jobs")
    assert b'"sealed":"as1_' in bytes(kept) and not at_rest(many.data, (CANARY,))
    await app.kill()
    many.chat.default = wants_a_key
    other = await many.start(auth=AuthMode.PASSTHROUGH, client_credentials="seal", workers=1)
    async with other.session.post(f"{other.url}/responses/{second['id']}/cancel", headers=BEARER) as got:
        assert (await got.json())["status"] == "cancelled"
    many.expire_leases()
    assert (await ended(other, first["id"]))["status"] == "completed"
    assert many.chat.requests[-1].header("authorization") == BEARER["authorization"]
    assert many.sql("SELECT * FROM jobs") == [] and not at_rest(many.data, (CANARY,))
    gate.set()


# The question


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        *(([status], True) for status in (200, 400, 404, 405, 422)),
        *(([status], False) for status in (401, 402, 403)),
        *(([status], None) for status in (429, 502, 503)),
        ([500, 200], True),
        ([500, 401], False),
        ([500, 500], None),
    ],
)
async def test_what_an_answer_without_a_key_says(statuses: list[int], expected: bool | None) -> None:
    async with ChatServer() as chat:
        again = statuses if expected is None else []
        chat.script(*(json_answer({}, status) for status in (*statuses, *again)))
        upstream = HttpUpstream(UpstreamTarget(chat.base_url))
        time = 0.0
        keyless = Keyless(upstream, lambda: time)
        assert await keyless.ask("default") is expected
        asked = len(chat.requests)
        assert asked == len(statuses)
        # A clear answer is remembered for a while, and then asked for again.
        assert await keyless.ask("default") is expected
        assert len(chat.requests) == (2 * asked if expected is None else asked)
        time = 301.0
        chat.default = lambda _: json_answer({}, 401)
        assert await keyless.ask("default") is False
        await upstream.aclose()


async def test_a_server_that_does_not_answer_is_asked_again() -> None:
    async with ChatServer() as chat:
        chat.script(never())
        upstream = HttpUpstream(UpstreamTarget(chat.base_url))
        keyless = Keyless(upstream, seconds=0.05)
        assert await keyless.ask("default") is None
        assert await keyless.ask("default") is True
        await upstream.aclose()
