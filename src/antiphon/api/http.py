"""Request and response types of the API handlers, independent of any web server.

Lives here: `ApiRequest`, `ApiResponse`, and how values, lists and errors become answers. Not here: aiohttp, Envoy,
and any resource's meaning.

Invariant: header names are lower case; a JSON answer always carries its exact length, an error answer always the
OpenAI error object.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from antiphon.api.described import Parameter
from antiphon.engine.exchange.client_answer import REPLAYED
from antiphon.engine.exchange.failure import Failure
from antiphon.engine.ports.actions import OnceOnly, StoredItem
from antiphon.engine.ports.callers import EVERYTHING, Access
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

JSON_TYPE = ("content-type", "application/json")


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One request: `path` is normalised and without its query, `query` holds the decoded pairs in order."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: Headers = ()
    body: bytes = b""
    owner: str = ""
    request_id: str = ""
    body_stream: AsyncIterator[bytes] | None = None
    """The body as a stream, for routes that declare it. Then `body` is empty."""
    access: Access = EVERYTHING
    """What the client's key allows."""

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body in pieces, however it came."""
        if self.body_stream is None:
            if self.body:
                yield self.body
            return
        async for piece in self.body_stream:
            yield piece

    def once(self, *parts: bytes) -> OnceOnly | None:
        """Its `Idempotency-Key`. It stands for these parts, or for the body if there are none. Raises
        `InvalidRequest`."""
        key = read_key(self.header(HEADER))
        if key is None:
            return None
        return OnceOnly(self.owner, key, fingerprint(self.method, self.path, *(parts or (self.body,))))

    def header(self, name: str) -> str | None:
        """The first value of a header, by lower-case name."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """One answer: `body`, or the parts of `stream` as they come (the door closes it when the client leaves)."""

    status: int
    headers: Headers
    body: bytes
    stream: AsyncIterator[bytes] | None = None
    failure: Failure | None = None
    """Why it is an error, for the log."""


class AnswerCut(ConnectionResetError):
    """The upstream's answer broke off: the server that sends the parts to the client breaks off too."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.cause)
        self.failure = failure


def json_response(value: object, status: int = 200, headers: Headers = ()) -> ApiResponse:
    """An answer with this value as JSON."""
    return raw_response(encode(value), status, headers)


def raw_response(body: bytes, status: int = 200, headers: Headers = ()) -> ApiResponse:
    """An answer whose body is JSON already."""
    return ApiResponse(status, (JSON_TYPE, ("content-length", str(len(body))), *headers), body)


async def once_of(request: ApiRequest, made: Callable[[OnceOnly], Awaitable[str | None]]) -> OnceOnly | None:
    """The request's `Idempotency-Key`. Raises `AlreadyMade` where the same request has `made` something with it."""
    once = request.once()
    if once is not None and (known := await made(once)) is not None:
        raise AlreadyMade(known)
    return once


def made_again(found: ApiResponse) -> ApiResponse:
    """The answer of an earlier request with the same key, with the header that marks a replay."""
    return replace(found, headers=(*found.headers, REPLAYED))


def made_is_gone(what: str) -> NotFound:
    """The 404 for a repeated request whose object was deleted since the first request with this key."""
    return NotFound(f"The {what} that was made with this Idempotency-Key was deleted. Use a new key.", code="not_found")


def existing(found: _Found | None, missing: NotFound) -> _Found:
    """Return `found`. Raises `missing` if it is None."""
    if found is None:
        raise missing
    return found


@dataclass(frozen=True, slots=True)
class ObjectKind:
    """One kind of objects that paths name by their ids.

    `what`: the name of the kind in messages. `fits`: whether a text could be an id of this kind; the handler asks the
    store for no other ids. `gone`: the `object` of the answer to a deletion."""

    what: str
    fits: Callable[[str], bool]
    gone: str = ""
    where: str = ""

    def missing(self, object_id: str) -> NotFound:
        """The 404 for one that does not exist."""
        return NotFound(f"{self.what} with id '{object_id[:_SHOWN_ID]}' not found{self.where}.")

    async def find(self, object_id: str, ask: Callable[[], Awaitable[_Found | None]]) -> _Found:
        """The object that the store has for this id. Raises `NotFound`."""
        return existing(await ask() if self.fits(object_id) else None, self.missing(object_id))

    async def delete(self, object_id: str, ask: Callable[[], Awaitable[bool]]) -> ApiResponse:
        """The answer once the store has deleted it. Raises `NotFound`."""
        if not (self.fits(object_id) and await ask()):
            raise self.missing(object_id)
        return json_response({"id": object_id, "object": self.gone, "deleted": True})


def error_response(error: ApiError, request_id: str = "") -> ApiResponse:
    """The answer for an error."""
    return raw_response(error.body(request_id), error.status, error.headers)


def read_body(request: ApiRequest, kind: type[_Body]) -> _Body:
    """The request's JSON object as a struct; an absent body is an empty object.

    Raises `InvalidRequest` naming the field that does not fit.
    """
    body = request.body or b"{}"
    try:
        if not body.isascii():
            # What is kept as it came is not looked at otherwise.
            body.decode()
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise wrong_type("", error) from None
    except UnicodeDecodeError as error:
        raise not_utf8(error) from None
    except msgspec.DecodeError:
        raise not_json(body) from None
    except RecursionError:
        raise nested_too_deeply() from None


def read_known(request: ApiRequest, kind: type[_Known]) -> tuple[_Known, list[str]]:
    """The body, and the names of its fields that mean nothing here."""
    body = read_body(request, kind)
    names = _FIELDS.decode(request.body or b"{}")
    return body, [name for name in names if name not in kind.__struct_fields__]


def ignored_fields(names: Sequence[str]) -> Headers:
    """The header that lists the ignored parts."""
    plain = [name[:64] for name in names[:16] if name.isascii() and name.isprintable() and "," not in name]
    return (("antiphon-ignored", ", ".join(plain)),) if plain else ()


def nested_too_deeply() -> InvalidRequest:
    """The error for JSON that no parser follows to its end."""
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
    """A page in OpenAI's list envelope. `show` makes the JSON of each object. The ids of the objects are the
    cursors."""
    found = page.items
    first, last = (id_of(found[0]), id_of(found[-1])) if found else (None, None)
    envelope = encode({"first_id": first, "last_id": last, "has_more": page.has_more})
    data = b",".join([show(one) for one in found])
    return raw_response(b'{"object":"list","data":[%b],%b' % (data, envelope[1:]), headers=headers)


def item_body(item: StoredItem) -> bytes:
    """A stored item is JSON already."""
    return item.body


# Query parameters: the last of several wins, an absent one is None, a wrong one is a 400 naming it.


def query_value(request: ApiRequest, name: str) -> str | None:
    """A parameter's text; an empty one counts as absent."""
    found = None
    for key, value in request.query:
        if key == name:
            found = value
    return found or None


def query_number(request: ApiRequest, name: str, *, least: int, limit: int, default: int) -> int:
    """A whole number in a range."""
    text = query_value(request, name)
    if text is None:
        return default
    # Not `int` alone: it takes "1_0", " 5 " and other scripts' digits.
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
    """One of a few words."""
    text = query_value(request, name)
    if text is None:
        return default
    if text not in choices:
        supported = " and ".join(f"'{choice}'" for choice in choices)
        raise wrong_value(f"Invalid value for '{name}'. Supported values are: {supported}.", name)
    return text


ORDER = Parameter("order", Literal["asc", "desc"], "Of the times at which they were made; `desc` unless given.")
AFTER = Parameter("after", str, "Only what comes behind this one in the list.")
_LONGEST_PAGE, _USUAL_PAGE = 100, 20


def limit_parameter(most: int, usual: int) -> Parameter:
    """The number of objects on a page."""
    return Parameter("limit", Annotated[int, Meta(ge=1, le=most)], f"At most so many; {usual} unless given.")


PAGE = (
    limit_parameter(_LONGEST_PAGE, _USUAL_PAGE),
    ORDER,
    AFTER,
    Parameter("before", str, "Only what comes before this one in the list."),
)
"""The query parameters that `read_page` reads."""


def read_page(request: ApiRequest) -> PageQuery:
    """Which page of a list: `limit`, `order`, `after` and `before`."""
    return PageQuery(
        limit=query_number(request, "limit", least=1, limit=_LONGEST_PAGE, default=_USUAL_PAGE),
        after=query_value(request, "after"),
        before=query_value(request, "before"),
        descending=query_choice(request, "order", ("asc", "desc"), "desc") == "desc",
    )


def query_flag(request: ApiRequest, name: str) -> bool:
    """`true` or `false`; absent is false."""
    return query_choice(request, name, ("true", "false", "1", "0"), "false") in ("true", "1")
