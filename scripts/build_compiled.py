"""Compile Antiphon's hot modules with mypyc: the same sources, as one C extension.

Lives here: which modules are compiled, why others are not, and the call of the compiler. Who calls it: the wheel's
build hook (scripts/build_hook.py). Not here: `ANTIPHON_PURE` (src/antiphon/pure.py).

Why it exists: compiled, and with the splice in C, the sidecar takes 0.54 to 0.70 of the CPU that it takes from sources.

    .venv/bin/python scripts/build_compiled.py INTO

leaves the extension modules in folder INTO as they belong beside the sources. Needs a C compiler, and mypy with all
libraries that the sources import, since what is compiled is what the types say.
"""

from __future__ import annotations

import ast
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src"

COMPILED = (
    "antiphon/ids.py",
    "antiphon/redaction.py",
    "antiphon/types/*.py",
    "antiphon/translation/*.py",
    "antiphon/engine/exchange/*.py",
    "antiphon/observability/log_lines.py",
    "antiphon/observability/log_output.py",
    "antiphon/observability/observation.py",
    "antiphon/observability/outcome.py",
    "antiphon/observability/response_spans.py",
    "antiphon/observability/storage_operation.py",
    "antiphon/observability/tallies.py",
    "antiphon/doors/*.py",
    "antiphon/doors/http/*.py",
    "antiphon/doors/extproc/*.py",
    "antiphon/stores/sqlite/deadlines.py",
    "antiphon/stores/sqlite/response_rows.py",
    "antiphon/stores/sqlite/units.py",
    "antiphon/upstream/silence.py",
)
"""What costs per chunk and per request. The rest costs per process, or waits for something else."""

INTERPRETED = {
    "antiphon/engine/exchange/native_references.py": "a class of it is a list",
}
"""What stays as it is though it is among those and looks compilable (`_compilable`), and why."""

OPTIMIZATION = "1"


def modules() -> list[str]:
    """The sources to compile, relative to the folder of the package, in order."""
    found = {str(path.relative_to(SOURCES)) for pattern in COMPILED for path in SOURCES.glob(pattern)}
    unknown = INTERPRETED.keys() - found
    if unknown:
        raise SystemExit(f"build_compiled: no such module: {', '.join(sorted(unknown))}")
    return sorted(name for name in found - INTERPRETED.keys() if _compilable(SOURCES / name))


def _compilable(path: Path) -> bool:
    """Whether the compiler can have this module and keeps its meaning (mypy 2.4). It cannot where

    - a folder's contents are found through it (`__init__.py`),
    - it defines Structs: msgspec makes those of annotations and keywords, of which nothing would be left,
    - it has coroutines: of compiled ones, one that awaits inside a `finally` raised what an earlier call had raised,
      and a task's result was freed memory. So what awaits is interpreted, and what it calls is compiled.
    """
    if path.name == "__init__.py":
        return False
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.AsyncFunctionDef():
                return False
            case ast.ClassDef() if any(ast.unparse(base).endswith("Struct") for base in node.bases):
                return False
    return True


def build_compiled(into: Path) -> list[Path]:
    """Compile into folder `into`; the files that were made."""
    # Of the environment of the build, not of the program.
    from mypyc.build import mypycify
    from setuptools import Distribution

    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="antiphon-build-") as work:
        extensions = mypycify(
            ["--config-file", str(ROOT / "pyproject.toml"), *(str(Path("src", name)) for name in modules())],
            opt_level=OPTIMIZATION,
            debug_level="0",
            group_name="antiphon",
            target_dir=work,
            strip_asserts=False,
        )
        distribution = Distribution({"name": "antiphon", "ext_modules": extensions, "package_dir": {"": "src"}})
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(into), work
        command.ensure_finalized()
        command.run()
    return sorted(into.rglob("*.so"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: scripts/build_compiled.py INTO")
    target = Path(sys.argv[1]).resolve()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    print(f"build_compiled: {len(build_compiled(target))} extension modules in {target}")
