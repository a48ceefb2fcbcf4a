"""Compile the splice (src/antiphon/translation/_splice.c) with the C compiler that this Python was built with.

Lives here: the call of the compiler. The build of a wheel for one platform calls this module, and so do tests. By hand,

    .venv/bin/python scripts/lib/build_splice.py [INTO]

writes `_splice.abi3.so` to folder INTO. Without INTO it writes to the folder of the sources, and this checkout uses
it. Not here: `pip install .`, which compiles nothing, and the choice between C and Python (`translation/splice.py`).

The extension uses only Python's limited API, so one binary works with every CPython from 3.11 on.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

BESIDE = Path(__file__).resolve().parents[2] / "src" / "antiphon" / "translation"
SOURCE = BESIDE / "_splice.c"
NAME = "_splice.abi3.so"
_WARNINGS = ("-Wall", "-Wextra", "-Wconversion")


def missing() -> str:
    """The name of a program or header that is missing for the compilation. Empty if nothing is missing."""
    compiler = _compiler()
    if shutil.which(compiler[0]) is None:
        return f"there is no C compiler ({compiler[0]})"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.is_file() else f"there is no {header}"


def build_splice(into: Path, *flags: str) -> Path:
    """Compile into folder `into`, with these additional compiler flags. Returns the compiled file."""
    into.mkdir(parents=True, exist_ok=True)
    made, rough = into / NAME, into / "_splice.o"
    include = f"-I{sysconfig.get_path('include')}"
    position_independent = shlex.split(sysconfig.get_config_var("CCSHARED") or "")
    linker = [*_compiler(), *shlex.split(sysconfig.get_config_var("LDSHARED") or "cc -shared")[1:]]
    subprocess.run(
        [*_compiler(), "-O2", *position_independent, *_WARNINGS, *flags, include, "-c", str(SOURCE), "-o", str(rough)],
        check=True,
    )
    subprocess.run([*linker, *flags, str(rough), "-o", str(made)], check=True)
    rough.unlink()
    return made


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        raise SystemExit("usage: scripts/lib/build_splice.py [INTO]")
    if why_not := missing():
        raise SystemExit(f"build_splice: {why_not}")
    print(f"build_splice: {build_splice(Path(sys.argv[1]).resolve() if len(sys.argv) == 2 else BESIDE)}")
