"""Checks that the client's key allows the models and the tool types that a request's body names.

`engine/ports/callers.py` has the limits of a client key. The callers of this check are `loaded_request.py`,
`native_request.py`, `api/chat.py` and `api/conversations.py`.

A body that Antiphon forwards unchanged may have two fields with the same name, or both `Model` and `model`. Antiphon
checks all such fields, because it does not know which one the upstream uses. Namespaces and some input items
(`additional_tools`, `tool_search_output`) also have a field `tools`. So Antiphon checks every `tools` field at any
depth, except inside a JSON Schema.

Some upstreams accept further names. OpenRouter's `models` and LiteLLM's `fallbacks` list fallback models. OpenRouter's
`plugins` run at the upstream. The check of the models includes these lists. In the check of the tools, `plugins` counts
as one tool of the type `plugins`. Both checks include `extra_body`, because some upstreams add its members to the
request. Other fields of LiteLLM can replace the list of models. Antiphon refuses these fields for a key that limits the
models, and refuses entries of fallback lists that it cannot read.

Invariant: for a key without limits, Antiphon does not search the body, so the check costs nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from antiphon.engine.exchange.model_routes import no_such_model
from antiphon.engine.ports.callers import Access
from antiphon.errors import InvalidRequest

_SCHEMAS: Final = frozenset({"parameters", "input_schema", "schema", "json_schema", "arguments"})
_SEARCH_OF_CHAT: Final = "web_search_options"
_PLUGINS: Final = "plugins"
_EXTRA: Final = "extra_body"
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


class Pairs(list[tuple[str, object]]):
    """A JSON object as a list of (name, value) pairs. The list keeps pairs with duplicate names."""


def pairs_of(body: bytes) -> Pairs:
    """Return all fields of a JSON body, including duplicate names. Raises `InvalidRequest` if the body is not valid
    JSON."""
    try:
        request = json.loads(body, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.", code="invalid_json") from None
    return request if isinstance(request, Pairs) else Pairs()


def check_body(access: Access, body: bytes, *, named: bool = False) -> None:
    """Raise `ApiError` when the client's key does not allow a model or a tool that the body names.

    `access` has the limits of the client's key. `named`: if the key limits the models, also raise for a body without a
    model, because the upstream would then choose the model.
    """
    if not (access.models or access.tools):
        return
    request = pairs_of(body)
    if access.models:
        for field, model in _named_models(request):
            if not (isinstance(model, str) and access.allows_model(model)):
                raise no_such_model(str(model)[:256], field[:256], access)
    if named and access.models and not any(name.casefold() == "model" and part is not None for name, part in request):
        raise InvalidRequest("Your API key allows only some models. Name one of them in 'model'.", param="model")
    if access.tools:
        for param, kind in declared_tools(request):
            access.check_tool(kind, param)


def _named_models(request: Pairs) -> Iterator[tuple[str, object]]:
    """Yield each model that a request names, with its field. A model that is no string is an error of the client.
    Raises `InvalidRequest` for a field in which Antiphon cannot find the models."""
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
            elif kind == _EXTRA and isinstance(value, Pairs):
                bodies.append((f"{param}.", value))
            elif kind in _ROUTING or kind == _EXTRA:
                raise _unreadable(param)


def _fallbacks(param: str, value: object) -> Iterator[tuple[str, str | Pairs]]:
    """Yield each model and each request of a list of fallback models, with its field. All entries of the list must have
    the same form, because LiteLLM reads lists of mixed forms in another way."""
    entries: object = [value] if isinstance(value, Pairs) else value
    if not isinstance(entries, list) or len({(type(entry), _is_mapping(entry)) for entry in entries}) > 1:
        raise _unreadable(param)
    for number, entry in enumerate(entries):
        place = f"{param}[{number}]"
        for each in [part for _, part in entry] if _is_mapping(entry) else [[entry]]:
            if not isinstance(each, list) or isinstance(each, Pairs):
                raise _unreadable(place)
            for one in each:
                if not isinstance(one, str | Pairs) or _is_mapping(one):
                    raise _unreadable(place)
                yield place, one


def _check_request(place: str, entry: Pairs) -> None:
    """Raise `InvalidRequest` if LiteLLM could read this fallback request as a mapping of models to fallback models."""
    for name, _ in entry:
        if name not in _OF_REQUEST:
            raise _unreadable(f"{place}.{name}")


def _is_mapping(entry: object) -> bool:
    """Return whether an entry maps models to their fallback models. Another object is a request: it has a `model`."""
    return isinstance(entry, Pairs) and not any(name.casefold() == "model" for name, _ in entry)


def _unreadable(param: str) -> InvalidRequest:
    param = param[:256]
    return InvalidRequest(
        f"Your API key allows only some models, and Antiphon cannot find the models in '{param}'. Send the request "
        "without this field, or send a list of models' names.",
        param=param,
        code="invalid_value",
    )


def declared_tools(request: object) -> Iterator[tuple[str | None, str]]:
    """Yield the type of each tool that a request declares, with the field name for the error message. The field name is
    None for a tool in a nested `tools` field."""
    waiting: list[tuple[str, object]] = [("", request)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, Pairs):
            for name, part in value:
                if name.casefold() == "tools":
                    yield from _types(part, place)
                if name == _SEARCH_OF_CHAT and part is not None:
                    yield name, "web_search"
                if name.casefold() == _PLUGINS and part and place.casefold() in ("", f".{_EXTRA}"):
                    yield name, _PLUGINS
                if name not in _SCHEMAS:
                    waiting.append((f"{place}.{name}", part))
        elif isinstance(value, list):
            waiting += [(f"{place}[]", each) for each in value]


def _types(tools: object, place: str) -> Iterator[tuple[str | None, str]]:
    """Yield the types in the value of one `tools` field, each with the field name for the error message. The value is a
    list, but some servers also accept an object."""
    each = [part for _, part in tools] if isinstance(tools, Pairs) else tools if isinstance(tools, list) else []
    for number, tool in enumerate(each):
        param = None if place else f"tools[{number}]"
        if isinstance(tool, str):
            yield param, tool
        elif isinstance(tool, Pairs):
            yield from ((param, str(part)) for name, part in tool if name.casefold() == "type")
