"""What is passed on to an upstream and fails leaves one line that says whose fault it was, and one number."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.types.transport import LOCAL_REPLY
from tests.support.chat_server import Answer, Reset, WaitGone, answer, event, json_answer
from tests.support.http_door import open_http_door, post_bytes
from tests.support.waiting import until

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
ASK = {"model": "m", "messages": []}
NOT_THERE = {"error": {"message": "no such model: secret words of the request", "code": "model_not_found"}}
JSON = (("content-type", "application/json"),)


def requests(lines: list[Any]) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] in ("request", "request_failed", "response")]


@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS])
@pytest.mark.parametrize(
    ("said", "level", "told", "status"),
    [
        (json_answer({"error": {"message": "boom"}}, 500), "warning", {"upstream_status": 500, "status": 500}, "500"),
        (json_answer({}, 401), "warning", {"upstream_status": 401, "status": 401, "code": "invalid_api_key"}, "401"),
        (json_answer({}, 429), "warning", {"upstream_status": 429, "code": "rate_limit_exceeded"}, "429"),
        (json_answer({}, 400), "info", {"upstream_status": 400, "fault": "client"}, "400"),
        (json_answer(NOT_THERE, 404), "info", {"fault": "client", "code": "model_not_found"}, "404"),
        (answer(200, JSON, [b'{"cho', Reset()]), "warning", {"status": 502, "code": "upstream_cut"}, "cut"),
        (answer(parts=[event("a"), Reset()]), "warning", {"status": 200, "code": "upstream_cut"}, "cut"),
    ],
    ids=["500", "401", "429", "400", "404", "cut-json", "cut-stream"],
)
async def test_one_line_and_one_number(path: str, said: Answer, level: str, told: dict[str, Any], status: str) -> None:
    async with open_http_door() as door:
        door.chat.script(said)
        with capture_logs() as lines:
            got = await door.ask(post_bytes(ASK, path=path))
            await until(lambda: requests(lines))
        (line,) = requests(lines)
        expected = {"fault": "upstream", "operation": "pass_on", "upstream": "default", **told}
        assert expected.items() <= line.items(), line
        assert (line["log_level"], line["request_id"]) == (level, got.header("x-request-id"))
        assert line["seconds"] > 0 and "secret words" not in str(line)
        labels = {"operation": "pass_through", "upstream": "default"}
        assert door.metric("antiphon_upstream_requests_total", **labels, status=status) == 1
        assert door.metric("antiphon_upstream_requests_total", **labels) == 1
        assert door.metric("antiphon_upstream_head_seconds_count", upstream="default") == 1


async def test_a_line_has_no_more_than_256_characters_of_a_path() -> None:
    async with open_http_door() as door:
        with capture_logs() as lines:
            await door.ask(post_bytes(ASK, path="/" + "x" * 300))
            await until(lambda: requests(lines))
    (line,) = requests(lines)
    assert line["path"] == "/" + "x" * 255


async def test_an_upstream_that_is_not_there() -> None:
    async with open_http_door() as door:
        await door.chat.stop()
        with capture_logs() as lines:
            assert (await door.ask(post_bytes(ASK, path=CHAT))).status == 502
        (line,) = requests(lines)
        assert (line["fault"], line["operation"], line["upstream"]) == ("upstream", "pass_on", "default")
        assert (line["code"], line["status"]) == ("upstream_unreachable", 502) and "unreachable" in line["cause"]
        assert door.metric("antiphon_upstream_requests_total", operation="pass_through", status="unreachable") == 1
        assert door.metric("antiphon_upstream_head_seconds_count") == 0
        named = f"POST {CHAT}"
        assert door.metric("antiphon_requests_total", operation=named, status="502", fault="upstream") == 1


async def test_envoys_own_answer_is_not_the_upstreams() -> None:
    async with open_http_door() as door:
        door.chat.script(json_answer({"error": {}}, 502, headers=((LOCAL_REPLY, "unreachable:no_healthy_upstream"),)))
        with capture_logs() as lines:
            assert (await door.ask(post_bytes(ASK, path=CHAT))).status == 502
        (line,) = requests(lines)
        assert (line["code"], line["status"]) == ("upstream_unreachable", 502) and "upstream_status" not in line
        assert line["cause"].startswith("unreachable: Envoy could not reach the upstream: ")


async def test_a_client_that_leaves_is_nobodys_failure() -> None:
    async with open_http_door() as door:
        door.chat.script(answer(parts=[event("a"), WaitGone()]))
        with capture_logs() as lines:
            async with door.client() as client:
                await client.send(post_bytes({**ASK, "stream": True}, path=CHAT))
                await client.head()
            await until(lambda: requests(lines))
        (line,) = requests(lines)
        assert (line["log_level"], line["status"]) == ("info", 499) and "fault" not in line


async def test_what_is_well_is_one_line_without_a_fault() -> None:
    async with open_http_door() as door:
        with capture_logs() as lines:
            assert (await door.ask(post_bytes(ASK, path=CHAT))).status == 200
        (line,) = requests(lines)
        assert "fault" not in line and (line["status"], line["log_level"]) == (200, "info")
        assert door.metric("antiphon_upstream_requests_total", operation="pass_through", status="200") == 1
