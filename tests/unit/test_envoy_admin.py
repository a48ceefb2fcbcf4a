"""What `antiphon up` asks Envoy's admin port and own ports: the bytes it sends, and what it makes of each answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from antiphon.config.processes import SidecarTlsSettings
from antiphon.supervisor.envoy_process import EnvoyAdmin
from antiphon.supervisor.http_probe import Connection, ask, own_tls
from tests.support.waiting import until

SECONDS = 60.0


def _plain(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


class _Peer:
    """A server that answers each request with the next of its answers, and hangs after the last one."""

    def __init__(self, answers: list[bytes]) -> None:
        self.answers = answers
        self.requests: list[str] = []
        self.opened = 0
        self.closed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        try:
            while True:
                self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
                if self.answers:
                    writer.write(self.answers.pop(0))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed += 1
        finally:
            writer.close()


@asynccontextmanager
async def _peer(folder: Path, *answers: bytes) -> AsyncIterator[tuple[str, _Peer]]:
    peer = _Peer(list(answers))
    server = await asyncio.start_unix_server(peer.serve, folder / "s")
    try:
        yield f"unix:{folder / 's'}", peer
    finally:
        server.close()


async def test_a_request_has_its_method_its_path_and_its_headers(tmp_path: Path) -> None:
    async with _peer(tmp_path, _plain(b"yes")) as (place, peer):
        assert await ask(place, "/x?y", SECONDS, method="POST", headers={"host": "there", "a": "b"}) == b"yes"
        assert peer.requests == ["POST /x?y HTTP/1.1\r\nhost: there\r\ncontent-length: 0\r\na: b\r\n\r\n"]
        await until(lambda: peer.closed, SECONDS)


async def test_without_more_it_is_a_get_of_an_own_host(tmp_path: Path) -> None:
    async with _peer(tmp_path, _plain(b"")) as (place, peer):
        assert await ask(place, "/x", SECONDS) == b""
        assert peer.requests == ["GET /x HTTP/1.1\r\nhost: here\r\ncontent-length: 0\r\n\r\n"]


@pytest.mark.parametrize("status", [199, 201, 204, 404, 503])
async def test_only_a_200_is_an_answer(tmp_path: Path, status: int) -> None:
    async with _peer(tmp_path, _plain(b"no", status)) as (place, _):
        assert await ask(place, "/", SECONDS) is None


@pytest.mark.parametrize(
    "garbage",
    [
        b"what is this\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nzz\r\n",
        b"HTTP/1.1 x y\r\ncontent-length: 1\r\n\r\n1",
    ],
)
async def test_what_is_no_http_is_no_answer(tmp_path: Path, garbage: bytes) -> None:
    async with _peer(tmp_path, garbage) as (place, _):
        assert await ask(place, "/", SECONDS) is None


async def test_nobody_there_and_a_silent_peer_are_no_answers(tmp_path: Path) -> None:
    assert await ask(f"unix:{tmp_path / 'nobody'}", "/", SECONDS) is None
    async with _peer(tmp_path) as (place, peer):
        assert await ask(place, "/", 0.05) is None
        await until(lambda: peer.closed, SECONDS)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "http://127.0.0.1:{}"])
async def test_a_port_is_asked_as_well(form: str) -> None:
    peer = _Peer([_plain(b"here")])
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    try:
        assert await ask(form.format(server.sockets[0].getsockname()[1]), "/", SECONDS) == b"here"
    finally:
        server.close()


async def test_a_connection_serves_requests_one_after_another_and_opens_again(tmp_path: Path) -> None:
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nab\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n"
    async with _peer(tmp_path, chunked, _plain(b"second", 404), _plain(b"third"), b"broken\r\n\r\n", _plain(b"5")) as (
        place,
        peer,
    ):
        connection = Connection(place)
        assert await connection.exchange("GET", "/1") == (200, b"ab\r\n0123456789")
        assert await connection.exchange("GET", "/2") == (404, b"second")
        assert peer.opened == 1
        connection.close()
        connection.close()
        assert await connection.exchange("GET", "/3") == (200, b"third")
        assert peer.opened == 2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await connection.exchange("GET", "/4")
        # What came too late is not the next request's answer.
        assert await connection.exchange("GET", "/5") == (200, b"5")
        assert peer.opened == 3
        connection.close()


def test_the_context_for_own_ports_asks_nobody_for_a_name() -> None:
    context = own_tls(SidecarTlsSettings())
    assert (context.check_hostname, context.verify_mode.name) == (False, "CERT_NONE")


def _cluster(name: str, *health: dict[str, bool]) -> dict[str, object]:
    return {"name": name, "host_statuses": [{"health_status": one} for one in health]}


async def test_endpoints_are_healthy_when_no_check_failed_or_is_pending(tmp_path: Path) -> None:
    failed, pending = {"failed_active_health_check": True}, {"pending_active_hc": True}
    shown = {
        "cluster_statuses": [
            _cluster("a", {"eds_health_status": True}, failed, pending),
            _cluster("b", {}, {"failed_active_health_check": False}),
            _cluster("other", {}),
            {"name": "a", "host_statuses": [{}]},
            {"name": "a"},
        ]
    }
    async with _peer(tmp_path, _plain(json.dumps(shown).encode()), _plain(b"{}"), _plain(b"", 500)) as (place, peer):
        admin = EnvoyAdmin(place)
        assert [await admin.healthy_endpoints("a", "b") for _ in range(3)] == [4, 0, 0]
        assert {one.split("\r\n")[0] for one in peer.requests} == {"GET /clusters?format=json HTTP/1.1"}
        admin.close()


async def test_the_port_of_a_listener(tmp_path: Path) -> None:
    shown = {
        "listener_statuses": [
            {"name": "other", "local_address": {"socket_address": {"port_value": 1}}},
            {"name": "public", "local_address": {"socket_address": {"port_value": 8080}}},
            {"name": "pipe", "local_address": {"pipe": {"path": "/x"}}},
            {"name": "bare"},
        ]
    }
    answers = [_plain(json.dumps(shown).encode())] * 4
    async with _peer(tmp_path, *answers, _plain(b"", 503)) as (place, peer):
        admin = EnvoyAdmin(place)
        ports = [await admin.bound_port(name) for name in ("public", "pipe", "bare", "none", "public")]
        assert ports == [8080, None, None, None, None]
        assert {one.split("\r\n")[0] for one in peer.requests} == {"GET /listeners?format=json HTTP/1.1"}
        admin.close()


async def test_its_orders_and_its_questions_are_these_requests(tmp_path: Path) -> None:
    both = b"http.antiphon.downstream_rq_active: 7\nhttp.console.downstream_rq_active: 2\n"
    stats = [_plain(both), _plain(b""), _plain(b"x: No recorded values\n")]
    states = [_plain(b"LIVE\n"), _plain(b"DRAINING\n", 503), _plain(b"INITIALIZING\n", 503)]
    async with _peer(tmp_path, *states, _plain(b"OK"), _plain(b"OK"), *stats) as (place, peer):
        admin = EnvoyAdmin(place)
        assert [await admin.is_live() for _ in states] == [True, True, False]
        await admin.say_leaving(SECONDS)
        await admin.refuse_connections(SECONDS)
        assert [await admin.requests_in_flight(SECONDS) for _ in range(3)] == [9, 0, 0]
        flight = "GET /stats?filter=^http\\.(antiphon|console)\\.downstream_rq_active$"
        assert [one.split(" HTTP")[0] for one in peer.requests] == [
            "GET /ready",
            "GET /ready",
            "GET /ready",
            "POST /healthcheck/fail",
            "POST /drain_listeners?inboundonly",
            flight,
            flight,
            flight,
        ]
        assert peer.opened == 1
        admin.close()
        await until(lambda: peer.closed, SECONDS)


async def test_it_listens_until_another_has_its_listeners_or_it_has_ended(tmp_path: Path) -> None:
    name = b"listener_manager.listener_stopped: "
    async with _peer(tmp_path, _plain(name + b"0\n"), _plain(name + b"1\n"), _plain(b""), _plain(b"", 500)) as (
        place,
        peer,
    ):
        admin = EnvoyAdmin(place)
        assert [await admin.has_stopped_listening() for _ in range(4)] == [False, True, False, True]
        assert peer.requests[0].startswith("GET /stats?filter=^listener_manager\\.listener_stopped$ ")
        admin.close()
    gone = EnvoyAdmin(f"unix:{tmp_path / 'gone'}")
    assert await gone.has_stopped_listening() and await gone.requests_in_flight(SECONDS) == 0
    assert not await gone.is_live() and await gone.bound_port("public") is None


async def test_questions_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    async with _peer(tmp_path, _plain(b"a: 1"), _plain(b"a: 2"), _plain(b"a: 3")) as (place, peer):
        admin = EnvoyAdmin(place)
        assert await asyncio.gather(*(admin.requests_in_flight(SECONDS) for _ in range(3))) == [1, 2, 3]
        assert peer.opened == 1
        # A silent Envoy is waited for only as long as asked.
        assert not await admin.is_live(0.05)
        admin.close()


@pytest.mark.parametrize("line", [b"HTTP/1.1", b"HTTP/1.1 ", b"HTTP/1.1 x", b"", b"HTTP/1.1 2x0 OK"])
async def test_an_answer_without_a_status_is_no_answer(tmp_path: Path, line: bytes) -> None:
    async with _peer(tmp_path, line + b"\r\nTransfer-Encoding:chunked\r\n\r\n0\r\n\r\n") as (place, _):
        assert await ask(place, "/", SECONDS) is None
