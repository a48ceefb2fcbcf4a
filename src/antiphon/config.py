"""The settings: one typed model for every command.

Lives here: names, types, defaults, descriptions and the rules between settings, and how sources are merged
(flags over `ANTIPHON_*` environment variables over a YAML file over defaults). Not here: who uses them; only
`app.py` and the commands read settings, everything deeper gets plain values.

Invariant: an unknown key is an error in every source, and no secret is ever part of a rendering (`redacted`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from antiphon.errors import ConfigError

__all__ = [
    "AuthMode",
    "BackgroundSettings",
    "CodeInterpreterSettings",
    "ConnectorSettings",
    "ConversationSettings",
    "EmbeddingSettings",
    "FetchSettings",
    "FileSettings",
    "LimitSettings",
    "LogSettings",
    "McpSettings",
    "ModelSettings",
    "OwnerSettings",
    "RetentionSettings",
    "SealingSettings",
    "Settings",
    "SidecarSettings",
    "SidecarTlsSettings",
    "TimeoutSettings",
    "ToolSettings",
    "UpstreamSettings",
    "VectorStoreSettings",
    "WebSearchSettings",
    "WebSocketSettings",
    "load_settings",
    "parse_address",
]

_MIB = 1 << 20
_OF_THE_BODY = frozenset(
    {"connection", "content-encoding", "content-length", "content-type", "expect", "host", "te", "transfer-encoding"}
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


def _base_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be an http:// or https:// URL, for example http://127.0.0.1:11434/v1")
    if parts.username or parts.password:
        raise ValueError("must not hold credentials; use api_key")
    if parts.query or parts.fragment:
        raise ValueError("must not have a query or fragment")
    return value.rstrip("/")


class AuthMode(StrEnum):
    """Which credentials an upstream call carries."""

    INJECT = "inject"
    PASSTHROUGH = "passthrough"
    NONE = "none"


class UpstreamSettings(_Section):
    url: str = "http://127.0.0.1:11434/v1"
    """Base URL of the chat server, with its path prefix (`http://host:port/v1`, `https://host/api/v1`)."""
    auth: AuthMode | None = None
    """`inject` sends `api_key`, `passthrough` the client's Authorization, `none` neither. Unset: `inject` when there is
    a key, else `passthrough`."""
    api_key: SecretStr | None = None
    """The key sent with `auth: inject`, as a bearer token."""
    profile: str = "auto"
    """Which upstream profile describes the server's quirks; `auto` chooses by host name."""
    models: tuple[str, ...] = ()
    """When not empty: the only models served; all others are a 404 `model_not_found`."""
    host: str | None = None
    """The Host header (and SNI) towards the upstream; unset: the URL's host."""
    ca_file: Path | None = None
    """PEM file with the authorities trusted for a TLS upstream; unset: the system's."""
    header_allow: tuple[str, ...] = ()
    """Further client headers that may reach the upstream, in lower case."""
    path_allow: tuple[str, ...] = ()
    """Further paths below the base that Envoy lets through to the upstream (for example `/rerank`)."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        return _base_url(value)

    @field_validator("header_allow")
    @classmethod
    def _check_headers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.lower() for name in value)
        # The body is another one there: translated, and no longer compressed.
        if wrong := sorted(_OF_THE_BODY.intersection(names)):
            raise ValueError(f"{', '.join(wrong)} cannot be passed on: the upstream gets another body")
        if private := sorted(name for name in names if name.startswith("x-antiphon-")):
            raise ValueError(f"{', '.join(private)} is between Envoy and the sidecar and goes no further")
        return names

    @model_validator(mode="after")
    def _check_credentials(self) -> UpstreamSettings:
        if "authorization" in self.header_allow and self.auth_mode is not AuthMode.PASSTHROUGH:
            raise ValueError("header_allow names authorization: whether it goes along is what 'auth' says")
        return self

    @property
    def auth_mode(self) -> AuthMode:
        """The effective credential mode."""
        if self.auth is not None:
            return self.auth
        return AuthMode.INJECT if self.api_key is not None else AuthMode.PASSTHROUGH

    @property
    def tls(self) -> bool:
        """Whether the upstream is reached over TLS."""
        return urlsplit(self.url).scheme == "https"

    @property
    def address(self) -> tuple[str, int]:
        """Host name and port of the upstream."""
        parts = urlsplit(self.url)
        return str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def base_path(self) -> str:
        """The path prefix, without a slash at its end (`/v1`, `/api/v1`, or empty)."""
        return urlsplit(self.url).path.rstrip("/")

    @property
    def authority(self) -> str:
        """The Host header towards the upstream."""
        if self.host:
            return self.host
        return urlsplit(self.url).netloc


class ModelSettings(_Section):
    match: str
    """Which models: a name, or a pattern with `*`, `?`, `[…]` (case matters). The first entry that fits decides."""
    upstream: str = "default"
    """The upstream that serves them: a name in `upstreams`, or `default` for the section `upstream`."""
    mode: Literal["translate", "native", "disabled"] = "translate"
    """`translate` to Chat Completions, `native` for an upstream that speaks Responses itself (bytes pass untouched,
    nothing is stored here), `disabled` for models that are not to exist."""
    model: str | None = None
    """The model's name at the upstream; unset: the same. An alias, when `match` is a name of your own."""
    profile: str | None = None
    """The upstream profile for these models; unset: the upstream's."""
    context_tokens: int | None = Field(None, ge=256)
    """How many tokens of input the model takes; with it `truncation: auto` can drop the oldest turns."""

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if not self.match:
            raise ValueError("match is empty")
        if re.sub(r"\[!?\]?[^]]*\]", "", self.match).count("["):
            raise ValueError(f"match {self.match!r} has a '[' without its ']'; a '[' itself is written '[[]'")
        if self.mode == "native" and self.model is not None:
            raise ValueError("a native model keeps its name, since its requests pass untouched: leave 'model' out")
        return self


class OwnerSettings(_Section):
    source: Literal["bearer", "header", "single"] = "bearer"
    """What tells owners apart: a keyed hash of the bearer token, a trusted header, or nothing (one owner)."""
    header: str = "x-antiphon-owner"
    """The trusted header for `source: header`; Envoy strips a client's copy, an authenticating filter sets it."""
    key: SecretStr | None = None
    """Key of the hash for `source: bearer`; unset: created in the data folder (mode 0600), shared by all workers."""
    api_keys: tuple[SecretStr, ...] = ()
    """The keys that clients may present as bearer token, at least 16 characters each, or `sha256:` and the hexadecimal
    digest of one, so that the settings hold no key. Any other token, or none, is a 401. Unset: every token is taken."""

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for number, key in enumerate(value):
            text = key.get_secret_value()
            if text[:7].lower() == "sha256:":
                if not re.fullmatch(r"sha256:[0-9a-f]{64}", text):
                    raise ValueError(f"api_keys[{number}]: 64 hexadecimal digits in lower case follow 'sha256:'")
            elif not re.fullmatch(r"[!-+\--~]{16,}", text):
                raise ValueError(f"api_keys[{number}]: a key is at least 16 ASCII characters, no blank and no comma")
        return value

    @field_validator("header")
    @classmethod
    def _lower(cls, value: str) -> str:
        return value.lower()


class SealingSettings(_Section):
    keys: tuple[SecretStr, ...] = ()
    """Keys of what clients carry for us encrypted (reasoning with `store: false`), at least 16 characters each. The
    first seals, all open: to rotate, put the new one first on every process, and drop the old one when no client holds
    its texts any more. Unset: one key made in the data folder (mode 0600), shared by all workers."""

    @field_validator("keys")
    @classmethod
    def _long_enough(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value()) < 16 for key in value):
            raise ValueError("every key needs at least 16 characters")
        return value


class LimitSettings(_Section):
    request_body_bytes: int = Field(64 * _MIB, ge=1024)
    """Largest request body, as it comes and (a compressed one) decompressed; above it the answer is a 413, during the
    upload."""
    upstream_body_bytes: int = Field(64 * _MIB, ge=1024)
    """Largest upstream JSON answer, and the most text one response may grow to."""
    upstream_error_bytes: int = Field(256 * 1024, ge=1024)
    """How much of an upstream's error body is read."""
    sse_event_bytes: int = Field(8 * _MIB, ge=1024)
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


class FetchSettings(_Section):
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
    total_bytes: int = Field(50 * _MIB, ge=1)
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


class FileSettings(_Section):
    """Files that clients upload (`/v1/files`). Their contents lie in the data folder, under `files/`."""

    enabled: bool = True
    """Take files; off: their paths do not exist, and a `file_id` in a request is a 400."""
    most_bytes: int = Field(512 * _MIB, ge=1)
    """Largest file."""
    owner_bytes: int | None = Field(None, ge=1)
    """The most that all files of one owner may take together, each counted as 4096 bytes at least; unset: no limit."""
    input_bytes: int = Field(50 * _MIB, ge=1)
    """Most bytes of all files that one request brings to the model by `file_id`."""
    sweep: float = Field(3_600.0, gt=0)
    """Seconds between two searches for files that expired, and for what was left of uploads that were broken off; the
    first is made at the start."""


class VectorStoreSettings(_Section):
    """Vector stores: files that are cut into chunks and found by their words, and by their meaning where there is an
    embeddings server. They need uploaded files, so `files.enabled`."""

    enabled: bool = True
    """Have vector stores; off: their paths do not exist."""
    ingest: int = Field(2, ge=0)
    """Files that one process reads at once; 0: it leaves that to others."""
    file_seconds: float = Field(60.0, gt=0)
    """Seconds of processor time for reading one file; whatever takes longer has failed."""
    file_memory_bytes: int = Field(1024 * _MIB, ge=256 * _MIB)
    """Memory of the process that reads files."""
    text_bytes: int = Field(64 * _MIB, ge=1024)
    """Longest text of one file."""
    tokens: int = Field(5_000_000, ge=1_000)
    """Most tokens of one file."""
    matrix_bytes: int = Field(1024 * _MIB, ge=_MIB)
    """Memory for vectors; 100,000 chunks of 384 numbers take 150 MiB. The stores that were not searched for longest are
    read from the disk again."""
    lease: float = Field(60.0, gt=1)
    """Seconds after which a file is taken up by another process when its own is gone."""
    rewrite_model: str | None = None
    """The model that rewrites queries when a search asks for it; unset: such a search is served without."""
    rewrite_seconds: float = Field(10.0, gt=0)
    """How long a search waits for that."""


class EmbeddingSettings(_Section):
    """The server that makes vectors of texts, by OpenAI's `POST /embeddings`. Without one, search goes by words."""

    url: str | None = None
    """Base URL with its path prefix (`http://host:port/v1`)."""
    api_key: SecretStr | None = None
    """The key, sent as a bearer token."""
    model: str = "text-embedding-3-small"
    """The model. Chunks that another model made vectors of are found by their words until they are ingested again."""
    dimensions: int | None = Field(None, ge=1)
    """Numbers per vector, for models that can shorten them."""
    batch: int = Field(64, ge=1, le=2048)
    """Most texts in one call."""
    concurrent: int = Field(4, ge=1)
    """Most calls at once per process."""
    seconds: float = Field(60.0, gt=0)
    """How long one call may take."""

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        return None if value is None else _base_url(value)


class WebSocketSettings(_Section):
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
    memory_bytes: int = Field(16 * _MIB, ge=0)
    """How much a connection remembers of responses with `store: false`, so that they can be continued on it."""
    compression: bool = True
    """Compress frames (permessage-deflate) where the client offers it."""


class WebSearchSettings(_Section):
    """The tool `web_search`."""

    provider: Literal["none", "searxng", "brave", "tavily"] = "none"
    """Who searches; none: the tool is left out of requests, and named in `antiphon-ignored`. A SearXNG of your own
    needs `json` among its `search.formats`."""
    url: str | None = None
    """Base URL of the service; needed for searxng, else the service's own."""
    api_key: SecretStr | None = None
    """Its key (brave, tavily)."""
    seconds: float = Field(15.0, gt=0)
    """How long one search may take."""
    pages: bool = True
    """Let the model open pages too. They are fetched like `file_url`s: from public addresses, and what
    `fetch.allow_private` names."""
    page_bytes: int = Field(8 * _MIB, ge=1024)
    """Largest page."""

    @model_validator(mode="after")
    def _check(self) -> WebSearchSettings:
        if self.provider == "searxng" and not self.url:
            raise ValueError("searxng needs 'url', the address of your instance")
        if self.provider in ("brave", "tavily") and self.api_key is None:
            raise ValueError(f"{self.provider} needs 'api_key'")
        return self


class ConnectorSettings(_Section):
    """An MCP server that requests name by `connector_id`."""

    url: str
    """Where it is; unlike a client's `server_url` it may be private, and plain http."""
    headers: dict[str, SecretStr] = {}
    """What opens it; a request's own headers and `authorization` go before them."""


class McpSettings(_Section):
    """The tool `mcp`: servers of the Model Context Protocol."""

    enabled: bool = True
    """Let requests use MCP servers; off, or without the extra `mcp`: such a request is a 400."""
    allow: tuple[str, ...] = ()
    """Servers that requests may name: hosts (`mcp.example.com`, `*.example.com`) and beginnings of URLs. Unset: every
    public server with `owner.source: single`, none otherwise. Private ones must be in `fetch.allow_private` too."""
    connectors: dict[str, ConnectorSettings] = {}
    """Servers of the operator's, by the name that requests use as `connector_id`."""
    connect: float = Field(15.0, gt=0)
    """Seconds to connect to a server and be greeted."""
    idle: float = Field(60.0, gt=0)
    """Seconds after its last use that a connection is kept for the same response."""
    list_seconds: float = Field(300.0, ge=0)
    """How long a server's list of tools is remembered."""
    tools: int = Field(256, ge=1)
    """Most tools of one server."""
    answer_bytes: int = Field(8 * _MIB, ge=1024)
    """Largest answer of a server."""


class CodeInterpreterSettings(_Section):
    """The tool `code_interpreter`: Python that the model writes, in a sandbox."""

    sandbox: Literal["none", "local"] = "none"
    """Where code runs; none: a request for the tool is a 400. local: in a process of this machine without network,
    files or rights, which needs Linux with Landlock. It is tried out at every start; where it does not hold code in,
    that is logged, and the tool stays off."""
    python: str = ""
    """The Python that runs the code, for example of a virtual environment with the libraries that models like (numpy,
    pandas, matplotlib); empty: the one that Antiphon runs with."""
    seconds: float = Field(30.0, gt=0)
    """How long one piece of code may take; less than `tools.seconds`."""
    memory: int = Field(1 << 30, ge=128 * _MIB)
    """Bytes of memory that a container gets, and the most that `memory_limit` may ask for (1g is always understood)."""
    disk_bytes: int = Field(512 * _MIB, ge=_MIB)
    """All files of a container together."""
    output_bytes: int = Field(64 * 1024, ge=1024)
    """What one piece of code may print; the middle of more is left out."""
    machines: int = Field(8, ge=1)
    """Interpreters that live at once; when there are more containers, those that were not used for longest lose their
    variables, never their files."""
    idle: float = Field(1_200.0, ge=60)
    """Seconds after its last use that a container is deleted, unless its request says otherwise."""
    per_owner: int = Field(100, ge=1)
    """Most containers of one owner."""
    sweep: float = Field(60.0, gt=0)
    """Seconds between two looks for containers that have expired."""


class RetentionSettings(_Section):
    """How long things are kept that nobody deletes."""

    responses: float | None = Field(None, gt=0)
    """Seconds after a chain's latest response, when the whole chain goes; unset: for ever."""
    conversations: float | None = Field(None, gt=0)
    """Seconds after a conversation's last change; unset: for ever. Responses made in it stay."""
    events: float | None = Field(86_400.0, gt=0)
    """Seconds after which the stream of a background response cannot be resumed any more; the response stays."""
    sweep: float = Field(600.0, gt=0)
    """Seconds between two searches for what is too old."""


class ToolSettings(_Section):
    """Tools that run here (file search and the like), between two turns of the model."""

    seconds: float = Field(60.0, gt=0)
    """How long one call may take; after that it has failed, and the model is told so."""
    concurrent: int = Field(32, ge=1)
    """Most calls at once per process; others wait."""
    output_chars: int = Field(100_000, ge=100)
    """How much of one call's output the model gets to read; the rest is cut off, saying so."""
    calls: int = Field(128, ge=1)
    """Most calls in one response; a request's `max_tool_calls` can only be less."""
    turns: int = Field(32, ge=1)
    """Most model calls in one response; in the last one the model must answer."""


class BackgroundSettings(_Section):
    """Responses with `background: true`."""

    workers: int = Field(8, ge=0)
    """How many run at once in each process; 0: this process runs none, it only queues them for others."""
    per_owner: int = Field(100, ge=1)
    """Most unfinished ones of one owner; above it the answer is a 429."""
    on_restart: Literal["retry", "fail"] = "retry"
    """What becomes of one whose process died or was stopped: `retry` runs it again from its beginning, `fail` ends it
    as failed, saying so."""
    attempts: int = Field(3, ge=1)
    """With `on_restart: retry`: after how many processes died of it (or with it) it is failed all the same."""
    lease: float = Field(15.0, ge=1)
    """Seconds after which a process that was not heard of counts as dead, and others take its work."""
    patience: float = Field(30.0, ge=0)
    """Seconds for which an upstream that cannot be reached is tried again."""


class ConversationSettings(_Section):
    """Conversations."""

    create_unknown: bool = False
    """Make a conversation when a response names one that does not exist, so that clients may choose the ids; off: such
    a request is a 400."""
    lease: float = Field(30.0, ge=1)
    """Seconds after which the conversation of a response whose process died can be used again."""


class TimeoutSettings(_Section):
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


class LogSettings(_Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level written."""
    format: Literal["auto", "json", "console"] = "auto"
    """`json` lines, readable `console` lines, or `auto`: console on a terminal, else JSON."""


class SidecarTlsSettings(_Section):
    cert: Path | None = None
    """PEM file with the certificate (and its chain) of the sidecar's TCP ports. Unset: no TLS."""
    key: Path | None = None
    """PEM file with its key, not encrypted."""
    client_ca: Path | None = None
    """PEM file with authorities: only clients (Envoy) with a certificate of theirs are let in. Unset: the secret alone
    decides."""
    ca: Path | None = None
    """Envoy's side: PEM file with the authorities it trusts for the sidecar's certificate; unset: the system's."""
    envoy_cert: Path | None = None
    """Envoy's side: PEM file with the certificate it presents, where `client_ca` asks for one."""
    envoy_key: Path | None = None
    """Envoy's side: PEM file with that certificate's key."""

    @model_validator(mode="after")
    def _check_pairs(self) -> SidecarTlsSettings:
        for one, other in (("cert", "key"), ("envoy_cert", "envoy_key")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"sidecar.tls.{one} and sidecar.tls.{other} belong together")
        if self.cert is None and (self.client_ca or self.ca or self.envoy_cert):
            raise ValueError("sidecar.tls.cert is missing: without it there is no TLS")
        return self


class SidecarSettings(_Section):
    grpc: str = "unix:{data}/sidecar-0.grpc.sock"
    """Where the ext_proc service listens: `unix:PATH` or `HOST:PORT`. `{data}` is the data folder."""
    http: str = "unix:{data}/sidecar-0.http.sock"
    """Where the sidecar's HTTP port listens (health, local routes, metrics)."""
    transport: Literal["auto", "grpcio", "http2"] = "auto"
    """The gRPC server of the ext_proc service: `grpcio` (gRPC's own), `http2` (several times faster; needs the extra
    `fast`), or `auto`: `http2` when it is installed."""
    secret: SecretStr | None = None
    """Needed when a door listens on TCP: the shared secret that the Envoy configuration adds and strips."""
    socket_mode: int = Field(0o600, ge=0, le=0o777)
    """File mode of Unix sockets, octal when it begins with 0 (`0600`)."""
    tls: SidecarTlsSettings = SidecarTlsSettings()
    """TLS of the sidecar's TCP ports. Unix sockets need none."""
    model_door: str = "unix:{data}/model-door.sock"
    """Envoy's listener for the sidecar's own model calls: `unix:PATH` or `HOST:PORT`."""

    @field_validator("socket_mode", mode="before")
    @classmethod
    def _octal(cls, value: Any) -> Any:
        # In the environment everything is text; YAML has read its octal numbers already.
        return int(value, 8) if isinstance(value, str) and re.fullmatch(r"0o?[0-7]+", value) else value


class EnvoySettings(_Section):
    binary: Path | None = None
    """Path of the Envoy binary; unset: the `envoy` extra, then PATH."""
    concurrency: int | None = Field(None, ge=1)
    """Envoy worker threads; unset: Envoy's default (one per core)."""
    log_level: Literal["trace", "debug", "info", "warning", "error", "critical", "off"] = "warning"
    """Envoy's own log level."""
    access_log: bool = False
    """Write Envoy's access log (with token counts) to standard output."""
    admin: str = "unix:{data}/envoy-admin.sock"
    """Envoy's admin address: `unix:PATH` or `HOST:PORT`."""
    retries: int = Field(2, ge=0)
    """How often Envoy retries a model call that failed before the upstream answered."""


class Settings(_Section):
    listen: str = "127.0.0.1:8080"
    """Where clients connect, `HOST:PORT` (port 0: any free port)."""
    door: Literal["envoy", "http"] = "envoy"
    """Which door `antiphon up` opens."""
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    """Sidecar (or HTTP door) processes."""
    data: Path = Path(".antiphon")
    """Data folder: databases, keys, sockets."""
    mode: Literal["auto", "relay", "drive"] = "auto"
    """Who makes the first model call in the envoy door: Envoy (`relay`), the sidecar through the model door (`drive`),
    or as fits (`auto`)."""
    dialect: Literal["openai", "openresponses"] = "openai"
    """Names of the reasoning events; a request can choose with the header `antiphon-dialect`."""
    reasoning_as: Literal["auto", "content", "summary"] = "auto"
    """Where a backend's reasoning text goes: `auto` is summary when `reasoning.summary` was asked for, else content."""
    upstream: UpstreamSettings = UpstreamSettings()
    upstreams: dict[str, UpstreamSettings] = {}
    """Further upstreams by name, each with the settings of `upstream` (but `path_allow`); `models` says what goes to
    them. Envoy reads the key of the upstream `a-b` from `ANTIPHON_UPSTREAM_KEY_A_B`."""
    models: tuple[ModelSettings, ...] = ()
    """Where models go, first match first. Models that no entry fits go to `upstream`; when `upstreams` are given and
    `upstream` is not, they do not exist."""
    owner: OwnerSettings = OwnerSettings()
    sealing: SealingSettings = SealingSettings()
    limits: LimitSettings = LimitSettings()
    fetch: FetchSettings = FetchSettings()
    background: BackgroundSettings = BackgroundSettings()
    tools: ToolSettings = ToolSettings()
    web_search: WebSearchSettings = WebSearchSettings()
    mcp: McpSettings = McpSettings()
    code_interpreter: CodeInterpreterSettings = CodeInterpreterSettings()
    retention: RetentionSettings = RetentionSettings()
    files: FileSettings = FileSettings()
    vector_stores: VectorStoreSettings = VectorStoreSettings()
    embeddings: EmbeddingSettings = EmbeddingSettings()
    websocket: WebSocketSettings = WebSocketSettings()
    conversations: ConversationSettings = ConversationSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    log: LogSettings = LogSettings()
    sidecar: SidecarSettings = SidecarSettings()
    envoy: EnvoySettings = EnvoySettings()

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        parse_address(value)
        return value

    @model_validator(mode="after")
    def _check_rules(self) -> Settings:
        if self.upstream.auth is AuthMode.INJECT and self.upstream.api_key is None:
            raise ValueError("upstream.auth is inject, but upstream.api_key is not set")
        for name in ("grpc", "http", "model_door"):
            address = getattr(self.sidecar, name)
            if parse_address(address)[0] != "unix" and self.sidecar.secret is None:
                raise ValueError(f"sidecar.{name} listens on TCP ({address}): set sidecar.secret, or use unix:PATH")
        return self

    @model_validator(mode="after")
    def _check_keys(self) -> Settings:
        if not self.owner.api_keys:
            return self
        for name, upstream in self.every_upstream.items():
            if upstream.auth_mode is AuthMode.PASSTHROUGH:
                section = "upstream" if name == "default" else f"upstreams.{name}"
                raise ValueError(
                    "owner.api_keys: clients' keys are for this gateway and would reach the upstream; set "
                    f"{section}.auth to inject (with an api_key) or none"
                )
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Settings:
        for name, upstream in self.upstreams.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", name) or name == "default":
                raise ValueError(f"upstreams: {name!r} is no name: use 1 to 32 of a-z, 0-9, '-', and not 'default'")
            if upstream.auth is AuthMode.INJECT and upstream.api_key is None:
                raise ValueError(f"upstreams.{name}.auth is inject, but its api_key is not set")
            if upstream.path_allow:
                raise ValueError(f"upstreams.{name}.path_allow: paths beside the API are those of 'upstream' alone")
        seen: set[str] = set()
        for number, model in enumerate(self.models):
            if model.mode != "disabled" and model.upstream not in self.every_upstream:
                known = ", ".join(self.every_upstream)
                raise ValueError(f"models[{number}].upstream: {model.upstream!r} is unknown; choose of {known}")
            if model.match in seen:
                raise ValueError(f"models[{number}].match: {model.match!r} is there twice; the first would decide")
            seen.add(model.match)
        return self

    @property
    def has_default(self) -> bool:
        """Whether the section `upstream` is one of the upstreams: it was given, or there are no others."""
        return "upstream" in self.model_fields_set or not self.upstreams

    @property
    def every_upstream(self) -> dict[str, UpstreamSettings]:
        """All upstreams by name, `default` first."""
        return {"default": self.upstream, **self.upstreams} if self.has_default else dict(self.upstreams)

    @property
    def decides_chat(self) -> bool:
        """Whether the sidecar passes Chat Completions on: a model's name or a client's key decides about them."""
        return bool(self.models or self.upstreams or self.upstream.models or self.owner.api_keys)

    @property
    def native_of_ids(self) -> str | None:
        """The upstream whose response ids are served here too: the one native upstream, when there is one owner."""
        native = {model.upstream for model in self.models if model.mode == "native"}
        return native.pop() if self.owner.source == "single" and len(native) == 1 else None

    def place(self, address: str) -> str:
        """An address with `{data}` filled in."""
        return address.replace("{data}", str(self.data.absolute()))

    def sidecar_secret(self) -> str | None:
        """The shared secret of the sidecar's TCP ports, in clear."""
        return self.sidecar.secret.get_secret_value() if self.sidecar.secret is not None else None

    def redacted(self) -> dict[str, Any]:
        """The effective settings as plain values, secrets replaced."""
        return self.model_dump(mode="json")


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` as (host, port); `unix:PATH` as (`unix`, 0). Raises ValueError with a hint."""
    if text.startswith("unix:"):
        return "unix", 0
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT (or unix:PATH)")
    return host.strip("[]") or "0.0.0.0", int(port)


def load_settings(
    flags: dict[str, Any] | None = None,
    environ: dict[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Merge flags over environment over file over defaults; raises `ConfigError` naming each wrong setting.

    `flags` is a nested mapping of the given flags only. Environment names are `ANTIPHON_` and the path with two
    underscores between sections (`ANTIPHON_UPSTREAM__URL`, `ANTIPHON_LISTEN`).
    """
    from antiphon.settings_sources import merge, read_environment, read_file

    values = read_file(file, Settings) if file is not None else {}
    values = merge(values, read_environment(environ or {}, Settings))
    values = merge(values, flags or {})
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_input=False, include_url=False, include_context=False):
            where = ".".join(str(part) for part in problem["loc"])
            lines.append(f"{where or 'settings'}: {problem['msg'].removeprefix('Value error, ')}")
        raise ConfigError("; ".join(lines)) from None
