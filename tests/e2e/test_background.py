"""Background responses in every door: each endpoint, the official client, and processes that are killed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from antiphon.engine.ports.jobs import split_events
from tests.e2e.conftest import Setup
from tests.support.chat_server import ChatServer, Wait, answer, event, text_stream
from tests.support.gateway import Gateway, start_gateway
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

ASK: dict[str, Any] = {"model": "demo-model", "input": "hi", "background": True}
STREAM = {**ASK, "stream": True}
_ARGUMENTS = {"envoy": (), "http": ("--door", "http")}
# Workers that are killed are noticed after a second.
_QUICK = {"ANTIPHON_BACKGROUND__LEASE": "1", "ANTIPHON_UPSTREAM__AUTH": "none"}


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as made:
        yield made


class Client:
    """A few requests, with their answers checked for what holds always."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str) -> None:
        self._session = session
        self._url = f"{base_url}/responses"

    async def ask(self, path: str = "", method: str = "GET", body: Any = None) -> tuple[int, Any]:
        async with self._session.request(method, self._url + path, json=body) as got:
            assert got.content_type == "application/json" and "x-request-id" in got.headers
            return got.status, await got.json()

    async def stream(self, path: str = "", body: Any = None) -> bytes:
        method = "GET" if body is None else "POST"
        async with self._session.request(method, self._url + path, json=body) as got:
            assert (got.status, got.content_type) == (200, "text/event-stream"), await got.text()
            return b"".join([part async for part in got.content.iter_any()])

    async def begun(self, text: bytes, body: Any = STREAM) -> str:
        """Create a streamed response, read until this text has come, and leave; its id."""
        async with self._session.post(self._url, json=body) as got:
            data = b""
            async with asyncio.timeout(60):
                while text not in data:
                    part = await got.content.readany()
                    assert part, data
                    data += part
        found: str = parse_first(data)["response"]["id"]
        return found

    async def ended(self, response_id: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while True:
                try:
                    status, value = await self.ask(f"/{response_id}")
                except (aiohttp.ClientError, AssertionError):
                    status, value = 0, {}  # nobody is there for a moment
                if status == 200 and value["status"] not in ("queued", "in_progress"):
                    check_response(value)
                    found: dict[str, Any] = value
                    return found
                await asyncio.sleep(0.01)


def parse_first(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(data.split(b"\n")[1].removeprefix(b"data: "))
    return found


@pytest_asyncio.fixture(loop_scope="session")
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as made:
        yield made


# Every door


async def test_every_endpoint(setup: Setup, session: aiohttp.ClientSession) -> None:
    client = Client(session, setup.gateway.base_url)
    status, queued = await client.ask("", "POST", ASK)
    assert (status, queued["status"], queued["output"]) == (200, "queued", [])
    check_response(queued)
    done = await client.ended(queued["id"])
    assert (done["status"], done["output"][0]["content"][0]["text"]) == ("completed", "Hello")
    assert await client.ask(f"/{queued['id']}/cancel", "POST") == (200, done)
    status, refused = await client.ask(f"/{queued['id']}?stream=true")
    assert (status, refused["error"]["param"]) == (400, "stream")

    whole = await client.stream("", STREAM)
    final = check_stream(parse_sse(whole))
    assert await client.ask(f"/{final['id']}") == (200, final)
    parts = split_events(whole)
    for number in (None, 0, 4, 10_000):
        after = "" if number is None else f"&starting_after={number}"
        rest = b"".join(parts[0 if number is None else min(number + 1, len(parts) - 1) :])
        assert await client.stream(f"/{final['id']}?stream=true{after}") == rest
    # A page of the newest, the other tests' responses left aside.
    status, listed = await client.ask("?limit=2")
    assert status == 200 and [one["id"] for one in listed["data"]] == [final["id"], done["id"]]
    assert listed["data"] == [final, done]

    gate = asyncio.Event()
    setup.server.script(answer(parts=[event("Hel"), Wait(gate), *text_stream("lo")]))
    running = await client.begun(b'"delta":"Hel"')
    async with asyncio.TaskGroup() as group:
        following = group.create_task(client.stream(f"/{running}?stream=true&starting_after=3"))
        status, cancelled = await client.ask(f"/{running}/cancel", "POST")
        assert (status, cancelled["status"]) == (200, "cancelled")
    events = parse_sse(following.result())
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.failed", "cancelled")
    async with asyncio.timeout(60):
        await setup.server.requests[-1].gone.wait()
    assert (await client.ask(f"/{running}"))[1] == cancelled

    status, deleted = await client.ask(f"/{running}", "DELETE")
    assert (status, deleted["deleted"]) == (200, True)
    for path, method in (("", "GET"), ("/cancel", "POST"), ("?stream=true", "GET")):
        status, missing = await client.ask(f"/{running}{path}", method)
        assert (status, missing["error"]["type"]) == (404, "invalid_request_error")


async def test_wrong_requests(setup: Setup, session: aiohttp.ClientSession) -> None:
    client = Client(session, setup.gateway.base_url)
    for wrong, param in (({"store": False}, "background"), ({"temperature": 9}, "temperature")):
        status, refused = await client.ask("", "POST", {**STREAM, **wrong})
        assert (status, refused["error"]["param"]) == (400, param)
    for number in ("-1", "x"):
        status, refused = await client.ask(f"/resp_{'0' * 48}?stream=true&starting_after={number}")
        assert (status, refused["error"]["param"]) == (400, "starting_after")


# The official client


@pytest.mark.parametrize("door", _ARGUMENTS)
async def test_the_openai_client(door: str, server: ChatServer, tmp_path: Path) -> None:
    gateway = await start_gateway(server.base_url, tmp_path, *_ARGUMENTS[door], environ=_QUICK)
    async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key="sk-test", max_retries=0) as client:
        made = await client.responses.create(model="m", input="hi", background=True)
        assert made.status == "queued" and made.background
        async with asyncio.timeout(60):
            while made.status in ("queued", "in_progress"):
                made = await client.responses.retrieve(made.id)
        assert made.status == "completed" and made.output_text == "Hello"
        assert (await client.responses.cancel(made.id)).status == "completed"

        gate = asyncio.Event()
        server.script(answer(parts=[event("Hel"), Wait(gate), *text_stream("lo")]))
        seen = []
        response_id = ""
        async with await client.responses.create(model="m", input="hi", background=True, stream=True) as stream:
            async for one in stream:
                seen.append(one)
                if one.type == "response.created":
                    response_id = one.response.id
                if one.type == "response.output_text.delta":
                    break
        gate.set()
        last = seen[-1].sequence_number
        async with await client.responses.retrieve(response_id, stream=True, starting_after=last) as rest:
            seen += [one async for one in rest]
        assert [one.sequence_number for one in seen] == list(range(len(seen)))
        assert seen[-1].type == "response.completed" and seen[-1].response.output_text == "Hello"
        # The SDK reads from the beginning and shows what is new.
        async with client.responses.stream(response_id=response_id, starting_after=last) as resumed:
            shown = [one async for one in resumed]
            final = await resumed.get_final_response()
        assert final.output_text == "Hello" and shown[0].sequence_number == last + 1

        server.script(answer(parts=[event("Hel"), Wait(asyncio.Event())]))
        async with client.responses.stream(model="m", input="hi", background=True) as running:
            async for one in running:
                if one.type == "response.created":
                    response_id = one.response.id
                if one.type == "response.output_text.delta":
                    break
            cancelled = await client.responses.cancel(response_id)
            assert cancelled.status == "cancelled"
            kinds = [one.type async for one in running]
        assert kinds[-1] == "response.failed"
        with pytest.raises(openai.NotFoundError):
            await client.responses.cancel("resp_" + "0" * 48)
        plain = await client.responses.create(model="m", input="hi")
        with pytest.raises(openai.BadRequestError, match="synchronous"):
            await client.responses.cancel(plain.id)
    assert await gateway.stop() == 0


# Processes that are killed


def workers_of(gateway: Gateway) -> list[int]:
    """The processes of the gateway that run our code."""
    found = []
    for task in Path(f"/proc/{gateway.process.pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            if "-m\0antiphon" in Path(f"/proc/{child}/cmdline").read_text():
                found.append(int(child))
    return found


@pytest.mark.parametrize("door", _ARGUMENTS)
async def test_kill_9_of_everything(
    door: str, server: ChatServer, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """The whole gateway dies in the middle of two responses; the next one on the same folder completes them."""
    gateway = await start_gateway(server.base_url, tmp_path, *_ARGUMENTS[door], environ=_QUICK)
    client = Client(session, gateway.base_url)
    server.script(*[answer(parts=[event("Hel"), Wait(asyncio.Event())])] * 2)
    streamed = await client.begun(b'"delta":"Hel"')
    _, polled = await client.ask("", "POST", ASK)
    await until(lambda: len(server.requests) == 2)
    for pid in (*workers_of(gateway), gateway.process.pid):
        os.kill(pid, signal.SIGKILL)
    await gateway.process.wait()
    server.script(*[answer(parts=text_stream("Again"))] * 2)
    gateway = await start_gateway(server.base_url, tmp_path, *_ARGUMENTS[door], environ=_QUICK)
    client = Client(session, gateway.base_url)
    for response_id in (streamed, polled["id"]):
        done = await client.ended(response_id)
        assert (done["status"], done["output"][0]["content"][0]["text"]) == ("completed", "Again")
    events = parse_sse(await client.stream(f"/{streamed}?stream=true"))
    assert await client.ask(f"/{streamed}") == (200, events[-1]["response"])
    assert await gateway.stop() == 0


async def test_a_stop_gives_a_job_back_before_the_drain_is_over(
    server: ChatServer, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """And not ten seconds later, when the door has waited for it in vain."""
    server.script(answer(parts=[event("Hel"), Wait(asyncio.Event())]))
    gateway = await start_gateway(server.base_url, tmp_path, environ={**_QUICK, "ANTIPHON_TIMEOUTS__DRAIN": "4"})
    response_id = await Client(session, gateway.base_url).begun(b'"delta":"Hel"')
    await gateway.stop()
    lines = [json.loads(line) for line in gateway.log if line.startswith('{"')]
    drained = next(line for line in lines if line["message"] == "draining" and "process" in line)
    (given_back,) = [line for line in lines if line["message"] == "response" and line.get("door") == "background"]
    assert (_at(given_back) - _at(drained)).total_seconds() < 4 + 8
    gateway = await start_gateway(server.base_url, tmp_path, environ=_QUICK)
    assert (await Client(session, gateway.base_url).ended(response_id))["status"] == "completed"
    await gateway.stop()


def _at(line: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(line["timestamp"])


@pytest.mark.parametrize("policy", ["retry", "fail"])
async def test_kill_9_of_the_process_that_runs_it(
    policy: str, server: ChatServer, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Another process on the same folder takes it up, or says that it failed; who follows it there sees its end."""
    environ = {**_QUICK, "ANTIPHON_BACKGROUND__ON_RESTART": policy}
    first = await start_gateway(server.base_url, tmp_path, "--door", "http", environ=environ)
    server.script(answer(parts=[event("Hel"), Wait(asyncio.Event())]))
    response_id = await Client(session, first.base_url).begun(b'"delta":"Hel"')
    # A new second process, so that it is told which one runs the response.
    second = await start_gateway(server.base_url, tmp_path, "--door", "http", environ=environ)
    client = Client(session, second.base_url)
    following = asyncio.ensure_future(client.stream(f"/{response_id}?stream=true&starting_after=2"))
    server.script(answer(parts=text_stream("Again")))
    for pid in (*workers_of(first), first.process.pid):
        os.kill(pid, signal.SIGKILL)
    await first.process.wait()
    last = parse_sse(await following)[-1]
    assert await client.ask(f"/{response_id}") == (200, last["response"])
    if policy == "retry":
        assert last["type"] == "response.completed"
        assert last["response"]["output"][0]["content"][0]["text"] == "Again"
    else:
        assert last["type"] == "response.failed" and "stopped" in last["response"]["error"]["message"]
    assert await second.stop() == 0


@pytest.mark.parametrize("door", _ARGUMENTS)
async def test_an_upstream_that_is_not_there_yet(
    door: str, tmp_path: Path, session: aiohttp.ClientSession, unused_tcp_port: int
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}/v1"
    gateway = await start_gateway(url, tmp_path, *_ARGUMENTS[door], environ=_QUICK)
    client = Client(session, gateway.base_url)
    _, queued = await client.ask("", "POST", ASK)
    async with asyncio.timeout(60):
        while (await client.ask(f"/{queued['id']}"))[1]["status"] != "in_progress":
            await asyncio.sleep(0.01)
    async with ChatServer(port=unused_tcp_port):
        assert (await client.ended(queued["id"]))["status"] == "completed"
    assert await gateway.stop() == 0


# Two processes


async def test_whoever_answers_two_processes_are_one(
    server: ChatServer, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """Thirty streams through two sidecars: every one can be resumed and cancelled, whichever process is asked."""
    gateway = await start_gateway(server.base_url, tmp_path, "--workers", "2", environ=_QUICK)
    client = Client(session, gateway.base_url)
    gate = asyncio.Event()
    server.script(*[answer(parts=[event("Hel"), Wait(gate), *text_stream("lo")])] * 16)
    made = await asyncio.gather(*[client.begun(b'"delta":"Hel"') for _ in range(16)])
    following = [asyncio.ensure_future(client.stream(f"/{one}?stream=true&starting_after=2")) for one in made * 2]
    for response_id in made[:4]:
        assert (await client.ask(f"/{response_id}/cancel", "POST"))[1]["status"] == "cancelled"
    gate.set()
    streams = await asyncio.gather(*following)
    assert streams[:16] == streams[16:]
    for response_id, data in zip(made, streams[:16], strict=True):
        last = parse_sse(data)[-1]["response"]
        assert last["id"] == response_id
        assert last["status"] == ("cancelled" if response_id in made[:4] else "completed")
        assert re.search(rb'"sequence_number":3\b', data)
        assert await client.ask(f"/{response_id}") == (200, last)
    assert await gateway.stop() == 0
