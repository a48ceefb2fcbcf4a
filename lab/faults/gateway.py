"""Runs one `antiphon up` of a run: starts it, reads its state, injures it with signals, and stops it.

Lives here: processes and signals. Not here: what clients see (`clients.py`), the order of the faults (`run.py`).

Invariant: `end` leaves no process of the gateway behind. The class signals only processes that it started.
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
# The run does not judge the duration of a start, because the machine may be busy.
_START_SECONDS = 180.0


def settings() -> dict[str, Any]:
    """Antiphon's settings for a run, with short timeouts, so that a run sees many timeouts expire."""
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
        # The number of attempts exceeds the number of kills in a run, so that no job is given up.
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
        """Start a gateway on the folder's data. Returns once it is ready."""
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
        """The gateway's processes by id, each with its role. The gateway remembers all processes that it ever saw."""
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
        """The ids of the processes that serve: sidecars or HTTP servers."""
        names = (" antiphon extproc", " antiphon serve")
        return sorted(
            pid
            for pid, line in self.look().items()
            # Each child has a small guard process with the same command line.
            if any(name in line for name in names) and "guard.py" not in line
        )

    def envoys(self) -> list[int]:
        return sorted(pid for pid, line in self.look().items() if "envoy" in line.split(" ")[0].rpartition("/")[2])

    async def stop(self, seconds: float) -> float | None:
        """Send SIGTERM. Returns the seconds until the gateway ended, or None if it did not end within `seconds`."""
        self.look()
        if not self.alive:
            return 0.0
        ended: list[float] = []
        # A separate thread measures the end, because the clients keep this event loop busy.
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
        """The ids of all processes of this gateway that still live."""
        return [pid for pid, started in self._seen if _started(pid) == started]

    async def end(self) -> None:
        """Kill all remaining processes of the gateway."""
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
    """Append the time at which a process ended to `ended`, if it ends within `seconds`. `process` is a process
    descriptor."""
    try:
        if select.select([process], [], [], seconds)[0]:
            ended.append(time.monotonic())
    finally:
        os.close(process)


def _started(pid: int) -> str:
    """The start time of a process, which distinguishes it from a later one with the same id. Empty if the process has
    ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]
