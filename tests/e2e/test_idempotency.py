"""`Idempotency-Key` through every kind of gateway: the same request is answered again and asks the model once."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from aiohttp import ClientSession

from tests.e2e.conftest import Setup
from tests.support.chat_server import Wait, answer, text_stream
from tests.support.gateway import post
from tests.support.judge import check_stream, parse_sse
from tests.support.waiting import until

ALICE = {"authorization": "Bearer alice"}

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_comes_again_is_answered_again(setup: Setup, stream: bool) -> None:
    setup.server.script(answer(parts=text_stream("on", "ce")))
    url = f"{setup.gateway.base_url}/responses"
    body = {"model": "m", "input": "hi", "stream": stream}
    headers = {"idempotency-key": str(uuid4()), "authorization": "Bearer alice"}
    first = await post(url, body, headers)
    again = await post(url, body, headers)
    assert (first.status, again.status) == (200, 200) and len(setup.server.requests) == 1
    assert "idempotent-replayed" not in first.headers and again.headers["idempotent-replayed"] == "true"
    if stream:
        check_stream(parse_sse(again.body))
        made, shown = (
            json.loads(line[6:])["response"]
            for each in (first, again)
            for line in each.body.splitlines()
            if b'"type":"response.completed"' in line
        )
        assert made == shown
    else:
        assert json.loads(first.body) == json.loads(again.body)
    other = await post(url, {**body, "input": "other"}, headers)
    assert (other.status, json.loads(other.body)["error"]["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_goes_on_without_its_client(setup: Setup, stream: bool) -> None:
    gate, parts = asyncio.Event(), text_stream("on", "ce")
    setup.server.script(answer(parts=[*parts[:2], Wait(gate), *parts[2:]]))
    url = f"{setup.gateway.base_url}/responses"
    body = {"model": "m", "input": "hi", "stream": stream}
    headers = {"idempotency-key": str(uuid4()), "authorization": "Bearer alice"}
    asked = len(setup.server.requests)
    leaving = asyncio.create_task(post(url, body, headers))
    await until(lambda: len(setup.server.requests) > asked)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    busy = await post(url, body, headers)
    assert (busy.status, json.loads(busy.body)["error"]["code"]) == (409, "idempotency_key_in_use")
    gate.set()
    async with asyncio.timeout(20):
        while (again := await post(url, body, headers)).status == 409:
            await asyncio.sleep(0.05)
    assert again.headers["idempotent-replayed"] == "true" and b"once" in again.body
    assert len(setup.server.requests) == asked + 1


@pytest.mark.parametrize("mode", [{}, {"stream": True}, {"background": True, "stream": True}])
async def test_a_replay_needs_nothing_that_the_request_names(setup: Setup, mode: dict[str, Any]) -> None:
    """A prompt is loaded before anything else is known of a request; this one is gone when the request comes again."""
    url = setup.gateway.base_url
    made = await post(f"{url}/prompts", {"input": [{"role": "user", "content": "hi"}]}, ALICE)
    prompt_id = json.loads(made.body)["id"]
    body = {"model": "m", "prompt": {"id": prompt_id}, **mode}
    headers = {"idempotency-key": str(uuid4()), **ALICE}
    first = await post(f"{url}/responses", body, headers)
    assert first.status == 200, first.body
    asked = len(setup.server.requests)
    async with ClientSession() as session, session.delete(f"{url}/prompts/{prompt_id}", headers=ALICE) as gone:
        assert gone.status == 200
    again = await post(f"{url}/responses", body, headers)
    assert (again.status, again.headers.get("idempotent-replayed")) == (200, "true"), again.body
    assert len(setup.server.requests) == asked
    if not mode:
        assert json.loads(again.body) == json.loads(first.body)
    elif "background" in mode:
        assert again.body == first.body
    assert (await post(f"{url}/responses", body, ALICE)).status in (400, 404)


async def test_a_vector_store_is_made_once(setup: Setup) -> None:
    url, headers = f"{setup.gateway.base_url}/vector_stores", {"idempotency-key": str(uuid4())}
    first, again = await post(url, {"name": "s"}, headers), await post(url, {"name": "s"}, headers)
    assert (first.status, again.headers.get("idempotent-replayed")) == (200, "true")
    assert json.loads(first.body)["id"] == json.loads(again.body)["id"]
    changed = await post(f"{url}/{json.loads(first.body)['id']}", {"name": "t"}, headers)
    assert (changed.status, changed.headers["antiphon-ignored"]) == (200, "idempotency-key")
