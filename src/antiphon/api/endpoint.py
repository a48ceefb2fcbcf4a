"""The route table: maps a method and a path to its handler, and describes the route for the OpenAPI document.

This module has the decorator that marks a handler with its route, builds the table of endpoints, and matches a path.
The module also makes the OpenAPI document for given endpoints. Other modules have the handlers. `scripts/docs` writes
the document of all endpoints to `openapi.json`.

Invariants:
- Every route has all data that the document needs.
- The served document reveals which endpoints exist, and nothing else of an operator's settings.
- A path variable is one decoded segment without a slash, and never empty. Only `{*}` matches several segments.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import TypeVar
from urllib.parse import unquote

import msgspec

from antiphon import __version__
from antiphon.api.http import PAGE, ApiRequest, ApiResponse, Parameter
from antiphon.engine.exchange.phase import EXCHANGE_PATHS
from antiphon.types.json import encode
from antiphon.types.transport import Headers

Guard = Callable[[Headers], None]
"""Checks the credentials in a request's headers. Raises `Unauthorized` or `ApiError`."""

Handler = Callable[..., Awaitable[ApiResponse]]
"""A function that answers a request. The arguments are the request and the path variables in the pattern's order."""

_Marked = TypeVar("_Marked", bound=Handler)
_ROUTES = "routes"
_METHODS = ("GET", "POST", "PUT", "DELETE")
_VARIABLE = re.compile(r"\{[^}]*\}")
_REFERENCE = re.compile(rb'"#/components/schemas/(\w+)"')
_ARTICLES = frozenset({"a", "an", "the", "s"})


@dataclass(frozen=True, slots=True)
class Route:
    """Describes one HTTP method of one path. A `Route` object is also a decorator, which marks the handler of that
    method and path.

    A handler is a coroutine method of an `Area`. Each `{}` of `pattern` becomes an argument after the request:

        @Route("GET", "/v1/files/{}", "Get a file", File)
        async def get(self, request: ApiRequest, file_id: str) -> ApiResponse: ...

    - `summary` names the operation, and gives the `operationId` of the OpenAPI document.
    - `answer`, `body` and `form` are the types of the answer, the JSON body and the fields of `multipart/form-data`.
      Most of these types are msgspec Structs.
    - `events` is the type of the events, if the client can request a stream.
    - `media` is the media type of an answer that is not JSON.
    - `statuses` are further success statuses, whose answers have no JSON body.
    - `errors` are error statuses, in addition to the statuses that every route may return.
    - `unwell` is the type of a 503 body that is not an error object.
    - `open`, `streamed` and `keyed` have the meaning that `Endpoint` documents.
    """

    method: str
    pattern: str
    summary: str
    answer: object
    body: object = None
    form: object = None
    body_needed: bool = False
    parameters: tuple[Parameter, ...] = ()
    events: object = None
    media: str | None = None
    statuses: tuple[int, ...] = ()
    errors: tuple[int, ...] = ()
    unwell: object = None
    open: bool = False
    streamed: bool = False
    keyed: bool = False

    def __call__(self, handler: _Marked) -> _Marked:
        """Attach this route to a handler, and return the handler."""
        setattr(handler, _ROUTES, (self, *getattr(handler, _ROUTES, ())))
        return handler


def listing(pattern: str, summary: str, answer: object, *more: Parameter, page: tuple[Parameter, ...] = PAGE) -> Route:
    """Return the route of a `GET` that returns a page of a list.

    `answer` is a type such as `ListOf[File]`. `more` are query parameters in addition to `page`, the parameters of a
    page.
    """
    return Route("GET", pattern, summary, answer, parameters=(*page, *more), errors=(400,))


@dataclass(frozen=True, slots=True)
class Operation:
    """The handler of one HTTP method of a path, with the handler's `Route`."""

    handler: Handler
    route: Route

    async def __call__(self, request: ApiRequest, *variables: str) -> ApiResponse:
        """Call the handler. `variables` are the path variables, in the order of the pattern."""
        return await self.handler(request, *variables)


class Area:
    """Base class of a group of handlers that serve one kind of object. The decorator `Route` marks each handler."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return the endpoints of this area, for the route table of the `Router`."""
        return rows_of(self)


def rows_of(area: object) -> tuple[Endpoint, ...]:
    """Return the endpoints of an object's handlers, in the order in which its class defines the handlers.

    The result leaves out the handlers of base classes.
    """
    return rows(
        (route, getattr(area, name)) for name, one in vars(type(area)).items() for route in getattr(one, _ROUTES, ())
    )


def rows(routes: Iterable[tuple[Route, Handler]]) -> tuple[Endpoint, ...]:
    """Return one endpoint for each path pattern, with all methods of that pattern.

    An endpoint is `open`, `streamed` or `keyed` if one of its routes is.
    """
    found: dict[str, dict[str, Operation]] = {}
    for route, handler in routes:
        found.setdefault(route.pattern, {})[route.method] = Operation(handler, route)
    return tuple(
        Endpoint(
            pattern,
            {method: operations[method] for method in _METHODS if method in operations},
            open=any(one.route.open for one in operations.values()),
            streamed=any(one.route.streamed for one in operations.values()),
            keyed=any(one.route.keyed for one in operations.values()),
        )
        for pattern, operations in found.items()
    )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path pattern with its methods.

    Each `{}` in `pattern` matches one segment, and a final `{*}` the rest of the path, slashes included. For example,
    `/v1/models/{*}` matches `/v1/models/org/model` with the variable `org/model`.
    """

    pattern: str
    methods: dict[str, Operation]
    open: bool = False
    """Whether clients may call this path without credentials."""
    streamed: bool = False
    """Whether the handler reads the body as a stream (`ApiRequest.body_stream`) and enforces its own size limit."""
    keyed: bool = False
    """Whether an `Idempotency-Key` has an effect: the operation creates its object only once per key, or forwards the
    key to the upstream."""
    guard: Guard | None = None
    """A function that checks an operator's credentials. On this path, the router calls this function instead of
    checking a client's credentials."""

    def match(self, path: str) -> tuple[str, ...] | None:
        """Return the decoded path variables, or None if the path does not match the pattern."""
        if self.pattern.endswith("{*}"):
            start = self.pattern[:-3]
            rest = unquote(path[len(start) :]) if path.startswith(start) else ""
            return (rest,) if rest else None
        if "{" not in self.pattern:
            return () if path == self.pattern else None
        segments, given = self.pattern.split("/"), path.split("/")
        if len(segments) != len(given):
            return None
        variables = []
        for segment, value in zip(segments, given, strict=True):
            if segment == "{}":
                if not value:
                    return None
                variables.append(unquote(value))
            elif segment != value:
                return None
        return tuple(variables)


def document(endpoints: Iterable[Endpoint]) -> bytes:
    """Return the OpenAPI document as JSON. The document describes only these endpoints, and the paths that the exchange
    serves.

    A path that the operator adds gets the description of `/v1/embeddings`, because the sidecar forwards requests to
    both paths in the same way.
    """
    whole = msgspec.json.decode((files("antiphon.api") / "openapi.json").read_bytes())
    described, schemas = whole["paths"], whole["components"]["schemas"]
    written = {_VARIABLE.sub("{}", path): path for path in described}
    taken = {one["operationId"] for item in described.values() for one in item.values()}
    paths = {path: {"post": described[path]["post"]} for path in EXCHANGE_PATHS}
    for endpoint in endpoints:
        path = written.get(_VARIABLE.sub("{}", endpoint.pattern), endpoint.pattern)
        for method, operation in endpoint.methods.items():
            summary = operation.route.summary
            said = described.get(path, {}).get(method.lower(), {})
            if said.get("summary") != summary:
                own = {"operationId": operation_id(summary, taken), "summary": summary, "tags": [tag_of(path)]}
                said = described["/v1/embeddings"]["post"] | own
            paths.setdefault(path, {}).setdefault(method.lower(), said)
    used: set[str] = set()
    more = _referred(paths) | _referred(whole["components"]["responses"])
    while more:
        used |= more
        more = _referred([schemas[name] for name in more]) - used
    whole["info"]["version"] = __version__
    whole["paths"] = paths
    whole["components"]["schemas"] = {name: schema for name, schema in schemas.items() if name in used}
    return encode(whole)


def _referred(part: object) -> set[str]:
    """The names of the schemas to which `part` of the document refers."""
    return {name.decode() for name in _REFERENCE.findall(encode(part))}


def operation_id(summary: str, taken: set[str]) -> str:
    """Return the id of an operation: its summary in camel case, such as `getFile` for `Get a file`.

    If that id is in `taken`, because a path has a second spelling, the function appends a number. The function adds the
    id to `taken`.
    """
    words: list[str] = re.findall(r"[a-z0-9]+", summary.lower())
    first, *others = [one for one in words if one not in _ARTICLES]
    name = first + "".join(one.capitalize() for one in others)
    number = 2
    while name in taken:
        name = f"{name.rstrip('0123456789')}{number}"
        number += 1
    taken.add(name)
    return name


def tag_of(path: str) -> str:
    """Return the OpenAPI tag of a path, which groups the operations: `/v1/vector-stores/…` gives `vector_stores`."""
    first, *others = path.strip("/").split("/")
    return others[0].replace("-", "_") if first == "v1" and others else "process"
