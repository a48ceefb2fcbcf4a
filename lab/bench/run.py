"""Implements `scripts/bench`: measures the cost of Antiphon, next to Envoy alone and a no-op external processor.

Lives here: starting the processes, the JSON file. Not here: the jobs (`rounds.py`, `apart.py`), the computations from
the rounds (`summary.py`), the processes (`variants.py`, `peers.py`), the load (`load.py`), the tables (`report.py`,
`targets.py`).

The processes of all variants run during the whole benchmark, and the variants get the jobs in turn in each round. So a
slow moment of the machine affects all variants. The program computes ratios within a round, and reports the median over
the rounds.

Invariants: the run ends by itself, also when a variant hangs. The benchmark stops every process that it started. If a
job has errors, the benchmark reports them, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import platform
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from antiphon.config.problems import how_to_install
from antiphon.supervisor.children import ParentPipe
from lab.bench import priority
from lab.bench.apart import Apart, measure_apart
from lab.bench.load import start_load
from lab.bench.machine import QUIET, Watch
from lab.bench.peers import read_pids, start_peer
from lab.bench.report import Result, tables
from lab.bench.rounds import BURST, PACED_STREAMS, Bench, say
from lab.bench.summary import each_round, merge, processor_model, summarise
from lab.bench.targets import judge, targets_table
from lab.bench.upstream import start_upstream
from lab.bench.variants import LABELS, start_variant, usual

_DESCRIPTORS = 65_536


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Compare Antiphon with Envoy alone.")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (default 3; 1 with --quick)")
    parser.add_argument("--seconds", type=float, help="length of one measurement (default 0.9; 0.4 with --quick)")
    parser.add_argument("--quick", action="store_true", help="one short round: do the variants work, roughly how fast")
    parser.add_argument("--streams", default="1,16,200", help="numbers of connections for the rates")
    parser.add_argument("--only", default=",".join(usual()), help=f"which variants, of {','.join(LABELS)}")
    parser.add_argument(
        "--limit", type=float, help="seconds in which no new round begins (default 400; 80 with --quick)"
    )
    parser.add_argument("--open", type=int, default=1000, help="open streams for the memory of one (default 1000)")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=URL",
        help="compare with this server too; `litellm` and `ogx` are installed into .peers and started",
    )
    parser.add_argument(
        "--peer-pids",
        action="append",
        default=[],
        metavar="NAME=PID,…",
        help="the processes of a peer that runs already: what they and all below them work is its CPU time",
    )
    parser.add_argument(
        "--idle",
        action="store_true",
        help=f"print no figure when other programs take more than {QUIET:.0%}% of the cores, before or meanwhile",
    )
    parser.add_argument("--workers", default="1,2", help="numbers of sidecar processes behind one Envoy; empty: none")
    parser.add_argument("--no-apart", action="store_true", help="only the rounds")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the main figures (PNG)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, those of each round too")
    parser.add_argument(
        "--merge", nargs="+", type=Path, metavar="FILE", help="measure nothing; tables of the rounds in files of --json"
    )
    given = parser.parse_args(arguments)
    given.rounds = given.rounds or (1 if given.quick else 3)
    given.seconds = given.seconds or (0.4 if given.quick else 0.9)
    given.limit = given.limit or (80.0 if given.quick else 400.0)
    given.open_seconds = 1.5 if given.quick else 3.0
    given.workers = [int(number) for number in given.workers.split(",") if number]
    given.no_apart = given.no_apart or given.quick
    given.streams = [int(number) for number in given.streams.split(",")]
    # The rows without a proxy and with Envoy alone show what the load generator, the upstream and the hour allow.
    given.only = ["direct", "envoy", *given.only.split(",")]
    if unknown := set(given.only) - set(LABELS):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    given.peer_pids = read_pids(given.peer_pids)
    if unknown := set(given.peer_pids) - {peer.partition("=")[0] for peer in given.peer}:
        parser.error(f"--peer-pids of no --peer: {', '.join(sorted(unknown))}")
    if given.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error(f"--plot needs matplotlib: {how_to_install('bench')}")
    return given


def _result(bench: Bench, given: argparse.Namespace, apart: Apart, others: float, lifted: bool) -> Result:
    parts = {
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": processor_model(),
            "system": platform.platform(),
            "lifted": lifted,
            "python": platform.python_version(),
            "others_share": others,
            "others_share_of_rounds": bench.others,
        },
        "settings": {
            "seconds": given.seconds,
            "streams": given.streams,
            "open": given.open,
            "burst_chunks": BURST,
            "paced_streams": PACED_STREAMS,
        },
        "memory_bytes_per_stream": bench.memory,
        "apart": apart,
        "complaints": bench.complaints,
    }
    return summarise(bench.rounds, parts)


def _show(result: Result, given: argparse.Namespace) -> None:
    print(tables(result))
    if result["settings"]["rounds_that_count"]:
        print(targets_table(judge(result, each_round(result))))
    if given.plot:
        # matplotlib is a large package of an extra, so it is imported only if needed.
        from lab.bench.plot import draw

        draw(result, given.plot)


async def _run(given: argparse.Namespace) -> int:
    started = time.monotonic()
    if given.idle:
        await refuse_when_busy(Watch())
    watch = Watch()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="antiphon-bench-")))
        upstream = await start_upstream(folder)
        stack.push_async_callback(upstream.stop)
        loads = []
        for number in range(2):
            load = await start_load(folder, number)
            stack.push_async_callback(load.stop)
            loads.append(load)
        lifted = priority.lift([upstream.pid, *(load.pid for load in loads)])
        if not lifted:
            say("the priority of the benchmark's processes is not lifted: no autogroups here, or not allowed")
        pipe = ParentPipe()
        stack.callback(pipe.close)
        variants = []
        async with contextlib.AsyncExitStack() as running:
            for name in LABELS:
                if name in given.only:
                    say(f"start {LABELS[name]}")
                    variants.append(await start_variant(name, int(upstream.ready), folder / name, pipe))
                    running.push_async_callback(variants[-1].stop)
            for number, peer in enumerate(given.peer):
                say(f"start {peer}")
                variants.append(
                    await start_peer(peer, int(upstream.ready), folder / f"peer-{number}", pipe, given.peer_pids)
                )
                running.push_async_callback(variants[-1].stop)
            bench = Bench(given, loads, variants)
            # The timeout stops the run by force. The normal end is the check before each round.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(given.limit * 1.5 + 60):
                    await bench.measure()
        if not bench.rounds:
            raise SystemExit("bench: no round was finished")
        apart: Apart = {}
        if not given.no_apart:
            apart = await measure_apart(int(upstream.ready), loads[0], folder, pipe, given.workers, given.seconds)
    result = _result(bench, given, apart, watch.others(), lifted)
    busiest = max(result["machine"]["others_share"], *bench.others)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    if given.idle and busiest > QUIET:
        say(
            f"bench: other programs took {busiest:.0%} of the cores meanwhile (--idle: at most {QUIET:.0%}): no figures"
        )
        return 3
    _show(result, given)
    say(f"{time.monotonic() - started:.0f} s")
    return 1 if bench.complaints else 0


async def refuse_when_busy(watch: Watch, seconds: float = 3.0) -> None:
    """Raise `SystemExit` if other programs use too much of the cores' time."""
    await asyncio.sleep(seconds)
    if (others := watch.others()) > QUIET:
        raise SystemExit(f"bench: other programs take {others:.0%} of the cores; --idle wants at most {QUIET:.0%}")


async def _stoppable(given: argparse.Namespace) -> int:
    task = asyncio.ensure_future(_run(given))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        say("stopped")
        return 130


def more_descriptors() -> None:
    """Raise the limit of open files. A thousand streams need several thousand in Envoy, and child processes inherit the
    limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is 1 if a request failed."""
    given = _arguments(arguments)
    if given.merge:
        result = merge(given.merge)
        if given.json:
            given.json.write_text(json.dumps(result, indent=1) + "\n")
        _show(result, given)
        return 0
    more_descriptors()
    return asyncio.run(_stoppable(given))


if __name__ == "__main__":
    sys.exit(main())
