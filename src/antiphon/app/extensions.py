"""Loads tools and profiles of other packages through Python entry points.

Lives here: finding, loading and checking them, each once per process. Not here: what a tool is (`tools/box.py`), what a
profile is (`translation/profiles/`), those that are part of this package.

An entry point of the group `antiphon.tools` has the type for a name under which requests declare the tool, and leads to
a class or function that makes a `ServerTool` when it is called without arguments. One of the group `antiphon.profiles`
has a profile's name and leads to the `UpstreamProfile`.

Invariant: a package that is installed is used or ends the start with an error that names it; nothing of it replaces
what is here, and no two packages share a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from antiphon.errors import ConfigError
from antiphon.translation.profiles import PROFILES, UpstreamProfile
from antiphon.translation.request.field_support import all_names

if TYPE_CHECKING:
    # Read by the parser of the command line, which loads nothing that costs time.
    from antiphon.tools.box import ServerTool

_GROUPS: dict[Literal["tool", "profile"], str] = {"tool": "antiphon.tools", "profile": "antiphon.profiles"}
_TYPES = frozenset(name.split(".")[1] for name in all_names() if name.startswith("tools."))


@dataclass(frozen=True, slots=True)
class Extension:
    """One entry point that was loaded: `package` is its distribution and version, `value` what it leads to."""

    kind: Literal["tool", "profile"]
    name: str
    package: str
    value: Any

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.package}"


@lru_cache(maxsize=1)
def installed() -> tuple[EntryPoint, ...]:
    """Those that are for us; nothing of them is loaded. Finding them means looking into every package there is."""
    everybodys = entry_points()
    return tuple(entry for group in _GROUPS.values() for entry in everybodys.select(group=group))


@lru_cache(maxsize=1)
def extensions() -> tuple[Extension, ...]:
    """All that is installed, by kind and name. Raises `ConfigError` for one that cannot be used."""
    found = [
        one
        for kind, group in _GROUPS.items()
        for one in sorted(_of_group(kind, group), key=lambda one: (one.name, one.package))
    ]
    for one, other in pairwise(found):
        if (one.kind, one.name) == (other.kind, other.name):
            raise ConfigError(f"{one} has the name of the one of {other.package}; uninstall one of them")
    return tuple(found)


def known_profiles() -> Mapping[str, UpstreamProfile]:
    """Every profile by name, those of other packages last. Raises `ConfigError`."""
    return {**PROFILES, **{one.name: one.value for one in extensions() if one.kind == "profile"}}


def make_extension_tools() -> Iterator[ServerTool]:
    """The tools of other packages. Raises `ConfigError`."""
    for one in extensions():
        if one.kind != "tool":
            continue
        make: Callable[[], ServerTool] = one.value
        try:
            tool = make()
            types = tool.types
        except Exception as error:
            raise ConfigError(f"{one} cannot be made: {_said(error)}") from error
        if types != {one.name}:
            raise ConfigError(f"{one} must have the types {{{one.name!r}}}, and has {set(types)}")
        yield tool


def _of_group(kind: Literal["tool", "profile"], group: str) -> Iterator[Extension]:
    for entry in installed():
        if entry.group != group:
            continue
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"
        one = Extension(kind, entry.name, package, None)
        if entry.name in (_TYPES if kind == "tool" else PROFILES):
            raise ConfigError(f"{one} has a name that is taken by Antiphon itself")
        yield Extension(kind, entry.name, package, _loaded(one, entry))


def _loaded(one: Extension, entry: EntryPoint) -> Any:
    try:
        value = entry.load()
    except Exception as error:
        # Whatever a module does when it is imported.
        raise ConfigError(f"{one} cannot be loaded ({entry.value}): {_said(error)}") from error
    if one.kind == "tool" and not callable(value):
        raise ConfigError(f"{one} must be a class or function that makes the tool, not {value!r:.100}")
    if one.kind == "profile" and not (isinstance(value, UpstreamProfile) and value.name == one.name):
        raise ConfigError(f"{one} must be an UpstreamProfile called {one.name!r}, not {value!r:.100}")
    return value


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
