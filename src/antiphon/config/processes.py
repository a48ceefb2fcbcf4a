"""Settings of a gateway's processes: logs, metrics, traces, ports and Envoy.

This module defines the sections `log`, `reload`, `metrics`, `tracing`, `sidecar` and `envoy` as pydantic models.
`settings.py` merges their values from the settings file, environment variables and flags.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from antiphon.config.section import MIB, BaseUrl, HeaderName, HeaderSecret, HttpUrl, Section, TcpAddress, parse_address


def _octal(value: object) -> object:
    # A value from the environment is text. YAML has already parsed its own octal numbers.
    return int(value, 8) if isinstance(value, str) and re.fullmatch(r"0o?[0-7]+", value) else value


FileMode = Annotated[int, BeforeValidator(_octal, json_schema_input_type=int | str)]


class LogSettings(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level of the log lines that Antiphon writes."""
    format: Literal["auto", "json", "console"] = "auto"
    """The format of log lines: `json`, `console` (for people), or `auto`. `auto` means `console` on a terminal, else
    `json`."""


class ReloadSettings(Section):
    """Reloading the settings while Antiphon runs. SIGHUP always reloads them."""

    watch: bool = True
    """Check the settings file every second, and reload the settings when the file has changed."""


class MetricsSettings(Section):
    listen: TcpAddress | None = None
    """`HOST:PORT` of `/metrics` for Prometheus (port 0: any free port), without authentication. `up` serves the sums
    over all workers, which never decrease when a worker is replaced. `extproc` and `serve` serve the metrics of their
    own process, and `/ready` for probes. `extproc --worker 1` listens on the next port number. Unset: only the
    sidecar's HTTP port serves `/metrics`."""
    owners: bool = False
    """Also count responses, tokens and cost by owner: `antiphon_owner_responses_total`, `antiphon_owner_tokens_total`
    and `antiphon_owner_cost_total`. Every client that can read `/metrics` then sees the names of owners. Each process
    shows at most 200 owners, and counts the others as `other`."""


class TracingSettings(Section):
    """OpenTelemetry traces (extra `otel`), which Antiphon sends as OTLP over HTTP."""

    enabled: bool = True
    """Whether processes send traces to the endpoint. Unset: true, unless `OTEL_SDK_DISABLED=true`."""
    endpoint: BaseUrl | None = None
    """Base URL of the collector (`http://collector:4318`). Antiphon appends `/v1/traces`. Without an endpoint Antiphon
    sends no traces, and does not load OpenTelemetry."""
    traces_endpoint: HttpUrl | None = None
    """The whole URL to which Antiphon posts spans, instead of `endpoint`. If both are unset, the URL is
    `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, or `OTEL_EXPORTER_OTLP_ENDPOINT` with `/v1/traces` appended."""
    headers: dict[HeaderName, HeaderSecret] = Field(default_factory=dict)
    """Headers with the collector's credentials, in addition to the headers in `OTEL_EXPORTER_OTLP_HEADERS`."""
    sample: float = Field(default=1.0, ge=0, le=1)
    """Fraction (0 to 1) of the requests without `traceparent` that Antiphon traces. A request with `traceparent` is
    traced if the sampled flag in that header is set. Unset: the variables `OTEL_TRACES_SAMPLER` and
    `OTEL_TRACES_SAMPLER_ARG` decide."""
    content: bool = False
    """Put the content of requests and responses into the spans, including the arguments and results of tools."""
    service_name: str = "antiphon"
    """`service.name` of all spans. Unset: `OTEL_SERVICE_NAME`, or `service.name` in `OTEL_RESOURCE_ATTRIBUTES`. The
    sidecars' spans also carry the other attributes of `OTEL_RESOURCE_ATTRIBUTES`."""

    @property
    def traces_url(self) -> str | None:
        """The URL that receives spans. None if Antiphon sends no traces."""
        if not self.enabled or self.traces_endpoint is not None or self.endpoint is None:
            return self.traces_endpoint if self.enabled else None
        return self.endpoint if self.endpoint.endswith("/v1/traces") else f"{self.endpoint}/v1/traces"


class SidecarTlsSettings(Section):
    cert: Path | None = None
    """PEM file with the certificate of the sidecar's TCP ports, and the certificate's chain. Unset: no TLS."""
    key: Path | None = None
    """PEM file with the private key of `cert`, not encrypted."""
    client_ca: Path | None = None
    """PEM file with certificate authorities. The sidecar accepts only clients (Envoy) with a certificate from one of
    them. Unset: clients need only `sidecar.secret`."""
    ca: Path | None = None
    """For Envoy: PEM file with the certificate authorities that Envoy trusts for the sidecar's certificate. Unset: the
    system's authorities."""
    envoy_cert: Path | None = None
    """For Envoy: PEM file with the client certificate that Envoy presents if `client_ca` is set."""
    envoy_key: Path | None = None
    """For Envoy: PEM file with the private key of `envoy_cert`."""

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        for one, other in (("cert", "key"), ("envoy_cert", "envoy_key")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"sidecar.tls.{one} and sidecar.tls.{other} belong together; set both, or neither")
        if self.cert is None and (self.client_ca or self.ca or self.envoy_cert):
            raise ValueError("sidecar.tls.cert is missing: set it, or remove the other settings of sidecar.tls")
        return self


class SidecarSettings(Section):
    grpc: str = "unix:{data}/sidecar-0.grpc.sock"
    """Address of the ext_proc service: `unix:PATH` or `HOST:PORT`. `{data}` stands for the data folder."""
    http: str = "unix:{data}/sidecar-0.http.sock"
    """Address of the sidecar's HTTP port (health, local routes, metrics)."""
    transport: Literal["auto", "grpcio", "http2"] = "auto"
    """The gRPC server of the ext_proc service: `grpcio` (gRPC's own), `http2` (several times faster; needs the extra
    `fast`), or `auto`: `http2` when it is installed."""
    secret: HeaderSecret | None = None
    """The shared secret with which Envoy authenticates to the sidecar. Envoy adds the secret to its calls to the
    sidecar, and removes the secret from client requests. The secret is required if one of the addresses in this section
    is on TCP."""
    socket_mode: FileMode = Field(default=0o600, ge=0, le=0o777)
    """File mode of Unix sockets, octal when it begins with 0 (`0600`)."""
    tls: SidecarTlsSettings = SidecarTlsSettings()
    """TLS of the sidecar's TCP ports. Unix sockets do not use TLS."""
    model_door: str = "unix:{data}/model-door.sock"
    """Address of Envoy's listener for the model calls that the sidecar makes: `unix:PATH` or `HOST:PORT`."""


class EndpointPickerSettings(Section):
    """An endpoint picker (Gateway API Inference Extension) that chooses the server for each call to the upstream of the
    section `upstream`."""

    address: str | None = None
    """`HOST:PORT` of the endpoint picker. Unset: no picker."""
    tls: Literal["self-signed", "verified", "off"] = "self-signed"
    """How Envoy connects to the picker. `self-signed`: TLS without a check of the certificate, because a picker has a
    self-signed certificate by default. `verified`: an authority in `ca_file` must have issued the certificate for the
    host in `address`. `off`: no TLS (a picker with `--secure-serving=false`)."""
    ca_file: Path | None = None
    """PEM file with the certificate authorities for `tls: verified`. Unset: the system's authorities."""
    timeout: float = Field(default=10.0, gt=0, le=3600)
    """Seconds for the picker to choose a server, counted from the moment when Envoy has the whole request. The time in
    the picker's queue counts too."""

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
            raise ValueError("envoy.endpoint_picker.ca_file works only with tls: verified")
        return self


class EnvoySettings(Section):
    binary: Path | None = None
    """Path of the Envoy binary. Unset: the binary of the extra `envoy`, or else the first `envoy` in PATH."""
    concurrency: int | None = Field(default=None, ge=1)
    """Number of Envoy's worker threads. Unset: one thread per core, which is Envoy's default."""
    log_level: Literal["trace", "debug", "info", "warning", "error", "critical", "off"] = "warning"
    """Lowest level of the log lines that Envoy writes."""
    access_log: bool = False
    """Write Envoy's access log, one line with token counts for each request. Envoy writes it to standard output.
    `antiphon up` copies each line of the access log to standard error, and adds `process: envoy`. If false, Envoy still
    logs the failures that only Envoy sees."""
    admin: str = "unix:{data}/envoy-admin.sock"
    """Envoy's admin address: `unix:PATH` or `HOST:PORT`."""
    metrics: TcpAddress | None = None
    """`HOST:PORT` where Envoy serves its own metrics (`/stats/prometheus`) and a liveness check (`/live`), without
    authentication. This port serves no other path of Envoy's admin interface. Unset: only `envoy.admin` serves the
    metrics."""
    retries: int = Field(default=2, ge=0)
    """Maximum number of retries of a model call that fails before the upstream answers. Envoy makes the retries."""
    endpoint_picker: EndpointPickerSettings = EndpointPickerSettings()
    heap_bytes: int = Field(default=1024 * MIB, ge=64 * MIB)
    """Largest heap of Envoy. Near this limit Envoy resets the HTTP/2 streams that use the most memory, and answers new
    requests with a 503."""
