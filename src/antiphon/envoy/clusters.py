"""Generates the clusters: every upstream, the sidecar's two ports, and the trace collector.

Lives here: addresses, health checks, load balancing, and client TLS. Not here: the cluster of a route (`routes.py`),
the choice among upstreams (`several.py`), listeners and filters (`bootstrap.py`).

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
# moment fails without a retry, so Envoy closes idle connections first.
_UPSTREAM_IDLE = "4s"


def clusters(settings: Settings, sidecars: Sequence[SidecarEndpoint], *, nowhere: bool) -> list[Config]:
    """All clusters; with `nowhere` also the one without endpoints."""
    # A sidecar that hangs (stopped, swapped out) answers no pings: Envoy closes its connection, and its requests fail
    # instead of hanging until the idle timeout. This takes 6 s; if it is the only sidecar and gets a retry before the
    # health checks remove it, 12 s. The sidecar's server tolerates these pings.
    options = {"connection_keepalive": {"interval": "1s", "timeout": "5s"}}
    health = {
        # A process that reports not ready or no longer listens is removed after at most two checks. A busy one answers
        # late; removing it would give every client a 503.
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
        # Without a healthy process, refuse a request at once instead of trying a dead one.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }
    # A draining sidecar gets no requests. But if none is ready (for example, the disk is full), each still responds
    # with the reason, so then Envoy uses all of them. (0 would mean none.)
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
    """TLS to a sidecar's port: verifies its host's name or address, and presents a certificate if the sidecar requires
    one."""
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
        # A self-signed certificate is new at each start of the picker, so Envoy cannot verify it.
        unknown = chosen.tls == "self-signed"
        known = {} if unknown else _validation(host, _authorities(chosen.ca_file, "envoy.endpoint_picker.ca_file"))
        fields |= _tls(host, {**known, "alpn_protocols": ["h2"]})
    return cluster(PICKER, [socket_address(host, port)], **fields, **picker_fields())


def _resolution(host: str) -> Config:
    """The fields of a cluster for its host: a fixed address, or a name with DNS."""
    return {"type": "STATIC"} if _is_ip(host) else {"type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED"}


def _tls(host: str, context: Config) -> Config:
    """The field of a cluster for TLS to a server with this name or address."""
    name: Config = {} if _is_ip(host) else {"sni": host}
    upstream = typed("transport_sockets.tls.v3.UpstreamTlsContext", **name, common_tls_context=context)
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": upstream}}


def _validation(host: str, authorities: str) -> Config:
    """The part of a TLS context that verifies the server's name or address."""
    kind = "IP_ADDRESS" if _is_ip(host) else "DNS"
    return {
        "validation_context": {
            "trusted_ca": {"filename": authorities},
            "match_typed_subject_alt_names": [{"san_type": kind, "matcher": {"exact": host}}],
        }
    }


def _host(where: Config) -> str:
    """The host of a socket address."""
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
