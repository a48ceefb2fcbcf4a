"""What every section of the settings is: whole and checked, or not made; a value that does not change."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any, Literal, Self

import pytest
from pydantic import Field, ValidationError, model_validator

from antiphon.config.problems import lines_of
from antiphon.config.section import BaseUrl, Secret, Section, TcpAddress, descriptions
from antiphon.config.settings import Settings, settings_schema


class Inner(Section):
    name: str
    key: Secret | None = None
    """What opens
    it."""


class Outer(Section):
    count: int = Field(default=3, ge=1, lt=10)
    share: float = Field(default=0.5, gt=0, le=1)
    on: bool = False
    folder: Path | None = None
    which: Literal["a", "b"] = "a"
    words: tuple[str, ...] = ()
    inner: Inner = Inner(name="x")
    several: tuple[Inner, ...] = ()
    many: dict[str, Inner] = Field(default_factory=dict)
    base: BaseUrl | None = None
    address: TcpAddress | None = None

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.on and self.folder is None:
            raise ValueError("on needs a folder\nand a folder is a path")
        return self


def problems(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ValidationError) as told:
        Outer.model_validate(values)
    return lines_of(told.value)


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
        ("words", ["A", "b"], ("A", "b")),
        ("inner", {"name": "y"}, Inner(name="y")),
        ("many", {"one": {"name": "y"}}, {"one": Inner(name="y")}),
        ("several", [{"name": "y"}], (Inner(name="y"),)),
        ("base", "https://x/v1/", "https://x/v1"),
        ("address", ":80", ":80"),
    ],
)
def test_values_are_read_by_their_types(name: str, given: Any, read: Any) -> None:
    value = getattr(Outer.model_validate({name: given}), name)
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
        ({"share": 10**400}, ["share: must be a number"]),
        ({"share": [1]}, ["share: must be a number"]),
        ({"on": 2}, ["on: must be true or false"]),
        ({"which": "c"}, ["which: must be 'a' or 'b'"]),
        ({"words": "a"}, ["words: must be a list; in YAML [a, b], in a variable a,b"]),
        ({"words": ["a", 1]}, ["words[1]: must be a text; write quotes around a text that YAML would "
          "read as a number"]),
        ({"inner": {}}, ["inner.name: is missing, and has no default"]),
        ({"inner": {"nam": "x"}}, ["inner.name: is missing, and has no default", "inner.nam: is not a setting"]),
        ({"inner": {"name": "x", "key": "**********"}},
         ["inner.key: ********** is the text that Antiphon prints in place of a secret; write the secret itself, or "
          "remove the setting and set its environment variable"]),
        ({"base": "x"}, ["base: must be an http:// or https:// URL, for example http://127.0.0.1:11434/v1"]),
        ({"address": "unix:/x"}, ["address: is not HOST:PORT"]),
        ({"inner": 3}, ["inner: must be a mapping of settings (name: value)"]),
        ({"many": {1: {"name": "x"}}},
         ["many.1: the name must be a text; write quotes around a text that YAML would read as a number"]),
        ({"several": [{"key": 3}]}, ["several[0].name: is missing, and has no default",
                                     "several[0].key: must be a text; write quotes around a text "
                                     "that YAML would read as a number"]),
        ({"count": 0, "share": 2}, ["count: must be at least 1", "share: must be at most 1"]),
        ({"on": True}, ["settings: on needs a folder", "settings: and a folder is a path"]),
        ({"on": True, "count": 0}, ["count: must be at least 1"]),
    ],
    ids=str,
)  # fmt: skip
def test_all_that_is_wrong_is_told(values: dict[str, Any], said: list[str]) -> None:
    assert problems(values) == said


def test_no_error_holds_a_value() -> None:
    with pytest.raises(ValidationError) as told:
        Outer.model_validate({"inner": {"name": "x", "key": ["sk-secret"]}, "count": "sk-secret", "sk": "sk-secret"})
    assert "sk-secret" not in f"{told.value} {told.value!r} {lines_of(told.value)}"


def test_a_section_does_not_change() -> None:
    section = Outer()
    with pytest.raises(ValidationError, match="frozen"):
        section.count = 4
    other = section.model_copy(update={"count": 4})
    assert (section.count, other.count) == (3, 4)
    assert (section.model_fields_set, other.model_fields_set) == (set(), {"count"})


def test_it_is_a_value() -> None:
    one, same, other = Outer(words=("a",)), Outer(words=("a",)), Outer(words=("b",))
    assert one == same != other and hash(Inner(name="x")) == hash(Inner(name="x"))
    for again in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert again == one and again.model_fields_set == {"words"}


def test_a_rendering_has_no_secret() -> None:
    section = Outer.model_validate({"inner": {"name": "x", "key": "sk-1"}, "folder": "/f", "words": ("w",)})
    plain = section.model_dump(mode="json", exclude_defaults=True)
    assert plain == {"inner": {"name": "x", "key": "**********"}, "folder": "/f", "words": ["w"]}
    assert "sk-1" not in f"{section} {section!r} {section.inner.key} {section.model_dump()}"


def test_every_default_is_what_would_be_read() -> None:
    def sections(section: Section) -> list[Section]:
        inner = [value for _, value in section if isinstance(value, Section)]
        return [section, *(each for one in inner for each in sections(one))]

    found = sections(Settings())
    assert len(found) > 25
    for section in found:
        again = type(section).model_validate(vars(section))
        assert again == section and all(type(value) is type(getattr(again, name)) for name, value in section), section


def test_what_stands_below_a_setting_describes_it() -> None:
    assert descriptions(Inner) == {"key": "What opens\nit."}
    schema = settings_schema()
    assert schema["properties"]["workers"] == {
        "default": 1,
        "description": "Number of worker processes (sidecars or HTTP servers).",
        "type": "integer",
        "minimum": 1,
        "maximum": 256,
    }
    assert schema["properties"]["tools"] == {"$ref": "#/$defs/ToolSettings"}
    bare = [
        f"{name}.{member}"
        for name, section in schema["$defs"].items()
        for member, said in section.get("properties", {}).items()
        if "description" not in said and "$ref" not in said
    ]
    assert bare == ["UpstreamShare.name", "UpstreamShare.weight"]
