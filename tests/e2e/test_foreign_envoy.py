"""An Envoy that was there before, with the snippet's parts put where their headings say.

Lives here: what must then work. Not here: the foreign configuration (`foreign_envoy.yaml`), the merge
(`antiphon/envoy/merging.py`), what the parts hold (`tests/unit/envoy`).
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import yaml

from antiphon.config.settings import Settings
from antiphon.envoy.merging import MergeTarget, merged
from antiphon.envoy.sidecars import endpoints
from antiphon.envoy.snippet import parts
from antiphon.types.transport import NO_MODEL_DOOR
from tests.support.beside_envoy import envoy_and_sidecar
from tests.support.certificates import Authority
from tests.support.chat_server import ChatServer, Wait, answer, text_stream
from tests.support.envoy_binary import envoy_version
from tests.support.tokens import jwks, token
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 60.0
PAGE = "https://pages.company.example"
TEXT: dict[str, Any] = {"model": "demo-model", "input": "Hello there"}


@dataclass
class Foreign:
    """The Envoy, as its clients see it."""

    url: str
    session: aiohttp.ClientSession
    chat: ChatServer
    folder: Path

    async def ask(
        self, method: str, path: str, body: Any = None, role: str | None = "user", **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """Status, head, and JSON (or text)."""
        if role is not None:
            headers["authorization"] = f"Bearer {token(role)}"
        async with self.session.request(method, self.url + path, json=body, headers=headers) as got:
            text = await got.text()
            is_json = got.content_type == "application/json"
            head = {name.lower(): value for name, value in got.headers.items()}
            return got.status, head, json.loads(text) if is_json else text


@pytest.fixture
async def foreign(folder: Path) -> AsyncIterator[Foreign]:
    async with ChatServer() as chat, _started(folder, chat) as started:
        yield started


@asynccontextmanager
async def _started(folder: Path, chat: ChatServer, *, without: str = "", status: int = 400) -> AsyncIterator[Foreign]:
    """Both processes, once an invalid request gets this status. `without`: a part that was forgotten."""
    authority = Authority(folder)
    files = authority.sign("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    given = {"data": folder, "upstream": {"url": chat.base_url, "auth": "none"}}
    settings = Settings.model_validate(given)
    keys = jwks()
    text = (Path(__file__).parent / "foreign_envoy.yaml").read_text()
    names = {"FOLDER": folder, "CERT": files.cert, "KEY": files.key, "PORT": port, "APP": urlsplit(chat.base_url).port}
    for name, value in names.items():
        text = text.replace(f" {name} ", f" {value} ").replace(f"{name}/", f"{value}/")
    theirs = yaml.safe_load(text.replace("JWKS", json.dumps(keys)))
    ours = parts(settings, endpoints(settings), envoy_version())
    if without:
        ours[without] = []
    told: list[str] = []
    whole = merged(theirs, ours, MergeTarget(), told.append)
    # Whatever of theirs is not as it was.
    assert told == ["connection manager: stream_idle_timeout: 30s is now 3600s"]
    async with envoy_and_sidecar(folder, whole, {**given, "data": str(folder)}) as alive:
        trust = ssl.create_default_context(cafile=str(authority.ca))
        connector = aiohttp.TCPConnector(ssl=trust)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=SECONDS)) as session:
            made = Foreign(f"https://localhost:{port}", session, chat, folder)
            async with asyncio.timeout(SECONDS):
                while True:
                    alive()
                    try:
                        answered = [await made.ask("GET", "/ready"), await made.ask("POST", "/v1/responses", {})]
                        if [status for status, _, _ in answered] == [200, status]:
                            break
                    except (OSError, aiohttp.ClientError):
                        pass
                    await asyncio.sleep(0.05)
            yield made


async def test_their_own_goes_on_and_ours_is_served(foreign: Foreign) -> None:
    # What was there before.
    status, head, said = await foreign.ask("GET", "/elsewhere")
    assert (status, said["company"], head["x-company"]) == (404, "error", "yes")
    # JSON, stored; the next turn; what is stored, read and deleted.
    status, head, first = await foreign.ask("POST", "/v1/responses", TEXT)
    assert (status, first["status"], head.get("x-company")) == (200, "completed", None)
    assert head["x-request-id"]
    status, _, second = await foreign.ask("POST", "/v1/responses", {**TEXT, "previous_response_id": first["id"]})
    assert (status, second["previous_response_id"]) == (200, first["id"])
    assert len(foreign.chat.requests[-1].json["messages"]) == 3
    assert "authorization" not in dict(foreign.chat.requests[-1].headers)
    for path in (f"/v1/responses/{first['id']}", "/v1/models"):
        status, head, _ = await foreign.ask("GET", path)
        assert (status, head["x-company"]) == (200, "yes")
    # The token is what tells owners apart.
    status, _, said = await foreign.ask("GET", f"/v1/responses/{first['id']}", role="other")
    assert (status, said["error"]["type"]) == (404, "invalid_request_error")
    assert (await foreign.ask("DELETE", f"/v1/responses/{first['id']}"))[0] == 200
    # A refusal that the sidecar sends before it has read the body is no answer of Envoy's.
    status, head, said = await foreign.ask("POST", "/v1/responses", TEXT, **{"content-encoding": "br"})
    assert (status, said["error"]["code"]) == (415, "unsupported_content_encoding")
    status, _, said = await foreign.ask("POST", "/v1/responses", {"input": "x"})
    assert (status, said["error"]["param"]) == (400, "model")
    await until(lambda: "POST /v1/chat/completions 200" in (foreign.folder / "access.log").read_text(), SECONDS)


async def test_a_stream_is_passed_on_as_it_comes_also_where_answers_are_compressed(foreign: Foreign) -> None:
    gate = asyncio.Event()
    parts = text_stream("a", "b")
    foreign.chat.script(answer(parts=[*parts[:2], Wait(gate), *parts[2:]]))
    headers = {"authorization": f"Bearer {token('user')}", "accept-encoding": "gzip"}
    asked = foreign.session.post(foreign.url + "/v1/responses", json={**TEXT, "stream": True}, headers=headers)
    async with asked as got:
        assert (got.status, got.content_type) == (200, "text/event-stream")
        assert "content-encoding" not in got.headers
        line = await got.content.readline()
        assert line.startswith(b"event: response.created")
        gate.set()
        assert b"data: [DONE]" in await got.content.read()
    # Whole answers are compressed, by their filter.
    async with (
        aiohttp.ClientSession(auto_decompress=False, connector=foreign.session.connector, connector_owner=False) as raw,
        raw.post(foreign.url + "/v1/responses", json=TEXT, headers=headers) as got,
    ):
        assert got.headers["content-encoding"] == "gzip"
        assert json.loads(gzip.decompress(await got.read()))["status"] == "completed"


async def test_who_their_filters_turn_away_gets_an_error_object(foreign: Foreign) -> None:
    before = len(foreign.chat.requests)
    status, _, said = await foreign.ask("POST", "/v1/responses", TEXT, role=None)
    assert (status, said["error"]["code"]) == (401, "invalid_api_key")
    status, _, said = await foreign.ask("POST", "/v1/responses", TEXT, role="suspended")
    assert (status, said["error"]["code"]) == (403, "permission_denied")
    assert len(foreign.chat.requests) == before
    assert (await foreign.ask("POST", "/v1/responses", TEXT, role="greedy"))[0] == 200
    status, _, said = await foreign.ask("POST", "/v1/responses", TEXT, role="greedy")
    assert (status, said["error"]["code"]) == (429, "rate_limit_exceeded")
    assert len(foreign.chat.requests) == before + 1
    # Elsewhere their own shape stays.
    status, _, said = await foreign.ask("GET", "/v1/models", role=None)
    assert (status, said["company"], said["text"]) == (401, "error", "Jwt is missing")


async def test_pages_in_browsers_by_their_policy(foreign: Foreign) -> None:
    status, head, _ = await foreign.ask(
        "OPTIONS", "/v1/responses", role=None, origin=PAGE, **{"access-control-request-method": "POST"}
    )
    assert (status, head["access-control-allow-origin"]) == (200, PAGE)
    for body, wanted in ((TEXT, 200), ({}, 400)):
        status, head, _ = await foreign.ask("POST", "/v1/responses", body, origin=PAGE)
        assert (status, head.get("access-control-allow-origin")) == (wanted, PAGE)


async def test_a_websocket(foreign: Foreign) -> None:
    headers = {"authorization": f"Bearer {token('user')}"}
    async with foreign.session.ws_connect(foreign.url + "/v1/responses", headers=headers) as socket_:
        await socket_.send_json({"type": "response.create", **TEXT})
        kinds: list[str] = []
        async with asyncio.timeout(SECONDS):
            while not kinds or kinds[-1] != "response.completed":
                kinds.append((await socket_.receive_json())["type"])
        assert kinds[0] == "response.created"
    await until(lambda: "101" in (foreign.folder / "access.log").read_text(), SECONDS)


async def test_a_part_that_was_forgotten_is_named(folder: Path) -> None:
    async with ChatServer() as chat:
        async with _started(folder, chat, without="http_filter", status=502) as made:
            _, _, said = await made.ask("POST", "/v1/responses", TEXT)
        assert "envoy.filters.http.ext_proc" in said["error"]["message"]
        async with _started(folder, chat, without="listener") as made:
            assert (await made.ask("GET", "/v1/models"))[0] == 502
        log = (folder / "log").read_text()
        assert NO_MODEL_DOOR in log and "the listener model_door" in log
