"""The job contract on SQLite: one store, two on one file, and a second one in another process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.jobs import JobEnd, JobStore
from antiphon.engine.ports.state import ResponseStore
from antiphon.errors import ConversationLocked
from antiphon.stores.sqlite.opening import SqliteStores
from tests.contracts.job_contract import MOST, ONE, JobStoreContract, claim, finished, queued
from tests.contracts.store_contract import ALICE, ids
from tests.contracts.store_process import ProcessPart, ProcessStore, StoreProcess


class _OnSqlite(JobStoreContract):
    @pytest.fixture
    def jobs(self, stores: SqliteStores) -> JobStore:
        return stores.background

    @pytest.fixture
    def responses(self, stores: SqliteStores) -> ResponseStore:
        return stores.responses


class TestSqliteJobs(_OnSqlite):
    @pytest.fixture
    def peer(self, jobs: JobStore) -> JobStore:
        return jobs

    @pytest.fixture
    def others(self, responses: ResponseStore) -> ResponseStore:
        return responses

    async def test_a_conversation_gets_the_turn_when_it_is_over(self, stores: SqliteStores, jobs: JobStore) -> None:
        conversations = stores.conversations
        await conversations.create(ALICE, "conv_1", b"{}", [StoredItem("msg_0", "message", b"{}")])
        for name, ends in (("a", True), ("b", False)):
            holder = f"resp_{name}"
            assert await conversations.load(ALICE, "conv_1", holder=holder, seconds=60) is not None
            waiting = queued(name)
            await jobs.enqueue(replace(waiting, conversation_id="conv_1"), b"{}", None, limit=MOST)
            await claim(jobs)
            done = replace(finished(name), conversation_id="conv_1")
            assert await jobs.finish(ONE, done if ends else replace(done, status="failed"), None) is True
            # Whoever comes next finds the conversation free.
            loaded = await conversations.load(ALICE, "conv_1", holder="resp_next", seconds=60)
            assert loaded is not None
            assert ids(loaded) == ["msg_0", "msg_a_in0", "msg_a_in1", "msg_a_out0"]
            await conversations.release("resp_next")

    async def test_a_job_keeps_its_conversation_though_the_lock_ran_out(
        self, stores: SqliteStores, jobs: JobStore
    ) -> None:
        conversations = stores.conversations
        await conversations.create(ALICE, "conv_1", b"{}")
        assert await conversations.load(ALICE, "conv_1", holder="resp_a", seconds=0.0) == ()
        await jobs.enqueue(replace(queued("a"), conversation_id="conv_1"), b"{}", None, limit=MOST)
        with pytest.raises(ConversationLocked):
            await conversations.load(ALICE, "conv_1", holder="resp_b", seconds=60)
        with pytest.raises(ConversationLocked):
            await conversations.delete(ALICE, "conv_1")
        assert await jobs.end(JobEnd("resp_a", "cancelled", b"{}", (), -1, None))
        assert await conversations.load(ALICE, "conv_1", holder="resp_b", seconds=60) == ()

    async def test_a_lock_that_was_taken_too_late_is_given_back(self, stores: SqliteStores, jobs: JobStore) -> None:
        conversations = stores.conversations
        await conversations.create(ALICE, "conv_1", b"{}")
        await jobs.enqueue(replace(queued("a"), conversation_id="conv_1"), b"{}", None, limit=MOST)
        await claim(jobs)
        await conversations.load(ALICE, "conv_1", holder="resp_a", seconds=60)
        await jobs.unlock("resp_a")
        with pytest.raises(ConversationLocked):  # its job is there, so it keeps it
            await conversations.load(ALICE, "conv_1", holder="resp_b", seconds=60)
        await jobs.end(JobEnd("resp_a", "cancelled", b"{}", (), -1, None))
        with pytest.raises(ConversationLocked):  # it is over, so it gets nothing any more
            await conversations.load(ALICE, "conv_1", holder="resp_a", seconds=60)
        assert await stores.responses.delete(ALICE, "resp_a")
        await conversations.load(ALICE, "conv_1", holder="resp_a", seconds=60)
        await jobs.unlock("resp_a")
        assert await conversations.load(ALICE, "conv_1", holder="resp_b", seconds=60) == ()


class TestTwoSqliteStoresOfJobs(_OnSqlite):
    @pytest.fixture
    def peer(self, other_stores: SqliteStores) -> JobStore:
        return other_stores.background

    @pytest.fixture
    def others(self, other_stores: SqliteStores) -> ResponseStore:
        return other_stores.responses


class TestSqliteJobsInTwoProcesses(_OnSqlite):
    @pytest.fixture
    def peer(self, open_process: StoreProcess) -> ProcessPart:
        return ProcessPart(open_process, "background")

    @pytest.fixture
    def others(self, peer: ProcessPart, process: StoreProcess) -> ResponseStore:
        return ProcessStore(process)
