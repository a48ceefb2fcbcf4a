"""Settings of a gateway's processes: logs, ports and Envoy.

Lives here: these sections of the settings. Not here: their use (Envoy's configuration: `envoy/`), how sources are
merged (`settings.py`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from antiphon.config.section import MIB, BaseUrl, HeaderName, HeaderSecret, HttpUrl, Section, TcpAddress, parse_address


def _octal(value: object) -> object:
    # In the environment everything is text; YAML has read its octal numbers already.
    return int(value, 8) if isinstance(value, str) and re.fullmatch(r"0o?[0-7]+", value) else value


FileMode = Annotated[int, BeforeValidator(_octal, json_schema_input_type=int | str)]


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level written."""
    format: Literal["auto", "json", "console"] = "auto"
    """`json` lines, readable `console` lines, or `auto`: console on a terminal, else JSON."""


class ReloadSettings(Section):
    """Reading the settings again while Antiphon runs (SIGHUP always does so)."""

    watch: bool = True
    """Look at the settings file each second, and read a changed one, as after SIGHUP."""


class MetricsSettings(Section):
    listen: TcpAddress | None = None
    """`HOST:PORT` of `/metrics` for Prometheus (port 0: any free port), without authentication. With `up`: the sums
    over all workers, which never decrease when a worker is replaced. With `extproc` and `serve`: the metrics of that
    process (`extproc --worker 1`: the next port), and `/ready` for probes. Unset: only the sidecar's HTTP port has
    `/metrics`."""


class TracingSettings(Section):
    """Traces by OpenTelemetry (extra `otel`), sent as OTLP over HTTP."""

    enabled: bool = True
    """Whether processes send traces, given an endpoint. Unset: not with `OTEL_SDK_DISABLED=true`."""
    endpoint: BaseUrl | None = None
    """Base URL of the collector (`http://collector:4318`), to which `/v1/traces` is added. Without an endpoint there
    are no traces, and nothing of OpenTelemetry is loaded."""
    traces_endpoint: HttpUrl | None = None
    """The whole URL that spans are posted to, instead of `endpoint`. With neither:
    `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or `/v1/traces` below `OTEL_EXPORTER_OTLP_ENDPOINT`."""
    headers: dict[HeaderName, HeaderSecret] = Field(default_factory=dict)
    """Headers with the collector's credentials, in addition to those in `OTEL_EXPORTER_OTLP_HEADERS`."""
    sample: float = Field(default=1.0, ge=0, le=1)
    """Share of traced requests, among those without `traceparent`. The flag in `traceparent` decides about the others.
    Unset: the variables `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` decide."""
    content: bool = False
    """Put the content of requests and responses into the spans, tools' arguments and results too."""
    service_name: str = "antiphon"
    """`service.name` of all spans. Unset: `OTEL_SERVICE_NAME`, or `service.name` in `OTEL_RESOURCE_ATTRIBUTES`. The
    sidecars' spans also carry the other attributes of `OTEL_RESOURCE_ATTRIBUTES`."""

    @property
    def traces_url(self) -> str | None:
        """The URL that receives spans. None: there are no traces."""
        if not self.enabled or self.traces_endpoint is not None or self.endpoint is None:
            return self.traces_endpoint if self.enabled else None
        return self.endpoint if self.endpoint.endswith("/v1/traces") else f"{self.endpoint}/v1/traces"


class SidecarTlsSettings(Section):
    cert: Path | None = None
    """PEM file with the certificate (and its chain) of the sidecar's TCP ports. Unset: no TLS."""
    key: Path | None = None
    """PEM file with its key, not encrypted."""
    client_ca: Path | None = None
    """PEM file with authorities: the sidecar accepts only clients (Envoy) with a certificate of theirs. Unset: the
    secret alone decides."""
    ca: Path | None = None
    """Envoy's side: PEM file with the authorities it trusts for the sidecar's certificate; unset: the system's."""
    envoy_cert: Path | None = None
    """Envoy's side: PEM file with the certificate it presents, where `client_ca` asks for one."""
    envoy_key: Path | None = None
    """Envoy's side: PEM file with that certificate's key."""

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        for one, other in (("cert", "key"), ("envoy_cert", "envoy_key")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"sidecar.tls.{one} and sidecar.tls.{other} belong together")
        if self.cert is None and (self.client_ca or self.ca or self.envoy_cert):
            raise ValueError("sidecar.tls.cert is missing: without it there is no TLS")
        return self


class SidecarSettings(Section):
    grpc: str = "unix:{data}/sidecar-0.grpc.sock"
    """Where the ext_proc service listens: `unix:PATH` or `HOST:PORT`. `{data}` is the data folder."""
    http: str = "unix:{data}/sidecar-0.http.sock"
    """Where the sidecar's HTTP port listens (health, local routes, metrics)."""
    transport: Literal["auto", "grpcio", "http2"] = "auto"
    """The gRPC server of the ext_proc service: `grpcio` (gRPC's own), `http2` (several times faster; needs the extra
    `fast`), or `auto`: `http2` when it is installed."""
    secret: HeaderSecret | None = None
    """The shared secret that the Envoy configuration adds and strips. It is required when one of these addresses is on
    TCP."""
    socket_mode: FileMode = Field(default=0o600, ge=0, le=0o777)
    """File mode of Unix sockets, octal when it begins with 0 (`0600`)."""
    tls: SidecarTlsSettings = SidecarTlsSettings()
    """TLS of the sidecar's TCP ports. Unix sockets need none."""
    model_door: str = "unix:{data}/model-door.sock"
    """Envoy's listener for the sidecar's own model calls: `unix:PATH` or `HOST:PORT`."""


class EndpointPickerSettings(Section):
    """An endpoint picker (Gateway API Inference Extension) that chooses the server of each call of `upstream`."""

    address: str | None = None
    """Where it listens, `HOST:PORT`; unset: no picker."""
    tls: Literal["self-signed", "verified", "off"] = "self-signed"
    """`self-signed`: encrypted, without a check of the picker's certificate; a picker serves so by default. `verified`:
    an authority of `ca_file` must have issued its certificate, for the host of `address`. `off`: no TLS
    (`--secure-serving=false`)."""
    ca_file: Path | None = None
    """PEM file with the authorities for `verified`; unset: the system's."""
    timeout: float = Field(default=10.0, gt=0, le=3600)
    """Seconds that the picker may take to choose, from the whole request on. Its queueing counts too."""

    @field_validator("address")
    @classmethod
    def _check_address(cls, value: str | None) -> str | None:
        if value is not None:
            host, port = parse_address(value)
            if host == "unix" or not value.rpartition(":")[0] or not port:
                raise ValueError("is not HOST:PORT")
        return value

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.ca_file is not None and self.tls != "verified":
            raise ValueError("envoy.endpoint_picker.ca_file is for tls: verified alone")
        return self


class EnvoySettings(Section):
    binary: Path | None = None
    """Path of the Envoy binary. Unset: the `envoy` extra, then PATH."""
    concurrency: int | None = Field(default=None, ge=1)
    """Envoy worker threads. Unset: Envoy's default (one per core)."""
    log_level: Literal["trace", "debug", "info", "warning", "error", "critical", "off"] = "warning"
    """Envoy's own log level."""
    access_log: bool = False
    """Write Envoy's access log (with token counts), a line for each request. Envoy writes it to standard output;
    `antiphon up` copies it to its own log on standard error, in Envoy's format with `process: envoy`. (Envoy always
    logs failures that only Envoy sees.)"""
    admin: str = "unix:{data}/envoy-admin.sock"
    """Envoy's admin address: `unix:PATH` or `HOST:PORT`."""
    metrics: TcpAddress | None = None
    """`HOST:PORT` where Envoy serves its own metrics (`/stats/prometheus`) and a liveness check (`/live`), without
    authentication, and nothing else of its admin interface. Unset: only `envoy.admin` has the metrics."""
    retries: int = Field(default=2, ge=0)
    """How often Envoy retries a model call that failed before the upstream answered."""
    endpoint_picker: EndpointPickerSettings = EndpointPickerSettings()
    heap_bytes: int = Field(default=1024 * MIB, ge=64 * MIB)
    """Largest heap of Envoy. Near it Envoy resets the HTTP/2 streams that hold most, and answers new requests with a
    503."""
