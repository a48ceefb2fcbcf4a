"""Which of several upstreams has answered: what clients and the log are told of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CallUpstream, RequestHead, SendBody, SendHead
from antiphon.translation.profiles import PROFILES
from antiphon.types.transport import UpstreamError, UpstreamFault
from tests.support.exchanges import JSON, make_exchange

_HEAD = RequestHead("POST", "/v1/responses", (), "owner")
_ANSWER = json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}).encode()
_ORDERED = ModelRoute(PROFILES["generic"], upstream="a,b", several=("a", "b"), ordered=True)
_WEIGHTED = ModelRoute(PROFILES["generic"], upstream="a:1,b:1", several=("a", "b"))
_ALONE = ModelRoute(PROFILES["generic"], upstream="a")


def _asked(route: ModelRoute, **fields: Any) -> ResponseExchange:
    exchange = make_exchange(routes=ModelRoutes(route))
    exchange.receive_request(_HEAD, json.dumps({"model": "m", "input": "hi", "store": False, **fields}).encode())
    (call,) = exchange.actions()
    assert isinstance(call, CallUpstream)
    assert (call.request.upstream, call.request.tries) == (route.upstream, len(route.upstreams))
    return exchange


def _told(exchange: ResponseExchange) -> tuple[str | None, dict[str, Any]]:
    """The header and the object of the whole answer."""
    actions = exchange.actions()
    (head,) = [each for each in actions if isinstance(each, SendHead)]
    (body,) = [each for each in actions if isinstance(each, SendBody)]
    assert not [name for name, _ in head.headers if name.startswith("x-antiphon")]
    return dict(head.headers).get("antiphon-upstream"), json.loads(body.data)


@pytest.mark.parametrize(
    ("route", "name", "tried", "fell_back"),
    [
        (_ORDERED, "a", "1", False),
        (_ORDERED, "b", "2", True),
        # The first was not even asked: it is known to be dead.
        (_ORDERED, "b", "1", True),
        (_ORDERED, "b", "many", True),
        (_WEIGHTED, "b", "1", False),
        (_WEIGHTED, "a", "2", True),
    ],
)
def test_who_answered_and_for_whom(route: ModelRoute, name: str, tried: str, fell_back: bool) -> None:
    exchange = _asked(route, metadata={"k": "v"})
    exchange.receive_upstream_head(200, (*JSON, ("antiphon-upstream", name), ("x-antiphon-tried", tried)))
    exchange.receive_upstream_data(_ANSWER)
    exchange.receive_upstream_end()
    header, response = _told(exchange)
    assert header == name
    assert response["metadata"] == {"k": "v", **({"antiphon_upstream": name} if fell_back else {})}
    assert bool(exchange.known.fallback) is fell_back


def test_one_alone_is_not_named_whatever_it_says() -> None:
    exchange = _asked(_ALONE)
    exchange.receive_upstream_head(200, (*JSON, ("antiphon-upstream", "b"), ("x-antiphon-tried", "2")))
    exchange.receive_upstream_data(_ANSWER)
    exchange.receive_upstream_end()
    header, response = _told(exchange)
    assert (header, response["metadata"], exchange.known.fallback) == (None, {}, "")


def test_the_clients_metadata_comes_first() -> None:
    full = {f"k{number}": "v" for number in range(16)}
    for given, expected in (
        (full, full),
        ({"antiphon_upstream": "a"}, {"antiphon_upstream": "b"}),
        ({**full, "k15": "é"}, {**full, "k15": "é"}),
    ):
        exchange = _asked(_ORDERED, metadata=given)
        exchange.receive_upstream_head(200, (*JSON, ("antiphon-upstream", "b"), ("x-antiphon-tried", "2")))
        exchange.receive_upstream_data(_ANSWER)
        exchange.receive_upstream_end()
        header, response = _told(exchange)
        assert (header, response["metadata"]) == ("b", expected)


def test_a_failure_names_the_one_that_said_it() -> None:
    exchange = _asked(_ORDERED)
    exchange.receive_upstream_head(503, (*JSON, ("antiphon-upstream", "b"), ("x-antiphon-tried", "2")))
    exchange.receive_upstream_data(b"{}")
    exchange.receive_upstream_end()
    assert exchange.known.failure is not None and exchange.known.failure.upstream == "b"
    assert _told(exchange)[0] == "b"
    unreached = _asked(_ORDERED)
    unreached.receive_upstream_end(UpstreamError(UpstreamFault.UNREACHABLE, "nobody"))
    assert unreached.known.failure is not None and unreached.known.failure.upstream == "a,b"
    assert _told(unreached)[0] is None


def test_the_first_that_says_what_it_is_decides_for_all() -> None:
    assumed = replace(_ORDERED, assumed=True)
    alone = ModelRoute(PROFILES["generic"], upstream="c", assumed=True)
    routes = ModelRoutes(_ALONE, (ModelRule("m", assumed), ModelRule("n", assumed), ModelRule("o", alone)))
    assert routes.assumed == {"a", "b", "c"}
    assert routes.learn("b", PROFILES["vllm"]) == ()
    assert routes.learn("c", PROFILES["ollama"]) == ()
    assert [routes.choose(name).profile.name for name in "mno"] == ["vllm", "vllm", "ollama"]
    assert not routes.assumed
    assert routes.learn("a", PROFILES["vllm"]) == ()
    assert routes.learn("a", PROFILES["ollama"]) == ("a,b",)
    assert routes.choose("m").profile.name == "vllm"
    named = ModelRoutes(_ALONE, (ModelRule("m", _ORDERED),))
    assert named.learn("b", PROFILES["vllm"]) == () and named.choose("m") is _ORDERED
