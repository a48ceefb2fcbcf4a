"""Reads the chat server parameters that the Responses API does not have: parameters for sampling, chat templates and
guided decoding.

This module defines the names and types of the parameters, and reads a client's `extra_body`. The module also merges the
operator's parameters with the client's. The profiles (`profiles/`) list the parameters that each server accepts, and
`fields.py` the fields of the Responses API.

Invariant: no parameter can set a value that Antiphon decides (`DECIDED_HERE`). Antiphon decides the model, the
messages, the tools, the stream, storage and the length of the answer.
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
    # Parameters of Chat Completions itself.
    "seed": int | None,
    "stop": str | list[str] | None,
    # llama.cpp also accepts a list of pairs.
    "logit_bias": dict[str, float] | list[object] | None,
    # Sampling parameters of vLLM, llama.cpp, SGLang, LM Studio, OpenRouter and others.
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
    # Arguments of the chat template, and parameters of other servers that switch thinking too.
    "chat_template_kwargs": dict[str, object] | None,
    "enable_thinking": bool | None,
    "thinking_budget": int | None,
    "thinking": dict[str, object] | None,
    # Parameters for guided decoding in vLLM (old and new), llama.cpp and SGLang.
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
"""The names of the parameters, in the order of the documentation."""

EVERY_PARAMETER: Final = frozenset(PARAMETERS)
"""The parameters for an operator's server without a known profile. Such a server ignores parameters that it does not
know."""

STANDARD_PARAMETERS: Final = frozenset({"seed", "stop", "logit_bias"})
"""The parameters that Chat Completions has."""

SHAPING: Final = frozenset(
    {name for name in PARAMETER_KINDS if name.startswith("guided_")}
    | {"structured_outputs", "grammar", "json_schema", "regex", "ebnf", "stop", "stop_token_ids", "bad_words"}
    | {"min_tokens", "ignore_eos"}
)
"""The parameters that restrict the form of the answer. Antiphon does not send these parameters when the model
summarizes the conversation."""

DECIDED_HERE: Final = (frozenset(ChatRequest.__struct_fields__) - {"reasoning_effort", "verbosity"}) | {
    *("functions", "function_call", "n", "n_predict", "store", "metadata", "modalities", "audio", "prompt"),
    "extra_body",
}
"""The members of a chat request that neither a client nor an operator can add. Antiphon sets these members itself, or
cannot handle their effect."""


def read_parameter(name: str, value: Raw) -> Raw | None:
    """Return the unchanged value, or None if the value is null. Raises `InvalidRequest` when the value's type is
    wrong."""
    return value if read_value(name, _DECODERS[name], value) is not None else None


def spread_extra_body(fields: dict[str, Raw], apart: Container[str]) -> tuple[dict[str, Raw], list[str]]:
    """Add the members of the request's `extra_body` object to the request. Returns the new request, and the names of
    members of `extra_body` without effect. A member of `extra_body` has no effect if the request itself has a member of
    the same name. A member whose name is in `apart` also has no effect, because this name is a field of the API. Raises
    `InvalidRequest`.
    """
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
    """Merge the members of two JSON objects. `above` overrides `below`. If both values of a member are objects, the
    function merges the two objects."""
    laid = {**below, **above}
    for name in below.keys() & above.keys():
        if first(below[name]) == first(above[name]) == b"{":
            laid[name] = raw({**_OBJECT.decode(below[name]), **_OBJECT.decode(above[name])})
    return laid
