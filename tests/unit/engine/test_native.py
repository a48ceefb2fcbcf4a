"""Where models go, and exchanges with an upstream that speaks Responses itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.exchange.native_request import NativeAnswer, refuse_references
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import (
    Action,
    CallUpstream,
    CancelReason,
    Finish,
    RequestHead,
    SendBody,
    SendHead,
    Usage,
)
from antiphon.engine.ports.callers import Access
from antiphon.engine.ports.observer import Unobserved
from antiphon.errors import ApiError, InvalidRequest
from antiphon.translation.profiles import PROFILES
from antiphon.types.transport import Headers, UpstreamError, UpstreamFault
from tests.support.exchanges import JSON, SSE, limits, make_exchange

_GENERIC = PROFILES["generic"]
_CUT = UpstreamError(UpstreamFault.CUT, "gone")


def _native(**route: Any) -> ModelRoutes:
    rule = ModelRule("n*", ModelRoute(_GENERIC, upstream="other", mode="native", **route))
    return ModelRoutes(ModelRoute(_GENERIC), (rule,))


def _asked(body: bytes, headers: Headers = (), **options: Any) -> ResponseExchange:
    exchange = make_exchange(**{"routes": _native(), **options})
    exchange.receive_request(RequestHead("POST", "/v1/responses", headers, "owner"), body)
    return exchange


def _error(exchange: ResponseExchange) -> tuple[int, str]:
    actions = exchange.actions()
    head = next(action for action in actions if isinstance(action, SendHead))
    body = next(action for action in actions if isinstance(action, SendBody))
    assert isinstance(actions[-1], Finish) and actions[-1].outcome == "error"
    return head.status, json.loads(body.data)["error"]["code"]


@pytest.mark.parametrize(
    ("model", "upstream"), [("gpt-4", "a"), ("gpt-5", "b"), ("GPT-5", "default"), ("xgpt-5", "default"), ("b/x:1", "c")]
)
def test_the_first_pattern_that_fits_the_whole_name_decides(model: str, upstream: str) -> None:
    patterns = (("gpt-4", "a"), ("gpt-*", "b"), ("gpt-5", "never"), ("?/[x-z]:*", "c"))
    rules = tuple(ModelRule(pattern, ModelRoute(_GENERIC, upstream=name)) for pattern, name in patterns)
    assert ModelRoutes(ModelRoute(_GENERIC), rules).choose(model).upstream == upstream


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"model":"nx","input":"hi"}', "model_not_found"),
        (b'{"model":"n1","tools":[{"type":"function"},{"type":"mcp"}]}', "tool_not_allowed"),
        # The upstream may read either of two fields with one name.
        (b'{"model":"n1","tools":[{"type":"mcp","type":"function"}],"tools":[]}', "tool_not_allowed"),
        (b'{"model":"n1","tools":[{"ty\\u0070e":"mcp"}]}', "tool_not_allowed"),
        (b'{"model":"n1","tools":[{"type":"function"}]}', ""),
        (b'{"model":"n1","tools":[5, "mcp"]}', "tool_not_allowed"),
        (b'{"model":"n1","tools":{"0":{"type":"mcp"}}}', "tool_not_allowed"),
        (b'{"model":"n1","TOOLS":[{"type":"mcp"}]}', "tool_not_allowed"),
        (b'{"model":"n1","tools":[{"type":"function","tools":[{"type":"custom"}]}]}', "tool_not_allowed"),
        (b'{"model":"n1","input":[{"type":"additional_tools","tools":[{"type":"shell"}]}]}', "tool_not_allowed"),
        (b'{"model":"n1","web_search_options":{}}', "tool_not_allowed"),
        (b'{"model":"n1","Model":"n2"}', "model_not_found"),
        (b'{"model":"n1","model":"n2","model":"n1"}', "model_not_found"),
        (b'{"model":"n1","MODEL":["n1"]}', "model_not_found"),
        (b'{"model":"n1","fallbacks":["n2"]}', "model_not_found"),
        # A function may have a parameter of this name.
        (
            b'{"model":"n1","tools":[{"type":"function","parameters":{"properties":{"tools":[{"type":"mcp"}]}}}]}',
            "",
        ),
        (b'{"model":"n1","input":"hi"}', ""),
    ],
)
def test_a_key_that_does_not_allow_a_model_or_a_tool(body: bytes, code: str) -> None:
    exchange = make_exchange(routes=_native())
    access = Access(models=("n1",), tools=("function",))
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner", access=access), body)
    if code:
        assert _error(exchange) == (404 if code == "model_not_found" else 400, code)
    else:
        assert isinstance(exchange.actions()[0], CallUpstream)


def test_an_alias_is_called_by_its_name_there_and_answered_by_its_name_here() -> None:
    rule = ModelRule("fast", ModelRoute(_GENERIC, upstream="other", model="very-fast-1"))
    exchange = _asked(b'{"model":"fast","input":"hi"}', routes=ModelRoutes(ModelRoute(_GENERIC), (rule,)))
    (call,) = exchange.actions()
    assert isinstance(call, CallUpstream) and call.request.upstream == "other"
    assert json.loads(call.request.body)["model"] == "very-fast-1" and exchange.known.model == "fast"
    exchange.receive_upstream_head(200, JSON)
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
    exchange.receive_upstream_data(json.dumps({"model": "very-fast-1-0725", "choices": [choice]}).encode())
    exchange.receive_upstream_end()
    exchange.actions()
    exchange.receive_saved()
    body = b"".join(action.data for action in exchange.actions() if isinstance(action, SendBody))
    assert json.loads(body)["model"] == "fast"


@pytest.mark.parametrize(
    ("listed", "model", "served"),
    [((), "real", True), (("real",), "real", True), (("real",), "other", False), (("real",), "fast", True)],
)
def test_an_upstreams_list_of_models_holds_for_its_names_here_and_there(
    listed: tuple[str, ...], model: str, served: bool
) -> None:
    rules = (ModelRule("fast", ModelRoute(_GENERIC, model="real", models=frozenset(listed))),)
    routes = ModelRoutes(ModelRoute(_GENERIC, models=frozenset(listed)), rules)
    assert routes.choose(model).serves(model) is served
    exchange = _asked(json.dumps({"model": model, "input": "x"}).encode(), routes=routes)
    if not served:
        assert _error(exchange) == (404, "model_not_found")


def test_a_native_model_that_is_not_listed_does_not_exist() -> None:
    exchange = _asked(b'{"model":"n2"}', routes=_native(models=frozenset({"n1"})))
    assert _error(exchange) == (404, "model_not_found")


@pytest.mark.parametrize(
    "body",
    [b'{"model":"n", "input":5, "new":[1,  2]}', b' {"stream":true,"background":true,"model":"n\\u0031","x":1e9999}\n'],
)
def test_a_native_request_goes_on_byte_for_byte(body: bytes) -> None:
    (call,) = _asked(body).actions()
    assert isinstance(call, CallUpstream)
    assert (call.request.path, call.request.body, call.request.upstream) == ("/responses", body, "other")


def test_a_native_request_takes_along_what_is_allowed() -> None:
    given = (
        ("authorization", "Bearer me"),
        ("accept", "application/json"),
        ("openai-beta", "b"),
        ("cookie", "c"),
        ("openai-organization", "o"),
        ("idempotency-key", "i"),
        ("x-team", "t"),
    )
    of_the_account = {"authorization", "openai-organization", "idempotency-key"}
    for passthrough in (True, False):
        routes = _native(passthrough=passthrough, headers=frozenset({"x-team"}))
        (call,) = _asked(b'{"model":"n"}', given, routes=routes).actions()
        assert isinstance(call, CallUpstream)
        headers = call.request.headers
        names = {name for name, _ in headers}
        assert names & of_the_account == (of_the_account if passthrough else set())
        assert names - of_the_account == {"accept", "openai-beta", "x-team", "content-type"}
        assert dict(headers)["accept"] == "application/json"


def test_a_native_stream_passes_as_it_comes() -> None:
    exchange = _asked(b'{"model":"n"}')
    exchange.actions()
    theirs = (*SSE, ("connection", "close, x-hop"), ("x-hop", "1"), ("openai-version", "1"), ("x-envoy-a", "1"))
    exchange.receive_upstream_head(200, theirs)
    (head,) = exchange.actions()
    assert head == SendHead(200, (*SSE, ("openai-version", "1")), streamed=True, raw=True)
    for part in (b"data: \xff", b"\n", b"\n"):
        exchange.receive_upstream_data(part)
        assert exchange.actions() == [SendBody(part)]
    exchange.receive_upstream_end()
    assert exchange.actions() == [Finish("completed", None, "n")]


def test_what_is_no_stream_is_sent_whole() -> None:
    exchange = _asked(b'{"model":"n"}')
    exchange.actions()
    exchange.receive_upstream_head(429, (*JSON, ("content-length", "99"), ("retry-after", "7")))
    exchange.receive_upstream_data(b"{")
    assert exchange.actions() == []
    exchange.receive_upstream_data(b"}")
    exchange.receive_upstream_end()
    headers = (*JSON, ("retry-after", "7"), ("content-length", "2"))
    assert exchange.actions() == [SendHead(429, headers, raw=True), SendBody(b"{}"), Finish("error", None, "n")]


def test_a_native_answer_that_fails_before_it_is_whole_is_an_error_of_ours() -> None:
    exchange = _asked(b'{"model":"n"}')
    exchange.actions()
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.UNREACHABLE, "x"))
    assert _error(exchange) == (502, "upstream_unreachable")
    exchange = _asked(b'{"model":"n"}', limits=limits(upstream_body_bytes=3))
    exchange.actions()
    exchange.receive_upstream_head(200, JSON)
    exchange.receive_upstream_data(b"1234")
    assert _error(exchange) == (502, "upstream_too_large")
    exchange.receive_upstream_end()
    assert exchange.actions() == []


def test_a_native_stream_that_fails_is_cut_and_nothing_is_put_behind_it() -> None:
    exchange = _asked(b'{"model":"n"}')
    exchange.actions()
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(b"data: 1")
    exchange.receive_upstream_end(_CUT)
    assert exchange.actions()[2:] == [Finish("cut", None, "n")]


def test_a_native_stream_is_as_long_as_a_response_may_be() -> None:
    """In drive Envoy takes all it is sent, however slow the client."""
    exchange = _asked(b'{"model":"n"}', limits=limits(upstream_body_bytes=5))
    exchange.actions()
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(b"12345")
    exchange.receive_upstream_data(b"6")
    assert exchange.actions()[1:] == [SendBody(b"12345"), Finish("cut", None, "n")]


def test_a_native_stream_that_is_too_large_for_its_door_is_cut() -> None:
    exchange = _asked(b'{"model":"n"}')
    exchange.actions()
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(b"data: 1")
    exchange.receive_too_much(ApiError("The stream is too large.", code="stream_too_large"))
    assert exchange.actions()[2:] == [Finish("cut", None, "n")]
    assert exchange.known.failure is not None and "too_large: The stream is too large." in exchange.known.failure.cause


@pytest.mark.parametrize(("stream", "status"), [(True, 0), (False, 504)])
def test_a_native_answer_that_takes_too_long_is_ended(stream: bool, status: int) -> None:
    exchange = _asked(b'{"model":"n"}', times=TimeoutSettings(response=100.0))
    exchange.receive_time(1000.0)
    exchange.actions()
    exchange.receive_upstream_head(200, SSE if stream else JSON)
    exchange.actions()
    exchange.receive_time(1100.0)
    if stream:
        assert exchange.actions() == [Finish("cut", None, "n")]
    else:
        assert _error(exchange) == (status, "response_timeout")


def test_a_client_that_leaves_a_native_stream_ends_the_call() -> None:
    exchange = _asked(b'{"model":"n"}')
    exchange.actions()
    exchange.receive_upstream_head(200, SSE)
    exchange.actions()
    exchange.cancel(CancelReason.CLIENT_GONE)
    assert exchange.actions() == [Finish("cancelled", None, "n")]


# One account for all clients

_SHARED = {"passthrough": False}


def _with(field: str) -> bytes:
    return b'{"model":"n1","input":"hi",%b}' % field.encode()


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ('"previous_response_id":"resp_of_alice"', "previous_response_id"),
        ('"previous_response_id":"resp_of_alice","previous_response_id":null', "previous_response_id"),
        ('"previous\\u005fresponse_id":"resp_of_alice"', "previous_response_id"),
        ('"conversation":{"id":"conv_1"}', "conversation"),
        ('"prompt":{"id":"pmpt_1"}', "prompt"),
        ('"tools":[{"type":"file_search","vector_store_ids":["vs_1"]}]', "vector_store_ids"),
        ('"tools":[{"type":"code_interpreter","container":"cntr_1"}]', "container"),
        ('"tools":[{"type":"code_interpreter","container":{"type":"auto","file_ids":["file_1"]}}]', "file_ids"),
        ('"input":[{"type":"item_reference","id":"msg_1"}]', "item_reference"),
        ('"input":[{"role":"user","content":[{"type":"input_file","file_id":"file_1"}]}]', "file_id"),
        ('"input":[{"type":"function_call_output","output":[{"type":"input_image","file_id":"f"}]}]', "file_id"),
    ],
)
def test_a_shared_account_keeps_nothing_that_clients_can_name(field: str, param: str) -> None:
    exchange = _asked(_with(field), routes=_native(**_SHARED))
    actions = exchange.actions()
    assert not any(isinstance(action, CallUpstream) for action in actions)
    error = json.loads(next(action.data for action in actions if isinstance(action, SendBody)))["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "owner.source" in error["message"]
    for allowed in ({"routes": _native(passthrough=True)}, {"routes": _native(**_SHARED), "several_owners": False}):
        (call,) = _asked(_with(field), **allowed).actions()
        assert isinstance(call, CallUpstream) and call.request.body == _with(field)


@pytest.mark.parametrize(
    "field",
    [
        '"previous_response_id":null,"conversation":null,"prompt":null',
        '"tools":[{"type":"function","name":"f","parameters":{"properties":{"file_id":{"enum":["a"]}},"required":["file_id"]}}]',
        '"tools":[{"type":"code_interpreter","container":{"type":"auto"}}]',
        '"metadata":{"file_id":"file_1"},"instructions":"say item_reference"',
    ],
)
def test_what_names_nothing_that_is_kept_goes_on(field: str) -> None:
    (call,) = _asked(_with(field), routes=_native(**_SHARED)).actions()
    assert isinstance(call, CallUpstream) and call.request.body == _with(field)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"n1","input":"\xff","previous_response_id":"resp_of_alice"}',
        b'{"model":"n1","input":"\\ud83d","previous_response_id":"x"}',
        b'{"model":"n1","previous_response_id":',
        b'["n1","previous_response_id"]',
    ],
)
def test_what_cannot_be_searched_for_names_never_goes_on_to_a_shared_account(body: bytes) -> None:
    exchange = _asked(body, routes=_native(**_SHARED))
    (head, sent, _) = exchange.actions()
    assert isinstance(head, SendHead) and head.status == 400
    assert isinstance(sent, SendBody) and json.loads(sent.data)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", [JSON, SSE])
def test_a_shared_accounts_headers_are_nobodys_business(kind: Headers) -> None:
    exchange = _asked(b'{"model":"n1","input":"hi"}', routes=_native(**_SHARED))
    exchange.actions()
    told = (
        ("openai-organization", "acme"),
        ("openai-project", "proj_secret"),
        ("set-cookie", "a=b"),
        ("x-ratelimit-remaining-requests", "12"),
        ("cf-ray", "x"),
        ("openai-processing-ms", "7"),
        ("retry-after", "3"),
    )
    exchange.receive_upstream_head(200, (*kind, *told))
    exchange.receive_upstream_data(b"{}")
    exchange.receive_upstream_end()
    head = next(action for action in exchange.actions() if isinstance(action, SendHead))
    assert {name for name, _ in head.headers} - {"content-length"} == {
        "content-type",
        "openai-processing-ms",
        "retry-after",
    }


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b'{"error":{"message":"hunter2plainkey is wrong"}}', b'{"error":{"message":"[redacted] is wrong"}}'),
        # The key seems to continue in the name of the next field.
        (b'{"message":"wrong: hunter2plain","key":1}', b'{"message":"wrong: [redacted]","key":1}'),
    ],
)
def test_a_key_of_ours_in_a_native_error_goes(said: bytes, shown: bytes) -> None:
    exchange = _asked(b'{"model":"n1","input":"hi"}', routes=_native(**_SHARED), secrets=("hunter2plainkey",))
    exchange.actions()
    exchange.receive_upstream_head(401, JSON)
    exchange.receive_upstream_data(said)
    exchange.receive_upstream_end()
    body = next(action.data for action in exchange.actions() if isinstance(action, SendBody))
    assert body == shown


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "completed"), (399, "completed"), (400, "error"), (500, "error")]
)
def test_a_status_from_400_on_is_an_error_without_the_gateways_key(status: int, outcome: str) -> None:
    actions: list[Action] = []
    answer = NativeAnswer(actions, status, JSON, 100, secrets=("sk-of-the-gateway",))
    assert not answer.receive(b'{"key": "sk-of-')
    assert not answer.receive(b'the-gateway"}')
    assert answer.pass_end() == outcome
    head, body = actions
    assert isinstance(head, SendHead) and isinstance(body, SendBody)
    assert (b"sk-of-the-gateway" in body.data) is (status < 400)
    assert (head.status, head.streamed, head.raw) == (status, False, True)
    assert dict(head.headers)["content-length"] == str(len(body.data))


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_has_no_length(status: int) -> None:
    actions: list[Action] = []
    NativeAnswer(actions, status, (), 100).pass_end()
    head = actions[0]
    assert isinstance(head, SendHead) and "content-length" not in dict(head.headers)


@pytest.mark.parametrize("headers", [SSE, JSON])
def test_an_answer_may_be_as_large_as_the_limit(headers: Headers) -> None:
    answer = NativeAnswer([], 200, headers, 10)
    assert not answer.receive(b"x" * 9) and not answer.receive(b"x") and answer.receive(b"x")


@pytest.mark.parametrize("body", [b"no JSON", b"", b'{"input":"a fil_id"}'])
def test_what_names_nothing_is_not_even_read(body: bytes) -> None:
    refuse_references(body)


@pytest.mark.parametrize("body", [b'{"file_id": no JSON', b'{"\\u0066ile_id": no JSON'])
def test_what_may_name_something_has_to_be_json(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        refuse_references(body)
    assert refused.value.code == "invalid_json"


_USED = b'data: {"type":"response.completed","response":{"usage":{"input_tokens":5,"output_tokens":2}}}\n\n'


class _Ledger(Unobserved):
    """Keeps what calls took."""

    def __init__(self) -> None:
        self.used: list[tuple[int, int]] = []

    def call_used(self, usage: Usage, *, estimated: bool = False) -> None:
        assert not estimated
        self.used.append((usage.input_tokens, usage.output_tokens))


def _observed() -> tuple[ResponseExchange, _Ledger]:
    exchange, ledger = make_exchange(routes=_native()), _Ledger()
    exchange.observe(ledger)
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), b'{"model":"n"}')
    exchange.actions()
    return exchange, ledger


@pytest.mark.parametrize("cut", [False, True])
def test_what_a_native_stream_took_is_told_and_its_bytes_stay(cut: bool) -> None:
    exchange, ledger = _observed()
    exchange.receive_upstream_head(200, SSE)
    exchange.actions()
    flood = b": %b\n\n" % (b"x" * 100_000)
    parts = [flood, flood, flood, _USED[:50], _USED[50:]]
    for part in parts:
        exchange.receive_upstream_data(part)
    passed = b"".join(action.data for action in exchange.actions() if isinstance(action, SendBody))
    assert passed == b"".join(parts)
    exchange.receive_upstream_end(_CUT if cut else None)
    assert ledger.used == [(5, 2)]
    assert exchange.known.usage == Usage(5, 2, 7)


def test_what_a_native_answer_took_is_told() -> None:
    body = b'{"object":"response","usage":{"input_tokens":5,"output_tokens":2,"total_tokens":7}}'
    for status, used in ((200, [(5, 2)]), (500, [])):
        exchange, ledger = _observed()
        exchange.receive_upstream_head(status, JSON)
        exchange.receive_upstream_data(body)
        exchange.receive_upstream_end()
        assert ledger.used == used


def test_a_client_that_leaves_a_native_stream_pays_for_what_was_told() -> None:
    exchange, ledger = _observed()
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(_USED)
    exchange.cancel(CancelReason.CLIENT_GONE)
    assert ledger.used == [(5, 2)]
