"""`scripts/test`, `scripts/check` and `scripts/docs` print their usage, and run the code of their own checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SLOW_FOLDERS

ROOT = Path(__file__).parents[2]
# Stands for Python and for every checker: it prints what it gets, and fails, so that a script runs no further command.
_PROGRAM = '#!/bin/sh\necho "$PYTHONPATH" "$@"\nexit 3\n'


def _run(folder: Path, script: str, *words: str, ready: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a copy of a script in a folder that has no checkout. If `ready`, the folder has a `.venv`."""
    files = {"scripts/setup": "#!/bin/sh\n", ".venv/bin/python": _PROGRAM, ".venv/bin/ruff": _PROGRAM} if ready else {}
    for name, text in {**files, f"scripts/{script}": (ROOT / "scripts" / script).read_text()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHON", "SETUP_VENV")}
    command = [str(folder / "scripts" / script), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environ)


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("script", ["test", "check", "docs"])
def test_a_script_prints_its_usage_and_starts_nothing(script: str, flag: str, tmp_path: Path) -> None:
    done = _run(tmp_path, script, flag, ready=False)
    assert (done.returncode, done.stderr) == (0, "")
    first = (ROOT / "scripts" / script).read_text().splitlines()[1].removeprefix("# ")
    assert done.stdout.startswith(first) and "set -euo" not in done.stdout


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    done = _run(tmp_path, "test", "--quick", "tests/nowhere/test_a.py::test_a")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "test: tests/nowhere/test_a.py does not exist\n")


def test_the_quick_tests_of_a_folder_have_the_marks_of_the_quick_tests(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "tests" / "schemas", tmp_path / "tests" / "schemas")
    for words, marked in ((("--quick", "tests/schemas"), True), (("tests/schemas",), False)):
        done = _run(tmp_path, "test", *words)
        assert done.returncode == 3 and done.stdout.endswith(" tests/schemas\n")
        assert ("-m not slow and not full and not long --hypothesis-profile=quick" in done.stdout) == marked


def test_slow_tests_are_collected_from_the_folders_that_have_some(tmp_path: Path) -> None:
    assert all(folder.removesuffix("/") in (ROOT / "scripts" / "test").read_text() for folder in SLOW_FOLDERS)
    shutil.copytree(ROOT / "tests" / "schemas", tmp_path / "tests" / "schemas")
    folders = " ".join(folder.removesuffix("/") for folder in SLOW_FOLDERS)
    for words, found in (((), folders), (("--without-core",), f"{folders} --without-core"), (("tests/schemas",), "")):
        first, second = _run(tmp_path, "test", "--ci", *words).stdout.splitlines()
        assert first.endswith(" ".join(("-m not slow and not long", *words)))
        assert second.endswith(f"-m slow and not long {found or ' '.join(words)}")


@pytest.mark.sources
def test_ci_runs_each_test_of_the_core_once() -> None:
    """`scripts/test --coverage` and `scripts/test --ci --without-core` together run every test of the core."""
    coverage = re.search(
        r"set -- (tests/unit/translation tests/unit/engine) -m \"(.*?)\"", (ROOT / "scripts/test").read_text()
    )
    assert coverage is not None
    file = "tests/unit/engine/test_budget.py"
    found = [_collected(file, *options) for options in ((), ("-m", coverage[2]), ("--without-core",))]
    everything, counted, left = found
    assert counted and left and counted | left == everything and not counted & left


def _collected(*arguments: str) -> set[str]:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT)
    return {line for line in done.stdout.splitlines() if "::" in line}


@pytest.mark.parametrize(("script", "words"), [("check", []), ("docs", []), ("docs", ["build"]), ("docs", ["blocks"])])
def test_a_script_uses_the_code_of_its_checkout(script: str, words: list[str], tmp_path: Path) -> None:
    done = _run(tmp_path, script, *words)
    assert done.returncode == 3 and f"{tmp_path}/src " in done.stdout + done.stderr
