"""What passes Envoy and what does not: paths, forged headers, credentials, upstream addressing, TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.support.certificates import Authority
from tests.support.chat_server import ChatServer
from tests.support.gateway import Gateway, post, start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

_TEXT = {"model": "demo-model", "input": "hi"}
_CHAT = {"model": "demo-model", "messages": [{"role": "user", "content": "hi"}]}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def prefixed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Gateway, ChatServer]]:
    """A gateway with a key, a trusted owner header and an upstream below `/api/v1` on a host of another name."""
    folder = tmp_path_factory.mktemp("prefixed")
    config = folder / "settings.yaml"
    config.write_text("upstream: {host: models.example}\nowner: {source: header, header: x-user}\n")
    async with ChatServer(base_path="/api/v1") as server:
        gateway = await start_gateway(
            server.base_url,
            folder / "data",
            "--config",
            str(config),
            environ={"ANTIPHON_UPSTREAM__API_KEY": "sk-upstream"},
        )
        yield gateway, server
        assert await gateway.stop() == 0


async def test_addressing_and_credentials(prefixed: tuple[Gateway, ChatServer]) -> None:
    gateway, server = prefixed
    for path, body in (("/chat/completions", _CHAT), ("/embeddings", {"model": "e", "input": "x"})):
        server.requests.clear()
        await post(gateway.base_url + path, body, {"authorization": "Bearer client", "x-user": "me"})
        (sent,) = server.requests
        assert sent.path == "/api/v1" + path
        assert sent.header("host") == "models.example"
        assert sent.header("authorization") == "Bearer sk-upstream"
        assert sent.header("x-user") is None
        assert sent.json == body


async def test_the_access_log_knows_tokens_and_model(tmp_path: Path) -> None:
    """Usage and model are dynamic metadata of Envoy's, so that logs and rate limits can use them."""
    async with ChatServer() as server:
        for mode in ("relay", "drive"):
            environ = {"ANTIPHON_ENVOY__ACCESS_LOG": "true"}
            gateway = await start_gateway(server.base_url, tmp_path / mode, "--mode", mode, environ=environ)
            for stream in (False, True):
                await post(gateway.base_url + "/responses", {**_TEXT, "stream": stream})
            await gateway.stop()
            lines = [json.loads(line) for line in gateway.log if '"input_tokens"' in line and "details" in line]
            told = [line for line in lines if line["model"] == "demo-model"]
            assert len(told) == 2, gateway.log
            assert {(line["input_tokens"], line["output_tokens"]) for line in told} == {(3, 2)}
            assert all(line["response_id"].startswith("resp_") for line in told)


async def test_a_forged_owner_is_no_owner(prefixed: tuple[Gateway, ChatServer]) -> None:
    """No authenticating filter is configured, so nobody has an identity, whatever they claim."""
    gateway, server = prefixed
    server.requests.clear()
    answered = await post(gateway.base_url + "/responses", _TEXT, {"x-user": "admin"})
    assert answered.status == 401
    assert json.loads(answered.body)["error"]["code"] == "missing_identity"
    assert not server.requests


@pytest.mark.parametrize(
    "path", ["/V1/responses", "/api/delete", "/v1/filesx", "/v1/chat/completions/x", "/", "/v1/responsesx", "/metrics"]
)
async def test_all_else_is_a_json_404(prefixed: tuple[Gateway, ChatServer], path: str) -> None:
    gateway, server = prefixed
    server.requests.clear()
    answered = await post(gateway.origin + path, _TEXT)
    assert answered.status == 404 and answered.headers["content-type"] == "application/json"
    assert set(json.loads(answered.body)["error"]) - {"request_id"} == {"message", "type", "param", "code"}
    assert not server.requests


async def test_a_forged_way_out_of_the_dead_end(prefixed: tuple[Gateway, ChatServer]) -> None:
    gateway, server = prefixed
    server.requests.clear()
    forged = {"x-antiphon-backend": "upstream", "X-Antiphon-Secret": "guess", "x-antiphon-owner": "me"}
    await post(gateway.base_url + "/chat/completions", _CHAT, forged)
    (sent,) = server.requests
    assert not [name for name, _ in sent.headers if name.startswith("x-antiphon")]


async def test_upstream_paths_are_an_allow_list(prefixed: tuple[Gateway, ChatServer]) -> None:
    gateway, server = prefixed
    server.requests.clear()
    async with aiohttp.ClientSession() as session:
        for method, path in (("GET", "/chat/completions"), ("POST", "/models"), ("PUT", "/embeddings")):
            async with session.request(method, gateway.base_url + path) as answered:
                assert answered.status in (401, 404, 405)
                assert "error" in await answered.json(content_type=None)
    assert not server.requests


def _certificate(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority of our own, and a server certificate for localhost signed by it."""

    authority = Authority(folder)
    signed = authority.sign("localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(signed.cert, signed.key)
    return authority.ca, context


@pytest.mark.parametrize("arguments", [("--mode", "relay"), ("--mode", "drive"), ("--door", "http")], ids="-".join)
async def test_a_tls_upstream(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """SNI, the host's name and the authority are checked; another authority's certificate is refused."""
    authority, context = _certificate(tmp_path)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with ChatServer(tls=context, base_path="/api/v1") as server:
        for ca_file, status in ((authority, 200), (None, 502)):
            environ = {"ANTIPHON_UPSTREAM__CA_FILE": str(ca_file)} if ca_file else {}
            gateway = await start_gateway(server.base_url, tmp_path / f"data{status}", *arguments, environ=environ)
            answered = await post(gateway.base_url + "/responses", _TEXT)
            assert answered.status == status, answered.body
            assert await gateway.stop() == 0
        assert names[0] == "localhost"
        assert [request.path for request in server.requests] == ["/api/v1/chat/completions"]


async def test_tcp_ports_want_the_secret(tmp_path: Path) -> None:
    """With the sidecar on TCP: Envoy presents the secret everywhere, and nobody else gets in."""
    ports = []
    for _ in range(3):
        probe = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
        ports.append(probe.sockets[0].getsockname()[1])
        probe.close()
        await probe.wait_closed()
    grpc, http, door = (f"127.0.0.1:{port}" for port in ports)
    environ = {
        "ANTIPHON_SIDECAR__GRPC": grpc,
        "ANTIPHON_SIDECAR__HTTP": http,
        "ANTIPHON_SIDECAR__MODEL_DOOR": door,
        "ANTIPHON_SIDECAR__SECRET": "a-shared-secret",
    }
    async with ChatServer() as server:
        for mode in ("relay", "drive"):
            gateway = await start_gateway(server.base_url, tmp_path / mode, "--mode", mode, environ=environ)
            made = await post(gateway.base_url + "/responses", _TEXT)
            assert made.status == 200, made.body
            response_id = json.loads(made.body)["id"]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"{gateway.base_url}/responses/{response_id}") as through:
                    assert through.status == 200
                async with session.get(f"http://{http}/v1/responses/{response_id}") as direct:
                    assert direct.status in (401, 403, 404)
            server.requests.clear()
            refused = await post(f"http://{door}/v1/chat/completions", _CHAT)
            assert refused.status in (403, 404) and not server.requests
            assert await gateway.stop() == 0
            assert "a-shared-secret" not in "\n".join(gateway.log)
