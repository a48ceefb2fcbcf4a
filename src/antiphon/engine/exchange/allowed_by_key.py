"""Checks a request's body against what the client's key allows: its models, and the types of its tools.

Lives here: finding both in a body, in every spelling that an upstream may accept. Not here: the rules of a key
(`engine/ports/callers.py`), when a request is checked (`loaded_request.py`, `native_request.py`, `api/chat.py`).

A body that passes through unchanged may have two fields of one name, or `Model` beside `model`. Servers differ in the
one that they use, so all of them are checked. Tools are declared in `tools` of the request, of a namespace, and of the
input items `additional_tools` and `tool_search_output`. So every `tools` at any depth counts, except inside a JSON
Schema.

Invariant: a key without limits costs nothing, because its bodies are not searched.
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
    """A JSON object as a list of its pairs, with duplicate names."""


def pairs_of(body: bytes) -> Pairs:
    """The request's fields. Every pair, not the last of each name, because servers differ in the one that they use.
    Raises `InvalidRequest`."""
    try:
        request = json.loads(body, object_pairs_hook=Pairs)
    except (ValueError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.", code="invalid_json") from None
    return request if isinstance(request, Pairs) else Pairs()


def check_body(access: Access, body: bytes, *, named: bool = False) -> None:
    """Raise `ApiError` when the key does not allow a model or a tool of this body.

    `named`: the body must name a model, because the upstream would choose one itself.
    """
    if not (access.models or access.tools):
        return
    request = pairs_of(body)
    models = [value for name, value in request if name.lower() == "model" and value is not None]
    for model in models:
        if not (isinstance(model, str) and access.allows_model(model)):
            raise no_such_model(str(model)[:256])
    if named and access.models and not models:
        raise InvalidRequest("Your API key allows some models only. Name one in 'model'.", param="model")
    if access.tools:
        for param, kind in declared_tools(request):
            access.check_tool(kind, param)


def declared_tools(request: object) -> Iterator[tuple[str | None, str]]:
    """The types of all tools that a request declares, each with the field that names it: None below the first level."""
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
    """The types in one `tools`, which some servers read as a list and others as a mapping."""
    each = [part for _, part in tools] if isinstance(tools, Pairs) else tools if isinstance(tools, list) else []
    for number, tool in enumerate(each):
        param = None if place else f"tools[{number}]"
        if isinstance(tool, str):
            yield param, tool
        elif isinstance(tool, Pairs):
            yield from ((param, str(part)) for name, part in tool if name.lower() == "type")
