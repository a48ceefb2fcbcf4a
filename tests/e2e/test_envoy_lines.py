"""What Envoy alone knows of: its own lines have the names of the sidecar's, and every answer has the request's id."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from structlog.testing import capture_logs

from tests.support.chat_server import Answer, Reset, WaitGone, answer, event, json_answer
from tests.support.real_envoy import RealEnvoy, real_envoy
from tests.support.waiting import until

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
FAILED = json_answer({"error": "no"}, 500)


async def ask(envoy: RealEnvoy, path: str, request_id: str) -> tuple[int, str, bool]:
    """Status, the answer's request id, and whether its body came whole; an error of ours names the id too."""
    headers = {"x-request-id": request_id}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://127.0.0.1:{envoy.port}{path}", json={"model": "m"}, headers=headers) as got,
    ):
        (said,) = got.headers.getall("x-request-id")
        try:
            body = await got.read()
        except aiohttp.ClientPayloadError:
            return got.status, said, False
        if "message" in (error := json.loads(body).get("error", ())):
            assert error["request_id"] == said, body
        return got.status, said, True


def lines(envoy: RealEnvoy) -> dict[str, dict[str, Any]]:
    """By request id; each has one."""
    found = [json.loads(line) for line in envoy.log.read_text().splitlines() if line.startswith("{")]
    told = {line["request_id"]: line for line in found}
    assert len(told) == len(found), found
    return told


SAID: dict[str, tuple[Answer, dict[str, Any]]] = {
    "500": (FAILED, {"fault": "upstream", "level": "warning", "status": 500, "upstream_status": 500}),
    "401": (json_answer({}, 401), {"fault": "upstream", "level": "warning", "code": "invalid_api_key"}),
    "429": (json_answer({}, 429), {"fault": "upstream", "level": "warning", "code": "rate_limit_exceeded"}),
    "404": (json_answer({}, 404), {"fault": "client", "level": "info", "status": 404}),
    "cut": (
        answer(parts=[event("a"), Reset()]),
        {"fault": "upstream", "level": "warning", "status": 200, "code": "upstream_cut"},
    ),
}


@pytest.mark.slow
async def test_what_envoy_passes_on_by_itself_and_fails_is_one_line(tmp_path: Path) -> None:
    async with real_envoy(tmp_path) as envoy:
        assert await ask(envoy, CHAT, "is-well") == (200, "is-well", True)
        for name, (said, told) in SAID.items():
            envoy.chat.script(said)
            got = await ask(envoy, CHAT, name)
            assert got == (told.get("status", got[0]), name, name != "cut")
        await envoy.chat.stop()
        assert await ask(envoy, EMBEDDINGS, "dead") == (502, "dead", True)
        assert await ask(envoy, "/nothing", "nothing") == (404, "nothing", True)
        # There is no sidecar's HTTP port here.
        assert await ask(envoy, "/v1/files", "no-sidecar") == (503, "no-sidecar", True)
        await until(lambda: len(lines(envoy)) == len(SAID) + 2)
        found = lines(envoy)
    for name, (_, told) in SAID.items():
        told = {"operation": "pass_on", "upstream": "default", "door": "envoy", "path": CHAT, **told}
        assert told.items() <= found[name].items(), found[name]
        assert found[name]["message"] == "request" and found[name]["seconds"] >= 0
    dead = {"fault": "upstream", "code": "upstream_unreachable", "status": 502, "upstream": "default"}
    assert dead.items() <= found["dead"].items() and "upstream_status" not in found["dead"], found["dead"]
    assert "code" not in found["500"] and all("advice" not in found[name] for name in SAID)
    alone = {"fault": "ours", "code": "adapter_unavailable", "operation": "ask_sidecar", "level": "warning"}
    assert alone.items() <= found["no-sidecar"].items(), found["no-sidecar"]
    assert "why the sidecar ended or hangs" in found["no-sidecar"]["advice"]
    # Empty fields are left out.
    assert not {"upstream", "upstream_status"} & found["no-sidecar"].keys(), found["no-sidecar"]


async def test_with_the_console_an_unknown_path_is_one_line_without_its_query(tmp_path: Path) -> None:
    async with real_envoy(tmp_path, settings={"console": {"enabled": True, "listen": "127.0.0.1:0"}}) as envoy:
        assert await ask(envoy, "/v1/nothing?key=hidden", "nothing") == (404, "nothing", True)
        assert (await ask(envoy, "/v1/files", "last"))[0] == 503
        await until(lambda: len(lines(envoy)) == 2)
        line = lines(envoy)["nothing"]
    told = {"door": "envoy", "level": "info", "fault": "client", "code": "unknown_url", "status": 404, "method": "POST"}
    assert told.items() <= line.items() and line["path"] == "/v1/nothing" and "hidden" not in str(line), line


async def test_why_envoy_could_not_reach_an_upstream_is_in_the_sidecars_line(tmp_path: Path) -> None:
    """A server that is down and a name without an address are two things to mend."""
    for url, why in (
        ("http://127.0.0.1:9/v1", "Connection_refused"),
        ("http://gone.invalid/v1", "no_healthy_upstream"),
    ):
        given = {"upstream": {"url": url, "profile": "generic"}}
        folder = tmp_path / why[:2]
        folder.mkdir()
        with capture_logs() as told:
            async with real_envoy(folder, settings=given) as envoy:
                assert (await envoy.post(json.dumps({"model": "m", "input": "hi"}).encode())).status == 502
        (line,) = [line for line in told if line.get("code") == "upstream_unreachable"]
        assert line["cause"].startswith("unreachable: Envoy could not reach the upstream: ") and why in line["cause"], (
            line
        )


async def test_what_envoy_passes_on_has_counters_and_ids_of_its_own(tmp_path: Path) -> None:
    """The two numbers that monitoring.md names, since no sidecar sees these requests."""
    async with real_envoy(tmp_path) as envoy:
        for sent, status in (("good-1", 200), ("a b", 500), ("x" * 129, 429)):
            envoy.chat.script(json_answer({}, status))
            _, said, _ = await ask(envoy, CHAT, sent)
            assert envoy.chat.requests[-1].header_values("x-request-id") == [said]
            assert (said == sent) is (status == 200) and len(said) <= 128
        # The cluster is the same, but these requests are the sidecar's.
        envoy.chat.script(FAILED)
        await envoy.post(json.dumps({"model": "m", "input": "hi"}).encode())
        counted = await envoy.stats("passed_on")
    for status in (200, 429, 500):
        name = f'envoy_vhost_route_upstream_rq{{envoy_response_code="{status}",envoy_virtual_host="all"'
        assert f'{name},envoy_route="passed_on"}} 1\n' in counted, counted
    assert 'envoy_vhost_route_upstream_rq_completed{envoy_virtual_host="all",envoy_route="passed_on"} 3\n' in counted


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_sidecar_has_a_line_of_has_none_of_envoys(tmp_path: Path, stream: bool) -> None:
    async with real_envoy(tmp_path) as envoy:
        for said in (FAILED, answer(parts=[event("a"), Reset()])):
            envoy.chat.script(said)
            # On a busy machine, the upstream's reset may come before the client has the head of the answer.
            with suppress(aiohttp.ServerDisconnectedError):
                await envoy.post(json.dumps({"model": "m", "input": "hi", "stream": stream}).encode())
        # Its log comes out in order.
        assert (await ask(envoy, "/v1/files", "last"))[0] == 503
        await until(lambda: "last" in lines(envoy))
        early = lines(envoy)
        assert early.pop("last")["message"] == "request"
        # What the sidecar cannot know.
        (told,) = early.values()
        whose = {"message": "stream_ended_early", "fault": "upstream", "level": "warning", "model": "m"}
        assert whose.items() <= told.items() and "reset" in told["details"], told


async def test_who_ended_a_relayed_stream_early_is_a_line_of_envoys(tmp_path: Path) -> None:
    """A client's connection that ends, and its reset of an HTTP/2 stream."""
    async with real_envoy(tmp_path) as envoy:
        body = json.dumps({"model": "m", "input": "hi", "stream": True}).encode()
        envoy.chat.script(answer(parts=[event("a"), WaitGone()]), answer(parts=[event("a"), WaitGone()]))
        async with aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{envoy.port}/v1/responses"
            async with session.post(url, data=body, headers={"x-request-id": "closes"}) as got:
                await got.content.readuntil(b"output_text.delta")
        await envoy.reset_in_stream(body, "resets", b"output_text.delta")
        await until(lambda: len(lines(envoy)) == 2)
        found = lines(envoy)
    for request_id, flags in (("closes", "DC"), ("resets", "DR")):
        said = {"fault": "cancelled", "level": "info", "flags": flags, "status": 200, "door": "envoy"}
        assert said.items() <= found[request_id].items(), found
