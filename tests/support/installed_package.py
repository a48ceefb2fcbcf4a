"""A distribution in a folder on the path, as an installer leaves it: modules, and a `dist-info` with entry points.

Lives here: writing it. Not here: any package (`tests/example_extension` is one).
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
    """What `pip install --target folder project` leaves there."""
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    for module in project.glob("*.py"):
        (folder / module.name).write_bytes(module.read_bytes())
    write_info(folder, about["name"], about["version"], about["entry-points"])


def write_info(folder: Path, name: str, version: str, entries: Mapping[str, Mapping[str, str]]) -> None:
    """The `dist-info` of a distribution with these entry points, by group."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{one} = {value}\n" for one, value in of.items()) for group, of in entries.items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """The folder is on the path of this process, for packages that are looked for from now on."""
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
