"""llama.cpp's own server as a process of the tests, and what it says of itself.

Lives here: starting and stopping it, its slots, what it answers when it is asked directly. Not here: its models
(`tiny_model.py`), the program (`scripts/lib/llama_server.py`), how it gets
here (`scripts/lib/engine-files`).

Invariant: every server started here is stopped here, by its own handle.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

_PROGRAM = Path(__file__).parents[2] / "scripts" / "lib" / "llama_server.py"
_START_SECONDS = 120.0
_ANSWER_SECONDS = 120.0


def installed() -> Path:
    """The folder with what `scripts/lab engines` has unpacked; it says where by this variable."""
    return Path(os.environ["ENGINES_FOLDER"])


class LlamaServer:
    """One server and its one model, under the name `name`."""

    def __init__(self, name: str, weights: Path, log: Path, *arguments: str) -> None:
        self.name = name
        self._weights, self._log, self._arguments = weights, log, arguments
        self.base_url = ""
        self._process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None

    @property
    def origin(self) -> str:
        return self.base_url.removesuffix("/v1")

    async def __aenter__(self) -> LlamaServer:
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(_PROGRAM), str(self._weights), "--name", self.name, *self._arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(installed())},
            )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_START_SECONDS):
                while not self.base_url:
                    line = (await self._process.stdout.readline()).decode()
                    assert line, self.log()
                    self.base_url = line.partition("ready: ")[2].strip()
        except BaseException:
            await self.stop()
            raise
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWER_SECONDS))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        await self.stop()

    async def stop(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    def log(self) -> str:
        """The last of what it wrote."""
        return self._log.read_text(errors="replace")[-3000:]

    async def _get(self, path: str) -> Any:
        assert self._session is not None
        async with self._session.get(self.origin + path) as answer:
            return await answer.json(content_type=None)

    async def chat(self, path: str = "/chat/completions", **fields: Any) -> dict[str, Any]:
        """What it answers without a gateway."""
        assert self._session is not None
        async with self._session.post(self.base_url + path, json={"model": self.name, **fields}) as answer:
            answered: dict[str, Any] = await answer.json(content_type=None)
            assert answer.status == 200, answered
            return answered

    async def slots(self) -> list[dict[str, Any]]:
        """Its places for requests: `is_processing`, and of the last request in each how far it came."""
        slots: list[dict[str, Any]] = await self._get("/slots")
        return slots

    async def working(self) -> int:
        """How many requests it works on."""
        return sum(slot["is_processing"] for slot in await self.slots())

    async def generated(self) -> int:
        """The tokens that it has made since it started, by its own count of ended requests."""
        assert self._session is not None
        async with self._session.get(self.origin + "/metrics") as answer:
            for line in (await answer.text()).splitlines():
                if line.startswith("llamacpp:tokens_predicted_total "):
                    return int(float(line.split()[1]))
        raise AssertionError("no llamacpp:tokens_predicted_total")

    async def become_idle(self, seconds: float) -> None:
        """Wait until it works on nothing; TimeoutError after `seconds`.

        It is not asked meanwhile: whoever waits for a whole answer is looked after once a second, in which no other
        request may have been answered (build 11549). So its log is read, and the slots asked at the end alone.
        """
        async with asyncio.timeout(seconds):
            while True:
                log = self._log.read_text(errors="replace")
                if log.count("processing task, ") == log.count("stop processing: "):
                    break
                await asyncio.sleep(0.02)
        assert await self.working() == 0

    async def begin_work(self, seconds: float = 60.0) -> None:
        """Wait until it works on something."""
        async with asyncio.timeout(seconds):
            while not await self.working():
                await asyncio.sleep(0.005)
