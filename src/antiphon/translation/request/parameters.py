"""Chat server parameters that the Responses API does not have: sampling, templates, guided decoding.

Lives here: their names and types, which members of a literal `extra_body` count, and how the operator's members combine
with the client's. Not here: which server takes which (`profiles/`), the fields of the Responses API (`fields.py`).

Invariant: no parameter can set what Antiphon decides (`DECIDED_HERE`). That is the model, the messages, the tools, the
stream, storage and the length of the answer.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import invalid_type
from antiphon.translation.request.checks import read_value
from antiphon.types.chat import ChatRequest
from antiphon.types.json import first, given, raw
from antiphon.types.tolerance import MAX_NAMES

PARAMETER_KINDS: Final[dict[str, object]] = {
    # Of Chat Completions itself.
    "seed": int | None,
    "stop": str | list[str] | None,
    # llama.cpp takes a list of pairs as well.
    "logit_bias": dict[str, float] | list[object] | None,
    # Sampling (vLLM, llama.cpp, SGLang, LM Studio, OpenRouter and others).
    "top_k": int | None,
    "min_p": float | None,
    "top_a": float | None,
    "typical_p": float | None,
    "repetition_penalty": float | None,
    "repeat_penalty": float | None,
    "repeat_last_n": int | None,
    "length_penalty": float | None,
    "min_tokens": int | None,
    "stop_token_ids": list[int] | None,
    "bad_words": list[str] | None,
    "ignore_eos": bool | None,
    # What the chat template is given, and other words for the same wish.
    "chat_template_kwargs": dict[str, object] | None,
    "enable_thinking": bool | None,
    "thinking_budget": int | None,
    "thinking": dict[str, object] | None,
    # Guided decoding: vLLM (old and new), llama.cpp, SGLang.
    "guided_json": dict[str, object] | str | None,
    "guided_regex": str | None,
    "guided_choice": list[str] | None,
    "guided_grammar": str | None,
    "structured_outputs": dict[str, object] | None,
    "grammar": str | None,
    "json_schema": dict[str, object] | None,
    "regex": str | None,
    "ebnf": str | None,
}
_DECODERS: Final = {name: msgspec.json.Decoder(kind) for name, kind in PARAMETER_KINDS.items()}
_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])

PARAMETERS: Final = tuple(PARAMETER_KINDS)
"""Their names in a readable order."""

EVERY_PARAMETER: Final = frozenset(PARAMETERS)
"""The parameters for an unknown server of the operator. It uses them, or ignores those that it does not know."""

STANDARD_PARAMETERS: Final = frozenset({"seed", "stop", "logit_bias"})
"""The parameters that Chat Completions itself has."""

SHAPING: Final = frozenset(
    {name for name in PARAMETER_KINDS if name.startswith("guided_")}
    | {"structured_outputs", "grammar", "json_schema", "regex", "ebnf", "stop", "stop_token_ids", "bad_words"}
    | {"min_tokens", "ignore_eos"}
)
"""The parameters that restrict the form of the answer. They do not apply to a summary of the conversation."""

DECIDED_HERE: Final = (frozenset(ChatRequest.__struct_fields__) - {"reasoning_effort", "verbosity"}) | {
    *("functions", "function_call", "n", "n_predict", "store", "metadata", "modalities", "audio", "prompt"),
    "extra_body",
}
"""Members of a chat request that no client or operator can add: Antiphon could not read or honour their effect."""


def read_parameter(name: str, value: Raw) -> Raw | None:
    """The value as it is, None for null. Raises `InvalidRequest` when its type is wrong."""
    return value if read_value(name, _DECODERS[name], value) is not None else None


def spread_extra_body(fields: dict[str, Raw], apart: Container[str]) -> tuple[dict[str, Raw], list[str]]:
    """The request with the members of its literal `extra_body` added; the request's own members win. Also the names of
    members that have no effect there: those `apart` are fields of the API with another place. Raises
    `InvalidRequest`."""
    extra = fields["extra_body"]
    rest = {name: value for name, value in fields.items() if name != "extra_body"}
    if not given(extra):
        return rest, []
    if first(extra) != b"{":
        raise invalid_type("extra_body", "expected an object")
    members = _OBJECT.decode(extra)
    without = {name for name in members if name in rest or name in apart}
    rest.update((name, value) for name, value in members.items() if name not in without)
    return rest, [f"extra_body.{name}" for name in sorted(without)[:MAX_NAMES]]


def laid_over(below: Mapping[str, Raw], above: Mapping[str, Raw]) -> dict[str, Raw]:
    """Two sets of members, the second over the first; of two objects, member by member."""
    laid = {**below, **above}
    for name in below.keys() & above.keys():
        if first(below[name]) == first(above[name]) == b"{":
            laid[name] = raw({**_OBJECT.decode(below[name]), **_OBJECT.decode(above[name])})
    return laid
