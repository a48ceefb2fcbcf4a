"""What is in flight, by kind, and what of it ended while the process leaves."""

from __future__ import annotations

import asyncio

from antiphon.doors.context import Admission
from antiphon.engine.exchange.budget import Budget


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
