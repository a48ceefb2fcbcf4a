"""Loads tools and profiles of other packages through Python entry points.

This module finds, loads and checks the entry points. This module loads each entry point once per process.
`tools/box.py` defines the interface of a tool, and `translation/profiles/` defines the interface of a profile.

The name of an entry point in the group `antiphon.tools` is the tool's type in requests. The entry point names a class
or function that returns a `ServerTool`. If this class or function has an attribute `settings_model` with a pydantic
model, Antiphon calls it with an instance of that model. Without `settings_model`, Antiphon calls it without an
argument. An entry point in the group `antiphon.profiles` has the profile's name, and refers to an `UpstreamProfile`
object.

Invariants: if an installed package cannot be used, the start fails with an error that names the package. No package
replaces a tool or profile of Antiphon, and no two packages use the same name. Each setting under `extensions` belongs
to the settings model of an installed tool. No error repeats a secret from these settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import BaseModel, SecretBytes, SecretStr, ValidationError

from antiphon.config.problems import MAPPING, Place, advice, lines_of, raise_wrong, written_place
from antiphon.config.settings import Settings
from antiphon.errors import ConfigError
from antiphon.redaction import without
from antiphon.translation.profiles import PROFILES, UpstreamProfile
from antiphon.translation.request.field_support import all_names

if TYPE_CHECKING:
    # The command line's parser imports this module, so it imports nothing slow.
    from antiphon.tools.box import ServerTool

_GROUPS: dict[Literal["tool", "profile"], str] = {"tool": "antiphon.tools", "profile": "antiphon.profiles"}
_SECTION = "extensions"
_TYPES = frozenset(name.split(".")[1] for name in all_names() if name.startswith("tools."))


@dataclass(frozen=True, slots=True)
class Extension:
    """One loaded entry point. `package` is the name and version of the Python package, and `value` is the object that
    the entry point names."""

    kind: Literal["tool", "profile"]
    name: str
    package: str
    value: Any

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} of {self.package}"


@lru_cache(maxsize=1)
def installed() -> tuple[EntryPoint, ...]:
    """Return the entry points in Antiphon's groups, not yet loaded. The result is cached, because the search reads the
    metadata of every installed package."""
    everybodys = entry_points()
    return tuple(entry for group in _GROUPS.values() for entry in everybodys.select(group=group))


@lru_cache(maxsize=1)
def extensions() -> tuple[Extension, ...]:
    """Return all installed extensions, sorted by kind and name. Raises `ConfigError` if an extension cannot be used."""
    found = [
        one
        for kind, group in _GROUPS.items()
        for one in sorted(_of_group(kind, group), key=lambda one: (one.name, one.package))
    ]
    for one, other in pairwise(found):
        if (one.kind, one.name) == (other.kind, other.name):
            raise ConfigError(f"{one} has the same name as an extension of {other.package}; uninstall one of them")
    return tuple(found)


def known_profiles() -> Mapping[str, UpstreamProfile]:
    """Return every profile by name. Profiles of other packages come last. Raises `ConfigError`."""
    return {**PROFILES, **{one.name: one.value for one in extensions() if one.kind == "profile"}}


def with_extension_settings(settings: Settings) -> Settings:
    """Return the settings with each section under `extensions` parsed by the settings model of its tool. The settings
    models also mark the secrets among these values. Raises `ConfigError` with all errors in these sections."""
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
    raise_wrong(wrong)
    return settings.model_copy(update={_SECTION: checked}) if checked else settings


def make_extension_tools(settings: Settings) -> Iterator[ServerTool]:
    """Create the tools of other packages, each with its settings. Raises `ConfigError`."""
    settings = with_extension_settings(settings)
    checked, secrets = settings.extensions, settings.secrets()
    for one in extensions():
        if one.kind != "tool":
            continue
        make: Callable[..., ServerTool] = one.value
        try:
            tool = make(checked[one.name]) if one.name in checked else make()
            types = tool.types
        except Exception as error:
            raise ConfigError(f"{one} cannot be created: {_said(error, secrets)}") from None
        if types != {one.name}:
            raise ConfigError(f"{one} must have the types {{{one.name!r}}}, but has the types {set(types)}")
        yield tool


def _of_group(kind: Literal["tool", "profile"], group: str) -> Iterator[Extension]:
    for entry in installed():
        if entry.group != group:
            continue
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"
        one = Extension(kind, entry.name, package, None)
        if entry.name in (_TYPES if kind == "tool" else PROFILES):
            raise ConfigError(f"{one} has a name that Antiphon itself uses; uninstall or rename it")
        yield Extension(kind, entry.name, package, _loaded(one, entry))


def _loaded(one: Extension, entry: EntryPoint) -> object:
    try:
        value = entry.load()
    except Exception as error:
        # A module may raise any error when it is imported.
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
    """Return the validated settings of a tool, or None if the tool has no settings model. If the settings are invalid,
    the function returns None and appends messages to `wrong`."""
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
    given = {name: value for name, value in values.items() if name in known}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        wrong += lines_of(error, place, lambda where, words: _words_without(words, model, where, given))
    except Exception as error:
        # A validator may raise any error, and the error's message may contain the value.
        where = written_place((*place, *_raising(model, given)))
        wrong.append(f"{where}: the validator of {one} raised {type(error).__name__}; correct the value or the package")
    return None


def _raising(model: type[BaseModel], given: Mapping[str, object]) -> Iterator[str]:
    """Validate each setting separately. Yield the name of the first setting whose validator raises an error other than
    `ValidationError`. If no validator raises such an error, yield nothing."""
    for name, value in given.items():
        try:
            model.model_validate({name: value})
        except ValidationError:
            continue
        except Exception:
            yield name
            return


def _words_without(words: str, model: type[BaseModel], where: Place, given: Mapping[str, object]) -> str:
    """Return a validator's message with `…` in place of texts from the settings. For a secret setting the result is a
    fixed text, because the message may contain part of the secret."""
    of_all = [field.annotation for name, field in model.model_fields.items() if where[:1] in ((name,), (field.alias,))]
    if any(map(_holds_secret, of_all)):
        return "the tool refuses this value"
    texts = sorted(_texts(given), key=len, reverse=True)
    for text in texts:
        words = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", "…", words)
    return without(words, texts)


def _holds_secret(kind: object) -> bool:
    if isinstance(kind, type) and issubclass(kind, SecretStr | SecretBytes):
        return True
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return any(_holds_secret(field.annotation) for field in kind.model_fields.values())
    return any(map(_holds_secret, get_args(kind)))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield from (value,) if value.strip() else ()
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)


def _said(error: Exception, secrets: tuple[str, ...] = ()) -> str:
    # Mask the secrets before cutting the text, because a secret that was cut in half would not be found.
    return without(f"{type(error).__name__}: {error}", secrets)[:300]
