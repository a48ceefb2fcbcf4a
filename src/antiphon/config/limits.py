"""Limits and waits of requests, connections and fetches.

Lives here: these sections of the settings. Not here: their use, how sources are merged (`antiphon.config`).
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from antiphon.config.section import MIB, Section

__all__ = ["FetchSettings", "LimitSettings", "TimeoutSettings", "WebSocketSettings"]


class LimitSettings(Section):
    request_body_bytes: int = Field(64 * MIB, ge=1024)
    """Largest request body, as it comes and (a compressed one) decompressed; above it the answer is a 413, during the
    upload."""
    upstream_body_bytes: int = Field(64 * MIB, ge=1024)
    """Largest upstream JSON answer, and the most text one response may grow to."""
    upstream_error_bytes: int = Field(256 * 1024, ge=1024)
    """How much of an upstream's error body is read."""
    sse_event_bytes: int = Field(8 * MIB, ge=1024)
    """Largest single event an upstream may send."""
    input_items: int = Field(10_000, ge=1)
    """Most items in one request's `input`."""
    chain_items: int = Field(50_000, ge=1)
    """Most items of history a `previous_response_id` may bring."""
    tools: int = Field(1_024, ge=1)
    """Most tools in one request."""
    tool_calls: int = Field(256, ge=1)
    """Most tool calls one model answer may hold."""
    concurrent_requests: int = Field(10_000, ge=1)
    """Most requests in flight per process; above it the answer is a 503."""


class TimeoutSettings(Section):
    connect: float = Field(5.0, gt=0)
    """Seconds to connect to the upstream."""
    head: float = Field(600.0, gt=0)
    """Seconds to wait for the upstream's response head."""
    head_wait: float = Field(60.0, ge=0)
    """In drive: seconds after which the stream is opened towards the client although the upstream's head is not there
    yet."""
    idle: float = Field(300.0, gt=0)
    """Seconds of silence in the middle of an upstream's answer before it counts as dead."""
    keepalive: float = Field(15.0, gt=0)
    """Seconds of silence towards a streaming client before a comment line is sent."""
    request: float = Field(60.0, gt=0)
    """Seconds a client may take to send its request body; of an upload: to send any more of it."""
    send: float = Field(600.0, gt=0)
    """Seconds in which a client must take some of a file that it reads, or of a stream that it follows; after that it
    is cut off."""
    save: float = Field(10.0, gt=0)
    """Seconds to wait for the store when a response is saved."""
    drain: float = Field(30.0, ge=0)
    """Seconds that in-flight requests get after SIGTERM."""


class FetchSettings(Section):
    """Files that requests name by `file_url`."""

    enabled: bool = True
    """Fetch files that requests name by `file_url`; off: such a request is a 400."""
    http: bool = False
    """Allow plain `http://` URLs too."""
    ports: tuple[int, ...] = (80, 443)
    """Ports that a URL may name."""
    allow_private: tuple[str, ...] = ()
    """Host names, addresses and networks (`10.1.0.0/16`) that may be fetched from although they are not public. A host
    named here (an address counts as named by its network) may use `http` and any port."""
    types: tuple[str, ...] = (
        "text/*",
        "application/pdf",
        "application/json",
        "application/*+json",
        "application/xml",
        "application/*+xml",
        "application/yaml",
        "application/x-yaml",
        "application/x-ndjson",
        "application/javascript",
        "application/rtf",
        "application/epub+zip",
        "application/msword",
        "application/vnd.ms-excel",
        "application/vnd.ms-powerpoint",
        "application/vnd.openxmlformats-officedocument.*",
        "application/vnd.oasis.opendocument.*",
    )
    """Media types that are accepted, `*` for any characters."""
    total_bytes: int = Field(50 * MIB, ge=1)
    """Most bytes of all fetched files of one request together."""
    seconds: float = Field(30.0, gt=0)
    """Seconds for all fetched files of one request together."""
    files: int = Field(20, ge=1)
    """Most files fetched for one request."""
    redirects: int = Field(3, ge=0)
    """Redirects followed for one file; each is checked like the first URL."""
    concurrent: int = Field(16, ge=1)
    """Most fetches at once per process."""
    ca_file: Path | None = None
    """PEM file with the authorities trusted for these servers; unset: the system's."""


class WebSocketSettings(Section):
    """WebSocket connections on `/v1/responses`."""

    enabled: bool = True
    """Take WebSocket connections; off: an upgrade is a 426, after which clients use HTTP."""
    origins: tuple[str, ...] = ()
    """Web pages that may connect, by origin (`https://app.example`; `*`: all), beside clients that are no browsers and
    pages of this host itself."""
    connections: int = Field(1_000, ge=1)
    """Most connections per process; above it an upgrade is a 503."""
    seconds: float = Field(3_600.0, gt=0)
    """How long one connection may live; what runs then is finished."""
    ping: float = Field(30.0, gt=0)
    """Seconds between pings; a client that does not answer one within half of that is gone."""
    memory_bytes: int = Field(16 * MIB, ge=0)
    """How much a connection remembers of responses with `store: false`, so that they can be continued on it."""
    compression: bool = True
    """Compress frames (permessage-deflate) where the client offers it."""
