"""Settings that change while a gateway runs: SIGHUP, the watched file, what is refused, old workers beside new ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.support.chat_server import ChatServer, Wait, WaitGone, answer, event, text_stream
from tests.support.gateway import Gateway, post, start_gateway
from tests.support.state import look
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("hangups_are_heard")]


ASK = {"model": "m", "input": "hi"}
METRICS = {"ANTIPHON_METRICS__LISTEN": "127.0.0.1:0"}
KEYS = ("key-of-the-first-client", "key-of-the-second-client")


def write(file: Path, server: ChatServer, **given: Any) -> None:
    settings = {"upstream": {"url": server.base_url, "profile": "generic", "auth": "none"}, **given}
    new = file.with_suffix(".new")
    new.write_text(yaml.safe_dump(settings))
    new.replace(file)


async def said(gateway: Gateway, event: str, times: int) -> dict[str, Any]:
    """The line of this event that is there for the n-th time."""

    def lines() -> list[str]:
        return [line for line in gateway.log if f'"message":"{event}"' in line or f'"message": "{event}"' in line]

    await until(lambda: len(lines()) >= times)
    found: dict[str, Any] = json.loads(lines()[times - 1])
    return found


async def metrics(gateway: Gateway) -> str:
    where = json.loads(await gateway.log_line('"metrics"'))["listen"]
    async with aiohttp.ClientSession() as session, session.get(f"http://{where}/metrics") as got:
        return await got.text()


def number(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    assert found is not None, series
    return float(found[1])


async def answers(gateway: Gateway, key: str) -> set[int]:
    """What several new connections get with this key: each may reach another worker."""
    headers = {"authorization": f"Bearer {key}"}
    return {(await post(gateway.base_url + "/responses", ASK, headers)).status for _ in range(8)}


def envoys(gateway: Gateway) -> list[int]:
    """The process ids of the Envoys that run."""
    pid = gateway.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    names = {child: Path(Path(f"/proc/{child}/cmdline").read_text().split("\0")[0]).name for child in children}
    return [int(child) for child, name in names.items() if "envoy" in name]


async def served(gateway: Gateway) -> None:
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                if (await post(gateway.base_url + "/responses", ASK)).status == 200:
                    return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("door", ["http", "envoy"])
async def test_hangup_starts_new_workers_and_drains_the_old_ones(door: str, server: ChatServer, folder: Path) -> None:
    file = folder.parent / f"{folder.name}.yaml"
    keys = {"reload": {"watch": False}, "owner": {"api_keys": [KEYS[0]]}}
    write(file, server, **keys)
    more = ("--config", str(file), "--door", door, "--workers", "2")
    gateway = await start_gateway(None, folder, *more, environ=METRICS)
    try:
        assert await answers(gateway, KEYS[0]) == {200}
        gate = asyncio.Event()
        server.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
        async with (
            aiohttp.ClientSession(headers={"authorization": f"Bearer {KEYS[0]}"}) as session,
            session.post(gateway.base_url + "/responses", json={**ASK, "stream": True}) as old,
        ):
            await old.content.readuntil(b"output_text.delta")
            write(file, server, **{**keys, "owner": {"api_keys": [KEYS[1]]}})
            gateway.process.send_signal(signal.SIGHUP)
            line = await said(gateway, "settings_reloaded", 1)
            assert (line["because"], line["changed"]) == ("SIGHUP", ["owner.api_keys"])
            assert await answers(gateway, KEYS[0]) == {401}
            assert await answers(gateway, KEYS[1]) == {200}
            # One that comes while the old ones are there waits for their end, and whoever has begun is let end.
            gateway.process.send_signal(signal.SIGHUP)
            await said(gateway, "settings_wait", 1)
            gate.set()
            assert b"response.completed" in await old.content.read()
        assert (await said(gateway, "settings_reloaded", 2))["changed"] == []
        # Nothing is lost of what was counted, in whichever worker.
        counted = sum(
            float(line.rpartition(" ")[2])
            for line in (await metrics(gateway)).splitlines()
            if line.startswith("antiphon_upstream_requests_total")
        )
        assert counted == len(server.requests) == 17
        # Refused whole: what could change does not either.
        write(file, server, **{**keys, "strict": True, "reload": {"watch": True}})
        gateway.process.send_signal(signal.SIGHUP)
        line = await said(gateway, "settings_refused", 1)
        assert line["problem"].startswith(
            "reload.watch cannot change while Antiphon runs (Antiphon reads this setting only at the start)"
        )
        file.write_text("upstream: {url: [")
        gateway.process.send_signal(signal.SIGHUP)
        line = await said(gateway, "settings_refused", 2)
        assert line["problem"].startswith(f"the settings file {file} is not valid YAML: line 1")
        assert await answers(gateway, KEYS[1]) == {200}
        text = await metrics(gateway)
        assert number(text, 'antiphon_config_reloads_total{result="accepted"}') == 2
        assert number(text, 'antiphon_config_reloads_total{result="refused"}') == 2
        assert number(text, "antiphon_config_last_reload_successful") == 0
        assert not any(key in line for key in KEYS for line in gateway.log)
    finally:
        assert await gateway.stop() == 0


@pytest.mark.parametrize("door", ["http", "envoy"])
async def test_workers_that_cannot_start_leave_those_that_serve(door: str, server: ChatServer, folder: Path) -> None:
    file = folder.parent / f"{folder.name}.yaml"
    write(file, server, reload={"watch": False})
    gateway = await start_gateway(None, folder, "--config", str(file), "--door", door)
    try:
        write(file, server, reload={"watch": False}, models=[{"match": "m", "upstream": "default", "profile": "vllm"}])
        gateway.process.send_signal(signal.SIGHUP)
        await said(gateway, "settings_reloaded", 1)
        # What only a worker looks at.
        write(file, server, reload={"watch": False}, fetch={"allow_private": ["10.0.0.0/99"]})
        gateway.process.send_signal(signal.SIGHUP)
        assert "fetch.allow_private" in (await said(gateway, "settings_refused", 1))["problem"]
        assert (await post(gateway.base_url + "/responses", ASK)).status == 200
        write(file, server, reload={"watch": False})
        gateway.process.send_signal(signal.SIGHUP)
        await said(gateway, "settings_reloaded", 2)
        assert (await post(gateway.base_url + "/responses", ASK)).status == 200
    finally:
        assert await gateway.stop() == 0


async def test_what_shapes_envoys_configuration_changes(server: ChatServer, folder: Path) -> None:
    """The upstream's address and key, which Envoy's environment holds, and limits of its listener."""
    file = folder.parent / f"{folder.name}.yaml"
    write(file, server, reload={"watch": False})
    gateway = await start_gateway(None, folder, "--config", str(file), "--door", "envoy")
    try:
        async with ChatServer() as other:
            upstream = {"url": other.base_url, "profile": "generic", "api_key": "sk-another"}
            write(file, other, reload={"watch": False}, upstream=upstream, timeouts={"send": 5}, strict=True)
            gateway.process.send_signal(signal.SIGHUP)
            await said(gateway, "settings_reloaded", 1)
            assert (await post(gateway.base_url + "/responses", ASK)).status == 200
            assert other.requests[-1].header("authorization") == "Bearer sk-another"
            # An Envoy that dies is followed by one with the same settings, and another takes the place of that too.
            os.kill(envoys(gateway)[-1], signal.SIGKILL)
            await said(gateway, "process_ended", 1)
            await until(lambda: len(envoys(gateway)) == 1)
            await served(gateway)
            assert len(other.requests) > 1
        write(file, server, reload={"watch": False})
        gateway.process.send_signal(signal.SIGHUP)
        await said(gateway, "settings_reloaded", 2)
        assert (await post(gateway.base_url + "/responses", ASK)).status == 200
        assert not server.requests[-1].header("authorization")
    finally:
        assert await gateway.stop() == 0


async def test_a_symbolic_link_that_is_renamed_over_is_seen(server: ChatServer, folder: Path) -> None:
    """As Kubernetes changes a ConfigMap: `..data` leads to another folder from one moment to the next."""
    place = folder.parent / f"{folder.name}-config"
    for name, keys in (("1", KEYS[:1]), ("2", KEYS[1:])):
        (place / name).mkdir(parents=True)
        write(place / name / "antiphon.yaml", server, owner={"api_keys": list(keys)})
    (place / "..data").symlink_to("1")
    (place / "antiphon.yaml").symlink_to("..data/antiphon.yaml")
    gateway = await start_gateway(None, folder, "--config", str(place / "antiphon.yaml"), "--door", "http")
    try:
        assert await answers(gateway, KEYS[0]) == {200}
        (place / "..data_tmp").symlink_to("2")
        (place / "..data_tmp").replace(place / "..data")
        line = await said(gateway, "settings_reloaded", 1)
        assert (line["because"], line["changed"]) == ("the file has changed", ["owner.api_keys"])
        assert (await answers(gateway, KEYS[0]), await answers(gateway, KEYS[1])) == ({401}, {200})
        (place / "2" / "antiphon.yaml").unlink()
        line = await said(gateway, "settings_refused", 1)
        assert "cannot be read" in line["problem"]
        assert await answers(gateway, KEYS[1]) == {200}
    finally:
        assert await gateway.stop() == 0


@pytest.mark.parametrize("door", ["http", "envoy"])
async def test_a_signal_while_old_workers_drain_ends_all(door: str, server: ChatServer, folder: Path) -> None:
    """What the old ones have is let finish within the drain, and cut after it."""
    file = folder.parent / f"{folder.name}.yaml"
    write(file, server, reload={"watch": False}, timeouts={"drain": 2})
    gateway = await start_gateway(None, folder, "--config", str(file), "--door", door)
    server.script(answer(parts=[event("a"), WaitGone()]))
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(gateway.base_url + "/responses", json={**ASK, "stream": True}) as old,
        ):
            await old.content.readuntil(b"output_text.delta")
            gateway.process.send_signal(signal.SIGHUP)
            await said(gateway, "settings_reloaded", 1)
            began = time.monotonic()
            assert await gateway.stop() == 1
            assert time.monotonic() - began < 8
            with contextlib.suppress(aiohttp.ClientError):
                await old.content.read()
    finally:
        await gateway.stop()
    rows = [row[0] for row in look(folder, "SELECT status FROM responses")]
    assert rows == ["failed"], "\n".join(gateway.log)


async def test_a_signal_soon_after_a_reload_ends_all_at_once_if_nothing_is_in_flight(
    server: ChatServer, folder: Path
) -> None:
    """An Envoy that drains is live, so the Envoy that it replaced may end."""
    file = folder.parent / f"{folder.name}.yaml"
    write(file, server, reload={"watch": False}, timeouts={"drain": 30, "notice": 4})
    gateway = await start_gateway(None, folder, "--config", str(file), "--door", "envoy")
    try:
        gateway.process.send_signal(signal.SIGHUP)
        await said(gateway, "settings_reloaded", 1)
        began = time.monotonic()
        assert await gateway.stop() == 0, "\n".join(gateway.log[-20:])
        assert time.monotonic() - began < 20
        assert await said(gateway, "drained", 1)
    finally:
        await gateway.stop()
