"""What every section of the settings is: whole and checked, or not made; a value that does not change."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, Literal

import pytest

from antiphon.config.problems import WrongSettings
from antiphon.config.reading import SecretStr
from antiphon.config.section import Section, check, setting
from antiphon.config.settings import Settings


class Inner(Section):
    name: str
    key: SecretStr | None = None


class Outer(Section):
    count: int = setting(default=3, ge=1, lt=10)
    share: float = setting(default=0.5, gt=0, le=1)
    on: bool = False
    folder: Path | None = None
    which: Literal["a", "b"] = "a"
    words: tuple[str, ...] = ()
    inner: Inner = Inner(name="x")
    many: dict[str, Inner] = setting(default_factory=dict)
    either: str | tuple[Inner, ...] = ""
    code: str | None = setting(default=None, shown=lambda code: code[:1] + "…")

    @check("words")
    @staticmethod
    def _lower(value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word.lower() for word in value)

    def check_section(self) -> None:
        if self.on and self.folder is None:
            raise ValueError("on needs a folder\nand a folder is a path")


def problems(**values: Any) -> list[str]:
    with pytest.raises(WrongSettings) as told:
        Outer(**values)
    assert str(told.value) == "\n".join(told.value.lines)
    return told.value.lines


@pytest.mark.parametrize(
    ("name", "given", "read"),
    [
        ("count", "7", 7),
        ("count", " 7 ", 7),
        ("count", "7.0", 7),
        ("count", 7.0, 7),
        ("share", "1e-1", 0.1),
        ("share", 1, 1.0),
        ("on", "OFF", False),
        ("on", 0, False),
        ("folder", "/x", Path("/x")),
        ("folder", None, None),
        ("words", ["A", "b"], ("a", "b")),
        ("inner", {"name": "y"}, Inner(name="y")),
        ("many", {"one": {"name": "y"}}, {"one": Inner(name="y")}),
        ("either", [{"name": "y"}], (Inner(name="y"),)),
        ("either", "z", "z"),
    ],
)
def test_values_are_read_by_their_types(name: str, given: Any, read: Any) -> None:
    value = getattr(Outer.of({name: given}), name)
    assert value == read and type(value) is type(read)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": 0}, ["count: must be at least 1"]),
        ({"count": 10}, ["count: must be less than 10"]),
        ({"count": 1.5}, ["count: must be a whole number"]),
        ({"count": "7.5"}, ["count: must be a whole number"]),
        ({"count": float("inf")}, ["count: must be a finite number"]),
        ({"count": None}, ["count: must be a whole number"]),
        ({"share": 0}, ["share: must be more than 0"]),
        ({"share": 2}, ["share: must be at most 1"]),
        ({"share": "nan"}, ["share: must be a finite number"]),
        ({"share": 10**400}, ["share: must be a finite number"]),
        ({"share": [1]}, ["share: must be a number"]),
        ({"on": 2}, ["on: must be true or false"]),
        ({"which": "c"}, ["which: must be 'a' or 'b'"]),
        ({"words": "a"}, ["words: must be a list; in YAML [a, b], in a variable a,b"]),
        ({"words": ["a", 1]}, ["words[1]: must be a text; what YAML takes for a number needs quotes"]),
        ({"inner": {}}, ["inner.name: is missing, and has no default"]),
        ({"inner": {"nam": "x"}}, ["inner.name: is missing, and has no default",
                                   "inner.nam is not a setting; did you mean inner.name?"]),
        ({"inner": 3}, ["inner: must hold a mapping of settings"]),
        ({"many": {1: {"name": "x"}}},
         ["many.1: the name must be a text; what YAML takes for a number needs quotes"]),
        ({"either": [{"key": 3}]}, ["either[0].name: is missing, and has no default",
                                    "either[0].key: must be a text; what YAML takes for a number needs quotes"]),
        ({"count": 0, "share": 2}, ["count: must be at least 1", "share: must be at most 1"]),
        ({"on": True}, ["settings: on needs a folder", "settings: and a folder is a path"]),
        ({"on": True, "count": 0}, ["count: must be at least 1"]),
    ],
    ids=str,
)  # fmt: skip
def test_all_that_is_wrong_is_told(values: dict[str, Any], said: list[str]) -> None:
    assert problems(**values) == said


def test_a_section_does_not_change() -> None:
    section = Outer()
    with pytest.raises(AttributeError, match="count"):
        section.count = 4  # type: ignore[misc]
    other = section.replace(count=4)
    assert (section.count, other.count) == (3, 4)
    assert (section.given, other.given) == (frozenset(), frozenset({"count"}))


def test_it_is_a_value() -> None:
    one, same, other = Outer(words=("A",)), Outer(words=("a",)), Outer(words=("b",))
    assert one == same != other and hash(Inner(name="x")) == hash(Inner(name="x"))
    assert Inner(name="x") != "x"
    for again in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert again == one and again.given == {"words"}


def test_what_is_said_counts_even_where_it_is_the_default() -> None:
    assert Outer(count=3).given == {"count"}
    assert Outer(count=3).plain(without_defaults=True) == {}


def test_a_rendering_has_no_secret() -> None:
    section = Outer(inner=Inner(name="x", key=SecretStr("sk-1")), folder=Path("/f"), code="long", words=("w",))
    plain = section.plain(without_defaults=True)
    assert plain == {"inner": {"name": "x", "key": "**********"}, "folder": "/f", "code": "l…", "words": ["w"]}
    assert "sk-1" not in f"{section} {section!r} {section.inner.key}"
    assert section.plain()["either"] == "" and str(SecretStr("")) == ""


def test_what_is_unchecked_is_as_it_was_given() -> None:
    section = Outer.unchecked(count=-1)
    assert (section.count, section.share, section.given) == (-1, 0.5, frozenset({"count"}))


def test_what_cannot_be_declared_is_told_who_declares_it() -> None:
    with pytest.raises(TypeError, match="replace is what every section has"):
        type("Bad", (Section,), {"__annotations__": {"replace": "int"}})

    class Odd(Section):
        value: complex = 1j

    with pytest.raises(TypeError, match="complex"):
        Odd(value=1j)


def test_every_default_is_what_its_reader_would_make_of_it() -> None:
    def sections(section: Section) -> list[Section]:
        inner = [value for _, value in section.values() if isinstance(value, Section)]
        return [section, *(each for one in inner for each in sections(one))]

    found = sections(Settings())
    assert len(found) > 25
    for section in found:
        again = type(section).of(dict(section.values()))
        assert again == section and all(
            type(value) is type(getattr(again, name)) for name, value in section.values()
        ), type(section)
