"""Which tests judge a source file.

Lives here: the map from packages to tests, and the order in which they are run: first those that name the module, then
the others of its package. Not here: running them (`run.py`).
"""

from __future__ import annotations

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
    """Paths for pytest, in the order in which they are worth running."""
    package = path.removeprefix("src/antiphon/")
    name = max((each for each in PACKAGES if package.startswith(each + "/")), key=len)
    module = package.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    parent, _, last = module.rpartition(".")
    named = re.compile(
        rf"\bantiphon\.{re.escape(module)}\b|from antiphon\.{re.escape(parent)} import [^\n]*\b{re.escape(last)}\b"
    )
    groups = PACKAGES[name]
    files = [file for group in groups for file in sorted(_tests(root / group))]
    near = [file for file in files if named.search(file.read_text()) or last in file.stem]
    every = [*dict.fromkeys([*near, *files])]
    return [str(file.relative_to(root)) for file in every]


def _tests(place: Path) -> list[Path]:
    return [place] if place.is_file() else list(place.rglob("test_*.py"))
