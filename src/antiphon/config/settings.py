"""Defines the root of all settings, which every command uses.

This module defines the root with its sections, and checks the rules between sections. It also merges the sources of
settings: flags override `ANTIPHON_*` environment variables, variables override a YAML file, and the file overrides
defaults. `sources.py` reads each source, and other modules of this package define the sections. Only `app/` and the
commands use the root. `app/` and the commands pass single sections to all other code.

Invariant: an unknown setting is an error in every source, and the result of `redacted` never contains a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, SecretStr, ValidationError, model_validator

from antiphon.config.limits import (
    CorsSettings,
    FetchSettings,
    LimitSettings,
    QuotaSettings,
    TimeoutSettings,
    WebSocketSettings,
)
from antiphon.config.operators import AdminSettings, ConsoleSettings
from antiphon.config.owners import OwnerSettings, SealingSettings, key_digest
from antiphon.config.problems import lines_of, raise_wrong
from antiphon.config.processes import (
    EnvoySettings,
    LogSettings,
    MetricsSettings,
    ReloadSettings,
    SidecarSettings,
    TracingSettings,
)
from antiphon.config.section import Address, Section, parse_address
from antiphon.config.sources import merge, read_environment, read_file, read_other_names, without_unknown
from antiphon.config.state import (
    BackgroundSettings,
    BlobSettings,
    ConversationSettings,
    EmbeddingSettings,
    FileSettings,
    IdempotencySettings,
    RetentionSettings,
    StateSettings,
    VectorStoreSettings,
)
from antiphon.config.tools import CodeInterpreterSettings, McpSettings, ToolSettings, WebSearchSettings
from antiphon.config.upstreams import AuthMode, ModelSettings, PriceSettings, UpstreamGroup, UpstreamSettings
from antiphon.config.urls import read_state_url, shown_value, url_secrets

_SAME_IN_A_GROUP = ("profile_flags", "models", "header_allow", "field_allow")


class Settings(Section):
    listen: Address = "127.0.0.1:8080"
    """Address for clients, `HOST:PORT` (port 0: any free port)."""
    door: Literal["envoy", "http"] = "envoy"
    """The server to which clients of `antiphon up` connect: Envoy with sidecars (`envoy`), or Antiphon's own HTTP
    server (`http`)."""
    workers: int = Field(default=1, ge=1, le=256)
    """Number of worker processes (sidecars or HTTP servers)."""
    data: Path = Path(".antiphon")
    """Folder for databases (unless `state.url` sets another location), contents of files, keys and sockets. Unset:
    `.antiphon` if that folder exists in the current folder, or if the current folder is a checkout of Antiphon.
    Otherwise `$XDG_DATA_HOME/antiphon`, or `~/.local/share/antiphon` if that variable is unset."""
    mode: Literal["auto", "relay", "drive"] = "auto"
    """The process that makes the first model call of a response with `door: envoy`: Envoy (`relay`), or the sidecar
    through Envoy's model door (`drive`). `auto` chooses for each request."""
    dialect: Literal["openai", "openresponses"] = "openai"
    """Whose names the events of reasoning have: OpenAI's, or those of the Open Responses specification. A request can
    override this setting with the header `antiphon-dialect`."""
    reasoning_as: Literal["auto", "content", "summary"] = "auto"
    """The field of a reasoning item into which Antiphon puts an upstream's reasoning text: `content` or `summary`.
    `auto` chooses `summary` if the request sets `reasoning.summary`, else `content`."""
    strict: bool = False
    """Answer 400 to a request with an unknown item type, part type, value or tool member. Also answer 400 to a schema,
    a grammar or a duplicate item that OpenAI refuses. If false, Antiphon ignores unknown parts and lists them in
    `antiphon-ignored` and in the log."""
    upstream: UpstreamSettings = UpstreamSettings()
    upstreams: dict[str, UpstreamSettings] = Field(default_factory=dict)
    """Further upstreams by name, each with the settings of `upstream` except `path_allow`. The setting `models` decides
    which requests go to these upstreams. Envoy reads an upstream's key from an environment variable: for an upstream
    named `a-b`, from `ANTIPHON_UPSTREAM_KEY_A_B`."""
    models: tuple[ModelSettings, ...] = ()
    """Rules that map models to upstreams. The first entry that matches a model applies. A request for a model without
    an entry goes to `upstream`. If `upstreams` is set and `upstream` is not, such a request gets a 404."""
    prices: tuple[PriceSettings, ...] = ()
    """Prices of models. The first entry that matches a model applies. Each entry has `model` (a name or a pattern),
    `input`, `output` and optionally `cached_input`: the prices of a million tokens. All prices must be in the same
    currency. `antiphon admin usage` shows the costs."""
    state: StateSettings = StateSettings()
    owner: OwnerSettings = OwnerSettings()
    admin: AdminSettings = AdminSettings()
    sealing: SealingSettings = SealingSettings()
    limits: LimitSettings = LimitSettings()
    quotas: QuotaSettings = QuotaSettings()
    fetch: FetchSettings = FetchSettings()
    background: BackgroundSettings = BackgroundSettings()
    tools: ToolSettings = ToolSettings()
    web_search: WebSearchSettings = WebSearchSettings()
    mcp: McpSettings = McpSettings()
    code_interpreter: CodeInterpreterSettings = CodeInterpreterSettings()
    idempotency: IdempotencySettings = IdempotencySettings()
    retention: RetentionSettings = RetentionSettings()
    files: FileSettings = FileSettings()
    blobs: BlobSettings = BlobSettings()
    vector_stores: VectorStoreSettings = VectorStoreSettings()
    embeddings: EmbeddingSettings = EmbeddingSettings()
    websocket: WebSocketSettings = WebSocketSettings()
    cors: CorsSettings = CorsSettings()
    conversations: ConversationSettings = ConversationSettings()
    timeouts: TimeoutSettings = TimeoutSettings()
    reload: ReloadSettings = ReloadSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    sidecar: SidecarSettings = SidecarSettings()
    envoy: EnvoySettings = EnvoySettings()
    console: ConsoleSettings = ConsoleSettings()
    extensions: dict[str, object] = Field(default_factory=dict, repr=False)
    """Settings of tools from other packages, by the tool's type. Each package documents its settings. The environment
    variable for the setting `sides` of the tool `dice` is `ANTIPHON_EXTENSIONS__DICE__SIDES`."""

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        wrong = [
            *self._wrong_rules(),
            *self._wrong_console(),
            *self._wrong_picker(),
            *self._wrong_state(),
            *self._wrong_keys(),
            *self._wrong_upstreams(),
            *self._wrong_models(),
        ]
        if wrong:
            raise ValueError("\n".join(wrong))
        return self

    def _wrong_rules(self) -> Iterator[str]:
        if self.upstream.auth is AuthMode.INJECT and self.upstream.api_key is None:
            yield "upstream.auth is inject, but upstream.api_key is not set"
        for name in ("grpc", "http", "model_door"):
            address = getattr(self.sidecar, name)
            try:
                host, _ = parse_address(address)
            except ValueError as error:
                yield f"sidecar.{name}: {error}"
                continue
            if host != "unix" and self.sidecar.secret is None:
                yield f"sidecar.{name} listens on TCP ({address}): set sidecar.secret, or use unix:PATH"

    def _wrong_console(self) -> Iterator[str]:
        port = parse_address(self.console.listen)[1]
        if self.console.enabled and port and self.console.listen == self.listen:
            yield (
                f"console.listen has the same address as listen ({self.listen}). Choose another port for "
                "console.listen. (To serve the console on the listener for clients too, set "
                "console.on_client_listener)"
            )

    def _wrong_picker(self) -> Iterator[str]:
        if self.envoy.endpoint_picker.address is None:
            return
        if not self.has_default:
            yield (
                "envoy.endpoint_picker chooses the servers of 'upstream', but only 'upstreams' are set: set "
                "upstream.url, or remove envoy.endpoint_picker"
            )
        if self.door == "http":
            yield "envoy.endpoint_picker works only with Envoy: set door to envoy, or remove envoy.endpoint_picker"

    def _wrong_state(self) -> Iterator[str]:
        kind = self.state.place.kind
        direct = self.state.direct_url
        if direct is not None and (kind, read_state_url(direct.get_secret_value()).kind) != ("postgresql",) * 2:
            yield (
                "state.direct_url works only with PostgreSQL: state.direct_url and state.url must both be "
                "postgresql:// URLs"
            )
        if kind == "memory" and self.owner.managed_keys:
            yield (
                "owner.managed_keys: with state.url 'memory:', no command can reach the keys; set another state.url, "
                "or "
                "owner.keys"
            )
        if kind == "memory" and self.workers > 1:
            yield "workers: with state.url 'memory:', every process would have separate state; set workers to 1"
        if kind == "postgresql":
            # Keys created in data folders would differ between machines.
            if self.owner.source == "bearer" and self.owner.key is None:
                yield (
                    "owner.key is not set: set the same key on all machines that share the database. For data from a "
                    "data folder, use the content of the folder's file owner.key"
                )
            if not self.sealing.keys:
                yield (
                    "sealing.keys is not set: set the same keys on all machines that share the database. For data "
                    "from a data folder, use the content of the folder's file sealing.key"
                )
            if self.serves_admin and self.admin.token is None:
                yield (
                    "admin.token is not set: set the same token on all machines that share the database. 'openssl "
                    "rand -hex 32' generates a token"
                )

    def _wrong_keys(self) -> Iterator[str]:
        clients = [*self.owner.api_keys, *(key for one in (self.owner.keys or {}).values() for key in one.keys)]
        if self.admin.token is not None and key_digest(self.admin.token) in map(key_digest, clients):
            yield "admin.token is also a client's key in 'owner': each needs a separate token"
        given = {"api_keys": self.owner.api_keys, "managed_keys": self.owner.managed_keys}
        setting, what = (
            next((name for name, value in given.items() if value), "keys"),
            "clients' keys are only for this gateway, but the upstream would get them",
        )
        if self.owner.source == "jwt":
            setting, what = "source", "clients' tokens are only for this gateway, but the upstream would get them"
        for name, upstream in self.every_upstream.items() if self.owner.has_client_keys else ():
            if upstream.auth_mode is AuthMode.PASSTHROUGH:
                section = "upstream" if name == "default" else f"upstreams.{name}"
                yield (f"owner.{setting}: {what}; set {section}.auth to inject (with an api_key) or none")

    def _wrong_upstreams(self) -> Iterator[str]:
        for name, upstream in self.upstreams.items():
            if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,31}", name) or name == "default":
                yield f"upstreams: {name!r} is not a valid name: use 1 to 32 of a-z, 0-9, '-', and not 'default'"
            if upstream.auth is AuthMode.INJECT and upstream.api_key is None:
                yield f"upstreams.{name}.auth is inject, but its api_key is not set"
            if upstream.path_allow:
                yield f"upstreams.{name}.path_allow: only the section 'upstream' can have this setting"

    def _wrong_models(self) -> Iterator[str]:
        seen: set[str] = set()
        for number, model in enumerate(self.models):
            unknown = [name for name in model.upstreams if name not in self.every_upstream]
            if model.mode != "disabled" and unknown:
                known = ", ".join(self.every_upstream)
                yield f"models[{number}].upstream: {', '.join(map(repr, unknown))} is unknown; choose one of {known}"
            elif model.mode != "disabled" and model.group is not None:
                yield from (f"models[{number}].upstream: {line}" for line in self._wrong_group(model.group))
            if model.match in seen:
                yield (
                    f"models[{number}].match: {model.match!r} is in two entries: remove the second entry, which has "
                    "no effect"
                )
            seen.add(model.match)

    def _wrong_group(self, group: UpstreamGroup) -> Iterator[str]:
        """Yield an error message for each setting that differs between the upstreams of a group but must be equal. The
        sidecar encodes a request before it knows which upstream gets the request."""
        first = self.every_upstream[group.names[0]]
        for name in group.names[1:]:
            other = self.every_upstream[name]
            for name_of in _SAME_IN_A_GROUP:
                if _in_any_order(getattr(first, name_of)) != _in_any_order(getattr(other, name_of)):
                    yield (
                        f"{group.names[0]} and {name} differ in '{name_of}'. All upstreams of a list need the same "
                        "value, because Antiphon encodes a request before it chooses the upstream"
                    )

    @property
    def groups(self) -> dict[str, UpstreamGroup]:
        """The groups of upstreams that serve the same models, by the name of the group."""
        found = (model.group for model in self.models if model.mode != "disabled")
        return {group.name: group for group in found if group is not None}

    @property
    def has_default(self) -> bool:
        """Whether the section `upstream` counts as an upstream: it is set explicitly, or `upstreams` is empty."""
        return "upstream" in self.model_fields_set or not self.upstreams

    @property
    def every_upstream(self) -> dict[str, UpstreamSettings]:
        """All upstreams by name, `default` first."""
        return {"default": self.upstream, **self.upstreams} if self.has_default else dict(self.upstreams)

    @property
    def decides_chat(self) -> bool:
        """Whether the sidecar, not Envoy, routes Chat Completions requests. The sidecar routes them if the upstream
        depends on the model's name, clients need a key, quotas apply, or an admin token exists."""
        return bool(
            self.models
            or self.upstreams
            or self.upstream.models
            or self.owner.has_client_keys
            or self.quotas.in_force
            # The sidecar refuses the admin token, which Envoy would pass on to the upstream.
            or self.serves_admin
            or self.admin.token is not None
        )

    @property
    def serves_admin(self) -> bool:
        """Whether the gateway needs an admin token, because it serves operators."""
        return self.admin.api or self.console.enabled

    @property
    def decides_embeddings(self) -> bool:
        """Whether the sidecar, not Envoy, routes embeddings requests, for example to a separate embeddings server."""
        own = self.embeddings.url is not None and self.vector_stores.enabled and self.files.enabled
        return own or self.decides_chat

    @property
    def native_of_ids(self) -> str | None:
        """The native upstream to which Antiphon forwards requests for unknown response ids. None unless there is
        exactly one native upstream and a single owner."""
        native = self.native_upstreams
        return native.pop() if not self.owner.several and len(native) == 1 else None

    @property
    def native_upstreams(self) -> set[str]:
        """The upstreams that serve a model in mode `native`."""
        return {name for model in self.models if model.mode == "native" for name in model.upstreams}

    def place(self, address: str) -> str:
        """Return `address` with the absolute path of the data folder in place of `{data}`."""
        return address.replace("{data}", str(self.data.absolute()))

    def sidecar_secret(self) -> str | None:
        """The shared secret of the sidecar's TCP ports, in clear text."""
        return self.sidecar.secret.get_secret_value() if self.sidecar.secret is not None else None

    def secrets(self) -> tuple[str, ...]:
        """Every secret in the settings in clear text, including secrets in URLs. For a header value like `Bearer KEY`,
        the result contains only `KEY`."""
        return tuple(dict.fromkeys(text.rpartition(" ")[2] for text in _secrets(self)))

    def redacted(self) -> dict[str, Any]:
        """The effective settings as JSON values. Secrets are masked, including secrets in URLs."""
        return {name: shown_value(one) for name, one in self.model_dump(mode="json").items()}


def _in_any_order(value: object) -> object:
    return sorted(value) if isinstance(value, tuple) else value


def _secrets(value: object) -> Iterator[str]:
    if isinstance(value, SecretStr):
        yield value.get_secret_value()
    elif isinstance(value, StateSettings):
        # Only the passwords of the URL are secrets. Other parts of the URL occur in ordinary texts.
        yield from value.passwords()
    elif isinstance(value, str):
        yield from url_secrets(value)
    elif isinstance(value, BaseModel):
        for _, one in value:
            yield from _secrets(one)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _secrets(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _secrets(part)


def settings_schema() -> dict[str, Any]:
    """The JSON Schema of a settings file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}


def load_settings(
    flags: Mapping[str, object] | None = None,
    environ: dict[str, str] | None = None,
    file: Path | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Settings:
    """Merge the sources and validate the result. Flags override the environment, and the environment overrides the
    file.

    Raises `ConfigError`, which names each wrong setting. `flags` has the settings from the command line, as a nested
    mapping. `defaults` has values that replace the defaults of `Settings`. The name of a setting's variable is
    `ANTIPHON_` and the setting's path, with two underscores between sections (`ANTIPHON_UPSTREAM__URL`,
    `ANTIPHON_LISTEN`). If no source sets the upstream's URL, the variable `OPENAI_API_ENDPOINT` sets it. If no source
    sets the URL for traces, OpenTelemetry's variables set it.
    """
    wrong: list[str] = []
    values = without_unknown(read_file(file), Settings, wrong, f"{file}: ") if file is not None else {}
    values = merge(values, read_environment(environ or {}, Settings, wrong))
    values = merge(defaults or {}, merge(values, flags or {}))
    values = merge(read_other_names(values, environ or {}, wrong), values)
    try:
        settings = Settings.model_validate(without_unknown(values, Settings, wrong))
    except ValidationError as error:
        wrong += lines_of(error)
    raise_wrong(wrong)
    return settings
