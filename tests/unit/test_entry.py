"""Where the program begins: what a signal does before a command has a handler of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

_PROGRAM = """
import os, signal, sys
os.getpid = lambda: int(sys.argv.pop(1))
from antiphon import entry
# A command that is told to leave while it starts.
entry.run_command = lambda words: signal.raise_signal(signal.SIGTERM)
entry.main()
"""


@pytest.mark.parametrize(
    ("process", "status"),
    [
        # As the first of its container, whom the kernel does not end for a signal that it does not handle.
        ("1", 128 + signal.SIGTERM),
        ("2", -signal.SIGTERM),
    ],
)
def test_a_process_that_is_told_to_leave_while_it_starts_ends(process: str, status: int) -> None:
    ended = subprocess.run([sys.executable, "-c", _PROGRAM, process, "extproc"], timeout=60, check=False)
    assert ended.returncode == status


def test_the_help_of_health_is_the_whole_one() -> None:
    """Its fast start leaves the other commands out, but not its own description."""
    command = [sys.executable, "-m", "antiphon", "health", "--help"]
    shown = subprocess.run(command, timeout=60, check=True, capture_output=True, text=True).stdout
    assert "Exit with status 0 if a running instance answers" in shown and "example:\n  antiphon health\n" in shown


def test_a_character_that_the_output_cannot_encode_is_an_escape() -> None:
    command = [sys.executable, "-m", "antiphon", "up", "--help"]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run(command, timeout=60, check=True, capture_output=True, env=environ).stdout
    assert b"an ANTIPHON_\\u2026 variable" in shown
