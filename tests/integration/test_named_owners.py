"""Owners with names: their keys share stored data, and open what the settings allow, at every endpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.background_app import BackgroundApp, processes
from tests.support.chat_server import json_answer

OLD, NEW, BO = "anna-old-key-of-16", "anna-new-key-of-16", "bo-has-another-key"
KEYS: dict[str, Any] = {
    "anna": ["sha256:" + hashlib.sha256(OLD.encode()).hexdigest(), NEW],
    "bo": {"keys": [BO], "team": "lab", "models": ["qwen*"], "tools": ["function"]},
}
ASK = {"model": "qwen3", "input": "Hi"}


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[BackgroundApp]:
    async with processes(tmp_path / "data") as made:
        yield await made.start(owner_keys=KEYS)


async def call(app: BackgroundApp, method: str, path: str, key: str, body: Any = None) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    async with app.session.request(method, app.url + path, json=body, headers=headers) as got:
        return got.status, json.loads(await got.read())


async def test_all_keys_of_an_owner_see_the_same_data_and_no_other_owner_does(app: BackgroundApp) -> None:
    _, made = await call(app, "POST", "/responses", OLD, ASK)
    assert (await call(app, "GET", f"/responses/{made['id']}", NEW))[1] == made
    status, _ = await call(app, "POST", "/responses", NEW, {**ASK, "previous_response_id": made["id"]})
    assert status == 200
    assert (await call(app, "GET", f"/responses/{made['id']}", BO))[0] == 404
    status, listed = await call(app, "GET", "/responses", NEW)
    assert status == 200 and len(listed["data"]) == 2
    assert (await call(app, "GET", "/responses", BO))[1]["data"] == []


@pytest.mark.parametrize(("key", "code"), [("", "missing_api_key"), ("a-key-of-nobody-here", "invalid_api_key")])
async def test_others_are_refused(app: BackgroundApp, key: str, code: str) -> None:
    for method, path in (("POST", "/responses"), ("GET", "/models"), ("POST", "/chat/completions")):
        status, refused = await call(app, method, path, key, ASK if method == "POST" else None)
        assert (status, refused["error"]["code"]) == (401, code)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/responses", {"input": "Hi"}),
        ("/responses", {"input": "Hi", "background": True}),
        ("/responses/input_tokens", {"input": "Hi"}),
        ("/responses/compact", {"input": "Hi"}),
        ("/chat/completions", {"messages": []}),
        ("/embeddings", {"input": "Hi"}),
    ],
)
async def test_a_model_that_the_key_does_not_allow_does_not_exist(
    app: BackgroundApp, path: str, body: dict[str, Any]
) -> None:
    status, refused = await call(app, "POST", path, BO, {**body, "model": "gpt-5"})
    assert (status, refused["error"]["code"], refused["error"]["param"]) == (404, "model_not_found", "model")
    _, answered = await call(app, "POST", path, OLD, {**body, "model": "gpt-5"})
    assert answered.get("error") is None or answered["error"]["code"] != "model_not_found"


async def test_the_list_has_the_allowed_models_only(tmp_path: Path) -> None:
    async with processes(tmp_path / "data") as made:
        made.chat.default = lambda _: json_answer({"data": [{"id": "qwen3"}, {"id": "gpt-5"}]})
        app = await made.start(owner_keys=KEYS)
        for key, models in ((BO, ["qwen3"]), (NEW, ["qwen3", "gpt-5"])):
            assert [one["id"] for one in (await call(app, "GET", "/models", key))[1]["data"]] == models
        assert (await call(app, "GET", "/models/gpt-5", BO))[0] == 404
        assert (await call(app, "GET", "/models/gpt-5", NEW))[0] == 200
        assert (await call(app, "GET", "/antiphon/capabilities?model=gpt-5", BO))[0] == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/responses", {"input": "Hi"}),
        ("/responses", {"input": "Hi", "background": True}),
        ("/responses/compact", {"input": "Hi"}),
        ("/chat/completions", {"messages": []}),
        ("/embeddings", {"input": "Hi"}),
        ("/rerank", {"query": "Hi"}),
    ],
)
async def test_no_fallback_brings_a_model_that_the_key_does_not_allow(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    async with processes(tmp_path / "data") as made:
        app = await made.start(owner_keys=KEYS, path_allow=("/rerank",))
        asked = {**body, "model": "qwen3", "fallbacks": ["qwen2", "gpt-5"]}
        status, refused = await call(app, "POST", path, BO, asked)
        told = (status, refused["error"]["code"], refused["error"]["param"])
        assert told == (404, "model_not_found", "fallbacks[1]")
        status, refused = await call(app, "POST", path, BO, {**asked, "fallbacks": "gpt-5"})
        assert (status, refused["error"]["code"], refused["error"]["param"]) == (400, "invalid_value", "fallbacks")
        assert made.chat.requests == []
        _, answered = await call(app, "POST", path, OLD, asked)
        assert answered.get("error") is None or answered["error"]["param"] != "fallbacks[1]"


@pytest.mark.parametrize("path", ["/responses", "/chat/completions", "/embeddings", "/rerank"])
async def test_no_name_with_commas_brings_a_model_that_the_key_does_not_allow(tmp_path: Path, path: str) -> None:
    async with processes(tmp_path / "data") as made:
        app = await made.start(owner_keys=KEYS, path_allow=("/rerank",))
        status, refused = await call(app, "POST", path, BO, {"model": "qwen3,gpt-5", "input": "Hi"})
        assert (status, refused["error"]["code"], refused["error"]["param"]) == (404, "model_not_found", "model")
        assert made.chat.requests == []


@pytest.mark.parametrize("path", ["/chat/completions", "/rerank"])
@pytest.mark.parametrize("odd", [b'"user":"\\ud800"', b'"top_p":NaN', b'"model":"qwen3"'])
async def test_a_key_with_models_sends_no_body_that_cannot_be_read(tmp_path: Path, path: str, odd: bytes) -> None:
    async with processes(tmp_path / "data") as made:
        app = await made.start(owner_keys=KEYS, path_allow=("/rerank",))
        body, headers = b'{"model":"qwen3","messages":[],%b}' % odd, {"authorization": f"Bearer {BO}"}
        async with app.session.post(app.url + path, data=body, headers=headers) as got:
            assert got.status == 400 and (await got.json())["error"]["code"] in ("invalid_json", "invalid_value")
        assert made.chat.requests == []


@pytest.mark.parametrize("more", [{}, {"background": True}])
async def test_a_tool_that_the_key_does_not_allow_is_refused(app: BackgroundApp, more: dict[str, Any]) -> None:
    function = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    tools = [function, {"type": "mcp", "server_label": "s", "server_url": "https://mcp.example"}]
    status, refused = await call(app, "POST", "/responses", BO, {**ASK, **more, "tools": tools})
    assert (status, refused["error"]["code"]) == (400, "tool_not_allowed")
    assert refused["error"]["param"] == "tools[1]" and "'mcp'" in refused["error"]["message"]
    assert (await call(app, "POST", "/responses", BO, {**ASK, **more, "tools": [function]}))[0] == 200


@pytest.mark.parametrize("place", ["input", "conversation", "created conversation"])
async def test_no_item_brings_a_tool_that_the_key_does_not_allow(app: BackgroundApp, place: str) -> None:
    item = {"type": "additional_tools", "role": "developer", "tools": [{"type": "shell"}]}
    path, body = "/responses", {**ASK, "input": [item, {"role": "user", "content": "Hi"}]}
    if place == "conversation":
        _, made = await call(app, "POST", "/conversations", BO, {})
        path, body = f"/conversations/{made['id']}/items", {"items": [item]}
    elif place == "created conversation":
        path, body = "/conversations", {"items": [item]}
    status, refused = await call(app, "POST", path, BO, body)
    assert (status, refused["error"]["code"]) == (400, "tool_not_allowed")


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{"type": "custom", "custom": {"name": "c"}}]},
        {"web_search_options": {}},
        {"plugins": [{"id": "web"}]},
    ],
)
async def test_chat_completions_have_the_same_limits(app: BackgroundApp, body: dict[str, Any]) -> None:
    chat = {"model": "qwen3", "messages": [{"role": "user", "content": "Hi"}]}
    status, refused = await call(app, "POST", "/chat/completions", BO, {**chat, **body})
    assert (status, refused["error"]["code"]) == (400, "tool_not_allowed")
    assert (await call(app, "POST", "/chat/completions", BO, chat))[0] == 200


async def test_vector_stores_are_searched_with_file_search_only(app: BackgroundApp) -> None:
    for path in ("/vector_stores/vs_1/search", "/search"):
        status, refused = await call(app, "POST", path, BO, {"query": "x", "vector_store_id": "vs_1"})
        assert (status, refused["error"]["code"]) == (400, "tool_not_allowed")


async def test_no_names_at_all_let_nobody_in(tmp_path: Path) -> None:
    """The last owner may have been removed: the gateway does not open itself to all."""
    async with processes(tmp_path / "data") as made:
        app = await made.start(owner_keys={})
        status, refused = await call(app, "POST", "/responses", NEW, ASK)
        assert (status, refused["error"]["code"]) == (401, "invalid_api_key")


async def test_a_websocket_has_the_owner_and_the_limits_of_its_key(app: BackgroundApp) -> None:
    url = app.url + "/responses"
    async with app.session.ws_connect(url, headers={"authorization": f"Bearer {BO}"}) as socket:
        await socket.send_json({"type": "response.create", "model": "gpt-5", "input": "Hi"})
        assert (await socket.receive_json())["error"]["code"] == "model_not_found"
