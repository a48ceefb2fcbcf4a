"""An endpoint picker behind a real Envoy: it sees whole requests and says where they go; its failures are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.certificates import Authority
from tests.support.chat_server import ChatServer, Wait, answer, text_stream
from tests.support.extproc_door import request_body
from tests.support.fake_picker import DESTINATION, Abort, AbortInAnswer, Decision, FakePicker, Never, Refuse, To
from tests.support.gateway import post
from tests.support.judge import check_stream, parse_sse
from tests.support.real_envoy import RealEnvoy, real_envoy
from tests.support.waiting import until

NOWHERE = "http://192.0.2.1:9/v1"
"""Where no request goes: the upstream's URL says how it is asked, and the picker where."""
CHAT = json.dumps({"model": "demo-model", "messages": [{"role": "user", "content": "Hi"}]}).encode()


def _settings(picker: FakePicker, **more: Any) -> dict[str, Any]:
    chosen = {"address": picker.address, "tls": "off", **more}
    return {"upstream": {"url": NOWHERE}, "envoy": {"endpoint_picker": chosen}}


@dataclass
class Picked:
    envoy: RealEnvoy
    picker: FakePicker
    chat: ChatServer
    gone: str
    """An address where nobody listens."""

    def lines(self) -> list[dict[str, Any]]:
        """What Envoy's log says of picks that failed."""
        lines = [line for line in self.envoy.log.read_text().splitlines() if '"pick_failed"' in line]
        return [json.loads(line) for line in lines]


@asynccontextmanager
async def _picked(folder: Path, **more: Any) -> AsyncIterator[Picked]:
    async with ChatServer() as gone:
        address = f"127.0.0.1:{gone.port}"
    async with (
        ChatServer() as chat,
        FakePicker(f"127.0.0.1:{chat.port}") as picker,
        real_envoy(folder, settings=_settings(picker, **more)) as envoy,
    ):
        yield Picked(envoy, picker, chat, address)


async def test_the_picker_sees_the_chat_request_and_says_where_it_goes(tmp_path: Path) -> None:
    async with _picked(tmp_path) as setup:
        url = f"http://127.0.0.1:{setup.envoy.port}/v1"
        # A server of the client's own choice would be any address that Envoy reaches.
        forged = {DESTINATION: setup.gone, "authorization": "Bearer theirs"}
        whole = await post(f"{url}/responses", request_body("Hello there"), forged)
        assert whole.status == 200 and json.loads(whole.body)["status"] == "completed"
        streamed = await post(f"{url}/responses", request_body(stream=True), forged)
        check_stream(parse_sse(streamed.body))
        plain = await post(f"{url}/chat/completions", CHAT, forged)
        assert plain.status == 200 and json.loads(plain.body)["object"] == "chat.completion"
        assert [pick.json["messages"][-1]["content"] for pick in setup.picker.picks] == ["Hello there", "Hi", "Hi"]
        assert len(setup.chat.requests) == 3
        for pick, asked in zip(setup.picker.picks, setup.chat.requests, strict=True):
            assert pick.json == asked.json and pick.headers[":path"] == asked.path
            # The server gets the credentials, the picker does not.
            assert "authorization" not in pick.headers and asked.header("authorization") == "Bearer theirs"
            assert DESTINATION not in pick.headers and asked.header_values(DESTINATION) == [setup.picker.endpoint]
        assert b"[DONE]" in setup.picker.picks[1].answer
        # Without a pick there is no other place, whatever a client says.
        setup.picker.script(To(None), To(None))
        for path, body in (("responses", request_body()), ("chat/completions", CHAT)):
            nowhere = await post(f"{url}/{path}", body, forged)
            assert (nowhere.status, json.loads(nowhere.body)["error"]["code"]) == (503, "no_endpoint_picked")
        assert len(setup.chat.requests) == 3
        # Envoy's log is written a moment later.
        await until(setup.lines)
        assert not setup.lines()[0]["endpoint"]


FAILURES: dict[str, tuple[Decision, int, str | None, str | None, str]] = {
    # decision: status, code, retry-after, cause
    "refuses": (Refuse(429, b"saturated", (("retry-after", "7"),)), 429, "rate_limit_exceeded", "7", "saturated"),
    "refuses with 503": (Refuse(503, b"no capacity"), 503, "upstream_error", "1", "no capacity"),
    "picks no address": (To("nonsense"), 503, "no_endpoint_picked", "1", "the picker chose no server"),
    "fails": (Abort(), 503, "endpoint_picker_unavailable", "1", "ext_proc_error_gRPC_error_13"),
    "is slow": (Never(), 504, "endpoint_picker_timeout", None, "the picker chose no server in time"),
}


def _ended(lines: list[MutableMapping[str, Any]]) -> bool:
    return any(line["event"] == "response" for line in lines)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_what_goes_wrong_at_the_picker_is_told(tmp_path: Path, stream: bool) -> None:
    async with _picked(tmp_path, timeout=0.5) as setup:
        url = f"http://127.0.0.1:{setup.envoy.port}/v1"
        for name, (decision, status, code, again, cause) in FAILURES.items():
            setup.picker.script(decision, decision)
            with capture_logs() as lines:
                got = await post(f"{url}/responses", request_body(stream=stream))
                # Its line comes with the end of the stream, which the client does not wait for.
                await until(partial(_ended, lines))
            error = json.loads(got.body)["error"]
            assert (got.status, error["code"], got.headers.get("retry-after")) == (status, code, again), name
            assert set(error) >= {"message", "type", "param", "code"}, name
            (line,) = [line for line in lines if line["event"] == "response"]
            assert line["cause"].startswith("endpoint picker: ") and cause in line["cause"], (name, line)
            assert line["fault"] == "upstream" and "upstream_status" not in line, name
            passed = await post(f"{url}/chat/completions", CHAT)
            said = json.loads(passed.body)["error"]
            assert (passed.status, passed.headers.get("retry-after")) == (status, again), name
            assert not [header for header in passed.headers if header.startswith("x-antiphon")], name
            assert said["code"] in (code, None) and said["message"], name
        assert not setup.chat.requests
        # Envoy's log is written a moment later.
        await until(lambda: len(setup.lines()) == 2 * len(FAILURES))
        assert all(line["cause"].startswith("endpoint picker: ") for line in setup.lines())


async def test_a_server_that_has_gone_is_not_asked_twice(tmp_path: Path) -> None:
    async with _picked(tmp_path) as setup:
        setup.picker.script(To(setup.gone))
        assert (await setup.envoy.post(request_body())).status == 200
        assert len(setup.picker.picks) == 2
        setup.picker.script(*[To(setup.gone)] * 3)
        with capture_logs() as lines:
            got = await setup.envoy.post(request_body())
        assert (got.status, json.loads(got.body)["error"]["code"]) == (502, "upstream_unreachable")
        assert len(setup.picker.picks) == 5
        (line,) = [line for line in lines if line["event"] == "response"]
        assert f"{setup.gone}, which the endpoint picker chose" in line["cause"]


async def test_only_the_pick_has_the_pickers_time(tmp_path: Path) -> None:
    """A server may be silent for longer, before its answer and in it."""
    async with _picked(tmp_path, timeout=0.2) as setup:
        one, two = asyncio.Event(), asyncio.Event()
        parts = text_stream("Hel", "lo")
        setup.chat.script(answer(parts=[Wait(one), *parts[:2], Wait(two), *parts[2:]]))
        asked = asyncio.ensure_future(setup.envoy.post(request_body(stream=True)))
        await until(lambda: setup.chat.requests)
        for event_ in (one, two):
            # The time of picks runs out for others meanwhile.
            setup.picker.script(Never(), Never())
            for _ in range(2):
                assert (await setup.envoy.post(request_body())).status == 504
            event_.set()
        got = await asked
        assert not got.cut
        check_stream(parse_sse(got.body))


@pytest.mark.slow
async def test_a_picker_that_is_away_and_comes_back(tmp_path: Path) -> None:
    async with _picked(tmp_path) as setup:
        assert (await setup.envoy.post(request_body())).status == 200
        await setup.picker.stop()
        got = await setup.envoy.post(request_body())
        assert (got.status, json.loads(got.body)["error"]["code"]) == (503, "endpoint_picker_unavailable")
        await setup.picker.start()

        async def answers() -> bool:
            return (await setup.envoy.post(request_body())).status == 200

        async with asyncio.timeout(60):
            while not await answers():
                pass


@pytest.mark.slow
async def test_a_picker_that_fails_in_an_answer_cuts_it(tmp_path: Path) -> None:
    async with _picked(tmp_path) as setup:
        setup.picker.script(AbortInAnswer(setup.picker.endpoint or ""))
        got = await setup.envoy.post(request_body(stream=True))
        # Cut where its head has gone out; before that, Envoy answers for who failed first: the picker or the upstream.
        assert got.cut or got.status in (502, 503)
        await until(lambda: len(setup.lines()) == 1)


@pytest.mark.slow
@pytest.mark.parametrize("checked", [False, True], ids=["self-signed", "verified"])
async def test_a_picker_behind_tls(tmp_path: Path, checked: bool) -> None:
    authority = Authority(tmp_path)
    signed = authority.sign("127.0.0.1")
    more = {"tls": "verified", "ca_file": authority.ca} if checked else {"tls": "self-signed"}
    async with (
        ChatServer() as chat,
        FakePicker(f"127.0.0.1:{chat.port}", signed) as picker,
        real_envoy(tmp_path, settings=_settings(picker, **more)) as envoy,
    ):
        assert (await envoy.post(request_body())).status == 200


@pytest.mark.slow
async def test_a_picker_whose_certificate_is_another_authoritys(tmp_path: Path) -> None:
    signed = Authority(tmp_path).sign("127.0.0.1")
    other = Authority(tmp_path, "other").ca
    async with (
        FakePicker("127.0.0.1:9", signed) as picker,
        real_envoy(tmp_path, settings=_settings(picker, tls="verified", ca_file=other)) as envoy,
    ):
        got = await envoy.post(request_body())
        assert (got.status, json.loads(got.body)["error"]["code"]) == (503, "endpoint_picker_unavailable")
        assert not picker.picks
