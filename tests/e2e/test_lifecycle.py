"""The life of `antiphon up`: draining, children that die, workers, what a killed part leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.e2e.conftest import Door
from tests.support.chat_server import ChatServer, Wait, answer, event, text_stream
from tests.support.gateway import Gateway, post, start_gateway
from tests.support.judge import check_stream, parse_sse
from tests.support.state import look

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

_STREAM = {"model": "m", "input": "hi", "stream": True}
_ARGUMENTS = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}


@pytest_asyncio.fixture(loop_scope="session")
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as made:
        yield made


def _children(pid: int) -> dict[int, str]:
    """The child processes of a process, with their command lines."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
    return found


def _child(gateway: Gateway, word: str) -> int:
    return next(pid for pid, command in _children(gateway.process.pid).items() if word in command)


def _rows(gateway: Gateway) -> list[str]:
    return [row[0] for row in look(gateway.data, "SELECT status FROM responses")]


async def _gone(pid: int) -> None:
    async with asyncio.timeout(60):
        while Path(f"/proc/{pid}").exists() and "Z (" not in Path(f"/proc/{pid}/stat").read_text()[:0]:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("door", ["relay", "drive", "http"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_drain(door: Door, number: int, server: ChatServer, tmp_path: Path) -> None:
    """What is in flight finishes, what is new is refused, everything stops, exit status 0."""
    gateway = await start_gateway(server.base_url, tmp_path, *_ARGUMENTS[door])
    gate = asyncio.Event()
    server.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.base_url + "/responses", json=_STREAM) as answered,
    ):
        body = await answered.content.readuntil(b"output_text.delta")
        gateway.process.send_signal(number)
        # The worker's own line, not that of its parent, which comes first.
        await gateway.log_line('"because":"SIG')
        try:
            refused = await post(gateway.base_url + "/responses", _STREAM)
            assert refused.status == 503
            assert json.loads(refused.body)["error"]["type"] == "server_error"
        except aiohttp.ClientOSError:
            pass  # refused, or reset, when it was let into the queue of a listener that closed
        gate.set()
        body += await answered.content.read()
    assert check_stream(parse_sse(body))["status"] == "completed"
    async with asyncio.timeout(60):
        assert await gateway.process.wait() == 0, "\n".join(gateway.log[-20:])
    assert _rows(gateway) == ["completed"]
    assert len(server.requests) == 1


async def test_children_do_not_outlive_a_killed_parent(server: ChatServer, tmp_path: Path) -> None:
    gateway = await start_gateway(server.base_url, tmp_path)
    children = _children(gateway.process.pid)
    # The sidecar and Envoy.
    assert len(children) == 2
    gateway.process.kill()
    await gateway.process.wait()
    for pid in children:
        await _gone(pid)


async def test_without_its_sidecar_envoy_answers_json(server: ChatServer, tmp_path: Path) -> None:
    """A stopped sidecar is no empty 500, and nothing passes untranslated."""
    gateway = await start_gateway(server.base_url, tmp_path)
    sidecar = _child(gateway, "extproc")
    os.kill(sidecar, signal.SIGSTOP)
    try:
        async with asyncio.timeout(60):
            answered = await post(gateway.base_url + "/responses", _STREAM)
    finally:
        os.kill(sidecar, signal.SIGCONT)
    assert answered.status == 503
    error = json.loads(answered.body)["error"]
    assert error["code"] == "adapter_unavailable" and answered.headers["retry-after"] == "1"
    assert not [one for one in server.requests if one.path.endswith("/responses")]
    assert await gateway.stop() == 0


@pytest.mark.parametrize("door", ["relay", "http"])
async def test_several_workers_share_the_work_and_the_store(door: Door, server: ChatServer, tmp_path: Path) -> None:
    gateway = await start_gateway(server.base_url, tmp_path, *_ARGUMENTS[door], "--workers", "2")
    workers = [pid for pid, command in _children(gateway.process.pid).items() if "-m antiphon" in command]
    assert len(workers) == 2
    made = await asyncio.gather(
        *(post(gateway.base_url + "/responses", {"model": "m", "input": f"n{number}"}) for number in range(24))
    )
    assert {one.status for one in made} == {200}
    ids = [json.loads(one.body)["id"] for one in made]
    more = await asyncio.gather(
        *(
            post(gateway.base_url + "/responses", {"model": "m", "input": "x", "previous_response_id": one})
            for one in ids
        )
    )
    assert {one.status for one in more} == {200}
    assert _rows(gateway) == ["completed"] * 48
    assert await gateway.stop() == 0


async def test_an_unreachable_upstream(tmp_path: Path) -> None:
    async with ChatServer() as gone:
        url = gone.base_url
    for door in ("relay", "drive", "http"):
        gateway = await start_gateway(url, tmp_path / door, *_ARGUMENTS[door])
        for stream in (False, True):
            answered = await post(gateway.base_url + "/responses", {**_STREAM, "stream": stream})
            error = json.loads(answered.body)["error"]
            assert (answered.status, error["code"]) == (502, "upstream_unreachable"), (door, answered)
        assert await gateway.stop() == 0
        assert _rows(gateway) == []


async def test_too_large_a_body_is_refused_during_the_upload(server: ChatServer, tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("limits: {request_body_bytes: 100000}\n")
    for door in ("relay", "http"):
        gateway = await start_gateway(server.base_url, tmp_path / door, *_ARGUMENTS[door], "--config", str(config))

        async def endless() -> AsyncIterator[bytes]:
            yield b'{"model":"m","input":"'
            for _ in range(10_000):
                yield b"x" * 1000

        async with aiohttp.ClientSession() as session:
            for data in (b" " * 200_000, endless()):
                try:
                    async with session.post(gateway.base_url + "/responses", data=data) as answered:
                        assert answered.status == 413
                        error = (await answered.json())["error"]
                        assert error["type"] == "invalid_request_error" and "100000" in error["message"]
                except aiohttp.ClientOSError:
                    # The refusal closed the connection while the client was still sending.
                    assert not isinstance(data, bytes)
        assert not server.requests
        assert await gateway.stop() == 0


@pytest.mark.parametrize("door", ["relay", "drive", "http"])
async def test_clients_that_leave_at_any_moment(door: Door, server: ChatServer, tmp_path: Path) -> None:
    """After 1, 2, 3, … parts, or before the first: no call is left open, no row is wrong, the gateway goes on."""
    gateway = await start_gateway(server.base_url, tmp_path, *_ARGUMENTS[door])
    texts = [f"word{number} " for number in range(12)]
    server.default = lambda _: answer(parts=text_stream(*texts))

    async def leave_after(parts: int) -> None:
        async with aiohttp.ClientSession() as session:
            request = asyncio.ensure_future(session.post(gateway.base_url + "/responses", json=_STREAM))
            if parts == 0:
                await asyncio.sleep(0)
                request.cancel()
                await asyncio.wait({request})
                return
            answered = await request
            for _ in range(parts):
                if not await answered.content.readany():
                    break
            answered.close()

    await asyncio.gather(*(leave_after(number % 12) for number in range(48)))
    whole = await post(gateway.base_url + "/responses", _STREAM)
    assert check_stream(parse_sse(whole.body))["status"] == "completed"
    assert await gateway.stop() == 0, "\n".join(gateway.log[-20:])
    rows = _rows(gateway)
    assert set(rows) <= {"completed", "failed"} and "completed" in rows
    assert not [line for line in gateway.log if '"level":"error"' in line]
