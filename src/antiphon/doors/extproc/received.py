"""A decoded ext_proc message from Envoy, as a plain value.

Not here: how it stands on the wire (`wire.py`). msgspec makes the class of its annotations at run time, so it has a
module of its own, which stays interpreted where others are compiled (docs/explanation/performance.md).
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from antiphon.types.transport import Headers


class MessageKind(Enum):
    """What a message from Envoy carries."""

    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY = "request_body"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    RESPONSE_TRAILERS = "response_trailers"
    OTHER = "other"


class Received(Struct, gc=False):
    """One message from Envoy.

    `headers` for the two header kinds, `body` for the two body kinds; `end` is `end_of_stream`. `modes` are the names
    of the request and response body modes when this message (the stream's first) tells them; `observing` says that
    Envoy ignores every answer.
    """

    kind: MessageKind
    headers: Headers = ()
    body: bytes = b""
    end: bool = False
    modes: tuple[str, str] | None = None
    observing: bool = False
