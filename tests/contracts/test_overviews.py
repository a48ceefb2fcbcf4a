"""What the overviews of stored state show, on every state: at most so many rows, and only those of the owner."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from antiphon.stores import Stores
from tests.contracts.job_contract import EVENTS, queued
from tests.contracts.store_contract import ALICE, BOB, record


async def test_a_chain_shows_its_newest_500_responses_oldest_first(state: Stores) -> None:
    await state.responses.save(record("root"))
    later = [
        replace(record(f"n{number}", prev="root", inputs=1, outputs=0), created_at=1_700_000_001.0 + number)
        for number in range(501)
    ]
    for start in range(0, len(later), 50):
        await asyncio.gather(*[state.responses.save(one) for one in later[start : start + 50]])
    await state.responses.save(record("elsewhere"))
    shown = await state.responses.chain(ALICE, "resp_root")
    assert [one.id for one in shown] == [one.id for one in later[1:]]
    assert {one.previous_id for one in shown} == {"resp_root"}
    assert await state.responses.chain(BOB, "resp_root") == ()


async def test_the_queue_shows_its_oldest_200_responses_and_the_number_of_all(state: Stores) -> None:
    for number in range(201):
        one = replace(queued(f"n{number}"), created_at=1_700_000_000.0 + number)
        await state.background.enqueue(one, b"{}", EVENTS, limit=1000)
    await state.background.enqueue(queued("of_bob", owner=BOB), b"{}", EVENTS, limit=1000)
    shown, total = await state.background.queued(ALICE)
    assert ([one.response_id for one in shown], total) == ([f"resp_n{number}" for number in range(200)], 201)
    assert {one.owner for one in shown} == {ALICE}
    assert {one.attempts for one in shown} == {0} and not any(one.held for one in shown)
    assert {one.lease for one in shown} == {0}
    assert (await state.background.queued())[1] == 202


async def test_the_queue_shows_how_long_a_lease_lasts(state: Stores) -> None:
    await state.background.enqueue(queued("one"), b"{}", EVENTS, limit=1000)
    await state.background.claim("worker", 60.0, 1)
    ((one,), _) = await state.background.queued(ALICE)
    assert one.held and 0 < one.lease <= 60
