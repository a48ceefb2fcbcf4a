"""Runs a Prometheus for tests: starts it on a folder, queries it, and stops it.

Lives here: the two programs and the queries. Not here: the rule files (`monitoring_files.py`).

Invariant: the module stops every process that it started, by its own handle.
"""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0


class NotInstalled(Exception):
    """Raised if a required program is not installed."""


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`, from the environment variable with this name in capitals, or from
    PATH."""
    wanted = os.environ.get(name.upper(), name)
    found = shutil.which(wanted)
    if found is None:
        raise NotInstalled(
            f"{wanted} was not found. Debian and Ubuntu: apt-get install prometheus (which has promtool too). "
            "Elsewhere: PROMETHEUS=/path/to/prometheus PROMTOOL=/path/to/promtool"
        )
    return found


def promtool(*arguments: str, given: bytes = b"") -> tuple[bool, str]:
    """Run promtool. Returns whether promtool found no problem, and its output."""
    ended = subprocess.run(
        [program("promtool"), *arguments], input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return ended.returncode == 0, ended.stdout.decode("utf-8", "replace").strip()


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def data(self, expression: str) -> list[dict[str, Any]]:
        """The current series of an expression, without NaN values."""
        result = (await self._ask("query", query=expression))["result"]
        return [one for one in result if not math.isnan(float(one["value"][1]))]

    async def firing(self) -> list[dict[str, str]]:
        """The labels of all firing alerts."""
        return [one["labels"] for one in (await self._ask("alerts"))["alerts"] if one["state"] == "firing"]

    async def targets_up(self) -> bool:
        """Whether Prometheus has scraped all of its targets."""
        targets = (await self._ask("targets"))["activeTargets"]
        return bool(targets) and all(one["health"] == "up" for one in targets)

    async def rules_that_fail(self) -> list[str]:
        """The rules that Prometheus could not evaluate."""
        groups = (await self._ask("rules"))["groups"]
        return [
            f"{rule['name']}: {rule['lastError']}"
            for group in groups
            for rule in group["rules"]
            if rule.get("lastError")
        ]

    async def _ask(self, what: str, **query: str) -> Any:
        async with self._session.get(f"{self.url}/api/v1/{what}", params=query) as answer:
            said = await answer.json()
        if said["status"] != "success":
            raise ValueError(f"{query}: {said.get('error')}")
        return said["data"]


@asynccontextmanager
async def running_prometheus(folder: Path, config: Path) -> AsyncIterator[Prometheus]:
    """Start Prometheus with this configuration, and stop it at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "prometheus.log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            program("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdin=asyncio.subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True,
        )  # fmt: skip
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            prometheus = Prometheus(f"http://127.0.0.1:{port}", session)
            await _ready(prometheus, session, process, log)
            yield prometheus
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _ready(
    prometheus: Prometheus, session: aiohttp.ClientSession, process: asyncio.subprocess.Process, log: Path
) -> None:
    async with asyncio.timeout(_START_SECONDS):
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"Prometheus ended with {process.returncode}:\n{log.read_text()[-2000:]}")
            try:
                async with session.get(f"{prometheus.url}/-/ready") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
