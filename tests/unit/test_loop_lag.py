"""The event loop's lag: what a loop that is held up says of itself."""

from __future__ import annotations

import asyncio
import time

from antiphon.app.measuring import LoopLag
from tests.support.waiting import until


async def test_a_loop_that_was_held_up_says_by_how_much() -> None:
    late: list[float] = []
    lag = LoopLag(late.append, seconds=0.001)
    # What others never should do.
    time.sleep(0.05)  # noqa: ASYNC251
    await until(lambda: len(late) >= 2)
    lag.close()
    assert max(late) >= 0.04 and min(late) >= 0


async def test_after_the_end_there_is_no_timer() -> None:
    late: list[float] = []
    lag = LoopLag(late.append, seconds=0.0)
    await until(lambda: late)
    lag.close()
    seen = len(late)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(late) == seen
