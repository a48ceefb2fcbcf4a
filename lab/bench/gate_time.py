"""Measures the gate by CPU time, where instructions cannot be counted: the costs as ratios to the echo.

Lives here: the rounds and the limits. Not here: the path (`gate_path.py`), instructions (`gate_instructions.py`).

The program measures both paths in turn in each round, and takes the minimum of the rounds. Other load on the machine
makes a round more expensive, because programs share caches. The load affects the longer path more than the shorter one.
So the limits are loose, and a small regression passes. This measurement is the fallback if valgrind is missing.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Awaitable, Callable

import uvloop

from antiphon.observability.logs import configure
from lab.bench.gate_path import CHUNKS, Paths, open_paths

_STREAMS = 12
_REQUESTS = 50
_ROUNDS = 30

BOUNDS = {"chunk": 10.0, "request": 26.0}
"""The maximum ratio of the relay's CPU time to the echo's. `chunk` is a message with one chunk, and `request` all
messages of a small request.

The limits are twice the values of a quiet machine. On a busy machine the ratio of a request was once 20.7, although the
request had become cheaper.
"""


def measure() -> dict[str, tuple[float, float]]:
    """CPU microseconds of the relay and of the echo, by kind."""
    configure("error", "json")
    return uvloop.run(_measure())


async def _measure() -> dict[str, tuple[float, float]]:
    async with open_paths() as paths:
        samples: dict[tuple[str, str], list[float]] = {}
        for number in range(_ROUNDS + 1):
            for kind, messages, times, per in (
                ("chunk", paths.stream, _STREAMS, CHUNKS),
                ("request", paths.short, _REQUESTS, 1),
            ):
                for name, path in (("relay", paths.relay), ("echo", paths.echo)):
                    spent = await _round(paths, path, messages, times, per)
                    # The first round warms up the caches.
                    if number:
                        samples.setdefault((kind, name), []).append(spent)
        return {kind: (min(samples[kind, "relay"]), min(samples[kind, "echo"])) for kind in BOUNDS}


async def _round(
    paths: Paths, path: Callable[[list[bytes], int], Awaitable[None]], messages: list[bytes], times: int, per: int
) -> float:
    gc.collect()
    started = time.process_time()
    for _ in range(times):
        await path(messages, per)
    paths.tell()
    return (time.process_time() - started) / (times * per) * 1e6
