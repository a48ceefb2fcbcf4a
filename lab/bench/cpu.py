"""Reads CPU time and memory of processes from `/proc`.

Lives here: reading the two figures, and finding the descendants of a process. Not here: the ratios (`run.py`).

Invariant: reading costs the measured process nothing. A process that has ended is an error, not a zero.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pids: Iterable[int]) -> float:
    """The CPU seconds of all threads of these processes so far, also of ended threads and of reaped children."""
    return sum(time.clock_gettime(_clock(pid)) + _ended_children_seconds(pid) for pid in pids)


def tree_seconds(roots: Iterable[int]) -> float:
    """The CPU seconds of these processes and of all their descendants."""
    total = 0.0
    for root in roots:
        total += cpu_seconds([root])
        for pid in children(root):
            # The process may have ended. In this case its parent's time includes its time after the parent's wait.
            with contextlib.suppress(OSError):
                total += cpu_seconds([pid])
    return total


def _clock(pid: int) -> int:
    """The CPU clock of a process in nanoseconds, as `clock_getcpuclockid` computes it; the times in `/proc/PID/stat`
    have steps of 10 ms."""
    return (~pid << 3) | 2


def _ended_children_seconds(pid: int) -> float:
    # The program's name in `/proc/PID/stat`, in parentheses, may contain spaces.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / _TICKS


def main_thread_seconds(pid: int) -> float:
    """The CPU seconds of this process's first thread so far."""
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def busy_seconds() -> float:
    """The CPU seconds of all cores since the machine's start, including time taken by its host."""
    user, nice, system, _idle, _wait, irq, soft_irq, steal = map(int, _first_line("/proc/stat").split()[1:9])
    return (user + nice + system + irq + soft_irq + steal) / _TICKS


def _first_line(path: str) -> str:
    with open(path) as file:
        return file.readline()


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory of these processes."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE for pid in pids)


def anonymous_bytes(pid: int) -> int:
    """The resident memory without file pages, which several processes may share."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/status has no RssAnon")


def children(pid: int) -> list[int]:
    """All descendants of a process, parents first."""
    found: list[int] = []
    # A process that ends during the search has no children.
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    return found


def program(pid: int) -> str:
    """The name of the executable file of a process."""
    return os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")


def command_line(pid: int) -> list[str]:
    """The arguments of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
