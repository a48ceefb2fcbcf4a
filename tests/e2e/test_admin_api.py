"""The admin API through every server, with an upstream that gets the clients' own credentials."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.support.chat_server import ChatServer
from tests.support.gateway import Gateway, start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

TOKEN = "the-token-of-the-operators-0123456789"
ASK: dict[str, Any] = {"model": "demo-model", "input": "hi"}
CHAT: dict[str, Any] = {"model": "demo-model", "messages": [{"role": "user", "content": "hi"}]}
MODES = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}
PASSED = {"ANTIPHON_ADMIN__API": "true", "ANTIPHON_ADMIN__TOKEN": TOKEN}
MANAGED = {**PASSED, "ANTIPHON_OWNER__MANAGED_KEYS": "true", "ANTIPHON_UPSTREAM__AUTH": "none"}


@dataclass
class Front:
    gateway: Gateway
    server: ChatServer

    async def ask(self, method: str, path: str, body: Any = None, token: str = "") -> tuple[int, Any]:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        url = self.gateway.base_url + path
        async with aiohttp.ClientSession() as session, session.request(method, url, json=body, headers=headers) as got:
            return got.status, await got.json()


@pytest_asyncio.fixture(params=MODES, scope="module", loop_scope="session")
async def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def front(folder: Path, mode: str, environ: dict[str, str]) -> AsyncIterator[Front]:
    async with ChatServer() as server:
        gateway = await start_gateway(server.base_url, folder, *MODES[mode], "--workers", "2", environ=environ)
        yield Front(gateway, server)
        await gateway.stop()
        assert TOKEN not in "\n".join(gateway.log)
        assert not any(TOKEN in written.read_text() for written in folder.rglob("*.yaml"))


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def passed(mode: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async for one in front(tmp_path_factory.mktemp("passed"), mode, PASSED):
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def managed(mode: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    async for one in front(tmp_path_factory.mktemp("managed"), mode, MANAGED):
        yield one


async def test_the_token_opens_the_admin_api_and_reaches_no_upstream(passed: Front) -> None:
    for path in ("keys", "quotas", "usage", "audit?changes=true"):
        status, found = await passed.ask("GET", f"/antiphon/admin/{path}", token=TOKEN)
        assert (status, found["data"]) == (200, [])
        assert (await passed.ask("GET", f"/antiphon/admin/{path}", token="sk-of-a-client"))[0] == 401
    passed.server.requests.clear()
    for method, path, body in (
        ("POST", "/responses", ASK),
        ("POST", "/chat/completions", CHAT),
        ("POST", "/embeddings", ASK),
        ("GET", "/models", None),
    ):
        status, refused = await passed.ask(method, path, body, TOKEN)
        assert (status, refused["error"]["code"]) == (401, "invalid_api_key")
    assert passed.server.requests == []
    # A client's own credentials pass on, as without the admin API.
    assert (await passed.ask("POST", "/responses", ASK, "sk-of-a-client"))[0] == 200
    assert ("authorization", "Bearer sk-of-a-client") in passed.server.requests[-1].headers


async def test_a_key_lives_from_its_creation_to_its_end(managed: Front) -> None:
    status, key = await managed.ask("POST", "/antiphon/admin/keys", {"owner": "anna"}, TOKEN)
    assert status == 200

    async def becomes(expected: int) -> None:
        # Several times in a row, because each of two processes learns of the change by itself. Both kinds of requests,
        # because Envoy may send them to different processes.
        row = 0
        async with asyncio.timeout(60):
            while row < 20:
                statuses = {
                    (await managed.ask("GET", "/responses", token=key["token"]))[0],
                    (await managed.ask("POST", "/responses", ASK, key["token"]))[0],
                }
                row = row + 1 if statuses == {expected} else 0

    await becomes(200)
    assert (await managed.ask("POST", "/responses", ASK, key["token"]))[0] == 200
    assert (await managed.ask("GET", "/antiphon/admin/keys", token=key["token"]))[0] == 401
    assert (await managed.ask("DELETE", f"/antiphon/admin/keys/{key['id']}", token=TOKEN))[0] == 200
    await becomes(401)


async def test_without_the_setting_the_path_is_unknown(mode: str, tmp_path: Path) -> None:
    async for off in front(tmp_path, mode, {}):
        for token in ("", TOKEN):
            here = await off.ask("GET", "/antiphon/admin/keys", token=token)
            there = await off.ask("GET", "/antiphon/nothing/here", token=token)
            assert here[0] == there[0] == 404 and here[1]["error"]["code"] == there[1]["error"]["code"]
