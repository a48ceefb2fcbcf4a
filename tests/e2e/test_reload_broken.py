"""A change of settings that something breaks: who serves goes on to do so, at every connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.test_reload import ASK, envoys, said, served, write
from tests.support.chat_server import ChatServer, Wait, answer, event, text_stream
from tests.support.gateway import Gateway, start_gateway
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("hangups_are_heard")]


def children(gateway: Gateway) -> set[int]:
    pid = gateway.process.pid
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def listens(pid: int) -> bool:
    """Whether the process has a TCP socket that accepts."""
    tables = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    accepting = {fields[9] for fields in map(str.split, tables) if fields[3] == "0A"}
    with contextlib.suppress(OSError):
        for one in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if one.readlink().name.removeprefix("socket:[").removesuffix("]") in accepting:
                    return True
    return False


def programs(pids: set[int]) -> list[int]:
    """Those that are workers already: stopped before, one would hold up who starts it."""
    with contextlib.suppress(OSError):
        return [one for one in sorted(pids) if b"--sockets" in Path(f"/proc/{one}/cmdline").read_bytes()]
    return []


@asynccontextmanager
async def changing(
    server: ChatServer, folder: Path, door: str, **settings: object
) -> AsyncIterator[tuple[Gateway, Path]]:
    """A gateway with these settings, and their file. It must end well."""
    file = folder.parent / f"{folder.name}.yaml"
    write(file, server, reload={"watch": False}, **settings)
    gateway = await start_gateway(None, folder, "--config", str(file), "--door", door)
    try:
        yield gateway, file
    finally:
        assert await gateway.stop() == 0


async def started(gateway: Gateway, before: set[int], workers: int) -> list[int]:
    await until(lambda: len(programs(children(gateway) - before)) == workers)
    return programs(children(gateway) - before)


async def all_answer(gateway: Gateway, times: int = 24) -> None:
    """Each new connection, to whichever socket the kernel gives it, is answered."""
    timeout = aiohttp.ClientTimeout(total=5)
    for _ in range(times):
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(gateway.base_url + "/responses", json=ASK) as got,
        ):
            assert got.status == 200


async def test_a_change_that_fails_leaves_no_socket_that_nobody_accepts_at(server: ChatServer, folder: Path) -> None:
    async with changing(server, folder, "http", workers=1) as (gateway, file):
        before = children(gateway)
        write(file, server, reload={"watch": False}, workers=3)
        gateway.process.send_signal(signal.SIGHUP)
        new = await started(gateway, before, 3)
        os.kill(new[2], signal.SIGSTOP)
        # The others accept already.
        await until(lambda: all(map(listens, new[:2])))
        os.kill(new[2], signal.SIGKILL)
        await said(gateway, "settings_refused", 1)
        await all_answer(gateway)


@pytest.mark.parametrize("ended", [False, True], ids=["a worker that dies", "the end of all"])
async def test_what_began_in_workers_that_are_not_taken_is_finished(
    server: ChatServer, folder: Path, ended: bool
) -> None:
    """One of the new workers accepts while another one starts still."""
    async with changing(server, folder, "http", workers=1) as (gateway, file):
        before = children(gateway)
        write(file, server, reload={"watch": False}, workers=2)
        gateway.process.send_signal(signal.SIGHUP)
        new = await started(gateway, before, 2)
        os.kill(new[0], signal.SIGSTOP)
        await until(lambda: listens(new[1]))
        gate = asyncio.Event()
        server.default = lambda _: answer(parts=[event("a"), Wait(gate), *text_stream("b")])
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            began = [
                await session.post(gateway.base_url + "/responses", json={**ASK, "stream": True}) for _ in range(12)
            ]
            if ended:
                gateway.process.send_signal(signal.SIGTERM)
                await said(gateway, "draining", 1)
            os.kill(new[0], signal.SIGKILL)
            if not ended:
                await said(gateway, "settings_refused", 1)
                await said(gateway, "draining", 1)
            gate.set()
            for one in began:
                assert b"response.completed" in await one.read()
        assert await gateway.process.wait() == 0 if ended else True


async def test_an_old_worker_that_dies_during_a_change(server: ChatServer, folder: Path) -> None:
    async with changing(server, folder, "http", workers=2) as (gateway, _):
        before = children(gateway)
        gateway.process.send_signal(signal.SIGHUP)
        new = await started(gateway, before, 2)
        os.kill(new[1], signal.SIGSTOP)
        os.kill(min(before), signal.SIGKILL)
        await said(gateway, "process_ended", 1)
        await until(lambda: any(map(listens, programs(children(gateway) - before - set(new)))))
        os.kill(new[1], signal.SIGCONT)
        await said(gateway, "settings_reloaded", 1)
        await all_answer(gateway)


@pytest.mark.parametrize("later", [0.0, 0.02, 0.035, 0.05])
async def test_an_envoy_that_is_killed_in_its_start_leaves_one_that_serves_and_takes_changes(
    server: ChatServer, folder: Path, later: float
) -> None:
    """At whichever moment: it may have the listeners of the former one already."""
    async with changing(server, folder, "envoy") as (gateway, _):
        (former,) = envoys(gateway)
        gateway.process.send_signal(signal.SIGHUP)
        # The next one has the shared memory then.
        await said(gateway, "shutting down admin due to child startup", 1)
        await asyncio.sleep(later)
        for one in set(envoys(gateway)) - {former}:
            os.kill(one, signal.SIGKILL)
        await until(lambda: any('"settings_re' in line for line in gateway.log))
        taken = sum('"settings_reloaded"' in line for line in gateway.log)
        await served(gateway)
        gateway.process.send_signal(signal.SIGHUP)
        await said(gateway, "settings_reloaded", taken + 1)
        await all_answer(gateway, 4)


def shared_memory(folder: Path) -> Path:
    (base,) = folder.glob("run/antiphon-*/envoy-base")
    return Path(f"/dev/shm/envoy_shared_memory_{base.read_text().strip()}0")


async def test_the_shared_memory_of_a_killed_run_is_taken_away_by_the_next_one(
    server: ChatServer, folder: Path
) -> None:
    gateway = await start_gateway(server.base_url, folder, "--door", "envoy")
    left = shared_memory(folder)
    await gateway.stop(signal.SIGKILL)
    assert left.exists()
    gateway = await start_gateway(server.base_url, folder, "--door", "envoy")
    assert not left.exists()
    left = shared_memory(folder)
    assert left.exists()
    assert await gateway.stop() == 0
    assert not left.exists()


HIDE = "mount -t tmpfs -o ro none /dev/shm"


def can_hide() -> bool:
    return not subprocess.run(["unshare", "-rm", "sh", "-c", HIDE], capture_output=True).returncode


async def test_without_shared_memory_envoy_serves_and_a_change_is_refused(server: ChatServer, folder: Path) -> None:
    if not can_hide():
        pytest.skip("needs a mount namespace")
    python = folder.parent / f"{folder.name}-python"
    python.write_text(f'#!/bin/sh\nexec unshare -rm sh -c \'{HIDE} && exec {sys.executable} "$@"\' sh "$@"\n')
    python.chmod(0o700)
    gateway = await start_gateway(server.base_url, folder, "--door", "envoy", python=python)
    try:
        gateway.process.send_signal(signal.SIGHUP)
        assert "/dev/shm" in (await said(gateway, "settings_refused", 1))["problem"]
        await all_answer(gateway, 4)
    finally:
        assert await gateway.stop() == 0
