"""Requests that go on without their clients: what is handed out, who is waited for, what ends them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import pytest

from antiphon.engine.ports.actions import ClientAction, Finish, SendBody
from antiphon.engine.running.unattended import Unattended
from tests.support.waiting import until

_EXCHANGE = cast(Any, type("Exchange", (), {"response_id": "resp_1"})())


class _Work:
    """Actions of a request; it waits for `go` before the last ones, and notes when it was broken off."""

    def __init__(self, ahead: int = 1, error: Exception | None = None) -> None:
        self.ahead = ahead
        self.error = error
        self.go = asyncio.Event()
        self.given = 0
        self.broken_off = False

    async def actions(self) -> AsyncGenerator[ClientAction, None]:
        try:
            for number in range(self.ahead):
                yield SendBody(b"%d" % number)
                self.given += 1
            await self.go.wait()
            if self.error is not None:
                raise self.error
            yield Finish("completed")
        except asyncio.CancelledError:
            self.broken_off = True
            raise


async def test_who_stays_gets_everything_and_what_goes_wrong() -> None:
    unattended = Unattended()
    work = _Work(40)
    work.go.set()
    got = [action async for action in unattended.hand_out(_EXCHANGE, work.actions())]
    assert got == [*(SendBody(b"%d" % number) for number in range(40)), Finish("completed")]
    assert await unattended.end(_EXCHANGE, lambda: False) is None, "nothing is left of it"
    work = _Work(error=ValueError("a bug"))
    work.go.set()
    with pytest.raises(ValueError, match="a bug"):
        _ = [action async for action in unattended.hand_out(_EXCHANGE, work.actions())]


async def test_a_slow_client_holds_it_back_and_one_that_left_does_not() -> None:
    unattended, work = Unattended(), _Work(100)
    async with aclosing(unattended.hand_out(_EXCHANGE, work.actions())) as actions:
        await anext(actions)
        await until(lambda: work.given > 5)
        for _ in range(50):
            await asyncio.sleep(0)
        assert work.given < 30
    await until(lambda: work.given == 100)
    waiting = asyncio.create_task(unattended.end(_EXCHANGE, lambda: False))
    for _ in range(3):
        # Its client leaves in more ways than one.
        await asyncio.sleep(0)
        waiting.cancel()
    work.go.set()
    assert await waiting == Finish("completed") and not work.broken_off


@pytest.mark.parametrize("how", ["told to stop", "cancelled while the process stops"])
async def test_a_process_that_stops_breaks_it_off(how: str) -> None:
    unattended, work = Unattended(), _Work()
    async with aclosing(unattended.hand_out(_EXCHANGE, work.actions())) as actions:
        await anext(actions)
    if how == "told to stop":
        await unattended.stop(_EXCHANGE)
    else:
        waiting = asyncio.create_task(unattended.end(_EXCHANGE, lambda: True))
        await asyncio.sleep(0)
        waiting.cancel()
        assert await waiting is None
    assert work.broken_off
    await unattended.stop(_EXCHANGE)


async def test_two_cancellations_do_not_end_the_wait_before_the_request() -> None:
    """The client leaves while the process stops. The door waits until the request has cleaned up."""
    unattended, cleaning, cleaned = Unattended(), asyncio.Event(), asyncio.Event()

    async def actions() -> AsyncGenerator[ClientAction, None]:
        try:
            yield SendBody(b"a")
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await cleaned.wait()

    client = unattended.hand_out(_EXCHANGE, actions())
    assert await anext(client) == SendBody(b"a")
    await client.aclose()
    waiting = asyncio.create_task(unattended.end(_EXCHANGE, lambda: True))
    await asyncio.sleep(0)
    waiting.cancel()
    await cleaning.wait()
    waiting.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    cleaned.set()
    assert await waiting is None


async def test_a_failure_that_no_client_hears_of_ends_it() -> None:
    unattended, work = Unattended(), _Work(error=ValueError("a bug"))
    async with aclosing(unattended.hand_out(_EXCHANGE, work.actions())) as actions:
        await anext(actions)
    work.go.set()
    assert await unattended.end(_EXCHANGE, lambda: False) is None
