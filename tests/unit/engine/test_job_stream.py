"""The stream of one attempt at a background response: what is written of it, when it waits, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from antiphon.engine.ports.jobs import EventPiece, Job
from antiphon.engine.running.job_run import JobStream
from antiphon.translation.events.encode import DONE, KEEPALIVE
from tests.support.waiting import until

_EVENT = b"data: 1\n\n"


class _Jobs:
    """Takes what is appended while `gate` is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.held = True
        self.appended: list[tuple[bytes, int, bool]] = []

    async def append(self, worker: str, response_id: str, events: EventPiece, *, restart: bool) -> bool:
        assert (worker, response_id) == ("w", "resp_1")
        await self.gate.wait()
        self.appended.append((events.data, events.last, restart))
        return self.held


class Setup:
    """A stream over such jobs."""

    def __init__(self, ahead: int = 1 << 20) -> None:
        self.jobs, self.told = _Jobs(), []
        self.stream = JobStream(
            cast(Any, self.jobs),
            "w",
            Job("resp_1", "o", b"", b"", 1, 4),
            batch=0.0,
            written=lambda: self.told.append("written"),
            on_lost=lambda: self.told.append("lost"),
            ahead=ahead,
        )

    told: list[str]


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def test_comments_and_the_sentinel_are_not_kept(setup: Setup) -> None:
    for nothing in (KEEPALIVE, DONE, b""):
        await setup.stream.add(nothing)
    assert await setup.stream.close() is None and setup.jobs.appended == []
    setup = Setup()
    setup.jobs.gate.clear()
    await setup.stream.add(_EVENT + DONE)
    setup.stream.hold_back()
    rest = await setup.stream.close()
    assert rest == EventPiece(5, _EVENT) and setup.jobs.appended == []


async def test_what_an_earlier_attempt_left_goes_with_the_first_piece_alone(setup: Setup) -> None:
    assert setup.stream.restart
    for number in range(1, 4):
        await setup.stream.add(_EVENT)
        await until(lambda number=number: setup.told.count("written") == number)  # type: ignore[misc]
    assert setup.jobs.appended == [(_EVENT, 5, True), (_EVENT, 6, False), (_EVENT, 7, False)]
    assert not setup.stream.restart and await setup.stream.close() is None


async def test_a_stream_that_is_another_workers_is_told_so_once_and_writes_no_more(setup: Setup) -> None:
    setup.jobs.held = False
    await setup.stream.add(_EVENT)
    await until(lambda: setup.told)
    await setup.stream.add(_EVENT)
    await asyncio.sleep(0)
    assert setup.told == ["lost"] and len(setup.jobs.appended) == 1 and setup.stream.restart
    assert await setup.stream.close() == EventPiece(6, _EVENT)


@pytest.mark.parametrize(("size", "waits"), [(len(_EVENT) * 2, False), (len(_EVENT) * 2 - 1, True)])
async def test_who_is_ahead_by_more_than_the_limit_waits(size: int, waits: bool) -> None:
    setup = Setup(size)
    setup.jobs.gate.clear()
    await setup.stream.add(_EVENT)
    # Taken, but not written yet.
    await asyncio.sleep(0)
    await setup.stream.add(_EVENT)
    adding = asyncio.ensure_future(setup.stream.add(_EVENT))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert adding.done() is not waits
    setup.jobs.gate.set()
    async with asyncio.timeout(60):
        await adding
    setup.stream.abort()


async def test_nobody_waits_for_a_stream_that_holds_back() -> None:
    setup = Setup(0)
    setup.stream.hold_back()
    async with asyncio.timeout(60):
        for _ in range(3):
            await setup.stream.add(_EVENT)
        assert await setup.stream.close() == EventPiece(7, _EVENT * 3)
    assert setup.jobs.appended == []


async def test_to_abort_ends_what_is_being_written(setup: Setup) -> None:
    setup.stream.abort()
    setup.jobs.gate.clear()
    before = asyncio.all_tasks()
    await setup.stream.add(_EVENT)
    await asyncio.sleep(0)
    (writing,) = asyncio.all_tasks() - before
    setup.stream.abort()
    await asyncio.wait({writing})
    assert writing.cancelled() and setup.jobs.appended == []
