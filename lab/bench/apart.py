"""Measures single figures after the rounds, when the processes of the rounds have ended.

Lives here: starting a sidecar and its idle memory, several processes behind one Envoy, the longest turn of a sidecar's
event loop. Not here: measurements in turns (`rounds.py`).

Invariant: each figure is the median of several starts or runs, or the report names it as a single one.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from antiphon.supervisor.children import ParentPipe
from lab.bench import cpu
from lab.bench.load import Job, ask_load
from lab.bench.rounds import BURST, say
from lab.bench.stall import longest_turns
from lab.bench.variants import Process, Values, Variant, start_variant

Apart = dict[str, dict[str, Values]]
"""Figures by section (`start`, `turns`, `workers`), then by row and figure."""

_TRANSPORTS = ("http2", "grpcio")
_STARTS = 5
_REPEATS = 7
_SETTLED_SECONDS = 0.5
_CONNECTIONS = 16


async def measure_apart(
    upstream: int, load: Process, folder: Path, pipe: ParentPipe, workers: Sequence[int], seconds: float
) -> Apart:
    """Take all measurements of this module; takes about a minute."""
    found: Apart = {"start": {}, "turns": {}, "workers": {}}
    for transport in _TRANSPORTS:
        say(f"start and idle memory, {transport}")
        found["start"][transport] = await _starts(folder, transport)
    for transport in _TRANSPORTS:
        say(f"longest turn of the event loop, {transport}")
        found["turns"][transport] = await longest_turns(transport, _REPEATS)
    for number in workers:
        say(f"{number} sidecar process(es) behind one Envoy")
        variant = await start_variant("relay", upstream, folder / f"workers-{number}", pipe, workers=number)
        try:
            found["workers"][str(number)] = await _rates(load, variant, seconds)
        finally:
            await variant.stop()
    return found


async def _starts(folder: Path, transport: str) -> Values:
    """The seconds until a sidecar serves, and its idle memory in bytes."""
    seconds, resident, own = [], [], []
    for number in range(_STARTS):
        data = folder / f"start-{transport}-{number}"
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "antiphon", "extproc", "--data", str(data), "--transport", transport),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stderr is not None
            while not (line := await process.stderr.readline()).startswith(b"serving: "):
                if not line:
                    raise SystemExit("bench: a sidecar did not start")
            seconds.append(time.monotonic() - began)
            await asyncio.sleep(_SETTLED_SECONDS)
            resident.append(cpu.rss_bytes([process.pid]))
            own.append(cpu.anonymous_bytes(process.pid))
        finally:
            process.terminate()
            await process.wait()
    return {
        "ready_seconds": statistics.median(seconds),
        "idle_bytes": statistics.median(resident),
        "idle_own_bytes": statistics.median(own),
    }


async def _rates(load: Process, variant: Variant, seconds: float) -> Values:
    found: Values = {}
    for key, model, chunks, connections in (
        ("requests", "json", 0, _CONNECTIONS),
        ("chunks", f"burst-{BURST}", BURST, _CONNECTIONS),
        ("saturated", f"paced-{BURST}-1ms", BURST, 200),
    ):
        rates, spent = [], {"sidecar": 0.0, "envoy": 0.0}
        for _ in range(3):
            before = variant.cpu_seconds()
            answer = await _ask(load, variant, model, chunks, connections, seconds)
            rates.append(answer["chunks_per_second"] or answer["requests_per_second"])
            for part, now in variant.cpu_seconds().items():
                spent[part] += now - before[part]
        found[key] = statistics.median(rates)
        for part, used in spent.items():
            found[f"{key}_{part}_cores"] = used / (3 * seconds)
    return found


async def _ask(
    load: Process, variant: Variant, model: str, chunks: int, connections: int, seconds: float
) -> dict[str, Any]:
    job = Job(
        port=variant.port,
        path=variant.protocol.path,
        body=variant.protocol.body(model, stream=chunks > 0),
        connections=connections,
        seconds=seconds,
        grace=5.0,
        chunks=chunks,
        marker=variant.protocol.marker(model),
        stamps=False,
        stagger=0.0,
    )
    answer = await ask_load(load, job)
    if answer["errors"]:
        raise SystemExit(f"bench: {variant.name}, {model}: {answer['complaint']}")
    return answer
