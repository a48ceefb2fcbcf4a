"""Checks that the client's key allows the models and the tool types that a request's body names.

This module finds the names in every spelling that an upstream may accept. Not here: the limits of a client key
(`engine/ports/callers.py`), and the callers of this check (`loaded_request.py`, `native_request.py`, `api/chat.py`,
`api/conversations.py`).

A body that passes through unchanged may have two fields with the same name, or both `Model` and `model`. Servers differ
in which of these fields they use, so Antiphon checks every one of them. A request, a namespace, and the input items
`additional_tools` and `tool_search_output` can declare tools in a field `tools`. So Antiphon checks every `tools` field
at any depth, except inside a JSON Schema.

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


class Pairs(list[tuple[str, object]]):
    """A JSON object as a list of (name, value) pairs. The list keeps pairs with duplicate names."""


def pairs_of(body: bytes) -> Pairs:
    """Return all fields of a JSON body. If two fields have the same name, the list has both, because servers differ in
    which field they use. Raises `InvalidRequest` if the body is not valid JSON."""
    try:
        request = json.loads(body, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.", code="invalid_json") from None
    return request if isinstance(request, Pairs) else Pairs()


def check_body(access: Access, body: bytes, *, named: bool = False) -> None:
    """Raise `ApiError` when the key does not allow a model or a tool of this body.

    `named`: whether the body must name a model if the key limits the models. Without a name, the upstream would choose
    the model.
    """
    if not (access.models or access.tools):
        return
    request = pairs_of(body)
    models = [value for name, value in request if name.lower() == "model" and value is not None]
    for model in models:
        if not (isinstance(model, str) and access.allows_model(model)):
            raise no_such_model(str(model)[:256])
    if named and access.models and not models:
        raise InvalidRequest("Your API key allows only some models. Name one of them in 'model'.", param="model")
    if access.tools:
        for param, kind in declared_tools(request):
            access.check_tool(kind, param)


def declared_tools(request: object) -> Iterator[tuple[str | None, str]]:
    """Yield the type of each tool that a request declares, with the field name for the error message. The field name is
    None for a tool in a nested `tools` field."""
    waiting: list[tuple[str, object]] = [("", request)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, Pairs):
            for name, part in value:
                if name.lower() == "tools":
                    yield from _types(part, place)
                if name == _SEARCH_OF_CHAT and part is not None:
                    yield name, "web_search"
                if name not in _SCHEMAS:
                    waiting.append((f"{place}.{name}", part))
        elif isinstance(value, list):
            waiting += [(f"{place}[]", each) for each in value]


def _types(tools: object, place: str) -> Iterator[tuple[str | None, str]]:
    """The tool types in the value of one `tools` field. Some servers accept a list as this value, others an object."""
    each = [part for _, part in tools] if isinstance(tools, Pairs) else tools if isinstance(tools, list) else []
    for number, tool in enumerate(each):
        param = None if place else f"tools[{number}]"
        if isinstance(tool, str):
            yield param, tool
        elif isinstance(tool, Pairs):
            yield from ((param, str(part)) for name, part in tool if name.lower() == "type")
