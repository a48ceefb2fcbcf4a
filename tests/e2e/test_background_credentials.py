"""The README's own client with `background`, in every door, by default settings; a sealed key through a kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from openai import AsyncOpenAI, BadRequestError

from tests.e2e.test_background import workers_of
from tests.support.chat_server import Answer, ChatServer, Received, Wait, answer, completion, event, json_answer
from tests.support.gateway import start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

KEY = "sk-CANARYxyzzy42"
_ARGUMENTS = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}


async def ended(client: AsyncOpenAI, response_id: str) -> str:
    async with asyncio.timeout(30):
        while (found := await client.responses.retrieve(response_id)).status in ("queued", "in_progress"):
            await asyncio.sleep(0.02)
    return found.output_text


@pytest.mark.parametrize("door", _ARGUMENTS)
async def test_the_readmes_client(door: str, tmp_path: Path) -> None:
    async with ChatServer() as server:
        gateway = await start_gateway(server.base_url, tmp_path, *_ARGUMENTS[door])
        async with AsyncOpenAI(base_url=gateway.base_url, api_key="anything") as client:
            made = await client.responses.create(model="m", input="hi", background=True)
            assert await ended(client, made.id) == "Hello"
            server.default = lambda call: json_answer({"error": {"message": "no key"}}, 401)
        assert await gateway.stop() == 0
        gateway = await start_gateway(server.base_url, tmp_path, *_ARGUMENTS[door])
        async with AsyncOpenAI(base_url=gateway.base_url, api_key="anything", max_retries=0) as client:
            with pytest.raises(BadRequestError, match=r"background\.client_credentials"):
                await client.responses.create(model="m", input="hi", background=True)
        assert await gateway.stop() == 0
    assert not any("anything" in line for line in gateway.log)


@pytest.mark.parametrize("door", _ARGUMENTS)
async def test_a_sealed_key_outlives_a_kill_9(door: str, tmp_path: Path) -> None:
    gate = asyncio.Event()
    runs: list[str] = []

    def guarded(call: Received) -> Answer:
        if call.header("authorization") != f"Bearer {KEY}":
            return json_answer({"error": {"message": "no key"}}, 401)
        runs.append(call.path)
        return answer(parts=[event("one"), Wait(gate)]) if len(runs) == 1 else json_answer(completion("ok"))

    environ = {"ANTIPHON_BACKGROUND__LEASE": "1", "ANTIPHON_BACKGROUND__CLIENT_CREDENTIALS": "seal"}
    async with ChatServer() as server:
        server.default = guarded
        gateway = await start_gateway(server.base_url, tmp_path, *_ARGUMENTS[door], environ=environ)
        async with AsyncOpenAI(base_url=gateway.base_url, api_key=KEY) as client:
            made = await client.responses.create(model="m", input="hi", background=True)
            async with asyncio.timeout(30):
                while not runs:
                    await asyncio.sleep(0.02)
        for pid in (*workers_of(gateway), gateway.process.pid):
            os.kill(pid, signal.SIGKILL)
        await gateway.process.wait()
        again = await start_gateway(server.base_url, tmp_path, *_ARGUMENTS[door], environ=environ)
        async with AsyncOpenAI(base_url=again.base_url, api_key=KEY) as client:
            assert await ended(client, made.id) == "ok"
        assert await again.stop() == 0
        gate.set()
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]
    assert not any(KEY in line for line in (*gateway.log, *again.log))
