"""Envoy limits tokens with a sidecar's numbers: the configuration in the docs, a real Envoy, a service that counts."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml

from tests.support.chat_server import DONE_EVENT, answer, chunk, event
from tests.support.gateway import post
from tests.support.real_envoy import RealEnvoy, real_envoy
from tests.support.waiting import until

with warnings.catch_warnings():
    # The messages' own package, under a newer pydantic.
    warnings.simplefilter("ignore", DeprecationWarning)
    from envoy_data_plane.envoy.service.ratelimit.v3 import (
        RateLimitRequest,
        RateLimitResponse,
        RateLimitResponseCode,
    )

pytestmark = [pytest.mark.e2e]

_DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "monitoring.md"
BUDGET = 100


class Limiter:
    """Each owner has a budget; a request is let in while something is left of it."""

    def __init__(self) -> None:
        self.used: Counter[str] = Counter()
        self.asked: list[tuple[str, int]] = []
        self.address = ""

    def decide(self, request: RateLimitRequest) -> RateLimitResponse:
        over = False
        for descriptor in request.descriptors:
            (entry,) = descriptor.entries
            tokens = descriptor.hits_addend if descriptor.hits_addend is not None else 1
            self.asked.append((entry.value, tokens))
            over = over or self.used[entry.value] >= BUDGET
            self.used[entry.value] += tokens
        return RateLimitResponse(
            overall_code=RateLimitResponseCode.OVER_LIMIT if over else RateLimitResponseCode.OK,
        )


@asynccontextmanager
async def _limiter() -> AsyncIterator[Limiter]:
    limiter = Limiter()

    async def answered(data: bytes, _: Any) -> bytes:
        return bytes(limiter.decide(RateLimitRequest.parse(data)))

    handler = grpc.method_handlers_generic_handler(
        "envoy.service.ratelimit.v3.RateLimitService",
        {"ShouldRateLimit": grpc.unary_unary_rpc_method_handler(answered)},
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    limiter.address = f"127.0.0.1:{port}"
    try:
        yield limiter
    finally:
        await server.stop(None)


def _shown() -> list[Any]:
    """The configuration in the docs: filters, clusters, and where the route leads."""
    _, _, behind = _DOCS.read_text().partition("## Token rate limits")
    blocks = re.findall(r"```yaml\n(.*?)```", behind, re.DOTALL)
    return [yaml.safe_load(block) for block in blocks[:3]]


def _with_limits(config: dict[str, Any], address: str) -> None:
    """What an operator does with it."""
    http_filters, clusters, action = _shown()
    host, _, port = address.rpartition(":")
    endpoint = clusters[0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["address"]["socket_address"] = {"address": host, "port_value": int(port)}
    config["static_resources"]["clusters"] += clusters
    managers = [
        listener["filter_chains"][0]["filters"][0]["typed_config"]
        for listener in config["static_resources"]["listeners"]
    ]
    (public,) = [one for one in managers if one["route_config"]["name"] == "public"]
    at = [one["name"] for one in public["http_filters"]].index("envoy.filters.http.ext_proc")
    public["http_filters"][at:at] = http_filters
    routes = public["route_config"]["virtual_hosts"][0]["routes"]
    (responses,) = [one for one in routes if one["name"] == "responses"]
    del responses["direct_response"]
    responses |= action


def _streamed(asked: int, made: int) -> Any:
    usage = {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}
    parts = [event("a"), event(chunk(finish_reason="stop")), event(chunk(choices=[], usage=usage)), DONE_EVENT]
    return answer(parts=parts)


async def _ask(envoy: RealEnvoy, owner: str) -> int:
    body = {"model": "m", "input": "hi", "stream": True, "store": False}
    url = f"http://127.0.0.1:{envoy.port}/v1/responses"
    return (await post(url, json.dumps(body).encode(), {"x-team": owner})).status


async def test_who_has_no_tokens_left_is_turned_away(tmp_path: Path) -> None:
    async with (
        _limiter() as limiter,
        real_envoy(tmp_path, lambda config: _with_limits(config, limiter.address)) as envoy,
    ):
        envoy.chat.script(_streamed(40, 20), _streamed(30, 25), _streamed(1, 1))
        assert await _ask(envoy, "alice") == 200
        await until(lambda: limiter.used["alice"] == 60)
        assert await _ask(envoy, "alice") == 200
        await until(lambda: limiter.used["alice"] == 115)
        assert await _ask(envoy, "alice") == 429
        assert await _ask(envoy, "bob") == 200
        await until(lambda: limiter.used["bob"] == 2)
        assert [tokens for owner, tokens in limiter.asked if owner == "alice"] == [0, 60, 0, 55, 0]
        assert len(envoy.chat.requests) == 3
