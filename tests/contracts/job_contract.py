"""The contract tests of every `JobStore`; each implementation runs this suite in a separate `test_jobs_*.py`.

Lives here: the tests. Not here: the workers that run jobs, and faults that only one database can have.

Invariant: a test writes through `jobs` and reads through `peer`, which is the same store, a second one on the same
data, or one in another process. No test waits for a lease, because a lease of zero seconds expires immediately.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace

import pytest

from antiphon.engine.ports.actions import ResponseRecord, StoredItem, Usage
from antiphon.engine.ports.jobs import EndedJob, EventPage, EventPiece, Job, JobEnd, Progress, Queue, TooManyJobs
from antiphon.engine.ports.state import PageQuery
from antiphon.errors import InvalidRequest, StoreError
from antiphon.stores.jobs import JobStore
from antiphon.stores.responses import ResponseStore
from tests.contracts.store_contract import ALICE, BOB, item, record

MOST = 100
ONE, TWO = "worker_one", "worker_two"
EVENTS = EventPiece(1, b"event: a\ndata: 0\n\nevent: b\ndata: 1\n\n")


def queued(name: str, *, prev: str | None = None, owner: str = ALICE) -> ResponseRecord:
    """A queued response `resp_<name>` with two input items."""
    one = record(name, prev=prev, owner=owner, status="queued", outputs=0)
    body = json.dumps({"id": one.id, "status": "queued", "background": True, "error": None}).encode()
    return ResponseRecord(one.id, owner, one.previous_response_id, "queued", "m", 5.0, None, body, one.input_items, ())


def finished(name: str, outputs: int = 1, owner: str = ALICE) -> ResponseRecord:
    """The completed record of the same response."""
    return ResponseRecord(
        f"resp_{name}",
        owner,
        None,
        "completed",
        "m",
        5.0,
        6.0,
        json.dumps({"id": f"resp_{name}", "status": "completed", "background": True}).encode(),
        queued(name).input_items,
        tuple(item(f"msg_{name}_out{n}") for n in range(outputs)),
        Usage(1, 2, 3),
    )


def piece(first: int, last: int) -> EventPiece:
    """A batch of events with these numbers."""
    return EventPiece(last, b"".join(b"event: x\ndata: %d\n\n" % n for n in range(first, last + 1)))


async def claim(jobs: JobStore, worker: str = ONE, limit: int = 9, *, seconds: float = 1000.0) -> list[Job]:
    return await jobs.claim(worker, seconds, limit)


def page_of(page: EventPage | None) -> list[tuple[int, int]]:
    """The first and the last number of each batch."""
    assert page is not None
    return [(one.first, one.last) for one in page.pieces]


class JobStoreContract:
    """The suite. Subclasses provide the fixtures `jobs`, `peer`, `responses` (of `jobs`) and `others` (of `peer`)."""

    async def test_a_queued_response_is_there_at_once(
        self, jobs: JobStore, peer: JobStore, others: ResponseStore
    ) -> None:
        given = queued("a")
        await jobs.enqueue(given, b'{"x":1}', EVENTS, limit=MOST)
        found = await others.get(ALICE, "resp_a")
        assert found is not None
        assert (found.status, found.body, found.output_items) == ("queued", given.body, ())
        page = await others.input_items(ALICE, "resp_a", PageQuery(descending=False))
        assert page is not None and page.items == given.input_items
        assert await others.get(BOB, "resp_a") is None
        with pytest.raises(InvalidRequest):
            await others.load_chain(ALICE, "resp_a")
        listed = await others.list(ALICE, PageQuery())
        assert [one.id for one in listed.items] == ["resp_a"]
        events = await peer.events(ALICE, "resp_a", -1, 10)
        assert events is not None and (events.status, events.pieces, events.more) == ("queued", (EVENTS,), False)
        assert await peer.events(BOB, "resp_a", -1, 10) is None
        assert await peer.events(ALICE, "resp_b", -1, 10) is None

    async def test_a_job_is_claimed_once(self, jobs: JobStore, peer: JobStore, others: ResponseStore) -> None:
        await jobs.enqueue(queued("a"), b'{"x":1}', EVENTS, limit=MOST)
        await jobs.enqueue(queued("b"), b"{}", None, limit=MOST)
        (first,) = await claim(jobs, ONE, limit=1)
        assert (first.response_id, first.owner, first.request) == ("resp_a", ALICE, b'{"x":1}')
        assert (first.attempts, first.last_event) == (1, 1)
        assert json.loads(first.body) == {"id": "resp_a", "status": "in_progress", "background": True, "error": None}
        (second,) = await claim(peer, TWO)
        assert (second.response_id, second.last_event) == ("resp_b", -1)
        assert await jobs.claim(ONE, 1000, 9, ["resp_a"]) == [] and await peer.claim(TWO, 1000, 9, ["resp_b"]) == []
        assert await peer.held(ONE) == {"resp_a"} and await jobs.held(TWO) == {"resp_b"}
        found = await others.get(ALICE, "resp_a")
        assert found is not None and (found.status, found.body) == ("in_progress", first.body)

    async def test_two_that_claim_at_the_same_time(self, jobs: JobStore, peer: JobStore) -> None:
        for n in range(20):
            await jobs.enqueue(queued(f"a{n}"), b"{}", None, limit=MOST)
        one, two = await asyncio.gather(claim(jobs, ONE, limit=20), claim(peer, TWO, limit=20))
        ids = [job.response_id for job in (*one, *two)]
        assert len(ids) == len(set(ids)) == 20

    async def test_a_lease_runs_out_unless_it_is_renewed(self, jobs: JobStore, peer: JobStore) -> None:
        for name in ("a", "b"):
            await jobs.enqueue(queued(name), b"{}", EVENTS, limit=MOST)
        assert len(await claim(jobs, ONE, seconds=0)) == 2
        assert await jobs.renew(ONE, ["resp_a", "resp_none"], 1000) == {"resp_a"}
        assert await peer.renew(TWO, ["resp_b"], 1000) == frozenset()
        (taken,) = await claim(peer, TWO)
        assert (taken.response_id, taken.attempts) == ("resp_b", 2)
        assert await jobs.held(ONE) == {"resp_a"}
        assert await jobs.append(ONE, "resp_b", piece(2, 2)) is False
        assert await jobs.finish(ONE, finished("b"), piece(2, 2)) is False
        events = await peer.events(ALICE, "resp_b", -1, 10)
        assert events is not None and (events.status, events.pieces) == ("in_progress", (EVENTS,))

    async def test_what_waits_for_a_worker_is_counted(self, jobs: JobStore, peer: JobStore) -> None:
        assert await peer.queue() == Queue(0)
        for name in ("a", "b", "c"):
            await jobs.enqueue(queued(name), b"{}", None, limit=MOST)
        assert await peer.queue() == Queue(3, queued("a").created_at)
        await claim(jobs, ONE, limit=1)
        assert (await peer.queue()).length == 2
        # The lease of this claim expires immediately, so the jobs count as waiting again.
        await claim(jobs, TWO, seconds=0)
        assert (await peer.queue()).length == 2

    async def test_a_job_that_is_given_back_can_be_claimed_at_once(self, jobs: JobStore, peer: JobStore) -> None:
        await jobs.enqueue(queued("a"), b"{}", None, limit=MOST)
        await claim(jobs, ONE)
        await jobs.release(TWO, "resp_a")
        assert await claim(peer, TWO) == []
        await jobs.release(ONE, "resp_a")
        assert await jobs.held(ONE) == frozenset()
        (again,) = await claim(peer, TWO)
        assert again.attempts == 1
        await peer.release(TWO, "resp_a", pause=1000, attempted=True)
        assert await peer.held(TWO) == frozenset() and await claim(jobs, ONE) == []

    async def test_nobody_takes_over_from_itself(self, jobs: JobStore, peer: JobStore) -> None:
        await jobs.enqueue(queued("a"), b"{}", None, limit=MOST)
        await claim(jobs, ONE, seconds=0)
        assert await jobs.claim(ONE, 1000, 9, ["resp_a"]) == []
        # A job that the worker holds but does not run is returned to it, because the worker missed the answer of its
        # first claim.
        (again,) = await jobs.claim(ONE, 1000, 9)
        assert again.response_id == "resp_a"
        assert await claim(peer, TWO) == []

    async def test_a_stream_grows_and_is_read_from_anywhere(self, jobs: JobStore, peer: JobStore) -> None:
        await jobs.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
        await claim(jobs)
        for number in range(2, 12, 2):
            assert await jobs.append(ONE, "resp_a", piece(number, number + 1)) is True
        page = await peer.events(ALICE, "resp_a", -1, 3)
        assert page is not None and page.more and [one.last for one in page.pieces] == [1, 3, 5]
        page = await peer.events(ALICE, "resp_a", 6, 10)
        assert page is not None and not page.more and [one.last for one in page.pieces] == [7, 9, 11]
        assert page.pieces[0].after(6) == b"event: x\ndata: 7\n\n"
        page = await peer.events(ALICE, "resp_a", 11, 10)
        assert page is not None and page.pieces == () and page.status == "in_progress"
        await jobs.enqueue(queued("b"), b"{}", None, limit=MOST)
        assert await peer.progress(["resp_a", "resp_b", "resp_c"]) == {
            "resp_a": Progress("in_progress", 11),
            "resp_b": Progress("queued", -1),
        }
        assert await peer.progress([]) == {}

    async def test_a_response_ends_with_its_items_its_last_events_and_its_job(
        self, jobs: JobStore, peer: JobStore, others: ResponseStore
    ) -> None:
        given = queued("a")
        await jobs.enqueue(given, b"{}", EVENTS, limit=MOST)
        await claim(jobs)
        done = finished("a", outputs=2)
        assert await jobs.finish(ONE, done, piece(2, 4)) is True
        found = await others.get(ALICE, "resp_a")
        assert found is not None
        assert (found.status, found.body, found.output_items) == ("completed", done.body, done.output_items)
        chain = await others.load_chain(ALICE, "resp_a")
        assert chain is not None and chain.items == (*given.input_items, *done.output_items)
        events = await peer.events(ALICE, "resp_a", 1, 10)
        assert events is not None and (events.status, events.pieces) == ("completed", (piece(2, 4),))
        assert await jobs.held(ONE) == frozenset() and await claim(peer, TWO) == []
        assert await jobs.finish(ONE, done, None) is False
        assert await jobs.append(ONE, "resp_a", piece(5, 5)) is False

    async def test_it_can_be_continued_and_continues(self, jobs: JobStore, others: ResponseStore) -> None:
        await others.save(record("before"))
        await jobs.enqueue(queued("a", prev="before"), b"{}", None, limit=MOST)
        await claim(jobs)
        await jobs.finish(ONE, finished("a"), None)
        await others.save(record("after", prev="a"))
        chain = await others.load_chain(ALICE, "resp_after")
        assert chain is not None and len(chain.items) == 9
        for wrong, owner in (("none", ALICE), ("before", BOB)):
            with pytest.raises(StoreError):
                await jobs.enqueue(queued("b", prev=wrong, owner=owner), b"{}", None, limit=MOST)
        assert await others.get(ALICE, "resp_b") is None and await claim(jobs) == []

    async def test_an_attempt_that_begins_anew_drops_what_was_sent_before(self, jobs: JobStore, peer: JobStore) -> None:
        await jobs.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
        await claim(jobs, seconds=0)
        await jobs.append(ONE, "resp_a", piece(2, 5))
        await jobs.append(ONE, "resp_a", piece(6, 7))
        (again,) = await claim(peer, TWO, seconds=0)
        assert again.last_event == 7
        assert await peer.append(TWO, "resp_a", piece(8, 9), restart=True) is True
        page = await jobs.events(ALICE, "resp_a", -1, 10)
        assert page is not None and page.pieces == (EVENTS, piece(8, 9))
        (third,) = await claim(jobs, ONE)
        assert (third.attempts, third.last_event) == (3, 9)
        assert await jobs.finish(ONE, finished("a"), piece(10, 12), restart=True) is True
        page = await jobs.events(ALICE, "resp_a", -1, 10)
        assert page is not None and page.pieces == (EVENTS, piece(10, 12))

    async def test_so_does_one_after_a_job_was_given_back(self, jobs: JobStore, peer: JobStore) -> None:
        """The job is still in its first attempt, but its earlier holder already wrote events."""
        await jobs.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
        await claim(jobs)
        await jobs.append(ONE, "resp_a", piece(2, 5), restart=True)
        await jobs.release(ONE, "resp_a")
        (again,) = await claim(peer, TWO)
        assert (again.attempts, again.last_event) == (1, 5)
        assert await peer.append(TWO, "resp_a", piece(6, 7), restart=True) is True
        assert await peer.append(TWO, "resp_a", piece(8, 8)) is True
        assert page_of(await jobs.events(ALICE, "resp_a", -1, 10)) == [(0, 1), (6, 7), (8, 8)]

    async def test_a_write_may_be_repeated_and_added_to(self, jobs: JobStore, peer: JobStore) -> None:
        await jobs.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
        await claim(jobs)
        for events in (piece(2, 5), piece(2, 5), piece(6, 7), piece(6, 9)):
            assert await jobs.append(ONE, "resp_a", events, restart=events.first == 2) is True
        assert page_of(await peer.events(ALICE, "resp_a", -1, 10)) == [(0, 1), (2, 5), (6, 9)]
        assert await jobs.finish(ONE, finished("a"), piece(6, 12)) is True
        assert page_of(await peer.events(ALICE, "resp_a", -1, 10)) == [(0, 1), (2, 5), (6, 12)]

    async def test_what_was_written_before_a_claim_is_known_to_it(self, jobs: JobStore, peer: JobStore) -> None:
        """A holder with an expired lease may write until another worker claims its job, and not after that."""
        await jobs.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
        await claim(jobs, seconds=0)
        number = 2

        async def write_on() -> None:
            nonlocal number
            while await jobs.append(ONE, "resp_a", piece(number, number)):
                number += 1
                await asyncio.sleep(0)

        writing = asyncio.ensure_future(write_on())
        while number < 5:
            await asyncio.sleep(0)
        # The claim may skip a job that its holder is writing to at this moment.
        while not (claimed := await claim(peer, TWO)):
            pass
        (taken,) = claimed
        await writing
        assert taken.last_event == number - 1
        assert await peer.append(TWO, "resp_a", piece(number, number + 2), restart=True) is True
        assert page_of(await jobs.events(ALICE, "resp_a", -1, 100)) == [(0, 1), (number, number + 2)]

    async def test_an_early_end_counts_once_and_only_for_what_was_seen(
        self, jobs: JobStore, peer: JobStore, others: ResponseStore
    ) -> None:
        await jobs.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
        await claim(jobs)
        await jobs.append(ONE, "resp_a", piece(2, 3))
        kept = (StoredItem("msg_1", "message", b'{"id":"msg_1"}'),)

        def ending(last: int, worker: str | None = None) -> JobEnd:
            return JobEnd(
                "resp_a", "cancelled", b'{"status":"cancelled"}', kept, last, piece(last + 1, last + 1), worker
            )

        assert await peer.end(ending(1)) is None
        assert await peer.end(ending(3, TWO)) is None
        assert await peer.end(ending(3)) == EndedJob("in_progress")
        assert await jobs.end(ending(4)) is None
        assert await jobs.finish(ONE, finished("a"), None) is False
        found = await others.get(ALICE, "resp_a")
        assert found is not None
        assert (found.status, found.body, found.output_items) == ("cancelled", b'{"status":"cancelled"}', kept)
        page = await jobs.events(ALICE, "resp_a", 3, 10)
        assert page is not None and (page.status, page.pieces) == ("cancelled", (piece(4, 4),))
        await jobs.enqueue(queued("b"), b"{}", None, limit=MOST)
        await claim(jobs)
        assert await jobs.end(JobEnd("resp_b", "failed", b"{}", (), -1, None, ONE)) is not None

    async def test_an_early_end_returns_the_status_and_the_request_of_a_queued_response(
        self, jobs: JobStore, peer: JobStore
    ) -> None:
        await jobs.enqueue(queued("a"), b'{"body":{"model":"m"}}', EVENTS, limit=MOST)
        ending = JobEnd("resp_a", "cancelled", b"{}", (), 1, None)
        assert await peer.end(ending) == EndedJob("queued", b'{"body":{"model":"m"}}')
        assert await peer.end(ending) is None
        await jobs.enqueue(queued("b"), b"{}", None, limit=MOST)
        await claim(jobs)
        await jobs.release(ONE, "resp_b")
        assert await peer.end(JobEnd("resp_b", "cancelled", b"{}", (), -1, None)) == EndedJob("in_progress")

    async def test_a_deleted_response_takes_its_job_along(
        self, jobs: JobStore, peer: JobStore, others: ResponseStore
    ) -> None:
        await jobs.enqueue(queued("a"), b"{}", EVENTS, limit=MOST)
        await claim(jobs)
        assert await others.delete(BOB, "resp_a") is False
        assert await others.delete(ALICE, "resp_a") is True
        assert await jobs.held(ONE) == frozenset()
        assert await jobs.append(ONE, "resp_a", piece(2, 2)) is False
        assert await jobs.finish(ONE, finished("a"), None) is False
        assert await peer.events(ALICE, "resp_a", -1, 10) is None
        assert await claim(peer, TWO) == []

    async def test_an_owner_has_so_many_and_no_more(self, jobs: JobStore, peer: JobStore) -> None:
        for name in ("a", "b"):
            await jobs.enqueue(queued(name), b"{}", None, limit=2)
        with pytest.raises(TooManyJobs) as refused:
            await jobs.enqueue(queued("c"), b"{}", None, limit=2)
        assert refused.value.status == 429 and refused.value.code == "rate_limit_exceeded"
        await jobs.enqueue(queued("d", owner=BOB), b"{}", None, limit=2)
        await claim(peer, TWO)
        await peer.finish(TWO, finished("a"), None)
        await jobs.enqueue(queued("c"), b"{}", None, limit=2)

    async def test_owners_take_turns(self, jobs: JobStore, peer: JobStore) -> None:
        for n in range(4):
            await jobs.enqueue(queued(f"a{n}"), b"{}", None, limit=MOST)
        for n in range(2):
            await jobs.enqueue(queued(f"b{n}", owner=BOB), b"{}", None, limit=MOST)
        first = await claim(jobs, ONE, limit=3, seconds=0)
        assert {job.response_id for job in first} == {"resp_a0", "resp_b0", "resp_a1"}
        # Jobs with an expired lease come before all others.
        gone = await claim(peer, TWO, limit=3)
        assert {(job.response_id, job.attempts) for job in gone} == {("resp_a0", 2), ("resp_b0", 2), ("resp_a1", 2)}
        # Now one owner has two running jobs, and the other owner has one.
        (second,) = await claim(jobs, "worker_three", limit=1)
        assert second.response_id == "resp_b1"

    async def test_a_job_is_left_for_who_can_run_it(self, jobs: JobStore, peer: JobStore) -> None:
        new = replace(queued("new"), created_at=time.time())
        await jobs.enqueue(new, b"{}", None, limit=MOST, needs=("a", "b"))
        await jobs.enqueue(replace(queued("plain"), created_at=time.time()), b"{}", None, limit=MOST)
        for able in ((), ("a",), ("b", "c")):
            taken = await peer.claim(TWO, 1000, 9, ["resp_plain"], able=able)
            assert taken == []
        (plain,) = await peer.claim(TWO, 0, 9, able=())
        assert plain.response_id == "resp_plain"
        # Jobs with an expired lease also go only to a worker that can run them.
        assert {job.response_id for job in await jobs.claim(ONE, 0, 9, able=("a", "b", "c"))} == {
            *("resp_plain", "resp_new")
        }
        assert await peer.claim(TWO, 1000, 9, ["resp_plain"], able=("b",)) == []
        assert {job.response_id for job in await peer.claim(TWO, 1000, 9)} == {"resp_plain", "resp_new"}

    async def test_one_that_nobody_can_run_is_taken_by_anybody_in_the_end(self, jobs: JobStore, peer: JobStore) -> None:
        """The claiming worker learns what its process lacks, so the job does not wait indefinitely."""
        await jobs.enqueue(queued("old"), b"{}", None, limit=MOST, needs=("a",))
        (taken,) = await peer.claim(TWO, 1000, 9, able=())
        assert taken.response_id == "resp_old"

    async def test_the_oldest_goes_first(self, jobs: JobStore, peer: JobStore) -> None:
        for name in ("a", "b", "c"):
            await jobs.enqueue(queued(name), b"{}", None, limit=MOST)
        taken = []
        for number, store in enumerate((jobs, peer, jobs)):
            taken += [job.response_id for job in await claim(store, f"worker_{number}", limit=1)]
        assert taken == ["resp_a", "resp_b", "resp_c"]
