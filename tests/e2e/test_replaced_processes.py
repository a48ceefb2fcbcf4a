"""Processes of `antiphon up` that die or stand still are replaced, while the others go on; and one address for the
metrics of all of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import aiohttp
import pytest

from tests.support.chat_server import ChatServer, Reset, Wait, WaitGone, answer, event, text_stream
from tests.support.gateway import Answered, Gateway, post, start_gateway
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 90.0
STREAMS = 10
ASK = {"model": "m", "input": "hi"}
ARGUMENTS = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}
ENVIRON = {"ANTIPHON_METRICS__LISTEN": "127.0.0.1:0", "ANTIPHON_TIMEOUTS__HUNG": "3"}


def _children(gateway: Gateway) -> dict[int, str]:
    pid = gateway.process.pid
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found[int(child)] = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
    return found


def _pids(gateway: Gateway, kind: str) -> list[int]:
    wanted = "envoy -c" if kind == "envoy" else " -m antiphon "
    return [pid for pid, command in _children(gateway).items() if wanted in command and "guard.py" not in command]


async def _served(gateway: Gateway) -> None:
    """Wait until requests are answered again."""
    async with asyncio.timeout(SECONDS):
        while True:
            try:
                if (await post(gateway.base_url + "/responses", ASK)).status == 200:
                    return
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.05)


async def _metrics(gateway: Gateway) -> str:
    said = json.loads(await gateway.log_line('"metrics"'))
    async with aiohttp.ClientSession() as session, session.get(f"http://{said['listen']}/metrics") as got:
        assert got.status == 200 and got.headers["content-type"].startswith("text/plain")
        return await got.text()


def _number(text: str, name: str, **labels: str) -> float:
    """The sum of what has this name and these labels."""
    found = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for given, value in found if all(f'{key}="{one}"' in given for key, one in labels.items()))


def _asks(gateway: Gateway, request_id: str, *, stream: bool) -> asyncio.Task[Answered]:
    body = {**ASK, "stream": stream}
    return asyncio.ensure_future(post(gateway.base_url + "/responses", body, {"x-request-id": request_id}))


async def test_the_line_of_a_relayed_stream_says_who_ended_it(server: ChatServer, folder: Path) -> None:
    """With two processes, of which one has served it."""
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS["relay"], "--workers", "2", environ=ENVIRON)
    try:
        plain = (("content-type", "application/json"),)
        for request_id, stream, said in (
            ("cut", True, answer(parts=[event("a" * 5000), Reset()])),
            ("cut-json", False, answer(200, plain, [b'{"choices":', Reset()])),
        ):
            server.script(said)
            answered = await _asks(gateway, request_id, stream=stream)
            assert answered.cut or answered.status == 502
        server.script(answer(parts=[event("a"), WaitGone()]))
        async with aiohttp.ClientSession() as session:
            asked = {"json": {**ASK, "stream": True}, "headers": {"x-request-id": "left"}}
            async with session.post(gateway.base_url + "/responses", **asked) as got:  # type: ignore[arg-type]
                await got.content.readuntil(b"output_text.delta")
        for request_id, fault, code, level in (
            ("cut", "upstream", "upstream_cut", "warning"),
            ("cut-json", "upstream", "upstream_cut", "warning"),
            ("left", "cancelled", "client_gone", "info"),
        ):
            line = json.loads(await gateway.log_line(f'"{request_id}"'))
            said_of_it = (line["message"], line["fault"], line["code"], line["level"])
            assert said_of_it == ("response", fault, code, level), line
        text = await _metrics(gateway)
        assert _number(text, "responses_total", door="relay", fault="cancelled") == 1
        assert _number(text, "antiphon_response_failures_total", code="upstream_cut", upstream="default") == 2
    finally:
        assert await gateway.stop() == 0, "\n".join(gateway.log[-20:])
    for request_id in ("cut", "cut-json", "left"):
        assert len([line for line in gateway.log if f'"{request_id}"' in line]) == 1, gateway.log


@pytest.mark.parametrize("door", ["relay", "drive"])
async def test_each_request_that_a_killed_process_takes_along_has_a_line(
    door: str, server: ChatServer, folder: Path
) -> None:
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS[door], environ=ENVIRON)
    try:
        plain = (("content-type", "application/json"),)
        asked = {}
        for request_id, stream, said in (
            ("streaming", True, answer(parts=[event("a" * 5000), WaitGone()])),
            ("collecting", False, answer(200, plain, [b'{"choices":', WaitGone()])),
            ("calling", True, answer(framing="none", parts=[WaitGone()])),
        ):
            server.script(said)
            asked[request_id] = _asks(gateway, request_id, stream=stream)
            async with asyncio.timeout(SECONDS):
                while not await _counted_in_flight(gateway, len(asked)):
                    await asyncio.sleep(0.05)
        (worker,) = _pids(gateway, "worker")
        os.kill(worker, signal.SIGKILL)
        for request_id, one in asked.items():
            await one
            line = json.loads(await gateway.log_line(f'"{request_id}"'))
            told = {"message": "request", "level": "warning", "fault": "ours", "code": "adapter_unavailable"}
            assert told.items() <= line.items() and line["cause"] == "the sidecar ended in the middle of the request", (
                line
            )
    finally:
        await gateway.stop()


async def test_the_next_process_of_the_http_door_names_what_a_killed_one_took_along(
    server: ChatServer, folder: Path
) -> None:
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS["http"], environ=ENVIRON)
    try:
        server.script(answer(parts=[event("a"), WaitGone()]), answer(parts=[event("b"), WaitGone()]))
        asked = [_asks(gateway, request_id, stream=True) for request_id in ("lost-1", "lost-2")]
        async with asyncio.timeout(SECONDS):
            while not await _counted_in_flight(gateway, 2):
                await asyncio.sleep(0.05)
        (worker,) = _pids(gateway, "worker")
        os.kill(worker, signal.SIGKILL)
        await asyncio.wait(asked)
        line = json.loads(await gateway.log_line('"requests_lost"'))
        assert sorted(line["request_ids"]) == ["lost-1", "lost-2"] and line["requests"] == 2
        assert (line["level"], line["fault"]) == ("error", "ours")
    finally:
        await gateway.stop()
    for one in asked:
        one.exception()


async def _counted_in_flight(gateway: Gateway, number: int) -> bool:
    return _number(await _metrics(gateway), "antiphon_responses_in_flight") == number


@pytest.mark.parametrize("door", ["relay", "http"])
async def test_a_worker_that_dies_is_replaced_and_the_other_goes_on(
    door: str, server: ChatServer, folder: Path
) -> None:
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS[door], "--workers", "2", environ=ENVIRON)
    gate = asyncio.Event()
    server.script(*(answer(parts=[event("a"), Wait(gate), *text_stream("b")]) for _ in range(STREAMS)))
    sessions = [aiohttp.ClientSession() for _ in range(STREAMS)]
    streams: list[aiohttp.ClientResponse] = []
    try:
        for session in sessions:
            streams.append(await session.post(gateway.base_url + "/responses", json={**ASK, "stream": True}))
        for stream in streams:
            await stream.content.readuntil(b"output_text.delta")
        assert _number(await _metrics(gateway), "antiphon_responses_in_flight") == STREAMS
        before = _pids(gateway, "worker")
        os.kill(before[0], signal.SIGKILL)
        said = json.loads(await gateway.log_line('"process_ended"'))
        assert said["level"] == "error" and said["how"] == "was killed by SIGKILL" and said["pid"] == before[0]
        await until(lambda: len(_pids(gateway, "worker")) == 2, SECONDS)
        assert before[1] in _pids(gateway, "worker")
        for _ in range(4):
            await _served(gateway)
        counted = _number(await _metrics(gateway), "responses_total")
        gate.set()
        ends = []
        for stream in streams:
            try:
                ends.append(b"response.completed" in await stream.content.read())
            except aiohttp.ClientError:
                ends.append(False)
        # Ten streams on one of two workers alone would be a chance of one in five hundred at most.
        assert any(ends) and not all(ends)
        text = await _metrics(gateway)
        assert _number(text, "antiphon_process_restarts_total", cause="died") == 1
        assert _number(text, "responses_total") >= counted >= 4
    finally:
        # One that was cut still has its connection, which warns when it is collected: whenever that is.
        for stream in streams:
            stream.close()
        for session in sessions:
            await session.close()
    assert await gateway.stop() == 0, "\n".join(gateway.log[-20:])


@pytest.mark.usefixtures("hangups_are_heard")
async def test_an_envoy_that_dies_is_replaced_on_its_port(server: ChatServer, folder: Path) -> None:
    """The sidecars live on: what they keep, and what they run in the background, needs no Envoy in front."""
    gateway = await start_gateway(server.base_url, folder, environ=ENVIRON)
    (envoy,), workers = _pids(gateway, "envoy"), _pids(gateway, "worker")
    os.kill(envoy, signal.SIGKILL)
    await gateway.log_line('"process_ended"')
    await _served(gateway)
    assert _pids(gateway, "worker") == workers and _pids(gateway, "envoy") != [envoy]
    assert _number(await _metrics(gateway), "antiphon_process_restarts_total", process="envoy", cause="died") == 1
    # Settings that are read again start new processes, which go on counting where the old ones were.
    gateway.process.send_signal(signal.SIGHUP)
    await gateway.log_line('"settings_reloaded"')
    text = await _metrics(gateway)
    assert _number(text, "antiphon_process_restarts_total", process="envoy", cause="died") == 1
    assert _number(text, "antiphon_process_restarts_total") == 1
    assert await gateway.stop() == 0, "\n".join(gateway.log[-20:])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_background_response_outlives_its_envoy(number: int, server: ChatServer, folder: Path) -> None:
    """Its model call went through the Envoy that died, or was given up before one that stands still was found; it is
    made again through the next one."""
    environ = {**ENVIRON, "ANTIPHON_UPSTREAM__AUTH": "none", "ANTIPHON_TIMEOUTS__IDLE": "0.5"}
    gateway = await start_gateway(server.base_url, folder, environ=environ)
    server.script(answer(parts=[event("a"), WaitGone()]))
    made = await post(gateway.base_url + "/responses", {**ASK, "background": True})
    assert made.status == 200, made.body
    url = f"{gateway.base_url}/responses/{json.loads(made.body)['id']}"
    await until(lambda: server.requests, SECONDS)
    os.kill(_pids(gateway, "envoy")[0], number)
    await gateway.log_line('"process_ended"')
    await _served(gateway)
    async with asyncio.timeout(SECONDS), aiohttp.ClientSession() as session:
        while True:
            async with session.get(url) as got:
                status = (await got.json())["status"]
            assert status != "failed", "\n".join(gateway.log[-20:])
            if status == "completed":
                break
            await asyncio.sleep(0.05)
    assert await gateway.stop() == 0, "\n".join(gateway.log[-20:])


@pytest.mark.parametrize(("door", "kind"), [("http", "worker"), ("relay", "worker"), ("relay", "envoy")])
async def test_a_process_that_stands_still_is_replaced(door: str, kind: str, server: ChatServer, folder: Path) -> None:
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS[door], environ=ENVIRON)
    (stopped,) = _pids(gateway, kind)
    os.kill(stopped, signal.SIGSTOP)
    said = json.loads(await gateway.log_line('"process_ended"'))
    assert said["how"] == "did not answer and was killed"
    await _served(gateway)
    assert stopped not in _children(gateway)
    assert _number(await _metrics(gateway), "antiphon_process_restarts_total", cause="hung") == 1
    assert await gateway.stop() == 0, "\n".join(gateway.log[-20:])


async def test_metrics_are_not_for_everybody(server: ChatServer, folder: Path) -> None:
    """Neither at the listener of Envoy nor at that of the HTTP door."""
    for door in ("relay", "http"):
        gateway = await start_gateway(server.base_url, folder / door, *ARGUMENTS[door])
        async with aiohttp.ClientSession() as session, session.get(gateway.origin + "/metrics") as got:
            assert got.status == 404
        assert await gateway.stop() == 0
