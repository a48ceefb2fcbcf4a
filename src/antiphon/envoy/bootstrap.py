"""A whole Envoy bootstrap, as a dictionary and as YAML.

Lives here: listeners, filters, clusters, local replies. Not here: the routes (`routes.py`), starting Envoy
(`commands/`).

Every setting that deviates from Envoy's default has its reason beside it; all were tried against Envoy 1.40.0.

Invariant: `envoy --mode validate` accepts what comes out, and no secret is in it: the environment of Envoy's process
holds them, and where Envoy can only compare with a literal (the model door on TCP) a placeholder stands for it, which
whoever starts Envoy fills in (`fill_in_secret`).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from antiphon.config import Settings, UpstreamSettings, parse_address
from antiphon.envoy.messages import Config, address, cluster, error_body, http_filter, listener, typed
from antiphon.envoy.routes import (
    EXTPROC,
    SECRET_HEADER,
    SECRET_PLACEHOLDER,
    SECRET_VARIABLE,
    model_cluster,
    model_door_routes,
    public_routes,
)
from antiphon.errors import ConfigError

__all__ = [
    "SidecarEndpoint",
    "bootstrap",
    "clusters",
    "connection_manager",
    "extproc_filter",
    "fill_in_secret",
    "to_yaml",
]

_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
)


@dataclass(frozen=True)
class SidecarEndpoint:
    """Where one sidecar process listens: `unix:PATH` or `HOST:PORT`."""

    grpc: str
    http: str


def bootstrap(settings: Settings, *, sidecars: Sequence[SidecarEndpoint]) -> Config:
    """The bootstrap for these settings and sidecar processes."""
    return {
        "admin": {"address": address(settings.place(settings.envoy.admin))},
        "static_resources": {
            "listeners": [
                # Inbound: draining closes this listener, while model calls still go through the other.
                {**listener("public", settings.listen, connection_manager(settings)), "traffic_direction": "INBOUND"},
                model_door(settings),
            ],
            "clusters": clusters(settings, sidecars),
        },
        # Limits of the process, not of a request.
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": typed(
                        "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                        max_active_downstream_connections=50000,
                    ),
                }
            ]
        },
    }


def to_yaml(config: Config | list[Config]) -> str:
    """The configuration as YAML, keys in the order in which they were written."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, width=1000)


def fill_in_secret(text: str, settings: Settings) -> str:
    """The YAML with the shared secret in its place; for a file that only Envoy's user can read."""
    secret = settings.sidecar_secret()
    return text if secret is None else text.replace(SECRET_PLACEHOLDER, json.dumps(secret)[1:-1])


class _Dumper(yaml.SafeDumper):
    """Writes shared parts out instead of using anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def connection_manager(settings: Settings) -> Config:
    """The public listener's HTTP connection manager."""
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="antiphon",
        # Silence ends a stream after 5 minutes by default, in every phase; keep-alive comments come every 15 s.
        stream_idle_timeout="3600s",
        request_timeout="0s",
        # A cut stream reaches an HTTP/1 client 1 s late by default.
        delayed_close_timeout="0.25s",
        # One spelling of every path, before any route is matched.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        early_header_mutation_extensions=[_strip_trust(settings)],
        upgrade_configs=[{"upgrade_type": "websocket", "enabled": False}],
        local_reply_config=local_replies(),
        http_filters=[extproc_filter(settings), _router()],
        route_config={
            "name": "public",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": public_routes(settings)}],
        },
    )
    if settings.envoy.access_log:
        manager["access_log"] = [_access_log()]
    return manager


def model_door(settings: Settings) -> Config:
    """The private listener through which the sidecar makes its own model calls."""
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="model_door",
        stream_idle_timeout="3600s",
        # An upstream that breaks off is known to the sidecar, and so to the client, 1 s late by default.
        delayed_close_timeout="0.25s",
        normalize_path=True,
        merge_slashes=True,
        # What a native upstream answers passes untouched: Envoy's own words in its place must be error objects too.
        local_reply_config=local_replies(),
        http_filters=[_router()],
        route_config={
            "name": "model_door",
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": model_door_routes(settings)}],
        },
    )
    door = listener("model_door", settings.place(settings.sidecar.model_door), manager)
    if "pipe" in door["address"]:
        door["address"]["pipe"]["mode"] = settings.sidecar.socket_mode
    return door


def extproc_filter(settings: Settings) -> Config:
    """The external processor: off for every route but the one that opts in."""
    service: Config = {"envoy_grpc": {"cluster_name": "sidecar_grpc"}}
    if parse_address(settings.sidecar.grpc)[0] != "unix":
        service["initial_metadata"] = [{"key": SECRET_HEADER, "value": f"%ENVIRONMENT({SECRET_VARIABLE})%"}]
    return http_filter(
        EXTPROC,
        typed(
            "filters.http.ext_proc.v3.ExternalProcessor",
            grpc_service=service,
            failure_mode_allow=False,
            status_on_error={"code": "ServiceUnavailable"},
            # The sidecar sends an exact length; without this Envoy would chunk every request.
            allow_content_length_header=True,
            # Without it changes of :method and :authority are ignored in silence.
            mutation_rules={"allow_all_routing": True},
            metadata_options={"receiving_namespaces": {"untyped": ["antiphon"]}},
            # The only modes that allow an answer after the whole body, and output after the upstream's end.
            processing_mode={
                "request_header_mode": "SEND",
                "response_header_mode": "SEND",
                "request_body_mode": "FULL_DUPLEX_STREAMED",
                "response_body_mode": "FULL_DUPLEX_STREAMED",
                "request_trailer_mode": "SEND",
                "response_trailer_mode": "SEND",
            },
        ),
        disabled=True,
    )


def _router() -> Config:
    return http_filter("envoy.filters.http.router", typed("filters.http.router.v3.Router"))


def _strip_trust(settings: Settings) -> Config:
    """Clients cannot forge what the sidecar and the routes trust."""
    prefix = {"remove_on_match": {"key_matcher": {"prefix": "x-antiphon-", "ignore_case": True}}}
    mutations: list[Config] = [prefix]
    if not settings.owner.header.startswith("x-antiphon-"):
        mutations.append({"remove": settings.owner.header})
    return {
        "name": "strip_trust",
        "typed_config": typed(
            "http.early_header_mutation.header_mutation.v3.HeaderMutation",
            mutations=mutations,
        ),
    }


def local_replies() -> Config:
    """Envoy's own answers as OpenAI error objects.

    Each is chosen by its details: an unfiltered format would also rewrite the sidecar's immediate responses.
    """
    unavailable = {"header": {"key": "retry-after", "value": "1"}}
    return {
        "mappers": [
            _mapper(
                "response.code_details.startsWith('ext_proc_error')",
                "The responses adapter is not available. Try again shortly.",
                "adapter_unavailable",
                status_code=503,
                headers_to_add=[unavailable],
            ),
            _mapper(
                "response.code_details.startsWith('upstream_reset_after_response_started')",
                "The upstream broke off its answer.",
                "upstream_cut",
                status_code=502,
            ),
            _mapper(
                "response.code_details.startsWith('upstream_reset_before_response_started')"
                " || response.code_details == 'no_healthy_upstream'",
                "The upstream cannot be reached.",
                "upstream_unreachable",
                status_code=502,
            ),
            _mapper(
                "response.code_details == 'request_payload_too_large'",
                "The request body is too large.",
                "request_too_large",
                kind="invalid_request_error",
            ),
            _mapper(
                "response.code_details.startsWith('path_normalization_failed')"
                " || response.code_details.startsWith('http1.')"
                " || response.code_details.startsWith('http2.')",
                "The request is malformed.",
                "invalid_request",
                kind="invalid_request_error",
            ),
        ]
    }


def _mapper(expression: str, message: str, code: str, kind: str = "server_error", **fields: Any) -> Config:
    return {
        "filter": {
            "extension_filter": {
                "name": "cel",
                "typed_config": typed("access_loggers.filters.cel.v3.ExpressionFilter", expression=expression),
            }
        },
        **fields,
        "body_format_override": {"json_format": json.loads(error_body(message, kind, code))},
    }


def _access_log() -> Config:
    parts = {
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "milliseconds": "%DURATION%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "model": "%DYNAMIC_METADATA(antiphon:model)%",
        "response_id": "%DYNAMIC_METADATA(antiphon:response_id)%",
        "input_tokens": "%DYNAMIC_METADATA(antiphon:input_tokens)%",
        "output_tokens": "%DYNAMIC_METADATA(antiphon:output_tokens)%",
    }
    return {
        "name": "stdout",
        "typed_config": typed("access_loggers.stream.v3.StdoutAccessLog", log_format={"json_format": parts}),
    }


def clusters(settings: Settings, sidecars: Sequence[SidecarEndpoint]) -> list[Config]:
    """The upstream, and the sidecar's two ports."""
    # A sidecar that hangs (stopped, swapped out) answers no pings: its connection is closed and its requests fail
    # instead of hanging until the idle timeout. The sidecar's server tolerates these pings.
    options = {"connection_keepalive": {"interval": "5s", "timeout": "5s"}}
    http2 = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed(
            "upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": options}
        )
    }
    health = {
        "timeout": "1s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
    }
    common = {
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        # With no healthy process a request is refused at once instead of tried on a dead one.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }
    places = [(settings.place(one.grpc), settings.place(one.http)) for one in sidecars]
    grpc = [address(place) for place, _ in places]
    http = [address(place) for _, place in places]
    dns = {} if all("pipe" in where or _is_ip(where) for where in (*grpc, *http)) else {"type": "STRICT_DNS"}
    return [
        *(_model_cluster(name, upstream, settings) for name, upstream in settings.every_upstream.items()),
        cluster(
            "sidecar_grpc",
            grpc,
            **{**common, **dns},
            health_checks=[{**health, "grpc_health_check": {}}],
            **_sidecar_tls(settings, sidecars[0].grpc, "h2"),
            typed_extension_protocol_options=http2,
        ),
        cluster(
            "sidecar_http",
            http,
            **{**common, **dns},
            health_checks=[{**health, "http_health_check": {"path": "/health"}}],
            **_sidecar_tls(settings, sidecars[0].http, "http/1.1"),
        ),
    ]


def _sidecar_tls(settings: Settings, place: str, protocol: str) -> Config:
    """TLS towards a sidecar's port: for its host's name or address, with a certificate where it asks for one."""
    files = settings.sidecar.tls
    where = address(settings.place(place))
    if files.cert is None or "pipe" in where:
        return {}
    host, is_ip = where["socket_address"]["address"], _is_ip(where)
    context: Config = {
        "alpn_protocols": [protocol],
        "validation_context": {
            "trusted_ca": {"filename": _authorities(files.ca, "sidecar.tls.ca")},
            "match_typed_subject_alt_names": [
                {"san_type": "IP_ADDRESS" if is_ip else "DNS", "matcher": {"exact": host}}
            ],
        },
    }
    if files.envoy_cert is not None and files.envoy_key is not None:
        own = (("certificate_chain", files.envoy_cert), ("private_key", files.envoy_key))
        context["tls_certificates"] = [{name: {"filename": str(file.absolute())} for name, file in own}]
    fields: Config = {"common_tls_context": context} if is_ip else {"sni": host, "common_tls_context": context}
    upstream = typed("transport_sockets.tls.v3.UpstreamTlsContext", **fields)
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": upstream}}


def _is_ip(where: Config) -> bool:
    try:
        ipaddress.ip_address(where["socket_address"]["address"])
    except ValueError:
        return False
    return True


def _model_cluster(called: str, upstream: UpstreamSettings, settings: Settings) -> Config:
    host, port = upstream.address
    where = {"socket_address": {"address": host, "port_value": port}}
    fields: Config = {
        "type": "STATIC" if _is_ip(where) else "STRICT_DNS",
        "connect_timeout": f"{settings.timeouts.connect:g}s",
    }
    if not _is_ip(where):
        fields["dns_lookup_family"] = "V4_PREFERRED"
    if upstream.tls:
        name = urlsplit(f"//{upstream.authority}").hostname or host
        is_ip = _is_ip({"socket_address": {"address": name}})
        kind = "IP_ADDRESS" if is_ip else "DNS"
        fields["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": typed(
                "transport_sockets.tls.v3.UpstreamTlsContext",
                **({} if is_ip else {"sni": name}),
                common_tls_context={
                    "validation_context": {
                        "trusted_ca": {"filename": _authorities(upstream.ca_file)},
                        "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": name}}],
                    }
                },
            ),
        }
    return cluster(model_cluster(called), [where], **fields)


def _authorities(given: Path | None, setting: str = "upstream.ca_file") -> str:
    if given is not None:
        return str(given.absolute())
    for path in _AUTHORITIES:
        if Path(path).exists():
            return path
    raise ConfigError(f"no system certificate authorities were found: set {setting}")
