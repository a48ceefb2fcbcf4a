"""The settings: one typed model for every command.

Lives here: names, types, defaults, descriptions and the rules between settings, and how sources are merged
(flags over `ANTIPHON_*` environment variables over a YAML file over defaults). Not here: who uses them; only
`app.py` and the commands read settings, everything deeper gets plain values.

Invariant: an unknown key is an error in every source, and no secret is ever part of a rendering (`redacted`).

The sections are in modules by what they are about.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from antiphon.config.limits import FetchSettings, LimitSettings, TimeoutSettings, WebSocketSettings
from antiphon.config.owners import OwnerSettings, SealingSettings
from antiphon.config.processes import EnvoySettings, LogSettings, SidecarSettings, SidecarTlsSettings
from antiphon.config.section import Section, parse_address
from antiphon.config.state import (
    BackgroundSettings,
    ConversationSettings,
    EmbeddingSettings,
    FileSettings,
    RetentionSettings,
    VectorStoreSettings,
)
from antiphon.config.tools import (
    CodeInterpreterSettings,
    ConnectorSettings,
    McpSettings,
    ToolSettings,
    WebSearchSettings,
)
from antiphon.config.upstreams import AuthMode, ModelSettings, UpstreamSettings
from antiphon.errors import ConfigError

__all__ = [
    "AuthMode",
    "BackgroundSettings",
    "CodeInterpreterSettings",
    "ConnectorSettings",
    "ConversationSettings",
    "EmbeddingSettings",
    "EnvoySettings",
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


class Settings(Section):
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
    upstreams: dict[str, UpstreamSettings] = Field(default_factory=dict)
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
