"""Compiles the benchmark's programs in C with gcc, when they are needed.

Lives here: the compilation, and its cache in the folder `.bench`. A program is compiled again when its source changes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

_CACHE = Path(__file__).parents[2] / ".bench"
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")


def program(name: str, headers: Mapping[str, str] | None = None) -> Path:
    """The executable of `NAME.c` in this folder. `headers` are more files that the source includes."""
    source = Path(__file__).with_name(f"{name}.c")
    texts = {source.name: source.read_text(), **(headers or {})}
    digest = hashlib.sha256(repr((texts, _FLAGS)).encode()).hexdigest()[:16]
    made = _CACHE / f"{name}-{digest}"
    if made.exists():
        return made
    if shutil.which("gcc") is None:
        raise SystemExit("bench: gcc is not installed (Debian: apt install gcc libc6-dev)")
    _CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
        for file, text in texts.items():
            (Path(folder) / file).write_text(text)
        built = Path(folder) / name
        subprocess.run(["gcc", *_FLAGS, "-o", str(built), str(Path(folder) / source.name)], check=True)
        built.rename(made)
    return made
