"""The long run of faults notices what it is there for: a gateway that lies, hangs, loses or breaks is found out."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from lab.faults.clients import Clients, Ledger
from lab.faults.run import Door, _print, growth
from lab.faults.upstream import KINDS

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def against(handler: Handler, **options: Any) -> AsyncIterator[Clients]:
    """Clients of a gateway that does what `handler` says, whatever the path."""
    server = web.Server(handler)
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    clients = Clients(lambda: f"http://127.0.0.1:{runner.addresses[0][1]}", Ledger(), 1, **options)
    try:
        yield clients
    finally:
        await clients.aclose()
        await runner.cleanup()


def _response(text: str, status: str = "completed") -> dict[str, Any]:
    message = {"type": "message", "content": [{"type": "output_text", "text": text}]}
    return {"id": "resp_1", "status": status, "error": None, "output": [message]}


async def _always_completed(request: web.BaseRequest) -> web.StreamResponse:
    return web.json_response(_response("made up"))


async def test_a_wrong_success_is_noticed() -> None:
    async with against(_always_completed) as clients:
        clients.kinds = (("x:cut", "bad", (False,)),)
        await clients.broken_upstreams(random.Random(1))
        clients.kinds = (("x:good", "good", (False,)),)
        await clients.broken_upstreams(random.Random(1))
        assert len(clients.ledger.wrong) == 2 and "x:cut" in clients.ledger.wrong[0]


async def test_an_error_of_our_own_is_noticed() -> None:
    async def broken(request: web.BaseRequest) -> web.StreamResponse:
        error = {"message": "The server had an error.", "type": "server_error", "param": None, "code": None}
        return web.json_response({"error": error}, status=500)

    async with against(broken) as clients:
        assert (await clients.ask("ok", stream=False, word="w")).how == "error"
        assert len(clients.ledger.own) == 1


async def test_a_stream_that_only_looks_whole_is_noticed() -> None:
    async def half(request: web.BaseRequest) -> web.StreamResponse:
        event = {"type": "response.created", "sequence_number": 0, "response": _response("", "in_progress")}
        return web.Response(body=b"data: " + json.dumps(event).encode() + b"\n\n", content_type="text/event-stream")

    async with against(half) as clients:
        assert (await clients.ask("ok", stream=True, word="w")).how == "cut"
        assert len(clients.ledger.wrong) == 1


async def test_silence_is_noticed() -> None:
    over = asyncio.Event()

    async def silent(request: web.BaseRequest) -> web.StreamResponse:
        await over.wait()
        return web.Response()

    async with against(silent, hung_after=0.05) as clients:
        assert (await clients.ask("ok", stream=True, word="w")).how == "hung"
        assert len(clients.ledger.hung) == 1
        over.set()


async def test_a_lost_turn_and_a_question_that_stands_twice_are_noticed() -> None:
    async def forgetful(request: web.BaseRequest) -> web.StreamResponse:
        if request.path.endswith("/items"):
            items = [{"content": "echo:one"}, {"content": "echo:one"}]
            return web.json_response({"data": items})
        if request.path.endswith("resp_1"):
            return web.json_response({"error": {}}, status=404)
        return web.json_response(_response("two", "failed"))

    async with against(forgetful) as clients:
        ledger = clients.ledger
        ledger.turns["resp_1"] = "one"
        ledger.jobs["resp_2"] = "two"
        ledger.conversations["conv_1"] += ["one", "missing"]
        await clients.check()
        assert len(ledger.lost) == 3 and len(ledger.wrong) == 1


def test_every_count_that_is_not_zero_makes_the_run_fail(capsys: pytest.CaptureFixture[str]) -> None:
    assert _print([Door("http")], 1.0)
    for name in Door("http").counts:
        door = Door("http")
        door.counts[name].append("something")
        assert not _print([door], 1.0)
        assert f"WRONG {name}: something" in capsys.readouterr().out


def test_there_are_kinds_of_every_sort() -> None:
    assert {expected for _, expected, _ in KINDS} == {"good", "bad", "any"} and len(KINDS) > 80


def test_a_leak_goes_on_and_a_peak_does_not() -> None:
    assert growth([60, 70, 80, 90]) == 10
    assert growth([60, 100, 70, 75]) < 0
    assert growth([60, 61, 150, 62]) == 1
    assert growth([60]) == 0
