"""The API's own document as a whole process serves it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp

from antiphon.app.build import build
from antiphon.config.settings import load_settings
from antiphon.doors.http.server import HttpDoor
from tests.support.whole_api import whole_document


async def served(settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The document, asked for without any credentials, and as it came."""
    app = await build(load_settings(settings, {}), door="http")
    door = HttpDoor(app.context)
    try:
        address = await door.start("127.0.0.1:0")
        async with aiohttp.ClientSession() as session, session.get(f"http://{address}/openapi.json") as answer:
            assert (answer.status, answer.content_type) == (200, "application/json")
            text = await answer.text()
            found: dict[str, Any] = json.loads(text)
            return found, text
    finally:
        await door.aclose()
        await app.aclose()


async def test_it_has_what_the_process_has(tmp_path: Path) -> None:
    settings = {
        "data": str(tmp_path),
        "upstream": {"url": "http://127.0.0.1:9/v1", "api_key": "key-of-upstream", "path_allow": ["/rerank"]},
        "owner": {"api_keys": ["a-key-of-some-client"]},
        "admin": {"api": True},
    }
    found, text = await served(settings)
    whole = whole_document()
    paths = {path for path in whole["paths"] if not path.startswith("/v1/containers")}
    assert set(found["paths"]) == paths | {"/v1/rerank"}
    assert all(found["paths"][path] == whole["paths"][path] for path in paths)
    assert not [word for word in ("key-of-upstream", "a-key-of-some", "127.0.0.1", str(tmp_path)) if word in text]


async def test_areas_that_are_switched_off_are_not_in_it(tmp_path: Path) -> None:
    settings = {
        "data": str(tmp_path),
        "upstream": {"url": "http://127.0.0.1:9/v1", "auth": "none"},
        "files": {"enabled": False},
    }
    found, _ = await served(settings)
    assert not [path for path in found["paths"] if "files" in path or "vector" in path or "admin" in path]
    assert "File" not in found["components"]["schemas"]
