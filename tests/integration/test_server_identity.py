"""A server whose profile nobody named is asked what it is, once it can be reached; no request waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import structlog

from antiphon.api.http import ApiRequest
from antiphon.app.build import build
from antiphon.config.settings import load_settings
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.translation.profiles import PROFILES
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from antiphon.upstream.identity import ServerIdentities
from antiphon.upstream.routing import UpstreamPool
from tests.support.chat_server import DEADLINE, Answer, ChatServer, Close, json_answer
from tests.support.gateway import post, start_gateway
from tests.support.metrics import value_of

LLAMA = {"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": "llamacpp"}]}


async def _asked(*answers: Answer, warn_seconds: float = 3600.0) -> tuple[list[tuple[str, str]], int]:
    """What was found, and how many times the server was asked."""
    found: list[tuple[str, str]] = []
    async with ChatServer() as server:
        server.script(*answers)
        pool = UpstreamPool({"one": HttpUpstream(UpstreamTarget(server.base_url))})
        identities = ServerIdentities(pool, ["one"], lambda name, profile: found.append((name, profile)), warn_seconds)
        identities.start()
        async with asyncio.timeout(DEADLINE):
            await identities.answered()
        await identities.aclose()
        await pool.aclose()
        assert {(call.method, call.path) for call in server.requests} == {("GET", "/v1/models")}
        assert all(call.header("authorization") is None for call in server.requests)
        return found, len(server.requests)


@pytest.mark.parametrize(
    ("owner", "profile"),
    [("llamacpp", "llamacpp"), ("vllm", "vllm"), ("library", "ollama"), ("sglang", "sglang")],
)
async def test_a_list_of_models_says_whose_it_is(owner: str, profile: str) -> None:
    listed = {"data": [{"id": "m", "owned_by": owner}]}
    assert await _asked(json_answer(listed)) == ([("one", profile)], 1)


@pytest.mark.parametrize(
    "said",
    [
        json_answer({"data": [{"id": "m", "owned_by": "me"}]}),
        json_answer([]),
        json_answer({"error": {}}, status=401),
        Answer(parts=(b"\xff{",)),
    ],
)
async def test_one_that_says_nothing_is_asked_once(said: Answer) -> None:
    with structlog.testing.capture_logs() as log:
        assert await _asked(said) == ([], 1)
    assert [(line["event"], line["log_level"], line["profile"]) for line in log] == [
        ("upstream_unidentified", "warning", "generic")
    ]


async def test_one_that_cannot_answer_yet_is_asked_again() -> None:
    loading = json_answer({"error": {"message": "Loading model"}}, status=503)
    broken = Answer(parts=(Close(),), framing="none")
    assert await _asked(loading, broken, json_answer(LLAMA)) == ([("one", "llamacpp")], 3)


async def test_one_that_is_long_in_coming_is_warned_of_once_and_asked_on() -> None:
    broken = Answer(parts=(Close(),), framing="none")
    with structlog.testing.capture_logs() as log:
        assert await _asked(broken, broken, json_answer(LLAMA), warn_seconds=0.0) == ([("one", "llamacpp")], 3)
    assert [(line["event"], line.get("problem")) for line in log if "upstream" in line] == [
        ("upstream_unidentified", "no answer yet"),
        ("upstream_identified", None),
    ]


def test_what_was_named_stays() -> None:
    generic, vllm = PROFILES["generic"], PROFILES["vllm"]
    assumed = ModelRoute(generic, upstream="one", assumed=True, flags={"named_tool_choice": "required"})
    routes = ModelRoutes(
        assumed,
        (
            ModelRule("named", ModelRoute(generic, upstream="one")),
            ModelRule("other", ModelRoute(generic, upstream="two", assumed=True)),
        ),
    )
    assert routes.assumed == {"one", "two"}
    routes.learn("one", vllm)
    assert routes.default.profile.name == "vllm" and routes.default.profile.tokenizer == "vllm"
    assert routes.default.profile.named_tool_choice == "required"
    assert [rule.route.profile for rule in routes.rules] == [generic, generic]
    assert routes.assumed == {"two"}


@pytest.mark.full
@pytest.mark.e2e
@pytest.mark.parametrize("door", [pytest.param("http", marks=pytest.mark.full), "envoy"])
async def test_a_gateway_finds_out(door: str, tmp_path: Path) -> None:
    """The count of tokens, which only the right profile asks the server for, is the server's."""

    def respond(request: Any) -> Answer:
        if request.path == "/v1/models":
            return json_answer(LLAMA)
        assert request.path == "/v1/chat/completions/input_tokens"
        return json_answer({"object": "response.input_tokens", "input_tokens": 329})

    async with ChatServer() as server:
        server.default = respond
        automatic = {"ANTIPHON_UPSTREAM__PROFILE": "auto"}
        gateway = await start_gateway(server.base_url, tmp_path, "--door", door, environ=automatic)
        try:
            async with asyncio.timeout(DEADLINE):
                while not any('"upstream_identified"' in line for line in gateway.log):
                    await asyncio.sleep(0.01)
            asked = {"model": "tiny", "input": "hello"}
            answered = await post(f"{gateway.base_url}/responses/input_tokens", asked)
            assert answered.status == 200 and b"329" in answered.body
            assert "antiphon-estimated" not in answered.headers
        finally:
            await gateway.stop()


async def test_asking_for_the_list_of_models_is_counted(tmp_path: Path) -> None:
    async with ChatServer() as server:
        server.script(json_answer(LLAMA))
        given = {"data": tmp_path, "upstream": {"url": server.base_url, "auth": "none", "profile": "generic"}}
        app = await build(load_settings(given), door="http")
        answer = await app.context.router.handle(ApiRequest("GET", "/v1/models"))
        assert answer.status == 200
        labels = {"upstream": "default", "operation": "models", "status": "200"}
        told = app.context.telemetry.metrics.render().decode()
        assert value_of(told, "antiphon_upstream_requests_total", **labels) == 1
        await app.aclose()
