"""When ended responses are told of, and that their lines leave together."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from datetime import datetime
from pathlib import Path

import pytest
import structlog

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.ports.callers import Caller
from antiphon.observability import observation
from antiphon.observability.endings import Endings
from antiphon.observability.logs import configure, lines_together
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Telemetry
from tests.support.exchanges import make_exchange
from tests.support.fake_time import FakeTimeLoop, in_fake_time


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, logging_as_before: None) -> Iterator[int]:
    """The reading end of what is standard error now; reading waits for nothing."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with open(writing, "w") as file, redirect_stderr(file), monkeypatch.context() as patch:
        configure("info", "json")
        # A logger keeps the set-up that it was used with first: the module's own must not keep this one.
        patch.setattr(observation, "_log", structlog.get_logger())
        yield reading
        patch.undo()
        configure("error", "json")
    os.close(reading)


def _adds(ends: Endings, told: list[int], *numbers: int) -> None:
    for number in numbers:
        ends.add(lambda number=number: told.append(number), now=False)  # type: ignore[misc]


def test_who_asked_for_nothing_is_told_at_once() -> None:
    told: list[int] = []
    _adds(Endings(), told, 1, 2)
    assert told == [1, 2]


async def test_what_went_well_is_told_some_at_a_time_and_in_order() -> None:
    ends, told, over = Endings(), list[int](), asyncio.Event()
    ends.by_time(asyncio.get_running_loop())
    _adds(ends, told, 1, 2)
    ends.add(over.set, now=False)
    assert told == [] and not over.is_set()
    async with asyncio.timeout(30):
        await over.wait()
    assert told == [1, 2]
    # And the next ones wait again.
    _adds(ends, told, 3)
    assert told == [1, 2]
    await ends.tell_before_scrape()
    assert told == [1, 2, 3]


@pytest.mark.parametrize(("seconds", "told_then"), [(0.04, []), (0.06, [1])])
def test_what_went_well_waits_a_twentieth_of_a_second(seconds: float, told_then: list[int]) -> None:
    async def work() -> None:
        ends, told = Endings(), list[int]()
        ends.by_time(asyncio.get_running_loop())
        _adds(ends, told, 1)
        await asyncio.sleep(seconds)
        assert told == told_then
        ends.close()
        assert told == [1]

    in_fake_time(work())


def test_a_hundred_wait_and_the_last_of_them_tells_all() -> None:
    async def work() -> None:
        ends, told = Endings(), list[int]()
        loop = asyncio.get_running_loop()
        ends.by_time(loop)
        _adds(ends, told, *range(99))
        assert told == []
        _adds(ends, told, 99)
        assert told == list(range(100))
        assert isinstance(loop, FakeTimeLoop) and not loop.timers, "nothing is due any more"

    in_fake_time(work())


def test_to_close_answers_whoever_waits_for_envoy_before_the_last_lines() -> None:
    async def work() -> None:
        ends, told = Endings(), list[int]()
        ends.by_time(asyncio.get_running_loop())
        ends.early.listen(asyncio.get_running_loop())
        ends.early.ask("req_1", lambda end: _adds(ends, told, 1))
        ends.close()
        assert told == [1]

    in_fake_time(work())


async def test_what_must_be_seen_is_told_now_and_what_waits_before_it() -> None:
    ends, told = Endings(), list[int]()
    ends.by_time(asyncio.get_running_loop())
    _adds(ends, told, 1, 2)
    ends.add(lambda: told.append(3), now=True)
    assert told == [1, 2, 3]


async def test_only_so_many_wait() -> None:
    ends, told = Endings(most=3), list[int]()
    ends.by_time(asyncio.get_running_loop())
    _adds(ends, told, 1, 2)
    assert told == []
    _adds(ends, told, 3)
    assert told == [1, 2, 3]


async def test_what_fails_to_be_told_keeps_nothing_else_from_it() -> None:
    ends, told, over = Endings(), list[int](), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(-1))
    ends.by_time(loop)
    ends.add(lambda: told.append(1 // 0), now=False)
    _adds(ends, told, 2)
    ends.add(over.set, now=False)
    async with asyncio.timeout(30):
        await over.wait()
    assert told == [-1, 2]


@pytest.mark.parametrize(("failure", "told_now"), [(None, False), (Failure("ours", "broken", 500), True)])
async def test_a_failure_is_counted_and_written_at_once(pipe: int, failure: Failure | None, told_now: bool) -> None:
    telemetry = Telemetry(Metrics())
    telemetry.endings.by_time(asyncio.get_running_loop())
    outcome = "completed" if failure is None else "error"
    began = time.time()
    telemetry.observe("http", "req_1", Caller("owner")).end(make_exchange(), outcome, failure)
    counted = f'outcome="{outcome}"'
    assert (counted in telemetry.metrics.render().decode()) is told_now
    telemetry.metrics.before_scrape(telemetry.endings.tell_before_scrape)
    assert counted in (await telemetry.metrics.scraped()).decode()
    (line,) = os.read(pipe, 1 << 16).splitlines()
    said = json.loads(line)
    assert (said["request_id"], said["outcome"]) == ("req_1", outcome)
    # The time is that of the end, not of the line.
    assert said["timestamp"].endswith("Z") and began - 1 < _seconds(said["timestamp"]) <= time.time()


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def _writes() -> int:
    """How many system calls of this thread wrote something, as the kernel counts them."""
    return int(Path("/proc/thread-self/io").read_text().split("syscw:")[1].split()[0])


def test_lines_of_one_block_leave_in_one_write(pipe: int) -> None:
    before = _writes()
    log = structlog.get_logger("x")
    with lines_together():
        log.info("first")
        log.info("second")
        assert _writes() == before
    assert _writes() == before + 1
    assert [json.loads(line)["message"] for line in os.read(pipe, 1 << 16).splitlines()] == ["first", "second"]
    log.info("third")
    assert _writes() == before + 2
