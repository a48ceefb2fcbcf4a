"""Holds the table of create-response fields, with one row for each field.

A row has a field's type and limits, and how Antiphon treats the field. A row also has the form in which a response
repeats the field. The following code uses the rows:

- reading (`body.py`) and checks;
- the chat request (`translation/chat/body.py`);
- the response (`translation/events/response_draft.py`);
- the API's OpenAPI document;
- the table of supported fields, with its page in the docs.

This module also has the values of `include`, and checks limits.

A field that goes to every chat server unchanged needs only a row in the table, with `forward=_always`. With
`forward=_if_passed` Antiphon ignores the field, unless the server's profile names it in `passed_fields`
(`translation/profiles/vendors.py`). A field that Antiphon acts on also has an attribute of `CreateResponse`, and code
that reads that attribute.

`parameters.py` has the fields that only chat servers know.

Invariants: a field without a row is unknown, so Antiphon ignores or rejects it (`types/tolerance.py`). Every error
names its field in `param`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args, get_origin

from msgspec import UNSET, Struct, structs

from antiphon.errors import (
    array_too_long,
    invalid_parameter,
    invalid_type,
    invalid_value,
    missing_parameter,
    wrong_value,
)
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.profiles.profile import IGNORED, SENT, Rule, Support, handled, ignored, logprobs, sent
from antiphon.translation.request.checks import NAME, check_choice, check_metadata, known_choice
from antiphon.types.json import first, given
from antiphon.types.request import (
    ContextManagement,
    PromptCacheOptions,
    ReasoningOptions,
    StreamOptions,
    TextFormat,
    TextOptions,
)
from antiphon.types.tolerance import Tolerance


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a create-response request. `kind` is the field's type, or None if `body.py` reads the field with
    special code. A null counts as an absent field.

    Limits:

    - `least` and `most` limit a number, and `longest` limits the length of a text.
    - `words` are the known values. Antiphon ignores an unknown value, because OpenAI adds new values, which change only
      the style of the answer.

    Treatment:

    - `forward` is a function that decides by the server's profile whether the server gets the field unchanged. If the
      server does not get the field, the response lists the field as ignored.
    - `unsent` are values that ask for the server's default behaviour, so Antiphon does not send them.
    - `fate` says how Antiphon treats a field without `forward`. If Antiphon treats the field's members or values
      differently, `fate` maps them to treatments.

    `echo` is the value that a response shows when the request lacks the field. If `echo` is `UNSET`, responses omit the
    field, or `translation/events/response_draft.py` sets the field. `template` is true if a prompt's template can set
    the field.
    """

    name: str
    kind: Any = None
    fate: Rule | Mapping[str, Rule] = SENT
    least: int | None = None
    most: int = 2**53
    longest: int | None = None
    words: tuple[str, ...] = ()
    forward: Callable[[UpstreamProfile, str], bool] | None = None
    unsent: tuple[str, ...] = ()
    note: str = ""
    echo: Any = UNSET
    template: bool = False

    @property
    def echo_kind(self) -> object:
        """The type of the response member that repeats the field."""
        return self.kind | None if self.echo is None else self.kind

    def rules(self) -> Mapping[str, Rule]:
        """Return how Antiphon treats the field and its values. The keys are the names in the table of supported
        fields."""
        if self.forward is not None:
            return {self.name: self._forwarded}
        if isinstance(self.fate, Mapping):
            return {f"{self.name}.{inside}": rule for inside, rule in self.fate.items()}
        return {self.name: self.fate}

    def forwarded_to(self, profile: UpstreamProfile) -> bool:
        """Whether a server with this profile gets the field unchanged."""
        return self.forward is not None and self.forward(profile, self.name)

    def members(self) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield the path and the known keys of each object in the field. Examples of paths are `text.format` and
        `context_management[]`."""
        if get_origin(self.kind) is list:
            yield from _members(f"{self.name}[]", get_args(self.kind)[0])
        else:
            yield from _members(self.name, self.kind)

    def _forwarded(self, profile: UpstreamProfile) -> Support:
        return Support("sent" if self.forwarded_to(profile) else "ignored", self.note)


def _members(place: str, kind: object) -> Iterator[tuple[str, frozenset[str]]]:
    if isinstance(kind, type) and issubclass(kind, Struct):
        yield place, frozenset(kind.__struct_fields__)
        for field in structs.fields(kind):
            for inner in get_args(field.type):
                yield from _members(f"{place}.{field.name}", inner)


def _always(profile: UpstreamProfile, name: str) -> bool:
    return True


def _with_penalties(profile: UpstreamProfile, name: str) -> bool:
    return profile.penalties


def _if_passed(profile: UpstreamProfile, name: str) -> bool:
    return name in profile.passed_fields


def _max_output_tokens(profile: UpstreamProfile) -> Support:
    return sent(f"as `{profile.token_limit_field}`")


def _parallel(profile: UpstreamProfile) -> Support:
    if profile.parallel_tool_calls:
        return sent("with `false`, Antiphon also drops every tool call after the first")
    return handled("with `false`, Antiphon drops all tool calls after the first")


def _json_schema(profile: UpstreamProfile) -> Support:
    if profile.structured_output == "json_schema":
        return sent("as `response_format`")
    if profile.structured_output == "json_object":
        return handled("Antiphon sends `json_object`, and the schema as an instruction to the model")
    return handled("Antiphon sends the schema as an instruction to the model")


def _json_object(profile: UpstreamProfile) -> Support:
    if profile.structured_output == "off":
        return handled("Antiphon sends an instruction to the model to write JSON")
    if not profile.json_object:
        return handled("Antiphon sends a `json_schema` that allows any object, and an instruction to write JSON")
    return sent("as `response_format`, with a schema" if profile.json_object_schema else "as `response_format`")


def _verbosity(profile: UpstreamProfile) -> Support:
    return SENT if profile.verbosity else IGNORED


def _effort(profile: UpstreamProfile) -> Support:
    if not profile.reasoning_effort:
        return IGNORED
    known = profile.effort_values
    return sent(f"the nearest value of {', '.join(known)}" if known else "as `reasoning_effort`")


_ROWS: Final = (
    Field("model", fate=sent("Antiphon replaces an alias by the upstream's name for the model"), template=True),
    Field("input", template=True),
    Field("instructions", fate=sent("Antiphon sends the instructions as the system message"), template=True),
    Field("previous_response_id", str, handled("Antiphon sends the stored turns to the model again")),
    Field("store", bool, handled("Antiphon stores the response"), echo=True),
    Field("stream", bool),
    Field(
        "stream_options",
        StreamOptions,
        {"include_obfuscation": handled("Antiphon pads events only if the request asks for padding")},
    ),
    Field("max_output_tokens", int, _max_output_tokens, least=16, echo=None, template=True),
    Field(
        "max_tool_calls",
        int,
        handled("limits the total number of calls of hosted tools that Antiphon runs"),
        least=1,
        echo=None,
        template=True,
    ),
    Field(
        "metadata",
        dict[str, str],
        handled("Antiphon stores and returns the metadata, and does not send them to the upstream"),
    ),
    Field("temperature", float, least=0, most=2, forward=_always, echo=1.0, template=True),
    Field("top_p", float, least=0, most=1, forward=_always, echo=1.0, template=True),
    Field("presence_penalty", float, least=-2, most=2, forward=_with_penalties, echo=0.0, template=True),
    Field("frequency_penalty", float, least=-2, most=2, forward=_with_penalties, echo=0.0, template=True),
    Field("top_logprobs", int, logprobs, least=0, most=20, echo=0, template=True),
    Field("parallel_tool_calls", bool, _parallel, echo=True, template=True),
    Field(
        "text",
        TextOptions,
        {
            "format.text": sent("this value is the default of Chat Completions, so Antiphon sends nothing"),
            "format.json_schema": _json_schema,
            "format.json_object": _json_object,
            "verbosity": _verbosity,
        },
        template=True,
    ),
    Field(
        "reasoning",
        ReasoningOptions,
        {
            "effort": _effort,
            "summary": handled("Antiphon returns the server's reasoning unchanged, as summary parts"),
            "generate_summary": handled("like `reasoning.summary`"),
            "mode": IGNORED,
            "context": IGNORED,
        },
        template=True,
    ),
    Field(
        "truncation",
        str,
        {
            "auto": ignored(
                "handled if the setting `context_tokens` is set: Antiphon drops the oldest turns, and counts four "
                "bytes as a token"
            ),
            "disabled": sent("this value is the default of Chat Completions, so Antiphon sends nothing"),
        },
        words=("auto", "disabled"),
        echo="disabled",
        template=True,
    ),
    Field(
        "service_tier",
        str,
        words=("auto", "default", "flex", "scale", "priority", "fast", "ultrafast"),
        forward=_if_passed,
        unsent=("auto", "default"),
        note="for `auto` and `default`, Antiphon sends nothing, and never lists the field as ignored",
        echo="auto",
        template=True,
    ),
    Field("safety_identifier", str, longest=128, forward=_if_passed, echo=None),
    Field("prompt_cache_key", str, longest=1024, forward=_if_passed, echo=None),
    Field("prompt_cache_retention", str, forward=_if_passed, echo=None),
    Field(
        "prompt_cache_options",
        PromptCacheOptions,
        {
            "prewarm": handled("Antiphon returns an empty response immediately, without a model call"),
            "mode": IGNORED,
            "ttl": IGNORED,
            "comparison_response_id": handled(
                "Antiphon compares the two prompts, and reports the result in `prompt_cache_diagnostics`"
            ),
        },
    ),
    Field("user", str, forward=_if_passed, echo=None),
    Field(
        "context_management",
        list[ContextManagement],
        handled(
            "the same model first summarizes a history of more than `compact_threshold` tokens, by default "
            "80 % of `context_tokens`"
        ),
        template=True,
    ),
    Field("moderation", fate=IGNORED),
    Field("access_programs", fate=IGNORED),
    Field("image", fate=IGNORED),
    Field("multi_agent", fate=IGNORED),
    Field("background_options", fate=ignored("a background response always starts as soon as a worker is free")),
    Field("client_metadata", fate=ignored("Codex describes itself in this field")),
    Field(
        "background",
        bool,
        handled(
            "Antiphon queues and runs the response; the request needs `store`, and the upstream must not need "
            "the client's key"
        ),
        echo=False,
    ),
    Field(
        "conversation",
        fate=handled(
            "Antiphon puts the conversation's items before the input, and appends the input and output of a stored "
            "response to the conversation unless the response fails"
        ),
    ),
    Field(
        "prompt",
        fate=handled(
            "names a template in `/v1/prompts`; the template's messages come first, and its fields apply unless the "
            "request has the same fields"
        ),
    ),
    # Separate tables have the treatment of the values of `include`, `tools` and `tool_choice`.
    Field("include", list[str], {}, template=True),
    Field("tools", fate={}, template=True),
    Field("tool_choice", fate={}, template=True),
)
FIELDS: Final = {row.name: row for row in _ROWS}
"""Maps field names to rows of the table. The order is the order of the documentation."""

FORWARDED: Final = {row.name: row for row in _ROWS if row.forward is not None}
ECHOED: Final = {row.name: row for row in _ROWS if row.echo is not UNSET}
IGNORED_FIELDS: Final = frozenset(
    row.name for row in _ROWS if isinstance(row.fate, Support) and row.fate.kind == "ignored"
)
READ_APART: Final = frozenset(row.name for row in _ROWS if row.kind is None) - IGNORED_FIELDS
OF_CHAT: Final = {
    "messages": "'input'",
    "response_format": "'text.format'",
    "max_tokens": "'max_output_tokens'",
    "max_completion_tokens": "'max_output_tokens'",
    "functions": "'tools'",
    "function_call": "'tool_choice'",
    "reasoning_effort": "'reasoning.effort'",
    "verbosity": "'text.verbosity'",
    "logprobs": "'include' with 'message.output_text.logprobs', and 'top_logprobs'",
}
"""Maps fields of Chat Completions to the fields of the Responses API that replace them. A request with such a field
gets a 400."""

REQUEST_FIELDS: Final = {*FIELDS, *OF_CHAT} - IGNORED_FIELDS
"""The request fields that have an effect, and the fields that Antiphon refuses."""

SAMPLING: Final = frozenset(row.name for row in _ROWS if row.forward in (_always, _with_penalties))
"""The fields that have the same meaning inside `extra_body`."""

_HOSTED: Final = ignored("the value has an effect if the settings enable the tool")
ENCRYPTED, LOGPROBS = "reasoning.encrypted_content", "message.output_text.logprobs"
INCLUDES: Final[dict[str, Rule]] = {
    ENCRYPTED: handled("Antiphon encrypts the reasoning with a key of the gateway"),
    LOGPROBS: logprobs,
    "file_search_call.results": _HOSTED,
    "web_search_call.results": IGNORED,
    "web_search_call.action.sources": _HOSTED,
    "message.input_image.image_url": IGNORED,
    "computer_call_output.output.image_url": IGNORED,
    "code_interpreter_call.outputs": _HOSTED,
}
"""Maps each value of `include` to the way in which Antiphon treats it."""


# Limits. The checks do not use msgspec's constraints (`Meta`, `Literal`). msgspec's errors name neither the value nor
# the limit, and the client's error needs both.

EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
SUMMARIES: Final = ("auto", "concise", "detailed")
VERBOSITIES: Final = ("low", "medium", "high")
FORMATS: Final = ("text", "json_object", "json_schema")
LEAST_THRESHOLD: Final = 1000
_MOST_ENTRIES: Final = 32


def check_values(values: dict[str, Any], tolerance: Tolerance) -> None:
    """Raise `InvalidRequest` if a value exceeds the limits in the field's row. `values` are decoded fields.

    Removes a field from `values` if the field's value is not one of the known `words`. An unknown reasoning effort
    stays, because the response repeats it.
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
            raise invalid_parameter(
                name, f"the value may have at most {row.longest} characters", "string_above_max_length"
            )
    text: TextOptions | None = values.get("text")
    if text is not None:
        _check_text(text, tolerance)
    reasoning: ReasoningOptions | None = values.get("reasoning")
    if reasoning is not None:
        known_choice("reasoning.effort", reasoning.effort, EFFORTS, tolerance)
        # A summary of an unknown kind becomes `auto`.
        for name in ("summary", "generate_summary"):
            if not known_choice(f"reasoning.{name}", getattr(reasoning, name), SUMMARIES, tolerance):
                setattr(reasoning, name, "auto")
    check_metadata(values.get("metadata", {}))
    check_include(values.get("include", ()), tolerance)


def read_threshold(entries: list[ContextManagement], tolerance: Tolerance) -> int | None:
    """Return the number of tokens from which Antiphon compacts a conversation. Returns 0 if the threshold depends on
    the model's context size, and None if no entry asks for compaction."""
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
    """Raise `InvalidRequest` if a text format is unknown or lacks a required key. Antiphon refuses an unknown format,
    because the client relies on the format."""
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


_MOST_INCLUDES: Final = 32


def check_include(values: Sequence[str], tolerance: Tolerance) -> None:
    """Record as ignored the values of `include` that OpenAI does not have. Raises `InvalidRequest` in strict mode, and
    for too many values."""
    if len(values) > _MOST_INCLUDES:
        raise array_too_long("include", _MOST_INCLUDES, len(values))
    for number, include in enumerate(values):
        if include not in INCLUDES:
            error = wrong_value(
                f"Invalid value for 'include[{number}]': {include[:64]!r}. Supported: {', '.join(sorted(INCLUDES))}.",
                "include",
            )
            tolerance.leave_out(f"include:{include}", error)
