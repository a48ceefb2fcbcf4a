"""Runs the rounds: in each round every variant runs every job, one after the other.

Lives here: the list and order of jobs, and the raw figures of each. Not here: the processes (`variants.py`), the load
itself (`load.py`), the computations from the rounds (`run.py`), single measurements (`apart.py`).

Invariant: a job with errors is listed as a complaint, and a failed job has no figures.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

from lab.bench import cpu
from lab.bench.load import Job, ask_load
from lab.bench.machine import Watch
from lab.bench.variants import CHAINS, Process, Values, Variant

BURST = 100
PACED_STREAMS = 8
_GRACE = 3.0
_LONG = {"kb100": 100_000, "mb5": 5_000_000}
"""The long requests: each as one text, and (`…_turns`) as a conversation of turns of 1 KB."""
# The stored turns behind a request, the callers, and whether the request's response is stored.
_HISTORIES = (
    *((turns, 8, False) for turns in (0, *CHAINS)),
    (1, 8, True),
    *((turns, 1, store) for turns in (0, 1) for store in (False, True)),
)
_KINDS = ("tools", "reasoning")
_PACED = 40
_STALLED_STREAMS = 4
_PACE_MS = 20
# With fewer samples than this, the quantile would be the maximum.
_ENOUGH = {"p50": 1, "p99": 100, "p999": 1000}
_SATURATED_STREAMS = 200
_LARGEST = 5_000_000
# A peer needs several seconds for jobs that other variants finish in one, so it runs fewer jobs with more time.
_PEER_GRACE = 20.0


def say(text: str) -> None:
    """Print progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def _middle(streams: list[int]) -> int:
    """The number of streams for the cost figures, at which the variants are busy but not overloaded."""
    return sorted(streams)[len(streams) // 2]


class Bench:
    """One run of the benchmark. The results are in `rounds`, `memory`, `processor` and `complaints`."""

    def __init__(self, given: argparse.Namespace, loads: Sequence[Process], variants: list[Variant]) -> None:
        self._given = given
        self._loads = loads
        self._variants = variants
        self.rounds: list[dict[str, Values]] = []
        self.memory: dict[str, Values] = {}
        self.complaints: list[str] = []
        self.others: list[float] = []
        """For each round, the share of the cores' time that other programs used."""
        self._spent: dict[str, Values] = {}
        """The CPU seconds of the current round by kind and part, and the number of chunks or requests of each kind."""

    async def measure(self) -> None:
        """Run all jobs in order. The memory measurement comes first, because a process keeps memory after it was
        busy."""
        started = time.monotonic()
        for variant in self._variants:
            await self._job(variant, "burst-5", 5, 4, seconds=0.2)
            await self._job(variant, "json", 0, 4, seconds=0.2)
        say("memory")
        for variant in self._variants:
            if not variant.peer:
                self.memory[variant.name] = await self._memory(variant)
        longest = 0.0
        for number in range(self._given.rounds):
            now = time.monotonic()
            if number and now - started + longest > self._given.limit:
                say(f"no time for more than {number} rounds")
                return
            say(f"round {number + 1} of {self._given.rounds}")
            watch = Watch()
            await self._round()
            self.others.append(watch.others())
            longest = max(longest, time.monotonic() - now)

    # One round.

    async def _round(self) -> None:
        values: dict[str, Values] = {variant.name: {} for variant in self._variants}
        self._spent = {variant.name: {} for variant in self._variants}
        ours = [variant for variant in self._variants if not variant.peer]
        middle = _middle(self._given.streams)
        for variant in self._variants:
            await self._first_events(variant, values[variant.name])
        for variant in ours:
            await self._paced(variant, values[variant.name])
        for streams in self._given.streams:
            for variant in ours:
                await self._crowd(variant, values[variant.name], streams)
        for streams in self._given.streams:
            for variant in self._variants if streams == middle else ours:
                await self._short(variant, values[variant.name], streams, "json" if streams == middle else None)
        for name, size in _LONG.items():
            for kind, turns in ((name, False), (f"{name}_turns", True)):
                for variant in ours:
                    answer = await self._job(variant, "json", 0, 4, size=size, turns=turns, cost=kind)
                    values[variant.name][kind] = answer["requests_per_second"]
        for variant in ours:
            await self._stalled(variant, values[variant.name])
        for variant in ours:
            await self._stored(variant, values[variant.name])
        for variant in ours:
            await self._histories(variant, values[variant.name])
        for kind in _KINDS:
            for variant in ours:
                answer = await self._job(variant, f"{kind}-{BURST}", BURST, 16, cost=kind)
                values[variant.name][kind] = answer["chunks_per_second"]
        for streams in self._given.streams:
            for variant in self._variants if streams == middle else ours:
                await self._burst(variant, values[variant.name], streams, "burst" if streams == middle else None)
        for variant in ours:
            await self._saturated(variant, values[variant.name])
        for name, spent in self._spent.items():
            for key, seconds in spent.items():
                if not key.endswith("chunks") and (chunks := spent[f"{key.split()[0]} chunks"]):
                    values[name][f"cpu {key}"] = seconds / chunks * 1e6
        self.rounds.append(values)

    async def _first_events(self, variant: Variant, values: Values) -> None:
        """Run one short stream at a time."""
        answer = await self._job(variant, "paced-2-1ms", 2, 1, stamps=True)
        for key in ("first_event", "first_text"):
            _latency(values, key, answer)

    async def _paced(self, variant: Variant, values: Values) -> None:
        """Run a few slow streams. This job takes longer than the others, because it has few chunks per second."""
        seconds = 2 * self._given.seconds
        model = f"paced-{_PACED}-10ms"
        answer = await self._job(variant, model, _PACED, PACED_STREAMS, seconds=seconds, stamps=True, cost="paced")
        for key in ("under_way", "gap"):
            _latency(values, key, answer)

    async def _crowd(self, variant: Variant, values: Values, streams: int) -> None:
        """The waiting times at this many streams: for the first event, then for each next one."""
        model = f"paced-{_PACED}-{_PACE_MS}ms"
        answer = await self._job(variant, model, _PACED, streams, stamps=True)
        for key in ("first_event", "gap", "under_way"):
            found = answer[f"{key}_us"]
            for quantile, enough in _ENOUGH.items():
                if found["n"] >= enough:
                    values[f"{key}_{streams}_{quantile}"] = found[quantile]

    async def _short(self, variant: Variant, values: Values, streams: int, cost: str | None) -> None:
        """Send small requests with JSON answers."""
        answer = await self._job(variant, "json", 0, streams, cost=cost)
        values[f"requests_{streams}"] = answer["requests_per_second"]
        _latency(values, f"whole_{streams}", answer, "whole")

    async def _stored(self, variant: Variant, values: Values) -> None:
        """Send the same requests and streams with `store: true`."""
        if not variant.chains:
            return
        middle = _middle(self._given.streams)
        for streams in self._given.streams:
            if streams > 1:
                cost = "stored" if streams == middle else None
                answer = await self._job(variant, "json", 0, streams, cost=cost, more={"store": True})
                values[f"stored_requests_{streams}"] = answer["requests_per_second"]
                model = f"burst-{BURST}"
                answer = await self._job(variant, model, BURST, streams, more={"store": True})
                values[f"stored_chunks_{streams}"] = answer["chunks_per_second"]

    async def _histories(self, variant: Variant, values: Values) -> None:
        """Send small requests behind stored turns, for which one half of the usual time is enough."""
        for turns, callers, store in _HISTORIES if variant.chains else ():
            key = f"history-{turns}-{callers}{'-stored' if store else ''}"
            more = {"store": store, **({"previous_response_id": variant.chains[turns]} if turns else {})}
            answer = await self._job(variant, "json", 0, callers, seconds=self._given.seconds / 2, cost=key, more=more)
            _latency(values, key, answer, "whole")

    async def _burst(self, variant: Variant, values: Values, streams: int, cost: str | None) -> None:
        """Run streams at full speed, in which one read often has many chunks."""
        seconds = 3 * self._given.seconds if variant.peer else None
        answer = await self._job(variant, f"burst-{BURST}", BURST, streams, cost=cost, seconds=seconds)
        values[f"chunks_{streams}"] = answer["chunks_per_second"]

    async def _saturated(self, variant: Variant, values: Values) -> None:
        """Send more chunks than any variant can forward, each from a different stream. So one read rarely has several
        chunks."""
        answer = await self._job(variant, f"paced-{BURST}-1ms", BURST, _SATURATED_STREAMS, cost="saturated")
        values["saturated"] = answer["chunks_per_second"]

    async def _stalled(self, variant: Variant, values: Values) -> None:
        """Run fast streams without other requests, and then while large requests go through the same processes."""
        model = f"paced-{_PACED}-2ms"
        for key, size in (("calm", 0), ("stalled", _LARGEST)):
            jobs = [self._job(variant, model, _PACED, _STALLED_STREAMS, stamps=True)]
            if size:
                jobs.append(self._job(variant, "json", 0, 1, size=size, load=1))
            answer, *large = await asyncio.gather(*jobs)
            _latency(values, key, answer, "under_way")
            if large:
                values["stalled_by"] = large[0]["requests_per_second"]

    async def _memory(self, variant: Variant) -> Values:
        """Resident bytes per open stream, with one connection per stream."""
        parts = {"sidecar": variant.sidecar, "envoy": variant.envoy}
        streams = self._given.open
        before = {part: cpu.rss_bytes(pids) for part, pids in parts.items() if pids}
        seconds = self._given.open_seconds
        chunks = int(seconds / 0.1)
        job = asyncio.ensure_future(
            self._job(variant, f"paced-{chunks}-100ms", chunks, streams, seconds=0.5, grace=seconds + 5)
        )
        try:
            await asyncio.sleep(seconds / 2)
            after = {part: cpu.rss_bytes(parts[part]) for part in before}
        finally:
            answer = await job
        return {
            **{part: (after[part] - before[part]) / streams for part in before},
            **{f"{part} before": before[part] for part in before},
            "streams": streams,
            "whole": answer["requests"],
            "failed": answer["errors"] + answer["unfinished"],
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
        turns: bool = False,
        more: dict[str, Any] | None = None,
        load: int = 0,
    ) -> dict[str, Any]:
        seconds = seconds or self._given.seconds
        if variant.peer:
            grace = _PEER_GRACE
        protocol = variant.protocol
        job = Job(
            port=variant.port,
            path=protocol.path,
            body=protocol.body(model, stream=chunks > 0, size=size, turns=turns, **(more or {})),
            connections=connections,
            seconds=seconds,
            grace=grace,
            chunks=chunks,
            marker=protocol.marker(model),
            stamps=stamps,
            # Start the paced streams at different times. Otherwise all would send at the same moment.
            stagger=0.01 / connections if model.startswith("paced") else 0.0,
        )
        cost = cost if variant.name in self._spent else None
        before = variant.cpu_seconds() if cost else {}
        async with asyncio.timeout(seconds + grace + 10):
            answer = await ask_load(self._loads[load], job)
        if cost:
            spent = self._spent[variant.name]
            # The divisor of a cost: the number of chunks, or of requests for jobs without chunks.
            spent[f"{cost} chunks"] = spent.get(f"{cost} chunks", 0) + (answer["chunks"] or answer["requests"])
            for part, now in variant.cpu_seconds().items():
                key = f"{cost} {part}"
                spent[key] = spent.get(key, 0.0) + now - before[part]
        if answer["errors"]:
            what = f"{variant.name}, {model}, {connections} connections: {answer['errors']} errors of "
            self.complaints.append(f"{what}{answer['requests']} requests, the first: {answer['complaint']}")
            say(self.complaints[-1])
        if answer["unfinished"] == connections:
            self.complaints.append(f"{variant.name}, {model}, {connections} connections: none ended in time")
            say(self.complaints[-1])
        return answer


def _latency(values: Values, key: str, answer: dict[str, Any], source: str = "") -> None:
    for quantile in ("p50", "p99", "p999", "max"):
        if (found := answer[f"{source or key}_us"].get(quantile)) is not None:
            values[f"{key}_{quantile}"] = found
