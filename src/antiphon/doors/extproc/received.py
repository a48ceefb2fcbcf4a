"""Defines a decoded ext_proc message from Envoy, as a plain value.

Not here: its wire form (`wire.py`). msgspec builds the class from its annotations at run time. So it has a separate
module that stays interpreted when others are compiled (docs/explanation/performance.md).
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from antiphon.types.transport import Headers


class MessageKind(Enum):
    """The content of a message from Envoy."""

    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY = "request_body"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    RESPONSE_TRAILERS = "response_trailers"
    OTHER = "other"


class Received(Struct, gc=False):
    """One message from Envoy.

    `headers` for the two header kinds, `body` for the two body kinds; `end` is `end_of_stream`. `modes`: the names of
    the request and response body modes, if this message (the stream's first) contains them. `observing`: Envoy ignores
    every answer.
    """

    kind: MessageKind
    headers: Headers = ()
    body: bytes = b""
    end: bool = False
    modes: tuple[str, str] | None = None
    observing: bool = False
