"""Defines the request and response types of the API's handlers, independent of any web server, and shared schemas.

This module defines the classes `ApiRequest` and `ApiResponse`, and converts values, lists and errors to answers. The
module also has the parameters and schemas that many routes share. The module depends on neither aiohttp nor Envoy.
`scripts/docs` generates `openapi.json` from the routes and these schemas.

Invariants: header names are in lower case. A JSON answer always has its exact `content-length`. An error answer always
has OpenAI's error object. The schemas only describe requests and answers. The handlers check requests, and a test
compares the handlers' answers with the schemas.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic, Literal, Protocol, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from antiphon.engine.exchange.client_answer import REPLAYED
from antiphon.engine.exchange.failure import Failure
from antiphon.engine.ports.actions import OnceOnly, StoredItem
from antiphon.engine.ports.callers import EVERYTHING, NO_CALLER, Access, Caller
from antiphon.engine.ports.idempotency import HEADER, AlreadyMade, fingerprint, read_key
from antiphon.engine.ports.state import Page, PageQuery
from antiphon.errors import ApiError, InvalidRequest, NotFound, invalid_parameter, wrong_value
from antiphon.translation.request.checks import not_json, not_utf8, wrong_type
from antiphon.types.json import encode
from antiphon.types.transport import Headers

_Body = TypeVar("_Body")
_Known = TypeVar("_Known", bound=Struct)
_Found = TypeVar("_Found")
_FIELDS = msgspec.json.Decoder(dict[str, Raw])
_SHOWN_ID = 128

_One = TypeVar("_One")
_Word = TypeVar("_Word")
JSON_TYPE = ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class Parameter:
    """Describes a query parameter for the OpenAPI document, or a header if `where` is `header`.

    `kind` is the type of the value, and `text` the description. For example, `Parameter("purpose", str, "List only
    files with this purpose.")`. A handler reads the value with `query_value` or another function of this module.
    """

    name: str
    kind: object = str
    text: str = ""
    where: Literal["query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class StandsFor:
    """A marker for type annotations. The OpenAPI document shows `Annotated[dict[str, Any], StandsFor(T)]` as the type
    `T`. The code that reads a request parses the looser type (`dict[str, Any]`), to give better error messages.
    """

    kind: object


EVENTS = {"$ref": "#/components/schemas/StreamEvent"}
"""The schema of the events in a response's stream."""


class ListOf(Struct, Generic[_One], kw_only=True):
    """One page of a list, in the format of OpenAI's API. The ids of the objects in `data` are the cursors for `after`
    and `before`. Send `last_id` as `after` to get the next page. `has_more` is false on the last page."""

    object: Literal["list"] = "list"
    data: list[_One]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(Struct, Generic[_Word]):
    """The confirmation that the object with this `id` was deleted."""

    id: str
    object: _Word
    deleted: Literal[True] = True


class Well(Struct):
    """The process can serve requests."""

    status: Literal["ok"]


class Unwell(Struct):
    """The process should get no requests now, because it is shutting down or cannot use its store. `reason` is a short
    text for operators."""

    status: Literal["unavailable"]
    reason: str


Metadata = Annotated[
    dict[str, str],
    Meta(
        description="The metadata has at most 16 pairs. Each metadata key has at most 64 characters, each metadata "
        "value at most 512.",
        extra_json_schema={"maxProperties": 16, "propertyNames": {"maxLength": 64}},
    ),
]
"""Key-value pairs that clients attach to an object."""


class Open(Struct):
    """Base class of objects that may have members which the schema does not list. Antiphon returns such members
    unchanged."""


class AnyItem(Open):
    """A stored item: an output item of a response, or an input item as the client sent it."""

    id: str
    type: str


UPSTREAM_ERRORS = (403, 404, 502, 503, 504)
"""Error statuses of routes that call an upstream, in addition to the statuses that every route may return."""


class AnyObject(Open):
    """Any object, which Antiphon passes on unchanged."""


Bytes = Annotated[Any, Meta(extra_json_schema={"type": "string", "format": "binary"})]
"""The content of a file."""


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One request of a client. `path` is normalised and has no query. Header names are in lower case.

    `query` holds the decoded name-value pairs in order. `owner` is the id of the owner whose objects the handlers read
    and change. `request_id` is the id of the request in the log.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Headers = ()
    body: bytes = b""
    owner: str = ""
    request_id: str = ""
    body_stream: AsyncIterator[bytes] | None = None
    """The body as a stream, for routes that declare `streamed`. `body` is empty for such routes."""
    access: Access = EVERYTHING
    """The models and tools that the client's key may use."""
    caller: Caller = NO_CALLER
    peer: str = ""
    """The address of the client's machine, for requests to the console. The field is empty if the server does not know
    the address."""

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body in chunks, from `body_stream` or from `body`."""
        if self.body_stream is None:
            if self.body:
                yield self.body
            return
        async for piece in self.body_stream:
            yield piece

    def once(self, *parts: bytes) -> OnceOnly | None:
        """Return the request's `Idempotency-Key` with the request's fingerprint, or None if the request has no key.

        The fingerprint covers the method, the path and `parts`, or the body if there are no `parts`. Raises
        `InvalidRequest` (`invalid_idempotency_key`).
        """
        key = read_key(self.header(HEADER))
        if key is None:
            return None
        return OnceOnly(self.owner, key, fingerprint(self.method, self.path, *(parts or (self.body,))))

    def header(self, name: str) -> str | None:
        """Return the first value of the header with this lower-case name, or None."""
        return next((value for key, value in self.headers if key == name), None)


class BodyStream(Protocol):
    """Iterates over the chunks of a streamed body. An asynchronous generator fits this protocol. `aclose` frees the
    stream's resources, even before the first chunk."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    def __anext__(self) -> Awaitable[bytes]: ...

    def aclose(self) -> Awaitable[object]: ...


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """One answer to a client. The content of the answer is `body`, or the chunks of `stream`. Header names are in lower
    case.

    The server closes `stream` at its end, and also if the client disconnects.
    """

    status: int
    headers: Headers
    body: bytes
    stream: BodyStream | None = None
    failure: Failure | None = None
    """The cause of an error answer, for the log, or None if the answer is a success."""


class AnswerCut(ConnectionResetError):
    """The upstream's answer ended too early. The server then closes the client's connection, because it has already
    sent part of the answer."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.cause)
        self.failure = failure


def json_response(value: object, status: int = 200, headers: Headers = ()) -> ApiResponse:
    """Return an answer whose body is `value` as JSON. msgspec encodes `value`, so it may be a Struct."""
    return raw_response(encode(value), status, headers)


def raw_response(body: bytes, status: int = 200, headers: Headers = ()) -> ApiResponse:
    """Return an answer whose `body` already is encoded JSON. `headers` are further headers in addition to the content
    type and the content length."""
    return ApiResponse(status, (JSON_TYPE, ("content-length", str(len(body))), *headers), body)


async def once_of(request: ApiRequest, made: Callable[[OnceOnly], Awaitable[str | None]]) -> OnceOnly | None:
    """Return the request's `Idempotency-Key`, or None if the request has no key.

    `made` looks up the object that an earlier identical request with this key has created. Raises `AlreadyMade` if
    there is such an object. A handler reads the key before it reads the objects to which the request refers. These
    objects may have been deleted since the earlier request. An example of a handler:

        try:
            once = await once_of(request, store.made)
            made = await store.create(request.owner, new_id("conv"), metadata, items, once)
        except AlreadyMade as earlier:
            return made_again(raw_response(...))  # the object `earlier.object_id`
    """
    once = request.once()
    if once is not None and (known := await made(once)) is not None:
        raise AlreadyMade(known)
    return once


def made_again(found: ApiResponse) -> ApiResponse:
    """Return the answer to a repeated request: `found`, plus the header `idempotent-replayed: true`."""
    return replace(found, headers=(*found.headers, REPLAYED))


def made_is_gone(what: str) -> NotFound:
    """Return the 404 (`not_found`) for a repeated request whose object was deleted since the first request.

    `what` is the kind of the object in the message, such as `conversation`.
    """
    return NotFound(f"The {what} that was made with this Idempotency-Key was deleted. Use a new key.", code="not_found")


def existing(found: _Found | None, missing: NotFound) -> _Found:
    """Return `found`. Raises `missing` if `found` is None."""
    if found is None:
        raise missing
    return found


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """A kind of stored objects whose ids appear in paths.

    `what` is the name of the kind in error messages, and `where` is the text at the end of such a message. `fits`
    returns whether a text could be an id of this kind. Handlers do not query the store for a text that `fits` refuses.
    `gone` is the value of `object` in the answer to a deletion.

        PROMPTS = ObjectKind("Prompt", lambda text: is_id(text, "pmpt"), "prompt.deleted")
        prompt = await PROMPTS.find(prompt_id, lambda: store.get(request.owner, prompt_id))
    """

    what: str
    fits: Callable[[str], bool]
    gone: str = ""
    where: str = ""

    def missing(self, object_id: str) -> NotFound:
        """Return the 404 for an object that does not exist, or belongs to another owner."""
        return NotFound(f"{self.what} with id '{object_id[:_SHOWN_ID]}' not found{self.where}.")

    async def find(self, object_id: str, ask: Callable[[], Awaitable[_Found | None]]) -> _Found:
        """Return the object with this id, which `ask` reads from the store.

        Raises `NotFound` if `ask` returns None, or if the text cannot be an id of this kind.
        """
        return existing(await ask() if self.fits(object_id) else None, self.missing(object_id))

    async def delete(self, object_id: str, ask: Callable[[], Awaitable[bool]]) -> ApiResponse:
        """Call `ask` to delete the object, and return the answer `{"id": …, "object": …, "deleted": true}`. `object` is
        `self.gone`, for example `file.deleted`.

        Raises `NotFound` if `ask` returns False, or if the text cannot be an id of this kind.
        """
        if not (self.fits(object_id) and await ask()):
            raise self.missing(object_id)
        return json_response({"id": object_id, "object": self.gone, "deleted": True})


def error_response(error: ApiError, request_id: str = "") -> ApiResponse:
    """Return the answer with the status, the headers and the error object of this error."""
    return raw_response(error.body(request_id), error.status, error.headers)


def read_body(request: ApiRequest, kind: type[_Body]) -> _Body:
    """Decode the JSON body into `kind`. An empty body counts as an empty object.

    Raises `InvalidRequest`: `invalid_json` for a body that is not JSON in UTF-8, and `invalid_type` or
    `missing_required_parameter` for a field, which the error names.
    """
    body = request.body or b"{}"
    try:
        if not body.isascii():
            # msgspec does not check the UTF-8 of values that stay raw JSON.
            body.decode()
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise wrong_type("", error, body) from None
    except UnicodeDecodeError as error:
        raise not_utf8(error) from None
    except msgspec.DecodeError:
        raise not_json(body) from None
    except RecursionError:
        raise nested_too_deeply() from None


def read_known(request: ApiRequest, kind: type[_Known]) -> tuple[_Known, list[str]]:
    """Decode the body as `read_body` does. Returns the decoded body with the names of the fields that `kind` does not
    have."""
    body = read_body(request, kind)
    names = _FIELDS.decode(request.body or b"{}")
    return body, [name for name in names if name not in kind.__struct_fields__]


def ignored_fields(names: Sequence[str]) -> Headers:
    """Return the header `antiphon-ignored` with the names of ignored request parts, or no header if `names` is empty.

    The header has the first 64 characters of at most 16 names: `antiphon-ignored: seed, tools.web_search`.
    """
    plain = [name[:64] for name in names[:16] if name.isascii() and name.isprintable() and "," not in name]
    return (("antiphon-ignored", ", ".join(plain)),) if plain else ()


def nested_too_deeply() -> InvalidRequest:
    """Return the 400 (`invalid_json`) for JSON that is nested deeper than the parser allows."""
    return InvalidRequest("The request body is nested too deeply.", code="invalid_json")


def _id_of(one: Any) -> str:
    return str(one.id)


def list_response(
    page: Page[_Found],
    show: Callable[[_Found], bytes],
    *,
    id_of: Callable[[_Found], str] = _id_of,
    headers: Headers = (),
) -> ApiResponse:
    """Return the answer with a page as OpenAI's list object, in the shape of `ListOf`.

    `show` returns the JSON of an entry, and `id_of` the entry's id, which serves as a cursor.

        {"object": "list", "data": [{…}, {…}], "first_id": "file-9b…", "last_id": "file-8a…", "has_more": true}
    """
    found = page.items
    first, last = (id_of(found[0]), id_of(found[-1])) if found else (None, None)
    envelope = encode({"first_id": first, "last_id": last, "has_more": page.has_more})
    data = b",".join([show(one) for one in found])
    return raw_response(b'{"object":"list","data":[%b],%b' % (data, envelope[1:]), headers=headers)


def item_body(item: StoredItem) -> bytes:
    """Return the JSON of a stored item, for `list_response`."""
    return item.body


# The functions below read query parameters. If a name occurs several times, the last value counts. A wrong value gets a
# 400 that names the parameter.


def query_value(request: ApiRequest, name: str) -> str | None:
    """Return the text of a query parameter, or None if it is missing or empty. If the request has the parameter several
    times, the last value counts."""
    found = None
    for key, value in request.query:
        if key == name:
            found = value
    return found or None


def query_number(request: ApiRequest, name: str, *, least: int, limit: int, default: int) -> int:
    """Return a query parameter as an integer from `least` to `limit`, or `default` if it is missing.

    Raises `InvalidRequest`: `invalid_type`, `integer_below_min_value` or `integer_above_max_value`.
    """
    text = query_value(request, name)
    if text is None:
        return default
    # `int` also accepts "1_0", " 5 " and the digits of other scripts, so this checks the text first.
    if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 18):
        raise InvalidRequest(f"Invalid value for '{name}': expected an integer.", param=name, code="invalid_type")
    number = int(text)
    if number < least:
        problem = f"integer below minimum value. Expected a value >= {least}, but got {number} instead"
        raise invalid_parameter(name, problem, "integer_below_min_value")
    if number > limit:
        problem = f"integer above maximum value. Expected a value <= {limit}, but got {number} instead"
        raise invalid_parameter(name, problem, "integer_above_max_value")
    return number


def query_choice(request: ApiRequest, name: str, choices: tuple[str, ...], default: str) -> str:
    """Return a query parameter whose value must be one of `choices`, or `default` if it is missing.

    Raises `InvalidRequest` (`invalid_value`).
    """
    text = query_value(request, name)
    if text is None:
        return default
    if text not in choices:
        supported = " and ".join(f"'{choice}'" for choice in choices)
        raise wrong_value(f"Invalid value for '{name}'. Supported values are: {supported}.", name)
    return text


ORDER = Parameter("order", Literal["asc", "desc"], "The order by creation time. The default is `desc`.")
AFTER = Parameter("after", str, "A cursor: list only objects after the object with this id.")
_LONGEST_PAGE, _USUAL_PAGE = 100, 20


def limit_parameter(most: int, usual: int) -> Parameter:
    """Return the description of the query parameter `limit`. `most` is its maximum, `usual` its default."""
    return Parameter(
        "limit", Annotated[int, Meta(ge=1, le=most)], f"The largest number of objects to list. The default is {usual}."
    )


PAGE = (
    limit_parameter(_LONGEST_PAGE, _USUAL_PAGE),
    ORDER,
    AFTER,
    Parameter("before", str, "A cursor: list only objects before the object with this id."),
)
"""The query parameters that `read_page` reads."""


def read_page(request: ApiRequest) -> PageQuery:
    """Read the query parameters `limit`, `order`, `after` and `before`. Raises `InvalidRequest`.

    For example, `?limit=50&order=asc&after=file-9b…` gives `PageQuery(50, "file-9b…", None, descending=False)`. The
    store checks that the cursors exist.
    """
    return PageQuery(
        limit=query_number(request, "limit", least=1, limit=_LONGEST_PAGE, default=_USUAL_PAGE),
        after=query_value(request, "after"),
        before=query_value(request, "before"),
        descending=query_choice(request, "order", ("asc", "desc"), "desc") == "desc",
    )


def query_flag(request: ApiRequest, name: str) -> bool:
    """Return whether a query parameter is `true` or `1`. A missing parameter counts as false.

    Raises `InvalidRequest` (`invalid_value`) unless the value is `true`, `false`, `1` or `0`.
    """
    return query_choice(request, name, ("true", "false", "1", "0"), "false") in ("true", "1")
