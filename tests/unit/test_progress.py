"""The lines that a run of all tests prints in the place of dots."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.progress import Progress, part_of

A, B = "tests/unit/stores/test_a.py::test_{}[x/y]", "tests/e2e/test_b.py::test_{}"


def test_a_part_is_a_folder() -> None:
    assert [part_of(one) for one in (A, B, "tests/unit/test_c.py::test")] == ["unit/stores", "e2e", "unit"]


def test_a_part_that_is_done_and_half_a_minute_of_silence_are_told() -> None:
    now = 100.0
    progress = Progress([*(A.format(n) for n in range(3)), B.format(0)], clock=lambda: now)
    assert progress.tests() == "4 tests in 2 parts"
    assert list(progress.ended(A.format(0))) == []
    now += 30
    assert list(progress.ended(A.format(1))) == [" 50%  2 of 4, 30 s, about 30 s more: unit/stores …"]
    now += 10
    progress.failed += 1
    assert list(progress.ended(B.format(0))) == [" 75%  3 of 4, 1 failed, 40 s, about 13 s more: e2e is done"]
    now += 50
    assert list(progress.ended(A.format(2))) == [
        "100%  4 of 4, 1 failed, 1 min 30 s, about 0 s more: unit/stores is done"
    ]


@pytest.mark.full
def test_a_run_prints_them(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "part"
    folder.mkdir(parents=True)
    (folder / "test_it.py").write_text("def test_good(): pass\ndef test_bad(): assert 1 == 2\n")
    root = Path(__file__).parents[2]
    line = [sys.executable, "-m", "pytest", "-n", "1", "-p", "tests.support.progress", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*line, "-c", "/dev/null", "--rootdir", tmp_path, tmp_path],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "2 tests in 1 parts" in done.stdout and "FAILED tests/part/test_it.py::test_bad" in done.stdout
    assert "100%  2 of 2, 1 failed" in done.stdout and "part is done" in done.stdout
