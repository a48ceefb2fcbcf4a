"""Settings for limits and timeouts of requests, connections and fetches.

Lives here: these sections of the settings. Not here: their use, how sources are merged (`settings.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from antiphon.config.section import MIB, Section


class LimitSettings(Section):
    request_body_bytes: int = Field(default=64 * MIB, ge=1024)
    """Largest request body, as received and, for a compressed one, decompressed. A larger one gets a 413, during the
    upload."""
    upstream_body_bytes: int = Field(default=64 * MIB, ge=1024)
    """Largest JSON answer of an upstream, and the most text in one response."""
    upstream_error_bytes: int = Field(default=256 * 1024, ge=1024)
    """Most bytes that the sidecar reads of an upstream's error body."""
    sse_event_bytes: int = Field(default=8 * MIB, ge=1024)
    """Largest single event an upstream may send."""
    no_output_bytes: int = Field(default=16 * MIB, ge=1024)
    """Most bytes an upstream may send in a stream without any output. Comments, empty deltas and annotations are no
    output, nor are choices and log probabilities that the request does not ask for. Each byte of output pays for 1024
    others."""
    drive_stream_bytes: int = Field(default=64 * MIB, ge=64 * 1024)
    """Largest event stream of a response that the sidecar makes for Envoy (drive), its end included. Above it the
    response fails (`stream_too_large`). Envoy holds as much of it as its client has not read."""
    drive_ahead_bytes: int = Field(default=256 * MIB, ge=64 * 1024)
    """Most bytes that all such streams of a process may be ahead of clients that read 256 KiB a second. Each stream is
    8 MiB ahead at most. Beyond it the sidecar writes them no faster than that."""
    input_items: int = Field(default=10_000, ge=1)
    """Most items in one request's `input`."""
    chain_items: int = Field(default=50_000, ge=1)
    """Most items of history that a `previous_response_id` may bring."""
    history_bytes: int = Field(default=64 * MIB, ge=1024)
    """Most bytes of history that a request may bring by `previous_response_id`, `conversation` or ids of items. Above
    it the answer is a 413, and the sidecar reads none of it."""
    page_bytes: int = Field(default=16 * MIB, ge=1024)
    """Most bytes in one page of a list, however many rows the client requests. A page always has at least one row."""
    tools: int = Field(default=1_024, ge=1)
    """Most tools in one request."""
    tool_calls: int = Field(default=256, ge=1)
    """Most tool calls one model answer may hold."""
    concurrent_requests: int = Field(default=10_000, ge=1)
    """Most requests in flight per process. A low limit of open files lowers it, to half of that limit and a few less.
    Above it the answer is a 503."""
    owner_requests: int | None = Field(default=None, ge=0)
    """Most requests in flight of one owner, running background responses included. Above it the answer is a 429, and a
    background response waits. Unset: half of `concurrent_requests`. 0: all of them. No effect with `owner.source:
    single`."""
    bytes_in_flight: int = Field(default=512 * MIB, ge=1024)
    """Most bytes that the requests in flight hold together per process: their bodies, and the histories and files that
    they bring. Above it the answer is a 503. During its translation a request takes three to four times this much
    memory."""
    owner_bytes_in_flight: int | None = Field(default=None, ge=0)
    """Most bytes that the requests in flight of one owner hold. Above it the answer is a 429, and a background response
    waits. Unset: half of `bytes_in_flight`, but room for one `request_body_bytes`. 0: all of them. No effect with
    `owner.source: single`."""
    owner_bytes: int | None = Field(default=None, ge=1)
    """Most bytes that the stored responses and conversations of one owner may take. Above it a request that would add
    to them gets a 429, before any model call. The store still takes responses that run then. Unset: no limit."""

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.bytes_in_flight < self.request_body_bytes:
            raise ValueError("bytes_in_flight must be at least request_body_bytes, or no such request fits")
        if self.owner_bytes_in_flight and self.owner_bytes_in_flight < self.request_body_bytes:
            raise ValueError("owner_bytes_in_flight must be at least request_body_bytes, or 0")
        return self

    def share_of_requests(self, places: int) -> int:
        """The number of requests that one owner may have in flight. 0: as many as there are places."""
        return max(1, places // 2) if self.owner_requests is None else self.owner_requests

    @property
    def share_of_bytes(self) -> int:
        """The bytes that one owner's requests may hold. 0: as many as there are."""
        given = self.owner_bytes_in_flight
        return max(self.request_body_bytes, self.bytes_in_flight // 2) if given is None else given


class TimeoutSettings(Section):
    connect: float = Field(default=5.0, gt=0)
    """Seconds to connect to the upstream."""
    head: float = Field(default=600.0, gt=0)
    """Seconds to wait for the upstream's response head."""
    head_wait: float = Field(default=60.0, ge=0)
    """In drive: seconds without the upstream's response head after which the sidecar opens the stream towards the
    client."""
    idle: float = Field(default=300.0, gt=0)
    """Seconds of silence in the middle of an upstream's answer after which the answer counts as dead."""
    no_output: float = Field(default=900.0, gt=0)
    """Seconds an upstream may go on sending without any output (comments, empty deltas). For silence: `idle`."""
    error_body: float = Field(default=10.0, gt=0)
    """Seconds to read the body of an upstream's error. Afterwards the sidecar uses the part that has arrived."""
    response: float = Field(default=3600.0, gt=0)
    """Seconds a response may take with all its model calls and tools; then it fails (`response_timeout`). In the
    background each attempt has this time, without the time in the queue."""
    keepalive: float = Field(default=15.0, gt=0)
    """Seconds of silence towards a streaming client before the sidecar sends a comment line."""
    request: float = Field(default=60.0, gt=0)
    """Seconds a client may take to send its request body; for an upload: to send any more of it. Envoy applies the same
    time to the request's head, and to the first bytes of a connection."""
    client_idle: float = Field(default=600.0, gt=0)
    """Seconds without a request after which Envoy closes a client's connection."""
    send: float = Field(default=600.0, gt=0)
    """Seconds in which a client of the HTTP server must read the bytes sent to it; otherwise the server cuts it off.
    For a stream, a file or a WebSocket these are as many bytes as its buffer holds. A client of Envoy must read
    anything at all in this time (on Linux)."""
    save: float = Field(default=10.0, gt=0)
    """Seconds after which a write that has not begun to commit is rolled back and fails."""
    settle: float = Field(default=30.0, gt=0)
    """Seconds to wait in all for a write whose commit has begun and does not end. After them the client gets an error.
    If the write takes effect later, the store undoes it."""
    read: float = Field(default=10.0, gt=0)
    """Seconds that one read of a database may take, its wait for other operations included."""
    check: float = Field(default=10.0, ge=0)
    """Seconds in which an upstream must answer `GET /models` at the start of `up` or `serve`, and accept its key. The
    check runs in the background. Without such an answer the log has a warning. 0: no check."""
    hung: float = Field(default=30.0, ge=0)
    """Seconds in which a process of `antiphon up` (a worker, Envoy) must answer its parent. The parent kills and
    replaces a process that does not. 0: no check."""
    drain: float = Field(default=30.0, ge=0)
    """Seconds that requests in flight get after SIGTERM, `notice` included. The process then cuts what is still in
    flight and stores it as failed; the exit status is 1. It ends two seconds later in any case. A second before the end
    it gives background responses back (see `background.on_restart`), which is no cut."""
    notice: float | None = Field(default=None, ge=0)
    """Seconds after SIGTERM in which the process serves new requests although `/ready` and gRPC health report that it
    is not ready. So its load balancer notices first. It needs at least the interval of the health checks, and a second.
    Unset: 2 for `antiphon extproc`, since Envoy asks every second (half of a shorter `drain`); 0 for `serve` and
    `up`."""

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.notice and self.notice >= self.drain:
            raise ValueError(
                f"notice ({self.notice:g} s) must be less than drain ({self.drain:g} s), which it is a part of: "
                "what is in flight would be cut when the notice is over"
            )
        return self


class FetchSettings(Section):
    """Files that requests name by `file_url`."""

    enabled: bool = True
    """Fetch files that requests name by `file_url`. Off: such a request is a 400."""
    http: bool = False
    """Allow plain `http://` URLs too."""
    ports: tuple[int, ...] = (80, 443)
    """Ports that a URL may name."""
    allow_private: tuple[str, ...] = ()
    """Host names, addresses and networks (`10.1.0.0/16`) that the sidecar may fetch from although they are not public.
    A host named here (an address counts as named by its network) may use `http` and any port."""
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
    """Media types that the sidecar accepts, `*` for any characters."""
    total_bytes: int = Field(default=50 * MIB, ge=1)
    """Most bytes of all fetched files of one request together, each as often as it is named."""
    seconds: float = Field(default=30.0, gt=0)
    """Seconds for all fetched files of one request together."""
    files: int = Field(default=20, ge=1)
    """Most files fetched for one request."""
    redirects: int = Field(default=3, ge=0)
    """Redirects that the sidecar follows for one file. It checks each like the first URL."""
    concurrent: int = Field(default=16, ge=1)
    """Most fetches at once per process."""
    ca_file: Path | None = None
    """PEM file with the authorities trusted for these servers. Unset: the system's."""


class CorsSettings(Section):
    """Web pages that call the API from browsers over HTTP, with either `door` (for WebSockets: `websocket.origins`)."""

    origins: tuple[str, ...] = ()
    """Web pages that may send requests and read the answers, by origin (`https://app.example`; `*`: all). They need a
    token like any client; cookies have no effect. Unset: browsers let no page of another origin read an answer."""

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, origin in enumerate(value, 1):
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise ValueError(
                    f"entry {number} is no origin, for example https://app.example or http://localhost:3000"
                )
        return value


class WebSocketSettings(Section):
    """WebSocket connections on `/v1/responses`."""

    enabled: bool = True
    """Accept WebSocket connections. Off: an upgrade is a 426, after which clients use HTTP."""
    origins: tuple[str, ...] = ()
    """Web pages that may connect, by origin (`https://app.example`; `*`: all). Clients that are no browsers and pages
    of this host itself may always connect."""
    connections: int = Field(default=1_000, ge=1)
    """Most connections per process. Above it an upgrade is a 503."""
    seconds: float = Field(default=3_600.0, gt=0)
    """Longest life of one connection. A response that runs at its end is finished."""
    ping: float = Field(default=30.0, gt=0)
    """Seconds between pings. A client that does not answer within half of that counts as disconnected."""
    memory_bytes: int = Field(default=16 * MIB, ge=0)
    """Most bytes of responses with `store: false` that a connection remembers, so that clients can continue them on
    it."""
    total_bytes: int = Field(default=256 * MIB, ge=1024)
    """Most bytes that all connections of a process hold together: remembered responses, and requests that wait for
    their turn. When it is full, the connections unused for longest forget their responses, and their clients send the
    whole input again. If that is not enough, a request gets a 503."""
    compression: bool = True
    """Compress frames (permessage-deflate) where the client offers it."""
