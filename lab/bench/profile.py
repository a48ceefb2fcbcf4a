"""Implements `scripts/lab profile`: records a flame graph of the sidecar under load.

Lives here: starting one variant under load together with a sampler. Not here: the load (`load.py`) and the processes
(`variants.py`).

Invariant: the run ends by itself, and stops each process that it started.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from antiphon.supervisor.children import ParentPipe
from lab.bench import cpu
from lab.bench.load import Job, ask_load, start_load
from lab.bench.upstream import start_upstream
from lab.bench.variants import start_variant

_WARM_SECONDS = 1.0


async def _run(given: argparse.Namespace) -> int:
    pipe = ParentPipe()
    processes = []
    try:
        with tempfile.TemporaryDirectory(prefix="antiphon-profile-") as name:
            folder = Path(name)
            processes += [upstream := await start_upstream(folder), load := await start_load(folder)]
            variant = await start_variant(given.variant, int(upstream.ready), folder / "variant", pipe)
            try:
                chunks = int(given.model.partition("-")[2] or 0) if given.model != "json" else 0
                job = Job(
                    port=variant.port,
                    path=variant.protocol.path,
                    body=variant.protocol.body(given.model, stream=chunks > 0),
                    connections=given.streams,
                    seconds=given.seconds + 2 * _WARM_SECONDS,
                    grace=5.0,
                    chunks=chunks,
                    marker=variant.protocol.marker(given.model),
                    stamps=False,
                    stagger=0.0,
                )
                asked = asyncio.ensure_future(ask_load(load, job))
                before = {pid: cpu.cpu_seconds([pid]) for pid in variant.sidecar}
                await asyncio.sleep(_WARM_SECONDS)
                # Sample the worker, not its parent process.
                busiest = max(before, key=lambda pid: cpu.cpu_seconds([pid]) - before[pid])
                sampler = await asyncio.create_subprocess_exec(
                    *("py-spy", "record", "--pid", str(busiest), "--duration", str(int(given.seconds))),
                    *("--gil", "--rate", "500", "--format", given.format, "--output", str(given.output)),
                )
                status = await sampler.wait()
                answer = await asked
            finally:
                await variant.stop()
    finally:
        for process in reversed(processes):
            await process.stop()
        pipe.close()
    rate = answer["chunks_per_second"] or answer["requests_per_second"]
    print(f"{given.output}: {given.variant}, {given.model}, {given.streams} at once, {rate:,.0f}/s under the sampler")
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is the sampler's."""
    parser = argparse.ArgumentParser(prog="scripts/lab profile", description="A flame graph of the sidecar under load.")
    parser.add_argument("--variant", default="relay", help="relay, relay-grpcio, drive, drive-grpcio or http")
    parser.add_argument("--model", default="burst-200", help="burst-N, tools-N, reasoning-N or json")
    parser.add_argument("--streams", type=int, default=16, help="connections (default 16)")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long to sample (default 8)")
    parser.add_argument("--format", default="flamegraph", choices=("flamegraph", "raw", "speedscope"))
    parser.add_argument("--output", type=Path, default=Path("profile.svg"))
    return asyncio.run(_run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
