"""One owner never takes so much of what a process has that others are refused: in every door, in the background."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import structlog

from antiphon.config.limits import LimitSettings
from antiphon.engine.running.workers import Pauses
from tests.integration.test_websocket import UNSTORED, connected
from tests.support.background_app import BackgroundApp, Processes, processes
from tests.support.chat_server import Wait, WaitGone, answer, event, text_stream
from tests.support.extproc_door import SSE, open_door, request_body
from tests.support.http_door import RawAnswer, RawClient, open_http_door, post_bytes
from tests.support.waiting import until

ASK = {"model": "demo-model", "input": "Hi"}
REQUESTS, BYTES = "limits.owner_requests", "limits.owner_bytes_in_flight"


def bearer(token: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}", **more}


def check(error: dict[str, Any], setting: str) -> None:
    assert error["type"] == error["code"] == "rate_limit_exceeded" and error["param"] is None
    assert f"'{setting}'" in error["message"] and "try again" in error["message"]


def check_answer(answer: RawAnswer, setting: str) -> None:
    assert (answer.status, answer.header("retry-after")) == (429, "1")
    check(answer.error, setting)


# The HTTP door


async def test_an_owner_takes_his_share_of_the_places_and_no_more() -> None:
    async with open_http_door(concurrent=3, owner_requests=2) as door, door.client() as one, door.client() as two:
        for client in (one, two):
            door.chat.script(answer(parts=[event("Hel"), WaitGone()]))
            await client.send(post_bytes({**ASK, "stream": True}, headers=bearer("greedy")))
            await client.head()
        with structlog.testing.capture_logs() as logs:
            for path in ("/v1/responses", "/v1/conversations", "/v1/chat/completions", "/v1/responses"):
                check_answer(await door.ask(post_bytes(ASK, path=path, headers=bearer("greedy"))), REQUESTS)
            # What was asked for in between is the other's: there is a place.
            assert (await door.ask(post_bytes(ASK, headers=bearer("other")))).status == 200
            await until(lambda: door.metric("antiphon_requests_refused_total", setting=REQUESTS) == 4)
            operation = "POST /v1/responses"
            assert door.metric("antiphon_requests_total", operation=operation, status="429", fault="client") == 2
        told = [line for line in logs if line["event"] == "requests_refused"]
        assert [(line["setting"], line["refused"]) for line in told] == [(REQUESTS, 1)]
        assert not [
            line for line in logs if line.get("status") == 429 and line["log_level"] != "debug" and line not in told
        ]
        one.leave()
        await until(lambda: door.context.admission.active == 1)
        assert (await door.ask(post_bytes(ASK, headers=bearer("greedy")))).status == 200
    assert door.context.admission.active == 0


async def test_an_owner_takes_his_share_of_the_bytes_and_no_more() -> None:
    async with open_http_door(bytes_in_flight=9_000, owner_bytes=5_000) as door, door.client() as slow:
        body = request_body("x" * 3_000)
        chunked = bearer("greedy", **{"transfer-encoding": "chunked"})
        head = post_bytes(headers={**chunked, "content-length": ""}, body=b"").replace(b"content-length: \r\n", b"")
        await slow.send(head + b"%x\r\n%b\r\n" % (len(body), body))
        await until(lambda: door.context.bodies.used == len(body))
        async with door.client() as second:
            # By its declared length, before it is read.
            await second.send(post_bytes(headers=bearer("greedy"), body=body)[: -len(body)])
            refused = await second.read()
        check_answer(refused, BYTES)
        assert refused.header("connection") == "close"
        assert (await door.ask(post_bytes(headers=bearer("other"), body=body))).status == 200
        await slow.send(b"0\r\n\r\n")
        assert (await slow.read()).status == 200
        await until(lambda: door.context.bodies.used == 0)
        assert door.context.bodies.owners == 0


async def test_requests_on_sockets_are_of_their_owner_s_share() -> None:
    gate = asyncio.Event()
    async with (
        open_http_door(owner_requests=1) as door,
        connected(door, headers=bearer("greedy")) as busy,
        connected(door, headers=bearer("greedy")) as second,
        connected(door, headers=bearer("other")) as other,
    ):
        door.chat.script(answer(parts=[event("Hel"), Wait(gate), *text_stream("lo")]))
        await busy.send(input="hi", **UNSTORED)
        await until(lambda: door.context.admission.active == 1)
        refused = await second.error(input="hi", **UNSTORED)
        assert refused["status"] == 429
        check({name: refused["error"][name] for name in ("type", "code", "param", "message")}, REQUESTS)
        await other.response(input="hi", **UNSTORED)
        gate.set()
        await busy.turn()
        await second.response(input="hi", **UNSTORED)


# Through Envoy


async def test_shares_hold_through_envoy(tmp_path: Path) -> None:
    async with open_door(tmp_path, owner_requests=2, owner_bytes=5_000) as door:
        greedy, other = (("authorization", "Bearer greedy"),), (("authorization", "Bearer other"),)
        large = request_body("x" * 3_000)
        first = door.stream()
        await first.request_headers(greedy)
        await first.request_body(large)
        await until(lambda: door.context.bodies.used == len(large))

        second = door.stream()
        await second.request_headers(greedy)
        await second.request_body(large, end=True)
        refused = await second.complete()
        assert refused.status == 429 and refused.header("retry-after") == "1"
        check(json.loads(refused.body)["error"], BYTES)

        third = door.stream()
        await third.request_headers(greedy)
        await until(lambda: door.context.admission.active == 2)
        fourth = door.stream()
        await fourth.request_headers(greedy)
        await fourth.request_body(b"{}", end=True)
        refused = await fourth.complete()
        assert refused.status == 429 and refused.header("retry-after") == "1"
        check(json.loads(refused.body)["error"], REQUESTS)

        fifth = door.stream()
        await fifth.request_headers(other)
        await fifth.request_body(large, end=True)
        await fifth.forwarded()
        await fifth.upstream(200, SSE, b"".join(text_stream("ok")))
        assert (await fifth.complete()).status == 200
        await first.request_body(b"", end=True)
        await first.forwarded()
        await first.upstream(200, SSE, b"".join(text_stream("ok")))
        assert (await first.complete()).status == 200
        await third.request_body(b"no JSON", end=True)
        assert (await third.complete()).status == 400
        await until(lambda: door.context.bodies.used == 0)
        assert await door.metric("antiphon_requests_refused_total", setting=BYTES) == 1
        assert await door.metric("antiphon_requests_refused_total", setting=REQUESTS) == 1


# In the background


async def queued(opened: Processes, *tokens: str, **limits: int) -> tuple[BackgroundApp, list[str]]:
    """One job for each of these owners, in this order, and a process that works on them from now on."""
    idle = await opened.start(workers=0)
    made = [str((await idle.create(token=token, input="x" * 1_200))["id"]) for token in tokens]
    working = await opened.start(limits=limits)
    working.app.workers.pauses = Pauses(full=0.02)
    return working, made


def completed(opened: Processes) -> set[str]:
    """Their ids, looked up behind everybody's back: an owner who has his share could not ask."""
    return {row[0] for row in opened.sql("SELECT id FROM responses WHERE status = 'completed'")}


@pytest.mark.parametrize(
    "limits",
    [{"owner_requests": 1}, {"request_body_bytes": 2_048, "bytes_in_flight": 20_000, "owner_bytes_in_flight": 2_048}],
    ids=["places", "bytes"],
)
async def test_an_owner_s_jobs_run_within_his_share_and_others_go_on(tmp_path: Path, limits: dict[str, int]) -> None:
    async with processes(tmp_path) as opened:
        gate = asyncio.Event()
        opened.chat.script(answer(parts=[event("Hel"), Wait(gate), *text_stream("lo")]))
        app, made = await queued(opened, "greedy", "greedy", "greedy", **limits)
        greedy, metrics = _owner(app, "greedy"), app.app.context.telemetry.metrics
        # One of them runs, the others found no room.
        await until(lambda: opened.chat.requests and b"antiphon_requests_refused_total{" in metrics.render())
        other = await app.create(token="other", input="x" * 500)
        await until(lambda: completed(opened) == {other["id"]})
        assert len(opened.chat.requests) == 2
        assert app.app.context.bodies.used_by(greedy) <= 2_048
        gate.set()
        await until(lambda: completed(opened) == {other["id"], *made})
        await until(lambda: app.app.context.bodies.used == app.app.context.admission.active == 0)


def _owner(app: BackgroundApp, token: str) -> str:
    return app.app.context.owners.resolve((("authorization", f"Bearer {token}"),)).owner


async def test_a_job_whose_history_finds_no_room_waits_for_it(tmp_path: Path) -> None:
    async with processes(tmp_path) as opened:
        app = await opened.start(workers=0)
        ask = {"model": "m", "input": "x" * 6_000}
        async with app.session.post(f"{app.url}/responses", json=ask, headers=bearer("one")) as got:
            before = (await got.json())["id"]
        working = await opened.start()
        working.app.workers.pauses = Pauses(full=0.02)
        bodies = working.app.context.bodies
        with bodies.hold("") as others:
            # Only now is there a job, so the worker cannot run it before the room is taken.
            others.add(bodies.limit - 5_000)
            made = await app.create(token="one", previous_response_id=before)
            metrics = working.app.context.telemetry.metrics
            await until(
                lambda: b'antiphon_requests_refused_total{setting="limits.bytes_in_flight"}' in metrics.render()
            )
            assert (await app.get(made["id"], "one"))["status"] in ("queued", "in_progress")
        assert (await app.ended(made["id"], "one"))["status"] == "completed"


async def test_a_job_that_waits_holds_nothing_and_nor_does_who_follows_it(tmp_path: Path) -> None:
    size = 8 << 20
    async with processes(tmp_path) as opened:
        app = await opened.start(workers=0)
        bodies, admission = app.app.context.bodies, app.app.context.admission
        made = await app.create(input="x" * 1_000)
        await until(lambda: bodies.used == admission.active == 0)
        assert (await app.get(made["id"]))["status"] == "queued"
        large = post_bytes({"model": "m", "input": "x" * size, "background": True, "stream": True})
        async with RawClient(app.url.removeprefix("http://").removesuffix("/v1")) as follower:
            tracemalloc.start()
            try:
                await follower.send(large)
                await follower.head()
                await until(lambda: admission.active == 1 and bodies.used == 0)
                # A thread that read the body may let go of it a little later.
                await until(lambda: gc.collect() >= 0 and tracemalloc.get_traced_memory()[0] < size // 2)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert peak > 2 * size
        await until(lambda: admission.active == 0)


# The settings


def test_the_shares_by_default_and_as_given() -> None:
    assert (LimitSettings().share_of_requests(10_000), LimitSettings().share_of_bytes) == (5_000, 256 << 20)
    small = LimitSettings(concurrent_requests=1, bytes_in_flight=64 << 20)
    # A share is never too small for a request that is allowed.
    assert (small.share_of_requests(small.concurrent_requests), small.share_of_bytes) == (1, 64 << 20)
    given = LimitSettings(owner_requests=0, owner_bytes_in_flight=0)
    assert (given.share_of_requests(100), given.share_of_bytes) == (0, 0)
    with pytest.raises(ValueError, match="owner_bytes_in_flight must be at least request_body_bytes, or 0"):
        LimitSettings(request_body_bytes=2_048, owner_bytes_in_flight=1_024)


async def test_one_owner_alone_has_no_share(tmp_path: Path) -> None:
    async with processes(tmp_path) as opened:
        single = await opened.start(owner="single", limits={"owner_requests": 1})
        several = await opened.start(limits={"owner_requests": 1})
        assert single.app.context.bodies.share == 0 and several.app.context.bodies.share == 256 << 20
        with single.app.context.admission.admit("single"), single.app.context.admission.admit("single"):
            assert single.app.context.admission.active == 2
