"""Defines a finding of the doctor, and the interface with which the console runs the doctor's checks.

`antiphon doctor` and the console show the same findings. The package `commands/doctor` has the checks.

Invariant: no finding contains a secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Verdict = Literal["ok", "note", "problem"]
"""A problem makes requests fail. A note names a restriction, or a problem of only some requests."""


@dataclass
class Finding:
    """The result of one check. `where` is the part of the installation, such as an upstream. `what` is the result, and
    `advice` the recommended action."""

    where: str
    verdict: Verdict
    what: str
    advice: str = ""
    lacking: bool = False
    """Whether the server lacks a feature, even if the profile avoids that feature."""


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """The findings of one run of the checks. `at` is the time of the run's end, in seconds since the epoch. `seconds`
    is the run's duration."""

    findings: tuple[Finding, ...]
    at: float
    seconds: float


class Doctor(Protocol):
    """Runs the doctor's checks inside a serving process."""

    @property
    def latest(self) -> DoctorReport | None:
        """The report of the last run, or None if the process has not run the checks yet."""

    @property
    def asks_models(self) -> bool:
        """Whether the checks send chat requests to the upstreams. Without these requests, the checks cannot find the
        features of an upstream."""

    @property
    def most_seconds(self) -> float:
        """The maximum duration of a run."""

    async def run(self) -> DoctorReport:
        """Run the checks and return the report. A call during a run waits for this run, and starts no other run."""

    async def aclose(self) -> None:
        """End the current run."""
