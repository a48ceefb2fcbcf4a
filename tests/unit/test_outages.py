"""Which failures of an outage leave a line."""

from __future__ import annotations

import pytest
import structlog
from structlog.testing import capture_logs

from antiphon.api.router import ReadyProbe
from antiphon.errors import StoreError
from antiphon.observability.repeated_failures import Outage


def test_an_outage_is_two_lines_however_often_it_is_met() -> None:
    now = 100.0
    outage = Outage(structlog.get_logger(), "lost", "found", clock=lambda: now)
    with capture_logs() as lines:
        outage.recovered()
        for now in (100.0, 101.0, 102.5):
            outage.failed(error=f"at {now}")
        now = 104.0
        outage.recovered(rows=3)
        outage.recovered()
        outage.failed(error="another")
    assert lines == [
        {"event": "lost", "log_level": "warning", "error": "at 100.0"},
        {"event": "found", "log_level": "info", "seconds": 4.0, "failures": 3, "rows": 3},
        {"event": "lost", "log_level": "warning", "error": "another"},
    ]


def test_each_kind_is_told_once_and_what_nobody_asked_about_for_long_is_another_outage() -> None:
    now = 0.0
    outage = Outage(structlog.get_logger(), "lost", "found", clock=lambda: now)
    with capture_logs() as lines:
        for kind in ("a", "b", "a", "b"):
            outage.failed(kind=kind, why=kind)
        now = 601.0
        outage.failed(kind="a", why="later")
        now = 602.0
        outage.recovered()
    assert [line.get("why") for line in lines] == ["a", "b", "later", None]
    assert (lines[-1]["seconds"], lines[-1]["failures"]) == (1.0, 1)


def test_how_long_it_lasts_is_told_up_to_the_last_try() -> None:
    now = 100.0
    outage = Outage(structlog.get_logger(), "lost", "found", clock=lambda: now)
    for now in (100.0, 110.0, 130.0):
        outage.failed()
        assert outage.seconds == now - 100.0
    now = 200.0
    assert outage.seconds == 30.0
    now = 731.0
    assert outage.seconds == 0, "nobody has asked for long"
    outage.failed()
    now = 732.0
    outage.failed()
    assert outage.seconds == 1.0
    outage.recovered()
    assert outage.seconds == 0


async def test_a_readiness_that_flaps_between_reasons_tells_each_once() -> None:
    failures: list[StoreError | None] = [
        *(StoreError("slow", reason="slow"), StoreError("away", reason="unavailable")) * 3,
        None,
        StoreError("slow", reason="slow"),
    ]

    async def check() -> None:
        if (failure := failures.pop(0)) is not None:
            raise failure

    probe = ReadyProbe(check)
    with capture_logs() as lines:
        statuses = [(await probe.answer()).status for _ in range(len(failures))]
    assert statuses == [503] * 6 + [200, 503]
    assert [line["event"] for line in lines] == ["not_ready", "not_ready", "ready_again", "not_ready"]
    assert probe.not_ready_seconds == 0
    assert lines[2]["failures"] == 6 and [lines[at]["cause"] for at in (0, 1, 3)] == ["slow", "away", "slow"]


@pytest.mark.parametrize(("later", "lines"), [(600.0, 1), (600.1, 2)])
def test_ten_minutes_without_an_attempt_end_an_outage(later: float, lines: int) -> None:
    now = 100.0
    outage = Outage(structlog.get_logger(), "lost", "found", clock=lambda: now)
    with capture_logs() as told:
        outage.failed()
        now += later
        assert outage.seconds == 0
        outage.failed()
    assert len(told) == lines
    assert outage.seconds == (later if lines == 1 else 0)
