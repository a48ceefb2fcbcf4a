"""Files by URL through every kind of gateway: fetched before the model is called, or refused."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from tests.e2e.conftest import Setup
from tests.support.chat_server import ChatServer, answer, never
from tests.support.gateway import post
from tests.support.judge import check_stream, parse_sse

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

TEXT = (("content-type", "text/plain"),)
PDF = (("content-type", "application/pdf"),)


def _ask(*urls: str, **fields: Any) -> dict[str, Any]:
    parts = [{"type": "input_text", "text": "Read"}, *({"type": "input_file", "file_url": url} for url in urls)]
    return {"model": "demo-model", "input": [{"role": "user", "content": parts}], **fields}


@pytest.mark.parametrize("stream", [True, False])
async def test_files_reach_the_model(setup: Setup, stream: bool) -> None:
    async with ChatServer(base_path="") as files:
        files.script(
            answer(200, TEXT, [b"The moon is far."], framing="length"), answer(200, PDF, [b"%PDF"], framing="length")
        )
        request = _ask(files.url("/moon.txt"), files.url("/x.pdf"), stream=stream)
        answered = await post(setup.gateway.base_url + "/responses", request)
    assert answered.status == 200, answered.body
    if stream:
        check_stream(parse_sse(answered.body))
    sent = json.dumps(setup.server.requests[-1].json["messages"])
    assert "The moon is far." in sent and "moon.txt" in sent
    assert base64.b64encode(b"%PDF").decode() in sent and "x.pdf" in sent
    assert "file_url" not in sent


async def test_a_turn_that_continues_has_its_files_again(setup: Setup) -> None:
    async with ChatServer(base_path="") as files:
        files.default = lambda _: answer(200, TEXT, [b"The moon is far."], framing="length")
        first = await post(setup.gateway.base_url + "/responses", _ask(files.url("/moon.txt")))
        before = json.loads(first.body)["id"]
        again = {"model": "demo-model", "input": "And?", "previous_response_id": before}
        second = await post(setup.gateway.base_url + "/responses", again)
    assert second.status == 200, second.body
    assert "The moon is far." in json.dumps(setup.server.requests[-1].json["messages"])
    # The URL is not good for ever; the conversation is.
    third = await post(setup.gateway.base_url + "/responses", again)
    assert third.status == 200, third.body
    assert "no longer available" in json.dumps(setup.server.requests[-1].json["messages"])


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://10.0.0.1/x", "invalid_file_url"),
        ("http://169.254.169.254/latest/meta-data/", "invalid_file_url"),
        ("https://no-such-name.invalid/x", "invalid_file_url"),
        ("file:///etc/passwd", "invalid_file_url"),
        ("http://127.0.0.1:1/x", "file_download_failed"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_what_must_not_be_fetched_is_a_400_that_names_it(setup: Setup, url: str, code: str, stream: bool) -> None:
    answered = await post(setup.gateway.base_url + "/responses", _ask(url, stream=stream))
    error = json.loads(answered.body)["error"]
    assert (answered.status, error["type"], error["code"]) == (400, "invalid_request_error", code)
    assert error["param"] == "input[0].content[1].file_url"
    assert not setup.server.requests


async def test_a_client_that_leaves_ends_the_fetch(setup: Setup) -> None:
    async with ChatServer(base_path="") as files:
        files.script(never())
        asking = asyncio.create_task(post(setup.gateway.base_url + "/responses", _ask(files.url("/slow"))))
        request = await files.received()
        asking.cancel()
        async with asyncio.timeout(60):
            await request.gone.wait()
    assert not setup.server.requests
