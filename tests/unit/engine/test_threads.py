"""Large requests do not hold up the event loop, and nobody touches what a thread works on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.ports.actions import RequestHead
from antiphon.engine.running.runner import Runner
from antiphon.engine.waiting import DECODING, LARGE, RECORDS, SANDBOX, SEARCH, Pool, apart
from antiphon.errors import Unavailable
from antiphon.observability.metrics import Metrics
from tests.support.ports import make_ports

HEAD = RequestHead("POST", "/v1/responses", (), "owner", "req_1")


class _Reading:
    """Stands for an exchange; notes where it was read."""

    awaits_prompt = makes_response = False
    reservation = None

    def __init__(self) -> None:
        self.thread = 0

    def receive_request(self, head: RequestHead, body: bytes) -> None:
        self.thread = threading.get_ident()


@pytest.mark.parametrize(("size", "same"), [(10, True), (LARGE - 1, True), (LARGE, False), (LARGE * 4, False)])
async def test_only_a_large_request_is_read_in_a_thread(size: int, same: bool) -> None:
    runner = Runner(make_ports(cast(Any, None), None, timeouts=TimeoutSettings(), metrics=Metrics()))
    exchange = _Reading()
    await runner.receive(cast(Any, exchange), HEAD, b" " * size)
    assert (exchange.thread == threading.get_ident()) is same


async def test_who_is_cancelled_waits_for_the_thread() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[bool] = []

    def work() -> None:
        begun.set()
        go_on.wait(10)
        done.append(True)

    waiting = asyncio.ensure_future(apart(work))
    await asyncio.to_thread(begun.wait, 10)
    waiting.cancel()
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert done


async def test_what_fails_in_the_thread_fails_for_who_waits() -> None:
    def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await apart(work)


# Pools


@contextmanager
def _held(pool: Pool, threads: int) -> Iterator[threading.Event]:
    """So many threads of the pool are taken until the event is set."""
    go_on = threading.Event()
    taken = threading.Semaphore(0)

    def stand() -> None:
        taken.release()
        assert go_on.wait(30)

    held = [asyncio.ensure_future(pool.run(stand)) for _ in range(threads)]
    try:
        yield go_on
    finally:
        go_on.set()
        del held


async def test_a_pool_whose_threads_are_taken_takes_nothing_from_the_others() -> None:
    """Neither from the loop's own executor, where libraries resolve names."""
    with _held(SANDBOX, 100), _held(SEARCH, 10):
        await asyncio.sleep(0)
        done: list[bool] = []
        async with asyncio.timeout(60):
            await apart(lambda: done.append(True))
            assert await DECODING.run(int, "7") == 7 and await RECORDS.run(int, "8") == 8
            assert await asyncio.to_thread(int, "9") == 9
        assert done


async def test_the_wait_for_a_thread_has_an_end() -> None:
    pool = Pool("test", 2, 0.01)
    begun: list[int] = []
    with _held(pool, 2) as go_on:
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="threads for test") as refused:
            await pool.run(begun.append, 1)
        assert refused.value.status == 503 and refused.value.code == "overloaded"
        go_on.set()
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await pool.run(int, "7") == 7
                    break
                except Unavailable:
                    await asyncio.sleep(0.01)
    assert not begun, "what nobody waits for any more is not done later"


async def test_who_leaves_while_it_waits_for_a_thread_gets_none() -> None:
    pool = Pool("test", 1)
    begun: list[int] = []
    with _held(pool, 1) as go_on:
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(pool.run(begun.append, 1))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        assert await pool.run(int, "7") == 7
    assert not begun


async def test_work_that_has_begun_is_not_cut_by_the_limit_of_the_wait() -> None:
    pool = Pool("test", 1, 0.01)
    go_on = threading.Event()
    working = asyncio.ensure_future(pool.run(go_on.wait, 30))
    await asyncio.sleep(0.05)
    assert not working.done()
    go_on.set()
    assert await working is True
