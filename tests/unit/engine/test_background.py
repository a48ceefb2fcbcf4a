"""What anybody may do to a background response: look whether it has a stream, cancel it, end it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.engine.ports.jobs import EndedJob, EventPiece, JobEnd
from antiphon.engine.running.background import Background
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.signal_watcher import SignalWatcher
from antiphon.errors import InternalError, InvalidRequest
from tests.support.memory_jobs import MemoryJobStore
from tests.support.memory_signals import MemorySignals
from tests.support.memory_store import MemoryResponseStore


class _Followers(Followers):
    """Remembers of what it was told."""

    told: list[str]

    def changed(self, response_id: str) -> None:
        self.told.append(response_id)


class _Jobs(MemoryJobStore):
    """Ends nothing as long as `too_fast` says so."""

    too_fast = False
    ends = 0

    claim_first = False

    async def end(self, ending: JobEnd) -> EndedJob | None:
        self.ends += 1
        if self.claim_first:
            await self.claim("worker_1", 10.0, 1)
        return None if self.too_fast else await super().end(ending)


class Setup:
    """A process's background responses, in memory."""

    def __init__(self) -> None:
        self.responses = MemoryResponseStore()
        self.jobs = _Jobs(self.responses, lambda: 1000.0)
        followers = _Followers(self.jobs, SignalWatcher(MemorySignals(self.jobs)))
        self.told: list[str] = []
        followers.told = self.told
        settings: Any = type("Settings", (), {"per_owner": 2})
        self.background = Background(self.jobs, self.responses, followers, settings)
        self.woken = 0
        self.background.wake_workers = self._wake
        self.offered: list[str] = []
        self.background.offer_job = self.offered.append

    def _wake(self) -> None:
        self.woken += 1

    async def queue(self, *, background: bool = True, stream: bool = True) -> None:
        body = json.dumps({"id": "resp_1", "object": "response", "status": "queued", "background": background}).encode()
        record = ResponseRecord("resp_1", "me", None, "queued", "m", 0.0, None, body, (), ())
        events = EventPiece(0, b'event: response.created\ndata: {"sequence_number":0}\n\n') if stream else None
        await self.background.enqueue(record, b"{}", events)


@pytest.fixture
def setup() -> Setup:
    return Setup()


async def test_what_is_queued_is_offered_to_the_workers_and_may_have_a_stream(setup: Setup) -> None:
    assert await setup.background.has_stream("me", "resp_1") is False
    await setup.queue()
    assert setup.offered == ["resp_1"] and await setup.background.has_stream("me", "resp_1") is True
    assert await setup.background.has_stream("other", "resp_1") is False
    other = Setup()
    await other.queue(stream=False)
    assert await other.background.has_stream("me", "resp_1") is False


async def test_a_cancelled_response_is_over_and_all_are_told_once(setup: Setup) -> None:
    await setup.queue()
    for _ in range(2):
        found = await setup.background.cancel("me", "resp_1")
        assert found is not None and found.status == "cancelled"
        assert (setup.told, setup.woken, setup.jobs.ends) == (["resp_1"], 1, 1)
    assert setup.jobs.jobs == {}


async def test_only_what_exists_and_was_made_in_the_background_is_cancelled(setup: Setup) -> None:
    assert await setup.background.cancel("me", "resp_1") is None
    await setup.queue(background=False)
    assert await setup.background.cancel("other", "resp_1") is None
    with pytest.raises(InvalidRequest) as refused:
        await setup.background.cancel("me", "resp_1")
    assert refused.value.code == "response_not_cancellable" and setup.jobs.ends == 0


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_response_that_a_worker_claims_meanwhile_did_not_end_in_the_queue(setup: Setup, claimed: bool) -> None:
    """The worker writes the entry of a response that it has claimed, so another entry would count it twice."""
    ended: list[tuple[str, str, bytes]] = []
    setup.background.ended_in_queue = lambda owner, body, request: ended.append(
        (owner, json.loads(body)["status"], request)
    )
    await setup.queue()
    setup.jobs.claim_first = claimed
    found = await setup.background.cancel("me", "resp_1")
    assert found is not None and found.status == "cancelled"
    assert ended == ([] if claimed else [("me", "cancelled", b"{}")])


async def test_only_its_worker_ends_it_for_that_worker(setup: Setup) -> None:
    await setup.queue()
    assert await setup.background.end("me", "resp_1", "failed", worker="worker_1") is False
    assert setup.jobs.ends == 1 and setup.told == []
    await setup.jobs.claim("worker_1", 10.0, 1)
    assert await setup.background.end("me", "resp_1", "failed", worker="worker_1", code="c", message="why") is True
    assert json.loads(setup.responses.records["resp_1"].body)["error"] == {"code": "c", "message": "why"}
    assert await setup.background.end("me", "resp_1", "failed") is False, "it is over"
    assert await setup.background.end("me", "resp_2", "failed") is False


async def test_a_stream_that_goes_on_too_fast_is_an_error_in_the_end(setup: Setup) -> None:
    await setup.queue()
    setup.jobs.too_fast = True
    with pytest.raises(InternalError):
        await setup.background.end("me", "resp_1", "cancelled")
    assert setup.jobs.ends == 20 and setup.told == []
