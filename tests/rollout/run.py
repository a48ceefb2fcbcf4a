"""`scripts/rollout`: a rolling restart under load, in both modes; the table, and the judgement.

Lives here: the phases and what is printed. Not here: clients (`clients.py`), processes (`replicas.py`).

All clients run from the first to the last moment. Each replica gets SIGTERM; when its process has ended a new one takes
its place, and when the balancer sends that one requests, the next replica's turn comes.

Invariant: a run ends by itself and takes everything along that it started; the exit status is 0 when no request failed
and no answer was cut.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.bench.variants import Process
from tests.rollout.clients import Clients, Seen
from tests.rollout.replicas import MODES, Mode, Plan, Restart, Service

_SHOWN = 8
_LONG = "background, longer than a drain"


@dataclass
class Load:
    """How many clients of each kind; `seconds`: how long a stream takes, `pause`: between two of its words. `long`
    clients follow responses of `long_seconds`, which no drain waits for."""

    streams: int
    others: int
    seconds: float
    pause: float = 0.5
    long: int = 0
    long_seconds: float = 0.0


@dataclass
class Result:
    """One mode's run."""

    mode: Mode
    seen: dict[str, Seen] = field(default_factory=dict)
    restarts: list[Restart] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nobody noticed, and every process ended well."""
        clean = not any(seen.failed or seen.cut for seen in self.seen.values())
        return clean and all(seen.asked for seen in self.seen.values()) and not any(one.status for one in self.restarts)


async def roll(plan: Plan, load: Load, upstream: str, folder: Path, *, warm: float, rest: float) -> Result:
    """One rolling restart under load. `warm`: seconds of load before it; `rest`: after each replica."""
    folder.mkdir(parents=True, exist_ok=True)
    service, result = Service(plan, upstream, folder), Result(plan.mode)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        await service.start()
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
            words, long_words = (round(seconds / load.pause) for seconds in (load.seconds, load.long_seconds))
            clients = Clients(service.url, words, long_words, session, seen=result.seen)
            running = [
                *(("streams", clients.stream) for _ in range(load.streams)),
                *(("CRUD", clients.crud) for _ in range(load.others)),
                *(("uploads", clients.upload) for _ in range(load.others)),
                *(("background, followed", clients.follow) for _ in range(load.others)),
                *(("WebSockets", clients.websocket) for _ in range(load.others)),
                *((_LONG, clients.follow_long) for _ in range(load.long)),
            ]
            tasks = [asyncio.create_task(clients.run(kind, client)) for kind, client in running]
            try:
                await asyncio.sleep(warm)
                for number in range(plan.replicas):
                    result.restarts.append(await service.restart(number))
                    # Not always at the same moment between two checks of health.
                    await asyncio.sleep(rest + 0.37 * number)
                clients.stopping = True
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await service.stop()
    return result


def table(result: Result) -> str:
    """What was seen, as Markdown."""
    lines = [
        f"\n### {result.mode}\n",
        "| clients | requests | failed | cut | moved or resumed | failover p50 | longest |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, seen in result.seen.items():
        middle, most = (statistics.median(seen.gaps), max(seen.gaps)) if seen.gaps else (None, None)
        cells = (kind, seen.asked, len(seen.failed), len(seen.cut), len(seen.gaps), _shown(middle), _shown(most))
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    lines += [
        "\n| replica | out of the balancer | ended | exit status | finished | given back | serving again |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in result.restarts:
        told = (one.told.get("finished", "?"), one.told.get("given_back", 0))
        row = (one.number, _shown(one.unseen), _shown(one.ended), one.status, *told, _shown(one.back))
        lines.append("| " + " | ".join(str(cell) for cell in row) + " |")
    for kind, seen in result.seen.items():
        lines += [f"FAILED {kind}: {text}" for text in seen.failed[:_SHOWN]]
        lines += [f"CUT {kind}: {text}" for text in seen.cut[:_SHOWN]]
    return "\n".join(lines)


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"


async def _main(given: argparse.Namespace, folder: Path) -> int:
    # Whoever ends the run ends what it started.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    # So many that each replica has some.
    long = 2 * given.replicas if given.others else 0
    load = Load(given.streams, given.others, given.seconds, given.pause, long, 2 * given.drain)
    command = (sys.executable, "-m", "tests.rollout.upstream", "--pause", str(given.pause))
    folder.mkdir(parents=True, exist_ok=True)
    upstream = await Process.start(folder / "upstream.log", *command)
    results = []
    try:
        for mode in given.modes:
            print(f"{mode} …", file=sys.stderr, flush=True)
            plan = Plan(mode, given.replicas, given.notice, given.drain, given.state)
            result = await roll(plan, load, upstream.ready, folder / mode, warm=given.warm, rest=given.rest)
            results.append(result)
            print(table(result), flush=True)
    finally:
        await upstream.stop()
    good = all(result.good for result in results)
    print("\nrollout: nobody noticed" if good else "\nrollout: something failed or was cut")
    return 0 if good else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit status is 0 when nothing failed and nothing was cut."""
    parser = argparse.ArgumentParser(prog="scripts/rollout", description="A rolling restart that nobody notices.")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="which doors (default: http envoy)")
    parser.add_argument("--replicas", type=int, default=3, help="default 3")
    parser.add_argument("--streams", type=int, default=200, help="streams at once (default 200)")
    parser.add_argument("--others", type=int, default=4, help="clients of each other kind (default 4)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a stream takes (default 5)")
    parser.add_argument("--pause", type=float, default=0.5, help="between two words of a stream (default 0.5)")
    parser.add_argument("--notice", type=float, default=4.0, help="timeouts.notice (default 4)")
    parser.add_argument("--drain", type=float, default=25.0, help="timeouts.drain (default 25)")
    parser.add_argument("--warm", type=float, default=6.0, help="seconds of load before the first SIGTERM (default 6)")
    parser.add_argument("--rest", type=float, default=2.0, help="seconds between two replicas (default 2)")
    parser.add_argument(
        "--state", default="", help="state.url of all replicas (default: SQLite in a folder they share)"
    )
    parser.add_argument("--keep", type=Path, help="a folder for logs and data, which is not deleted")
    given = parser.parse_args(arguments)
    if given.keep is not None:
        return asyncio.run(_main(given, given.keep))
    with tempfile.TemporaryDirectory(prefix="antiphon-rollout-") as folder:
        return asyncio.run(_main(given, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
