"""How a gateway stops: within its time whatever happens, with a status that tells whether something was cut, and
unnoticed by clients where another process serves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from antiphon.config.settings import Settings
from antiphon.envoy.bootstrap import bootstrap, to_yaml
from antiphon.envoy.sidecars import endpoints
from tests.support.chat_server import ChatServer, Wait, WaitGone, answer, event, text_stream
from tests.support.envoy_binary import envoy_binary, envoy_version
from tests.support.gateway import Gateway, post, start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 90.0
DRAIN = 1.0
# `timeouts.drain` + 2 s, and something for a machine that does other things too.
AT_MOST = DRAIN + 2.0 + 4.0
STREAM = {"model": "m", "input": "hi", "stream": True}
ARGUMENTS = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}
ENVIRON = {"ANTIPHON_TIMEOUTS__DRAIN": str(DRAIN), "ANTIPHON_UPSTREAM__AUTH": "none"}


def _children(gateway: Gateway) -> list[int]:
    """Its worker and its Envoy; each has a guard, a process of its own, whose child it is not."""
    pid = gateway.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


def _worker(gateway: Gateway) -> int:
    return next(child for child in _children(gateway) if " -m antiphon " in _command(str(child)))


def _command(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


async def _status(gateway: Gateway, response_id: str) -> str:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{gateway.base_url}/responses/{response_id}") as got,
    ):
        return str((await got.json())["status"])


@pytest.mark.parametrize("door", ARGUMENTS)
async def test_what_had_to_be_cut_shows_in_the_exit_status(door: str, server: ChatServer, folder: Path) -> None:
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS[door], environ=ENVIRON)
    server.script(answer(parts=[event("a"), WaitGone()]))
    async with aiohttp.ClientSession() as session, session.post(gateway.base_url + "/responses", json=STREAM) as cut:
        await cut.content.readuntil(b"output_text.delta")
        began = time.monotonic()
        assert await gateway.stop() == 1, "\n".join(gateway.log[-20:])
        assert time.monotonic() - began < AT_MOST
    lines = [json.loads(line) for line in gateway.log if '"stopped_with_requests_in_flight"' in line]
    assert {line["level"] for line in lines} == {"warning"} and any("process" not in line for line in lines)
    assert any(line.get("cut_by_kind") == {"response": 1} for line in lines)
    # One count: the parent's is the sum of its workers'.
    assert {line["cut"] for line in lines} == {1}
    (asked,) = [json.loads(line) for line in gateway.log if '"draining"' in line and '"process"' in line]
    assert (asked["in_flight"], asked["in_flight_by_kind"], asked["because"]) == (1, {"response": 1}, "SIGTERM")


@pytest.mark.parametrize("door", ARGUMENTS)
async def test_what_a_second_signal_cuts_is_counted(door: str, server: ChatServer, folder: Path) -> None:
    environ = {**ENVIRON, "ANTIPHON_TIMEOUTS__DRAIN": str(SECONDS)}
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS[door], environ=environ)
    server.script(answer(parts=[event("a"), WaitGone()]))
    async with aiohttp.ClientSession() as session, session.post(gateway.base_url + "/responses", json=STREAM) as cut:
        await cut.content.readuntil(b"output_text.delta")
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.log_line('"draining"')
        assert await gateway.stop() == 1, "\n".join(gateway.log[-20:])
    lines = [json.loads(line) for line in gateway.log if '"stopped_with_requests_in_flight"' in line]
    assert [line["cut"] for line in lines if "process" not in line] == [1], lines
    # The sum comes last.
    assert door != "http" or "process" not in lines[-1]


@pytest.mark.parametrize("door", ARGUMENTS)
async def test_a_background_response_does_not_hold_up_the_end(door: str, server: ChatServer, folder: Path) -> None:
    """It is given back, and the next process runs it."""
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS[door], environ=ENVIRON)
    server.script(answer(parts=[event("a"), WaitGone()]))
    made = await post(gateway.base_url + "/responses", {"model": "m", "input": "hi", "background": True})
    async with asyncio.timeout(SECONDS):
        while not server.requests:
            await asyncio.sleep(0.01)
    began = time.monotonic()
    await gateway.stop()
    assert time.monotonic() - began < AT_MOST, "\n".join(gateway.log[-20:])
    again = await start_gateway(server.base_url, folder, *ARGUMENTS[door], environ=ENVIRON)
    response_id = made.body.partition(b'"id":"')[2].partition(b'"')[0].decode()
    async with asyncio.timeout(SECONDS):
        while await _status(again, response_id) != "completed":
            await asyncio.sleep(0.05)
    assert await again.stop() == 0


@pytest.mark.parametrize("door", ["relay", "http"])
async def test_a_worker_that_stands_still_does_not_hold_up_the_end(door: str, server: ChatServer, folder: Path) -> None:
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS[door], environ=ENVIRON)
    worker = _worker(gateway)
    os.kill(worker, signal.SIGSTOP)
    began = time.monotonic()
    assert await gateway.stop() == 1
    assert time.monotonic() - began < AT_MOST
    assert not Path(f"/proc/{worker}").exists()


async def test_a_call_that_passes_through_is_cut_when_its_time_is_over(server: ChatServer, folder: Path) -> None:
    """The workers know nothing of it, and end well; that it was cut, the exit status says all the same."""
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS["relay"], environ=ENVIRON)
    server.script(answer(parts=[event("a"), WaitGone()]))
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    url = gateway.base_url + "/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=chat) as passed:
        await passed.content.readuntil(b"\n\n")
        assert await gateway.stop() == 1, "\n".join(gateway.log[-20:])
    said = [json.loads(line) for line in gateway.log if '"stopped_with_requests_in_flight"' in line]
    assert [line["cut"] for line in said] == [1]


class _Kept:
    """A connection that its client opened before the stop, and keeps."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, gateway: Gateway) -> _Kept:
        kept = cls(*await asyncio.open_connection("127.0.0.1", int(gateway.origin.rpartition(":")[2])))
        assert await kept.ask("GET", "/v1/responses/none") == (404, "None", False)
        return kept

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, str, bool] | None:
        """Send a request. Returns the status, the error's code, and whether the server closes the connection. Returns
        None if the server has already closed the connection."""
        head = f"{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n"
        try:
            self._writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + body)
            headers = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower()
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        length = int(headers.partition("content-length: ")[2].partition("\r\n")[0])
        error = json.loads(await self._reader.readexactly(length))["error"]
        return int(headers.split(" ")[1]), str(error["code"]), "\r\nconnection: close\r\n" in headers

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


@pytest.mark.parametrize("in_flight", ["response", "passed on"])
@pytest.mark.parametrize("transport", ["http2", "grpcio"])
async def test_the_sidecar_answers_on_a_kept_connection_until_envoy_ends(
    server: ChatServer, folder: Path, in_flight: str, transport: str
) -> None:
    """Envoy ends before its sidecars, so Envoy never misses one. `passed on`: the sidecars have nothing to do."""
    environ = {"ANTIPHON_UPSTREAM__AUTH": "none"}
    gateway = await start_gateway(server.base_url, folder, "--transport", transport, environ=environ)
    gate = asyncio.Event()
    server.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
    path, body = "/responses", STREAM
    if in_flight == "passed on":
        path, body = "/chat/completions", {"model": "m", "messages": [], "stream": True}
    kept = [await _Kept.open(gateway) for _ in range(12)]
    ask = json.dumps({"model": "m", "input": "hi"}).encode()
    async with aiohttp.ClientSession() as session, session.post(gateway.base_url + path, json=body) as stream:
        await stream.content.readuntil(b"\n\n")
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.log_line('"because":"SIGTERM"')
        # Envoy checks its sidecars' health every second.
        for one in kept[:6]:
            assert await one.ask("POST", "/v1/responses", ask) == (503, "shutting_down", True)
            await asyncio.sleep(0.7)
        gate.set()
        assert b"[DONE]" in await stream.content.read() or in_flight == "response"
    # Until the end, each answer comes from a sidecar, or Envoy has closed the connection.
    for one in kept[6:]:
        assert await one.ask("POST", "/v1/responses", ask) in ((503, "shutting_down", True), None)
    async with asyncio.timeout(SECONDS):
        assert await gateway.process.wait() == 0, "\n".join(gateway.log[-20:])
    assert not [line for line in gateway.log if "adapter_unavailable" in line]
    await asyncio.gather(*(one.close() for one in kept))


async def test_everything_but_the_parent_stands_still(server: ChatServer, folder: Path) -> None:
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS["relay"], environ=ENVIRON)
    children = _children(gateway)
    # The sidecar and Envoy.
    assert len(children) == 2
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert await gateway.stop() == 1
    assert time.monotonic() - began < AT_MOST
    async with asyncio.timeout(SECONDS):
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            await asyncio.sleep(0.01)


async def test_a_name_server_that_never_answers_does_not_hold_up_the_end(folder: Path) -> None:
    """Who asks it is a thread that nobody can end, in the worker that asks for the upstreams too."""
    (folder / "sitecustomize.py").write_text(
        # Without uvloop, which asks past Python.
        "import socket, sys, time\n"
        "sys.modules['uvloop'] = None\n"
        "ask = socket.getaddrinfo\n"
        "def slow(host, *given, **named):\n"
        "    if host == 'slow.test':\n"
        "        print('asked for slow.test', flush=True, file=__import__('sys').stderr)\n"
        "        time.sleep(600)\n"
        "    return ask(host, *given, **named)\n"
        "socket.getaddrinfo = slow\n"
    )
    environ = {**ENVIRON, "PYTHONPATH": str(folder), "ANTIPHON_TIMEOUTS__CHECK": "5"}
    gateway = await start_gateway("http://slow.test/v1", folder / "data", *ARGUMENTS["http"], environ=environ)
    async with asyncio.timeout(SECONDS):
        while not any("asked for slow.test" in line for line in gateway.log):
            await asyncio.sleep(0.01)
    began = time.monotonic()
    assert await gateway.stop() == 1
    assert time.monotonic() - began < AT_MOST
    assert any("ended_by_force" in line for line in gateway.log)


# A rolling upgrade: two sidecars behind one Envoy


class _Envoy:
    """A real Envoy and two sidecars, each a process."""

    def __init__(self, folder: Path, upstream: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._folder = folder
        self._settings = Settings.model_validate(
            {"listen": f"127.0.0.1:{self.port}", "data": folder, "workers": 2, "upstream": {"url": upstream}}
        )
        self._processes: list[asyncio.subprocess.Process] = []
        self._log = (folder / "log").open("wb")

    async def _start(self, *command: str, **environ: str) -> asyncio.subprocess.Process:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
        process = await asyncio.create_subprocess_exec(
            *command, stdout=self._log, stderr=self._log, env={**plain, **environ}
        )
        self._processes.append(process)
        return process

    async def sidecar(self, number: int) -> asyncio.subprocess.Process:
        command = (sys.executable, "-m", "antiphon", "extproc", "--worker", str(number))
        upstream = self._settings.upstream.url
        process = await self._start(*command, ANTIPHON_DATA=str(self._folder), ANTIPHON_UPSTREAM__URL=upstream)
        path = Path(self._settings.place(endpoints(self._settings)[number].http).removeprefix("unix:"))
        async with asyncio.timeout(SECONDS):
            while not path.exists():
                await asyncio.sleep(0.02)
        return process

    async def start(self) -> None:
        config = self._folder / "envoy.yaml"
        config.write_text(
            to_yaml(bootstrap(self._settings, sidecars=endpoints(self._settings), version=envoy_version()))
        )
        await self._start(str(envoy_binary()), "-c", str(config), "--concurrency", "1", "--disable-hot-restart")

    async def stop(self) -> None:
        for process in reversed(self._processes):
            if process.returncode is None:
                process.kill()
            await process.wait()
        self._log.close()


@pytest.fixture
async def envoy(server: ChatServer, folder: Path) -> AsyncIterator[_Envoy]:
    made = _Envoy(folder, server.base_url)
    try:
        yield made
    finally:
        await made.stop()


async def test_one_of_two_sidecars_drains_and_no_client_notices(
    server: ChatServer, folder: Path, envoy: _Envoy
) -> None:
    first, _ = await envoy.sidecar(0), await envoy.sidecar(1)
    await envoy.start()
    origin = f"http://127.0.0.1:{envoy.port}"
    gate, failed, served = asyncio.Event(), [], 0

    async def one(session: aiohttp.ClientSession) -> None:
        """A response is made and read: the two ports of a sidecar."""
        nonlocal served
        async with session.post(origin + "/v1/responses", json={"model": "m", "input": "hi"}) as made:
            body = await made.json()
            if made.status != 200:
                failed.append((made.status, body))
                return
        async with session.get(f"{origin}/v1/responses/{body['id']}") as read:
            if read.status != 200:
                failed.append((read.status, await read.text()))
        served += 1

    async with aiohttp.ClientSession() as session:
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    async with session.get(origin + "/ready") as ready:
                        if ready.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)
        server.script(*(answer(parts=[event("a"), Wait(gate), *text_stream("b")]) for _ in range(4)))
        streams = [await session.post(origin + "/v1/responses", json=STREAM) for _ in range(4)]
        for stream in streams:
            await stream.content.readuntil(b"output_text.delta")
        await asyncio.gather(*(one(session) for _ in range(4)))
        before = served
        first.send_signal(signal.SIGTERM)
        leaving = time.monotonic()
        # Past the notice, the refusal and its end, which the streams delay.
        while first.returncode is None:
            await asyncio.gather(*(one(session) for _ in range(4)))
            if time.monotonic() - leaving > 4.0:
                gate.set()
            assert time.monotonic() - leaving < SECONDS
        for _ in range(5):
            await asyncio.gather(*(one(session) for _ in range(4)))
        gate.set()
        ends = [b"response.completed" in await stream.content.read() for stream in streams]
    assert failed == [] and served > before
    assert ends == [True] * 4
    assert first.returncode == 0, (folder / "log").read_text()[-3000:]
