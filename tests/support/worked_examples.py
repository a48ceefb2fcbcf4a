"""Applies docs/contributing/worked-examples.md: a copy of the package with a section's edits, and a gateway on this
copy.

Lives here: reading the edits, applying them, and starting the program that sends requests, or the tests of a changed
copy of the checkout. Not here: the expected answers.

Invariant: an edit that does not match the file exactly once is an error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import antiphon

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "contributing" / "worked-examples.md"
_STEP = re.compile(
    r"^(?:In|The new file) (?:`|\*\*)(?P<path>[\w/.]+)|^```(?P<kind>diff|python)\n(?P<code>.*?)^```", re.M | re.S
)


@dataclass(frozen=True)
class Copy:
    """A changed copy of the package: the folder for the module path, and the files that the section changes. Files
    below `tests/` are next to this folder."""

    sources: Path
    touched: frozenset[str]


def changed_copy(section: str, folder: Path, text: str | None = None) -> Copy:
    """A copy of the package with the edits of one section."""
    page = PAGE.read_text() if text is None else text
    (steps,) = [part for part in page.split("\n## ") if part.removeprefix("## ").startswith(f"{section}\n")]
    copy = folder / "src" / "antiphon"
    shutil.copytree(Path(antiphon.__file__).parent, copy, ignore=shutil.ignore_patterns("*.so"))
    touched, path = set(), ""
    for step in _STEP.finditer(steps):
        path = step["path"] or path
        if step["code"] is None:
            continue
        touched.add(path)
        file = _copied_test(path, folder) if path.startswith("tests/") else copy / path
        if step["kind"] == "python":
            assert not file.exists(), f"{path} is there already"
            file.write_text(step["code"])
            continue
        lines = step["code"].splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        whole = file.read_text()
        assert whole.count(before) == 1, f"{path} has this {whole.count(before)} times, not once:\n{before}"
        file.write_text(whole.replace(before, after))
    return Copy(copy.parent, frozenset(touched))


def _copied_test(path: str, folder: Path) -> Path:
    """The copy of a file below `tests/`."""
    file = folder / path
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, file)
    return file


def outcome_of_tests(section: str, folder: Path, *paths: str) -> str:
    """The last line of pytest for these tests, in a copy of the checkout with the edits of a section. The function
    generates the pages and the goldens of the copy first."""
    for name in ("deployments", "docs", "envoy", "lab", "scripts", "tests"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    changed_copy(section, folder)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder / "src"), str(folder)))}
    environ = {name: value for name, value in environ.items() if not name.startswith("PYTEST_")}
    last = ""
    for words in (["scripts/lib/generate_docs.py"], ["-m", "lab.golden"], ["-m", "pytest", "-q", *paths]):
        command = [sys.executable, *words]
        ran = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=250, check=False)
        last = (ran.stdout.splitlines() or [""])[-1]
        assert ran.returncode == 0 or "-m" in words, ran.stderr
    return last


def ask(section: str, folder: Path, state: str = "") -> dict[str, Any]:
    """The answers of a gateway that runs from the changed copy. `state` is the URL of its state; empty means a data
    folder."""
    copy = changed_copy(section, folder)
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.worked_examples_asked", section, str(folder / "data"), state],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(copy.sources), str(ROOT)))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answers: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return answers
