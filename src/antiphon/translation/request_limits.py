"""Ranges, choices and lengths of a request's values, with OpenAI's errors.

Lives here: the checks, and the limits of what is inside `text`, `reasoning` and `context_management`. Not here: types
and limits of plain fields (`request_fields.py`), checks that other readers share (`request_checks.py`).

Not msgspec's constraints (`Meta`, `Literal`): their errors name neither the value nor whether it is too small or too
large, and `code` and message say both, so that each would have to be looked for again.

Invariant: every error names its field in `param`.
"""

from __future__ import annotations

from typing import Any, Final

from antiphon.errors import array_too_long, invalid_parameter, invalid_type, invalid_value, missing_parameter
from antiphon.translation.request_checks import NAME, check_choice, check_include, check_metadata, known_choice
from antiphon.translation.request_fields import FIELDS
from antiphon.types.json import first, given
from antiphon.types.request import ContextManagement, ReasoningOptions, TextFormat, TextOptions
from antiphon.types.tolerance import Tolerance

EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
SUMMARIES: Final = ("auto", "concise", "detailed")
VERBOSITIES: Final = ("low", "medium", "high")
FORMATS: Final = ("text", "json_object", "json_schema")
LEAST_THRESHOLD: Final = 1000
_MOST_ENTRIES: Final = 32


def check_values(values: dict[str, Any], tolerance: Tolerance) -> None:
    """Raise `InvalidRequest` for the first value outside its range or length; `values` are decoded fields.

    A choice that nobody knows is left out of them (an effort stays, for the echo).
    """
    for name, value in tuple(values.items()):
        row = FIELDS[name]
        if row.least is not None and not row.least <= value <= row.most:
            below = value < row.least
            kind = "integer" if isinstance(value, int) else "decimal"
            problem = f"below the minimum of {row.least:g}" if below else f"above the maximum of {row.most:g}"
            code = f"{kind}_{'below_min' if below else 'above_max'}_value"
            raise invalid_parameter(name, f"{value} is {problem}", code)
        if row.words and not known_choice(name, value, row.words, tolerance):
            del values[name]
        if row.longest is not None and len(value) > row.longest:
            raise invalid_parameter(name, f"it may have at most {row.longest} characters", "string_above_max_length")
    text: TextOptions | None = values.get("text")
    if text is not None:
        _check_text(text, tolerance)
    reasoning: ReasoningOptions | None = values.get("reasoning")
    if reasoning is not None:
        known_choice("reasoning.effort", reasoning.effort, EFFORTS, tolerance)
        # A summary in a manner that nobody knows is a summary.
        for name in ("summary", "generate_summary"):
            if not known_choice(f"reasoning.{name}", getattr(reasoning, name), SUMMARIES, tolerance):
                setattr(reasoning, name, "auto")
    check_metadata(values.get("metadata", {}))
    check_include(values.get("include", ()), tolerance)


def read_threshold(entries: list[ContextManagement], tolerance: Tolerance) -> int | None:
    """The tokens from which a conversation is compacted: 0 for the server's own number, None for never."""
    if len(entries) > _MOST_ENTRIES:
        raise array_too_long("context_management", _MOST_ENTRIES, len(entries))
    threshold = None
    for number, entry in enumerate(entries):
        where = f"context_management[{number}]"
        if entry.type != "compaction":
            error = invalid_value(f"{where}.type", f"{entry.type[:64]!r}. Supported values are: compaction")
            tolerance.leave_out(f"context_management:{entry.type}", error)
            continue
        if entry.compact_threshold is not None and entry.compact_threshold < LEAST_THRESHOLD:
            problem = f"{entry.compact_threshold} is below the minimum of {LEAST_THRESHOLD}"
            raise invalid_parameter(f"{where}.compact_threshold", problem, "integer_below_min_value")
        threshold = entry.compact_threshold or 0
    return threshold


def _check_text(text: TextOptions, tolerance: Tolerance) -> None:
    if not known_choice("text.verbosity", text.verbosity, VERBOSITIES, tolerance):
        text.verbosity = None
    if text.format is not None:
        check_format("text.format", text.format)


def check_format(where: str, form: TextFormat) -> None:
    """Raise `InvalidRequest` unless a text format is whole. What nobody knows is refused: the caller counts on it."""
    check_choice(f"{where}.type", form.type, FORMATS)
    if form.type == "json_schema":
        if not form.name:
            raise missing_parameter(f"{where}.name")
        if not NAME.fullmatch(form.name):
            raise invalid_parameter(f"{where}.name", "use 1 to 64 letters, digits, underscores or dashes")
        if not given(form.schema):
            raise missing_parameter(f"{where}.schema")
        if first(form.schema) != b"{":
            raise invalid_type(f"{where}.schema", "expected an object, the JSON schema of the answer")
