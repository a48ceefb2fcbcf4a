"""Loads tools and profiles of other packages through Python entry points.

Lives here: finding, loading and checking them, each once per process. Not here: what a tool is (`tools/box.py`), what a
profile is (`translation/profiles/`), those that are part of this package.

An entry point of the group `antiphon.tools` has the type for a name under which requests declare the tool, and leads to
a class or function that makes a `ServerTool`: it is called without arguments or, where it has a pydantic model as its
attribute `settings_model`, with an instance of it. One of the group `antiphon.profiles` has a profile's name and leads
to the `UpstreamProfile`.

Invariant: a package that is installed is used or ends the start with an error that names it; nothing of it replaces
what is here, and no two packages share a name; each setting under `extensions` is one of an installed tool's model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError

from antiphon.config.problems import MAPPING, Place, advice, lines_of, written_place
from antiphon.config.settings import Settings
from antiphon.errors import ConfigError
from antiphon.translation.profiles import PROFILES, UpstreamProfile
from antiphon.translation.request.field_support import all_names

if TYPE_CHECKING:
    # Read by the parser of the command line, which loads nothing that costs time.
    from antiphon.tools.box import ServerTool

_GROUPS: dict[Literal["tool", "profile"], str] = {"tool": "antiphon.tools", "profile": "antiphon.profiles"}
_SECTION = "extensions"
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


def with_extension_settings(settings: Settings) -> Settings:
    """The settings with each section under `extensions` as an instance of its tool's model, so that its secrets are
    known as such. Raises `ConfigError` for all that is wrong there."""
    wrong: list[str] = []
    tools = {one.name: one for one in extensions() if one.kind == "tool"}
    for name in settings.extensions.keys() - tools.keys():
        place, known = written_place((_SECTION, name)), (f"{_SECTION}.{one}" for one in tools)
        wrong.append(f"{place}: no tool of this name is installed{advice(place, known)}")
    checked = {
        name: found
        for name, one in tools.items()
        if (found := _checked_settings(one, settings.extensions.get(name), wrong)) is not None
    }
    if len(wrong) > 1:
        raise ConfigError("\n  ".join((f"{len(wrong)} settings are wrong:", *wrong)))
    if wrong:
        raise ConfigError(wrong[0])
    return settings.model_copy(update={_SECTION: checked}) if checked else settings


def make_extension_tools(settings: Settings) -> Iterator[ServerTool]:
    """The tools of other packages, each with its settings. Raises `ConfigError`."""
    checked = with_extension_settings(settings).extensions
    for one in extensions():
        if one.kind != "tool":
            continue
        make: Callable[..., ServerTool] = one.value
        try:
            tool = make(checked[one.name]) if one.name in checked else make()
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
    model = getattr(value, "settings_model", None) if one.kind == "tool" else None
    if model is not None and not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ConfigError(f"settings_model of {one} must be a pydantic model, not {model!r:.100}")
    if one.kind == "profile" and not (isinstance(value, UpstreamProfile) and value.name == one.name):
        raise ConfigError(f"{one} must be an UpstreamProfile called {one.name!r}, not {value!r:.100}")
    return value


def _checked_settings(one: Extension, values: object, wrong: list[str]) -> BaseModel | None:
    """The tool's settings; None where it has none, or where they are wrong, which is added to `wrong`."""
    model: type[BaseModel] | None = getattr(one.value, "settings_model", None)
    place: Place = (_SECTION, one.name)
    if model is None:
        if values is not None:
            wrong.append(f"{written_place(place)}: {one} has no settings")
        return None
    if isinstance(values, model):
        return values
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        wrong.append(f"{written_place(place)} {MAPPING}")
        return None
    known = {field.alias or name for name, field in model.model_fields.items()}
    if model.model_config.get("extra") == "allow":
        known |= values.keys()
    for name in values.keys() - known:
        where = written_place((*place, str(name)))
        near = advice(where, (written_place((*place, other)) for other in known))
        wrong.append(f"{where} is not a setting of {one}{near}")
    try:
        return model.model_validate({name: value for name, value in values.items() if name in known})
    except ValidationError as error:
        wrong += lines_of(error, place)
        return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]
