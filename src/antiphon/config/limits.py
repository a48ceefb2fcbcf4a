"""Settings for limits: timeouts and sizes of requests, connections and fetches, and the quotas of owners.

A quota limits the requests, tokens and cost of an owner, client key, team or model.

This module defines the sections `limits`, `timeouts`, `fetch`, `cors`, `websocket` and `quotas` as pydantic models.
`settings.py` reads the values of these sections from the settings file, environment variables and flags.
`engine/ports/quotas.py` lists the quotas that apply to a request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_serializer, field_validator, model_validator

from antiphon.config.section import MIB, Section


class LimitSettings(Section):
    request_body_bytes: int = Field(default=64 * MIB, ge=1024)
    """Maximum number of bytes of a request body, before and after decompression. If a body is larger, the client gets a
    413 during the upload."""
    upstream_body_bytes: int = Field(default=64 * MIB, ge=1024)
    """Maximum number of bytes of an upstream's JSON answer. This setting also limits the text of one response."""
    upstream_error_bytes: int = Field(default=256 * 1024, ge=1024)
    """Maximum number of bytes that the sidecar reads of an upstream's error body."""
    sse_event_bytes: int = Field(default=8 * MIB, ge=1024)
    """Maximum number of bytes of one event in an upstream's stream."""
    no_output_bytes: int = Field(default=16 * MIB, ge=1024)
    """Maximum number of bytes that an upstream may send in a stream without output. Comments, empty deltas and
    annotations do not count as output. Choices and log probabilities that the request does not ask for do not count
    either. For each byte of output, the upstream may send 1024 more bytes without output."""
    drive_stream_bytes: int = Field(default=64 * MIB, ge=64 * 1024)
    """Maximum number of bytes in the event stream of one response in mode `drive`. A response with a larger stream
    fails (`stream_too_large`). The limit protects Envoy's memory, because Envoy buffers all bytes that the client has
    not read."""
    drive_ahead_bytes: int = Field(default=256 * MIB, ge=64 * 1024)
    """Maximum number of unread bytes that Envoy may buffer for all streams of one process in mode `drive`. The sidecar
    cannot see how much a client has read, so it assumes that each client reads 256 KiB a second. By this estimate, one
    stream may have at most 8 MiB of unread bytes, and less if many streams share this limit. A stream with more unread
    bytes waits, so the sidecar writes it at 256 KiB a second."""
    input_items: int = Field(default=10_000, ge=1)
    """Maximum number of items in one request's `input`."""
    chain_items: int = Field(default=50_000, ge=1)
    """Maximum number of items in the history that a `previous_response_id` adds to a request."""
    history_bytes: int = Field(default=64 * MIB, ge=1024)
    """Maximum number of bytes of history that a request may add by `previous_response_id`, `conversation` or ids of
    items. If the history is larger, the sidecar reads none of it and answers 413."""
    page_bytes: int = Field(default=16 * MIB, ge=1024)
    """Maximum number of bytes in one page of a list, whatever number of rows the client requests. A page has at least
    one row."""
    tools: int = Field(default=1_024, ge=1)
    """Maximum number of tools in one request."""
    tool_calls: int = Field(default=256, ge=1)
    """Maximum number of tool calls in one answer of a model."""
    concurrent_requests: int = Field(default=10_000, ge=1)
    """Maximum number of requests in flight per process. If the operating system lets the process open only few files,
    this limit falls to a little less than half that number of files. Further requests get a 503."""
    owner_requests: int | None = Field(default=None, ge=0)
    """Maximum number of requests in flight of one owner, running background responses included. Further requests get a
    429, and background responses wait. Unset: half of `concurrent_requests`. 0: as many as `concurrent_requests`. No
    effect with `owner.source: single`."""
    bytes_in_flight: int = Field(default=512 * MIB, ge=1024)
    """Maximum number of bytes of all requests in flight per process: their bodies, and the histories and files that
    they refer to. Further requests get a 503. During its translation, a request takes three to four times its bytes
    in memory."""
    owner_bytes_in_flight: int | None = Field(default=None, ge=0)
    """Maximum number of bytes of all requests in flight of one owner. Further requests get a 429, and background
    responses wait. Unset: half of `bytes_in_flight`, but at least `request_body_bytes`. 0: as many as
    `bytes_in_flight`. No effect with `owner.source: single`."""
    owner_bytes: int | None = Field(default=None, ge=1)
    """Maximum number of bytes of the stored responses, conversations and prompts of one owner. When the stored bytes
    reach the limit, a request that would store more gets a 429 before any model call. Responses that are already
    running are still stored. Unset: no limit."""

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.bytes_in_flight < self.request_body_bytes:
            raise ValueError(
                "bytes_in_flight must be at least request_body_bytes, because otherwise the largest allowed "
                "request does not fit"
            )
        if self.owner_bytes_in_flight and self.owner_bytes_in_flight < self.request_body_bytes:
            raise ValueError("owner_bytes_in_flight must be at least request_body_bytes, or 0")
        return self

    def share_of_requests(self, places: int) -> int:
        """Return the maximum number of requests in flight of one owner, when the process allows `places` requests in
        flight. 0 means no limit per owner."""
        return max(1, places // 2) if self.owner_requests is None else self.owner_requests

    @property
    def share_of_bytes(self) -> int:
        """The maximum number of bytes of all requests in flight of one owner. 0 means no limit per owner."""
        given = self.owner_bytes_in_flight
        return max(self.request_body_bytes, self.bytes_in_flight // 2) if given is None else given


class TimeoutSettings(Section):
    connect: float = Field(default=5.0, gt=0)
    """Seconds to connect to the upstream."""
    head: float = Field(default=600.0, gt=0)
    """Seconds to wait for the upstream's response head."""
    head_wait: float = Field(default=60.0, ge=0)
    """For mode `drive`: seconds that the sidecar waits for the upstream's response head before it sends its own
    response head to the client. Once the sidecar has sent its response head, it can report an error only as an event in
    the stream."""
    idle: float = Field(default=300.0, gt=0)
    """Seconds for which an upstream may send no byte in the middle of an answer. After this time the answer fails."""
    no_output: float = Field(default=900.0, gt=0)
    """Seconds for which an upstream may send data without output, such as comments and empty deltas. `timeouts.idle` is
    the limit for an upstream that sends nothing."""
    error_body: float = Field(default=10.0, gt=0)
    """Seconds to read the body of an upstream's error. After this time the sidecar uses the bytes that have arrived."""
    response: float = Field(default=3600.0, gt=0)
    """Seconds for one response with all its model calls and tools. A response that takes longer fails
    (`response_timeout`). For a background response the limit applies to each attempt, without the time in the
    queue."""
    keepalive: float = Field(default=15.0, gt=0)
    """Seconds without an event after which the sidecar sends a comment line to a streaming client, to keep the
    connection open."""
    request: float = Field(default=60.0, gt=0)
    """Seconds for a client to send its request body. For a file upload, the limit applies to the time between two
    chunks. Envoy applies the same limit to the request's head, and to the first bytes of a connection."""
    client_idle: float = Field(default=600.0, gt=0)
    """Seconds without a request after which Envoy closes a client's connection."""
    send: float = Field(default=600.0, gt=0)
    """Seconds in which a client of the HTTP server must read the bytes in the server's send buffer. Otherwise the
    server closes the connection. Envoy closes the connection of a client that reads nothing at all for this time (on
    Linux)."""
    save: float = Field(default=10.0, gt=0)
    """Seconds in which a write to the database must begin its commit. A write that takes longer is rolled back and
    fails."""
    settle: float = Field(default=30.0, gt=0)
    """Seconds in total to wait for a write whose commit has begun but does not finish. After this time the client gets
    an error. If the write takes effect later, the store undoes the write."""
    read: float = Field(default=10.0, gt=0)
    """Seconds for one read from a database, including the wait for other operations."""
    check: float = Field(default=10.0, ge=0)
    """Seconds in which an upstream must answer `GET /models` and accept its key, at the start of `up` or `serve`.
    Antiphon starts without waiting for the answer. If the upstream fails this check, Antiphon logs a warning. 0: no
    check."""
    hung: float = Field(default=30.0, ge=0)
    """Seconds in which a child process of `antiphon up` (a worker or Envoy) must answer the parent process. The parent
    process kills and replaces a child process that does not answer. 0: no check."""
    drain: float = Field(default=30.0, ge=0)
    """Seconds after SIGTERM in which requests in flight may finish. The seconds of `timeouts.notice` are part of this
    time. The process then cuts the remaining requests, stores their responses as failed, and exits with status 1. The
    process exits at most two seconds after the end of the drain. One second before the end of the drain, the process
    hands background responses over to other processes (see `background.on_restart`). Such responses do not count as
    cut."""
    notice: float | None = Field(default=None, ge=0)
    """Seconds after SIGTERM in which the process still serves new requests, while `/ready` and gRPC health already
    report that the process is not ready. In this time the load balancer notices the stop. Set this to one second more
    than the interval of the load balancer's health checks. Unset: 0 for `serve` and `up`, and 2 for `antiphon extproc`,
    because Envoy checks health every second. The value 2 falls to half of `drain` if that is less."""

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.notice and self.notice >= self.drain:
            raise ValueError(
                f"notice ({self.notice:g} s) must be less than drain ({self.drain:g} s), because the drain includes "
                "the notice. Otherwise requests in flight would be cut when the notice ends"
            )
        return self


class FetchSettings(Section):
    """Fetching files that requests name by `file_url`."""

    enabled: bool = True
    """Fetch files that requests name by `file_url`. If false, such a request gets a 400."""
    http: bool = False
    """Also allow `http://` URLs, without TLS."""
    ports: tuple[int, ...] = (80, 443)
    """Ports that a fetched URL may have."""
    allow_private: tuple[str, ...] = ()
    """Host names, addresses and networks (`10.1.0.0/16`) from which the sidecar may fetch although they are not public.
    For these hosts the sidecar also allows `http` and any port."""
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
    """Media types that the sidecar accepts for fetched files. `*` stands for any characters."""
    total_bytes: int = Field(default=50 * MIB, ge=1)
    """Maximum number of bytes of all files that one request fetches. A file that the request names twice counts
    twice."""
    seconds: float = Field(default=30.0, gt=0)
    """Seconds to fetch all files of one request by URL."""
    files: int = Field(default=20, ge=1)
    """Maximum number of files that one request may fetch."""
    redirects: int = Field(default=3, ge=0)
    """Maximum number of redirects that the sidecar follows for one file. Each new URL must pass the same checks as the
    first."""
    concurrent: int = Field(default=16, ge=1)
    """Maximum number of concurrent fetches per process."""
    ca_file: Path | None = None
    """PEM file with the certificate authorities that the sidecar trusts for servers of fetched files. Unset: the
    system's authorities."""


class CorsSettings(Section):
    """The web pages that may call the API from a browser over HTTP. For WebSockets, set `websocket.origins`."""

    origins: tuple[str, ...] = ()
    """Origins of web pages that may send requests and read the answers (`https://app.example`; `*`: all). Such pages
    need a token like any client, because cookies have no effect. Unset: browsers let no page of another origin read an
    answer."""

    @field_validator("origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, origin in enumerate(value, 1):
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
                raise ValueError(
                    f"entry {number} is not an origin; write for example https://app.example or http://localhost:3000"
                )
        return value


class WebSocketSettings(Section):
    """WebSocket connections on `/v1/responses`."""

    enabled: bool = True
    """Accept WebSocket connections. If false, an upgrade request gets a 426, after which clients use HTTP."""
    origins: tuple[str, ...] = ()
    """Origins of web pages that may connect (`https://app.example`; `*`: all). Clients that are not browsers may always
    connect, and so may pages of Antiphon's own host."""
    connections: int = Field(default=1_000, ge=1)
    """Maximum number of WebSocket connections per process. Further upgrade requests get a 503."""
    seconds: float = Field(default=3_600.0, gt=0)
    """Seconds after which the server closes a WebSocket connection. A response that is running at that time still
    finishes."""
    ping: float = Field(default=30.0, gt=0)
    """Seconds between pings on a WebSocket connection. A client that does not answer within half of this time counts as
    disconnected."""
    memory_bytes: int = Field(default=16 * MIB, ge=0)
    """Maximum number of bytes of responses with `store: false` that one connection keeps in memory, so that the client
    can continue them on the same connection."""
    total_bytes: int = Field(default=256 * MIB, ge=1024)
    """Maximum number of bytes of all WebSocket connections of one process: the responses kept in memory, and waiting
    requests. At the limit, the least recently used connections discard their responses, and their clients must send the
    whole input again. If the discarded responses do not free enough memory, a request gets a 503."""
    compression: bool = True
    """Compress WebSocket frames if the client offers the extension permessage-deflate."""


_MOST = 10**12


class QuotaLimits(Section):
    """The limits of one owner, key, team or model. A named owner, key or team inherits each unset limit from
    `each_owner`, `each_key` or `each_team`. `null` means no limit."""

    requests_per_minute: int | None = Field(default=None, ge=0, le=_MOST)
    """Maximum number of requests that begin within one minute, for example from 12:00:00 to 12:00:59."""
    tokens_per_minute: int | None = Field(default=None, ge=0, le=_MOST)
    """Maximum number of input and output tokens of all requests that begin within one minute, for example from 12:00:00
    to 12:00:59."""
    tokens_per_month: int | None = Field(default=None, ge=0, le=_MOST)
    """Maximum number of input and output tokens in one calendar month (UTC)."""
    cost_per_month: float | None = Field(default=None, ge=0, le=1e9)
    """Maximum cost of the model calls in one calendar month (UTC), in the currency of `prices`. Models without a price
    cost nothing."""
    parallel_requests: int | None = Field(default=None, ge=0, le=1_000_000)
    """Maximum number of requests that are in flight at one time, in all processes together. Background responses do not
    count toward this limit."""

    def over(self, each: QuotaLimits) -> QuotaLimits:
        """Return a copy of `each` in which the limits that are set in this object replace those of `each`."""
        return each.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})


class StorageLimits(QuotaLimits):
    """The limits of one owner or team, which also include limits of stored data."""

    stored_bytes: int | None = Field(default=None, ge=0, le=10**15)
    """Maximum number of bytes of the stored responses, conversations and prompts of the owner or team."""
    file_bytes: int | None = Field(default=None, ge=0, le=10**15)
    """Maximum number of bytes of the files of the owner or team. Each file counts as at least 4096 bytes."""
    vector_chunks: int | None = Field(default=None, ge=0, le=10**12)
    """Maximum number of chunks in the vector stores of the owner or team. Each vector store counts as one more chunk,
    and each of its files as at least one."""
    containers: int | None = Field(default=None, ge=0, le=10**9)
    """Maximum number of containers of `code_interpreter` that the owner or team has at one time."""


def _omits(named: Mapping[str, QuotaLimits], each: QuotaLimits, name: str) -> bool:
    every = each.model_dump().values()
    return bool(name and named) and name not in named and all(value is None for value in every)


class QuotaSettings(Section):
    """Limits on requests, tokens and cost. All processes that share a database share the counters. A request must stay
    within the limits of its client key, its owner, its team and its model."""

    each_owner: StorageLimits = StorageLimits()
    each_key: QuotaLimits = QuotaLimits()
    each_team: StorageLimits = StorageLimits()
    owners: dict[str, StorageLimits] = Field(default_factory=dict)
    """Limits of individual owners, by the owner's name or by the owner id in the database."""
    keys: dict[str, QuotaLimits] = Field(default_factory=dict)
    """Limits of individual managed keys, by the key's id (`key_…`)."""
    teams: dict[str, StorageLimits] = Field(default_factory=dict)
    """Limits of individual teams, by the team's name."""
    models: dict[str, QuotaLimits] = Field(default_factory=dict)
    """Limits of a model for all clients together, by the model's name or a glob (`qwen*`). An exact name has priority
    over a glob. If several globs match, the first one applies. All models of one glob share its limits. Upper and lower
    case are equal. A request counts for each model that it names."""
    shadow: bool = False
    """Serve the requests that the quotas would refuse, and only log and count these requests."""
    when_unavailable: Literal["allow", "refuse"] = "allow"
    """What happens to a request while the database with the quota counters fails. `allow`: Antiphon serves the request
    and counts it later. `refuse`: the request gets a 503."""
    expected_output_tokens: int = Field(default=500, ge=0, le=1_000_000)
    """Number of output tokens that the sidecar reserves for a request without `max_output_tokens`. After the first
    answers of a model, the process reserves the average number of output tokens of that model's answers."""
    warn_share: float = Field(default=0.8, gt=0, le=1)
    """Share of a limit at which the sidecar logs `quota_warning`, once per limit and period. A limit on parallel
    requests has no period, so each process logs `quota_warning` for it at most once in ten minutes."""

    @field_serializer("owners", "keys", "teams")
    def _set_limits(self, named: Mapping[str, QuotaLimits]) -> dict[str, dict[str, Any]]:
        """Return only the limits that the operator set. A limit with the value `null` counts as set."""
        return {
            name: {limit: getattr(limits, limit) for limit in sorted(limits.model_fields_set)}
            for name, limits in named.items()
        }

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if "" in self.models:
            raise ValueError("models: an entry has an empty name: use the model's name, or '*' for all models")
        return self

    def omits_team(self, team: str) -> bool:
        """Whether these settings limit other teams by name, but set no limit for `team`. The name may be misspelt."""
        return _omits(self.teams, self.each_team, team)

    def omits_owner(self, name: str) -> bool:
        """Whether these settings limit other owners by name, but set no limit for the named owner `name`. The name may
        be misspelt."""
        return f"n:{name}" not in self.owners and _omits(self.owners, self.each_owner, name)

    @property
    def in_force(self) -> bool:
        """Whether any limit is set, so that every request for a model must reach the sidecar."""
        every = (self.each_owner, self.each_key, self.each_team, *self.owners.values(), *self.keys.values())
        every = (*every, *self.teams.values(), *self.models.values())
        return any(value is not None for limits in every for value in limits.model_dump().values())
