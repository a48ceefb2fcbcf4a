"""Whether this process runs the plain Python that Antiphon is written in, or what was compiled of it.

An installation may have both: a platform wheel (scripts/wheels) carries compiled modules beside the sources they were
made of, and Python prefers the compiled ones. With `ANTIPHON_PURE=1` in the environment the sources are taken, for
whoever suspects the compiler. This is decided before any other module of ours is imported, and holds for the process.

Not here: which modules are compiled, and how (scripts/build_compiled.py).
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

VARIABLE = "ANTIPHON_PURE"
"""The environment variable; anything but nothing and 0 asks for the plain Python. It is no setting, since settings are
read by what it decides about."""

PURE = os.environ.get(VARIABLE, "") not in ("", "0")


def leave_compiled_aside() -> None:
    """From here on the sources are imported, if the environment asks for it. To be called before anything else."""
    if not PURE:
        return
    # Imported here: `antiphon health` starts every few seconds.
    from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, PathFinder, SourceFileLoader

    class SourcesFirst:
        """Finds our modules by their sources, though a compiled one stands beside."""

        @staticmethod
        def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None, /) -> ModuleSpec | None:
            if not name.startswith("antiphon."):
                return None
            for folder in path or ():
                found = FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES)).find_spec(name)
                if found is not None and found.loader is not None:
                    return found
            return PathFinder.find_spec(name, path)

    sys.meta_path.insert(0, SourcesFirst)


def compiled() -> bool:
    """Whether this process runs the compiled build."""
    from importlib.util import find_spec

    spec = find_spec("antiphon.ids")
    return spec is not None and spec.origin is not None and not spec.origin.endswith(".py")
