"""What becomes of a request's parts, asked through the HTTP door of a whole process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from antiphon.api.http import ApiRequest
from antiphon.api.models import Capabilities
from antiphon.app.build import build
from antiphon.config.settings import load_settings
from antiphon.doors.http.server import HttpDoor
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.errors import InvalidRequest
from antiphon.translation.profiles import PROFILES
from antiphon.translation.request import field_support
from tests.support.http_door import RawAnswer, RawClient, post_bytes

GROUPS = ("fields", "parameters", "include", "tools", "tool_choice", "items", "content")
SETTINGS: dict[str, Any] = {
    "upstream": {"url": "http://127.0.0.1:9/v1", "api_key": "key-of-default"},
    "upstreams": {
        "groq": {"url": "https://api.groq.com/openai/v1", "api_key": "key-of-groq"},
        "few": {"url": "http://127.0.0.1:9/few", "models": ["other-1"]},
        "native": {"url": "http://127.0.0.1:9/native", "api_key": "key-of-native"},
    },
    "models": [
        {"match": "gone", "mode": "disabled"},
        {"match": "fast", "upstream": "groq", "model": "very-fast-1", "context_tokens": 4096},
        {"match": "strict", "profile": "deepseek"},
        {"match": "other-*", "upstream": "few"},
        {"match": "gpt-*", "upstream": "native", "mode": "native"},
    ],
    "limits": {"input_items": 77},
    "fetch": {"enabled": False},
}


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    app = await build(load_settings({**SETTINGS, "data": str(tmp_path)}, {}), door="http")
    door = HttpDoor(app.context)
    try:
        yield await door.start("127.0.0.1:0")
    finally:
        await door.aclose()
        await app.aclose()


async def ask(address: str, query: str = "", method: str = "GET") -> RawAnswer:
    async with RawClient(address) as client:
        await client.send(post_bytes(method=method, path=f"/v1/antiphon/capabilities{query}"))
        return await client.read()


async def test_it_names_everything_once_with_its_fate(address: str) -> None:
    shown = (await ask(address)).json
    assert (shown["object"], shown["model"], shown["upstream"]) == ("antiphon.capabilities", None, "default")
    assert (shown["mode"], shown["profile"]) == ("translate", "generic")
    named = [name for names in field_support.GROUPS.values() for name in names]
    assert [name for group in GROUPS for name in shown[group]] == named
    assert shown["fields"]["user"] == {"support": "ignored", "note": None}
    assert shown["limits"]["input_items"] == 77 and shown["limits"]["context_tokens"] is None


async def test_it_follows_the_model(address: str) -> None:
    fast, strict = (await ask(address, "?model=fast")).json, (await ask(address, "?model=strict")).json
    assert (fast["model"], fast["upstream"], fast["profile"]) == ("fast", "groq", "groq")
    assert fast["fields"]["user"]["support"] == "sent"
    assert fast["fields"]["truncation.auto"]["support"] == "handled" and fast["limits"]["context_tokens"] == 4096
    assert (strict["upstream"], strict["profile"]) == ("default", "deepseek")
    assert strict["content"]["content.input_image.image_url"]["support"] == "rejected"


async def test_settings_count(address: str) -> None:
    shown = (await ask(address)).json
    assert shown["content"]["content.input_file.file_url"] == {
        "support": "rejected",
        "note": "this server does not fetch files (`fetch.enabled`)",
    }


async def test_a_native_model_has_no_table(address: str) -> None:
    shown = (await ask(address, "?model=gpt-9")).json
    assert (shown["mode"], shown["profile"], shown["upstream"]) == ("native", None, "native")
    assert all(shown[group] == {} for group in GROUPS)


@pytest.mark.parametrize("model", ["gone", "other-2"])
async def test_a_model_that_is_not_served_does_not_exist(address: str, model: str) -> None:
    got = await ask(address, f"?model={model}")
    assert got.status == 404 and got.error["code"] == "model_not_found"


async def test_without_a_default_upstream_a_model_must_be_named() -> None:
    capabilities = Capabilities(ModelRoutes(ModelRoute(PROFILES["generic"], mode="disabled")), {})
    with pytest.raises(InvalidRequest, match="model="):
        await capabilities.show(ApiRequest("GET", "/v1/antiphon/capabilities"))


async def test_nothing_secret_is_said(address: str) -> None:
    for query in ("", "?model=fast", "?model=gpt-9"):
        body = (await ask(address, query)).body
        assert b"key-of-" not in body and b"127.0.0.1" not in body and b"groq.com" not in body


async def test_it_can_only_be_read(address: str) -> None:
    got = await ask(address, method="DELETE")
    assert got.status == 405 and got.header("allow") == "GET, HEAD, OPTIONS"


async def test_tools_that_run_here_are_told() -> None:
    capabilities = Capabilities(
        ModelRoutes(ModelRoute(PROFILES["generic"])), {}, tools=frozenset({"web_search", "mcp"})
    )
    answer = await capabilities.show(ApiRequest("GET", "/v1/antiphon/capabilities"))
    shown = json.loads(answer.body)
    runs = {
        name
        for group in GROUPS
        for name, found in shown[group].items()
        if found["note"] == "Antiphon runs the tool between two turns of the model"
    }
    assert runs == {
        "tools.web_search",
        "tools.mcp",
        "tool_choice.mcp",
        "include:web_search_call.action.sources",
        "include:web_search_call.results",
    }
    assert shown["tools"]["tools.file_search"]["support"] == "ignored"
    assert shown["fields"]["max_tool_calls"]["note"] == "limits the calls of hosted tools that Antiphon runs"


async def test_what_the_settings_let_pass_and_add_is_told_by_name() -> None:
    route = ModelRoute(PROFILES["openai"], fields=frozenset({"top_k", "provider"}), extra={"seed": Raw(b"5")})
    answer = await Capabilities(ModelRoutes(route), {}).show(ApiRequest("GET", "/v1/antiphon/capabilities"))
    shown = json.loads(answer.body)
    assert (shown["allowed"], shown["added"]) == (["provider", "top_k"], ["seed"])
    assert shown["parameters"]["top_k"] == {
        "support": "sent",
        "note": "the settings allow it, so Antiphon sends it to the upstream",
    }
    assert shown["parameters"]["min_p"]["support"] == "ignored"
