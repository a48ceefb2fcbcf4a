"""Compile Antiphon's hot modules with mypyc: the same sources, as one C extension.

Lives here: the list of compiled modules, the reasons to leave others out, and the call of the compiler. The wheel's
build hook (scripts/lib/build_hook.py) calls it.

Why it exists: compiled, and with the splice in C, the sidecar takes 0.54 to 0.70 of the CPU that it takes from sources.

    .venv/bin/python scripts/lib/build_compiled.py INTO

writes the extension modules to folder INTO, in the same structure as the sources. With `--check` it compiles nothing
and prints the violations of the rules in `build_rules.py`. The program needs a C compiler, and mypy with all libraries
that the sources import, because the compiler relies on their types.
"""

from __future__ import annotations

import ast
import os
import shutil
import sys
import tempfile
from pathlib import Path

from build_rules import problems

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "src"

COMPILED = (
    "antiphon/ids.py",
    "antiphon/redaction.py",
    "antiphon/types/*.py",
    "antiphon/translation/*.py",
    "antiphon/translation/answer/*.py",
    "antiphon/translation/chat/*.py",
    "antiphon/translation/events/*.py",
    "antiphon/translation/request/*.py",
    "antiphon/engine/exchange/*.py",
    "antiphon/engine/running/quota_estimates.py",
    "antiphon/engine/running/quota_reservation.py",
    "antiphon/observability/journal_entry.py",
    "antiphon/observability/log_lines.py",
    "antiphon/observability/observation.py",
    "antiphon/observability/outcome.py",
    "antiphon/observability/response_spans.py",
    "antiphon/observability/metric_values.py",
    "antiphon/doors/*.py",
    "antiphon/doors/http/*.py",
    "antiphon/doors/extproc/*.py",
    "antiphon/stores/sqlite/response_rows.py",
    "antiphon/stores/sqlite/units.py",
    "antiphon/upstream/silence.py",
)
"""The modules whose code runs per chunk or per request. All other code runs once per process, or waits for other
work."""

OPTIMIZATION = "1"
_BUILTINS = ("bytes", "float", "frozenset", "int", "list", "set", "str", "tuple")


def modules() -> list[str]:
    """The sources to compile, relative to the folder of the package, in order."""
    found = {pattern: [str(path.relative_to(SOURCES)) for path in SOURCES.glob(pattern)] for pattern in COMPILED}
    if nothing := [pattern for pattern, names in found.items() if not names]:
        raise SystemExit(f"build_compiled: no such module: {', '.join(nothing)}")
    return sorted(name for names in found.values() for name in names if _compilable(SOURCES / name))


def _compilable(path: Path) -> bool:
    """Whether the compiler (mypy 2.4) can compile this module without changing its behaviour. The result is False if

    - the module is a package (`__init__.py`),
    - it defines Structs: msgspec makes those from annotations and keywords, which the compiler removes,
    - one of its classes is a list or another builtin type that the compiler does not derive from,
    - it has coroutines. A compiled coroutine that awaits inside a `finally` raised the exception of an earlier call,
      and a task's result was freed memory. So coroutines are interpreted, and the functions that they call are
      compiled.
    """
    if path.name == "__init__.py":
        return False
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.AsyncFunctionDef():
                return False
            case ast.ClassDef(bases=bases) if any(_keeps_interpreted(ast.unparse(base)) for base in bases):
                return False
    return True


def _keeps_interpreted(base: str) -> bool:
    return base.endswith("Struct") or base.partition("[")[0] in _BUILTINS


def check() -> None:
    """Exit with the violations of the rules, if there are any."""
    compiled = set(modules())
    sources = {str(path.relative_to(SOURCES)): path.read_text() for path in SOURCES.rglob("*.py")}
    found = problems(
        {name: source for name, source in sources.items() if name in compiled},
        {name: source for name, source in sources.items() if name not in compiled},
    )
    if found:
        raise SystemExit("\n".join(["build_compiled: compiled modules must not contain this code:", *found]))


def build_compiled(into: Path) -> list[Path]:
    """Compile into folder `into`. Returns the files that it made."""
    # Only the build environment has these packages, so the module does not import them at its top.
    from mypyc.build import mypycify
    from setuptools import Distribution

    check()
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
        raise SystemExit("usage: scripts/lib/build_compiled.py INTO | --check")
    if sys.argv[1] == "--check":
        check()
        raise SystemExit(0)
    target = Path(sys.argv[1]).resolve()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    print(f"build_compiled: {len(build_compiled(target))} extension modules in {target}")
