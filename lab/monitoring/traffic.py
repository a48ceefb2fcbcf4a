"""Starts the monitored gateway and its upstreams, and sends client requests to it.

Lives here: healthy and broken servers, and the jobs that use them. Not here: the expected metrics and alerts
(`run.py`).

Invariant: each job has a separate owner and ends by itself. A job ignores its answers unless its docstring states a
check, because the run tests the metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from lab.faults.gateway import Gateway as Processes
from tests.support.chat_server import (
    Answer,
    ChatServer,
    Raw,
    Received,
    Reset,
    Wait,
    WaitGone,
    answer,
    event,
    json_answer,
    never,
    text_stream,
)
from tests.support.gateway import Gateway, start_gateway
from tests.support.mcp_server import open_mcp_server
from tests.support.postgres import PostgresServer
from tests.support.strict_upstream import StrictUpstream

OWNER_REQUESTS = 8
_FLOOD = 60
_SLOW_SECONDS = 11.0
_HEAD_SECONDS = 13.0
_TOOL_SECONDS = 3.0
_DICE = {"type": "mcp", "server_label": "dice", "connector_id": "connector_dice", "require_approval": "never"}


@dataclass
class Place:
    """The running gateway with its upstreams and tools."""

    gateway: Gateway
    metrics: str
    search: ChatServer
    session: aiohttp.ClientSession
    vector_store: str = ""

    def workers(self) -> list[int]:
        """The process ids of the sidecars."""
        return Processes(self.gateway.process, self.gateway.origin, self.gateway.data).workers()

    async def ask(self, owner: str, model: str = "good", **fields: Any) -> dict[str, Any]:
        """Request one response as `owner`, and read it to its end. Returns the response."""
        body = {"model": model, "input": "hello", "store": False, **fields}
        async with self.call("POST", "/responses", owner, json=body) as got:
            if not fields.get("stream") and "json" in got.content_type:
                said: dict[str, Any] = await got.json()
                return said
            await got.read()
        return {}

    def call(self, method: str, path: str, owner: str, **more: Any) -> Any:
        headers = {"authorization": f"Bearer key-of-{owner}"}
        return self.session.request(method, self.gateway.base_url + path, headers=headers, **more)


Job = Callable[[Place], Awaitable[object]]


def _slow(_: Received) -> Answer:
    """Answer correctly, but only after a pause."""
    body = b"".join(text_stream("at", " last"))
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(body)
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(_SLOW_SECONDS, later.set)
    return Answer(parts=(Wait(later), Raw(head + body)), framing="none")


def _error(status: int, message: str) -> Callable[[Received], Answer]:
    said = {"error": {"message": message, "type": "x", "param": None, "code": None}}
    return lambda _: json_answer(said, status)


BROKEN: dict[str, Callable[[Received], Answer]] = {
    "failing": _error(500, "out of memory"),
    "wrong-key": _error(401, "Incorrect API key provided"),
    "limited": _error(429, "Rate limit reached"),
    "slow": _slow,
    "silent": lambda _: never(),
    "garbled": lambda _: answer(parts=[b'data: {"choices": [{"del\n\n', b"data: <html>\n\n"]),
    "cutting": lambda _: answer(parts=[event("a"), event("b"), Reset()]),
}
"""Broken upstreams by name, each with a different fault. One more upstream, `dead`, has an address at which no server
listens."""


def _found(_: Received) -> Answer:
    return json_answer(
        {"query": "x", "results": [{"url": "https://a.example/", "title": "A", "content": "Rain."}], "infoboxes": []}
    )


def break_search(place: Place) -> None:
    """Make web searches fail from now on."""
    place.search.default = _error(500, "no")


def mend_search(place: Place) -> None:
    """Make web searches succeed again."""
    place.search.default = _found


@asynccontextmanager
async def place(folder: Path) -> AsyncIterator[Place]:
    """Start upstreams, tools and a gateway with two workers on a separate PostgreSQL, because only PostgreSQL has all
    metrics."""
    async with AsyncExitStack() as stack:
        database = PostgresServer()
        stack.callback(database.close)
        good = StrictUpstream()
        await good.start()
        stack.push_async_callback(good.stop)
        upstreams = {"good": good.base_url, "dead": "http://127.0.0.1:9/v1"}
        holding = await stack.enter_async_context(ChatServer())
        holding.default = lambda _: answer(parts=[event("a"), WaitGone()])
        upstreams["holding"] = holding.base_url
        for name, responder in BROKEN.items():
            server = await stack.enter_async_context(ChatServer())
            server.default, upstreams[name] = responder, server.base_url
        search = await stack.enter_async_context(ChatServer())
        search.default = _found
        mcp = await stack.enter_async_context(open_mcp_server())
        settings = {
            "state": {"url": await database.new_database(empty=True)},
            "owner": {"key": "of owners " * 4},
            "sealing": {"keys": ["of seals " * 4]},
            "upstreams": {
                name: {"url": url, "api_key": "ours", "profile": "generic"} for name, url in upstreams.items()
            },
            "models": [{"match": name, "upstream": name} for name in upstreams],
            "prices": [{"model": "*", "input": 1, "output": 4}],
            "web_search": {"provider": "searxng", "url": search.url("").rstrip("/")},
            "fetch": {"allow_private": ["127.0.0.1"]},
            "mcp": {"connectors": {"connector_dice": {"url": mcp.url}}},
            "tools": {"seconds": _TOOL_SECONDS},
            "limits": {"owner_requests": OWNER_REQUESTS},
            "timeouts": {"connect": 2, "head": _HEAD_SECONDS},
        }
        config = folder / "settings.yaml"
        config.write_text(yaml.safe_dump(settings))
        gateway = await start_gateway(
            None, folder / "data", "--config", str(config), "--workers", "2",
            environ={"ANTIPHON_METRICS__LISTEN": "127.0.0.1:0"},
        )  # fmt: skip
        stack.push_async_callback(gateway.stop)
        listens = json.loads(await gateway.log_line('"metrics"'))["listen"]
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0, force_close=True)
            )
        )
        made = Place(gateway, listens, search, session)
        await _documents(made)
        yield made


async def _documents(place: Place) -> None:
    """Create a vector store with one file, and search it."""
    form = aiohttp.FormData()
    form.add_field("file", b"It rains in Bonn.", filename="rain.txt", content_type="text/plain")
    form.add_field("purpose", "assistants")
    async with place.call("POST", "/files", "reader", data=form) as got:
        file = (await got.json())["id"]
    async with place.call("POST", "/vector_stores", "reader", json={"name": "rain", "file_ids": [file]}) as got:
        place.vector_store = (await got.json())["id"]


# Jobs with valid requests, and with client mistakes: none of them may raise an alert.


async def _chain(place: Place) -> None:
    first = await place.ask("chain", store=True)
    await place.ask("chain", previous_response_id=first["id"], stream=True)
    async with place.call("GET", f"/responses/{first['id']}", "chain") as got:
        await got.read()
    async with place.call("DELETE", f"/responses/{first['id']}", "chain") as got:
        await got.read()


async def _background(place: Place) -> None:
    queued = await place.ask("background", background=True, store=True)
    while queued.get("status") in ("queued", "in_progress"):
        await asyncio.sleep(0.2)
        async with place.call("GET", f"/responses/{queued['id']}", "background") as got:
            queued = await got.json()


async def _socket(place: Place) -> None:
    headers = {"authorization": "Bearer key-of-socket"}
    async with place.session.ws_connect(place.gateway.base_url + "/responses", headers=headers) as socket:
        await socket.send_json({"type": "response.create", "model": "good", "input": "hello", "store": False})
        async for message in socket:
            if json.loads(message.data)["type"] in ("response.completed", "response.failed", "error"):
                break


async def _leave(place: Place) -> None:
    body = {"model": "holding", "input": "hello", "stream": True, "store": False}
    async with place.call("POST", "/responses", "leaver", json=body) as got:
        await got.content.readany()


async def _search(place: Place) -> None:
    query = {"query": "rain"}
    async with place.call("POST", f"/vector_stores/{place.vector_store}/search", "reader", json=query) as got:
        await got.read()


async def _chat(place: Place) -> None:
    body = {"model": "good", "messages": [{"role": "user", "content": "hello"}]}
    async with place.call("POST", "/chat/completions", "chat", json=body) as got:
        await got.read()


def _tool(owner: str, words: str, tool: dict[str, Any]) -> Job:
    return lambda place: place.ask(owner, input=f"use the tool {words}", tools=[tool])


_web = _tool("web", '{"query": "rain"}', {"type": "web_search"})
GOOD: tuple[Job, ...] = (
    lambda place: place.ask("stream", stream=True),
    lambda place: place.ask("json"),
    lambda place: place.ask("bad", temperature="hot"),
    lambda place: place.ask("bad", model="absent"),
    _chain, _background, _socket, _leave, _search, _chat, _web,
    _tool("dice", "roll", {**_DICE, "allowed_tools": ["roll"]}),
)  # fmt: skip


# Jobs that meet a fault.


async def _flood(place: Place) -> None:
    async def one() -> None:
        body = {"model": "holding", "input": "hello", "stream": True, "store": False}
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with asyncio.timeout(3), place.call("POST", "/responses", "flood", json=body) as got:
                await got.read()

    await asyncio.gather(*(one() for _ in range(_FLOOD)))


def _broken(owner: str, model: str, **fields: Any) -> Job:
    return lambda place: place.ask(owner, model=model, stream=True, **fields)


BAD: tuple[Job, ...] = (
    *(_broken(f"asker of {name}", name) for name in ("failing", "wrong-key", "limited", "dead", "garbled")),
    # The request has a hosted tool, so it is driven. In relay the sidecar cannot distinguish an upstream that breaks
    # off from a client that disconnects.
    _broken("asker of cutting", "cutting", tools=[{"type": "web_search"}]),
    *itertools.repeat(_broken("patient", "slow"), 4),
    *itertools.repeat(_broken("waiter", "silent"), 6),
    *itertools.repeat(_tool("hung", "wait", {**_DICE, "allowed_tools": ["wait"]}), 2),
    _flood,
)


async def keep(place: Place, jobs: tuple[Job, ...], pause: float, over: asyncio.Event) -> None:
    """Repeat each job, with a pause between two runs, until `over` is set. The jobs start at different times. Otherwise
    all of them could fall between two evaluations of a rule."""

    async def wait(seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await over.wait()

    async def again(job: Job, number: int) -> None:
        await wait(number * pause)
        while not over.is_set():
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, KeyError, ValueError):
                await job(place)
            await wait(pause)

    await asyncio.gather(*(again(job, number) for number, job in enumerate(jobs)))
