"""The benchmark's own arithmetic: verdicts, tables, clocks. Its processes are tried by running it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
import yaml

from lab.bench import (
    cpu,
    gate,
    gate_instructions,
    growth,
    load,
    machine,
    peers,
    priority,
    run,
    summary,
    upstream,
    variants,
)
from lab.bench.report import Result, tables
from lab.bench.targets import judge, targets_table


def test_what_can_be_asked_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["--help"])
    assert ended.value.code == 0 and "more than 5% of" in " ".join(capsys.readouterr().out.split())


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
    for value, met in ((10.0, True), (10.1, False)):
        spent = {"relay": {"burst sidecar": value}, "echo": {"burst sidecar": 5.0}}
        assert _verdicts(_result(cpu_us_per_chunk=spent))["relay, CPU per chunk, burst, of the no-op's"] is met
    for value, met in ((0.67, True), (0.66, False)):
        ratio = {"relay": {"saturated": value}}
        assert _verdicts(_result(ratio_to_envoy=ratio))["relay chunks/s, saturated, of Envoy alone"] is met


def test_stored_requests_are_judged_beside_envoys_unstored() -> None:
    ratio = {"relay": {"requests_16": 0.2, "stored_requests_16": 0.09}}
    spent = {"relay": {"json sidecar": 200.0, "stored sidecar": 300.0, "mb5 sidecar": 21_000.0}}
    found = _verdicts(_result(ratio_to_envoy=ratio, cpu_us_per_chunk=spent))
    assert found["relay, small requests/s at 16, store: false, of Envoy alone"] is True
    assert found["relay, small requests/s at 16, store: true, of Envoy alone"] is False
    assert found["relay, CPU of a stored request, of an unstored one"] is True
    assert found["relay, CPU of a request of 5 MB"] is False


def test_a_request_behind_stored_turns_costs_what_all_processes_work() -> None:
    costs = {"history-0-8": (300.0, 200.0), "history-1-8": (550.0, 250.0), "history-200-8": (2800.0, 250.0)}
    spent = {
        f"{kind} {part}": one
        for kind, both in costs.items()
        for part, one in zip(("sidecar", "envoy"), both, strict=True)
    }
    rows = {row.figure: row for row in judge(_result(cpu_us_per_chunk={"relay": spent}))}
    assert rows["relay, CPU behind one stored turn, of none, 8 callers"].measured == "1.60x"
    assert rows["relay, CPU of each further stored turn"].measured == "11.3 µs"


def test_long_requests_have_turns_of_a_kilobyte_or_one_text() -> None:
    for protocol, key in ((variants.CHAT, "messages"), (variants.RESPONSES, "input")):
        turns, text = (protocol.body("json", stream=False, size=5_000_000, turns=split) for split in (True, False))
        assert abs(len(turns) / 5_000_000 - 1) < 0.03 and abs(len(text) / 5_000_000 - 1) < 0.01
        assert len(json.loads(turns)[key]) - (protocol is variants.CHAT) == 4546


def _round(envoy: float, relay: float) -> dict[str, variants.Values]:
    return {"envoy": {"cpu json envoy": envoy, "requests_16": 1000.0}, "relay": {"requests_16": relay}}


def test_rounds_of_a_slow_hour_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {**_result(), "machine": {**_result()["machine"], "processor": "another"}}
    # The usual cost is the median of the rounds: 60 µs.
    rounds = [_round(60.0, 100.0), _round(50.0, 140.0), _round(121.0, 900.0)]
    files = []
    for number, some in enumerate((rounds[:2], rounds[2:])):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(summary.summarise(some, cast(Any, parts))))
    assert run.main(["--merge", *map(str, files)]) == 0
    printed = capsys.readouterr().out
    assert "in 1 of 3 rounds Envoy alone took more than twice its usual 60 µs" in printed
    assert "store: false, of Envoy alone | ≥ 0.15 | 0.12 (0.10 to 0.14) | **missed** |" in printed


def test_without_a_round_that_counts_there_is_no_ratio() -> None:
    known = next(iter(json.loads((Path(summary.__file__).with_name("usual.json")).read_text())["microseconds"]))
    parts = {**_result(), "machine": {**_result()["machine"], "processor": known}}
    found = summary.summarise([_round(1000.0, 100.0)], cast(Any, parts))
    assert not found["ratio_to_envoy"]["relay"] and not found["cpu_us_per_chunk"]["envoy"]
    assert "No statement" in tables(found) and "100" in tables(found)


def test_shared_processes_limit_many_workers_on_paper() -> None:
    costs = {
        "requests": {"all": 400.0, "worker": 200.0, "envoy": 190.0},
        "chunks": {"all": 9.0, "worker": 5.0, "envoy": 4.0},
    }
    rows = growth.on_paper(costs)
    assert rows["4"]["requests"] == pytest.approx(20_000) and rows["4"]["requests_cores"] == pytest.approx(8)
    # The shared processes take 10 µs of a request.
    assert rows["64"]["requests"] == pytest.approx(100_000) and rows["64"]["chunks"] == pytest.approx(64e6 / 5)
    assert "| 64 | 100,000 | 40.0 |" in growth.table("workers", rows)


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
    assert _verdicts(result)["small requests, 200 at once, http: p99 of p50"] is met
    result["settings"]["streams"] = [200]
    assert f"| Antiphon, HTTP server (no Envoy) | 10.0 / {slow / 1000:.1f} |" in tables(result)


def test_the_longest_turn_leaves_the_idle_one_out() -> None:
    apart = {"turns": {"http2": {"idle": 9.0, "5 MB image": 2.0, "5 MB text": 3.0}}}
    rows = {row.figure: row for row in judge(_result(apart=apart))}
    assert rows["longest stall by a 5 MB request"].measured == "3.0 ms"


def test_tables_of_next_to_nothing_have_dashes() -> None:
    assert "| Antiphon, relay | - |" in tables(_result())


def _group(pid: int | str) -> str:
    return Path(f"/proc/{pid}/autogroup").read_text().split("nice ")[-1].strip()


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/proc/self/autogroup").exists(), reason="no autogroups for us")
def test_the_group_of_another_session_is_lifted_and_the_own_is_not() -> None:
    before = _group("self")
    for own in (True, False):
        with subprocess.Popen(["sleep", "60"], start_new_session=not own) as child:
            assert priority.lift([child.pid])
            assert _group(child.pid) == (before if own else str(priority.NICE))
            child.kill()
    assert _group("self") == before and not priority.lift([2**22 + 1])


def test_the_clock_sees_work_that_ticks_do_not() -> None:
    before, own = cpu.cpu_seconds([os.getpid()]), time.process_time()
    while time.process_time() < own + 0.004:
        pass
    assert 0.003 < cpu.cpu_seconds([os.getpid()]) - before < 5.0
    assert 0 < cpu.anonymous_bytes(os.getpid()) < cpu.rss_bytes([os.getpid()])


def test_the_clock_sees_what_is_below_a_process_and_what_ended() -> None:
    work = "import time\nwhile time.process_time() < 0.05: pass\nprint(flush=True)\ninput()"
    before = cpu.tree_seconds([os.getpid()])
    with subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert cpu.cpu_seconds([child.pid]) > 0.04
        running = cpu.tree_seconds([os.getpid()]) - before
    ended = cpu.tree_seconds([os.getpid()]) - before
    # What ended is counted in steps of 10 ms.
    assert running > 0.04 and ended > running - 0.02


async def test_figures_are_refused_on_a_busy_machine() -> None:
    def watch(others: float) -> machine.Watch:
        clocks = iter([(0.0, 0.0, 0.0), (1.0, others, 0.0)])
        return machine.Watch(lambda: next(clocks), cores=1)

    with pytest.raises(SystemExit, match="other programs take 10% of the cores"):
        await run.refuse_when_busy(watch(machine.QUIET * 2), 0.0)
    await run.refuse_when_busy(watch(machine.QUIET), 0.0)


def test_others_work_is_what_is_not_ours() -> None:
    clocks = iter([(0.0, 100.0, 10.0), (4.0, 108.0, 12.0)])
    watch = machine.Watch(lambda: next(clocks), cores=2)
    assert watch.others() == pytest.approx((8 - 2) / (4 * 2))


@pytest.mark.parametrize("name", list(peers.PROGRAMS))
def test_the_configuration_of_a_program_is_yaml_with_the_upstream(name: str) -> None:
    program = peers.PROGRAMS[name]
    config = yaml.safe_load(program.config.format(url="http://127.0.0.1:7/v1", port="8", folder="/f"))
    assert "http://127.0.0.1:7/v1" in str(config)
    assert "{" not in program.command.format(config="c", port="8", url="u", folder="f")


def test_a_servers_own_name_for_a_model_leaves_the_marker_alone() -> None:
    protocol = replace(variants.RESPONSES, prefix="upstream/")
    assert json.loads(protocol.body("burst-5", stream=True))["model"] == "upstream/burst-5"
    assert protocol.marker("burst-5") == '"delta":"'


_needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@_needs_gcc
async def test_the_upstream_says_what_there_is_and_streams_a_short_answer_to_who_wants_it(tmp_path: Path) -> None:
    server = await upstream.start_upstream(tmp_path)
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.ready}") as session:
            async with session.get("/v1/models") as listed:
                assert [model["id"] for model in (await listed.json())["data"]] == list(upstream.MODELS)
            for stream, kind in ((False, "application/json"), (True, "text/event-stream")):
                async with session.post("/v1/chat/completions", json={"model": "json", "stream": stream}) as answer:
                    assert answer.content_type == kind
                    assert "A short answer" in await answer.text()
            for model, words in (("burst-7", 7), ("reasoning-7", 7), ("tools-7", 7), ("paced-7-1ms", 0)):
                async with session.post("/v1/chat/completions", json={"model": model, "stream": True}) as answer:
                    events = [line[6:] for line in (await answer.text()).splitlines() if line]
                assert events[-1] == "[DONE]" and sum('" word"' in event for event in events) == words
                deltas = [one["delta"] for event in events[:-1] for one in json.loads(event)["choices"]]
                assert len(deltas) == 1 + 7 + 1 + 2 * model.startswith("tools")
    finally:
        await server.stop()


def _job(port: int, model: str, chunks: int = 0, **more: Any) -> load.Job:
    usual = {"connections": 5, "seconds": 0.2, "grace": 2.0, "stamps": model.startswith("paced"), "stagger": 0.0}
    body, marker = variants.CHAT.body(model, stream=chunks > 0, **more), variants.CHAT.marker(model)
    fields = {"port": port, "path": variants.CHAT.path, "body": body, "chunks": chunks, "marker": marker}
    return cast(load.Job, fields | usual)


@_needs_gcc
async def test_the_load_generator_counts_requests_chunks_and_waits(tmp_path: Path) -> None:
    server, generator = await upstream.start_upstream(tmp_path), await load.start_load(tmp_path)
    try:
        for model, chunks in (("json", 0), ("burst-100", 100), ("tools-50", 50), ("paced-20-2ms", 20)):
            found = await load.ask_load(generator, _job(int(server.ready), model, chunks))
            assert not found["errors"] and not found["unfinished"], found
            assert found["requests"] > 4 and found["chunks"] == found["requests"] * chunks
            assert found["whole_us"]["n"] == found["requests"]
            assert 0 < found["whole_us"]["p50"] <= found["whole_us"]["p99"] <= found["whole_us"]["max"]
            assert bool(found["first_event_us"]["n"]) == bool(chunks)
        # The last job has stamps, one for each chunk.
        assert found["under_way_us"]["n"] == found["chunks"] and found["whole_us"]["p50"] > 35_000
        assert not (await load.ask_load(generator, _job(int(server.ready), "json", size=5_000_000)))["errors"]
    finally:
        await generator.stop()
        await server.stop()


_WHOLE = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@_needs_gcc
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b'HTTP/1.1 503 Busy\r\ncontent-length: 8\r\n\r\n"no\nway"', "503 Busy:  no way "),
        (b"", "the connection was cut: "),
        (_WHOLE + b"4\r\ndata\r\n", "the connection was cut: "),
        (_WHOLE + b"7\r\ndata: x\r\n0\r\n\r\n", "chunks are missing; the end: data: x"),
    ],
)
async def test_what_fails_is_counted_with_the_reason(answer: bytes, complaint: str, tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    generator = await load.start_load(tmp_path)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        found = await load.ask_load(generator, _job(server.sockets[0].getsockname()[1], "burst-20", 20))
    await generator.stop()
    assert found["errors"] >= 5 and found["complaint"] == complaint and not found["chunks_per_second"]


@pytest.mark.parametrize("given", ["x", "x=", "x=a", "x=1,", "x=999999999"])
def test_processes_of_a_peer_are_ids_of_processes(given: str) -> None:
    with pytest.raises(SystemExit, match="bench: --peer-pids"):
        peers.read_pids([given])


async def test_a_peers_processes_are_measured_with_all_below_them(tmp_path: Any) -> None:
    pids = peers.read_pids([f"mine={os.getpid()}"])
    peer = await peers.start_peer("mine=http://127.0.0.1:4000/v1", 1, tmp_path, cast(Any, None), pids)
    assert set(peer.cpu_seconds()) == {"sidecar"} and peer.sidecar == [os.getpid()]


@pytest.mark.parametrize(
    "given", ["other", "x=ftp://127.0.0.1:1", "x=http://example.org:80/v1", "x=http://127.0.0.1/v1"]
)
async def test_a_peer_is_named_and_local(given: str, tmp_path: Any) -> None:
    with pytest.raises(SystemExit):
        await peers.start_peer(given, 1, tmp_path, cast(Any, None))


@pytest.mark.parametrize("with_filter", [True, False])
def test_envoy_alone_is_a_router_and_a_route(with_filter: bool, tmp_path: Path) -> None:
    config = variants.plain_bootstrap(1234, tmp_path, with_filter=with_filter)
    (listener,) = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    names = [one["name"].rpartition(".")[2] for one in manager["http_filters"]]
    assert names == ["ext_proc", "router"][not with_filter :]
    routes = [route["name"] for host in manager["route_config"]["virtual_hosts"] for route in host["routes"]]
    assert set(routes) == {"model/chat/completions"}


async def test_a_running_peer_is_asked_where_it_says(tmp_path: Any) -> None:
    peer = await peers.start_peer("mine=http://127.0.0.1:4000/v1/", 1, tmp_path, cast(Any, None))
    assert (peer.name, peer.port, peer.protocol.path, peer.peer) == ("mine", 4000, "/v1/responses", True)


_HERE = "an interpreter"


def _measures(
    folder: Path, counted: dict[str, float], *, valgrind: bool = True, interpreter: str = _HERE
) -> gate.Measures:
    """With a limit of 100 for one interpreter, and what the gate will find."""
    limits = folder / "limits.json"
    limits.write_text(json.dumps({"about": "x", "limits": {_HERE: {"counted": "2026-01-01", "chunk": 100}}}))
    times = {"chunk": (5.0, 1.0), "request": (counted["chunk"], 1.0)}
    return gate.Measures(limits, lambda: valgrind, lambda: interpreter, lambda: counted, lambda: times)


@pytest.mark.parametrize(
    ("counted", "status", "said"),
    [
        (100.0, 0, "good"),
        (101.0, 1, "TOO MANY"),
        # Cheaper by more than a tenth: the limit is too far away to hold anything.
        (89.0, 0, "--renew"),
    ],
)
def test_the_gate_holds_instructions_against_a_limit(
    counted: float,
    status: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gate.main([], _measures(tmp_path, {"chunk": counted})) == status
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["valgrind", "limits"])
@pytest.mark.parametrize(("request_cost", "status"), [(25.0, 0), (27.0, 1)])
def test_without_counts_the_gate_says_so_and_measures_time(
    missing: str,
    request_cost: float,
    status: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interpreter = "another interpreter" if missing == "limits" else _HERE
    measures = _measures(tmp_path, {"chunk": request_cost}, valgrind=missing != "valgrind", interpreter=interpreter)
    assert gate.main([], measures) == status
    said = capsys.readouterr().out
    assert "CPU TIME INSTEAD" in said and missing in said
    assert ("TOO MUCH" in said) is bool(status)


def test_renewed_limits_are_five_per_cent_above_and_keep_those_of_others(
    tmp_path: Path,
) -> None:
    measures = _measures(tmp_path, {"chunk": 1000.0}, interpreter="another interpreter")
    assert gate.main(["--renew"], measures) == 0
    written = json.loads(measures.limits.read_text())["limits"]
    assert written["another interpreter"]["chunk"] == 1050 and written[_HERE]["chunk"] == 100


def test_the_limit_of_one_kind_is_renewed_without_the_others(tmp_path: Path) -> None:
    measures = _measures(tmp_path, {"chunk": 1000.0, "request": 2000.0})
    assert gate.main(["--renew", "request"], measures) == 0
    written = json.loads(measures.limits.read_text())["limits"][_HERE]
    assert written["chunk"] == 100 and written["request"] == 2100


def test_every_limit_is_of_what_is_counted() -> None:
    for entry in json.loads(gate.LIMITS.read_text())["limits"].values():
        assert set(entry) == {"counted", *gate_instructions.KINDS}


def test_the_command_line_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["--help"])
    assert ended.value.code == 0 and "--idle" in capsys.readouterr().out
