"""Prints progress lines during a run of all tests, instead of pytest's dots; `scripts/test` loads this plugin (`-p`).

Lives here: the finished parts of the tests, the number of remaining tests, and their estimated time. Not here: failures
in full, and the summary, which pytest prints at the end.

A part is a folder of tests. Workers share the tests, so several parts run concurrently.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath

import pytest

_LINE_SECONDS = 20.0


def part_of(test: str) -> str:
    """The folder of a test: `unit/stores`, `e2e`."""
    return "/".join(PurePath(test.partition("::")[0]).parent.parts[1:3])


class Progress:
    """The progress of a run of these tests."""

    def __init__(self, tests: Iterable[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._left = Counter(part_of(test) for test in tests)
        self._of = dict(self._left)
        self._total = self._left.total()
        self._clock = clock
        self._began = self._told = clock()
        self._done = self.failed = 0

    def tests(self) -> str:
        """The first line, with the number of tests."""
        return f"{self._total:,} tests in {len(self._left)} parts"

    def ended(self, test: str) -> Iterator[str]:
        """Record that a test has ended. Yields the lines to print."""
        part, now = part_of(test), self._clock()
        self._done += 1
        self._left[part] -= 1
        if self._left[part] == 0:
            yield self._line(f"{part} is done", now)
        elif now - self._told >= _LINE_SECONDS:
            at_work = sorted(name for name, left in self._left.items() if 0 < left < self._of[name])
            yield self._line(f"{', '.join(at_work)} …", now)

    def _line(self, what: str, now: float) -> str:
        self._told = now
        spent = now - self._began
        left = spent / self._done * (self._total - self._done)
        failed = f", {self.failed} failed" if self.failed else ""
        return (
            f"{self._done / self._total:4.0%}  {self._done:,} of {self._total:,}{failed}, "
            f"{_time(spent)}, about {_time(left)} more: {what}"
        )


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _Plugin:
    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._progress: Progress | None = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Each pytest worker has collected the same tests."""
        if self._progress is None:
            self._progress = Progress(ids)
            self._say(self._progress.tests())

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Suppress pytest's dots."""
        if report.passed and report.when == "call":
            return "passed", "", ""
        return ("skipped", "", "") if report.skipped and not hasattr(report, "wasxfail") else None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record the result of each phase of a test."""
        if self._progress is None:
            return
        if report.failed:
            self._progress.failed += 1
            self._say(f"FAILED {report.nodeid}")
        if report.when == "teardown":
            for line in self._progress.ended(report.nodeid):
                self._say(line)

    def _say(self, line: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(line, flush=True)


def pytest_configure(config: pytest.Config) -> None:
    """Install the plugin in the process that prints, if there are workers."""
    if not hasattr(config, "workerinput") and config.getoption("numprocesses", None):
        config.pluginmanager.register(_Plugin(config), "progress")
