"""The parts of pages that take long: a loaded page shows no old result, and a failed computation is not repeated."""

from __future__ import annotations

import asyncio

import pytest

from antiphon.api.http import ApiRequest
from antiphon.console.sessions import Session
from antiphon.console.site import PageCall
from antiphon.console.slow_parts import SlowPart


class Numbers:
    """A computation that returns how often it ran."""

    def __init__(self) -> None:
        self.runs = 0
        self.error: Exception | None = None

    async def compute(self) -> int:
        self.runs += 1
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        return self.runs


def call(query: str = "") -> PageCall:
    request = ApiRequest("GET", "/console/system", ((query, "1"),) if query else ())
    return PageCall(request, Session("session_1", "operator", ends=1e12), csrf="", may_act=True)


@pytest.mark.parametrize("query", ["", "whole"])
async def test_a_loaded_page_shows_no_old_result_and_its_part_repeats_none(query: str) -> None:
    part, numbers = SlowPart[int](asyncio.Lock(), seconds=5.0), Numbers()
    assert await part.shown(call(query), "", numbers.compute) == 1
    assert await part.whole("", numbers.compute) == 1, "the part of a loaded page takes the page's result"
    assert await part.shown(call(query), "", numbers.compute) == 2
    both = await asyncio.gather(*(part.shown(call(query), "", numbers.compute) for _ in range(2)))
    assert both == [3, 3], "pages share a running computation"


@pytest.mark.parametrize("query", ["", "whole"])
async def test_a_failed_computation_starts_again(query: str) -> None:
    part, numbers = SlowPart[int](asyncio.Lock(), seconds=5.0), Numbers()
    numbers.error = ValueError("the database is locked")
    with pytest.raises(ValueError, match="locked"):
        await part.shown(call(query), "", numbers.compute)
    numbers.error = None
    assert await part.whole("", numbers.compute) == 2
    assert await part.shown(call(query), "", numbers.compute) == 3
