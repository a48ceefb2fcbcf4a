"""What is in flight, by kind, and what of it ended while the process leaves."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from antiphon.doors.context import Admission
from antiphon.engine.exchange.budget import Budget
from antiphon.errors import AtCapacity, Unavailable


async def test_a_drain_counts_what_ends_and_what_is_left() -> None:
    admission = Admission(Budget(10, "limits.concurrent_requests", unit="requests"))
    with admission.admit("o", "response"):
        pass
    with admission.admit("o", "response"), admission.admit("o", "background"):
        first = admission.admit("o", "websocket")
        job = admission.admit("o", "background")
        first.__enter__()
        job.__enter__()
        assert admission.in_flight == {"response": 1, "websocket": 1, "background": 2} and not admission.ended
        draining = asyncio.ensure_future(admission.drain(60, 0))
        await asyncio.sleep(0)
        first.__exit__(None, None, None)
        assert dict(admission.ended) == {"websocket": 1}
        admission.gives_back = True
        job.__exit__(None, None, None)
        assert dict(admission.ended) == {"websocket": 1, "given_back": 1}
        assert admission.in_flight == {"response": 1, "background": 1} and not draining.done()
    assert await draining and admission.in_flight == {} and admission.active == 0
    assert dict(admission.ended) == {"websocket": 1, "given_back": 2, "response": 1}


def _admission(places: int = 10) -> Admission:
    return Admission(Budget(places, "limits.concurrent_requests", unit="requests"))


async def test_one_place_is_one_request_and_comes_back() -> None:
    admission = _admission(1)
    for _ in range(2):
        with admission.admit("o"):
            assert admission.active == 1 and admission.in_flight == {"request": 1}
            with pytest.raises(AtCapacity), admission.admit("o"):
                pass
        assert admission.active == 0 and admission.in_flight == {}
    assert not admission.ended, "it does not leave"


async def test_who_leaves_admits_nobody_and_tells_those_who_wait_for_it_once() -> None:
    admission, told = _admission(), []
    stays, goes = (lambda: told.append("stays")), (lambda: told.append("goes"))
    admission.on_close |= {stays, goes}
    admission.on_close.discard(goes)
    assert not admission.leaving and not admission.closed
    admission.close()
    assert admission.leaving and admission.closed and told == ["stays"]
    with pytest.raises(Unavailable) as refused, admission.admit("o"):
        pass
    assert refused.value.code == "shutting_down" and ("retry-after", "1") in refused.value.headers
    assert ("connection", "close") in refused.value.headers and admission.active == 0


async def test_who_leaves_says_so_once_whether_there_is_a_notice_or_not() -> None:
    for leave in (Admission.leave, Admission.close):
        admission = _admission()
        told: list[str] = []
        admission.on_leave.add(partial(told.append, "leaves"))
        admission.on_close.add(partial(told.append, "closes"))
        leave(admission)
        admission.close()
        assert told[:2] == ["leaves", "closes"] and told.count("leaves") == 1


async def test_during_the_notice_requests_are_admitted_and_the_time_is_one() -> None:
    admission = _admission()
    draining = asyncio.ensure_future(admission.drain(0.02, 60))
    await asyncio.sleep(0)
    assert admission.leaving and not admission.closed
    request = admission.admit("o")
    request.__enter__()
    # The notice is part of the time: there is none left for what is in flight.
    assert await draining is False and admission.closed
    request.__exit__(None, None, None)
    assert await admission.drained(60) and await admission.drain(0, 0)


async def test_what_is_in_flight_is_waited_for_so_long() -> None:
    admission = _admission()
    with admission.admit("o"):
        assert await admission.drained(0.001) is False
    assert await admission.drained(60)
    with admission.admit("o"), admission.admit("o"):
        waiting = asyncio.ensure_future(admission.drained(60))
        await asyncio.sleep(0)
        assert not waiting.done()
    assert await waiting


async def test_a_job_that_ends_while_the_process_leaves_is_given_back_only_where_that_is_so() -> None:
    admission = _admission()
    admission.close()
    for gives_back, ended in ((False, {"background": 1}), (True, {"background": 1, "given_back": 1})):
        place = Budget(1, "limits.concurrent_requests").hold("")
        place.add(1)
        if gives_back:
            admission.gives_back = True
        admission.end(place, "background")
        assert dict(admission.ended) == ended
