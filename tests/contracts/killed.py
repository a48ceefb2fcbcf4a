"""Runs a child process that works on a store, and kills it in the middle of its work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

from tests.contracts.store_process import child_environment


def killed_at_work(child: ModuleType, data: Path, prefix: str, acknowledgements: int) -> list[str]:
    """Run a child, and send `kill -9` after `acknowledgements` acknowledgements. Returns all acknowledgement lines."""
    assert child.__file__ is not None
    process = subprocess.Popen(
        [sys.executable, child.__file__, str(data), prefix],
        stdout=subprocess.PIPE,
        env=child_environment(),
    )
    assert process.stdout is not None
    with process.stdout:
        lines = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        lines += process.stdout.readlines()
    assert process.wait(timeout=20) == -9
    return [line.strip().decode() for line in lines if line.endswith(b"\n")]
