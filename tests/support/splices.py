"""Provides the implementations of the splice: in Python, and in C if it can be compiled."""

from __future__ import annotations

import importlib.util
import tempfile
from functools import cache
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any

from antiphon.translation.splice import Splice, splice_in_python

_BUILDER = Path(__file__).parents[2] / "scripts" / "lib" / "build_splice.py"


@cache
def missing() -> str:
    """The reason why the C version cannot be compiled; empty if it can."""
    why: str = _builder().missing()
    return why


@cache
def splice_in_c() -> Splice:
    """The current `_splice.c`, compiled for this process. A compiler warning is an error."""
    with tempfile.TemporaryDirectory(prefix="antiphon-splice-") as folder:
        return load(build(Path(folder), "-Werror"))


def build(into: Path, *flags: str) -> Path:
    """Compile the C version into this folder, with these additional compiler flags."""
    made: Path = _builder().build_splice(into, *flags)
    return made


def implementations() -> tuple[Splice, ...]:
    """The implementations that this machine can run."""
    return (splice_in_python,) if missing() else (splice_in_python, splice_in_c())


def load(file: Path) -> Splice:
    """The splice function of this extension module."""
    spec = importlib.util.spec_from_file_location("_splice", file, loader=ExtensionFileLoader("_splice", str(file)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Splice = module.splice
    return made


@cache
def _builder() -> Any:
    """The module `scripts/lib/build_splice.py`, which is not part of a package."""
    spec = importlib.util.spec_from_file_location("build_splice", _BUILDER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
