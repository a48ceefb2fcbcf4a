"""Checks that the client's key allows the models and the tool types that a request's body names.

`engine/ports/callers.py` has the limits of a client key. The callers of this check are `loaded_request.py`,
`native_request.py`, `api/chat.py` and `api/conversations.py`.

A body that Antiphon forwards unchanged may have two fields with the same name, or both `Tools` and `tools`. Antiphon
checks all such fields, because it does not know which one the upstream uses. Namespaces and some input items
(`additional_tools`, `tool_search_output`) also have a field `tools`. So Antiphon checks every `tools` field at any
depth, except inside a JSON Schema.

OpenRouter's `plugins` run at the upstream, so `plugins` counts as one tool of the type `plugins`. The check includes
`extra_body`, because some upstreams add its members to the request. `named_models.py` finds the models of a body.
Antiphon refuses a field in which it cannot find the models, for a key that limits the models.

Invariant: for a key without limits, Antiphon does not search the body, so the check costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from antiphon.engine.exchange.model_routes import no_such_model
from antiphon.engine.exchange.named_models import EXTRA, HiddenModels, Pairs, named_models, pairs_of
from antiphon.engine.ports.callers import Access
from antiphon.errors import InvalidRequest

_SCHEMAS: Final = frozenset({"parameters", "input_schema", "schema", "json_schema", "arguments"})
_SEARCH_OF_CHAT: Final = "web_search_options"
_PLUGINS: Final = "plugins"


def check_body(access: Access, body: bytes, *, named: bool = False) -> None:
    """Raise `ApiError` when the client's key does not allow a model or a tool that the body names.

    `access` has the limits of the client's key. `named`: if the key limits the models, also raise for a body without a
    model, because the upstream would then choose the model.
    """
    if not (access.models or access.tools):
        return
    request = pairs_of(body)
    if access.models:
        try:
            for field, model in named_models(request):
                if not (isinstance(model, str) and access.allows_model(model)):
                    raise no_such_model(str(model)[:256], field[:256], access)
        except HiddenModels as hidden:
            raise _unreadable(hidden.param) from None
    if named and access.models and not any(name.casefold() == "model" and part is not None for name, part in request):
        raise InvalidRequest("Your API key allows only some models. Name one of them in 'model'.", param="model")
    if access.tools:
        for param, kind in declared_tools(request):
            access.check_tool(kind, param)


def _unreadable(param: str) -> InvalidRequest:
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
                if name.casefold() == _PLUGINS and part and place.casefold() in ("", f".{EXTRA}"):
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
