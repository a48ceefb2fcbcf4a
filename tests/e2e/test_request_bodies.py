"""Compressed request bodies through every kind of gateway; Codex sends zstd."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.conftest import Setup
from tests.support.compression import COMPRESSED
from tests.support.gateway import post
from tests.support.judge import check_stream, parse_sse

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

_CODEX = {"originator": "codex_exec", "session-id": "s", "accept": "text/event-stream", "authorization": "Bearer t"}


def _request(text: str) -> dict[str, Any]:
    """What Codex sends, in short."""
    message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    return {
        "model": "demo-model",
        "input": [{**message, "role": "developer"}, message],
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "thread",
        "client_metadata": {"a": "b"},
    }


@pytest.mark.parametrize("size", [10, 1_500_000], ids=["small", "large"])
@pytest.mark.parametrize("coding", COMPRESSED)
async def test_a_compressed_body_is_served(setup: Setup, coding: str, size: int) -> None:
    text = "".join(f"line {number}\n" for number in range(size // 10))
    body = COMPRESSED[coding](json.dumps(_request(text)).encode())
    answered = await post(setup.gateway.base_url + "/responses", body, {**_CODEX, "content-encoding": coding})
    assert answered.status == 200, answered.body
    events = parse_sse(answered.body)
    check_stream(events)
    assert events[-1]["type"] == "response.completed"
    (received,) = setup.server.requests
    assert received.json["messages"][-1] == {"role": "user", "content": text}
    assert received.header("content-encoding") is None
    assert received.header("content-length") in (str(len(received.body)), None)


async def test_an_unknown_coding_is_a_415(setup: Setup) -> None:
    answered = await post(setup.gateway.base_url + "/responses", b"x" * 100_000, {"content-encoding": "br"})
    assert answered.status == 415
    assert json.loads(answered.body)["error"]["code"] == "unsupported_content_encoding"
    assert not setup.server.requests


async def test_a_broken_body_is_a_400(setup: Setup) -> None:
    answered = await post(setup.gateway.base_url + "/responses", b'{"model":"m"}', {"content-encoding": "zstd"})
    assert answered.status == 400
    assert json.loads(answered.body)["error"]["code"] == "invalid_body"
    assert not setup.server.requests


async def test_a_bomb_is_a_413(setup: Setup) -> None:
    bomb = COMPRESSED["zstd"](bytes(500 << 20))
    answered = await post(setup.gateway.base_url + "/responses", bomb, {"content-encoding": "zstd"})
    assert answered.status == 413
    assert json.loads(answered.body)["error"]["code"] == "request_too_large"
    assert not setup.server.requests
