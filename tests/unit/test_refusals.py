"""What finds no room: every one is counted, and a flood of them is a line now and then."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from antiphon.errors import AtCapacity
from antiphon.observability.metrics import Metrics
from antiphon.observability.refusals import Refusals


class _Loop:
    """Calls what was asked for when its time has come, and is told the time."""

    def __init__(self) -> None:
        self.now = 0.0
        self._later: list[tuple[float, Any]] = []

    def call_later(self, seconds: float, call: Any, *given: Any) -> asyncio.TimerHandle:
        entry = (self.now + seconds, lambda: call(*given))
        self._later.append(entry)
        later = self._later

        class _Timer:
            def cancel(self) -> None:
                later.remove(entry)

        return _Timer()  # type: ignore[return-value]

    def pass_on(self, seconds: float) -> None:
        self.now += seconds
        while due := [entry for entry in self._later if entry[0] <= self.now]:
            self._later.remove(due[0])
            due[0][1]()

    @property
    def idle(self) -> bool:
        return not self._later


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> _Loop:
    made = _Loop()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: made)
    return made


def test_a_flood_is_a_line_a_second(loop: _Loop) -> None:
    metrics = Metrics()
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
        loop.pass_on(0.9)
        assert not logs
        loop.pass_on(0.2)
        assert [line["refused"] for line in logs] == [999, 1000]
        assert "owner" not in logs[0] and (logs[1]["owner"], logs[1]["owners"]) == ("a" * 12, 2)
        # Nothing more came: no line, and nobody looks again.
        loop.pass_on(5.0)
        assert len(logs) == 2 and loop.idle
        refusals.note(whole)
        assert logs[-1]["refused"] == 1
        refusals.note(whole)
        refusals.close()
        assert logs[-1]["refused"] == 1 and len(logs) == 4 and loop.idle
    numbers = metrics.render().decode()
    assert 'antiphon_requests_refused_total{setting="limits.concurrent_requests"} 1002.0' in numbers
    assert 'antiphon_requests_refused_total{setting="limits.owner_requests"} 1001.0' in numbers
