"""Measures the peak memory of a process since the last reset."""

from __future__ import annotations

from pathlib import Path


def forget_peak(pid: int | str = "self") -> int:
    """Reset the peak. Returns the process's current memory in kilobytes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


def peak(pid: int | str = "self") -> int:
    """The peak memory in kilobytes since the last reset."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
