"""Finds all models that a request's body names, for the check of the client's key and for the quotas of models.

A body that Antiphon forwards unchanged may have two fields with the same name, or both `Model` and `model`. Antiphon
does not know which one the upstream uses, so all of them name models.

Some upstreams accept further names. OpenRouter's `models` and LiteLLM's `fallbacks` list fallback models. LiteLLM also
calls each model of a name such as `a,b`. Some upstreams add the members of `extra_body` to the request. Other fields of
LiteLLM can replace the list of models. The callers refuse these fields, and entries of fallback lists that this module
cannot read.

Not here: the check of the client's key (`allowed_by_key.py`), the limits of a model (`engine/ports/quotas.py`).

Invariant: the search for the models parses no other field, such as the messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import InvalidRequest, invalid_parameter
from antiphon.translation.request.body import read_object

EXTRA: Final = "extra_body"
# LiteLLM's lists of fallback models. Their forms are `["a"]`, `[{"model": "a", "seed": 1}]` and `[{"b": ["a"]}]`. An
# object can have two of these forms at once: in `{"b": ["a"], "model": "b"}`, LiteLLM finds the fallback model `a`.
_FALLBACKS: Final = frozenset(
    {"fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "default_fallbacks"}
)
# The fields that a request in a list of fallback models may have. Another field could be the name of a model.
_OF_REQUEST: Final = (
    _FALLBACKS
    | {"model", "models", "messages", "input", "prompt", "stream", "stream_options", "user", "metadata", "extra_body"}
    | {"temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "logit_bias", "seed", "stop"}
    | {"max_tokens", "max_completion_tokens", "n", "logprobs", "top_logprobs", "modalities", "response_format"}
    | {"tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "reasoning_effort", "verbosity"}
    | {"service_tier", "timeout", "num_retries", "dimensions", "encoding_format"}
)
# Fields with which a client of LiteLLM, Azure or OpenRouter replaces the router's settings, its models or its server.
_ROUTING: Final = frozenset(
    {
        *("router_settings_override", "user_config", "model_list", "context_window_fallback_dict", "litellm_params"),
        *("api_base", "base_url", "custom_llm_provider", "deployment_id", "engine", "model_id", "model_name", "preset"),
    }
)


_NAMING: Final = _FALLBACKS | _ROUTING | {"model", "models", EXTRA}
_MOST: Final = 100
"""The maximum number of models that a request may name if a quota limits a model."""


class Pairs(list[tuple[str, object]]):
    """A JSON object as a list of (name, value) pairs. The list keeps pairs with duplicate names."""


def pairs_of(body: bytes) -> Pairs:
    """Return all fields of a JSON body, including duplicate names. Raises `InvalidRequest` if the body is not valid
    JSON."""
    request = _loaded(body)
    return request if isinstance(request, Pairs) else Pairs()


def _loaded(value: bytes) -> object:
    try:
        return json.loads(value, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.", code="invalid_json") from None


class HiddenModels(Exception):
    """A field may name models, but its models cannot be found. `param` is the field."""

    def __init__(self, param: str) -> None:
        super().__init__(param)
        self.param = param[:256]


class FieldName:
    """The name of a field in a JSON object. Two equal names are different keys of a `dict`, so the `dict` keeps both
    fields."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


_FIELDS: Final = msgspec.json.Decoder(dict[FieldName, Raw], dec_hook=lambda _, text: FieldName(text))

Fields = Sequence[tuple[str, Raw]]
"""The fields of a JSON object, each with its name. A name may stand twice."""


def fields_of(body: bytes) -> Fields:
    """Return the fields of a body. Raises `InvalidRequest` if the body is no JSON object, or if only lenient parsers
    read it."""
    return [(key.text, value) for key, value in read_object(body, _FIELDS).items()]


def note_field(found: dict[str, Raw] | dict[str, str], written: str, name: str) -> None:
    """Raise `InvalidRequest` if the field `name` stands twice, or has another spelling."""
    if written != name:
        raise invalid_parameter(written[:256], f"write the name of this field as '{name}'")
    if name in found:
        raise invalid_parameter(name, "the body has this field twice, so send it once")


def check_model_once(fields: Fields) -> None:
    """Raise `InvalidRequest` if `model` stands twice, or has another spelling. Parsers disagree about such a field."""
    found: dict[str, Raw] = {}
    for written, value in fields:
        if written.casefold() == "model":
            note_field(found, written, "model")
            found["model"] = value


def hides_models(name: str) -> bool:
    """Return whether the field of a form may name models, and is not `model`."""
    return (folded := name.casefold()) in _NAMING and folded != "model"


def hidden_models(param: str) -> InvalidRequest:
    """Return the error for a field in which Antiphon cannot find the models that count against quotas."""
    return InvalidRequest(
        f"A quota limits a model, and Antiphon cannot find the models in '{param[:256]}'. Send the request without "
        "this field, or send a list of models' names.",
        param=param[:256],
        code="invalid_value",
    )


def other_models(model: str, fields: Fields = ()) -> tuple[str, ...]:
    """Return the models that a request names in addition to `model`, each once. `fields` are the fields of its body.

    The result contains each part of a name with commas, and each name without the spaces around it. Raises
    `InvalidRequest` for a field in which Antiphon cannot find the models, and for too many models.
    """
    request = Pairs((name, _loaded(bytes(value))) for name, value in fields if name.casefold() in _NAMING)
    found: dict[str, None] = {}
    try:
        for param, name in (("model", model), *named_models(request)):
            if not isinstance(name, str):
                raise HiddenModels(param)
            parts = name.split(",", _MOST)
            found.update(dict.fromkeys((name, *(part.strip() for part in parts))))
            if len(found) > _MOST or len(parts) > _MOST:
                raise invalid_parameter(param, f"a request may name at most {_MOST} models")
    except HiddenModels as hidden:
        raise hidden_models(hidden.param) from None
    return tuple(one for one in found if one not in ("", model))


def named_models(request: Pairs) -> Iterator[tuple[str, object]]:
    """Yield each model that a request names, with its field. A model that is no string is an error of the client.
    Raises `HiddenModels` for a field in which Antiphon cannot find the models."""
    bodies: list[tuple[str, Pairs]] = [("", request)]
    while bodies:
        place, body = bodies.pop()
        for name, value in body:
            kind, param = name.casefold(), f"{place}{name}"
            if value is None:
                continue
            if kind == "model":
                yield param, value
            elif kind == "models":
                each = value if isinstance(value, list) else [value]
                yield from ((f"{param}[{number}]", model) for number, model in enumerate(each))
            elif kind in _FALLBACKS:
                for where, entry in _fallbacks(param, value):
                    if isinstance(entry, Pairs):
                        _check_request(where, entry)
                        bodies.append((f"{where}.", entry))
                    else:
                        yield where, entry
            elif kind == EXTRA and isinstance(value, Pairs):
                bodies.append((f"{param}.", value))
            elif kind in _ROUTING or kind == EXTRA:
                raise HiddenModels(param)


def _fallbacks(param: str, value: object) -> Iterator[tuple[str, str | Pairs]]:
    """Yield each model and each request of a list of fallback models, with its field. All entries of the list must have
    the same form, because LiteLLM reads lists of mixed forms in another way."""
    entries: object = [value] if isinstance(value, Pairs) else value
    if not isinstance(entries, list) or len({(type(entry), _is_mapping(entry)) for entry in entries}) > 1:
        raise HiddenModels(param)
    for number, entry in enumerate(entries):
        place = f"{param}[{number}]"
        for each in [part for _, part in entry] if _is_mapping(entry) else [[entry]]:
            if not isinstance(each, list) or isinstance(each, Pairs):
                raise HiddenModels(place)
            for one in each:
                if not isinstance(one, str | Pairs) or _is_mapping(one):
                    raise HiddenModels(place)
                yield place, one


def _check_request(place: str, entry: Pairs) -> None:
    """Raise `HiddenModels` if LiteLLM could read this fallback request as a mapping of models to fallback models."""
    for name, _ in entry:
        if name not in _OF_REQUEST:
            raise HiddenModels(f"{place}.{name}")


def _is_mapping(entry: object) -> bool:
    """Return whether an entry maps models to their fallback models. Another object is a request: it has a `model`."""
    return isinstance(entry, Pairs) and not any(name.casefold() == "model" for name, _ in entry)
