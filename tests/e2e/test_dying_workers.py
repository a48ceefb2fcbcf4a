"""One of two processes of `antiphon up` dies behind Envoy: what no model was asked yet is served by the other one, from
the first moment on; what a model was asked is not asked again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from antiphon.supervisor.http_probe import ask
from tests.support.chat_server import Answer, ChatServer, Received, Wait, answer, completion
from tests.support.gateway import Answered, Gateway, post, start_gateway
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 90.0
AT_ONCE = 12
ASK = {"model": "m", "input": "hi"}


async def _two(server: ChatServer, folder: Path, mode: str, transport: str = "auto") -> Gateway:
    return await start_gateway(
        server.base_url,
        folder,
        *("--mode", mode, "--workers", "2"),
        environ={"ANTIPHON_SIDECAR__TRANSPORT": transport, "ANTIPHON_TIMEOUTS__HUNG": "60"},
    )


def _workers(gateway: Gateway) -> list[int]:
    parent = gateway.process.pid
    found = {}
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
    return [pid for pid, command in found.items() if " -m antiphon " in command and "guard.py" not in command]


def _admin(gateway: Gateway) -> str:
    (found,) = gateway.data.glob("run/*/*/*admin*")
    return f"unix:{found}"


async def _under_way(gateway: Gateway, cluster: str, wanted: int) -> None:
    """Wait until Envoy has handed so many requests to the sidecars."""
    async with asyncio.timeout(SECONDS):
        while True:
            said = await ask(_admin(gateway), f"/stats?filter=^cluster.{cluster}.upstream_rq_active$", 5.0)
            if said is not None and int(said.rpartition(b":")[2]) >= wanted:
                return
            await asyncio.sleep(0.01)


async def _get(gateway: Gateway, path: str) -> tuple[int, bytes]:
    async with aiohttp.ClientSession() as session, session.get(gateway.base_url + path) as got:
        return got.status, await got.read()


@pytest.mark.parametrize("mode", ["relay", "drive"])
async def test_who_asks_while_a_process_is_dead_is_served_by_the_other(
    mode: str, server: ChatServer, folder: Path
) -> None:
    """Before Envoy knows of it: no 503 while another process is alive."""
    gateway = await _two(server, folder, mode)
    try:
        dead = _workers(gateway)[0]
        os.kill(dead, signal.SIGKILL)
        # The kernel closes the sockets of a dying process after its memory, so its command line vanishes too early.
        # Until then Envoy can connect, and a POST that the process may have seen must not run twice.
        await until(lambda: not Path(f"/proc/{dead}").exists(), SECONDS)
        for _ in range(20):
            for path, body in (("/responses", ASK), ("/conversations", {})):
                made = await post(gateway.base_url + path, body)
                assert made.status == 200, (path, made.body)
            status, said = await _get(gateway, "/conversations")
            assert status == 200, said
    finally:
        assert await gateway.stop() == 0, "\n".join(gateway.log[-20:])


@pytest.mark.parametrize(("mode", "transport"), [("relay", "auto"), ("drive", "auto"), ("drive", "grpcio")])
async def test_what_a_process_had_not_begun_when_it_died_is_served_by_the_other(
    mode: str, transport: str, server: ChatServer, folder: Path
) -> None:
    gateway = await _two(server, folder, mode, transport)
    try:
        dying, living = _workers(gateway)
        for worker in (dying, living):
            os.kill(worker, signal.SIGSTOP)
        posts = [asyncio.create_task(post(gateway.base_url + "/responses", ASK)) for _ in range(AT_ONCE)]
        gets = [asyncio.create_task(_get(gateway, "/models")) for _ in range(AT_ONCE)]
        await _under_way(gateway, "sidecar_grpc", AT_ONCE)
        await _under_way(gateway, "sidecar_http", AT_ONCE)
        os.kill(dying, signal.SIGKILL)
        os.kill(living, signal.SIGCONT)
        assert [(await one).status for one in posts] == [200] * AT_ONCE
        assert [(await one)[0] for one in gets] == [200] * AT_ONCE
        assert sum(request.method == "POST" for request in server.requests) == AT_ONCE
    finally:
        assert await gateway.stop() == 0, "\n".join(gateway.log[-20:])


@pytest.mark.parametrize(("mode", "transport"), [("relay", "auto"), ("drive", "auto"), ("drive", "grpcio")])
async def test_a_model_is_not_asked_again_when_a_process_dies(
    mode: str, transport: str, server: ChatServer, folder: Path
) -> None:
    gate = asyncio.Event()

    def held(_: Received) -> Answer:
        body = json.dumps(completion()).encode()
        return answer(
            200, [("content-type", "application/json")], [Wait(gate), body], framing="length", announced=len(body)
        )

    server.default = held
    gateway = await _two(server, folder, mode, transport)
    try:
        posts = [asyncio.create_task(post(gateway.base_url + "/responses", ASK)) for _ in range(AT_ONCE)]
        await until(lambda: len(server.requests) == AT_ONCE, SECONDS)
        os.kill(_workers(gateway)[0], signal.SIGKILL)
        await gateway.log_line('"process_ended"')
        gate.set()
        answers = [await one for one in posts]
        # Envoy gives each process about half of what comes at once.
        assert {one.status for one in answers} == {200, 503}
        assert {_code(one) for one in answers if one.status == 503} == {"adapter_unavailable"}
        assert len(server.requests) == AT_ONCE
    finally:
        gate.set()
        assert await gateway.stop() == 0, "\n".join(gateway.log[-20:])


def _code(answered: Answered) -> Any:
    return json.loads(answered.body)["error"]["code"]
