"""The runner, where the request ends while there is still something to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from antiphon.engine.actions import CallUpstream, CancelReason, RequestHead, SendBody, UpstreamRequest
from antiphon.engine.exchange import ResponseExchange
from antiphon.engine.ports import UpstreamAnswer
from antiphon.engine.runner import Runner, RunnerTimeouts
from antiphon.observability.metrics import Metrics
from antiphon.types.transport import UpstreamError, UpstreamFault
from tests.support.chat_server import event
from tests.support.exchanges import SSE, make_exchange
from tests.support.memory_store import MemoryResponseStore


class _NoUpstream:
    """For tests that feed the exchange themselves."""

    def call(self, request: UpstreamRequest) -> UpstreamAnswer:  # type: ignore[override]
        raise AssertionError(request)

    async def aclose(self) -> None:
        pass


@pytest.fixture
def store() -> MemoryResponseStore:
    return MemoryResponseStore()


@pytest.fixture
async def runner(store: MemoryResponseStore) -> AsyncIterator[Runner]:
    made = Runner(store, _NoUpstream(), timeouts=RunnerTimeouts(), metrics=Metrics())  # type: ignore[arg-type]
    yield made
    await made.aclose()


async def _begun(runner: Runner) -> ResponseExchange:
    """An exchange in the middle of its stream."""
    exchange = make_exchange()
    body = json.dumps({"model": "m", "input": "hi", "stream": True}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    assert isinstance([action async for action in runner.settle(exchange)][-1], CallUpstream)
    exchange.receive_upstream_head(200, SSE)
    exchange.receive_upstream_data(event("Hel"))
    assert [action async for action in runner.settle(exchange)]
    return exchange


@pytest.mark.parametrize("closed", [True, False], ids=["generator closed", "generator left"])
async def test_a_client_that_leaves_before_the_save_does_not_prevent_it(
    runner: Runner, store: MemoryResponseStore, closed: bool
) -> None:
    """The upstream breaks off; while its last events are sent, the client turns out to be gone as well."""
    exchange = await _begun(runner)
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.CUT, "gone"))
    left = runner.settle(exchange)
    assert isinstance(await anext(left), SendBody)
    if closed:
        await left.aclose()
    await runner.abandon(exchange, CancelReason.CLIENT_GONE)
    (record,) = store.records.values()
    assert (record.id, record.status) == (exchange.response_id, "failed")
    await left.aclose()


async def test_a_save_outlives_the_request_that_began_it(runner: Runner, store: MemoryResponseStore) -> None:
    exchange = await _begun(runner)
    begun, go = asyncio.Event(), asyncio.Event()
    save = store.save

    async def slow(record: object) -> None:
        begun.set()
        await go.wait()
        await save(record)  # type: ignore[arg-type]

    store.save = slow  # type: ignore[method-assign]
    exchange.receive_upstream_end(UpstreamError(UpstreamFault.CUT, "gone"))

    async def settle() -> None:
        async for _ in runner.settle(exchange):
            pass

    request = asyncio.ensure_future(settle())
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await runner.abandon(exchange, CancelReason.CLIENT_GONE)
    go.set()
    await runner.aclose()
    assert [record.status for record in store.records.values()] == ["failed"]
