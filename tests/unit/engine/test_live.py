"""Requests in flight: published only while a viewer watches, and cancelled only for their owner."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
import structlog

from antiphon.engine.ports.journal import LiveRequest
from antiphon.engine.running.live import LiveReporter
from antiphon.errors import StoreError
from antiphon.stores.live import LiveOrders, LiveStore
from tests.support.fake_time import fake_time


class Scripted(LiveStore):
    """A store whose wishes a test sets, and which fails or hangs when told to."""

    def __init__(self) -> None:
        self.watched = False
        self.cancels: list[tuple[str, str]] = []
        self.looks = 0
        self.published: list[list[str]] = []
        self.left: list[str] = []
        self.failure: Exception | None = None
        self.hangs = False

    async def look(self) -> LiveOrders:
        self.looks += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return LiveOrders(self.watched, tuple(self.cancels))

    async def publish(self, process: str, requests: Sequence[LiveRequest], *, more: int = 0) -> None:
        assert process == "p"
        self.published.append([one.id for one in requests])

    async def take_cancels(self, ids: Sequence[str]) -> tuple[tuple[str, str], ...]:
        taken = [one for one in self.cancels if one[0] in ids]
        self.cancels = [one for one in self.cancels if one not in taken]
        return tuple(taken)

    async def leave(self, process: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.left.append(process)


def request(name: str, owner: str = "n:anna") -> LiveRequest:
    return LiveRequest(name, owner, "", "http", "m", "u", "", "streaming", 1.0, 0, None, 1, False)


@fake_time
async def test_without_a_viewer_a_process_only_looks() -> None:
    store, asked = Scripted(), 0

    def snapshot() -> list[LiveRequest]:
        nonlocal asked
        asked += 1
        return [request("a")]

    reporter = LiveReporter(store, "p", snapshot=snapshot)
    reporter.start()
    await asyncio.sleep(3.5)
    assert store.looks == 3 and asked == 0 and store.published == []
    store.watched = True
    await asyncio.sleep(1)
    assert store.published == [["a"]]
    await asyncio.sleep(2)
    assert store.published == [["a"]] * 3
    store.watched = False
    await asyncio.sleep(2)
    assert len(store.published) == 3
    await reporter.aclose()
    assert store.left == ["p"]


async def test_requests_are_cancelled_for_their_owner_or_for_an_operator() -> None:
    store = Scripted()
    cancelled: list[str] = []
    requests = [request("a"), request("b", "n:bob"), request("c")]
    reporter = LiveReporter(store, "p", snapshot=lambda: requests, cancel=cancelled.append)
    store.cancels = [("a", "n:anna"), ("b", "n:anna"), ("c", ""), ("c", "n:anna"), ("elsewhere", "")]
    await reporter.report()
    assert cancelled == ["a", "c"] and store.published == []
    # The wish for a request of another process stays.
    assert store.cancels == [("elsewhere", "")]
    await reporter.report()
    assert cancelled == ["a", "c"]


@fake_time
async def test_an_outage_has_one_line_and_the_reports_continue() -> None:
    store = Scripted()
    store.watched, store.failure = True, StoreError("the database is away")
    reporter = LiveReporter(store, "p")
    reporter.start()
    with structlog.testing.capture_logs() as lines:
        await asyncio.sleep(3.5)
        store.failure, store.hangs = None, True
        await asyncio.sleep(25)
        store.hangs = False
        await asyncio.sleep(12)
    assert [line["event"] for line in lines] == ["live_requests_not_reported", "live_requests_reported_again"]
    assert store.published
    await reporter.aclose()


@fake_time
async def test_a_bug_stops_no_later_report() -> None:
    store = Scripted()
    store.watched = True
    reporter = LiveReporter(store, "p", snapshot=lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    reporter.start()
    with structlog.testing.capture_logs() as lines:
        await asyncio.sleep(1.5)
        reporter.snapshot = lambda: [request("a")]
        await asyncio.sleep(1)
    assert [line["event"] for line in lines] == ["live_requests_failed"] and store.published == [["a"]]
    store.failure = StoreError("the database is away")
    await reporter.aclose()
    assert store.left == []


async def test_a_reporter_that_never_published_leaves_nothing() -> None:
    store = Scripted()
    reporter = LiveReporter(store, "p")
    await reporter.aclose()
    assert store.left == []
    store.watched = True
    await reporter.report()
    await reporter.aclose()
    assert store.left == ["p"]


@pytest.mark.parametrize("owner", ["", "n:anna"])
async def test_a_wish_that_another_process_took_first_cancels_nothing(owner: str) -> None:
    class Taken(Scripted):
        async def take_cancels(self, ids: Sequence[str]) -> tuple[tuple[str, str], ...]:
            return ()

    store = Taken()
    store.cancels = [("a", owner)]
    cancelled: list[str] = []
    await LiveReporter(store, "p", snapshot=lambda: [request("a")], cancel=cancelled.append).report()
    assert cancelled == []
