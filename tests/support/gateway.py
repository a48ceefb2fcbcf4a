"""Starts a whole Antiphon: `antiphon up` as a process, as users start it.

Invariant: the module stops every process that it started, by its own handle. A failing test shows the process's log.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.envoy_binary import envoy_environ
from tests.support.state import state_environ

DEADLINE = 60.0
START_SECONDS = 120.0
"""The maximum seconds of a start. This limit is less than a test's timeout, so that a process that did not start in
time does not outlive its test."""


@dataclass
class Gateway:
    """A running gateway: `base_url` ends in `/v1`."""

    base_url: str
    data: Path
    process: asyncio.subprocess.Process
    log: list[str] = field(default_factory=list)
    reader: asyncio.Task[None] | None = None

    @property
    def origin(self) -> str:
        """The base URL without `/v1`."""
        return self.base_url.removesuffix("/v1")

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end. Returns the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE):
            status = await self.process.wait()
        if self.reader is not None:
            await asyncio.wait({self.reader}, timeout=5)
        return status

    async def log_line(self, text: str) -> str:
        """Wait until a log line contains `text`. Returns the line."""
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    for line in self.log:
                        if text in line:
                            return line
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"no line has {text}; the last lines:\n" + "\n".join(self.log[-20:])) from None


running: list[Gateway] = []
"""All started gateways, until a fixture clears the list."""


async def start_gateway(
    upstream: str | None,
    data: Path,
    *arguments: str,
    environ: dict[str, str] | None = None,
    command: str = "up",
    python: Path | str = sys.executable,
) -> Gateway:
    """Start `antiphon up` (or `serve`) in front of this upstream, or of those in a settings file, and wait for its
    ready line. `python` is the interpreter of the environment whose Antiphon is started."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ANTIPHON_")}
    settings = Path(arguments[arguments.index("--config") + 1]).read_text() if "--config" in arguments else ""
    if upstream is not None and "profile" not in settings:
        # With a fixed profile the gateway sends no detection requests, so the test's script answers only the test's
        # requests.
        plain["ANTIPHON_UPSTREAM__PROFILE"] = "generic"
    # A test that sets the state's URL must also set the keys for this state.
    state = {} if "ANTIPHON_STATE__URL" in (environ or {}) else await state_environ(data)
    process = await asyncio.create_subprocess_exec(
        *(
            str(python),
            "-m",
            "antiphon",
            command,
            *(("--upstream", upstream) if upstream else ()),
            "--listen",
            "127.0.0.1:0",
        ),
        *("--data", str(data), "--log-format", "json", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # The start check is off, because it would use an answer that a test scripted for its own request.
        env={**plain, "ANTIPHON_TIMEOUTS__CHECK": "0", **envoy_environ(), **state, **(environ or {})},
        limit=1 << 22,
    )
    gateway = Gateway("", data, process)
    running.append(gateway)

    async def read() -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            gateway.log.append(line.decode("utf-8", "replace").rstrip())

    gateway.reader = asyncio.ensure_future(read())
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            line = (await process.stdout.readline()).decode()
    except TimeoutError:
        line = ""
    if not line.startswith("ready: "):
        status = await gateway.stop(signal.SIGKILL if process.returncode is None else signal.SIGTERM)
        raise AssertionError(f"antiphon {command} ended with {status}:\n" + "\n".join(gateway.log[-30:]))
    gateway.base_url = line.removeprefix("ready: ").strip()
    return gateway


@dataclass
class Answered:
    """An HTTP answer. `cut` is true if the body did not end properly."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False


async def post(url: str, body: Any, headers: dict[str, str] | None = None) -> Answered:
    """POST JSON, or bytes unchanged, and read the answer as far as it arrives."""
    sent = {"content-type": "application/json", **(headers or {})}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        kind = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with session.post(url, headers=sent, **kind) as answer:
            parts: list[bytes] = []
            cut = False
            try:
                async for part in answer.content.iter_any():
                    parts.append(part)
            except aiohttp.ClientPayloadError:
                cut = True
            return Answered(answer.status, {k.lower(): v for k, v in answer.headers.items()}, b"".join(parts), cut)
