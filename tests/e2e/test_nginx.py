"""A real nginx with the shipped configuration in front of two HTTP doors: what must come through it, and how.

`scripts/lab proxies` runs the same, with files as large as they may be, and fails where nginx is absent.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from yarl import URL

from tests.support.chat_server import ChatServer, Mark, Wait, WaitGone, answer, event, never, text_stream
from tests.support.gateway import Gateway, start_gateway
from tests.support.http_door import post_bytes
from tests.support.judge import check_stream, parse_sse
from tests.support.memory import forget_peak, peak
from tests.support.nginx import ALICE, ASKING, NEEDS_NGINX, Nginx, start_nginx

pytestmark = NEEDS_NGINX

_MEGABYTES = int(os.environ.get("PROXIES_UPLOAD_MB", "96"))
_LONGEST = aiohttp.ClientTimeout(total=max(60, _MEGABYTES))


@dataclass
class Service:
    """nginx, two replicas with one state, and the chat server behind them."""

    nginx: Nginx
    replicas: list[Gateway]
    server: ChatServer


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("nginx")
    async with ChatServer() as server:
        replicas = [await start_gateway(server.base_url, folder / "data", command="serve") for _ in range(2)]
        nginx = await start_nginx(folder / "nginx", [place(one) for one in replicas])
        yield Service(nginx, replicas, server)
        await nginx.stop()
        assert [await one.stop() for one in replicas] == [0, 0]


@pytest.fixture
def service(shared: Service) -> Service:
    shared.server.forget()
    return shared


@pytest_asyncio.fixture(loop_scope="session")
async def session(service: Service) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(ssl=service.nginx.tls)
    async with aiohttp.ClientSession(connector=connector, headers=ALICE, timeout=_LONGEST) as made:
        yield made


def place(gateway: Gateway) -> str:
    """`HOST:PORT`."""
    return gateway.origin.removeprefix("http://")


async def test_each_event_comes_at_once(service: Service, session: aiohttp.ClientSession) -> None:
    gates = [asyncio.Event() for _ in range(3)]
    said = [step for number, gate in enumerate(gates) for step in (event(f"<{number}>"), Wait(gate))]
    first, *rest = text_stream()
    service.server.script(answer(parts=[first, *said, *rest]))
    asking = {**ASKING, "stream": True}
    async with session.post(f"{service.nginx.base_url}/responses", json=asking) as got, asyncio.timeout(60):
        read = b""
        for number, gate in enumerate(gates):
            # The model does not go on before this has been read here.
            while f"<{number}>".encode() not in read:
                read += await got.content.readany()
            gate.set()
        read += await got.content.read()
    check_stream(parse_sse(read))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_each_event_comes_at_once_over_http2(service: Service) -> None:
    gate = asyncio.Event()
    first, *rest = text_stream()
    service.server.script(answer(parts=[first, event("<0>"), Wait(gate), *rest]))
    options = ("--http2", "--no-buffer", "--silent", "--cacert", str(service.nginx.authority.ca), "--max-time", "60")
    shown = ("--write-out", "%{http_version}", "--json", json.dumps({**ASKING, "stream": True}))
    command = ("curl", *options, *shown, f"{service.nginx.base_url}/responses")
    curl = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert curl.stdout is not None
    async with asyncio.timeout(60):
        while b"<0>" not in (line := await curl.stdout.readline()):
            assert line
        gate.set()
        read = await curl.stdout.read()
        assert await curl.wait() == 0
    assert read.endswith(b"data: [DONE]\n\n2")


async def test_a_websocket(service: Service, session: aiohttp.ClientSession) -> None:
    url = f"{service.nginx.base_url}/responses"
    async with session.ws_connect(url, origin=service.nginx.origin) as socket, asyncio.timeout(60):
        for _ in range(2):
            await socket.send_json({"type": "response.create", **ASKING})
            while (told := await socket.receive_json())["type"] != "response.completed":
                assert told["type"] != "error", told
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await session.ws_connect(url, origin="https://elsewhere.example")
    assert refused.value.status == 403


async def test_a_large_file_in_flat_memory_and_without_a_temporary_file(
    service: Service, session: aiohttp.ClientSession
) -> None:
    piece, seen = bytes(range(256)) * 4096, list[Path]()

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
        for number in range(_MEGABYTES):
            yield piece
            if number % 8 == 0:
                seen.extend(service.nginx.temporary_files())
        yield b"\r\n--b--\r\n"

    url, kind = f"{service.nginx.base_url}/files", {"content-type": "multipart/form-data; boundary=b"}
    processes = [*service.nginx.workers, *(one.process.pid for one in service.replicas)]
    before = {pid: forget_peak(pid) for pid in processes}
    async with session.post(url, headers=kind, data=body()) as got:
        made = await got.json()
        assert (got.status, made.get("bytes")) == (200, _MEGABYTES << 20), made
    read = 0
    async with session.get(f"{url}/{made['id']}/content") as got:
        async for part in got.content.iter_chunked(1 << 20):
            read += len(part)
        seen.extend(service.nginx.temporary_files())
    grown = {pid: peak(pid) - kilobytes for pid, kilobytes in before.items()}
    of_nginx = max(grown[pid] for pid in service.nginx.workers)
    print(f"{_MEGABYTES} MiB each way: nginx grew by {of_nginx} KiB, a replica by {max(grown.values())} KiB")
    assert (read, seen) == (_MEGABYTES << 20, [])
    assert of_nginx < 4 << 10 and max(grown.values()) < 24 << 10, grown
    async with session.delete(f"{url}/{made['id']}") as got:
        assert got.status == 200


@pytest.mark.parametrize(
    ("sent", "kept"),
    [(None, False), ("mine-7/a+b", True), ("not an id", False), ('"},"x":"', False), ("x" * 129, False)],
)
async def test_a_request_id_is_the_same_everywhere(
    service: Service, session: aiohttp.ClientSession, sent: str | None, kept: bool
) -> None:
    headers = {} if sent is None else {"x-request-id": sent}
    async with session.post(f"{service.nginx.base_url}/responses", json=ASKING, headers=headers) as got:
        assert (got.status, got.headers.getall("x-request-id")) == (200, [got.headers["x-request-id"]])
    told = got.headers["x-request-id"]
    assert told == sent if kept else told.startswith("req_")
    assert (await service.server.received()).header("x-request-id") == told
    # nginx's own answer, too.
    async with session.get(f"{service.nginx.origin}/metrics", headers=headers) as got:
        error = (await got.json())["error"]
    assert error["request_id"] == got.headers["x-request-id"]
    assert (error["request_id"] == sent) == kept
    assert any(json.loads(line)["request_id"] == told for line in service.nginx.access_log())


@pytest.mark.parametrize(("stream", "spoken"), [(True, True), (True, False), (False, False)])
async def test_a_client_that_leaves_ends_the_model_call(service: Service, stream: bool, spoken: bool) -> None:
    begun = asyncio.Event()
    service.server.script(answer(parts=[event("Hel"), Mark(begun), WaitGone()]) if spoken else never())
    host, _, port = service.nginx.address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=service.nginx.tls)
    writer.write(post_bytes({**ASKING, "stream": stream}, headers=ALICE))
    call = await service.server.received()
    if spoken:
        await asyncio.wait_for(begun.wait(), 60)
    # Its connection ends, as when its process does; closed by asyncio it would stay open for TLS's good-bye.
    writer.transport.abort()
    await asyncio.wait_for(call.gone.wait(), 20)


@pytest.mark.parametrize(
    ("method", "path", "length", "status", "code"),
    [
        ("POST", "/v1/files", 600 << 20, 413, "request_too_large"),
        ("GET", "/v1/x\\y", None, 400, "invalid_request"),
        ("GET", "/metrics", None, 404, "unknown_url"),
        ("GET", "/v1/%2e%2e/metrics", None, 404, "unknown_url"),
        # Antiphon's own, untouched.
        ("POST", "/v1/responses", 65 << 20, 413, "request_too_large"),
        ("GET", "/v1/nothing", None, 404, "unknown_url"),
        ("GET", "/v1/x%2Fy", None, 400, "invalid_url"),
    ],
)
async def test_errors_are_openai_errors(
    service: Service,
    session: aiohttp.ClientSession,
    method: str,
    path: str,
    length: int | None,
    status: int,
    code: str,
) -> None:
    headers = {} if length is None else {"content-length": str(length), "content-type": "application/json"}
    url = URL(service.nginx.origin + path, encoded=True)
    async with session.request(method, url, headers=headers, data=_nothing() if length else None) as got:
        error = (await got.json())["error"]
    assert (got.status, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert error["request_id"] == got.headers["x-request-id"]


async def _nothing() -> AsyncIterator[bytes]:
    """A body that is announced and does not come: the refusal does not wait for it."""
    yield b"{"
    await asyncio.sleep(60)


async def test_whose_request_it_is(folder: Path) -> None:
    """`owner.conf`: by a client's certificate, which no header of the client's can change."""
    secret = "a secret of nginx and Antiphon"
    environ = {"ANTIPHON_OWNER__SOURCE": "header", "ANTIPHON_SIDECAR__SECRET": secret}
    async with ChatServer() as server:
        replica = await start_gateway(server.base_url, folder / "data", command="serve", environ=environ)
        shipped = (Path(__file__).parents[2] / "deployments/nginx/owner.conf").read_text()
        clients = folder / "nginx" / "authority.pem"
        mine = shipped.replace("/etc/nginx/antiphon/clients.pem", str(clients))
        (folder / "owner.conf").write_text(mine.replace("the sidecar.secret of the settings", secret))
        line = "# include antiphon/owner.conf;"
        nginx = await start_nginx(folder / "nginx", [place(replica)], {line: f"include {folder}/owner.conf;"})
        try:
            contexts = {}
            for name in ("alice", "bob"):
                signed = nginx.authority.sign(name)
                contexts[name] = ssl.create_default_context(cafile=nginx.authority.ca)
                contexts[name].load_cert_chain(signed.cert, signed.key)
            forged = {"x-antiphon-owner": "CN=alice", "x-antiphon-secret": "guessed"}
            async with aiohttp.ClientSession(headers=forged) as session:
                url = f"{nginx.base_url}/responses"
                async with session.post(url, json={**ASKING, "store": True}, ssl=contexts["alice"]) as got:
                    assert got.status == 200, await got.text()
                    made = (await got.json())["id"]
                for name, status in (("alice", 200), ("bob", 404)):
                    async with session.get(f"{url}/{made}", ssl=contexts[name]) as got:
                        assert got.status == status, name
                # What nginx is trusted with is not open to whoever asks nginx.
                for path in ("/metrics", "//metrics", "/v1/..\\metrics", "/\\metrics", "/v1/%2e%2e/metrics"):
                    where = URL(nginx.origin + path, encoded=True)
                    async with session.get(where, ssl=contexts["alice"]) as got:
                        assert got.status in (400, 404), path
                async with session.get(url, ssl=nginx.tls) as got:
                    assert got.status == 400, "a certificate is wanted"
                async with session.get(f"{replica.base_url}/responses/{made}") as got:
                    assert got.status == 401, "past nginx, the header says nothing"
        finally:
            await nginx.stop()
            await replica.stop()
