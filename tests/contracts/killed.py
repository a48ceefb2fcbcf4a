"""A child that works on a store until it is killed in the middle of that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

from tests.contracts.store_process import child_environment


def killed_at_work(child: ModuleType, data: Path, prefix: str, acknowledgements: int) -> list[str]:
    """Run a child, `kill -9` it after so many acknowledgements; every line it acknowledged something with."""
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
