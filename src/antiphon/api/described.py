"""Reusable parts of the OpenAPI document: parameters, and schemas that many routes share.

Lives here: parameters, and the shapes that many routes share. Not here: the routes; the document, which `scripts/docs`
makes of both (`openapi.json`).

Invariant: nothing here decides what a request may hold; the handlers do, and a test holds their answers against this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import Meta, Struct

_One = TypeVar("_One")
_Word = TypeVar("_Word")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of the query, or of the head where `where` says so; `kind` is its type."""

    name: str
    kind: object = str
    text: str = ""
    where: Literal["query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class StandsFor:
    """In `Annotated`: the type for the document. The code reads a looser type, for better errors."""

    kind: object


EVENTS = {"$ref": "#/components/schemas/StreamEvent"}
"""The events of a response's stream."""


class ListOf(Struct, Generic[_One], kw_only=True):
    """One page of a list. The ids are the cursors for `after` and `before`."""

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
        description="At most 16 pairs; keys have at most 64 characters, values 512.",
        extra_json_schema={"maxProperties": 16, "propertyNames": {"maxLength": 64}},
    ),
]
"""Key-value pairs that clients attach to an object."""


class Open(Struct):
    """Something with further members, which are passed on as they are."""


class AnyItem(Open):
    """A stored item: one of a response's output, or one of a request's input as the client sent it."""

    id: str
    type: str


UPSTREAM_ERRORS = (403, 404, 502, 503, 504)
"""Error statuses of routes that call an upstream, in addition to those of any route."""


class AnyObject(Open):
    """Any object, which Antiphon passes on unchanged."""


Bytes = Annotated[Any, Meta(extra_json_schema={"type": "string", "format": "binary"})]
"""The content of a file."""
