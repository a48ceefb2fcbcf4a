"""`scripts/test`, `scripts/check` and `scripts/docs` print their usage, and run the code of their own checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("script", "words"), [("check", []), ("docs", []), ("docs", ["build"]), ("docs", ["blocks"])])
def test_a_script_uses_the_code_of_its_checkout(script: str, words: list[str], tmp_path: Path) -> None:
    done = _run(tmp_path, script, *words)
    assert done.returncode == 3 and f"{tmp_path}/src " in done.stdout + done.stderr
