"""Implements `scripts/bench store`: compares the CPU time of a stored response with that of one that is not stored.

Lives here: the processes, their order and the ratio.

Real processes (`antiphon serve`, and `antiphon extproc` behind Envoy) run during the whole benchmark, and get requests
in turn over the same number of connections. The requests are small JSON requests with `store: true` and `store: false`.
With `--against` another revision is measured in the same rounds. The figure is the CPU time of the process per request,
including the kernel. The table lists the main thread with the event loop separately from the other threads, mostly the
database's writer. The program computes ratios within a round, and reports the median over the rounds.

Invariant: the benchmark stops each process that it started. Each process also ends by itself when the benchmark ends.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from antiphon.supervisor.children import ParentPipe
from lab.bench import cpu
from lab.bench import telemetry_processes as processes
from lab.bench.core import source_of
from lab.bench.load import Job, ask_load
from lab.bench.variants import RESPONSES, Process

AIM = 1.5
"""The maximum ratio of the cost of a stored response to that of one that is not stored."""

_KINDS = {"unstored": False, "stored": True}


@dataclass
class _Spent:
    """CPU microseconds per request of each round: of the main thread, and of all other threads."""

    main: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    def total(self, number: int) -> float:
        return self.main[number] + self.others[number]

    @property
    def rounds(self) -> int:
        return len(self.main)


@dataclass
class _Asked:
    """A process, and the costs of its requests by kind."""

    asked: processes.Asked
    spent: dict[str, _Spent] = field(default_factory=lambda: {kind: _Spent() for kind in _KINDS})


async def measure(
    door: str, against: str | None, rounds: int, seconds: float, connections: int, folder: Path
) -> dict[str, dict[str, _Spent]]:
    """The costs of requests to a server, by revision and kind. The revision `now` is this source tree."""
    async with AsyncExitStack() as stack:
        pipe = ParentPipe()
        stack.callback(pipe.close)
        upstream, load = await processes.start_helpers(stack, folder)
        sources: dict[str, Path | None] = {"now": None}
        if against is not None:
            (folder / "source").mkdir()
            sources[against] = source_of(against, folder / "source")
        asked = {
            name: await _start(stack, door, source, int(upstream.ready), folder / f"data-{number}", pipe)
            for number, (name, source) in enumerate(sources.items())
        }
        turns = [(one, kind) for one in asked.values() for kind in _KINDS]
        for number in range(rounds + 1):
            # The order changes with each round.
            at = number % len(turns)
            for one, kind in turns[at:] + turns[:at]:
                main, others = await _ask(load, one, kind, seconds, connections)
                if number:
                    one.spent[kind].main.append(main)
                    one.spent[kind].others.append(others)
        return {name: one.spent for name, one in asked.items()}


async def _start(
    stack: AsyncExitStack, door: str, source: Path | None, upstream: int, folder: Path, pipe: ParentPipe
) -> _Asked:
    folder.mkdir()
    before = ("/usr/bin/env", f"PYTHONPATH={source}") if source is not None else ()
    program = (*before, sys.executable, "-m", "antiphon")
    return _Asked(await processes.start(stack, door, program, "error", upstream, folder, pipe))


async def _ask(load: Process, one: _Asked, kind: str, seconds: float, connections: int) -> tuple[float, float]:
    """Microseconds of the process's CPU time per request: of its main thread, and of all other threads."""
    job = Job(
        port=one.asked.port,
        path=RESPONSES.path,
        body=RESPONSES.body("json", stream=False, store=_KINDS[kind]),
        connections=connections,
        seconds=seconds,
        grace=5.0,
        chunks=0,
        marker="",
        stamps=False,
        stagger=0.0,
    )
    pid = one.asked.process.pid
    main, total = cpu.main_thread_seconds(pid), cpu.cpu_seconds([pid])
    answer = await ask_load(load, job)
    if answer["errors"] or answer["unfinished"] or not answer["requests"]:
        raise SystemExit(f"bench: {answer['complaint'] or 'requests were not answered'}")
    main, total = cpu.main_thread_seconds(pid) - main, cpu.cpu_seconds([pid]) - total
    each = 1e6 / int(answer["requests"])
    return main * each, (total - main) * each


def _tell(found: dict[str, dict[str, _Spent]]) -> bool:
    """Print the figures. Returns whether the ratio meets the target."""
    for name, by_kind in found.items():
        for kind, spent in by_kind.items():
            main, others = statistics.median(spent.main), statistics.median(spent.others)
            print(f"{name:10} {kind:9} {main + others:7.0f} µs CPU: main thread {main:.0f}, others {others:.0f}")
    now = found["now"]
    for name, by_kind in found.items():
        ratio = _ratio(by_kind["stored"], by_kind["unstored"])
        verdict = "" if by_kind is not now else f" (at most {AIM:g}) {'good' if ratio <= AIM else 'TOO MUCH'}"
        print(f"{name:10} stored to unstored: {ratio:.2f}x{verdict}")
    for name, by_kind in found.items():
        if by_kind is not now:
            for kind in _KINDS:
                print(f"now to {name}, {kind}: {_ratio(now[kind], by_kind[kind]):.2f}x")
    return _ratio(now["stored"], now["unstored"]) <= AIM


def _ratio(one: _Spent, other: _Spent) -> float:
    return statistics.median(one.total(number) / other.total(number) for number in range(one.rounds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures. The exit status is 1 when the target is missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench store", description="What a stored response costs.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.5, help="how long a process is asked in a round")
    parser.add_argument("--connections", type=int, default=16, help="that ask at once")
    parser.add_argument("--against", metavar="REVISION", help="compare with this commit")
    parser.add_argument("--doors", default=",".join(processes.DOORS), help="which processes")
    parser.add_argument("--folder", type=Path, help="on which disk to store (default: that of temporary files)")
    given = parser.parse_args(arguments)
    met = True
    for door in given.doors.split(","):
        with tempfile.TemporaryDirectory(prefix="antiphon-bench-", dir=given.folder) as folder:
            asked = (door, given.against, given.rounds, given.seconds, given.connections, Path(folder))
            found = asyncio.run(measure(*asked))
        print(f"{processes.DOORS[door]}, {given.connections} at once")
        met &= _tell(found)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
