"""Counts the refusals that the replicas report as `early`: a request would have fit without the leases of others.

Lives here: reading the replicas' metrics every second, and adding the counts of all lives of a replica. Not here: the
meaning of the metric (`antiphon/engine/running/quotas.py`).

A killed replica loses the refusals since the last reading, at most those of a second.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp

from tests.support.postgres import free_port

_SECONDS = 1.0
_LINE = re.compile(r"antiphon_quota_refusals_total\{([^}]*)\} ([0-9.e+]+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


class EarlyRefusals:
    """The early refusals of so many replicas, by level and kind of limit."""

    def __init__(self, replicas: int) -> None:
        self._ports = [free_port() for _ in range(replicas)]
        self._last: list[Counter[tuple[str, str]]] = [Counter() for _ in range(replicas)]
        self._before: Counter[tuple[str, str]] = Counter()

    @property
    def environ(self) -> Mapping[int, Mapping[str, str]]:
        """The environment variables with which each replica serves its metrics."""
        return {number: {"ANTIPHON_METRICS__LISTEN": f"127.0.0.1:{port}"} for number, port in enumerate(self._ports)}

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """The refusals so far."""
        return sum(self._last, self._before)

    @asynccontextmanager
    async def counting(self) -> AsyncIterator[None]:
        """Read the metrics while the context lasts, and at its end."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            task = asyncio.create_task(self._follow(session))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.wait({task})
                await self._read(session)

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        while True:
            await self._read(session)
            await asyncio.sleep(_SECONDS)

    async def _read(self, session: aiohttp.ClientSession) -> None:
        await asyncio.gather(*(self._read_one(session, number) for number in range(len(self._ports))))

    async def _read_one(self, session: aiohttp.ClientSession, number: int) -> None:
        try:
            async with session.get(f"http://127.0.0.1:{self._ports[number]}/metrics") as got:
                text = await got.text()
        except (aiohttp.ClientError, TimeoutError):
            # The replica was killed and is not back yet.
            return
        found: Counter[tuple[str, str]] = Counter()
        for labels, count in _LINE.findall(text):
            said = dict(_LABEL.findall(labels))
            if said["refusal"] == "early":
                found[said["subject"], said["measure"]] += int(float(count))
        if any(found[one] < count for one, count in self._last[number].items()):
            # A new process counts from zero.
            self._before += self._last[number]
        self._last[number] = found
