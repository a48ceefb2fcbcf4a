"""The console's listener as the commands start it: its address, its URL in the start lines, and what stops a start."""

from __future__ import annotations

import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.support.chat_server import ChatServer
from tests.support.commands import Command, run_command
from tests.support.gateway import Gateway, post, running, start_gateway

CONSOLE = {"ANTIPHON_CONSOLE__LISTEN": "127.0.0.1:0"}
ENVOY = pytest.param("envoy", marks=pytest.mark.e2e)


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as made:
        yield made


@pytest.fixture(autouse=True)
async def no_gateway_stays() -> AsyncIterator[None]:
    yield
    for gateway in running:
        if gateway.process.returncode is None:
            gateway.process.kill()
            await gateway.process.wait()
    running.clear()


async def _console(gateway: Gateway) -> str:
    line = json.loads(await gateway.log_line('"message":"console"'))
    return str(line["url"])


async def _get(url: str) -> tuple[int, str | None]:
    async with aiohttp.ClientSession() as session, session.get(url, allow_redirects=False) as got:
        return got.status, got.headers.get("location")


@pytest.mark.parametrize("door", ["http", ENVOY])
async def test_up_opens_a_second_listener(door: str, server: ChatServer, tmp_path: Path) -> None:
    flags = ("--door", door, "--console", "--workers", "2")
    gateway = await start_gateway(server.base_url, tmp_path, *flags, environ=CONSOLE)
    console = await _console(gateway)
    origin = console.removesuffix("/console")
    assert console.endswith("/console") and origin != gateway.origin
    for _ in range(8):
        assert await _get(origin + "/") == (302, "/console")
    assert (await _get(origin + "/v1/models"))[0] == 404
    assert (await _get(gateway.origin + "/console"))[0] == 404
    assert (await post(gateway.base_url + "/responses", {"model": "demo-model", "input": "hi"})).status == 200
    assert await gateway.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("door", ["http", ENVOY])
async def test_a_reload_keeps_the_listener(door: str, server: ChatServer, tmp_path: Path) -> None:
    gateway = await start_gateway(server.base_url, tmp_path, "--door", door, "--console", environ=CONSOLE)
    origin = (await _console(gateway)).removesuffix("/console")
    gateway.process.send_signal(signal.SIGHUP)
    await gateway.log_line('"message":"settings_reloaded"')
    assert await _get(origin + "/") == (302, "/console")
    assert await gateway.stop() == 0


async def test_serve_opens_a_second_listener(server: ChatServer, tmp_path: Path) -> None:
    gateway = await start_gateway(server.base_url, tmp_path, "--console", command="serve", environ=CONSOLE)
    origin = (await _console(gateway)).removesuffix("/console")
    assert await _get(origin + "/") == (302, "/console")
    assert await gateway.stop() == 0


@pytest.mark.parametrize("command", ["up", "serve"])
async def test_a_taken_address_of_the_console(command: str, processes: list[Command], tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        at = f"127.0.0.1:{other.getsockname()[1]}"
        flags = ("--listen", "127.0.0.1:0", "--data", str(tmp_path), "--console")
        doors = ("--door", "http") if command == "up" else ()
        one = await run_command(processes, command, *flags, *doors, ANTIPHON_CONSOLE__LISTEN=at)
        assert await one.end() != 0
    assert at in "\n".join(one.err) and "Address already in use" in "\n".join(one.err)


@pytest.mark.parametrize("command", ["up", "serve", "extproc"])
async def test_without_the_extra_nothing_starts(command: str, processes: list[Command], tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['nh3'] = None")
    environ = {"ANTIPHON_CONSOLE__ENABLED": "true", "PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
    one = await run_command(processes, command, "--data", str(tmp_path / "data"), **environ)
    assert await one.end() == 2
    assert "console.enabled needs the extra 'console'" in one.err[-1]
    assert not (tmp_path / "data").exists()


async def test_the_console_has_an_address_of_its_own(processes: list[Command], tmp_path: Path) -> None:
    flags = ("--listen", "127.0.0.1:8090", "--data", str(tmp_path), "--console")
    one = await run_command(processes, "config", *flags)
    assert await one.end() == 2
    assert "console.listen has the same address as listen" in "\n".join(one.err)


async def test_the_flags_set_the_settings(processes: list[Command], tmp_path: Path) -> None:
    one = await run_command(processes, "config", "--data", str(tmp_path), "--console", "--console-act", "--changed")
    assert await one.end() == 0
    assert "\n".join(one.out).endswith("console:\n  enabled: true\n  act: true")
