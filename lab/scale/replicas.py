"""Runs replicas: HTTP servers, or gateways with Envoy, that share only a state and their keys.

Lives here: the replicas' settings, addresses, kills and restarts. Not here: the state (`states.py`), clients.

Each replica has a separate data folder, as on a separate machine. Contents of files are in one shared folder, as in a
bucket.

Invariant: the class signals only processes that it started, by their own handle, and leaves none running.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from lab.bench.variants import Process
from tests.support.gateway import Gateway, running, start_gateway
from tests.support.postgres import free_port

OWNER_KEY, SEALING_KEY = "scale-owner-key-0123456789", "scale-sealing-key-0123456789"


@asynccontextmanager
async def demo(folder: Path, pause: float = 0.0) -> AsyncIterator[str]:
    """Start the demo's chat server as a separate process. Yields its URL."""
    command = (sys.executable, "-m", "lab.rollout.upstream", "--pause", str(pause))
    process = await Process.start(folder / "upstream.log", *command)
    try:
        yield process.ready
    finally:
        await process.stop()


class Replicas:
    """The replicas of a run. `environ` has additional environment variables of a replica by its number. With the door
    `envoy` each replica is an `antiphon up` with its own Envoy."""

    def __init__(
        self,
        state: str,
        upstream: str,
        folder: Path,
        *,
        count: int = 3,
        settings: Mapping[str, Any] | None = None,
        environ: Mapping[int, Mapping[str, str]] | None = None,
        door: str = "http",
    ) -> None:
        self._folder = folder
        self._command = "serve" if door == "http" else "up"
        self._state = state
        self._environ = environ or {}
        self._ports = [free_port() for _ in range(count)]
        self._processes: list[Gateway | None] = [None] * count
        self._starting: set[asyncio.Task[None]] = set()
        self.failed: list[str] = []
        """The errors of failed starts."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "owner": {"key": OWNER_KEY},
            "sealing": {"keys": [SEALING_KEY]},
            "upstream": {"url": upstream, "auth": "none", "profile": "generic"},
            "log": {"level": "warning"},
            **(settings or {}),
        }
        self._file = folder / "settings.json"
        self._file.write_text(json.dumps(values))

    def __len__(self) -> int:
        return len(self._ports)

    def url(self, number: int) -> str:
        """The URL of replica `number`, modulo the number of replicas."""
        return f"http://127.0.0.1:{self._ports[number % len(self)]}"

    @property
    def up(self) -> list[int]:
        """The numbers of the replicas that serve."""
        return [number for number, one in enumerate(self._processes) if one is not None]

    def log(self, number: int) -> list[str]:
        """The log lines of a replica since its last start."""
        one = self._processes[number]
        return one.log if one is not None else []

    async def __aenter__(self) -> Self:
        """Start the replicas one after the other, because the first creates the schema."""
        try:
            for number in range(len(self)):
                await self._start(number)
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def kill(self, number: int) -> None:
        """Send SIGKILL and start a new process in its position. Does not wait for the new process."""
        one, self._processes[number] = self._processes[number], None
        assert one is not None
        await one.stop(signal.SIGKILL)
        task = asyncio.create_task(self._again(number))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def kill_one(self, chance: random.Random) -> bool:
        """Kill a random replica, unless it is the last that serves. Returns whether one was killed."""
        if len(self.up) < 2:
            return False
        await self.kill(chance.choice(self.up))
        return True

    async def all_up(self) -> None:
        """Wait until all killed replicas serve again."""
        while self._starting:
            await asyncio.wait(self._starting)

    async def stop(self) -> None:
        """Stop all processes immediately."""
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for number, one in enumerate(self._processes):
            if one is not None:
                self._processes[number] = None
                await one.stop(signal.SIGKILL)

    async def _again(self, number: int) -> None:
        # If the state is down too, the start fails, as it must. Like a supervisor, the code then tries again.
        last = "never tried"
        for _ in range(30):
            try:
                await self._start(number)
                return
            except AssertionError as failed:
                last = str(failed)
                await asyncio.sleep(0.5)
        self.failed.append(last)

    async def _start(self, number: int) -> None:
        data = self._folder / f"data-{number}"
        data.mkdir(exist_ok=True)
        contents = self._folder / "files"
        contents.mkdir(exist_ok=True)
        if not (data / "files").exists():
            (data / "files").symlink_to(contents)
        listen = self.url(number).removeprefix("http://")
        environ = {"ANTIPHON_STATE__URL": self._state, **self._environ.get(number, {})}
        one = await start_gateway(
            None, data, "--config", str(self._file), "--listen", listen, environ=environ, command=self._command
        )
        running.remove(one)
        self._processes[number] = one
