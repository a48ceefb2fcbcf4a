"""What is wrong with a setting is said in our words, whatever the setting and whatever stands there."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pytest

from antiphon.config.section import Section
from antiphon.config.settings import Settings, load_settings
from antiphon.errors import ConfigError

SECRET = "sk-abcdefghijklmnop"
WRONG: tuple[Any, ...] = (
    SECRET,
    "",
    -1,
    0,
    0.5,
    10**30,
    True,
    None,
    [SECRET],
    [[1]],
    {"sk": SECRET},
    [{}],
    {"a": {}},
    float("inf"),
)
LIBRARYS = (
    "Input",
    "should be",
    "Field required",
    "Extra inputs",
    "instance of",
    "validation",
    "unable to",
    "Value error",
)


def places(model: type[Section], above: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every setting, also in the elements of lists and the values of mappings."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        here = (*above, name)
        yield here
        for part in (kind, *typing.get_args(kind)):
            if isinstance(part, type) and issubclass(part, Section):
                origin = typing.get_origin(kind)
                inside: tuple[str | int, ...] = (0,) if origin is tuple else ("one",) if origin is dict else ()
                yield from places(part, (*here, *inside))


def at(place: tuple[str | int, ...], value: Any) -> Any:
    for part in reversed(place):
        value = [value] if isinstance(part, int) else {part: value}
    return value


def wrong(values: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as told:
        load_settings(values)
    return str(told.value)


def test_no_words_of_the_library_and_no_value_are_shown() -> None:
    refused = 0
    for place in places(Settings):
        for value in WRONG:
            try:
                load_settings(at(place, value))
            except ConfigError as error:
                said = str(error)
                assert not [words for words in (*LIBRARYS, SECRET) if words in said], (place, value, said)
                assert str(place[-1]) in said or "is missing" in said, (place, value, said)
                refused += 1
    assert refused > 1_000


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"workers": "x"}, "workers: must be a whole number"),
        ({"workers": 0}, "workers: must be at least 1"),
        ({"workers": 999}, "workers: must be at most 256"),
        ({"timeouts": {"idle": 0}}, "timeouts.idle: must be more than 0"),
        ({"timeouts": {"drain": float("inf")}}, "timeouts.drain: must be a finite number"),
        ({"mode": "relais"}, "mode: must be 'auto', 'relay' or 'drive'"),
        ({"fetch": {"enabled": "maybe"}}, "fetch.enabled: must be true or false"),
        ({"models": [{}]}, "models[0].match: is missing, and has no default"),
        ({"models": "x"}, "models: must be a list; in YAML [a, b], in a variable a,b"),
        ({"models": [3]}, "models[0]: must be a mapping of settings (name: value)"),
        ({"data": 5}, "data: must be a path"),
        ({"upstream": {"host": 5}}, "upstream.host: must be a text; write quotes around a text that YAML would "
         "read as a number"),
        (
            {"models": [{"match": "a", "upstrem": "b"}]},
            "models[0].upstrem is not a setting; did you mean models[0].upstream?",
        ),
        (
            {"upstreams": {"a": {"url": "http://x/v1", "api_kee": SECRET}}},
            "upstreams.a.api_kee is not a setting; did you mean upstreams.a.api_key?",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_the_words(values: dict[str, Any], said: str) -> None:
    assert wrong(values) == said


@pytest.mark.parametrize(("notice", "drain"), [(30, 30), (5, 1), (1, 0)])
def test_a_notice_that_leaves_no_time_is_told(notice: float, drain: float) -> None:
    said = wrong({"timeouts": {"notice": notice, "drain": drain}})
    assert f"notice ({notice} s) must be less than drain ({drain} s)" in said
    assert load_settings({"timeouts": {"notice": 0, "drain": drain}}).timeouts.drain == drain
