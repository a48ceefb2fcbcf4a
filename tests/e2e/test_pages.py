"""Pages in browsers (`cors.origins`): the same for a browser in every door, and nothing without the setting."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from tests.support.chat_server import ChatServer
from tests.support.gateway import Gateway, start_gateway

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE, OTHER = "https://app.example", "https://evil.example"
ARGUMENTS = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}
# So that there is a 401, which a page must be able to read too.
KEYS = {"ANTIPHON_OWNER__API_KEYS": "0123456789abcdef", "ANTIPHON_UPSTREAM__AUTH": "none"}
TOKEN = {"authorization": "Bearer 0123456789abcdef"}


async def _ask(gateway: Gateway, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    body = {"model": "m", "input": "hi", "stream": True} if method == "POST" else None
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, gateway.origin + path, headers=sent, json=body) as got,
    ):
        return got.status, {name.lower(): value for name, value in got.headers.items()}, await got.read()


async def _preflight(gateway: Gateway, path: str, origin: str) -> tuple[int, dict[str, str]]:
    asks = {"access_control_request_method": "POST", "access_control_request_headers": "authorization,content-type"}
    status, headers, _ = await _ask(gateway, "OPTIONS", path, origin=origin, **asks)
    return status, headers


@pytest.mark.parametrize("door", ARGUMENTS)
async def test_a_page_that_is_let_in_can_ask_and_read(door: str, server: ChatServer, folder: Path) -> None:
    environ = {**KEYS, "ANTIPHON_CORS__ORIGINS": PAGE}
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS[door], environ=environ)
    try:
        for path in ("/v1/responses", "/v1/models", "/v1/files"):
            status, headers = await _preflight(gateway, path, PAGE)
            # No token: a browser sends none with its question.
            assert status in (200, 204), path
            assert headers["access-control-allow-origin"] == PAGE
            assert (
                "POST" in headers["access-control-allow-methods"]
                and "DELETE" in headers["access-control-allow-methods"]
            )
            assert headers["access-control-allow-headers"] == "authorization,*"
            assert "access-control-allow-credentials" not in headers
            _, refused = await _preflight(gateway, path, OTHER)
            assert "access-control-allow-origin" not in refused
        status, headers, body = await _ask(gateway, "POST", "/v1/responses", origin=PAGE, **TOKEN)
        assert status == 200 and b"response.completed" in body
        assert headers["access-control-allow-origin"] == PAGE and headers["access-control-expose-headers"] == "*"
        # What a cache may keep is another answer for another page.
        _, headers, _ = await _ask(gateway, "GET", "/v1/models", origin=PAGE, **TOKEN)
        assert headers["vary"] == "origin"
        for method, path, token in (
            ("GET", "/v1/responses/resp_none", TOKEN),
            ("POST", "/v1/responses", {}),
            ("GET", "/v1/models", {}),
        ):
            status, headers, _ = await _ask(gateway, method, path, origin=PAGE, **token)
            assert status in (401, 404) and headers["access-control-allow-origin"] == PAGE, (method, path)
            _, headers, _ = await _ask(gateway, method, path, origin=OTHER, **token)
            assert "access-control-allow-origin" not in headers, (method, path)
    finally:
        assert await gateway.stop() == 0


@pytest.mark.parametrize("door", ARGUMENTS)
async def test_every_answer_says_by_origin_who_may_read_it(door: str, server: ChatServer, folder: Path) -> None:
    """Whoever gives it: the sidecar, the upstream, Envoy by itself."""
    gateway = await start_gateway(
        server.base_url, folder, *ARGUMENTS[door], environ={**KEYS, "ANTIPHON_CORS__ORIGINS": PAGE}
    )
    try:
        for method, path, token in (
            ("POST", "/v1/responses", TOKEN),
            ("POST", "/v1/responses", {}),
            ("POST", "/v1/chat/completions", TOKEN),
            ("GET", "/v1/models", TOKEN),
            ("GET", "/v1/nothing", TOKEN),
            ("GET", "/nothing", TOKEN),
            ("GET", "/metrics", TOKEN),
        ):
            for origin in (PAGE, OTHER, None):
                status, headers, body = await _ask(
                    gateway, method, path, **token, **({"origin": origin} if origin else {})
                )
                case = (method, path, origin, status, body)
                assert headers["vary"] == "origin", case
                assert headers.get("access-control-allow-origin") == (PAGE if origin == PAGE else None), case
                if "nothing" in path or path == "/metrics":
                    assert status == 404 and json.loads(body)["error"]["code"] == "unknown_url", case
        status, headers = await _preflight(gateway, "/v1/nothing", PAGE)
        assert status in (200, 204) and headers["access-control-allow-origin"] == PAGE and headers["vary"] == "origin"
        # Refused before any route: nobody looked at its origin, and no cache may think so.
        status, headers, _ = await _ask(gateway, "GET", "/v1/a%2fb", origin=PAGE, **TOKEN)
        assert status in (400, 404) and headers["vary"] == "origin"
    finally:
        assert await gateway.stop() == 0


@pytest.mark.parametrize("door", ["relay", "http"])
async def test_without_the_setting_no_page_reads_anything(door: str, server: ChatServer, folder: Path) -> None:
    gateway = await start_gateway(server.base_url, folder, *ARGUMENTS[door])
    try:
        for headers in (
            (await _preflight(gateway, "/v1/responses", PAGE))[1],
            (await _ask(gateway, "POST", "/v1/responses", origin=PAGE))[1],
        ):
            assert not [name for name in headers if name.startswith("access-control")] and "vary" not in headers
    finally:
        assert await gateway.stop() == 0
