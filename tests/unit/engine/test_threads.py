"""Large requests do not hold up the event loop, and nobody touches what a thread works on."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

from antiphon.engine.actions import RequestHead
from antiphon.engine.runner import Runner, RunnerTimeouts
from antiphon.engine.threads import LARGE, apart
from antiphon.observability.metrics import Metrics

HEAD = RequestHead("POST", "/v1/responses", (), "owner", "req_1")


class _Reading:
    """Stands for an exchange; notes where it was read."""

    awaits_prompt = False

    def __init__(self) -> None:
        self.thread = 0

    def receive_request(self, head: RequestHead, body: bytes) -> None:
        self.thread = threading.get_ident()


@pytest.mark.parametrize(("size", "same"), [(10, True), (LARGE - 1, True), (LARGE, False), (LARGE * 4, False)])
async def test_only_a_large_request_is_read_in_a_thread(size: int, same: bool) -> None:
    runner = Runner(cast(Any, None), cast(Any, None), timeouts=RunnerTimeouts(), metrics=Metrics())
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
