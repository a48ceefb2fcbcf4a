"""Waiting for parts and for room, by a clock that the test moves."""

from __future__ import annotations

import asyncio

import pytest

from antiphon.engine.running.upstream_pump import PartQueue

GUARD = 30.0


async def _turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_parts_come_out_in_order_and_no_more_wait_than_may() -> None:
    queue: PartQueue[int] = PartQueue(2)
    putting = asyncio.ensure_future(_put(queue, 5))
    await _turns()
    assert not putting.done()
    assert [await queue.get(GUARD) for _ in range(5)] == [0, 1, 2, 3, 4]
    await putting
    queue.close()


async def _put(queue: PartQueue[int], count: int) -> None:
    for number in range(count):
        await queue.put(number)


async def test_who_waits_gets_what_comes() -> None:
    queue: PartQueue[str] = PartQueue(1)
    for part in ("a", "b"):
        getting = asyncio.ensure_future(queue.get(GUARD))
        await _turns()
        await queue.put(part)
        assert await getting == part
    queue.close()


async def test_a_wait_ends_and_the_next_goes_on() -> None:
    queue: PartQueue[str] = PartQueue(1)
    for seconds in (0.0, 0.001):
        with pytest.raises(TimeoutError):
            await queue.get(seconds)
    await queue.put("a")
    assert await queue.get(0.0) == "a"


async def test_a_short_wait_behind_a_long_one_is_short() -> None:
    queue: PartQueue[str] = PartQueue(1)
    getting = asyncio.ensure_future(queue.get(GUARD))
    await _turns()
    await queue.put("a")
    await getting
    # The timer of the first wait still runs.
    async with asyncio.timeout(GUARD / 2):
        with pytest.raises(TimeoutError):
            await queue.get(0.001)


async def test_a_long_wait_outlives_the_timer_of_a_short_one() -> None:
    queue: PartQueue[str] = PartQueue(1)
    loop = asyncio.get_running_loop()
    getting = asyncio.ensure_future(queue.get(0.05))
    await _turns()
    await queue.put("a")
    await getting
    # Waited for until after the first wait's timer, and before the second's.
    passed = loop.create_future()
    loop.call_later(0.1, passed.set_result, None)
    getting = asyncio.ensure_future(queue.get(GUARD))
    await passed
    assert not getting.done()
    await queue.put("b")
    assert await getting == "b"
    queue.close()


async def test_a_part_that_comes_with_the_end_of_the_time_is_not_lost() -> None:
    queue: PartQueue[str] = PartQueue(1)
    loop = asyncio.get_running_loop()
    came: list[str] = []
    getting = asyncio.ensure_future(queue.get(0.001))
    # Behind the timer in the same turn, before the task that it wakes.
    getting_soon = loop.create_future()
    loop.call_later(0.001, getting_soon.set_result, None)
    await getting_soon
    await queue.put("a")
    try:
        came.append(await getting)
    except TimeoutError:
        came.append(await queue.get(0.0))
    assert came == ["a"]
    queue.close()


async def test_what_is_dropped_makes_room() -> None:
    queue: PartQueue[int] = PartQueue(1)
    putting = asyncio.ensure_future(_put(queue, 2))
    await _turns()
    queue.clear()
    await putting
    assert await queue.get(GUARD) == 1
    queue.close()


async def test_a_cancelled_wait_leaves_the_queue_as_it_was() -> None:
    queue: PartQueue[str] = PartQueue(1)
    getting = asyncio.ensure_future(queue.get(GUARD))
    await _turns()
    getting.cancel()
    await asyncio.wait({getting})
    await queue.put("a")
    assert await queue.get(GUARD) == "a"
    queue.close()
