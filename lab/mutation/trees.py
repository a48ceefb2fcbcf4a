"""Copies the working tree, and runs pytest in the copies.

Lives here: making a copy, inserting a mutant, running tests until they end or exceed the time limit. Not here: the
choice of tests (`judges.py`, `reaching.py`).

Invariant: bytecode that a copy's tests compile stays in that copy. A changed file never has the same time and size as
its earlier text, so Python never uses stale bytecode.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lab.mutation import chosen_tests
from lab.mutation.operators import Mutant

ROOT = Path(__file__).resolve().parents[2]
_PYTEST = (
    "-q",
    "--no-header",
    "--tb=no",
    "-p",
    "no:cacheprovider",
    "-p",
    "lab.mutation.chosen_tests",
    "--hypothesis-seed=0",
    "-m",
    "not slow and not e2e",
)
_ages = itertools.count(1_000_000_000)


def copy_tree(to: Path) -> None:
    """Copy every file that git knows, with its current content."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)


@contextmanager
def changed(tree: Path, mutant: Mutant) -> Iterator[None]:
    """Insert the mutant into the copy while the context lasts."""
    file = tree / mutant.path
    source = file.read_text()
    text = mutant.apply(source)
    assert text is not None
    try:
        _write(file, text)
        yield
    finally:
        _write(file, source)


def _write(file: Path, text: str) -> None:
    file.write_text(text)
    # Python uses existing bytecode if the source's time (in seconds) and size are the same.
    age = next(_ages)
    os.utime(file, (age, age))


def run_tests(
    tree: Path, files: Sequence[str], *options: str, limit: float | None, only: Sequence[str] | None = None
) -> tuple[int | None, list[tuple[float, str, str]]]:
    """Run tests with pytest. Returns pytest's exit status (None after the time limit), and the seconds, outcome and
    name of each test."""
    listed, noted = tree / ".mutation-only", tree / ".mutation-notes"
    noted.unlink(missing_ok=True)
    # With `CI` set, tests that need the sandbox fail instead of being skipped. Otherwise a mutant that breaks the
    # sandbox would go undetected.
    environ = {**os.environ, "CI": "1", "PYTHONPATH": f"{tree}/src:{tree}", chosen_tests.NOTES: str(noted)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if only is not None:
        listed.write_text("\n".join(only))
        environ[chosen_tests.ONLY] = str(listed)
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *_PYTEST, *options, *files],
        cwd=tree,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    status: int | None = None
    try:
        status = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Kill the processes that the tests started.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = noted.read_text().splitlines() if noted.exists() else []
    seen = [line.split(" ", 2) for line in lines]
    return status, [(float(seconds), outcome, test) for seconds, outcome, test in seen]
