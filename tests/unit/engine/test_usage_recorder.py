"""What model calls took: summed, written together, never twice and never waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import structlog

from antiphon.engine.ports.actions import Usage
from antiphon.engine.ports.usage_sums import CallUsage, UsageSum
from antiphon.engine.running.usage_recorder import UsageRecorder
from antiphon.errors import StoreError
from antiphon.stores.owner_usage import UsageStore
from tests.support.waiting import until

_DAY = 86_400.0


class Kept(UsageStore):
    """A store that keeps what it is given, fails when told to, and waits where it is held."""

    def __init__(self) -> None:
        self.written: list[list[UsageSum]] = []
        self.failure: StoreError | None = None
        self.gate: asyncio.Event | None = None

    async def add(self, sums: Sequence[UsageSum]) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.written.append(list(sums))


def _spent(tokens: int = 1, **changed: Any) -> CallUsage:
    return CallUsage(
        **{"owner": "o", "model": "m", "upstream": "u", "usage": Usage(tokens, 2, tokens + 2, 1, 0, 1), **changed}
    )


async def test_calls_of_one_day_owner_model_and_upstream_are_one_sum() -> None:
    store, at = Kept(), [0.0]
    book = UsageRecorder(store, clock=lambda: at[0])
    book.note(_spent(5, cost=10))
    book.note(_spent(7, cost=20))
    book.note(_spent(3, estimated=True, cost=1))
    book.note(_spent(owner="p"))
    book.note(_spent(model="n"))
    book.note(_spent(upstream="v"))
    at[0] = _DAY
    book.note(_spent(9))
    assert await book.write()
    ((first, *others),) = store.written
    assert first == UsageSum("1970-01-01", "o", "m", "u", 2, 12, 2, 4, 2, 1, 3, 2, 31)
    assert [(one.day, one.owner, one.model, one.upstream) for one in others] == [
        ("1970-01-01", "p", "m", "u"),
        ("1970-01-01", "o", "n", "u"),
        ("1970-01-01", "o", "m", "v"),
        ("1970-01-02", "o", "m", "u"),
    ]


async def test_what_is_noted_is_written_by_itself() -> None:
    store = Kept()
    book = UsageRecorder(store, seconds=0)
    book.start()
    book.note(_spent())
    await until(lambda: len(store.written) == 1)
    book.note(_spent())
    await until(lambda: len(store.written) == 2)
    await book.aclose()
    assert len(store.written) == 2


async def test_the_end_writes_what_there_is() -> None:
    store = Kept()
    book = UsageRecorder(store, seconds=3600)
    book.start()
    book.note(_spent())
    await book.aclose()
    assert len(store.written) == 1


async def test_what_was_not_written_is_written_later_with_what_came_meanwhile() -> None:
    store = Kept()
    store.failure = StoreError("the disk is full")
    book = UsageRecorder(store)
    book.note(_spent(5))
    book.note(_spent(owner="p"))
    with structlog.testing.capture_logs() as lines:
        assert not await book.write()
        book.note(_spent(7))
        assert not await book.write()
    assert [(line["event"], line["cause"], line["kept"]) for line in lines] == [
        ("usage_not_written", "the disk is full", True)
    ]
    store.failure = None
    assert await book.write()
    assert [(one.owner, one.calls, one.input_tokens) for one in store.written[0]] == [("o", 2, 12), ("p", 1, 1)]


async def test_what_may_have_been_written_is_not_written_again() -> None:
    store = Kept()
    store.failure = StoreError("nobody knows", reason="unknown")
    book = UsageRecorder(store)
    book.note(_spent())
    with structlog.testing.capture_logs() as lines:
        assert not await book.write()
    assert lines[0]["kept"] is False
    store.failure = None
    assert await book.write() and store.written == []


@pytest.mark.parametrize("fails", [False, True])
async def test_a_write_under_way_at_the_end_is_seen_through(fails: bool) -> None:
    store = Kept()
    store.gate = asyncio.Event()
    book = UsageRecorder(store, seconds=0)
    book.start()
    book.note(_spent())
    await asyncio.sleep(0)
    await until(lambda: not book.waiting)
    closing = asyncio.ensure_future(book.aclose())
    await asyncio.sleep(0)
    store.failure = StoreError("no") if fails else None
    store.gate.set()
    store.gate = None
    if fails:
        await asyncio.sleep(0)
        await until(lambda: book.waiting > 0 or closing.done())
        store.failure = None
    await closing
    assert sum(one.calls for sums in store.written for one in sums) == (0 if fails and not store.written else 1)


async def test_a_sum_without_room_is_told() -> None:
    store = Kept()
    book = UsageRecorder(store, most=2)
    with structlog.testing.capture_logs() as lines:
        for owner in ("a", "b", "c", "a"):
            book.note(_spent(owner=owner))
    assert [(line["event"], line["input_tokens"], line["output_tokens"]) for line in lines] == [("usage_lost", 1, 2)]
    assert await book.write()
    assert [(one.owner, one.calls) for one in store.written[0]] == [("a", 2), ("b", 1)]
