"""Saving and queueing: what becomes of a response's key and its conversation, what is counted, how it all ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.ports.actions import Enqueue, OnceOnly, ReleaseConversation, ResponseRecord, SaveResponse
from antiphon.engine.ports.jobs import EventPiece
from antiphon.engine.running.saving import Saver
from antiphon.errors import ApiError, OwnerFull, StoreError
from antiphon.observability.metrics import Metrics
from tests.support.memory_store import MemoryResponseStore
from tests.support.ports import make_ports

_ONCE = OnceOnly("me", "key", "f")


def _record(status: str = "completed", conversation: str | None = None, name: str = "resp_1") -> ResponseRecord:
    return ResponseRecord(name, "me", None, status, "m", 0.0, 0.0, b"{}", (), (), conversation_id=conversation)


class _Held:
    """The keys and locks of a process, as far as a saver is concerned: what was done with them."""

    def __init__(self) -> None:
        self.held: dict[str, OnceOnly] = {}
        self.done: list[str] = []

    def of(self, response_id: str) -> OnceOnly | None:
        return self.held.get(response_id)

    def hand_to_store(self, response_id: str) -> None:
        self.done.append(f"kept {response_id}")
        self.held.pop(response_id, None)

    def forget(self, response_id: str) -> None:
        self.done.append(f"forgotten {response_id}")

    def calls(self, response_id: str) -> bool:
        return False

    def holds(self, response_id: str) -> bool:
        return response_id in self.held

    async def release(self, response_id: str, *, counts: bool = False) -> None:
        self.done.append(f"{'stays' if counts else 'given back'} {response_id}")
        self.held.pop(response_id, None)

    async def aclose(self) -> None:
        self.done.append("closed")


class _History(MemoryResponseStore):
    """Saves when `gate` is open, unless it fails."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False
        self.saved: list[ResponseRecord] = []

    async def save(self, record: ResponseRecord) -> None:
        await self.gate.wait()
        if self.fails:
            raise StoreError("full")
        self.saved.append(record)


class _Background:
    """A queue that takes what comes, unless it fails."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.queued: list[tuple[ResponseRecord, bytes, EventPiece | None]] = []

    async def enqueue(
        self, record: ResponseRecord, request: bytes, events: EventPiece | None, needs: tuple[str, ...]
    ) -> None:
        if self.failure is not None:
            raise self.failure
        self.queued.append((record, request, events))


class Setup:
    """A saver over all of these."""

    def __init__(self, seconds: float = 30.0) -> None:
        self.history = _History()
        self.keys, self.conversations, self.background = _Held(), _Held(), _Background()
        self.metrics = Metrics()
        given: dict[str, Any] = {"keys": self.keys, "conversations": self.conversations, "background": self.background}
        history: Any = self.history
        times = TimeoutSettings.model_construct(save=seconds)
        self.ports = make_ports(history, None, timeouts=times, metrics=self.metrics, **given)
        self.saver = Saver(self.ports, set())

    def counted(self, operation: str, result: str) -> float:
        name = f'storage_operations_total{{operation="{operation}",result="{result}"}} '
        lines = self.metrics.render().decode().splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@pytest.fixture
async def setup() -> AsyncIterator[Setup]:
    made = Setup()
    yield made
    made.history.gate.set()
    await made.saver.aclose()


@pytest.mark.parametrize("conversation", ["conv_1", None])
@pytest.mark.parametrize("status", ["completed", "incomplete"])
async def test_with_the_row_goes_what_the_response_holds(setup: Setup, status: str, conversation: str | None) -> None:
    setup.keys.held["resp_1"] = _ONCE
    assert await setup.saver.save(SaveResponse(_record(status, conversation))) is None
    assert [record.once for record in setup.history.saved] == [_ONCE]
    assert setup.keys.done == ["kept resp_1"]
    assert setup.conversations.done == (["forgotten resp_1"] if conversation else [])
    assert (setup.counted("save", "ok"), setup.counted("save", "error")) == (1, 0)


async def test_a_response_that_failed_gives_its_key_back_and_is_stored(setup: Setup) -> None:
    setup.keys.held["resp_1"] = _ONCE
    assert await setup.saver.save(SaveResponse(_record("failed"))) is None
    assert [record.once for record in setup.history.saved] == [None]
    assert setup.keys.done == ["given back resp_1"]


async def test_without_a_key_nothing_is_done_with_one(setup: Setup) -> None:
    assert await setup.saver.save(SaveResponse(_record())) is None
    assert setup.keys.done == setup.conversations.done == []


@pytest.mark.parametrize(("key", "conversation"), [(True, None), (False, "conv_1"), (True, "conv_1"), (False, None)])
async def test_what_cannot_be_saved_gives_everything_back(setup: Setup, key: bool, conversation: str | None) -> None:
    setup.history.fails = True
    if key:
        setup.keys.held["resp_1"] = _ONCE
    assert isinstance(await setup.saver.save(SaveResponse(_record(conversation=conversation))), StoreError)
    expected = ["given back resp_1"] if key or conversation else []
    assert setup.keys.done == setup.conversations.done == expected
    assert (setup.counted("save", "ok"), setup.counted("save", "error")) == (0, 1)


async def test_what_is_queued_keeps_its_key_and_its_place_in_the_stream(setup: Setup) -> None:
    setup.keys.held["resp_1"] = _ONCE
    events = b'event: a\ndata: {"type":"a"}\n\nevent: b\ndata: {"type":"b"}\n\n'
    assert await setup.saver.enqueue(Enqueue(_record("queued", "conv_1"), b"{}", events)) is None
    assert await setup.saver.enqueue(Enqueue(_record("queued", name="resp_2"), b"{}", b"")) is None
    (one, _, its_events), (two, _, no_events) = setup.background.queued
    assert (one.once, two.once) == (_ONCE, None)
    assert its_events == EventPiece(1, events) and no_events is None
    assert setup.keys.done == ["kept resp_1", "kept resp_2"] and setup.conversations.done == ["forgotten resp_1"]
    assert (setup.counted("enqueue", "ok"), setup.counted("enqueue", "error")) == (2, 0)


@pytest.mark.parametrize("failure", [StoreError("full"), OwnerFull(5)])
async def test_what_cannot_be_queued_gives_everything_back(setup: Setup, failure: StoreError | ApiError) -> None:
    setup.keys.held["resp_1"] = _ONCE
    setup.background.failure = failure
    assert await setup.saver.enqueue(Enqueue(_record("queued", "conv_1"), b"{}", b"")) is failure
    assert setup.keys.done == setup.conversations.done == ["given back resp_1"]
    # An owner who has no room left is no error of the store's.
    errors = int(isinstance(failure, StoreError))
    assert (setup.counted("enqueue", "ok"), setup.counted("enqueue", "error")) == (1 - errors, errors)


async def test_what_hangs_is_given_back_behind_the_answer(setup: Setup) -> None:
    """The client hears that its response could not be stored, although the lock cannot be given back now."""
    setup.saver = Saver(setup.ports, set(), patience=0.001)
    go = asyncio.Event()
    release = setup.conversations.release

    async def slow(response_id: str) -> None:
        await go.wait()
        await release(response_id)

    setup.conversations.release = slow  # type: ignore[method-assign,assignment]
    setup.history.fails = True
    assert isinstance(await setup.saver.save(SaveResponse(_record(conversation="conv_1"))), StoreError)
    assert setup.conversations.done == []
    go.set()
    await setup.saver.aclose()
    assert setup.conversations.done == ["given back resp_1", "closed"]


async def test_what_is_the_jobs_is_not_given_back_with_a_request(setup: Setup) -> None:
    other = _History()
    for keeps_locks, expected in ((True, []), (False, ["given back resp_1"])):
        view = Saver(replace(setup.ports, over=other, keeps_locks=keeps_locks), set())
        await view.release(ReleaseConversation("owner", "resp_1"))
        assert setup.conversations.done == expected
    assert setup.keys.done == ["given back resp_1"] * 2, "approvals are the response's own"
    await view.release(ReleaseConversation("owner", "resp_1", counts=True))
    assert setup.keys.done[-1] == "stays resp_1"
    assert await view.save(SaveResponse(_record())) is None
    assert len(other.saved) == 1 and setup.history.saved == [], "it saves to its own history"


@pytest.mark.parametrize("what", ["save", "release", "enqueue"])
async def test_it_goes_on_when_its_request_is_gone_and_is_waited_for(setup: Setup, what: str) -> None:
    begun, go, ended = asyncio.Event(), asyncio.Event(), []

    async def slow(*_: Any, **__: Any) -> None:
        begun.set()
        await go.wait()
        ended.append(what)

    setup.history.save = setup.background.enqueue = setup.keys.release = slow  # type: ignore[method-assign]
    works: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
        "save": lambda: setup.saver.save(SaveResponse(_record())),
        "enqueue": lambda: setup.saver.enqueue(Enqueue(_record("queued"), b"{}", b"")),
        "release": lambda: setup.saver.release(ReleaseConversation("owner", "resp_1")),
    }
    request = asyncio.ensure_future(works[what]())
    await begun.wait()
    request.cancel()
    await asyncio.wait({request})
    assert request.cancelled()
    closing = asyncio.ensure_future(setup.saver.aclose())
    await asyncio.sleep(0)
    assert not closing.done() and ended == []
    go.set()
    await closing
    assert ended == [what]
    assert setup.keys.done[-1] == setup.conversations.done[-1] == "closed"


async def test_at_the_end_it_does_not_wait_for_ever() -> None:
    setup = Setup(seconds=0.001)
    setup.history.gate.clear()
    save = asyncio.ensure_future(setup.saver.save(SaveResponse(_record())))
    await asyncio.sleep(0)
    await setup.saver.aclose()
    assert not save.done() and setup.keys.done == ["closed"]
    setup.history.gate.set()
    assert await save is None
