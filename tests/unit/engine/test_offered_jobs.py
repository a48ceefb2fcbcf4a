"""Whether others are told of a job that was queued here: only if this process does not take it."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.engine.ports.jobs import News, Pace
from tests.support.waiting import until
from tests.unit.engine.test_workers import Process

_SELDOM = Pace(3600.0, 3600.0, 3600.0)


async def test_what_is_taken_here_is_told_to_nobody() -> None:
    process = Process(pace=_SELDOM)
    process.workers.start()
    await process.queue()
    await until(lambda: process.model.calls)
    process.model.gate.set()
    await until(lambda: not process.workers.running)
    assert process.signals.told == 0
    await process.workers.aclose()


@pytest.mark.parametrize(
    ("settings", "failures", "retired"),
    [({"workers": 0}, {}, False), ({}, {}, True), ({}, {"claim": 1}, False), ({"workers": 1}, {}, False)],
    ids=["no workers", "retired", "the claim failed", "full"],
)
async def test_what_is_not_taken_here_is_told(
    settings: dict[str, Any], failures: dict[str, int], retired: bool
) -> None:
    process = Process(pace=_SELDOM, **settings)
    process.workers.start()
    if settings.get("workers") == 1:
        await process.queue()
        await until(lambda: process.model.calls)
    elif process.settings.workers:
        await until(lambda: process.jobs.claims)
    process.jobs.failures = failures
    if retired:
        process.workers.retire()
    assert process.signals.told == 0
    await process.queue()
    await until(lambda: process.signals.told)
    assert process.signals.told == 1
    process.model.gate.set()
    await process.workers.aclose()


async def test_what_is_given_back_is_told() -> None:
    process = Process(pace=_SELDOM)
    process.workers.start()
    await process.queue()
    await until(lambda: process.model.calls)
    await process.workers.aclose()
    assert process.signals.told == 1


async def test_what_others_left_is_taken_when_they_say_so() -> None:
    process = Process(pace=_SELDOM)
    process.signal_watcher.start()
    process.workers.start()
    await until(lambda: process.jobs.claims)
    process.background.offer_job = lambda response_id: process.signals.hear(News(queued=True))
    await process.queue()
    await until(lambda: process.model.calls)
    process.model.gate.set()
    await process.workers.aclose()
