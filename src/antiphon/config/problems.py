"""What is wrong with the value of a setting, in sentences that say what to write instead.

Lives here: the words for each kind of problem that the settings' model finds, and how a setting's place is written.
Not here: names in sources (`sources.py`), rules between settings (`settings.py`, whose words pass as they
are).

Invariant: no value is repeated here (a key may stand in the wrong place), and no words of the validating library's are
shown, which speak of its types.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from antiphon.config.sources import advice, shown_name

_MAPPING = "must hold a mapping of settings"
_LIST = "must be a list; in YAML [a, b], in a variable a,b"
_NUMBER = "must be a number"
_WHOLE = "must be a whole number"
_SWITCH = "must be true or false"
_TEXT = "must be a text; what YAML takes for a number needs quotes"
_WORDS: dict[str, str | Callable[[Mapping[str, Any]], str]] = {
    "missing": "is missing, and has no default",
    "int_parsing": _WHOLE,
    "int_parsing_size": _WHOLE,
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "finite_number": "must be a finite number",
    "bool_parsing": _SWITCH,
    "bool_type": _SWITCH,
    "string_type": _TEXT,
    "path_type": "must be a path",
    "greater_than_equal": lambda limits: f"must be at least {limits['ge']:g}",
    "greater_than": lambda limits: f"must be more than {limits['gt']:g}",
    "less_than_equal": lambda limits: f"must be at most {limits['le']:g}",
    "less_than": lambda limits: f"must be less than {limits['lt']:g}",
    "literal_error": lambda limits: f"must be {limits['expected']}",
    "enum": lambda limits: f"must be {limits['expected']}",
    "tuple_type": _LIST,
    "list_type": _LIST,
    "dict_type": _MAPPING,
    "mapping_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
}
_UNKNOWN = "cannot be used as it is; docs/configuration.md says what it takes"


def wrong_values(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line for each problem, with the place of the setting in front."""
    lines = []
    for problem in error.errors(include_input=False, include_url=False):
        where = _place(problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where} is not a setting{_nearest(model, problem['loc'])}")
        elif problem["type"] == "value_error":
            # Our own rules, one in each line.
            lines += (f"{where}: {line}" for line in problem["msg"].removeprefix("Value error, ").split("\n"))
        else:
            words = _WORDS.get(problem["type"], _UNKNOWN)
            lines.append(f"{where}: {words if isinstance(words, str) else words(problem.get('ctx', {}))}")
    return lines


def _place(parts: Sequence[str | int]) -> str:
    """`models[0].match`; the part of a name that may be something else is left out."""
    place = ""
    for part in parts:
        place += f"[{part}]" if isinstance(part, int) else f".{shown_name(part)}" if place else shown_name(part)
    return place or "settings"


def _nearest(model: type[BaseModel], parts: Sequence[str | int]) -> str:
    """Advice for the last of these names, by the section that it stands in."""
    kind: Any = model
    for part in parts[:-1]:
        section = _section(kind)
        if section is not None:
            field = section.model_fields.get(str(part))
            kind = field.annotation if field is not None else None
        else:
            # An element of a list, or a value of a mapping.
            inside = [one for one in typing.get_args(kind) if _section(one) is not None]
            kind = inside[0] if inside else None
    section = _section(kind)
    if section is None:
        return ""
    above = parts[:-1]
    return advice(_place(parts), [_place((*above, name)) for name in section.model_fields])


def _section(kind: Any) -> type[BaseModel] | None:
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
