"""Writes a distribution into a folder on Python's path, as an installer does: modules, and a `dist-info` with entry
points.

Lives here: writing the distribution. Not here: the packages (`tests/example_extension` is one).
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import invalidate_caches
from pathlib import Path

from antiphon.app import extensions

EXAMPLE = Path(__file__).parent.parent / "example_extension"


def install(folder: Path, project: Path = EXAMPLE) -> None:
    """Write the files that `pip install --target folder project` writes."""
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    for module in project.glob("*.py"):
        (folder / module.name).write_bytes(module.read_bytes())
    write_info(folder, about["name"], about["version"], about["entry-points"])


def write_info(folder: Path, name: str, version: str, entries: Mapping[str, Mapping[str, str]]) -> None:
    """Write the `dist-info` of a distribution with these entry points, by group."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{one} = {value}\n" for one, value in of.items()) for group, of in entries.items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Put the folder on the path of this process while the context lasts. Only later searches for packages see it."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    invalidate_caches()
    _forget()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        _forget()
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]


def _forget() -> None:
    extensions.installed.cache_clear()
    extensions.extensions.cache_clear()
