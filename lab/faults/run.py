"""`scripts/lab faults`: subjects every kind of server to all known failures, and checks for hangs, wrong answers and
lost data.

Lives here: the phases, the faults, the table and the verdict. Not here: clients (`clients.py`), the broken chat server
(`upstream.py`), processes (`gateway.py`).

For each kind of server, a long phase without process faults comes first. This phase has broken upstreams, clients that
disconnect or read slowly, and floods. The workers' memory between requests must not grow. Then come rounds on the same
data. In each round the run kills a worker, Envoy or all processes, or stops one with SIGSTOP. Each round ends with a
SIGTERM during background responses with followers. The gateway must then end within the drain time and two seconds. At
the end every acknowledged turn must exist.

Invariant: a run ends by itself and stops everything that it started. A wrong count makes the exit status 1. The seed
decides the requests and their order.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.bench import cpu
from lab.bench.variants import Process
from lab.faults.clients import Clients, Ledger
from lab.faults.gateway import DOORS, DRAIN, Gateway

_MIB = 1 << 20
_STOP_WITHIN = DRAIN + 2.0
_QUIET_SHARE = 0.55
_ROUND_SECONDS = 16.0
# The first phase has four parts. After each part all clients pause, so that the memory measured is retained memory, not
# that of running requests.
_QUARTERS, _REST_SECONDS = 4, 4.0
# The permitted growth of a worker's memory from the first half to the second (about 8 KiB per request for half an
# hour), because allocators round up and fragment.
_GROWTH = 8 * _MIB
_FAULTS = {
    "http": ("worker -9", "worker STOP", "nothing", "everything -9"),
    "envoy": ("worker -9", "envoy -9", "worker STOP", "nothing", "everything -9", "envoy STOP"),
}


@dataclass
class Door:
    """The results of one kind of server."""

    name: str
    ledger: Ledger = field(default_factory=Ledger)
    stops: list[str] = field(default_factory=list)
    longest_stop: float = 0.0
    late: list[str] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, list[str]]:
        """The lists of faults by name. All lists must be empty."""
        return {
            "hung": self.ledger.hung,
            "wrong": self.ledger.wrong,
            "own 500s": self.ledger.own,
            "lost": self.ledger.lost,
            "late stops": self.late,
            "grown": self.grown,
            "tracebacks": self.tracebacks,
        }


class _Run:
    """The phases of one kind of server."""

    def __init__(self, door: Door, upstream: str, folder: Path, seed: int) -> None:
        self._door = door
        self._upstream = upstream
        self._folder = folder
        self._gateway: Gateway | None = None
        self._clients = Clients(self._url, door.ledger, seed)
        self._tasks: set[asyncio.Task[None]] = set()

    def _url(self) -> str | None:
        return self._gateway.url if self._gateway is not None and self._gateway.alive else None

    async def run(self, seconds: float) -> None:
        try:
            self._gateway = await Gateway.start(self._door.name, self._upstream, self._folder)
            await self._quiet(seconds * _QUIET_SHARE)
            until = time.monotonic() + seconds * (1 - _QUIET_SHARE)
            faults = _FAULTS["http" if self._door.name == "http" else "envoy"]
            number = 0
            while number < 2 or time.monotonic() < until:
                await self._round(faults[number % len(faults)])
                number += 1
            await self._last()
        except Exception as broken:
            # The run prints the results that it has so far, even after an error.
            self._door.ledger.wrong.append(f"the run broke off: {type(broken).__name__} {broken}")
        finally:
            await self._clients.aclose()
            if self._gateway is not None:
                await self._gateway.end()

    def _begin(self, clients: Sequence[tuple[int, str]]) -> None:
        self._clients.stopping = False
        for count, name in clients:
            for _ in range(count):
                self._tasks.add(asyncio.create_task(self._clients.run(getattr(self._clients, name))))

    async def _finish(self) -> None:
        """Tell the clients to stop, and wait until they have ended."""
        self._clients.stopping = True
        tasks, self._tasks = self._tasks, set()
        await asyncio.gather(*tasks)

    async def _quiet(self, seconds: float) -> None:
        assert self._gateway is not None
        at_rest: dict[int, list[int]] = {pid: [] for pid in self._gateway.workers()}
        for _ in range(_QUARTERS):
            self._begin(
                [(4, "broken_upstreams"), (2, "leaves"), (1, "reads_slowly"), (1, "floods"), (2, "takes_turns")]
            )
            self._begin([(1, "works_in_the_background")])
            await asyncio.sleep(seconds / _QUARTERS)
            await self._finish()
            for pid, size in (await _at_rest(at_rest)).items():
                at_rest[pid].append(size)
        if sorted(at_rest) != self._gateway.workers():
            self._door.ledger.wrong.append("a worker died, but this run did not kill it")
        for sizes in at_rest.values():
            seen = " → ".join(f"{size / _MIB:.0f}" for size in sizes) + " MiB"
            self._door.memory.append(seen)
            if sizes and growth(sizes) > _GROWTH:
                self._door.grown.append(f"a worker's memory: {seen}")

    async def _round(self, fault: str) -> None:
        if self._gateway is None or not self._gateway.alive:
            self._gateway = await Gateway.start(self._door.name, self._upstream, self._folder)
        gateway = self._gateway
        self._begin([(4, "takes_turns"), (2, "works_in_the_background"), (2, "broken_upstreams"), (1, "leaves")])
        await asyncio.sleep(_ROUND_SECONDS * 0.3)
        hurt = await self._hurt(gateway, fault)
        await asyncio.sleep(_ROUND_SECONDS * 0.7)
        if hurt is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hurt, signal.SIGCONT)
        self._door.faults.append(fault if gateway.alive else f"{fault} (up ended)")
        if gateway.alive:
            # The SIGTERM comes while streams, background jobs and followers are running.
            took = await gateway.stop(3 * _STOP_WITHIN)
            self._note_stop(fault, gateway, took)
        await self._finish()
        await gateway.end()
        self._gateway = None

    async def _hurt(self, gateway: Gateway, fault: str) -> int | None:
        """Inject the fault. Returns the id of a process that was stopped with SIGSTOP, or None."""
        what, _, how = fault.partition(" ")
        if what == "nothing":
            return None
        pids = {
            "worker": gateway.workers()[:1],
            "envoy": gateway.envoys()[:1],
            "everything": [gateway.process.pid, *gateway.workers(), *gateway.envoys()],
        }[what]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if how == "STOP" else signal.SIGKILL)
        if what == "everything":
            await gateway.process.wait()
        return pids[0] if how == "STOP" and pids else None

    def _note_stop(self, fault: str, gateway: Gateway, took: float | None) -> None:
        code = gateway.process.returncode
        if took is None:
            self._door.late.append(f"after {fault}: not within {3 * _STOP_WITHIN:g} s")
            return
        self._door.stops.append(f"{took:.1f} s ({code})")
        self._door.longest_stop = max(self._door.longest_stop, took)
        if took > _STOP_WITHIN:
            self._door.late.append(f"after {fault}: {took:.1f} s")
        if left := gateway.orphans():
            self._door.late.append(f"after {fault}: {len(left)} processes live on")

    async def _last(self) -> None:
        self._gateway = await Gateway.start(self._door.name, self._upstream, self._folder)
        await self._clients.check()
        self._note_stop("the last check", self._gateway, await self._gateway.stop(3 * _STOP_WITHIN))
        text = self._gateway.log.read_text(errors="replace").splitlines()
        self._door.tracebacks += [line[:2000] for line in text if "Traceback" in line or "never retrieved" in line]


async def _at_rest(pids: Iterable[int]) -> dict[int, int]:
    """The private memory of each running process while there are no requests: the smallest measured value."""
    least: dict[int, int] = {}
    until = time.monotonic() + _REST_SECONDS
    while time.monotonic() < until:
        await asyncio.sleep(0.25)
        for pid in pids:
            with contextlib.suppress(OSError, ValueError):
                least[pid] = min(cpu.anonymous_bytes(pid), least.get(pid, sys.maxsize))
    return least


def growth(sizes: Sequence[int]) -> int:
    """The number of bytes by which the smallest value of the second half exceeds the largest of the first. A leak
    raises all later values, and a peak does not."""
    middle = len(sizes) // 2
    return min(sizes[middle:]) - max(sizes[:middle], default=sizes[-1])


def _print(doors: Sequence[Door], seconds: float) -> bool:
    """Print the table. Returns whether all counts are as they must be."""
    names = list(doors[0].counts)
    print(f"\n{seconds:.0f} s, stops allowed {_STOP_WITHIN:g} s\n")
    print("| door | asked | acknowledged | faults | stops | longest | " + " | ".join(names) + " |")
    print("| --- " * (6 + len(names)) + "|")
    for door in doors:
        ledger = door.ledger
        row = [
            *(door.name, sum(ledger.done.values()), len(ledger.turns) + len(ledger.jobs)),
            *(len(door.faults), len(door.stops), f"{door.longest_stop:.1f} s"),
            *(len(door.counts[name]) for name in names),
        ]
        print("| " + " | ".join(str(each) for each in row) + " |")
    good = True
    for door in doors:
        print(
            f"\n{door.name}: memory of the workers at rest {', '.join(door.memory)}; faults: {', '.join(door.faults)}"
        )
        print(f"  stops: {', '.join(door.stops)}")
        for name, count in sorted(door.ledger.done.items()):
            print(f"  {count:7} {name}")
        for name, found in door.counts.items():
            good = good and not found
            for one in found[:8]:
                print(f"  WRONG {name}: {one}")
    print("\nfaults: all good" if good else "\nfaults: something is wrong")
    return good


async def _main(given: argparse.Namespace, folder: Path) -> int:
    doors = [Door(name) for name in given.doors.split(",")]
    # A signal that ends the run also ends the processes that it started.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    upstream = await Process.start(folder / "upstream.log", sys.executable, "-m", "lab.faults.upstream")
    started = time.monotonic()
    try:
        for door in doors:
            place = folder / door.name
            place.mkdir()
            print(f"{door.name} …", file=sys.stderr, flush=True)
            await _Run(door, upstream.ready, place, given.seed).run(given.seconds / len(doors))
            counts = ", ".join(f"{name} {len(found)}" for name, found in door.counts.items())
            print(f"{door.name}: asked {sum(door.ledger.done.values())}, {counts}", file=sys.stderr, flush=True)
    finally:
        await upstream.stop()
    return 0 if _print(doors, time.monotonic() - started) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is 0 if every count is as it must be."""
    parser = argparse.ArgumentParser(
        prog="scripts/lab faults", description="Everything breaks; nothing may hang or be lost."
    )
    parser.add_argument("--seconds", type=float, default=1800.0, help="how long, all doors together (default 1800)")
    parser.add_argument("--doors", default=",".join(DOORS), help=f"which, in this order (default {','.join(DOORS)})")
    parser.add_argument("--seed", type=int, default=1, help="decides the requests and their order")
    parser.add_argument("--keep", type=Path, help="a folder for logs and data, which is not deleted")
    given = parser.parse_args(arguments)
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
        return asyncio.run(_main(given, given.keep))
    with tempfile.TemporaryDirectory(prefix="antiphon-faults-") as folder:
        return asyncio.run(_main(given, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
