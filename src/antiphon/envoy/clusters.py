"""Generates the clusters: every upstream, the sidecar's two ports, and the trace collector.

This module generates addresses, health checks, load balancing and client TLS. `routes.py` selects the cluster of a
route, `several.py` selects among upstreams, and `bootstrap.py` generates listeners and filters.

Invariant: TLS verifies the server's name or address against the configured CA or the system's.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from antiphon.config.settings import Settings
from antiphon.config.upstreams import UpstreamSettings
from antiphon.envoy.messages import Config, address, cluster, http_options, socket_address, typed
from antiphon.envoy.picker import PICKER, is_picked, picked_clusters, picker_fields, picker_place
from antiphon.envoy.routes import NOWHERE, model_cluster
from antiphon.envoy.several import group_clusters
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.tracing import COLLECTOR, collector_address
from antiphon.errors import ConfigError

_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
)
# Model servers close idle connections without notice (uvicorn, Node and llama.cpp after 5 s). A request sent at that
# moment fails without a retry, so Envoy closes idle connections after 4 s.
_UPSTREAM_IDLE = "4s"


def clusters(settings: Settings, sidecars: Sequence[SidecarEndpoint], *, nowhere: bool) -> list[Config]:
    """Return all clusters. If `nowhere` is True, the list includes the cluster without endpoints, to which dead-end
    routes lead."""
    # A sidecar that hangs (stopped, swapped out) answers no pings. Envoy then closes the connection to this sidecar, so
    # its requests fail after 6 s instead of hanging until the idle timeout. If only one sidecar exists, Envoy may retry
    # on it before the health checks remove it, so its requests fail after 12 s. The sidecar's gRPC server tolerates
    # these pings.
    options = {"connection_keepalive": {"interval": "1s", "timeout": "5s"}}
    health = {
        # Envoy stops sending requests to a process after at most two failed checks. A check fails when the process
        # reports that it is not ready, or no longer listens. The timeout is long, because a busy process answers late.
        # Removing a busy process would give every client a 503.
        "timeout": "5s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
    }
    common = {
        "type": "STATIC",
        "connect_timeout": "1s",
        "lb_policy": "LEAST_REQUEST",
        # If no sidecar is healthy, Envoy refuses a request immediately instead of trying a dead sidecar.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }
    # Envoy sends no requests to a draining sidecar. But if no sidecar is ready (for example, the disk is full), each
    # sidecar still responds with the reason. So Envoy then uses all sidecars. With the value 0, Envoy would use no
    # sidecar.
    asked_all_the_same = {"common_lb_config": {"healthy_panic_threshold": {"value": 1}}}
    places = [(settings.place(one.grpc), settings.place(one.http)) for one in sidecars]
    grpc = [address(place) for place, _ in places]
    http = [address(place) for _, place in places]
    dns = {} if all("pipe" in where or _is_ip(_host(where)) for where in (*grpc, *http)) else {"type": "STRICT_DNS"}
    return [
        *([cluster(NOWHERE, [], type="STATIC")] if nowhere else []),
        *(
            each
            for name, upstream in settings.every_upstream.items()
            for each in _model_clusters(name, upstream, settings)
        ),
        *group_clusters(settings),
        cluster(
            "sidecar_grpc",
            grpc,
            retries=100_000,
            **{**common, **dns},
            health_checks=[{**health, "grpc_health_check": {}}],
            **_sidecar_tls(settings, sidecars[0].grpc, "h2"),
            **http_options(explicit_http_config={"http2_protocol_options": options}),
        ),
        cluster(
            "sidecar_http",
            http,
            retries=100_000,
            **{**common, **dns, **asked_all_the_same},
            health_checks=[{**health, "http_health_check": {"path": "/ready"}}],
            **_sidecar_tls(settings, sidecars[0].http, "http/1.1"),
        ),
        *_collector(settings),
    ]


def _collector(settings: Settings) -> list[Config]:
    found = collector_address(settings)
    if found is None:
        return []
    host, port, tls = found
    fields = _resolution(host)
    if tls:
        fields |= _tls(host, _validation(host, _authorities(None, "tracing.endpoint")))
    return [cluster(COLLECTOR, [socket_address(host, port)], **fields)]


def _sidecar_tls(settings: Settings, place: str, protocol: str) -> Config:
    """Return TLS fields for a sidecar's port. Envoy verifies the host's name or address. Envoy presents a client
    certificate if one is configured."""
    files = settings.sidecar.tls
    where = address(settings.place(place))
    if files.cert is None or "pipe" in where:
        return {}
    host = _host(where)
    context = {"alpn_protocols": [protocol], **_validation(host, _authorities(files.ca, "sidecar.tls.ca"))}
    if files.envoy_cert is not None and files.envoy_key is not None:
        own = (("certificate_chain", files.envoy_cert), ("private_key", files.envoy_key))
        context["tls_certificates"] = [{name: {"filename": str(file.absolute())} for name, file in own}]
    return _tls(host, context)


def _model_clusters(called: str, upstream: UpstreamSettings, settings: Settings) -> list[Config]:
    host, port = upstream.address
    fields: Config = {
        "connect_timeout": f"{settings.timeouts.connect:g}s",
        **http_options(
            common_http_protocol_options={"idle_timeout": _UPSTREAM_IDLE},
            explicit_http_config={"http_protocol_options": {}},
        ),
    }
    if upstream.tls:
        name = urlsplit(f"//{upstream.authority}").hostname or host
        fields |= _tls(name, _validation(name, _authorities(upstream.ca_file, "upstream.ca_file")))
    if is_picked(settings, called):
        return picked_clusters(model_cluster(called), fields, _picker_cluster(settings))
    return [cluster(model_cluster(called), [socket_address(host, port)], **_resolution(host), **fields)]


def _picker_cluster(settings: Settings) -> Config:
    chosen = settings.envoy.endpoint_picker
    host, port = picker_place(chosen)
    fields = _resolution(host)
    if chosen.tls != "off":
        # A picker creates a new self-signed certificate at each start, so Envoy cannot verify it.
        unknown = chosen.tls == "self-signed"
        known = {} if unknown else _validation(host, _authorities(chosen.ca_file, "envoy.endpoint_picker.ca_file"))
        fields |= _tls(host, {**known, "alpn_protocols": ["h2"]})
    return cluster(PICKER, [socket_address(host, port)], **fields, **picker_fields())


def _resolution(host: str) -> Config:
    """Return the cluster fields that resolve this host: a fixed address, or a name with DNS."""
    return {"type": "STATIC"} if _is_ip(host) else {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"}


def _tls(host: str, context: Config) -> Config:
    """Return the cluster field for TLS to a server with this name or address."""
    name: Config = {} if _is_ip(host) else {"sni": host}
    upstream = typed("transport_sockets.tls.v3.UpstreamTlsContext", **name, common_tls_context=context)
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": upstream}}


def _validation(host: str, authorities: str) -> Config:
    """Return the fields of a TLS context that make Envoy verify the server's name or address."""
    kind = "IP_ADDRESS" if _is_ip(host) else "DNS"
    return {
        "validation_context": {
            "trusted_ca": {"filename": authorities},
            "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": host}}],
        }
    }


def _host(where: Config) -> str:
    """Return the host in an Envoy socket address."""
    return str(where["socket_address"]["address"])


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _authorities(given: Path | None, setting: str) -> str:
    if given is not None:
        return str(given.absolute())
    for path in _AUTHORITIES:
        if Path(path).exists():
            return path
    raise ConfigError(f"no system certificate authorities were found: set {setting}")
