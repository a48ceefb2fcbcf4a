"""Files by URL: what the exchange asks for, and when."""

from __future__ import annotations

import json
from typing import Any

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.ports.actions import CallUpstream, Chain, Context, LoadContext, RequestHead, StoredItem
from antiphon.engine.running.runner import Runner
from antiphon.errors import ApiError, InvalidRequest
from antiphon.observability.metrics import Metrics
from antiphon.types.file_kinds import FetchedFile
from tests.support.exchanges import make_exchange
from tests.support.memory_store import MemoryResponseStore
from tests.support.ports import make_ports


def part(url: str) -> dict[str, Any]:
    return {"type": "input_file", "file_url": url}


def message(*urls: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [part(url) for url in urls]}


def stored(item_id: str, *urls: str) -> StoredItem:
    return StoredItem(item_id, "message", json.dumps({"id": item_id, **message(*urls)}).encode())


def begin(**fields: Any) -> Any:
    exchange = make_exchange()
    body = json.dumps({"model": "m", **fields}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "ann"), body)
    return exchange


def text_file(text: bytes = b"content") -> FetchedFile:
    return FetchedFile("a.txt", "text/plain", text)


def test_a_request_without_files_asks_for_nothing() -> None:
    (call,) = begin(input='say "file_url"').actions()
    assert isinstance(call, CallUpstream)


def test_files_are_asked_for_as_often_as_they_are_named_before_the_model_is_called() -> None:
    exchange = begin(input=[message("https://a/x", "https://b/y", "https://a/x")])
    assert exchange.actions() == [LoadContext("ann", None, (), ("https://a/x", "https://b/y", "https://a/x"))]


def test_files_of_history_and_references_are_asked_for_after_they_are_known() -> None:
    exchange = begin(
        input=[{"type": "item_reference", "id": "msg_2"}, message("https://new")], previous_response_id="resp_1"
    )
    assert exchange.actions() == [LoadContext("ann", "resp_1", ("msg_2",))]
    exchange.receive_context(
        Context(Chain((stored("msg_1", "https://old"),)), items={"msg_2": stored("msg_2", "https://referenced")})
    )
    assert exchange.actions() == [
        LoadContext("ann", None, (), ("https://old", "https://referenced", "https://new")),
    ]


def test_a_file_that_nobody_answers_for_is_an_error_and_not_asked_for_again() -> None:
    exchange = begin(input=[message("https://a/x")])
    assert [type(action) for action in exchange.actions()] == [LoadContext]
    exchange.receive_context(Context(files={}))
    head, body, _ = exchange.actions()
    assert head.status == 400
    error = json.loads(body.data)["error"]
    assert (error["param"], error["code"]) == ("input[0].content[0].file_url", "file_download_failed")


def test_no_failure_to_fetch_leaves_a_request_without_an_answer() -> None:
    exchange = begin(input=[message("https://a/x")])
    exchange.actions()
    exchange.receive_context(InvalidRequest("no", code="file_error"))
    head = exchange.actions()[0]
    assert head.status == 400


class _Fetcher:
    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    async def fetch(self, urls: tuple[str, ...]) -> dict[str, FetchedFile | ApiError]:
        self.asked.append(urls)
        return dict.fromkeys(urls, text_file())


async def test_the_runner_fetches_all_files_of_a_request_together() -> None:
    fetcher = _Fetcher()
    runner = Runner(
        make_ports(
            MemoryResponseStore(),
            None,
            timeouts=TimeoutSettings(),
            metrics=Metrics(),
            files=fetcher,
        )
    )
    exchange = begin(input=[message("https://a/x", "https://b/y")])
    await anext(runner.settle(exchange))
    assert fetcher.asked == [("https://a/x", "https://b/y")]


async def test_without_a_fetcher_every_file_is_a_clear_refusal() -> None:
    runner = Runner(make_ports(MemoryResponseStore(), None, timeouts=TimeoutSettings(), metrics=Metrics()))
    exchange = begin(input=[message("https://a/x")])
    head = await anext(runner.settle(exchange))
    body = await anext(runner.settle(exchange))
    assert head.status == 400  # type: ignore[union-attr]
    error = json.loads(body.data)["error"]  # type: ignore[union-attr]
    assert error["type"] == "invalid_request_error"
