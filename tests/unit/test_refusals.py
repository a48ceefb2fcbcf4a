"""What finds no room: every one is counted, and a flood of them is a line now and then."""

from __future__ import annotations

import asyncio

import structlog

from antiphon.errors import AtCapacity
from antiphon.observability.metrics import Metrics
from antiphon.observability.repeated_failures import Refusals
from tests.support.fake_time import FakeTimeLoop, in_fake_time


def test_a_flood_is_a_line_a_second() -> None:
    in_fake_time(_flood())


async def _flood() -> None:
    metrics, loop = Metrics(), asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    refusals = Refusals(metrics.refused.add)
    whole = AtCapacity("all is taken", "limits.concurrent_requests")
    one = AtCapacity("your share is taken", "limits.owner_requests", owner="a" * 64)
    other = AtCapacity("your share is taken", "limits.owner_requests", owner="b" * 64)
    with structlog.testing.capture_logs() as logs:
        for _ in range(1_000):
            refusals.note(whole)
            refusals.note(one)
        refusals.note(other)
        first = {line["setting"]: line for line in logs}
        assert len(logs) == 2 and all(line["refused"] == 1 for line in logs)
        told = first["limits.concurrent_requests"]
        assert (told["event"], told["log_level"]) == ("requests_refused", "warning")
        assert (told["fault"], told["cause"], told["status"]) == ("ours", "all is taken", 503)
        told = first["limits.owner_requests"]
        assert (told["log_level"], told["fault"], told["status"]) == ("info", "client", 429)
        assert (told["owner"], told["owners"]) == ("a" * 12, 1)
        logs.clear()
        await asyncio.sleep(0.9)
        assert not logs
        await asyncio.sleep(0.2)
        logs.sort(key=lambda line: int(line["refused"]))
        assert [line["refused"] for line in logs] == [999, 1000]
        assert "owner" not in logs[0] and (logs[1]["owner"], logs[1]["owners"]) == ("a" * 12, 2)
        # Nothing more came: no line, and nobody looks again.
        await asyncio.sleep(5.0)
        assert len(logs) == 2 and not loop.timers
        refusals.note(whole)
        assert logs[-1]["refused"] == 1
        refusals.note(whole)
        refusals.close()
        assert logs[-1]["refused"] == 1 and len(logs) == 4 and not loop.timers
    numbers = metrics.render().decode()
    assert 'antiphon_requests_refused_total{setting="limits.concurrent_requests"} 1002.0' in numbers
    assert 'antiphon_requests_refused_total{setting="limits.owner_requests"} 1001.0' in numbers
