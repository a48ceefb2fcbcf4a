"""Measures how long one large request blocks a sidecar: the longest turn of its event loop.

Lives here: a sidecar in a separate process with a clock in its event loop, and the large requests. Not here: the
waiting times of other clients (`run.py`), the cost of translation alone (`core.py`).

The clock sets a timer repeatedly, and the largest delay of a timer is the longest turn of the loop. This delay includes
the machine's own delays, so the program also measures an idle process.

Invariant: the sidecar is Antiphon's own, including the store, and only the clock is added.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import cast

from antiphon.app.build import build
from antiphon.config.settings import load_settings
from antiphon.doors.extproc.server import ExtProcDoor, TransportName
from antiphon.observability.logs import configure
from antiphon.supervisor.process import collect_by_time, keep_what_there_is, run_loop
from lab.bench.core import large_requests
from lab.bench.variants import Process
from tests.support.fake_envoy import FakeEnvoy

_TICK = 0.0005
_IDLE_SECONDS = 0.3
_ANSWER = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
    }
).encode()


async def longest_turns(transport: str, repeats: int) -> dict[str, float]:
    """Milliseconds by kind of request (median over the repeats), and of a process with nothing to do (`idle`)."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="antiphon-stall-") as name:
        folder = Path(name)
        child = await Process.start(
            folder / "log", sys.executable, "-m", "lab.bench.stall", str(folder), transport, wait=True
        )
        try:
            async with FakeEnvoy(f"unix:{folder}/grpc.sock") as envoy:
                for _ in range(repeats):
                    await child.ask("begin")
                    await asyncio.sleep(_IDLE_SECONDS)
                    found.setdefault("idle", []).append(float(await child.ask("end")))
                    for kind, body in large_requests().items():
                        await child.ask("begin")
                        stream = envoy.stream()
                        await stream.request(body)
                        await stream.forwarded()
                        await stream.upstream(200, (("content-type", "application/json"),), _ANSWER, end=True)
                        await stream.complete()
                        assert stream.client.status == 200, stream.client.body
                        found.setdefault(kind, []).append(float(await child.ask("end")))
        finally:
            await child.stop()
    return {kind: statistics.median(values) for kind, values in found.items()}


class _Clock:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._last = 0.0
        self.latest = 0.0
        self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        if self._last:
            self.latest = max(self.latest, now - self._last - _TICK)
        self._last = now
        self._loop.call_later(_TICK, self._tick)


async def _serve(folder: Path, transport: TransportName) -> int:
    configure("warning", "json")
    app = await build(load_settings({"data": str(folder / "data")}), door="envoy")
    door = ExtProcDoor(app.context, mode="auto", transport=transport)
    await door.start(f"unix:{folder}/grpc.sock")
    loop = asyncio.get_running_loop()
    clock = _Clock(loop)
    keep_what_there_is()
    collect_by_time(loop.call_later)
    print("ready: 0", flush=True)
    # The parent holds the other end of standard input, so this process ends with its parent.
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line == "begin\n":
            clock.latest = 0.0
        print(clock.latest * 1000, flush=True)
    await door.aclose()
    await app.aclose()
    return 0


def main() -> None:
    """Serve until standard input ends; prints `ready: 0`, then a figure for each line."""
    transport = cast(TransportName, sys.argv[2])
    run_loop(_serve(Path(sys.argv[1]), transport))


if __name__ == "__main__":
    main()
