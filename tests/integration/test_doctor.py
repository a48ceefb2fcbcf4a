"""`antiphon doctor` tells what a chat server can do, whichever it is, and what to change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from antiphon.cli import main

Handler = Callable[[dict[str, Any]], tuple[int, Any]]
OK = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]}


@asynccontextmanager
async def _server(handler: Handler, **extra: Any) -> AsyncIterator[str]:
    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        status, answer = handler(body)
        if status == 200 and body.get("stream"):
            text = (
                'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\ndata: {"choices":[],"usage":{"prompt_tokens":1}}\n\n'
            )
            return web.Response(text=text, content_type="text/event-stream")
        return web.json_response(answer, status=status)

    async def models(request: web.Request) -> web.Response:
        if extra.get("key") and request.headers.get("authorization") != f"Bearer {extra['key']}":
            return web.json_response({"error": {"message": "bad key sk-abcdefghijklmnopqrstuvwx"}}, status=401)
        return web.json_response({"data": [{"id": "m1", "owned_by": extra.get("owner", "me")}]})

    async def version(_: web.Request) -> web.Response:
        return web.json_response(extra["version"])

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    if "version" in extra:
        app.router.add_get("/api/version", version)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def _doctor(url: str, folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, str]]:
    """Exit status, and by what it says its verdict and advice."""
    config = folder / "settings.yaml"
    config.write_text("door: http\n")
    arguments = ["doctor", "--json", "--config", str(config), "--upstream", url, "--data", str(folder / "data"), *more]
    status = await asyncio.to_thread(main, arguments)
    found = json.loads(capsys.readouterr().out)
    return status, {
        entry["what"].rpartition("): ")[2]
        if "model " not in entry["what"]
        else entry["what"].partition("model m1: ")[2]: f"{entry['verdict']} {entry['advice']}"
        for entry in found
    }


def _all_good(body: dict[str, Any]) -> tuple[int, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "Hello", "reasoning_content": "hm"}
    if "response_format" in body:
        message["content"] = '{"ok": true}'
    if "tools" in body:
        message["tool_calls"] = [{"id": "c", "function": {"name": "get_weather", "arguments": "{}"}}]
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    if body.get("logprobs"):
        choice["logprobs"] = {"content": [{"token": "x"}]}
    return 200, {"choices": [choice]}


async def test_a_server_that_can_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with _server(_all_good) as url:
        status, found = await _doctor(url, tmp_path, capsys)
    assert status == 0
    for name in (
        "streaming: yes (with usage)",
        "tools: yes (the tool was called)",
        "json_schema: yes (the answer is JSON)",
    ):
        assert found[name].startswith("ok")
    assert "thinking aloud: yes (reasoning_content)" in found and "logprobs: yes (present)" in found


async def test_a_server_that_refuses_the_token_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def handler(body: dict[str, Any]) -> tuple[int, Any]:
        if "max_tokens" in body:
            return 400, {"error": {"message": "Use 'max_completion_tokens' instead."}}
        return _all_good(body)

    async with _server(handler) as url:
        status, found = await _doctor(url, tmp_path, capsys)
    assert status == 1
    assert any(
        "openai" in text for what, text in found.items() if "refuses max_tokens" in what or text.startswith("problem")
    )


async def test_a_server_that_can_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def handler(body: dict[str, Any]) -> tuple[int, Any]:
        if set(body) & {"tools", "response_format", "logprobs"}:
            return 400, {"error": "unknown field"}
        return 200, {"choices": [{"message": {"content": "<think>hm</think>Hello"}}]}

    async with _server(handler) as url:
        status, found = await _doctor(url, tmp_path, capsys)
    assert status == 0
    assert (
        found["tools: no (HTTP 400: unknown field)"].startswith("note ")
        and "vLLM" in found["tools: no (HTTP 400: unknown field)"]
    )
    assert "thinking aloud: yes (<think> in the content)" in found


async def test_what_the_server_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with _server(_all_good, version={"version": "0.9"}) as url:
        _, found = await _doctor(url, tmp_path, capsys)
    assert any("upstream.profile: ollama" in text for text in found.values())
    async with _server(_all_good, owner="vllm") as url:
        _, found = await _doctor(url, tmp_path, capsys)
    assert any("upstream.profile: vllm" in text for text in found.values())


async def test_credentials(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async with _server(_all_good, key="right") as url:
        status, found = await _doctor(url, tmp_path, capsys)
        assert status == 1 and any("--key-env" in text for text in found.values())
        assert "sk-abcdef" not in json.dumps(found)
        monkeypatch.setenv("MY_KEY", "right")
        status, found = await _doctor(url, tmp_path, capsys, "--key-env", "MY_KEY")
        assert status == 0


async def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with _server(_all_good) as url:
        pass
    status, found = await _doctor(url, tmp_path, capsys)
    assert status == 1 and any("with its /v1" in text for text in found.values())


async def test_an_upstream_that_answers_nonsense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with _server(lambda body: (200, ["what"])) as url:
        status, _ = await _doctor(url, tmp_path, capsys)
    assert status == 1
