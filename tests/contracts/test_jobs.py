"""Runs the contract of jobs on every state, and tests jobs together with conversations."""

from __future__ import annotations

from dataclasses import replace

import pytest

from antiphon.engine.ports.actions import StoredItem
from antiphon.engine.ports.jobs import JobEnd
from antiphon.errors import ConversationLocked
from antiphon.stores import Stores
from antiphon.stores.jobs import JobStore
from antiphon.stores.responses import ResponseStore
from tests.contracts.job_contract import MOST, ONE, JobStoreContract, claim, finished, queued
from tests.contracts.store_contract import ALICE, ids


class TestJobs(JobStoreContract):
    @pytest.fixture
    def jobs(self, state: Stores) -> JobStore:
        return state.background

    @pytest.fixture
    def peer(self, peers: Stores) -> JobStore:
        return peers.background

    @pytest.fixture
    def responses(self, state: Stores) -> ResponseStore:
        return state.responses

    @pytest.fixture
    def others(self, peers: Stores) -> ResponseStore:
        return peers.responses


async def test_a_conversation_gets_the_turn_when_it_is_over(state: Stores) -> None:
    conversations, jobs = state.conversations, state.background
    await conversations.create(ALICE, "conv_1", b"{}", [StoredItem("msg_0", "message", b"{}")])
    for name, ends in (("a", True), ("b", False)):
        holder = f"resp_{name}"
        assert await conversations.load(ALICE, "conv_1", holder=holder, seconds=60) is not None
        waiting = queued(name)
        await jobs.enqueue(replace(waiting, conversation_id="conv_1"), b"{}", None, limit=MOST)
        await claim(jobs)
        done = replace(finished(name), conversation_id="conv_1")
        assert await jobs.finish(ONE, done if ends else replace(done, status="failed"), None) is True
        # The next response can lock the conversation.
        loaded = await conversations.load(ALICE, "conv_1", holder="resp_next", seconds=60)
        assert loaded is not None
        assert ids(loaded) == ["msg_0", "msg_a_in0", "msg_a_in1", "msg_a_out0"]
        await conversations.release("resp_next")


async def test_a_turn_goes_on_from_its_own_conversation(state: Stores) -> None:
    """A response continues its own conversation, whatever other conversations its owner has."""
    conversations, jobs = state.conversations, state.background
    for name, count in (("conv_1", 1), ("conv_2", 3)):
        items = [StoredItem(f"msg_{name}_{n}", "message", b"{}") for n in range(count)]
        await conversations.create(ALICE, name, b"{}", items)
    await conversations.load(ALICE, "conv_2", holder="resp_a", seconds=60)
    await jobs.enqueue(replace(queued("a"), conversation_id="conv_2"), b"{}", None, limit=MOST)
    await claim(jobs)
    assert await jobs.finish(ONE, replace(finished("a"), conversation_id="conv_2"), None) is True
    chain = await state.responses.load_chain(ALICE, "resp_a")
    assert chain is not None
    assert ids(chain.items) == [*(f"msg_conv_2_{n}" for n in range(3)), "msg_a_in0", "msg_a_in1", "msg_a_out0"]


async def test_a_job_keeps_its_conversation_though_the_lock_ran_out(state: Stores) -> None:
    conversations, jobs = state.conversations, state.background
    await conversations.create(ALICE, "conv_1", b"{}")
    assert await conversations.load(ALICE, "conv_1", holder="resp_a", seconds=0.0) == ()
    await jobs.enqueue(replace(queued("a"), conversation_id="conv_1"), b"{}", None, limit=MOST)
    with pytest.raises(ConversationLocked):
        await conversations.load(ALICE, "conv_1", holder="resp_b", seconds=60)
    with pytest.raises(ConversationLocked):
        await conversations.delete(ALICE, "conv_1")
    assert await jobs.end(JobEnd("resp_a", "cancelled", b"{}", (), -1, None))
    assert await conversations.load(ALICE, "conv_1", holder="resp_b", seconds=60) == ()


async def test_a_lock_that_was_taken_too_late_is_given_back(state: Stores) -> None:
    conversations, jobs = state.conversations, state.background
    await conversations.create(ALICE, "conv_1", b"{}")
    await jobs.enqueue(replace(queued("a"), conversation_id="conv_1"), b"{}", None, limit=MOST)
    await claim(jobs)
    await conversations.load(ALICE, "conv_1", holder="resp_a", seconds=60)
    await jobs.unlock("resp_a")
    with pytest.raises(ConversationLocked):  # The response has a job, so it keeps the lock.
        await conversations.load(ALICE, "conv_1", holder="resp_b", seconds=60)
    await jobs.end(JobEnd("resp_a", "cancelled", b"{}", (), -1, None))
    with pytest.raises(ConversationLocked):  # The response has ended, so it cannot lock again.
        await conversations.load(ALICE, "conv_1", holder="resp_a", seconds=60)
    assert await state.responses.delete(ALICE, "resp_a")
    await conversations.load(ALICE, "conv_1", holder="resp_a", seconds=60)
    await jobs.unlock("resp_a")
    assert await conversations.load(ALICE, "conv_1", holder="resp_b", seconds=60) == ()
