"""Implements `scripts/bench growth`: how the CPU cost of a request grows, with one picture for each kind of growth.

    scripts/bench growth depth stored streams chunks workers --json growth.json --images docs/images

Lives here: the sections and their tables. Not here: the pictures (`plot.py`), search itself (`search_speed.py`).

- `depth`: small requests behind 1 to 1,000 stored turns;
- `stored`: small requests when 1,000 to 1,000,000 responses are stored already, in SQLite;
- `streams`: open streams with a chunk each 5 seconds, 10 to 10,000 of them: CPU time per chunk, memory per stream;
- `chunks`: searches in vector stores of 1,000 to 100,000 chunks, in one process;
- `workers`: what 1 to 64 workers can do on paper, computed from the costs with one worker.

CPU times are those of all processes, Envoy's too, except in `chunks`. `workers` is arithmetic, not a measurement: it
assumes enough cores, and no contention between workers for memory or the store.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from antiphon.supervisor.children import ParentPipe
from lab.bench import cpu, priority, search_speed
from lab.bench.history import fill
from lab.bench.load import Job, ask_load, start_load
from lab.bench.rounds import BURST, say
from lab.bench.run import more_descriptors
from lab.bench.upstream import start_upstream
from lab.bench.variants import Process, Values, Variant, start_variant, store_chains

Rows = dict[str, Values]
"""The figures of a section by size (`1000`) and name."""

DEPTHS = (1, 3, 10, 30, 100, 300, 1000)
_PACE = 5.0


class _Setup:
    """The upstream, the load generator, and how a variant starts in front of them."""

    def __init__(self, folder: Path, upstream: Process, load: Process, pipe: ParentPipe, given: Any) -> None:
        self.folder, self.given = folder, given
        self._upstream, self._load, self._pipe = upstream, load, pipe

    async def start(self, name: str, ending: str = "") -> Variant:
        return await start_variant(
            f"{self.given.variant}{ending}", int(self._upstream.ready), self.folder / name, self._pipe
        )

    async def ask(
        self, variant: Variant, callers: int, chunks: int = 0, model: str = "json", stagger: float = 0.0, **more: Any
    ) -> dict[str, Any]:
        fields = (variant.port, variant.protocol.path, variant.protocol.body(model, stream=chunks > 0, **more))
        seconds = max(self.given.seconds, stagger * callers + 0.1)
        grace = 5 * _PACE
        marker = variant.protocol.marker(model)
        keys = ("port", "path", "body", "connections", "seconds", "grace", "chunks", "marker", "stamps", "stagger")
        values = (*fields, callers, seconds, grace, chunks, marker, False, stagger)
        answer = await ask_load(self._load, Job(**dict(zip(keys, values, strict=True))))  # type: ignore[typeddict-item]
        if answer["errors"] or answer["unfinished"]:
            say(f"{model}, {callers} callers: {answer['errors']} errors, {answer['unfinished']} did not end")
            say(answer["complaint"])
        return answer

    async def cost(self, variant: Variant, callers: int, chunks: int = 0, model: str = "json", **more: Any) -> Values:
        """The median of the rounds: CPU µs per request or chunk of the busiest process (`worker`), of Envoy, and of
        all processes, and the median duration in ms."""
        found: list[Values] = []
        for number in range(self.given.rounds + 1):
            before = {pid: cpu.cpu_seconds([pid]) for pid in (*variant.sidecar, *variant.envoy)}
            answer = await self.ask(variant, callers, chunks, model, **more)
            each = 1e6 / max(answer["chunks"] or answer["requests"], 1)
            spent = {pid: (cpu.cpu_seconds([pid]) - was) * each for pid, was in before.items()}
            # The first round warms up the caches.
            if number:
                worker = max(spent[pid] for pid in variant.sidecar)
                envoy = sum(spent[pid] for pid in variant.envoy)
                duration = answer["whole_us"].get("p50", 0.0) / 1000
                found.append({"all": sum(spent.values()), "worker": worker, "envoy": envoy, "p50_ms": duration})
        return {key: statistics.median(one[key] for one in found) for key in found[0]}


async def _depth(setup: _Setup) -> Rows:
    variant = await setup.start("depth")
    try:
        depths = [depth for depth in DEPTHS if depth <= setup.given.largest]
        chains = await asyncio.to_thread(store_chains, variant.port, depths)
        rows = {"0": await setup.cost(variant, 8)}
        for depth in depths:
            say(f"a request behind {depth} stored turns")
            rows[str(depth)] = await setup.cost(variant, 8, previous_response_id=chains[depth])
        return rows
    finally:
        await variant.stop()


async def _stored(setup: _Setup) -> Rows:
    rows = {}
    for size in _sizes(setup, 1_000, 10_000_000):
        say(f"{size} stored responses")
        data = setup.folder / f"stored-{size}" / "data"
        data.mkdir(parents=True)
        await fill(data, size)
        variant = await setup.start(f"stored-{size}")
        try:
            row: Values = {"MB": sum(file.stat().st_size for file in data.rglob("*") if file.is_file()) / 1e6}
            jobs: dict[str, dict[str, Any]] = {
                "unstored": {},
                "stored": {"store": True},
                "chained": {"previous_response_id": variant.chains[1]},
            }
            for name, more in jobs.items():
                cost = await setup.cost(variant, 8, **more)
                row |= {name: cost["all"], f"{name}_p50_ms": cost["p50_ms"]}
            rows[str(size)] = row
        finally:
            await variant.stop()
    return rows


async def _streams(setup: _Setup) -> Rows:
    rows = {}
    for size in _sizes(setup, 10, 10_000):
        say(f"{size} open streams")
        variant = await setup.start(f"streams-{size}", "-crowd")
        try:
            await setup.ask(variant, 4, 5, "burst-5")
            # Processes with nothing to do also take CPU time.
            began = variant.cpu_seconds()
            await asyncio.sleep(_PACE)
            idle = {part: now - began[part] for part, now in variant.cpu_seconds().items()}
            before = {"sidecar": cpu.rss_bytes(variant.sidecar), "envoy": cpu.rss_bytes(variant.envoy)}
            model = f"paced-3-{_PACE * 1000:.0f}ms"
            asked = asyncio.ensure_future(setup.ask(variant, size, 3, model, stagger=_PACE / size))
            # All streams have begun after one pace. In the next pace each stream sends one chunk.
            await asyncio.sleep(_PACE + 0.2)
            began = variant.cpu_seconds()
            await asyncio.sleep(_PACE)
            spent = {part: now - began[part] - idle[part] for part, now in variant.cpu_seconds().items()}
            row = {f"{part}_us": max(seconds, 0.0) / size * 1e6 for part, seconds in spent.items()}
            for part, pids in (("sidecar", variant.sidecar), ("envoy", variant.envoy)):
                row[f"{part}_kib"] = (cpu.rss_bytes(pids) - before[part]) / size / 1024
            answer = await asked
            row |= {"failed": answer["errors"] + answer["unfinished"]}
            rows[str(size)] = row | {"all": row["sidecar_us"] + row.get("envoy_us", 0.0)}
        finally:
            await variant.stop()
    return rows


async def _chunks(setup: _Setup) -> Rows:
    return {str(size): await search_speed.measure(size, 384) for size in _sizes(setup, 1_000, 1_000_000)}


async def _workers(setup: _Setup) -> Rows:
    variant = await setup.start("workers")
    try:
        costs = {
            "requests": await setup.cost(variant, 16),
            "stored": await setup.cost(variant, 16, store=True),
            "chained": await setup.cost(variant, 16, previous_response_id=variant.chains[1]),
            "chunks": await setup.cost(variant, 16, BURST, f"burst-{BURST}"),
        }
    finally:
        await variant.stop()
    return on_paper(costs)


def on_paper(costs: Mapping[str, Values]) -> Rows:
    """What 1 to 64 workers can do each second, and the cores of all processes then, Envoy's too. The processes that the
    workers share, such as the parent that copies the log, are single, so they can be the limit."""
    rows = {}
    for number in (1, 2, 4, 8, 16, 32, 64):
        row: Values = {}
        for name, cost in costs.items():
            shared = cost["all"] - cost["worker"] - cost["envoy"]
            rate = min(number / cost["worker"], 1 / shared if shared > 0 else float("inf")) * 1e6
            row |= {name: rate, f"{name}_cores": rate * cost["all"] / 1e6}
        rows[str(number)] = row
    return rows


def _sizes(setup: _Setup, first: int, last: int) -> list[int]:
    """The powers of ten between two numbers, up to the largest that the command line allows."""
    return [10**power for power in range(9) if first <= 10**power <= min(last, setup.given.largest)]


SECTIONS: dict[str, Callable[[_Setup], Awaitable[Rows]]] = {
    "depth": _depth,
    "stored": _stored,
    "streams": _streams,
    "chunks": _chunks,
    "workers": _workers,
}


def table(section: str, rows: Rows) -> str:
    """A section's table as Markdown."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [[section, *names], ["---:"] * (len(names) + 1)]
    for size, row in rows.items():
        cells = [f"{row[name]:,.{1 if abs(row[name]) < 100 else 0}f}" if name in row else "-" for name in names]
        lines.append([f"{int(size):,}", *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


async def _run(given: argparse.Namespace) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    with tempfile.TemporaryDirectory(prefix="antiphon-growth-", dir=given.folder) as name:
        folder, pipe = Path(name), ParentPipe()
        upstream, load = await start_upstream(folder), await start_load(folder)
        priority.lift([upstream.pid, load.pid])
        try:
            for section in given.sections:
                found[section] = await SECTIONS[section](_Setup(folder, upstream, load, pipe, given))
                print(f"\n{table(section, found[section])}", flush=True)
        finally:
            await load.stop()
            await upstream.stop()
            pipe.close()
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench growth", description="How the cost of a request grows.")
    parser.add_argument("sections", nargs="*", default=[], help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--variant", default="relay", help="relay, drive or http (default relay)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of one measurement")
    parser.add_argument("--largest", type=int, default=100_000, help="the largest size (default 100000)")
    parser.add_argument("--folder", type=Path, help="on which disk to store (default: that of temporary files)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, in addition to those in FILE")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="draw growth-SECTION.png of all figures in FILE")
    given = parser.parse_args(arguments)
    given.sections = given.sections or list(SECTIONS)
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}")
    more_descriptors()
    found = asyncio.run(_run(given))
    if given.json:
        if given.json.exists():
            found = {**json.loads(given.json.read_text()), **found}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    if given.images:
        # matplotlib is a large package of an extra, so it is imported only if needed.
        from lab.bench.plot import draw_growth

        for section, rows in found.items():
            draw_growth(section, rows, given.images / f"growth-{section}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
