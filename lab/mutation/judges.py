"""Selects the test files that run against a mutant of a source file: all files in an order, or the likely ones in
stages.

Lives here: the folders of these test files, and the test files that name a module. Not here: the tests that reach a
mutant (`reaching.py`), running them (`trees.py`).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

GATEWAYS = ("tests/e2e", "tests/integration/test_up.py")
"""Tests of whole gateways. They run last, because each start of a gateway takes longer than many unit tests."""

PROCESSES = (
    *("tests/integration/test_up.py", "tests/e2e/test_lifecycle.py", "tests/e2e/test_stopping.py"),
    *("tests/e2e/test_reload.py", "tests/e2e/test_dying_workers.py", "tests/e2e/test_replaced_processes.py"),
    *("tests/e2e/test_reload_broken.py", "tests/integration/test_early_signals.py", "tests/e2e/test_usage.py"),
    *("tests/e2e/test_service_manager.py", "tests/e2e/test_unread_logs.py", "tests/e2e/test_scraped_counters.py"),
    "tests/integration/test_record_commands.py",
)
"""Slow tests of processes that start, stop and replace each other."""
OF_PROCESSES = ("supervisor", "commands", "app")
"""The packages whose code mostly runs in such processes. `PROCESSES` run against their mutants, last of all."""
_MOST_USERS = 10
"""A module that more modules use has too many tests of these modules."""
_FOLDERS = ("unit", "contracts", "pitfalls", "properties", "golden", "integration", "faults")


def judges(root: Path) -> list[str]:
    """All test files that may run against a mutant."""
    return [
        str(file.relative_to(root)) for name in _FOLDERS for file in sorted((root / "tests" / name).rglob("test_*.py"))
    ]


def near(root: Path, path: str, files: list[str]) -> list[str]:
    """The test files among `files` that name the module of the source file."""
    module = _module(path)
    return [file for file in files if module.rpartition(".")[2] in Path(file).stem or _names(root / file, module)]


def around(root: Path, path: str, files: list[str]) -> list[str]:
    """The test files that name the module or its package. Files that name the module come first."""
    first, package = near(root, path, files), _module(path).rpartition(".")[0]
    return first + [file for file in files if package and file not in first and _names(root / file, package)]


def likely(root: Path, path: str, files: list[str]) -> list[list[str]]:
    """The test files that are likely to detect a change of a source file, in stages. First come files that name the
    source file's module, then unit tests of its package. Files whose names share a word with the source file come last.
    For the package `commands`, tests of whole commands come with them. Within a stage, files with the most shared words
    come first."""
    unit = [file for file in files if file.startswith("tests/unit/")]
    group, words = _module(path).partition(".")[0], _words(path.removeprefix("src/antiphon/"))
    shared = {file: len(words & _words(Path(file).name)) for file in files}

    def in_order(stage: set[str]) -> list[str]:
        return sorted(stage, key=lambda file: (-shared[file], files.index(file)))

    direct = set(near(root, path, files))
    package = {file for file in unit if file.startswith(f"tests/unit/{group}/")} | set(around(root, path, unit))
    if path.count("/") == 2:
        # A file in no package has no folder of unit tests. The tests of the modules that use it run instead.
        users = [user for user in sorted((root / "src/antiphon").rglob("*.py")) if _names(user, _module(path))]
        if len(users) <= _MOST_USERS:
            package.update(file for user in users for file in near(root, str(user.relative_to(root)), files))
    others = {file for file in files if shared[file] or (group == "commands" and "run_command(" in _text(root / file))}
    stages = [in_order(stage) for stage in (direct, package - direct, others - direct - package)]
    return [stage for stage in stages if stage]


def _words(path: str) -> set[str]:
    words = re.split(r"[/_.]", path.removesuffix(".py").removeprefix("test_"))
    # `servers` and `server` count as the same word.
    return {word.rstrip("s") for word in words if len(word) > 2}


def _module(path: str) -> str:
    return path.removeprefix("src/antiphon/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _names(file: Path, module: str) -> bool:
    parent, _, last = module.rpartition(".")
    package = re.escape(f"antiphon.{parent}" if parent else "antiphon")
    imported = rf"from {package} import [^\n]*\b{re.escape(last)}\b"
    return re.search(rf"\bantiphon\.{re.escape(module)}\b|{imported}", _text(file)) is not None


@functools.cache
def _text(file: Path) -> str:
    return file.read_text()
