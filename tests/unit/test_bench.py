"""The benchmark's own arithmetic: verdicts, tables, clocks. Its processes are tried by running it."""

from __future__ import annotations

import os
import time
from typing import Any, cast

import pytest

from tests.bench import cpu, gate, peers
from tests.bench.report import Result, tables
from tests.bench.targets import judge, targets_table


def _result(**more: Any) -> Result:
    names = ("direct", "envoy", "echo", "relay", "litellm 1.106.2")
    result = {
        "machine": {"cores": 2, "system": "x", "python": "3.11.7", "others_share": 0.1},
        "settings": {"rounds": 1, "seconds": 1.0, "streams": [1, 16], "open": 1000},
        "median": {name: {} for name in names},
        "added_to_envoy": {name: {} for name in names},
        "ratio_to_envoy": {name: {} for name in names},
        "ratio_to_echo": {name: {} for name in names},
        "cpu_us_per_chunk": {name: {} for name in names},
        "memory_bytes_per_stream": {},
        "apart": {},
        "complaints": [],
        "rounds": [],
    }
    return cast(Result, result | more)


def _verdicts(result: Result) -> dict[str, bool | None]:
    return {row.figure: row.met for row in judge(result)}


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    rows = judge(_result())
    assert {row.met for row in rows} == {None} and {row.measured for row in rows} == {"-"}
    assert "**missed**" not in targets_table(rows)


def test_a_limit_that_is_just_reached_is_met() -> None:
    for value, met in ((12.0, True), (12.1, False)):
        spent = {"relay": {"saturated sidecar": value}, "echo": {"saturated sidecar": 5.0}}
        assert _verdicts(_result(cpu_us_per_chunk=spent))["relay, saturated, sidecar CPU per chunk"] is met
    for value, met in ((0.75, True), (0.74, False)):
        ratio = {"relay": {"saturated": value}}
        assert _verdicts(_result(ratio_to_echo=ratio))["relay chunks/s, saturated, of echo"] is met


def test_the_peer_is_compared_beyond_the_upstreams_own_time() -> None:
    median = {
        "direct": {"first_event_p50": 100.0},
        "relay": {"first_event_p50": 600.0, "chunks_16": 100_000.0},
        "litellm 1.106.2": {"first_event_p50": 20_100.0, "chunks_16": 1_000.0},
    }
    rows = {row.figure: row.measured for row in judge(_result(median=median))}
    assert rows["added time to first event, LiteLLM's of ours"] == "40x"
    # The middle number of streams.
    assert rows["chunks/s in a burst, of LiteLLM's bridge"] == "100x"


@pytest.mark.parametrize(("slow", "met"), [(40_000.0, True), (41_000.0, False), (0.0, None)])
def test_a_request_that_waits_for_all_others_is_a_target_missed(slow: float, met: bool | None) -> None:
    median = {"http": {"whole_200_p50": 10_000.0, "whole_200_p99": slow}}
    result = _result(median=median, cpu_us_per_chunk={"http": {}})
    assert _verdicts(result)["tiny requests, 200 at once, http: p99 of p50"] is met
    result["settings"]["streams"] = [200]
    assert f"| Antiphon, HTTP door (no Envoy) | 10.0 / {slow / 1000:.1f} |" in tables(result)


def test_the_longest_turn_leaves_the_idle_one_out() -> None:
    apart = {"turns": {"http2": {"idle": 9.0, "5 MB image": 2.0, "5 MB text": 3.0}}}
    rows = {row.figure: row for row in judge(_result(apart=apart))}
    assert rows["longest stall by a 5 MB request"].measured == "3.0 ms"


def test_tables_of_next_to_nothing_have_dashes() -> None:
    assert "| Antiphon, relay | - |" in tables(_result())


def test_the_clock_sees_work_that_ticks_do_not() -> None:
    before, own = cpu.cpu_seconds([os.getpid()]), time.process_time()
    while time.process_time() < own + 0.004:
        pass
    assert 0.003 < cpu.cpu_seconds([os.getpid()]) - before < 5.0
    assert 0 < cpu.anonymous_bytes(os.getpid()) < cpu.rss_bytes([os.getpid()])


@pytest.mark.parametrize(
    "given", ["other", "x=ftp://127.0.0.1:1", "x=http://example.org:80/v1", "x=http://127.0.0.1/v1"]
)
async def test_a_peer_is_named_and_local(given: str, tmp_path: Any) -> None:
    with pytest.raises(SystemExit):
        await peers.start_peer(given, 1, tmp_path, cast(Any, None))


async def test_a_running_peer_is_asked_where_it_says(tmp_path: Any) -> None:
    peer = await peers.start_peer("mine=http://127.0.0.1:4000/v1/", 1, tmp_path, cast(Any, None))
    assert (peer.name, peer.port, peer.protocol.path, peer.peer) == ("mine", 4000, "/v1/responses", True)


@pytest.mark.parametrize("slower", [1.0, 100.0])
def test_the_gate_fails_when_a_chunk_costs_too_much(
    slower: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def measured() -> dict[str, float]:
        return {"chunk relay": 5 * slower, "chunk echo": 1.0, "request relay": 10.0, "request echo": 1.0}

    monkeypatch.setattr(gate, "_measure", measured)
    monkeypatch.setattr(gate, "configure", lambda *_: None)
    assert gate.main([]) == (0 if slower == 1.0 else 1)
    assert ("TOO MUCH" in capsys.readouterr().out) is (slower > 1.0)
