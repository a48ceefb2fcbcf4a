"""Settings that change while a gateway runs: SIGHUP, the watched file, what is refused, all workers at once."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.support.chat_server import ChatServer, Wait, answer, event, text_stream
from tests.support.gateway import Gateway, post, start_gateway
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


@pytest.mark.parametrize("door", ["http", "envoy"])
async def test_hangup_swaps_all_workers_or_none(door: str, server: ChatServer, folder: Path) -> None:
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
            # Whoever has begun is let end.
            gate.set()
            assert b"response.completed" in await old.content.read()
        # Refused whole: what could change does not either.
        write(file, server, **{**keys, "background": {"attempts": 2}})
        gateway.process.send_signal(signal.SIGHUP)
        line = await said(gateway, "settings_refused", 1)
        assert line["problem"] == "background.attempts cannot change while it runs: restart, or take the change back"
        assert await answers(gateway, KEYS[1]) == {200}
        file.write_text("upstream: {url: [")
        gateway.process.send_signal(signal.SIGHUP)
        line = await said(gateway, "settings_refused", 2)
        assert line["problem"].startswith(f"the settings file {file} is not valid YAML: line 1")
        text = await metrics(gateway)
        assert number(text, 'antiphon_config_reloads_total{result="accepted"}') == 1
        assert number(text, 'antiphon_config_reloads_total{result="refused"}') == 2
        assert number(text, "antiphon_config_last_reload_successful") == 0
        assert not any(key in line for key in KEYS for line in gateway.log)
        # A worker that is started now has what the others have.
        write(file, server, **{**keys, "owner": {"api_keys": [KEYS[1]]}})
        gateway.process.send_signal(signal.SIGHUP)
        assert (await said(gateway, "settings_reloaded", 2))["changed"] == []
        assert number(await metrics(gateway), "antiphon_config_last_reload_successful") == 1
    finally:
        assert await gateway.stop() == 0


async def test_what_shapes_envoys_configuration_is_refused(server: ChatServer, folder: Path) -> None:
    file = folder.parent / f"{folder.name}.yaml"
    write(file, server, reload={"watch": False})
    gateway = await start_gateway(None, folder, "--config", str(file), "--door", "envoy")
    try:
        async with ChatServer() as other:
            write(file, other, reload={"watch": False}, strict=True)
            gateway.process.send_signal(signal.SIGHUP)
            line = await said(gateway, "settings_refused", 1)
        assert line["problem"].startswith("upstream.url: Envoy's configuration is made of this")
    finally:
        assert await gateway.stop() == 0


@pytest.mark.parametrize("command", ["serve", "up"])
async def test_a_symbolic_link_that_is_renamed_over_is_seen(command: str, server: ChatServer, folder: Path) -> None:
    """As Kubernetes changes a ConfigMap: `..data` leads to another folder from one moment to the next."""
    place = folder.parent / f"{folder.name}-config"
    for name, keys in (("1", KEYS[:1]), ("2", KEYS[1:])):
        (place / name).mkdir(parents=True)
        write(place / name / "antiphon.yaml", server, owner={"api_keys": list(keys)})
    (place / "..data").symlink_to("1")
    (place / "antiphon.yaml").symlink_to("..data/antiphon.yaml")
    more = ("--config", str(place / "antiphon.yaml"), *(("--door", "http") if command == "up" else ()))
    gateway = await start_gateway(None, folder, *more, command=command)
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
