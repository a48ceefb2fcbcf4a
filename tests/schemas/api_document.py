"""Makes `src/antiphon/api/openapi.json`: the API as an OpenAPI 3.1 document, from the table of routes.

Lives here: paths and operations, and the descriptions of the routes that the servers run as exchanges. Not here: the
descriptions of all other routes, which the routes' decorators have. `json_schema.py` makes the schemas of types, and
`request_body.py` the body of a request. `Router.document` selects the parts of the document that a process serves.

Invariant: the document has every row and method of the table, and nothing else. The process that serves the document
sets its version.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from antiphon.api.endpoint import Endpoint, Route, operation_id, tag_of
from antiphon.api.http import EVENTS, UPSTREAM_ERRORS, AnyItem, Parameter
from antiphon.engine.exchange.phase import COMPACT_PATH, COUNT_PATH, RESPONSES_PATH
from antiphon.engine.ports.idempotency import HEADER
from antiphon.translation.events.response_draft import WHOLE_RESPONSE
from antiphon.translation.request.prompt_template import TEMPLATE_FIELDS
from antiphon.types import events
from antiphon.types.response import Response, UsageObject
from tests.schemas.json_schema import Schemas
from tests.schemas.request_body import add_request_body

_JSON = "application/json"
_STREAM = "text/event-stream"
_REQUEST = {"$ref": "#/components/schemas/CreateResponse"}


class ErrorObject(Struct):
    """An error. `param` names the part of the request with the error. `request_id` is the request's id in the log."""

    message: str
    type: str
    param: str | None
    code: str | None
    request_id: str | UnsetType | None = UNSET


class Error(Struct):
    """The body of every error answer."""

    error: ErrorObject


class CompactedConversation(Struct, kw_only=True):
    """The latest messages of the user and the compaction item. A client can begin a new conversation with this
    output."""

    id: str
    object: Literal["response.compaction"] = "response.compaction"
    created_at: int
    output: list[AnyItem]
    usage: UsageObject


class InputTokens(Struct, kw_only=True):
    """The number of input tokens of a request. The header `antiphon-estimated` marks an estimate."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


_CREATE = Route(
    "POST",
    RESPONSES_PATH,
    "Create a response",
    Response,
    body=_REQUEST,
    body_needed=True,
    events=EVENTS,
    errors=(*UPSTREAM_ERRORS, 409, 422, 424),
    keyed=True,
)
EXCHANGES: Mapping[str, Route] = {
    RESPONSES_PATH: _CREATE,
    COMPACT_PATH: replace(
        _CREATE,
        pattern=COMPACT_PATH,
        summary="Compact a conversation",
        answer=CompactedConversation,
        events=None,
        errors=(*UPSTREAM_ERRORS, 409, 422),
    ),
    COUNT_PATH: Route(
        "POST",
        COUNT_PATH,
        "Count the input tokens of a request",
        InputTokens,
        body=_REQUEST,
        body_needed=True,
        errors=UPSTREAM_ERRORS,
    ),
}
"""The routes that a server runs as exchanges, by path. The method is POST."""

# The statuses that any route may answer: no credentials, too many requests, a failure here, overload, a full disk.
_ANYWHERE = (401, 429, 500, 503, 507)
_WITH_BODY = (400, 413)
_WITH_FORM = (415,)
_OF_ONE = (404,)
_KEYED = (409, 422)
_REASONS = {
    304: "The client already has this content.",
    206: "The requested range of the content.",
    400: "The request is invalid.",
    401: "The credentials are missing or wrong.",
    403: "The upstream refuses the request.",
    404: "The object does not exist, or it belongs to another owner.",
    409: "Another request is using or has changed the object. Retry later.",
    413: "The request, or the data that it names, is too large.",
    415: "The route does not accept the media type of the body.",
    416: "The range is outside the file.",
    422: "The idempotency key belongs to a different request.",
    424: "An MCP server that the request names is unreachable, or does not list its tools.",
    429: "The client exceeded a limit of requests or of stored data.",
    500: "The server failed.",
    502: "The upstream failed.",
    503: "The server is overloaded or not ready. Retry later.",
    504: "The upstream did not answer in time.",
    507: "The server's disk is full.",
}


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """The document for these rows."""
    schemas = Schemas({Response: WHOLE_RESPONSE})
    add_request_body(schemas)
    _add_events(schemas)
    schemas.of(Error, answers=True)
    paths: dict[str, dict[str, Any]] = {}
    taken: set[str] = set()
    for path, said in EXCHANGES.items():
        paths[path] = {"post": _operation(schemas, path, (), said, taken)}
    for endpoint in endpoints:
        for method, operation in endpoint.methods.items():
            names = _variables(operation.handler)
            path = path_of(endpoint.pattern, names)
            made = _operation(schemas, path, names, operation.route, taken)
            if endpoint.guard is not None:
                made["security"] = [{"admin": []}]
            paths.setdefault(path, {})[method.lower()] = made
    _complete(schemas)
    _add_links(paths)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Antiphon",
            "version": "",
            "description": "OpenAI's Responses API in front of any Chat Completions server. For an upstream in mode "
            "`native`, Antiphon forwards requests and answers unchanged. This document does not describe them.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}, {}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.named.items())),
            "responses": _refusals(),
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer"},
                "admin": {"type": "http", "scheme": "bearer", "description": "The setting `admin.token`."},
            },
        },
    }


def path_of(pattern: str, names: Iterable[str]) -> str:
    """A row's pattern with the names of its variables. The rest of a path (`{*}`) is a variable too."""
    given = iter(names)
    return re.sub(r"\{\*?\}", lambda _: f"{{{next(given)}}}", pattern)


def _variables(handler: Callable[..., object]) -> tuple[str, ...]:
    """The names of a pattern's variables, which are the names of its handler's parameters."""
    return tuple(inspect.signature(handler).parameters)[1:]


def _operation(schemas: Schemas, path: str, names: tuple[str, ...], said: Route, taken: set[str]) -> dict[str, Any]:
    posted = said.method in ("POST", "PUT")
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    parameters += [_parameter(schemas, one) for one in said.parameters]
    if said.keyed:
        key = Parameter(
            HEADER, str, "Antiphon serves requests with the same key and the same content only once.", "header"
        )
        parameters.append(_parameter(schemas, key))
    statuses = {*said.errors, *(_ANYWHERE if not said.open else ()), *(_OF_ONE if names else ())}
    statuses |= {
        *(_WITH_BODY if posted else ()),
        *(_WITH_FORM if said.form else ()),
        *(_KEYED if said.keyed else ()),
    }
    made: dict[str, Any] = {
        "operationId": operation_id(said.summary, taken),
        "summary": said.summary,
        "tags": [tag_of(path)],
        **({"parameters": parameters} if parameters else {}),
        **_body(schemas, said),
        "responses": {
            "200": _answer(schemas, said),
            **{str(status): {"description": _REASONS[status]} for status in said.statuses},
            **{str(status): _refused(status) for status in sorted(statuses)},
            **_unwell(schemas, said),
            "default": _refused(None),
        },
    }
    if said.open:
        made["security"] = []
    return made


def _parameter(schemas: Schemas, said: Parameter) -> dict[str, Any]:
    return {
        "name": said.name,
        "in": said.where,
        **({"description": said.text} if said.text else {}),
        "schema": schemas.of(said.kind, answers=False),
    }


def _body(schemas: Schemas, said: Route) -> dict[str, Any]:
    content = {}
    if said.body is not None:
        content[_JSON] = {"schema": schemas.of(said.body, answers=False)}
    if said.form is not None:
        content["multipart/form-data"] = {"schema": schemas.of(said.form, answers=False)}
    needed = said.body_needed or said.form is not None
    return {"requestBody": {**({"required": True} if needed else {}), "content": content}} if content else {}


def _answer(schemas: Schemas, said: Route) -> dict[str, Any]:
    content = {said.media or _JSON: {"schema": schemas.of(said.answer, answers=True)}}
    if said.events is not None:
        content[_STREAM] = {"schema": schemas.of(said.events, answers=True)}
    ignored = {"description": "The names of request parts that Antiphon ignored.", "schema": {"type": "string"}}
    return {"description": "The request succeeded.", "headers": {"antiphon-ignored": ignored}, "content": content}


def _refused(status: int | None) -> dict[str, Any]:
    return {"$ref": f"#/components/responses/{'Error' if status is None else f'Error{status}'}"}


def _unwell(schemas: Schemas, said: Route) -> dict[str, Any]:
    if said.unwell is None:
        return {}
    content = {_JSON: {"schema": schemas.of(said.unwell, answers=True)}}
    return {"503": {"description": _REASONS[503], "content": content}}


def _refusals() -> dict[str, Any]:
    content = {_JSON: {"schema": {"$ref": "#/components/schemas/Error"}}}
    said = {f"Error{status}": words for status, words in _REASONS.items() if status >= 400}
    return {name: {"description": words, "content": content} for name, words in {"Error": "An error.", **said}.items()}


def _add_events(schemas: Schemas) -> None:
    kinds = [
        one
        for one in vars(events).values()
        if isinstance(one, type) and issubclass(one, events.Event) and one.__struct_config__.tag is not None
    ]
    sent = [one for one in kinds if not one.__name__.startswith("_") and one is not events.Event]
    schemas.add("StreamEvent", {"anyOf": [schemas.of(one, answers=True) for one in sent]})
    for one in sent:
        members = schemas.named[one.__name__]["properties"]
        if "delta" in members:
            members["obfuscation"] = {
                "type": "string",
                "description": "Random letters that hide the length of `delta`. The event has this field only if the "
                "request has `include_obfuscation: true`.",
            }
        if "response" in members:
            members["headers"] = {
                "type": "object",
                "description": "The headers that an HTTP response to the request would have. Only the first event of a "
                "response on a WebSocket has this field.",
            }
        members["stream_id"] = {
            "type": "string",
            "description": "A copy of the request's `stream_id`. Only events on a WebSocket have this field.",
        }


def _add_links(paths: Mapping[str, Mapping[str, dict[str, Any]]]) -> None:
    """Link each operation that creates an object to the operations that take the object's id in their path."""
    for path, item in paths.items():
        made = item.get("post", {}).get("responses", {}).get("200", {})
        answer = str(made.get("content", {}).get(_JSON, {}).get("schema", {}).get("$ref", ""))
        found = "$response.body#/data/0/id" if answer.endswith("List") else "$response.body#/id"
        links = {}
        for other, below in paths.items():
            rest = re.fullmatch(r"/\{(\w+)\}[^{]*", other.removeprefix(path))
            if made and rest is not None and other.startswith(path):
                given = {name: f"$request.path.{name}" for name in re.findall(r"\{(\w+)\}", path)}
                for operation in below.values():
                    name = operation["operationId"]
                    links[name] = {"operationId": name, "parameters": {**given, rest[1]: found}}
        if links:
            made["links"] = links


def _complete(schemas: Schemas) -> None:
    """Add facts that no type expresses: an answer always has its output, and prompts have fields of requests."""
    schemas.named["Response"]["required"].append("output")
    fields = schemas.named["CreateResponse"]["properties"]
    for name in ("WritePrompt", "ChangePrompt", "Prompt"):
        if name in schemas.named:
            own = schemas.named[name]["properties"]
            own |= {field: fields[field] for field in sorted(TEMPLATE_FIELDS) if field not in own}
