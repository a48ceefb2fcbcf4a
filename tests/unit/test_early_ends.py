"""Envoy's word on who ended a relayed stream: waited for, heard before, for somebody else, never said."""

from __future__ import annotations

import asyncio
import json
import socket
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.api.router import unknown_url
from antiphon.config.settings import Settings
from antiphon.engine.ports.actions import CancelReason, RequestHead
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.journal import REFUSED
from antiphon.observability.endings import EarlyEnd, EarlyEnds
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Telemetry
from antiphon.supervisor.child_output import ChildOutput
from antiphon.supervisor.envoy_reports import take_early_end, take_unknown_path
from antiphon.supervisor.worker_orders import (
    PATH_UNKNOWN,
    STREAM_ENDED,
    Obey,
    Orders,
    pass_on_early_end,
    pass_on_line,
    take_orders,
)
from tests.support.exchanges import SSE, make_exchange
from tests.support.fake_time import in_fake_time
from tests.support.journal import Noted
from tests.support.metrics import value_of

LEFT = EarlyEnd(client_left=True, details="downstream_remote_disconnect", status=200)
BROKEN = EarlyEnd(client_left=False, details="upstream_reset_after_response_started{remote_reset}", status=200)
LINE = {
    "message": "stream_ended_early",
    "fault": "cancelled",
    "details": "downstream_remote_disconnect",
    "status": 200,
    "request_id": "req_1",
}


def _listening() -> EarlyEnds:
    ends = EarlyEnds()
    ends.listen(asyncio.get_running_loop())
    return ends


def test_where_nobody_is_heard_nobody_waits() -> None:
    ends, told = EarlyEnds(), list[EarlyEnd | None]()
    ends.hear("req_1", LEFT)
    ends.ask("req_1", told.append)
    assert told == [None]


def test_a_word_is_for_its_request_whether_it_comes_before_or_after() -> None:
    async def work() -> None:
        ends, told = _listening(), list[EarlyEnd | None]()
        ends.ask("req_1", told.append)
        ends.hear("req_2", BROKEN)
        assert told == []
        ends.hear("req_1", LEFT)
        assert told == [LEFT]
        ends.ask("req_2", told.append)
        assert told == [LEFT, BROKEN]
        # It was for that one request.
        ends.ask("req_2", told.append)
        await asyncio.sleep(10)
        assert told == [LEFT, BROKEN, None]

    in_fake_time(work())


def test_requests_of_one_id_are_answered_in_order() -> None:
    async def work() -> None:
        ends, told = _listening(), list[tuple[str, EarlyEnd | None]]()
        ends.ask("req_1", lambda end: told.append(("first", end)))
        ends.ask("req_1", lambda end: told.append(("second", end)))
        ends.hear("req_1", LEFT)
        ends.hear("req_1", BROKEN)
        assert told == [("first", LEFT), ("second", BROKEN)]

    in_fake_time(work())


def test_a_word_that_nobody_asks_for_is_forgotten() -> None:
    async def work() -> None:
        ends, told = _listening(), list[EarlyEnd | None]()
        ends.hear("req_old", LEFT)
        await asyncio.sleep(10)
        ends.ask("req_old", told.append)
        for number in range(5000):
            ends.hear(f"req_{number}", LEFT)
        ends.ask("req_0", told.append)
        assert told == []
        ends.close()
        assert told == [None, None]
        ends.ask("req_4999", told.append)
        assert told == [None, None, None]

    in_fake_time(work())


@pytest.mark.parametrize(
    ("end", "status", "outcome", "fault", "code", "level"),
    [
        (LEFT, "cancelled", "cancelled", "cancelled", "client_gone", "info"),
        (BROKEN, "cut", "failed", "upstream", "upstream_cut", "warning"),
        (EarlyEnd(BROKEN.client_left, BROKEN.details, 502), "cut", "error", "upstream", "upstream_cut", "warning"),
        (None, "cancelled", "cancelled", "unknown", "connection_ended", "info"),
    ],
)
def test_the_line_and_the_metrics_are_of_envoys_word(
    end: EarlyEnd | None, status: str, outcome: str, fault: str, code: str, level: str
) -> None:
    async def work() -> None:
        telemetry = Telemetry(Metrics())
        telemetry.endings.early.listen(asyncio.get_running_loop())
        observed, exchange = telemetry.observe("relay", "req_1", Caller("owner")), make_exchange()
        observed.call_began("default", "responses", "m", b"{}")
        observed.head_came("default", 200)
        exchange.cancel(CancelReason.CONNECTION_ENDED)
        with capture_logs() as lines:
            observed.end(exchange, "cancelled")
            assert lines == []
            if end is not None:
                telemetry.endings.early.hear("req_1", end)
            await asyncio.sleep(10)
        (line,) = lines
        told = {"outcome": outcome, "fault": fault, "code": code, "log_level": level}
        assert told.items() <= line.items()
        assert line.get("status", 0) == (end.status if end is not None else 0)
        assert line["seconds"] < 5
        counted = telemetry.metrics.render().decode()
        assert value_of(counted, "responses_total", outcome=outcome, door="relay", fault=fault) == 1
        assert value_of(counted, "antiphon_response_failures_total", fault=fault, code=code) == 1
        assert value_of(counted, "antiphon_upstream_requests_total", status=status) == 1
        assert value_of(counted, "antiphon_responses_in_flight") == 0

    in_fake_time(work())


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [(LEFT, "cancelled", "client_gone"), (BROKEN, "cut", "upstream_cut"), (None, "cancelled", "connection_ended")],
)
def test_the_call_counts_for_the_reason_of_its_response(end: EarlyEnd | None, status: str, code: str) -> None:
    async def work() -> None:
        telemetry = Telemetry(Metrics())
        telemetry.endings.early.listen(asyncio.get_running_loop())
        observed, exchange = telemetry.observe("relay", "req_1", Caller("owner")), make_exchange()
        exchange.observe(observed)
        body = b'{"model":"m","input":"hi","stream":true,"store":false}'
        exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
        exchange.actions()
        exchange.receive_upstream_head(200, SSE)
        exchange.cancel(CancelReason.CONNECTION_ENDED)
        exchange.actions()
        assert exchange.done
        observed.end(exchange, "cancelled")
        if end is not None:
            telemetry.endings.early.hear("req_1", end)
        await asyncio.sleep(10)
        counted = telemetry.metrics.render().decode()
        assert value_of(counted, "antiphon_upstream_requests_total") == 1
        assert value_of(counted, "antiphon_upstream_requests_total", status=status) == 1
        assert value_of(counted, "antiphon_response_failures_total", code=code) == 1

    in_fake_time(work())


async def test_a_line_of_envoys_reaches_the_sidecars_and_is_printed_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders, ends, told = Orders(), _listening(), asyncio.Queue[EarlyEnd | None]()
    own = socket.socket(fileno=orders.theirs.detach())
    others: list[dict[str, Any]] = []

    obey: Obey = {STREAM_ENDED: partial(take_early_end, ends), "next": others.append}
    worker = asyncio.ensure_future(take_orders(own, obey))
    ends.ask("req_1", told.put_nowait)
    ends.ask("req_2", told.put_nowait)
    assert pass_on_early_end(json.dumps(LINE), [orders])
    async with asyncio.timeout(30):
        assert await told.get() == LEFT
    # Beside orders that are answered, and before and after the first of them.
    await orders.give("next", 30)
    broken = {**LINE, "request_id": "req_2", "fault": "upstream", "details": BROKEN.details}
    assert pass_on_early_end(json.dumps(broken), [orders])
    async with asyncio.timeout(30):
        assert await told.get() == BROKEN
    assert [order["do"] for order in others] == ["next"]
    worker.cancel()
    await asyncio.wait({worker})
    orders.close()
    # A worker that has gone keeps nobody waiting.
    assert pass_on_early_end(json.dumps(LINE), [orders])


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"message": "request", "request_id": "stream_ended_early"}),
        json.dumps({**LINE, "fault": "unknown"}),
        '{"message":"stream_ended_early"}',
        'no json "stream_ended_early"',
    ],
)
def test_other_lines_stay_what_they_are(line: str) -> None:
    assert not pass_on_early_end(line, [])


def test_only_envoy_is_heard(capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []

    def hear(line: str) -> bool:
        heard.append(line)
        return True

    output = ChildOutput(Settings.model_validate({"upstream": {"url": "http://x/v1"}}), hear)
    for name in ("sidecar 0", "envoy"):
        output.take(name, json.dumps(LINE))
    assert heard == [json.dumps(LINE)]


@pytest.mark.parametrize(("seconds", "told"), [(1.9, []), (2.0, [None])])
def test_envoys_word_is_waited_for_two_seconds(seconds: float, told: list[EarlyEnd | None]) -> None:
    async def work() -> None:
        ends, found = _listening(), list[EarlyEnd | None]()
        ends.ask("req_1", found.append)
        await asyncio.sleep(seconds)
        await asyncio.sleep(0)
        assert found == told
        ends.close()
        assert found == [None]

    in_fake_time(work())


@pytest.mark.parametrize(("seconds", "told"), [(1.9, [LEFT]), (2.0, [])])
def test_a_word_that_came_first_is_good_for_two_seconds(seconds: float, told: list[EarlyEnd | None]) -> None:
    async def work() -> None:
        ends, found = _listening(), list[EarlyEnd | None]()
        ends.hear("req_1", LEFT)
        await asyncio.sleep(seconds)
        ends.ask("req_1", found.append)
        assert found == told

    in_fake_time(work())


def test_of_the_words_that_nobody_asked_for_a_thousand_are_kept() -> None:
    async def work() -> None:
        ends = _listening()
        for number in range(1001):
            ends.hear(f"req_{number}", LEFT)
        # One that comes again is the newest.
        ends.hear("req_1", BROKEN)
        ends.hear("req_new", LEFT)
        for name, expected in (("req_0", []), ("req_1", [BROKEN]), ("req_2", []), ("req_3", [LEFT])):
            found: list[EarlyEnd | None] = []
            ends.ask(name, found.append)
            assert found == expected, name

    in_fake_time(work())


def test_one_sidecar_notes_each_unknown_path_that_envoy_refused() -> None:
    journal, first, second = Noted(), Orders(), Orders()
    telemetry = Telemetry(Metrics(), journal=journal)
    line = {
        "door": "envoy",
        "code": "unknown_url",
        "cause": "no endpoint",
        "method": "PUT",
        "path": "/v1/x",
        "status": 404,
    }

    async def work() -> None:
        assert not pass_on_line(json.dumps({**line, "message": "request", "request_id": "req_1"}), [first, second])
        assert not pass_on_line(json.dumps({**line, "message": "request", "request_id": "req_2"}), [])
        for other in ('"unknown_url"', json.dumps({**line, "door": "http"}), json.dumps(["unknown_url"])):
            assert not pass_on_line(other, [first, second])
        for one in (first, second):
            one.close()
            await take_orders(one.theirs, {PATH_UNKNOWN: partial(take_unknown_path, telemetry, unknown_url)})

    asyncio.run(work())
    (entry,) = journal.entries
    assert (entry.request_id, entry.door, entry.outcome, entry.status) == ("req_1", "envoy", REFUSED, 404)
    assert (entry.owner, entry.code, entry.detail.path) == ("", "unknown_url", "/v1/x")
    assert entry.detail.message == "Unknown request URL: PUT /v1/x. Please check the URL for typos."
