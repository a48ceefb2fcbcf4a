"""Which tests judge a source file.

Lives here: the map from packages to tests, and the order in which they are run: first those that name the module, then
the others of its package. Not here: running them (`run.py`).
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

PACKAGES: dict[str, tuple[str, ...]] = {
    "engine/exchange": ("tests/unit/engine", "tests/pitfalls", "tests/properties", "tests/golden"),
    "engine": ("tests/unit/engine", "tests/integration"),
    "translation": (
        "tests/unit/translation",
        "tests/unit/engine",
        "tests/pitfalls",
        "tests/golden",
        "tests/properties",
    ),
    "stores": ("tests/unit/stores", "tests/contracts", "tests/integration/test_retention.py"),
    "doors": ("tests/unit/doors", "tests/faults", "tests/integration"),
    "tools": (
        "tests/unit/tools",
        "tests/contracts",
        "tests/integration/test_mcp.py",
        "tests/integration/test_tool_runs.py",
    ),
}
"""What judges a package, by the beginning of the path in `src/antiphon/`; the longest that fits counts."""


def judges(root: Path, path: str) -> list[str]:
    """Every file of tests that is asked about a source file, those that name its module first."""
    package = path.removeprefix("src/antiphon/")
    name = max((each for each in PACKAGES if package.startswith(each + "/")), key=len)
    every = [str(file.relative_to(root)) for group in PACKAGES[name] for file in sorted(_tests(root / group))]
    files = list(dict.fromkeys(every))
    first = near(root, path, files)
    return [*first, *(file for file in files if file not in first)]


def near(root: Path, path: str, files: list[str]) -> list[str]:
    """Those of these files of tests that name the module of a source file."""
    module = _module(path)
    return [file for file in files if module.rpartition(".")[2] in Path(file).stem or _names(root / file, module)]


def around(root: Path, path: str, files: list[str]) -> list[str]:
    """Those that name the module or, when none does, its package."""
    package = _module(path).rpartition(".")[0]
    return near(root, path, files) or [file for file in files if _names(root / file, package)]


def _module(path: str) -> str:
    return path.removeprefix("src/antiphon/").removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _names(file: Path, module: str) -> bool:
    parent, _, last = module.rpartition(".")
    imported = rf"from antiphon\.{re.escape(parent)} import [^\n]*\b{re.escape(last)}\b"
    return re.search(rf"\bantiphon\.{re.escape(module)}\b|{imported}", _text(file)) is not None


@functools.cache
def _text(file: Path) -> str:
    return file.read_text()


def _tests(place: Path) -> list[Path]:
    return [place] if place.is_file() else list(place.rglob("test_*.py"))
