"""One `antiphon up` of a run: started, looked at, hurt and stopped, with everything it started.

Lives here: processes and signals. Not here: what clients see (`clients.py`), when what happens (`run.py`).

Invariant: whatever happens to it, `end` leaves none of its processes behind; only processes that it started are
touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lab.bench import cpu

DOORS: dict[str, tuple[str, ...]] = {
    "http": ("--door", "http"),
    "relay": ("--mode", "relay"),
    "drive": ("--mode", "drive"),
}
DRAIN = 5.0
# How long a start takes is no part of what is judged, and machines may be busy.
_START_SECONDS = 180.0


def settings() -> dict[str, Any]:
    """Everything ends soon, so that a run sees many ends."""
    return {
        "upstream": {"auth": "none", "profile": "generic"},
        "limits": {"upstream_body_bytes": 4 << 20, "sse_event_bytes": 1 << 20},
        "timeouts": {
            "connect": 2,
            "head": 6,
            "head_wait": 2,
            "idle": 4,
            "no_output": 8,
            "error_body": 3,
            "response": 30,
            "keepalive": 2,
            "request": 5,
            "send": 5,
            "save": 5,
            "settle": 10,
            "read": 5,
            "hung": 6,
            "drain": DRAIN,
        },
        # As many tries as a run may end: no job is to be given up here.
        "background": {"lease": 3, "patience": 10, "attempts": 1000},
        "conversations": {"lease": 4},
    }


class Gateway:
    """A running gateway. `url` has no path."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log
        self._seen: set[tuple[int, str]] = set()

    @classmethod
    async def start(cls, door: str, upstream: str, folder: Path) -> Gateway:
        """Start it on the folder's data; returns once it is ready."""
        config = folder / "settings.json"
        config.write_text(json.dumps(settings()))
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
        log = folder / "log"
        with log.open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "antiphon", "up", "--upstream", upstream, "--listen", "127.0.0.1:0"),
                *("--data", str(folder / "data"), "--config", str(config), "--workers", "2"),
                *("--log-level", "warning", "--log-format", "json", *DOORS[door]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=plain,
                start_new_session=True,
            )
        assert process.stdout is not None
        made = cls(process, "", log)
        try:
            async with asyncio.timeout(_START_SECONDS):
                line = (await process.stdout.readline()).decode()
            if not line.startswith("ready: "):
                raise RuntimeError(f"the gateway did not start:\n{log.read_text(errors='replace')[-3000:]}")
        except BaseException:
            await made.end()
            raise
        made.url = line.removeprefix("ready: ").strip().removesuffix("/v1")
        made.look()
        return made

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    def look(self) -> dict[int, str]:
        """Its processes and what they are; all that were ever seen are remembered."""
        found: dict[int, str] = {}
        with contextlib.suppress(OSError):
            waiting = [self.process.pid]
            while waiting:
                pid = waiting.pop()
                with contextlib.suppress(OSError):
                    children = cpu.children(pid)
                    for child in children:
                        found[child] = " ".join(cpu.command_line(child))
                        self._seen.add((child, _started(child)))
                    waiting += children
        return found

    def workers(self) -> list[int]:
        """The processes that serve: sidecars, or HTTP doors."""
        names = (" antiphon extproc", " antiphon serve")
        return sorted(
            pid
            for pid, line in self.look().items()
            # Each has a guard, a small process of its own, that stands before the same words.
            if any(name in line for name in names) and "guard.py" not in line
        )

    def envoys(self) -> list[int]:
        return sorted(pid for pid, line in self.look().items() if "envoy" in line.split(" ")[0].rpartition("/")[2])

    async def stop(self, seconds: float) -> float | None:
        """SIGTERM; how long it took to end, None when it did not within so many seconds."""
        self.look()
        if not self.alive:
            return 0.0
        ended: list[float] = []
        # In a thread of its own: the loop here is busy with clients, which is not the gateway's fault.
        with contextlib.suppress(ProcessLookupError):
            watching = threading.Thread(target=_note_the_end, args=(os.pidfd_open(self.process.pid), seconds, ended))
            watching.start()
            started = time.monotonic()
            self.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(watching.join)
            if not ended:
                return None
            await self.process.wait()
            return ended[0] - started
        return 0.0

    def orphans(self) -> list[int]:
        """Of all processes it ever had, those that live."""
        return [pid for pid, started in self._seen if _started(pid) == started]

    async def end(self) -> None:
        """Kill whatever is left."""
        with contextlib.suppress(OSError):
            self.look()
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        for pid in self.orphans():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _note_the_end(process: int, seconds: float, ended: list[float]) -> None:
    """When a process, known by a descriptor, ended, if it did within so many seconds."""
    try:
        if select.select([process], [], [], seconds)[0]:
            ended.append(time.monotonic())
    finally:
        os.close(process)


def _started(pid: int) -> str:
    """When a process began, which distinguishes it from a later one with the same id; empty when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
