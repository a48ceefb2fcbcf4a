"""The level of a response's one line: an operator sees every failure that is not known to be its client's doing."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture, capture_logs

from antiphon.engine.exchange.failure import Failure, Fault
from antiphon.observability.logs import configure
from antiphon.observability.outcome import write_outcome


@pytest.mark.parametrize(
    ("fault", "code", "level"),
    [
        ("upstream", "upstream_cut", "warning"),
        ("ours", "storage_failed", "warning"),
        ("unknown", "upstream_timeout", "warning"),
        ("unknown", "connection_ended", "info"),
        ("cancelled", "client_gone", "info"),
        ("client", "invalid_value", "info"),
    ],
)
def test_whose_fault_decides(fault: Fault, code: str, level: str) -> None:
    failure = Failure(fault, "a cause", 200, code, "read_answer", "default", 200)
    with capture_logs() as lines:
        write_outcome(structlog.get_logger(), "response", failure, 1.0, {"outcome": "failed"})
    (line,) = lines
    assert line["log_level"] == level
    assert ("advice" in line) is (fault in ("upstream", "ours"))
    told = ("a cause", 200, "read_answer", "default", fault)
    assert tuple(line[name] for name in ("cause", "status", "operation", "upstream", "fault")) == told


@pytest.mark.parametrize(("outcome", "level"), [("failed", "warning"), ("error", "warning"), ("completed", "info")])
def test_a_failure_that_nobody_noted_is_seen_all_the_same(outcome: str, level: str) -> None:
    with capture_logs() as lines:
        write_outcome(structlog.get_logger(), "response", None, 1.0, {"outcome": outcome})
    (line,) = lines
    assert line["log_level"] == level
    assert line.get("cause", "") == ("no cause was recorded" if level == "warning" else "")


def test_whoever_takes_structlogs_place_gets_these_lines_too(logging_as_before: None) -> None:
    configure("info", "json")
    with capture_logs() as lines:
        write_outcome(structlog.get_logger("a"), "response", None, 1.0, {})
    assert [line["event"] for line in lines] == ["response"]
    other = LogCapture()
    structlog.configure(processors=[other], cache_logger_on_first_use=False)
    write_outcome(structlog.get_logger("b"), "response", None, 1.0, {})
    assert [line["event"] for line in other.entries] == ["response"]


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_line_below_the_level_is_none(form: Any, capsys: pytest.CaptureFixture[str], logging_as_before: None) -> None:
    configure("warning", form)
    write_outcome(structlog.get_logger("a"), "response", None, 1.0, {})
    assert not capsys.readouterr().err
    write_outcome(structlog.get_logger("a"), "response", None, 1.0, {"ignored": ("a",)}, warn=True)
    assert "ignored" in capsys.readouterr().err
