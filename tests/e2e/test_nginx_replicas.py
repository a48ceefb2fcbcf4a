"""Replicas behind a real nginx with the shipped configuration: none, one that breaks off, is killed, or is stopped."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import aiohttp

from tests.support.chat_server import ChatServer, answer, never
from tests.support.gateway import start_gateway
from tests.support.nginx import ALICE, ASKING, NEEDS_NGINX, start_nginx
from tests.support.streams import TERMINAL, events

pytestmark = NEEDS_NGINX

_CLIENTS, _BEFORE, _AFTER = 8, 40, 80


async def test_no_replica_and_one_that_says_nothing(folder: Path) -> None:
    async with ChatServer() as silent, aiohttp.ClientSession(headers=ALICE) as session:
        silent.default = lambda _: never()
        late = {"proxy_read_timeout    3700s;": "proxy_read_timeout 1s;"}
        for name, replicas, changes, expected in (
            ("none", ["127.0.0.1:1"], {}, (503, "adapter_unavailable", "1")),
            ("late", [f"127.0.0.1:{silent.port}"], late, (504, "adapter_timeout", None)),
        ):
            nginx = await start_nginx(folder / name, replicas, changes)
            try:
                async with session.post(f"{nginx.base_url}/responses", json=ASKING, ssl=nginx.tls) as got:
                    error = (await got.json())["error"]
                    assert (got.status, error["code"], got.headers.get("retry-after")) == expected
                    assert error["request_id"] == got.headers["x-request-id"]
            finally:
                await nginx.stop()


async def test_a_change_that_was_sent_is_never_sent_twice(folder: Path) -> None:
    """Two replicas that break off: a POST reaches one of them, a GET both. Connections to them are kept."""
    async with ChatServer() as one, ChatServer() as other, aiohttp.ClientSession() as session:
        nginx = await start_nginx(folder / "nginx", [f"127.0.0.1:{one.port}", f"127.0.0.1:{other.port}"])
        try:
            for method, reached in (("GET", 2), ("POST", 1)):
                one.default = other.default = lambda _: answer(framing="none")
                asked = len(one.requests) + len(other.requests)
                async with session.request(method, f"{nginx.base_url}/models", ssl=nginx.tls, data=b"{}") as got:
                    assert got.status == 503, await got.text()
                assert len(one.requests) + len(other.requests) - asked == reached
        finally:
            await nginx.stop()


async def test_connections_to_a_replica_are_kept(folder: Path) -> None:
    async with ChatServer() as replica, aiohttp.ClientSession() as session:
        nginx = await start_nginx(folder / "nginx", [f"127.0.0.1:{replica.port}"])
        try:
            for _ in range(5):
                async with session.get(f"{nginx.base_url}/models", ssl=nginx.tls) as got:
                    assert got.status == 200 and await got.read()
        finally:
            await nginx.stop()
    assert {request.connection for request in replica.requests} == {0}


async def test_a_replica_that_is_killed(folder: Path) -> None:
    """Its port refuses: nothing was sent, so another replica is asked, for changes too."""
    async with ChatServer() as server, aiohttp.ClientSession(headers=ALICE) as session:
        replicas = [await start_gateway(server.base_url, folder / "data", command="serve") for _ in range(2)]
        nginx = await start_nginx(folder / "nginx", [one.origin.removeprefix("http://") for one in replicas])
        try:
            await replicas[0].stop(signal.SIGKILL)
            for _ in range(20):
                async with session.post(f"{nginx.base_url}/responses", json=ASKING, ssl=nginx.tls) as got:
                    assert got.status == 200, await got.text()
            assert len(server.requests) == 20
        finally:
            await nginx.stop()
            await replicas[1].stop()


async def test_a_replica_is_stopped_under_load(folder: Path) -> None:
    """First nginx leaves it out, then it is stopped: no stream is cut, and no request fails."""
    environ = {"ANTIPHON_TIMEOUTS__NOTICE": "2", "ANTIPHON_TIMEOUTS__DRAIN": "60"}
    async with ChatServer() as server:
        start = [start_gateway(server.base_url, folder / "data", command="serve", environ=environ) for _ in range(2)]
        staying, leaving = [await one for one in start]
        places = [one.origin.removeprefix("http://") for one in (staying, leaving)]
        nginx = await start_nginx(folder / "nginx", places)
        done, enough = [0], asyncio.Event()
        wrong: list[str] = []

        async def client() -> None:
            # A connection for each request: at a reload nginx closes those that are idle, under a request if it must.
            connector = aiohttp.TCPConnector(ssl=nginx.tls, force_close=True)
            async with aiohttp.ClientSession(connector=connector, headers=ALICE) as session:
                while not enough.is_set():
                    async with session.post(f"{nginx.base_url}/responses", json={**ASKING, "stream": True}) as got:
                        told = [event async for event in events(got)] if got.status == 200 else [await got.json()]
                    if told[-1] is not None or (told[-2] or {})["type"] not in TERMINAL:
                        wrong.append(str(told[-1]))
                    done[0] += 1

        async def answered(count: int) -> None:
            goal = done[0] + count
            while done[0] < goal:
                ended, _ = await asyncio.wait(clients, timeout=0.01, return_when=asyncio.FIRST_COMPLETED)
                assert not ended, [one.exception() for one in ended]

        try:
            async with asyncio.timeout(240):
                clients = [asyncio.create_task(client()) for _ in range(_CLIENTS)]
                await answered(_BEFORE)
                await nginx.leave_out(places[1])
                status = await leaving.stop()
                await answered(_AFTER)
                enough.set()
                await asyncio.gather(*clients)
        finally:
            await nginx.stop()
            await staying.stop()
        print(f"{done[0]} streams of {_CLIENTS} clients, {len(wrong)} failed or cut; the replica ended with {status}")
        assert (wrong, status) == ([], 0)
        assert any(f'"{places[1]}"' in line for line in nginx.access_log()), "it had its share before"
