"""The lock of a conversation through the runner: renewed while its response runs, and let go of at every end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.actions import CallUpstream, CancelReason, RequestHead
from antiphon.engine.running.loading import LockedConversations
from antiphon.engine.running.runner import Runner
from antiphon.errors import ConversationLocked, StoreError
from antiphon.observability.metrics import Metrics
from antiphon.stores.leases import Leases
from tests.support.chat_server import event
from tests.support.exchanges import JSON, SSE, exchange_options, make_exchange
from tests.support.fixed import fixed_clock
from tests.support.memory_conversations import MemoryConversationStore
from tests.support.memory_store import MemoryResponseStore
from tests.support.ports import make_ports

_END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


class Setup:
    """A runner over stores in memory; nobody's time passes."""

    def __init__(self) -> None:
        self.conversations = MemoryConversationStore(clock=lambda: 0.0)
        self.responses = MemoryResponseStore(conversations=self.conversations)
        self.leases = Leases(30.0, self._never)
        self.runner = Runner(
            make_ports(
                self.responses,
                None,
                timeouts=TimeoutSettings(),
                metrics=Metrics(),
                conversations=LockedConversations(self.conversations, self.leases),
            )
        )

    async def _never(self, _seconds: float) -> None:
        await asyncio.Event().wait()

    @property
    def held(self) -> int:
        """The number of locks that are renewed."""
        return self.leases.held_in(self.conversations)

    def holds(self, exchange: ResponseExchange) -> bool:
        """Whether the only lock that is renewed is the lock of this exchange."""
        return self.held == 1 and self.leases.holds(self.conversations, exchange.known.response_id)

    async def begin(self) -> ResponseExchange:
        """A response whose stream has begun."""
        exchange = make_exchange()
        body = json.dumps({"model": "m", "input": "hi", "stream": True, "conversation": "conv_1"}).encode()
        exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
        assert isinstance([action async for action in self.runner.settle(exchange)][-1], CallUpstream)
        exchange.receive_upstream_head(200, SSE)
        exchange.receive_upstream_data(event("Hel"))
        await self.settle(exchange)
        return exchange

    async def settle(self, exchange: ResponseExchange) -> None:
        async for _ in self.runner.settle(exchange):
            pass

    async def is_free(self) -> bool:
        try:
            await self.conversations.load("owner", "conv_1", holder="resp_other", seconds=1.0)
        except ConversationLocked:
            return False
        await self.conversations.release("resp_other")
        return True


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    setup = Setup()
    await setup.conversations.create("owner", "conv_1", b"{}")
    yield setup
    await setup.runner.aclose()


async def test_it_is_renewed_while_the_response_runs_and_no_longer(setup: Setup) -> None:
    exchange = await setup.begin()
    assert setup.holds(exchange) and not await setup.is_free()
    exchange.receive_upstream_data(_END)
    await setup.settle(exchange)
    assert exchange.done and setup.held == 0 and await setup.is_free()


async def test_a_save_that_fails_gives_it_back(setup: Setup) -> None:
    async def fail(_record: Any) -> None:
        raise StoreError("disk full")

    setup.responses.save = fail  # type: ignore[method-assign,assignment]
    exchange = await setup.begin()
    exchange.receive_upstream_data(_END)
    await setup.settle(exchange)
    assert exchange.done and setup.held == 0 and await setup.is_free()


async def test_a_client_that_leaves_during_the_save(setup: Setup) -> None:
    begun, go, save = asyncio.Event(), asyncio.Event(), setup.responses.save

    async def slow(record: Any) -> None:
        begun.set()
        await go.wait()
        await save(record)

    setup.responses.save = slow  # type: ignore[method-assign]
    exchange = await setup.begin()
    exchange.receive_upstream_data(_END)
    request = asyncio.ensure_future(setup.settle(exchange))
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    await setup.runner.abandon(exchange, CancelReason.CLIENT_GONE)
    assert setup.holds(exchange), "the save is not over"
    go.set()
    await setup.runner.aclose()
    assert setup.held == 0 and await setup.is_free()
    assert len(setup.responses.records) == 1


async def test_a_client_that_leaves_while_it_is_given_back(setup: Setup) -> None:
    begun, go, release = asyncio.Event(), asyncio.Event(), setup.conversations.release

    async def slow(holder: str) -> None:
        begun.set()
        await go.wait()
        await release(holder)

    exchange = make_exchange()
    body = json.dumps({"model": "m", "input": "hi", "conversation": "conv_1"}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    await setup.settle(exchange)
    exchange.receive_upstream_head(500, JSON)
    exchange.receive_upstream_end()
    setup.conversations.release = slow  # type: ignore[method-assign]
    request = asyncio.ensure_future(setup.settle(exchange))
    await begun.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    go.set()
    await setup.runner.aclose()
    setup.conversations.release = release  # type: ignore[method-assign]
    assert setup.held == 0 and await setup.is_free()


async def test_a_door_that_fails_before_it_is_given_back(setup: Setup) -> None:
    """What is left of the exchange's actions is not for the client alone."""
    exchange = make_exchange()
    body = json.dumps({"model": "m", "input": "hi", "conversation": "conv_1"}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    await setup.settle(exchange)
    exchange.receive_upstream_head(500, JSON)
    exchange.receive_upstream_end()
    assert not exchange.done
    await setup.runner.abandon(exchange, CancelReason.CLIENT_GONE)
    assert exchange.done and setup.held == 0 and await setup.is_free()


async def test_a_lock_that_cannot_be_given_back_runs_out(setup: Setup) -> None:
    async def fail(_holder: str) -> None:
        raise StoreError("not now")

    setup.conversations.release = fail  # type: ignore[method-assign,assignment]
    exchange = make_exchange()
    body = json.dumps({"model": "m", "input": "hi", "conversation": "conv_1"}).encode()
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    await setup.settle(exchange)
    exchange.receive_upstream_head(500, JSON)
    exchange.receive_upstream_end()
    await setup.settle(exchange)
    assert exchange.done and setup.held == 0, "nobody renews it"


async def test_who_is_refused_holds_nothing(setup: Setup) -> None:
    first = await setup.begin()
    options = exchange_options()
    second = ResponseExchange(options, lambda prefix: f"{prefix}_second", fixed_clock)
    body = json.dumps({"model": "m", "input": "hi", "conversation": "conv_1", "store": True}).encode()
    second.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    await setup.settle(second)
    assert second.done and setup.holds(first) and not await setup.is_free()
