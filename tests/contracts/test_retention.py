"""The contract tests of every `Retention`, on every state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.state import PageQuery
from antiphon.stores import Stores
from tests.contracts.job_contract import MOST, ONE, claim, finished, piece, queued
from tests.contracts.states import open_state
from tests.contracts.store_contract import ALICE, item, record

DAY = 86_400.0


@pytest.fixture
async def kept(state_url: str, tmp_path: Path) -> AsyncIterator[Stores]:
    """Stores with a retention of one day."""
    given = RetentionSettings(responses=DAY, conversations=DAY, events=DAY)
    async with aclosing(await open_state(state_url, tmp_path, kept=given)) as opened:
        yield opened


async def test_turns_are_taken_by_one(state: Stores, peers: Stores) -> None:
    taken = await asyncio.gather(
        *((state if number % 2 else peers).retention.take_turn("state", 600.0) for number in range(6))
    )
    assert sum(taken) == 1
    assert await peers.retention.take_turn("files", 0.0) and await state.retention.take_turn("files", 600.0)
    assert not await peers.retention.take_turn("files", 600.0)


async def test_what_is_kept_for_ever_stays(state: Stores) -> None:
    await state.responses.save(record("a"))
    assert await state.retention.sweep() == (0, 0, 0)
    assert await state.responses.get(ALICE, "resp_a") is not None


async def test_a_chain_goes_when_its_latest_response_is_old(kept: Stores) -> None:
    now = time.time()
    for name in ("a", "b"):
        await kept.responses.save(record(f"{name}0"))
    await kept.responses.save(replace(record("a1", prev="a0"), created_at=now, completed_at=now))
    assert await kept.retention.sweep() == (1, 0, 0)
    assert await kept.responses.load_chain(ALICE, "resp_a1") is not None
    assert await kept.responses.get(ALICE, "resp_b0") is None
    assert await kept.responses.load_items(ALICE, ("msg_b0_in0",)) == {}


async def test_a_response_that_runs_is_not_old_and_its_stream_goes_alone(kept: Stores) -> None:
    for name in ("runs", "ended"):
        await kept.background.enqueue(queued(name), b"{}", piece(0, 1), limit=MOST)
    assert len(await claim(kept.background)) == 2
    now = time.time()
    done = replace(finished("ended"), completed_at=now)
    assert await kept.background.finish(ONE, done, piece(2, 2))
    assert await kept.retention.sweep() == (0, 0, 1)
    page = await kept.background.events(ALICE, "resp_ended", -1, 10)
    assert page is not None and not page.pieces
    page = await kept.background.events(ALICE, "resp_runs", -1, 10)
    assert page is not None and page.pieces
    assert await kept.retention.sweep() == (0, 0, 0)


async def test_what_was_used_just_now_stays(kept: Stores) -> None:
    await kept.conversations.create(ALICE, "conv_a", b"{}", (item("msg_a"),))
    assert await kept.retention.sweep() == (0, 0, 0)
    assert (await kept.conversations.list(ALICE, PageQuery())).items
