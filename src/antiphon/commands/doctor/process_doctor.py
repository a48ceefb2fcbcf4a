"""Runs the doctor's checks inside a serving process, for the console.

The groups of checks run at the same time, and a run ends after `MOST_SECONDS`. `checks.py` and `upstream_report.py`
have the checks, and `console/views/doctor.py` shows the findings.

Invariants: a process makes one run at a time. A group that does not end in time yields a finding, and the other groups'
findings stay. The report of the last run is only in this process's memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Literal

from antiphon.commands.doctor.checks import (
    examine_blobs,
    examine_collector,
    examine_database,
    examine_envoy,
    examine_machine,
    to_the_end,
)
from antiphon.commands.doctor.upstream_report import upstream_checks
from antiphon.config.settings import Settings
from antiphon.engine.ports.findings import DoctorReport, Finding
from antiphon.engine.waiting import look_at, stop

MOST_SECONDS = 40.0
"""The maximum duration of a run in seconds. The console's pages wait at most 60 seconds for an answer."""
_PROBE_SECONDS = 20.0

EnvoyPlace = Literal["started", "elsewhere", "none"]


class ProcessDoctor:
    """The doctor of one serving process. `envoy` tells whether `antiphon up` started the Envoy in front of this process
    (`started`). `seconds` is the maximum duration of a run."""

    def __init__(self, settings: Settings, *, envoy: EnvoyPlace, seconds: float = MOST_SECONDS) -> None:
        self._settings = settings
        self._envoy = envoy
        self._running: asyncio.Task[DoctorReport] | None = None
        self.latest: DoctorReport | None = None
        self.most_seconds = seconds

    @property
    def asks_models(self) -> bool:
        """See `Doctor`. Only operators who may act for owners cause chat requests."""
        return self._settings.console.act

    async def run(self) -> DoctorReport:
        """See `Doctor`."""
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run())
            self._running.add_done_callback(look_at)
        return await asyncio.shield(self._running)

    async def aclose(self) -> None:
        """End the current run."""
        if self._running is not None and not self._running.done():
            await stop(self._running)

    async def _run(self) -> DoctorReport:
        began = time.monotonic()
        found = await asyncio.gather(*(self._findings(name, group) for name, group in self._groups().items()))
        findings = tuple(finding for group in found for finding in group)
        self.latest = DoctorReport(findings, time.time(), time.monotonic() - began)
        return self.latest

    def _groups(self) -> dict[str, AsyncIterator[Finding]]:
        settings = self._settings
        probe_seconds = min(_PROBE_SECONDS, self.most_seconds)
        return {
            "this machine": examine_machine(settings),
            "Envoy": _envoy(settings, self._envoy),
            "database": examine_database(settings),
            "contents of files": examine_blobs(settings),
            "tracing": examine_collector(settings.tracing),
            **upstream_checks(settings, asks_models=self.asks_models, seconds=probe_seconds),
        }

    async def _findings(self, where: str, group: AsyncIterator[Finding]) -> list[Finding]:
        found: list[Finding] = []
        try:
            async with asyncio.timeout(self.most_seconds):
                async for finding in to_the_end(group):
                    # The findings before a timeout stay.
                    found.append(finding)  # noqa: PERF401
        except TimeoutError:
            what = f"the checks did not end within {self.most_seconds:g} seconds"
            found.append(Finding(where, "note", what, "run 'antiphon doctor', which waits longer"))
        return found


async def _envoy(settings: Settings, place: EnvoyPlace) -> AsyncIterator[Finding]:
    if place == "started":
        async for finding in examine_envoy(settings):
            yield finding
    elif place == "elsewhere":
        what = "Antiphon did not start the Envoy in front of this process, so these checks leave Envoy out"
        yield Finding("Envoy", "note", what, "run 'antiphon doctor' on Envoy's machine")
