"""Reusable parts of the OpenAPI document: parameters, and schemas that many routes share.

Lives here: the class of parameters, and the schemas that many routes share. Not here: the routes, and `openapi.json`,
the document that `scripts/docs` generates from the routes and these schemas.

Invariant: these schemas only describe requests and answers. The handlers check requests, and a test compares the
handlers' answers with the schemas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import Meta, Struct

_One = TypeVar("_One")
_Word = TypeVar("_Word")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter, or a header if `where` is `header`. `kind` is the type of the value."""

    name: str
    kind: object = str
    text: str = ""
    where: Literal["query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class StandsFor:
    """A marker in `Annotated` with the type that the document shows. The code parses a looser type, to give better
    error messages."""

    kind: object


EVENTS = {"$ref": "#/components/schemas/StreamEvent"}
"""The schema of the events in a response's stream."""


class ListOf(Struct, Generic[_One], kw_only=True):
    """One page of a list. The ids of the objects are the cursors for `after` and `before`."""

    object: Literal["list"] = "list"
    data: list[_One]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(Struct, Generic[_Word]):
    """The confirmation that an object was deleted."""

    id: str
    object: _Word
    deleted: Literal[True] = True


class Well(Struct):
    status: Literal["ok"]


class Unwell(Struct):
    status: Literal["unavailable"]
    reason: str


Metadata = Annotated[
    dict[str, str],
    Meta(
        description="At most 16 pairs. A key has at most 64 characters, a value at most 512.",
        extra_json_schema={"maxProperties": 16, "propertyNames": {"maxLength": 64}},
    ),
]
"""Key-value pairs that clients attach to an object."""


class Open(Struct):
    """The base of objects that may have further members. Antiphon returns the further members unchanged."""


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
