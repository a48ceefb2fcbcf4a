"""Routes: which handler answers which method of which path, and what the API's document says of it.

Lives here: marking a handler with its route, the rows that come of an area's handlers, and how a path matches one. Not
here: the handlers, and the document made of the rows (`openapi.py`).

Invariants: no row leaves out what the document needs; a variable is one segment, decoded, never empty
and without a slash, unless its pattern says it is the rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote

from antiphon.api.described import Parameter
from antiphon.api.http import PAGE, ApiRequest, ApiResponse

Handler = Callable[..., Awaitable[ApiResponse]]
"""Called with the request and the pattern's variables, in their order."""

_Marked = TypeVar("_Marked", bound=Handler)
_ROUTES = "routes"
_METHODS = ("GET", "POST", "PUT", "DELETE")


@dataclass(frozen=True, slots=True)
class Route:
    """One method of a path; the decorator of the handler that answers it.

    `answer`, `body` and `form` (fields of `multipart/form-data`) are types, msgspec Structs as a rule. `events` is the
    type of the events where a stream can be asked for, `media` the media type of an answer that is not JSON, `statuses`
    are further statuses that are no errors and have no JSON; `errors` those beside the ones that any route may have,
    `unwell` is the type of a 503 that is no error object. `open`, `streamed` and `keyed` are the row's (`Endpoint`).
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
    """A route that answers with a page of a list; `more` are parameters beside those of the page."""
    return Route("GET", pattern, summary, answer, parameters=(*page, *more), errors=(400,))


@dataclass(frozen=True, slots=True)
class Operation:
    """Who answers one method of a path, and what is said of it."""

    handler: Handler
    said: Route

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
            open=any(one.said.open for one in operations.values()),
            streamed=any(one.said.streamed for one in operations.values()),
            keyed=any(one.said.keyed for one in operations.values()),
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
    """What it makes is made once for an `Idempotency-Key`, or the key is passed on; elsewhere it has no effect."""

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
