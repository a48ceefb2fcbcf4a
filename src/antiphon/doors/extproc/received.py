"""Defines a decoded ext_proc message from Envoy, as a plain value.

`wire.py` decodes the message's bytes into this value. msgspec builds the class `Received` from its annotations at run
time. So the class has a separate module, which stays interpreted when other modules are compiled
(docs/explanation/performance.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct

from antiphon.types.transport import Headers


class MessageKind(Enum):
    """The kind of a message from Envoy, by its content."""

    REQUEST_HEADERS = "request_headers"
    REQUEST_BODY = "request_body"
    REQUEST_TRAILERS = "request_trailers"
    RESPONSE_HEADERS = "response_headers"
    RESPONSE_BODY = "response_body"
    RESPONSE_TRAILERS = "response_trailers"
    OTHER = "other"


class Received(Struct, gc=False):
    """One message from Envoy.

    `headers` is set for the two header kinds, and `body` for the two body kinds. `end` is the flag `end_of_stream`.
    `modes` has the names of the request and response body modes, if the message contains them. Only the stream's first
    message contains the names of these body modes. `observing` is True when Envoy ignores every answer
    (`observability_mode`). `metadata` has the texts and objects that earlier Envoy filters wrote, by metadata
    namespace. Only messages with request headers have `metadata`.
    """

    kind: MessageKind
    headers: Headers = ()
    body: bytes = b""
    end: bool = False
    modes: tuple[str, str] | None = None
    observing: bool = False
    metadata: Mapping[str, Mapping[str, object]] | None = None
