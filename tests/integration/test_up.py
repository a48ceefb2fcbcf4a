"""The serving commands as processes: what they print, what they leave behind, and what goes wrong at the start.

Draining, dying children and several workers under load are in `tests/e2e/test_lifecycle.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from tests.support.certificates import Authority
from tests.support.chat_server import ChatServer, Wait, WaitGone, answer, event, text_stream
from tests.support.commands import SECONDS, Command, run_command
from tests.support.gateway import Gateway, post, start_gateway
from tests.support.postgres import free_port
from tests.support.state import look, on_postgres
from tests.support.waiting import until

pytestmark = pytest.mark.slow

KEY = "key-that-nobody-may-see"
STREAM = {"model": "demo-model", "input": "hi", "stream": True}


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as made:
        yield made


async def _get(url: str, unix: str | None = None, **headers: str) -> tuple[int, bytes]:
    connector = aiohttp.UnixConnector(unix) if unix else None
    async with aiohttp.ClientSession(connector=connector) as session, session.get(url, headers=headers) as got:
        return got.status, await got.read()


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def _statuses(data: Path) -> list[str]:
    return [row[0] for row in look(data, "SELECT status FROM responses")]


# antiphon up


@pytest.mark.e2e
async def test_the_key_reaches_the_upstream_and_nothing_else(server: ChatServer, folder: Path) -> None:
    """Not the command lines, not the files, not the logs; and what is on disk is for this user alone."""
    environ = {"ANTIPHON_UPSTREAM__API_KEY": KEY, "ANTIPHON_LOG__LEVEL": "debug"}
    gateway = await start_gateway(server.base_url, folder, environ=environ)
    try:
        for mode in ("relay", "drive"):
            sent = {"authorization": "Bearer the-clients-own", "antiphon-mode": mode}
            made = await post(gateway.base_url + "/responses", {"model": "demo-model", "input": "hi"}, sent)
            assert made.status == 200, made.body
            assert server.requests[-1].header("authorization") == f"Bearer {KEY}"
        pids = _descendants(gateway.process.pid)
        # Sidecar, Envoy, and for each the process that watches for the parent's end.
        assert len(pids) == 4
        for pid in (gateway.process.pid, *pids):
            assert KEY not in Path(f"/proc/{pid}/cmdline").read_text()
        files = list(folder.rglob("*"))
        kept = set() if on_postgres() else {"owner.key", "sessions.db"}
        assert {"envoy.yaml", "settings.json", *kept} <= {path.name for path in files}
        for path in files:
            # To connect to a socket is to write to it.
            assert path.stat().st_mode & (0o022 if path.is_socket() else 0o077) == 0, path
            if path.is_file():
                content = path.read_bytes()
                assert KEY.encode() not in content and b"the-clients-own" not in content, path
    finally:
        assert await gateway.stop() == 0
    assert KEY not in "\n".join(gateway.log)
    assert not list((folder / "run").glob("antiphon-*"))


@pytest.mark.e2e
async def test_what_it_prints(server: ChatServer, processes: list[Command], folder: Path) -> None:
    """One line on standard output; on standard error JSON, every line of it, whoever wrote it."""
    flags = ("--listen", "127.0.0.1:0", "--data", str(folder))
    up = await run_command(processes, "up", "--upstream", server.base_url, *flags, ANTIPHON_ENVOY__ACCESS_LOG="true")
    url = await up.line("ready: ")
    assert (await post(url + "/responses", {"model": "demo-model", "input": "hi"})).status == 200
    assert await up.end(signal.SIGTERM) == 0
    assert up.out == [f"ready: {url}"]
    lines = [json.loads(line) for line in up.err]
    assert {line.get("process") for line in lines} == {None, "sidecar 0", "envoy"}
    (access,) = [line for line in lines if line.get("process") == "envoy" and line.get("method") == "POST"]
    assert (access["status"], access["model"]) == (200, "demo-model")


@pytest.mark.parametrize("door", [pytest.param("envoy", marks=pytest.mark.e2e), "http"])
async def test_a_taken_address_is_an_error_before_anything_starts(
    door: str, server: ChatServer, processes: list[Command], folder: Path
) -> None:
    """Also when the other one would share it: two that answer on one port are nobody's wish."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        up = await run_command(
            processes, "up", "--upstream", server.base_url, "--listen", listen, "--door", door, "--data", str(folder)
        )
        assert await up.end() == 2
    assert up.out == []
    (said,) = up.err
    assert said.startswith(f"antiphon: listen: cannot listen on {listen}: Address already in use; ")
    assert "choose another address with --listen" in said


async def test_an_envoy_that_ends_at_the_start(processes: list[Command], folder: Path) -> None:
    broken = folder / "envoy"
    version = "[ $1 = --version ] && exec echo 'envoy  version: 9e55809/1.40.0/Clean/RELEASE/BoringSSL'"
    broken.write_text(f"#!/bin/sh\n{version}\necho one\necho '  key: is wrong' >&2\nexit 3\n")
    broken.chmod(0o700)
    up = await run_command(
        processes, "up", "--listen", "127.0.0.1:0", "--envoy", str(broken), "--data", str(folder / "data")
    )
    assert await up.end() == 1
    assert up.out == []
    lines = [json.loads(line) for line in up.err]
    last = lines[-1]
    assert (last["level"], last["message"]) == ("error", "gave_up")
    assert last["problem"].startswith("envoy ended with status 3; the log above has its last output. ")
    assert (last["name"], last["deaths"]) == ("envoy", 1) and "antiphon doctor" in last["problem"]
    assert [line.get("text") for line in lines].count("  key: is wrong") == 1
    assert not list((folder / "data" / "run").glob("antiphon-*"))


async def test_on_a_terminal_the_reason_for_the_end_is_a_sentence(processes: list[Command], folder: Path) -> None:
    broken = folder / "envoy"
    version = "[ $1 = --version ] && exec echo 'envoy  version: 9e55809/1.40.0/Clean/RELEASE/BoringSSL'"
    broken.write_text(f"#!/bin/sh\n{version}\nexit 3\n")
    broken.chmod(0o700)
    listen = ("--listen", "127.0.0.1:0", "--envoy", str(broken))
    up = await run_command(processes, "up", *listen, "--data", str(folder / "data"), ANTIPHON_LOG__FORMAT="console")
    assert await up.end() == 1
    assert up.err[-1].startswith("antiphon: envoy ended with status 3; ")
    assert not any("gave_up" in line for line in up.err)


@pytest.mark.parametrize("door", [pytest.param("envoy", marks=pytest.mark.e2e), "http"])
async def test_a_worker_that_cannot_start(door: str, processes: list[Command], folder: Path) -> None:
    (folder / "sessions.db").write_bytes(b"this is no database" * 100)
    up = await run_command(processes, "up", "--listen", "127.0.0.1:0", "--door", door, "--data", str(folder))
    assert await up.end() == 1
    assert up.out == []
    # As one sentence, like what is wrong with the settings; the worker's own line is not there besides.
    assert up.err[-1].startswith("antiphon: Reading failed in database ")
    assert sum("not a database" in line for line in up.err) == 1


@pytest.mark.parametrize("door", ["envoy", "http"])
@pytest.mark.parametrize(
    ("setting", "given"),
    [
        ("upstream.ca_file", {"upstream": {"url": "https://x/v1", "ca_file": "/no/file"}}),
        ("upstreams.a.ca_file", {"upstreams": {"a": {"url": "https://x/v1", "ca_file": "/no/file"}}}),
        ("sidecar.tls.key", {"sidecar": {"tls": {"cert": __file__, "key": "/no/file"}}}),
        ("sidecar.tls.ca", {"sidecar": {"tls": {"cert": "CERT", "key": "KEY", "ca": "/no/file"}}}),
    ],
)
async def test_a_file_that_is_not_there_is_named_before_anything_starts(
    door: str, setting: str, given: dict[str, Any], processes: list[Command], folder: Path
) -> None:
    if door == "http" and setting.startswith("sidecar"):
        return  # its ports are not open
    signed = Authority(folder).sign("sidecar")
    text = json.dumps(given).replace("CERT", str(signed.cert)).replace("KEY", str(signed.key))
    (folder / "settings.yaml").write_text(text)
    flags = ("--listen", "127.0.0.1:0", "--door", door, "--data", str(folder / "data"))
    up = await run_command(processes, "up", "--config", str(folder / "settings.yaml"), *flags)
    assert await up.end() == 2
    (line,) = up.err
    assert line.startswith(f"antiphon: {setting}: /no/file cannot be ") and "No such file" in line
    assert not (folder / "data").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("mode", ["relay", "drive"])
async def test_a_second_signal_stops_at_once(mode: str, server: ChatServer, folder: Path) -> None:
    """The stream that would have held it up is cut or fails, and its response is stored as failed."""
    gateway = await start_gateway(server.base_url, folder, "--mode", mode)
    server.script(answer(parts=[event("a"), WaitGone()]))
    async with aiohttp.ClientSession() as session, session.post(gateway.base_url + "/responses", json=STREAM) as cut:
        await cut.content.readuntil(b"output_text.delta")
        gateway.process.send_signal(signal.SIGINT)
        await gateway.log_line('"draining"')
        assert await gateway.stop(signal.SIGINT) == 1
        rest = b""
        with contextlib.suppress(aiohttp.ClientError):
            rest = await cut.content.read()
        # In drive the sidecar may just have had the time to say so.
        assert not rest or (mode == "drive" and b"event: response.failed" in rest)
    assert _statuses(folder) == ["failed"], "\n".join(gateway.log)
    await asyncio.wait_for(server.requests[-1].gone.wait(), SECONDS)


@pytest.mark.e2e
async def test_draining_waits_for_what_only_envoy_knows(server: ChatServer, folder: Path) -> None:
    """A chat call that passes through is no request of the sidecar's, and is finished all the same."""
    gateway = await start_gateway(server.base_url, folder)
    gate = asyncio.Event()
    server.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
    chat = {"model": "demo-model", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    url = gateway.base_url + "/chat/completions"
    async with aiohttp.ClientSession() as session, session.post(url, json=chat) as answered:
        body = await answered.content.readuntil(b"\n\n")
        gateway.process.send_signal(signal.SIGTERM)
        await gateway.log_line('"drained"')
        with pytest.raises(aiohttp.ClientConnectorError):
            await _get(gateway.origin + "/health")
        gate.set()
        body += await answered.content.read()
    assert body.endswith(b"data: [DONE]\n\n")
    assert await asyncio.wait_for(gateway.process.wait(), SECONDS) == 0
    await gateway.stop()


@pytest.mark.e2e
@pytest.mark.parametrize("door", ["envoy", "http"])
async def test_while_it_gives_notice_everything_is_served(door: str, server: ChatServer, folder: Path) -> None:
    """`/ready` says no, and connections move: whoever balances has the time to see it."""
    environ = {"ANTIPHON_TIMEOUTS__NOTICE": "600", "ANTIPHON_TIMEOUTS__DRAIN": "900"}
    gateway = await start_gateway(server.base_url, folder, "--door", door, environ=environ)
    try:
        assert (await _get(gateway.origin + "/ready"))[0] == 200
        gateway.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SECONDS):
            while (answered := await _get(gateway.origin + "/ready"))[0] == 200:
                pass
        assert (answered[0], json.loads(answered[1])) == (503, {"status": "unavailable", "reason": "shutting_down"})
        server.script(answer(parts=text_stream("a")))
        served = await post(gateway.base_url + "/responses", STREAM)
        assert b"response.completed" in served.body and served.headers["connection"] == "close"
        listed = await _get(gateway.base_url + "/files")
        assert listed[0] == 200, listed
    finally:
        # There is nothing to cut, but it had not come to its end.
        assert await gateway.stop(signal.SIGINT) == 1


@pytest.mark.e2e
async def test_a_signal_during_the_start(server: ChatServer, processes: list[Command], folder: Path) -> None:
    up = await run_command(
        processes, "up", "--upstream", server.base_url, "--listen", "127.0.0.1:0", "--data", str(folder)
    )
    await until(lambda: list(folder.glob("run/*/*/envoy.yaml")), SECONDS)
    assert await up.end(signal.SIGTERM) == 0
    assert up.out == []
    assert not list((folder / "run").glob("antiphon-*"))


@pytest.mark.e2e
async def test_a_long_data_path(server: ChatServer, folder: Path) -> None:
    """Longer than the path of a Unix socket may be."""
    data = folder / ("d" * 120)
    gateway = await start_gateway(server.base_url, data)
    made = await post(gateway.base_url + "/responses", {"model": "demo-model", "input": "hi"})
    assert made.status == 200
    assert await gateway.stop() == 0
    assert _statuses(data) == ["completed"]


@pytest.mark.e2e
async def test_two_on_one_data_folder_and_one_that_was_killed(server: ChatServer, folder: Path) -> None:
    """They share the responses, not the sockets; what a killed one left is cleared away by the next."""
    one = await start_gateway(server.base_url, folder)
    one.process.kill()
    await one.process.wait()
    (left,) = (folder / "run").glob("antiphon-*")
    two = await start_gateway(server.base_url, folder)
    assert not left.exists()
    three: Gateway | None = None
    try:
        three = await start_gateway(server.base_url, folder)
        assert len(list((folder / "run").glob("antiphon-*"))) == 2
        made = await post(two.base_url + "/responses", {"model": "demo-model", "input": "hi"})
        found = await _get(f"{three.base_url}/responses/{json.loads(made.body)['id']}")
        assert found[0] == 200
    finally:
        statuses = [await gateway.stop() for gateway in (two, three) if gateway is not None]
    assert statuses == [0, 0]


@pytest.mark.e2e
async def test_ports_instead_of_sockets(server: ChatServer, folder: Path) -> None:
    """With the sidecars, the model door and Envoy's admin port on TCP, the secret is needed and known to Envoy."""
    ports = []
    for _ in range(4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    environ = {
        "ANTIPHON_SIDECAR__GRPC": f"127.0.0.1:{ports[0]}",
        "ANTIPHON_SIDECAR__HTTP": f"127.0.0.1:{ports[1]}",
        "ANTIPHON_SIDECAR__MODEL_DOOR": f"127.0.0.1:{ports[2]}",
        "ANTIPHON_ENVOY__ADMIN": f"127.0.0.1:{ports[3]}",
        "ANTIPHON_SIDECAR__SECRET": KEY,
    }
    for mode in ("relay", "drive"):
        gateway = await start_gateway(server.base_url, folder, "--mode", mode, environ=environ)
        try:
            made = await post(gateway.base_url + "/responses", {"model": "demo-model", "input": "hi"})
            assert made.status == 200, made.body
            found = f"/responses/{json.loads(made.body)['id']}"
            assert (await _get(gateway.base_url + found))[0] == 200
            assert (await _get(gateway.base_url + "/models"))[0] == 200
            for port in ports[1:3]:
                status, _ = await _get(f"http://127.0.0.1:{port}/v1{found}")
                assert status in (401, 404), port
            assert all(header != "x-antiphon-secret" for call in server.requests for header, _ in call.headers)
        finally:
            assert await gateway.stop() == 0
        assert KEY not in "\n".join(gateway.log)


# The parts alone


async def test_serve_alone(server: ChatServer, processes: list[Command], folder: Path) -> None:
    flags = ("--upstream", server.base_url, "--listen", "127.0.0.1:0", "--data", str(folder))
    door = await run_command(processes, "serve", *flags)
    url = await door.line("ready: ")
    assert (await post(url + "/responses", {"model": "demo-model", "input": "hi"})).status == 200
    health = await run_command(processes, "health", url.removesuffix("/v1"))
    assert await health.end() == 0
    where = url.removeprefix("http://").removesuffix("/v1")
    asked = await run_command(processes, "health", ANTIPHON_DATA=str(folder), ANTIPHON_LISTEN=where)
    assert await asked.end() == 0, asked.err
    gate = asyncio.Event()
    server.script(answer(parts=[event("a"), Wait(gate), *text_stream("b")]))
    async with aiohttp.ClientSession() as session, session.post(url + "/responses", json=STREAM) as answered:
        body = await answered.content.readuntil(b"output_text.delta")
        door.signal(signal.SIGTERM)
        await until(lambda: any("draining" in line for line in door.err), SECONDS)
        gate.set()
        body += await answered.content.read()
    assert b"response.completed" in body
    assert await door.end() == 0
    assert _statuses(folder) == ["completed", "completed"]


async def test_the_sidecar_alone(processes: list[Command], folder: Path) -> None:
    open_to = f"127.0.0.1:{free_port()}"
    sidecar = await run_command(processes, "extproc", ANTIPHON_DATA=str(folder), ANTIPHON_METRICS__LISTEN=open_to)
    await sidecar.line("serving: ")
    for asked, known in (("/metrics", 200), ("/ready", 200), ("/health", 404), ("/v1/models", 404)):
        assert (await _get(f"http://{open_to}{asked}"))[0] == known
    sockets = [folder / "sidecar-0.grpc.sock", folder / "sidecar-0.http.sock"]
    for path in sockets:
        assert path.is_socket() and path.stat().st_mode & 0o777 == 0o600
    async with grpc.aio.insecure_channel(f"unix:{sockets[0]}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answered = await check(health_pb2.HealthCheckRequest())
        assert answered.status == health_pb2.HealthCheckResponse.SERVING
    status, body = await _get("http://sidecar/metrics", unix=str(sockets[1]))
    assert status == 200 and b"responses_total" in body
    health = await run_command(processes, "health", ANTIPHON_DATA=str(folder))
    assert await health.end() == 0, health.err
    assert await sidecar.end(signal.SIGTERM) == 0
    assert not any(path.exists() for path in sockets)
    gone = await run_command(processes, "health", ANTIPHON_DATA=str(folder), ANTIPHON_LISTEN="127.0.0.1:1")
    assert await gone.end() == 1


async def test_workers_that_start_together_agree_on_the_owner_key(processes: list[Command], folder: Path) -> None:
    made = [
        await run_command(processes, "extproc", "--worker", str(number), ANTIPHON_DATA=str(folder))
        for number in range(3)
    ]
    for sidecar in made:
        await sidecar.line("serving: ")
    key = folder / "owner.key"
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 64
    assert [path.name for path in folder.iterdir() if "owner.key" in path.name] == ["owner.key"]
    for sidecar in made:
        assert await sidecar.end(signal.SIGTERM) == 0


async def test_the_demo_upstream_as_a_command(processes: list[Command]) -> None:
    demo = await run_command(processes, "demo-upstream", "--listen", "127.0.0.1:0")
    url = await demo.line("ready: ")
    status, body = await _get(url + "/models")
    assert status == 200 and b'"demo"' in body
    taken = await run_command(processes, "demo-upstream", "--listen", url.removeprefix("http://").removesuffix("/v1"))
    assert await taken.end() == 2
    assert "Address already in use" in taken.err[0]
    assert await demo.end(signal.SIGINT) == 0
