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
    """Largest request body, as it comes and (a compressed one) decompressed; above it the answer is a 413, during the
    upload."""
    upstream_body_bytes: int = Field(default=64 * MIB, ge=1024)
    """Largest upstream JSON answer, and the most text one response may grow to."""
    upstream_error_bytes: int = Field(default=256 * 1024, ge=1024)
    """How much of an upstream's error body is read."""
    sse_event_bytes: int = Field(default=8 * MIB, ge=1024)
    """Largest single event an upstream may send."""
    no_output_bytes: int = Field(default=16 * MIB, ge=1024)
    """Most bytes an upstream may send in a stream without any output: comments, empty deltas, annotations, choices and
    log probabilities that nobody asked for. Each byte of output pays for 1024 others."""
    drive_stream_bytes: int = Field(default=64 * MIB, ge=64 * 1024)
    """Largest event stream of a response that the sidecar makes for Envoy (drive), its end included; above it the
    response fails (`stream_too_large`). Envoy holds as much of it as its client has not read."""
    drive_ahead_bytes: int = Field(default=256 * MIB, ge=64 * 1024)
    """Most bytes that such streams of a process may be ahead, together, of clients that read 256 KiB a second; 8 MiB
    each at most. Beyond it they are written no faster than that."""
    input_items: int = Field(default=10_000, ge=1)
    """Most items in one request's `input`."""
    chain_items: int = Field(default=50_000, ge=1)
    """Most items of history a `previous_response_id` may bring."""
    history_bytes: int = Field(default=64 * MIB, ge=1024)
    """Most bytes of history that a request may bring (by `previous_response_id`, `conversation`, or items' ids); above
    it the answer is a 413, and none of it is read."""
    page_bytes: int = Field(default=16 * MIB, ge=1024)
    """Where a page of a list ends, however many rows were asked for; one row is always delivered."""
    tools: int = Field(default=1_024, ge=1)
    """Most tools in one request."""
    tool_calls: int = Field(default=256, ge=1)
    """Most tool calls one model answer may hold."""
    concurrent_requests: int = Field(default=10_000, ge=1)
    """Most requests in flight per process, or as many as the limit of open files allows (half of it, a few less); above
    it the answer is a 503."""
    owner_requests: int | None = Field(default=None, ge=0)
    """Most of them of one owner, running background responses included; above it the answer is a 429, and a background
    response waits. Unset: half of `concurrent_requests`; 0: all of them. Without effect with `owner.source: single`."""
    bytes_in_flight: int = Field(default=512 * MIB, ge=1024)
    """Most bytes that the requests in flight hold together per process: their bodies, and the histories and files that
    they bring; above it the answer is a 503. A request takes three to four times this much memory while it is
    translated."""
    owner_bytes_in_flight: int | None = Field(default=None, ge=0)
    """Most of them of one owner; above it the answer is a 429, and a background response waits. Unset: half of
    `bytes_in_flight`, but room for one `request_body_bytes`; 0: all of them. Without effect with `owner.source:
    single`."""
    owner_bytes: int | None = Field(default=None, ge=1)
    """Most bytes that the stored responses and conversations of one owner may take; above it what would add to them is
    a 429 before the model is asked. What runs then is still stored. Unset: no limit."""

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.bytes_in_flight < self.request_body_bytes:
            raise ValueError("bytes_in_flight must be at least request_body_bytes, or no such request fits")
        if self.owner_bytes_in_flight and self.owner_bytes_in_flight < self.request_body_bytes:
            raise ValueError("owner_bytes_in_flight must be at least request_body_bytes, or 0")
        return self

    def share_of_requests(self, places: int) -> int:
        """How many requests one owner may have in flight; 0: as many as there are."""
        return max(1, places // 2) if self.owner_requests is None else self.owner_requests

    @property
    def share_of_bytes(self) -> int:
        """How many bytes one owner's requests may hold; 0: as many as there are."""
        given = self.owner_bytes_in_flight
        return max(self.request_body_bytes, self.bytes_in_flight // 2) if given is None else given


class TimeoutSettings(Section):
    connect: float = Field(default=5.0, gt=0)
    """Seconds to connect to the upstream."""
    head: float = Field(default=600.0, gt=0)
    """Seconds to wait for the upstream's response head."""
    head_wait: float = Field(default=60.0, ge=0)
    """In drive: seconds after which the stream is opened towards the client although the upstream's head is not there
    yet."""
    idle: float = Field(default=300.0, gt=0)
    """Seconds of silence in the middle of an upstream's answer before it counts as dead."""
    no_output: float = Field(default=900.0, gt=0)
    """Seconds an upstream may go on sending without any output (comments, empty deltas); silence is `idle`."""
    error_body: float = Field(default=10.0, gt=0)
    """Seconds for the body of an upstream's error; then the error is what has come of it."""
    response: float = Field(default=3600.0, gt=0)
    """Seconds a response may take with all its model calls and tools; then it fails (`response_timeout`). In the
    background each attempt has as many, without the time in the queue."""
    keepalive: float = Field(default=15.0, gt=0)
    """Seconds of silence towards a streaming client before a comment line is sent."""
    request: float = Field(default=60.0, gt=0)
    """Seconds a client may take to send its request body; of an upload: to send any more of it. In Envoy the same for
    its head, and for the first bytes of a connection."""
    client_idle: float = Field(default=600.0, gt=0)
    """Seconds after which Envoy closes a client's connection without a request."""
    send: float = Field(default=600.0, gt=0)
    """Seconds in which a client of the HTTP door must take what was written to it (of a stream, a file or
    a WebSocket: as much as its buffer holds); after that it is cut off. A client of Envoy must take anything at all in
    this time (on Linux)."""
    save: float = Field(default=10.0, gt=0)
    """Seconds after which a write that has not begun to be committed is taken back, and has failed."""
    settle: float = Field(default=30.0, gt=0)
    """Seconds to wait in all for a write that the disk has begun to commit and does not end. After them the client is
    told that it failed, and it is undone should it take effect later."""
    read: float = Field(default=10.0, gt=0)
    """Seconds that one read of a database may take, its waiting for others included."""
    check: float = Field(default=10.0, ge=0)
    """Seconds that an upstream has at the start of `up` or `serve` to say that it is there and takes its key
    (`GET /models`, in the background); otherwise there is a warning in the log. 0: it is not asked."""
    hung: float = Field(default=30.0, ge=0)
    """Seconds in which a process of `antiphon up` (a worker, Envoy) must answer its parent; one that does not is killed
    and replaced. 0: nobody asks."""
    drain: float = Field(default=30.0, ge=0)
    """Seconds that in-flight requests get after SIGTERM, `notice` included. What is in flight then is cut and stored as
    failed, and the exit status is 1; the process is gone two seconds later, whatever happens. Background responses are
    given back a second before the end (see `background.on_restart`), which is no cut."""
    notice: float | None = Field(default=None, ge=0)
    """Seconds after SIGTERM in which new requests are still served while `/ready` and gRPC health say no, so that
    whoever sends them notices first: at least the interval of their health checks, and a second. Unset: 2 for
    `antiphon extproc`, whom Envoy asks every second (half of a shorter `drain`), 0 for `serve` and `up`."""

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
    total_bytes: int = Field(default=50 * MIB, ge=1)
    """Most bytes of all fetched files of one request together, each as often as it is named."""
    seconds: float = Field(default=30.0, gt=0)
    """Seconds for all fetched files of one request together."""
    files: int = Field(default=20, ge=1)
    """Most files fetched for one request."""
    redirects: int = Field(default=3, ge=0)
    """Redirects followed for one file; each is checked like the first URL."""
    concurrent: int = Field(default=16, ge=1)
    """Most fetches at once per process."""
    ca_file: Path | None = None
    """PEM file with the authorities trusted for these servers; unset: the system's."""


class CorsSettings(Section):
    """Pages in browsers that ask over HTTP, in every door (for WebSockets: `websocket.origins`)."""

    origins: tuple[str, ...] = ()
    """Pages that may send requests and read the answers, by origin (`https://app.example`; `*`: all). They need a
    token like any client; cookies are never used. None: browsers let no page of another origin read anything."""

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise ValueError(f"{origin!r} is no origin, for example https://app.example or http://localhost:3000")
        return value


class WebSocketSettings(Section):
    """WebSocket connections on `/v1/responses`."""

    enabled: bool = True
    """Take WebSocket connections; off: an upgrade is a 426, after which clients use HTTP."""
    origins: tuple[str, ...] = ()
    """Web pages that may connect, by origin (`https://app.example`; `*`: all), beside clients that are no browsers and
    pages of this host itself."""
    connections: int = Field(default=1_000, ge=1)
    """Most connections per process; above it an upgrade is a 503."""
    seconds: float = Field(default=3_600.0, gt=0)
    """How long one connection may live; what runs then is finished."""
    ping: float = Field(default=30.0, gt=0)
    """Seconds between pings; a client that does not answer one within half of that is gone."""
    memory_bytes: int = Field(default=16 * MIB, ge=0)
    """How much a connection remembers of responses with `store: false`, so that they can be continued on it."""
    total_bytes: int = Field(default=256 * MIB, ge=1024)
    """How much all connections of a process hold together: what they remember, and requests whose turn has not come.
    When it is full, the connections that were not used for longest forget what they remember (their clients send the
    whole input again); if that is not enough, a request is refused with a 503."""
    compression: bool = True
    """Compress frames (permessage-deflate) where the client offers it."""
