"""What every section of the settings has in common, and how an address is written.

Lives here: the base class, how its settings are declared, addresses and base URLs. Not here: any setting, the types
that settings have (`reading.py`).

A section is a class whose annotated names are its settings: `name: type = default`, or `= setting(…)` for one with
limits. `check` names what looks at a single one once it has its type; `check_section` looks at all together, if each is
well by itself.

Invariants: a section is made whole, with everything in it checked, or not at all (`WrongSettings` has all that is
wrong); it does not change.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from inspect import get_annotations
from pathlib import Path
from typing import Any, Self, dataclass_transform
from urllib.parse import urlsplit

from antiphon.config.problems import Place, Problem, WrongSettings, no_setting
from antiphon.config.reading import MAPPING, NO_LIMITS, WRONG, Limits, Reader, SecretStr, reader_of

MIB = 1 << 20
_REQUIRED: Any = object()


class Setting:
    """One setting of a section: its default, its limits, and how it is shown where that is not as it is."""

    __slots__ = ("_default", "factory", "limits", "shown")

    def __init__(
        self,
        default: Any = _REQUIRED,
        factory: Callable[[], Any] | None = None,
        limits: Limits = NO_LIMITS,
        shown: Callable[[Any], Any] | None = None,
    ) -> None:
        self._default, self.factory, self.limits, self.shown = default, factory, limits, shown

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self._default is _REQUIRED and self.factory is None

    @property
    def default(self) -> Any:
        """What it is when nothing is said."""
        return self._default if self.factory is None else self.factory()


def setting(
    *,
    default: Any = _REQUIRED,
    default_factory: Callable[[], Any] | None = None,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    shown: Callable[[Any], Any] | None = None,
) -> Any:
    """Declare a setting. `ge`, `gt`, `le`, `lt`: what its numbers may be; `shown`: makes of a value (not None) what a
    rendering has in its place."""
    return Setting(default, default_factory, Limits(ge, gt, le, lt), shown)


class _Check:
    """What looks at single settings, and may make others of them."""

    def __init__(self, names: tuple[str, ...], function: Callable[[Any], Any], before: bool) -> None:
        self.names, self.function, self.before = names, function, before


def check(*names: str, before: bool = False) -> Callable[[Callable[[Any], Any]], Any]:
    """What is decorated looks at these settings: it takes a value and gives the one that counts, or raises ValueError,
    which says, a line each, what is wrong. `before`: as it was given, before its type is looked at."""

    def decorate(function: Callable[[Any], Any]) -> Any:
        return _Check(names, function, before)

    return decorate


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
class Section:
    """The base of all sections."""

    _settings: typing.ClassVar[dict[str, Setting]] = {}
    _checks: typing.ClassVar[tuple[_Check, ...]] = ()
    _known_kinds: typing.ClassVar[dict[str, Any] | None] = None
    _known_readers: typing.ClassVar[dict[str, Reader] | None] = None

    def __init_subclass__(cls) -> None:
        found = dict(cls._settings)
        for name in get_annotations(cls):
            if hasattr(Section, name):
                raise TypeError(f"{name} is what every section has, and so no name of a setting")
            given = cls.__dict__.get(name, _REQUIRED)
            found[name] = given if isinstance(given, Setting) else Setting(given)
            if given is not _REQUIRED:
                # An instance has its own.
                delattr(cls, name)
        cls._settings = found
        cls._known_kinds = cls._known_readers = None
        cls._checks = (*cls._checks, *(one for one in cls.__dict__.values() if isinstance(one, _Check)))

    def __init__(self, **values: Any) -> None:
        wrong: list[Problem] = []
        found = self._read(values, (), wrong)
        if wrong:
            raise WrongSettings(wrong)
        self.__dict__.update(found)
        self._finish((), wrong)
        if wrong:
            raise WrongSettings(wrong)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The section that these values make. Raises `WrongSettings`."""
        return cls(**values)

    @classmethod
    def unchecked(cls, **values: Any) -> Self:
        """The section with these values as they are, and defaults."""
        made = cls.__new__(cls)
        found = {name: one.default for name, one in cls._settings.items() if not one.required}
        made.__dict__.update(found, **values, _given=frozenset(values))
        return made

    @classmethod
    def read_section(cls, value: Any, place: Place, wrong: list[Problem]) -> Any:
        """The reader of this type (`reading.py`)."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            wrong.append(Problem(place, MAPPING))
            return WRONG
        before = len(wrong)
        found = cls._read(value, place, wrong)
        if len(wrong) > before:
            return WRONG
        made = cls.__new__(cls)
        made.__dict__.update(found)
        made._finish(place, wrong)
        return WRONG if len(wrong) > before else made

    @classmethod
    def _read(cls, values: Mapping[Any, Any], place: Place, wrong: list[Problem]) -> dict[str, Any]:
        readers = cls._readers() if values else {}
        found: dict[str, Any] = {}
        for name, one in cls._settings.items():
            if name in values:
                found[name] = readers[name](values[name], (*place, name), wrong)
            elif one.required:
                wrong.append(Problem((*place, name), "is missing, and has no default"))
            else:
                found[name] = one.default
        wrong += (no_setting(place, str(name), cls._settings) for name in values if name not in cls._settings)
        found["_given"] = frozenset(values)
        return found

    def _finish(self, place: Place, wrong: list[Problem]) -> None:
        try:
            self.check_section()
        except ValueError as error:
            wrong.append(Problem(place, str(error)))

    def check_section(self) -> None:
        """Look at all settings together. Raises ValueError, which says, a line each, what is wrong."""

    @classmethod
    def settings(cls) -> Mapping[str, Setting]:
        """Its settings by name, in their order."""
        return cls._settings

    @classmethod
    def kinds(cls) -> Mapping[str, Any]:
        """Their types."""
        if cls._known_kinds is None:
            # The annotations are texts until somebody asks.
            kinds = typing.get_type_hints(cls)
            cls._known_kinds = {name: kinds[name] for name in cls._settings}
        return cls._known_kinds

    @classmethod
    def _readers(cls) -> Mapping[str, Reader]:
        if cls._known_readers is None:
            cls._known_readers = {}
            for name, kind in cls.kinds().items():
                reader = reader_of(kind, cls._settings[name].limits)
                for one in cls._checks:
                    if name in one.names:
                        reader = _checked(reader, one)
                cls._known_readers[name] = reader
        return cls._known_readers

    @property
    def given(self) -> frozenset[str]:
        """The settings that were said, even where they are the default."""
        names: frozenset[str] = self.__dict__["_given"]
        return names

    def values(self) -> Iterator[tuple[str, Any]]:
        """Name and value of each."""
        return ((name, self.__dict__[name]) for name in self._settings)

    def replace(self, **values: Any) -> Self:
        """The same with other values, which nothing checks."""
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__, **values, _given=self.given | values.keys())
        return made

    def plain(self, *, without_defaults: bool = False) -> dict[str, Any]:
        """As JSON has it, secrets replaced: all settings, or those that are not the default."""
        found = {}
        for name, value in self.values():
            one = self._settings[name]
            if without_defaults and not one.required and value == one.default:
                continue
            shown = value if one.shown is None or value is None else one.shown(value)
            found[name] = _plain(shown, without_defaults)
        return found

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings do not change: {name}")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, others = self.__dict__, other.__dict__
        return all(mine[name] == others[name] for name in self._settings)

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__[name] for name in self._settings))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.values())})"


def _checked(read: Reader, what: _Check) -> Reader:
    def read_checked(value: Any, place: Place, wrong: list[Problem]) -> Any:
        try:
            if what.before:
                return read(what.function(value), place, wrong)
            found = read(value, place, wrong)
            return found if found is WRONG else what.function(found)
        except ValueError as error:
            wrong.append(Problem(place, str(error)))
            return WRONG

    return read_checked


def _plain(value: Any, without_defaults: bool) -> Any:
    if isinstance(value, Section):
        return value.plain(without_defaults=without_defaults)
    if isinstance(value, SecretStr | Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {name: _plain(one, without_defaults) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one, without_defaults) for one in value]
    return value


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` as (host, port); `unix:PATH` as (`unix`, 0). Raises ValueError with a hint."""
    if text.startswith("unix:"):
        return "unix", 0
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"{text!r} is not HOST:PORT (or unix:PATH)")
    if int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT: the largest port is 65535")
    return host.strip("[]") or "0.0.0.0", int(port)


def tcp_address(text: str | None) -> str | None:
    """The address, which must not be a Unix socket. Raises ValueError with a hint."""
    if text is not None and parse_address(text)[0] == "unix":
        raise ValueError(f"{text} is not HOST:PORT")
    return text


def base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL, for example http://127.0.0.1:11434/v1")
    try:
        _ = parts.port
    except ValueError:
        # Its own words hold what stands there.
        raise ValueError("the port is no number below 65536") from None
    if parts.username or parts.password:
        raise ValueError("must not hold credentials; use api_key")
    if parts.query or parts.fragment:
        raise ValueError("must not have a query or fragment")
    return value.rstrip("/")
