"""The route table: maps a method and a path to its handler, and describes the route for the OpenAPI document.

Lives here: marking a handler with its route, the rows of an area's handlers, and matching a path. Also the part of the
document for given rows. Not here: the handlers, and the whole document (`scripts/docs` writes it to `openapi.json`).

Invariants:
- Every row holds what the document needs.
- The served document shows which rows there are, and nothing else of an operator's settings.
- A variable is one decoded segment, never empty and without a slash, unless its pattern marks it as the rest.
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
from antiphon.api.described import Parameter
from antiphon.api.http import PAGE, ApiRequest, ApiResponse
from antiphon.engine.exchange.options import EXCHANGE_PATHS
from antiphon.types.json import encode

Handler = Callable[..., Awaitable[ApiResponse]]
"""Called with the request and the pattern's variables, in their order."""

_Marked = TypeVar("_Marked", bound=Handler)
_ROUTES = "routes"
_METHODS = ("GET", "POST", "PUT", "DELETE")
_VARIABLE = re.compile(r"\{[^}]*\}")
_REFERENCE = re.compile(rb'"#/components/schemas/(\w+)"')
_ARTICLES = frozenset({"a", "an", "the", "s"})


@dataclass(frozen=True, slots=True)
class Route:
    """One method of a path; the decorator of the handler that answers it.

    - `answer`, `body` and `form` (fields of `multipart/form-data`) are types, msgspec Structs as a rule.
    - `events`: the type of the events, where the client can request a stream.
    - `media`: the media type of an answer that is not JSON.
    - `statuses`: further statuses that are no errors and have no JSON.
    - `errors`: statuses of errors, in addition to those that any route may have.
    - `unwell`: the type of a 503 that is no error object.
    - `open`, `streamed` and `keyed` are the row's (`Endpoint`).
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
        """Mark a handler."""
        setattr(handler, _ROUTES, (self, *getattr(handler, _ROUTES, ())))
        return handler


def listing(pattern: str, summary: str, answer: object, *more: Parameter, page: tuple[Parameter, ...] = PAGE) -> Route:
    """A route that answers with a page of a list; `more` are parameters in addition to those of the page."""
    return Route("GET", pattern, summary, answer, parameters=(*page, *more), errors=(400,))


@dataclass(frozen=True, slots=True)
class Operation:
    """The handler of one method of a path, and its description."""

    handler: Handler
    route: Route

    async def __call__(self, request: ApiRequest, *variables: str) -> ApiResponse:
        """The answer; `variables` are those of the pattern, in their order."""
        return await self.handler(request, *variables)


class Area:
    """Handlers about one thing, each with its `Route`."""

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The rows of the path table."""
        return rows_of(self)


def rows_of(area: object) -> tuple[Endpoint, ...]:
    """The rows of an object's handlers, in the order of these."""
    return rows(
        (route, getattr(area, name)) for name, one in vars(type(area)).items() for route in getattr(one, _ROUTES, ())
    )


def rows(routes: Iterable[tuple[Route, Handler]]) -> tuple[Endpoint, ...]:
    """A row for each pattern, with all of its methods."""
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
    """One path: each `{}` of `pattern` is a segment; one that ends in `{*}` takes the rest, slashes included."""

    pattern: str
    methods: dict[str, Operation]
    open: bool = False
    """Answered without an identity."""
    streamed: bool = False
    """Bodies are not read first: the handler gets them as `ApiRequest.body_stream` and has its own limit of size."""
    keyed: bool = False
    """With the same `Idempotency-Key` the operation creates its object only once, or passes the key on. Elsewhere the
    key has no effect."""

    def match(self, path: str) -> tuple[str, ...] | None:
        """The variables, or None when this is another path."""
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
    """The part of the API's document that is about these rows. A path that the operator adds has the
    description of embeddings, which the sidecar passes on too."""
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
    """The names of the schemas that this part of the document refers to."""
    return {name.decode() for name in _REFERENCE.findall(encode(part))}


def operation_id(summary: str, taken: set[str]) -> str:
    """An operation's id: its summary in one word, with a number where that is taken (a path has another spelling)."""
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
    """The area that a path belongs to."""
    first, *others = path.strip("/").split("/")
    return others[0].replace("-", "_") if first == "v1" and others else "process"
