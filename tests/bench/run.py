"""`scripts/bench`: what Antiphon costs, beside Envoy alone and a no-op external processor.

Lives here: which jobs are run in which order, what is computed from them, the JSON file. Not here: the processes
(`variants.py`), the load (`load.py`), the tables (`report.py`).

All variants run all the time and take turns, job by job and round by round, so that a slow moment of the machine meets
all of them; ratios are taken within a round, and of the rounds the median.

Invariants: the run ends by itself, also when a variant hangs; every process is stopped; a job with errors is reported
and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from antiphon.commands.children import ParentPipe
from tests.bench import cpu
from tests.bench.load import Job
from tests.bench.report import Result, Values, tables
from tests.bench.variants import LABELS, Process, Variant, start_variant

__all__ = ["main"]

_GRACE = 3.0
_BURST = 100
_SIZES = (100_000, 5_000_000)
_KINDS = ("tools", "reasoning")
_PACED = 40
_PACED_STREAMS = 8


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Compare Antiphon with Envoy alone.")
    parser.add_argument("--rounds", type=int, help="how often everything is measured (default 3; 1 with --quick)")
    parser.add_argument("--seconds", type=float, help="length of one measurement (default 0.9; 0.4 with --quick)")
    parser.add_argument("--quick", action="store_true", help="one short round: do the variants work, roughly how fast")
    parser.add_argument("--streams", default="1,16,200", help="numbers of connections for the rates")
    parser.add_argument("--only", default=",".join(LABELS), help=f"which variants, of {','.join(LABELS)}")
    parser.add_argument(
        "--limit", type=float, help="seconds in which no new round begins (default 230; 50 with --quick)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, those of each round too")
    given = parser.parse_args(arguments)
    given.rounds = given.rounds or (1 if given.quick else 3)
    given.seconds = given.seconds or (0.4 if given.quick else 0.9)
    given.limit = given.limit or (50.0 if given.quick else 230.0)
    given.open_seconds = 1.5 if given.quick else 3.0
    given.streams = [int(number) for number in given.streams.split(",")]
    given.only = given.only.split(",")
    if unknown := set(given.only) - set(LABELS):
        parser.error(f"no such variant: {', '.join(sorted(unknown))}")
    return given


def _middle(streams: list[int]) -> int:
    """The number of streams for which costs are told: busy, not overrun."""
    return sorted(streams)[len(streams) // 2]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Bench:
    def __init__(self, given: argparse.Namespace, load: Process, variants: list[Variant]) -> None:
        self._given = given
        self._load = load
        self._variants = variants
        self.rounds: list[dict[str, Values]] = []
        self.memory: dict[str, Values] = {}
        self.complaints: list[str] = []
        self._spent: dict[str, Values] = {variant.name: {} for variant in variants}

    async def measure(self) -> None:
        """Everything, in order. Memory comes first: a process that was busy keeps what it once had."""
        started = time.monotonic()
        for variant in self._variants:
            await self._job(variant, "burst-5", 5, 4, seconds=0.2)
            await self._job(variant, "json", 0, 4, seconds=0.2)
        _say("memory")
        for variant in self._variants:
            self.memory[variant.name] = await self._memory(variant)
        longest = 0.0
        for number in range(self._given.rounds):
            now = time.monotonic()
            if number and now - started + longest > self._given.limit:
                _say(f"no time for more than {number} rounds")
                return
            _say(f"round {number + 1} of {self._given.rounds}")
            await self._round()
            longest = max(longest, time.monotonic() - now)

    def processor(self) -> dict[str, Values]:
        """CPU microseconds per chunk, over all rounds: one round has few clock ticks."""
        return {
            name: {
                key: spent[key] / spent[f"{key.split()[0]} chunks"] * 1e6
                for key in spent
                if not key.endswith("chunks") and spent[f"{key.split()[0]} chunks"]
            }
            for name, spent in self._spent.items()
        }

    async def _round(self) -> None:
        values: dict[str, Values] = {variant.name: {} for variant in self._variants}
        for variant in self._variants:
            answer = await self._job(variant, "paced-2-1ms", 2, 1, stamps=True)
            for key in ("first_event", "first_text"):
                self._latency(values[variant.name], key, answer)
        for variant in self._variants:
            model = f"paced-{_PACED}-10ms"
            # Longer than the others: chunks are few here, and CPU time is told in steps of 10 ms.
            seconds = 2 * self._given.seconds
            answer = await self._job(variant, model, _PACED, _PACED_STREAMS, seconds=seconds, stamps=True, cost="paced")
            for key in ("under_way", "gap"):
                self._latency(values[variant.name], key, answer)
        for streams in self._given.streams:
            for variant in self._variants:
                cost = "json" if streams == _middle(self._given.streams) else None
                answer = await self._job(variant, "json", 0, streams, cost=cost)
                values[variant.name][f"requests_{streams}"] = answer["requests_per_second"]
        for size in _SIZES:
            for variant in self._variants:
                answer = await self._job(variant, "json", 0, 4, size=size)
                values[variant.name][f"size_{size}"] = answer["requests_per_second"]
        for variant in self._variants:
            if variant.chain:
                for key, more in (("stored", {}), ("chained", {"previous_response_id": variant.chain})):
                    answer = await self._job(variant, "json", 0, 16, more={"store": True, **more})
                    values[variant.name][key] = answer["requests_per_second"]
        for kind in _KINDS:
            for variant in self._variants:
                answer = await self._job(variant, f"{kind}-{_BURST}", _BURST, 16, cost=kind)
                values[variant.name][kind] = answer["chunks_per_second"]
        for streams in self._given.streams:
            for variant in self._variants:
                cost = "burst" if streams == _middle(self._given.streams) else None
                answer = await self._job(variant, f"burst-{_BURST}", _BURST, streams, cost=cost)
                values[variant.name][f"chunks_{streams}"] = answer["chunks_per_second"]
        self.rounds.append(values)

    @staticmethod
    def _latency(values: Values, key: str, answer: dict[str, Any]) -> None:
        for quantile in ("p50", "p99", "p999"):
            if (found := answer[f"{key}_us"].get(quantile)) is not None:
                values[f"{key}_{quantile}"] = found

    async def _memory(self, variant: Variant) -> Values:
        """Resident bytes per open stream, each stream with a connection of its own."""
        parts = {"sidecar": variant.sidecar, "envoy": variant.envoy}
        streams = max(self._given.streams)
        before = {part: cpu.rss_bytes(pids) for part, pids in parts.items() if pids}
        seconds = self._given.open_seconds
        chunks = int(seconds / 0.1)
        job = asyncio.ensure_future(
            self._job(variant, f"paced-{chunks}-100ms", chunks, streams, seconds=0.5, grace=seconds + 3)
        )
        try:
            await asyncio.sleep(seconds / 2)
            after = {part: cpu.rss_bytes(parts[part]) for part in before}
        finally:
            await job
        return {
            **{part: (after[part] - before[part]) / streams for part in before},
            **{f"{part} before": before[part] for part in before},
        }

    async def _job(
        self,
        variant: Variant,
        model: str,
        chunks: int,
        connections: int,
        *,
        seconds: float | None = None,
        grace: float = _GRACE,
        stamps: bool = False,
        cost: str | None = None,
        size: int = 0,
        more: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        seconds = seconds or self._given.seconds
        protocol = variant.protocol
        job = Job(
            port=variant.port,
            path=protocol.path,
            body=protocol.body(model, stream=chunks > 0, size=size, **(more or {})),
            connections=connections,
            seconds=seconds,
            grace=grace,
            chunks=chunks,
            marker=protocol.marker(model),
            stamps=stamps,
            # Paced streams that begin together would all send at the same moment.
            stagger=0.01 / connections if model.startswith("paced") else 0.0,
        )
        parts = {"sidecar": variant.sidecar, "envoy": variant.envoy}
        before = {part: cpu.cpu_seconds(pids) for part, pids in parts.items() if pids}
        async with asyncio.timeout(seconds + grace + 10):
            answer: dict[str, Any] = json.loads(await self._load.ask(json.dumps(job)))
        if cost:
            spent = self._spent[variant.name]
            # What a cost is divided by: chunks, or requests where there are none.
            spent[f"{cost} chunks"] = spent.get(f"{cost} chunks", 0) + (answer["chunks"] or answer["requests"])
            for part, was in before.items():
                key = f"{cost} {part}"
                spent[key] = spent.get(key, 0.0) + cpu.cpu_seconds(parts[part]) - was
        if answer["errors"]:
            what = f"{variant.name}, {model}, {connections} connections: {answer['errors']} errors of "
            self.complaints.append(f"{what}{answer['requests']} requests, the first: {answer['complaint']}")
            _say(self.complaints[-1])
        if answer["unfinished"] == connections:
            self.complaints.append(f"{variant.name}, {model}, {connections} connections: none ended in time")
            _say(self.complaints[-1])
        return answer


def _result(bench: _Bench, given: argparse.Namespace, others: float) -> Result:
    names = [name for name in LABELS if name in given.only]

    def median(name: str, base: str | None, combine: str) -> Values:
        found: Values = {}
        for key in bench.rounds[0][name] if bench.rounds else ():
            samples = []
            for values in bench.rounds:
                value = values[name].get(key)
                if value is None:
                    continue
                if base is None:
                    samples.append(value)
                elif (other := values[base].get(key)) and combine == "ratio":
                    samples.append(value / other)
                elif other and combine == "difference":
                    samples.append(value - other)
            if samples:
                found[key] = statistics.median(samples)
        return found

    def against(base: str, combine: str) -> dict[str, Values]:
        return {name: median(name, base, combine) for name in names} if base in names else {}

    return {
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "system": platform.platform(),
            "python": platform.python_version(),
            "others_share": others,
        },
        "settings": {
            "rounds": len(bench.rounds),
            "seconds": given.seconds,
            "streams": given.streams,
            "burst_chunks": _BURST,
            "paced_streams": _PACED_STREAMS,
        },
        "median": {name: median(name, None, "") for name in names},
        "added_to_envoy": against("envoy", "difference"),
        "ratio_to_envoy": against("envoy", "ratio"),
        "ratio_to_echo": against("echo", "ratio"),
        "cpu_us_per_chunk": bench.processor(),
        "memory_bytes_per_stream": bench.memory,
        "complaints": bench.complaints,
        "rounds": bench.rounds,
    }


async def _run(given: argparse.Namespace) -> int:
    started, busy_before = time.monotonic(), cpu.busy_seconds()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="antiphon-bench-")))
        module = (sys.executable, "-m")
        upstream = await Process.start(folder / "upstream.log", *module, "tests.bench.upstream")
        stack.push_async_callback(upstream.stop)
        load = await Process.start(folder / "load.log", *module, "tests.bench.load", wait=False)
        stack.push_async_callback(load.stop)
        pipe = ParentPipe()
        stack.callback(pipe.close)
        variants = []
        for name in LABELS:
            if name in given.only:
                _say(f"start {LABELS[name]}")
                variant = await start_variant(name, int(upstream.ready), folder / name, pipe)
                stack.push_async_callback(variant.stop)
                variants.append(variant)
        bench = _Bench(given, load, variants)
        # A hard end; the soft one is the check before each round.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(given.limit * 1.5 + 60):
                await bench.measure()
    if not bench.rounds:
        raise SystemExit("bench: no round was finished")
    # By now all processes have ended, and their time is in the times of our children.
    ours, seconds = sum(os.times()[:4]), time.monotonic() - started
    others = (cpu.busy_seconds() - busy_before - ours) / (seconds * (os.cpu_count() or 1))
    result = _result(bench, given, max(others, 0.0))
    print(tables(result))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    _say(f"{time.monotonic() - started:.0f} s")
    return 1 if bench.complaints else 0


async def _stoppable(given: argparse.Namespace) -> int:
    task = asyncio.ensure_future(_run(given))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        _say("stopped")
        return 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; the exit status is 1 when a request failed."""
    return asyncio.run(_stoppable(_arguments(arguments)))


if __name__ == "__main__":
    sys.exit(main())
