"""The API without a server: stored responses, models, health, and every way to ask wrongly."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.api.models import ModelCatalog, ModelSource, read_models
from antiphon.api.router import ReadyProbe, Router
from antiphon.engine.exchange.model_routes import DEFAULT_UPSTREAM, ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.ports.actions import ResponseRecord, StoredItem
from antiphon.engine.ports.state import StoredResponse
from antiphon.errors import StoreError, Unavailable, UpstreamFailed
from antiphon.observability.metrics import Metrics
from antiphon.stores.responses import ResponseStore
from antiphon.translation.profiles import PROFILES
from antiphon.upstream.client import HttpUpstream, UpstreamTarget
from antiphon.upstream.routing import UpstreamPool
from tests.support.chat_server import CHAT_MODELS, ChatServer, Close, WaitGone, answer, json_answer
from tests.support.memory_store import MemoryResponseStore
from tests.support.state import open_state

OWNER = "b:me"


def item(number: int, kind: str = "message") -> StoredItem:
    body = {"id": f"msg_{number}", "type": kind, "role": "user", "content": [{"type": "input_text", "text": "é"}]}
    return StoredItem(f"msg_{number}", kind, json.dumps(body).encode())


def record(response_id: str = "resp_1", owner: str = OWNER, inputs: int = 3) -> ResponseRecord:
    body = {"id": response_id, "object": "response", "status": "completed", "model": "m"}
    return ResponseRecord(
        id=response_id,
        owner=owner,
        previous_response_id=None,
        status="completed",
        model="m",
        created_at=1.0,
        completed_at=2.0,
        body=json.dumps(body).encode(),
        input_items=tuple(item(number) for number in range(inputs)),
        output_items=(item(100), item(101)),
    )


class Setup:
    """A router with everything real behind it."""

    def __init__(self, store: ResponseStore, server: ChatServer, *, ready_seconds: float = 2.0, **catalog: Any) -> None:
        self.store = store
        self.server = server
        self.metrics = Metrics()
        self.unready: Exception | None = None
        self.now = 0.0
        self.upstream = HttpUpstream(UpstreamTarget(server.base_url), head_seconds=5)
        self.models = ModelCatalog(
            self.upstream, clock=lambda: self.now, sources={DEFAULT_UPSTREAM: ModelSource(**catalog)}
        )
        ready = ReadyProbe(self._ready, seconds=ready_seconds)
        self.router = Router(store=store, models=self.models, ready=ready, metrics=self.metrics)

    async def _ready(self) -> None:
        if self.unready is not None:
            raise self.unready
        await self.store.ping()

    async def ask(
        self,
        path: str,
        method: str = "GET",
        *,
        owner: str = OWNER,
        headers: tuple[tuple[str, str], ...] = (),
        query: dict[str, str] | None = None,
    ) -> ApiResponse:
        pairs = tuple((query or {}).items())
        return await self.router.handle(ApiRequest(method, path, pairs, headers, b"", owner, "req_1"))


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ResponseStore]:
    if request.param == "memory":
        yield MemoryResponseStore()
        return
    stores = await open_state(tmp_path, chain_items=1000)
    yield stores.responses
    await stores.aclose()


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer() as server:
        yield server


@pytest.fixture
async def setup(store: ResponseStore, server: ChatServer) -> AsyncIterator[Setup]:
    setup = Setup(store, server)
    yield setup
    await setup.upstream.aclose()


@pytest.fixture
async def quick(server: ChatServer) -> AsyncIterator[Setup]:
    """For what does not depend on the store."""
    setup = Setup(MemoryResponseStore(), server)
    yield setup
    await setup.upstream.aclose()


def error_of(response: ApiResponse) -> dict[str, Any]:
    body = json.loads(response.body)
    assert list(body) == ["error"] and set(body["error"]) - {"request_id"} == {"message", "type", "param", "code"}
    assert ("content-type", "application/json") in response.headers
    assert ("content-length", str(len(response.body))) in response.headers
    found: dict[str, Any] = body["error"]
    return found


# Stored responses


async def test_get(setup: Setup) -> None:
    await setup.store.save(record())
    variants: list[dict[str, str]] = [
        {},
        {"include[]": "message.output_text.logprobs"},
        {"include": "x"},
        {"stream": "false"},
    ]
    for include in variants:
        got = await setup.ask("/v1/responses/resp_1", query=include)
        assert got.status == 200
        body = json.loads(got.body)
        assert body["id"] == "resp_1" and [one["id"] for one in body["output"]] == ["msg_100", "msg_101"]
        assert ("content-length", str(len(got.body))) in got.headers


async def test_get_without_output(setup: Setup) -> None:
    await setup.store.save(dataclasses.replace(record(), output_items=()))
    assert json.loads((await setup.ask("/v1/responses/resp_1")).body)["output"] == []


@pytest.mark.parametrize("query", [{"stream": "true"}, {"starting_after": "3"}, {"stream": "yes"}])
async def test_get_as_stream_is_refused(quick: Setup, query: dict[str, str]) -> None:
    await quick.store.save(record())
    got = await quick.ask("/v1/responses/resp_1", query=query)
    assert got.status == 400 and error_of(got)["param"] == next(iter(query))


async def test_delete(setup: Setup) -> None:
    await setup.store.save(record())
    got = await setup.ask("/v1/responses/resp_1", "DELETE")
    assert (got.status, json.loads(got.body)) == (200, {"id": "resp_1", "object": "response", "deleted": True})
    for method in ("GET", "DELETE"):
        assert (await setup.ask("/v1/responses/resp_1", method)).status == 404
    assert (await setup.ask("/v1/responses/resp_1/input_items")).status == 404


@pytest.mark.parametrize(
    ("path", "method"),
    [("", "GET"), ("", "DELETE"), ("/input_items", "GET")],
    ids=["get", "delete", "input_items"],
)
async def test_missing_foreign_and_impossible_ids_look_the_same(setup: Setup, path: str, method: str) -> None:
    await setup.store.save(record("resp_foreign", owner="b:other"))
    seen = set()
    for response_id in ("resp_foreign", "resp_missing", "nonsense", "resp_" + "x" * 300, "resp_%27;--", "conv_1"):
        got = await setup.ask(f"/v1/responses/{response_id}{path}", method)
        error = error_of(got)
        shown = response_id.replace("%27", "'")[:128]
        assert error["message"] == f"Response with id '{shown}' not found."
        seen.add((got.status, error["type"], error["param"], error["code"]))
    assert seen == {(404, "invalid_request_error", None, None)}
    assert (await setup.ask("/v1/responses/resp_foreign", owner="b:other")).status == 200


async def test_input_items(setup: Setup) -> None:
    await setup.store.save(record(inputs=25))
    path = "/v1/responses/resp_1/input_items"

    async def page(**query: str) -> dict[str, Any]:
        got = await setup.ask(path, query=query)
        assert got.status == 200, got.body
        body: dict[str, Any] = json.loads(got.body)
        assert list(body) == ["object", "data", "first_id", "last_id", "has_more"] and body["object"] == "list"
        return body

    def numbers(body: dict[str, Any]) -> list[int]:
        return [int(one["id"].removeprefix("msg_")) for one in body["data"]]

    first = await page()
    assert numbers(first) == list(range(24, 4, -1))
    assert (first["first_id"], first["last_id"], first["has_more"]) == ("msg_24", "msg_5", True)
    second = await page(after="msg_5")
    assert numbers(second) == [4, 3, 2, 1, 0] and not second["has_more"]
    assert numbers(await page(order="asc", limit="2")) == [0, 1]
    assert numbers(await page(order="asc", limit="2", after="msg_1")) == [2, 3]
    assert numbers(await page(order="asc", before="msg_2")) == [0, 1]
    assert len(numbers(await page(limit="100"))) == 25
    empty = await page(order="asc", after="msg_24")
    assert (empty["data"], empty["first_id"], empty["last_id"], empty["has_more"]) == ([], None, None, False)


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ({"limit": "0"}, "limit", "integer_below_min_value"),
        ({"limit": "-5"}, "limit", "integer_below_min_value"),
        ({"limit": "101"}, "limit", "integer_above_max_value"),
        ({"limit": "ten"}, "limit", "invalid_type"),
        ({"limit": "1_0"}, "limit", "invalid_type"),
        ({"limit": "٣"}, "limit", "invalid_type"),
        ({"limit": "9" * 5000}, "limit", "invalid_type"),
        ({"limit": "1.5"}, "limit", "invalid_type"),
        ({"order": "up"}, "order", "invalid_value"),
        ({"order": "DESC"}, "order", "invalid_value"),
        ({"after": "msg_nowhere"}, "after", None),
        ({"before": "msg_nowhere"}, "before", None),
    ],
)
async def test_wrong_paging(setup: Setup, query: dict[str, str], param: str, code: str | None) -> None:
    await setup.store.save(record())
    got = await setup.ask("/v1/responses/resp_1/input_items", query=query)
    error = error_of(got)
    assert (got.status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    if code is not None:
        assert error["code"] == code


class BrokenStore(MemoryResponseStore):
    error: Exception = StoreError("disk: /secret/path is full")

    async def get(self, owner: str, response_id: str) -> StoredResponse | None:
        raise self.error

    async def ping(self) -> None:
        raise self.error


@pytest.mark.parametrize("error", [StoreError("secret"), RuntimeError("secret")], ids=["store", "bug"])
async def test_a_failing_store_is_a_500_without_details(server: ChatServer, error: Exception) -> None:
    store = BrokenStore()
    store.error = error
    setup = Setup(store, server)
    got = await setup.ask("/v1/responses/resp_1")
    assert got.status == 500 and error_of(got)["type"] == "server_error"
    assert b"secret" not in got.body
    if isinstance(error, StoreError):
        rendered = setup.metrics.render().decode()
        assert 'storage_operations_total{operation="get",result="error"} 1.0' in rendered


# Models


async def test_models(quick: Setup) -> None:
    got = await quick.ask("/v1/models")
    body = json.loads(got.body)
    assert got.status == 200 and body["object"] == "list"
    assert body["data"] == [{"id": name, "object": "model", "created": 1, "owned_by": "test"} for name in CHAT_MODELS]


@pytest.mark.parametrize("spelling", ["demo-model", "other/model:7b", "other/model%3A7b"])
async def test_one_model(quick: Setup, spelling: str) -> None:
    got = await quick.ask(f"/v1/models/{spelling}")
    assert got.status == 200 and json.loads(got.body)["object"] == "model"


async def test_unknown_model(quick: Setup) -> None:
    got = await quick.ask("/v1/models/nope")
    error = error_of(got)
    assert (got.status, error["code"], error["param"]) == (404, "model_not_found", "model")


async def test_models_are_remembered_for_a_moment(quick: Setup) -> None:
    for _ in range(3):
        await quick.ask("/v1/models")
        await quick.ask("/v1/models/demo-model")
    assert len(quick.server.requests) == 1
    quick.now += 11
    await quick.ask("/v1/models")
    assert len(quick.server.requests) == 2


async def test_credentials_are_passed_through_only_when_told(server: ChatServer) -> None:
    asked = (("authorization", "Bearer one"), ("x-request-id", "r"), ("x-other", "1"))
    for passthrough in (False, True):
        setup = Setup(MemoryResponseStore(), server, passthrough=passthrough)
        await setup.ask("/v1/models", headers=asked)
        call = await server.received()
        assert call.header("authorization") == ("Bearer one" if passthrough else None)
        assert call.header("x-other") is None and call.header("x-request-id") == "r"
        await setup.upstream.aclose()


async def test_one_credential_never_sees_anothers_list(server: ChatServer) -> None:
    server.default = lambda call: json_answer({"data": [{"id": f"for {call.header('authorization')}"}]})
    setup = Setup(MemoryResponseStore(), server, passthrough=True)
    for name in ("Bearer a", "Bearer b", "Bearer a"):
        got = await setup.ask("/v1/models", headers=(("authorization", name), ("x-request-id", name)))
        assert json.loads(got.body)["data"][0]["id"] == f"for {name}"
    assert len(server.requests) == 2
    await setup.upstream.aclose()


async def test_every_upstream_gets_its_own_headers_alone(server: ChatServer) -> None:
    """What one upstream may see of the client, credentials above all, does not reach the others."""
    sources = {
        "default": ModelSource(passthrough=True, headers=frozenset({"x-team"})),
        "other": ModelSource(headers=frozenset({"x-tag"})),
    }
    pool = UpstreamPool(
        {name: HttpUpstream(UpstreamTarget(server.base_url, headers=(("x-who", name),))) for name in sources}
    )
    catalog = ModelCatalog(pool, sources=sources)
    headers = (("authorization", "Bearer me"), ("x-team", "t"), ("x-tag", "g"))
    await catalog.list(ApiRequest("GET", "/v1/models", (), headers))
    seen = {call.header("x-who"): call for call in server.requests}
    names = ("authorization", "x-team", "x-tag")
    assert [seen["default"].header(name) for name in names] == ["Bearer me", "t", None]
    assert [seen["other"].header(name) for name in names] == [None, None, "g"]
    await pool.aclose()


async def test_an_upstream_that_hangs_does_not_hide_the_others(server: ChatServer) -> None:
    async with ChatServer() as silent:
        silent.default = lambda _: answer(parts=[WaitGone()])
        pool = UpstreamPool(
            {
                "default": HttpUpstream(UpstreamTarget(silent.base_url)),
                "other": HttpUpstream(UpstreamTarget(server.base_url)),
            }
        )
        catalog = ModelCatalog(pool, sources={"default": ModelSource(), "other": ModelSource()}, patience=0.05)
        got = await catalog.list(ApiRequest("GET", "/v1/models"))
        assert [model["id"] for model in json.loads(got.body)["data"]] == list(CHAT_MODELS)
        await pool.aclose()


async def test_names_of_rules_are_shown_where_a_request_would_be_served(server: ChatServer) -> None:
    here, nowhere = ModelRoute(PROFILES["generic"]), ModelRoute(PROFILES["generic"], mode="disabled")
    elsewhere = ModelRoute(PROFILES["generic"], upstream="other", models=frozenset({"real"}), model="real")
    unlisted = ModelRoute(PROFILES["generic"], upstream="other", models=frozenset({"real"}))
    rules = (
        ModelRule("x-*", nowhere),
        ModelRule("x-1", here),
        ModelRule("alias", elsewhere),
        ModelRule("unlisted", unlisted),
    )
    pool = UpstreamPool({name: HttpUpstream(UpstreamTarget(server.base_url)) for name in ("default", "other")})
    sources = {"default": ModelSource(), "other": ModelSource(allowed=("real",))}
    catalog = ModelCatalog(pool, sources=sources, routes=ModelRoutes(here, rules))
    got = json.loads((await catalog.list(ApiRequest("GET", "/v1/models"))).body)["data"]
    assert {model["id"] for model in got} == {*CHAT_MODELS, "alias"}
    await pool.aclose()


async def test_allow_list(server: ChatServer) -> None:
    setup = Setup(MemoryResponseStore(), server, allowed=("alias", "demo-model"))
    got = json.loads((await setup.ask("/v1/models")).body)["data"]
    assert [(one["id"], one["owned_by"]) for one in got] == [("alias", "upstream"), ("demo-model", "test")]
    assert (await setup.ask("/v1/models/other/model:7b")).status == 404
    server.script(json_answer({}, 404))
    setup.now += 60
    assert (await setup.ask("/v1/models/alias")).status == 200
    await setup.upstream.aclose()


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"object":"list","data":[{"id":"a"},{"id":"a"},{"id":"b"}]}', ["a", "b"]),
        (b'[{"id":"a","type":"chat"}]', ["a"]),
        (b'{"models":[{"name":"llama3:latest","model":"llama3:latest"}]}', ["llama3:latest"]),
        (b'{"object":"list","data":["a","b"]}', ["a", "b"]),
        (b'{"object":"list","data":null}', []),
        (b'{"data":[{"id":"a","created":null,"owned_by":null},{"id":7},7,null,{"id":""},{}]}', ["a"]),
        (b'{"models":[{"slug":"x"}],"data":[{"id":"a","created":1.5e9}]}', ["a"]),
        ('{"data":[{"id":"modèle"}]}'.encode("latin-1"), ["mod\ufffdle"]),
    ],
)
def test_odd_lists(body: bytes, names: list[str]) -> None:
    assert [model.id for model in read_models(body)] == names


@pytest.mark.parametrize("body", [b"", b"<html>", b"null", b'{"error":"no"}', b'{"data":{"id":"a"}}', b"[" * 100_000])
def test_no_list_at_all(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        read_models(body)


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (
            json_answer({"error": {"message": "bad key", "code": "invalid_api_key"}}, 401),
            502,
            "upstream_credentials_refused",
        ),
        (json_answer({}, 500), 500, "upstream_error"),
        (json_answer({}, 404), 502, "models_not_listed"),
        (answer(parts=[b"<html>"], headers=[("content-type", "text/html")]), 502, "models_unreadable"),
        (answer(parts=[b'{"da', Close()]), 502, "upstream_cut"),
    ],
)
async def test_an_upstream_that_cannot_list(quick: Setup, script: Any, status: int, code: str) -> None:
    quick.server.script(script)
    got = await quick.ask("/v1/models")
    assert (got.status, error_of(got)["code"]) == (status, code)
    assert (await quick.ask("/v1/models")).status == 200, "a failure must not be remembered"


async def test_an_upstream_that_hangs_up(quick: Setup) -> None:
    # aiohttp asks once more by itself, since GET is idempotent.
    quick.server.default = lambda _: answer(parts=[Close()], framing="none")
    got = await quick.ask("/v1/models")
    assert (got.status, error_of(got)["code"]) == (502, "upstream_cut")


async def test_upstream_down(quick: Setup) -> None:
    await quick.server.stop()
    for path in ("/v1/models", "/v1/models/demo-model"):
        got = await quick.ask(path)
        assert (got.status, error_of(got)["code"]) == (502, "upstream_unreachable")


# Health, metrics, paths


async def test_health_and_ready(quick: Setup) -> None:
    assert (await quick.ask("/health", owner="")).status == 200
    assert (await quick.ask("/ready", owner="")).status == 200
    for error in (Unavailable("no", code="shutting_down"), StoreError("secret path")):
        quick.unready = error
        got = await quick.ask("/ready")
        assert got.status == 503 and b"secret" not in got.body
        assert json.loads(got.body)["status"] == "unavailable"
        assert (await quick.ask("/health")).status == 200


class _Silent(MemoryResponseStore):
    """One that does not answer."""

    async def ping(self) -> None:
        await asyncio.Event().wait()


async def test_ready_does_not_wait_for_ever(server: ChatServer) -> None:
    setup = Setup(_Silent(), server, ready_seconds=0.02)
    assert (await setup.ask("/ready")).status == 503
    await setup.upstream.aclose()


async def test_metrics(quick: Setup) -> None:
    quick.metrics.response_finished("completed", "http", 0.5)
    got = await quick.ask("/metrics")
    assert got.status == 200 and b'responses_total{door="http",fault="none",outcome="completed"} 1.0' in got.body
    assert dict(got.headers)["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/responses/", 404),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/V1/responses/resp_1", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1/responses/a/b", 404),
        ("GET", "/v1/responses/a/input_items/x", 404),
        ("GET", "/health/x", 404),
        ("PUT", "/v1/responses", 405),
        ("POST", "/v1/responses/resp_1", 405),
        ("DELETE", "/v1/models/demo-model", 405),
        ("POST", "/v1/models", 405),
        ("DELETE", "/health", 405),
        ("BREW", "/v1/models", 405),
    ],
)
async def test_wrong_paths_and_methods(quick: Setup, method: str, path: str, status: int) -> None:
    got = await quick.ask(path, method)
    assert got.status == status
    error = error_of(got)
    assert error["type"] == "invalid_request_error"
    assert error["code"] == ("unknown_url" if status == 404 else "method_not_allowed")
    assert (status == 405) == any(name == "allow" for name, _ in got.headers)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/respones", "; did you mean /v1/responses?"),
        ("/v1/model", "; did you mean /v1/models?"),
        ("/metric", ". Please check the URL for typos."),
        ("/x", ". Please check the URL for typos."),
    ],
)
async def test_a_misspelt_path_is_told_with_the_one_that_may_be_meant(quick: Setup, path: str, meant: str) -> None:
    assert error_of(await quick.ask(path))["message"] == f"Unknown request URL: GET {path}{meant}"


async def test_head_and_options(quick: Setup) -> None:
    whole = await quick.ask("/v1/models")
    head = await quick.ask("/v1/models", "HEAD")
    assert (head.status, head.headers, head.body) == (200, whole.headers, b"")
    missing = await quick.ask("/v1/responses/resp_1", "HEAD")
    assert (missing.status, missing.body) == (404, b"")
    options = await quick.ask("/v1/responses/resp_1", "OPTIONS")
    assert options.status == 204 and dict(options.headers)["allow"] == "GET, DELETE, HEAD, OPTIONS"
    assert dict((await quick.ask("/v1/responses", "OPTIONS")).headers)["allow"] == "GET, POST, HEAD, OPTIONS"


def test_which_requests_are_exchanges() -> None:
    assert Router.is_exchange("POST", "/v1/responses")
    for method, path in (("GET", "/v1/responses"), ("POST", "/v1/responses/"), ("POST", "/v1/responses/x")):
        assert not Router.is_exchange(method, path)


async def test_a_silent_upstream_does_not_outlive_a_cancelled_request(quick: Setup) -> None:
    quick.server.script(answer(parts=[WaitGone()]))
    task = asyncio.create_task(quick.ask("/v1/models"))
    call = await quick.server.received()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(60):
        await call.gone.wait()
