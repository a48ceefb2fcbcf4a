"""Generates a whole Envoy bootstrap, as a dictionary and as YAML.

Lives here: listeners, filters (also CORS), limits of the process, and the listener for Envoy's own metrics
(`envoy.metrics`). Not here: the routes (`routes.py`), clusters (`clusters.py`), Envoy's own responses
(`local_replies.py`), starting Envoy (`commands/`).

A comment gives the reason for every setting that differs from Envoy's default; all were tried with Envoy 1.40.0. A last
step removes fields that an older version does not know (`versions.py`).

Invariant: `envoy --mode validate` accepts the result, and the result contains no secret. The environment of Envoy's
process holds the secrets. Where Envoy can only compare with a literal (the model listener on TCP) there is a
placeholder, which the starter of Envoy replaces (`fill_in_secret`).
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence

import yaml

from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.envoy.clusters import clusters
from antiphon.envoy.failure_lines import early_ends, failure_lines
from antiphon.envoy.local_replies import REQUEST_ID, local_replies
from antiphon.envoy.messages import (
    FULL_DUPLEX,
    Config,
    address,
    cluster,
    early_headers,
    http_filter,
    http_manager,
    listener,
    log_lines,
    typed,
)
from antiphon.envoy.picker import is_picked, stripped
from antiphon.envoy.picker_listener import picker_listeners
from antiphon.envoy.routes import (
    EXTPROC,
    SECRET_PLACEHOLDER,
    SECRET_VARIABLE,
    SEEN_TOO,
    model_door_routes,
    public_routes,
    to_another_sidecar,
)
from antiphon.envoy.several import bootstrap_extensions, upstream_listeners
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.tracing import tracing
from antiphon.envoy.versions import NEWEST, EnvoyVersion, fitted
from antiphon.types import cors
from antiphon.types.transport import SECRET_HEADER


def bootstrap(settings: Settings, *, sidecars: Sequence[SidecarEndpoint], version: EnvoyVersion = NEWEST) -> Config:
    """The bootstrap for these settings and sidecar processes, in the form for this Envoy version."""
    extensions = bootstrap_extensions(settings)
    whole: Config = {
        "admin": {"address": address(settings.place(settings.envoy.admin))},
        **({"bootstrap_extensions": extensions} if extensions else {}),
        "static_resources": {
            "listeners": [
                # Inbound: a drain closes this listener, while model calls still use the other one.
                {
                    **listener("public", settings.listen, connection_manager(settings)),
                    "traffic_direction": "INBOUND",
                    **client_limits(settings),
                },
                model_door(settings),
                *upstream_listeners(settings),
                *picker_listeners(settings),
                *metrics_listener(settings),
            ],
            "clusters": [
                *clusters(settings, sidecars, nowhere=bool(settings.cors.origins)),
                *metrics_cluster(settings),
            ],
        },
        "overload_manager": overload_manager(settings),
    }
    return fitted(whole, version)


def to_yaml(config: Config | list[Config]) -> str:
    """The configuration as YAML, with keys in their original order."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, width=1000)


def fill_in_secret(text: str, settings: Settings) -> str:
    """The YAML with the shared secret in place of the placeholder; for a file that only Envoy's user can read."""
    secret = settings.sidecar_secret()
    return text if secret is None else text.replace(SECRET_PLACEHOLDER, json.dumps(secret)[1:-1])


# libyaml's writer takes a fifth of the time; a PyYAML without it has only its own.
_SafeDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_SafeDumper):  # type: ignore[misc, valid-type]
    """Writes shared parts out instead of using anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Files within files stay readable, one line each. A plain `y` means true to Envoy, but not to PyYAML."""
    style = "|" if "\n" in text else "'" if text in ("y", "Y", "n", "N") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def connection_manager(settings: Settings) -> Config:
    """The public listener's HTTP connection manager."""
    manager = http_manager(
        "antiphon",
        public_routes(settings, to_nowhere=bool(settings.cors.origins)),
        name="public",
        filters=[*cors_filters(settings), _readiness(), extproc_filter(settings)],
        host=virtual_host(settings),
        # By default, silence ends a stream after 5 minutes in every phase; keep-alive comments come every 15 s.
        stream_idle_timeout="3600s",
        request_timeout="0s",
        # The sidecar applies timeouts to bodies; only Envoy can apply them to heads.
        request_headers_timeout=_seconds(settings.timeouts.request),
        common_http_protocol_options={"idle_timeout": _seconds(settings.timeouts.client_idle)},
        # By default, an HTTP/1 client sees a cut stream 1 s late.
        delayed_close_timeout="0.25s",
        # Normalizes every path before any route is matched.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="REJECT_REQUEST",
        early_header_mutation_extensions=[_strip_trust(settings)],
        upgrade_configs=[{"upgrade_type": "websocket", "enabled": False}],
        local_reply_config=local_replies(),
    )
    manager.update(tracing(settings, begins=True))
    manager["access_log"] = [failure_lines(), early_ends(), *([_access_log()] if settings.envoy.access_log else [])]
    return manager


def virtual_host(settings: Settings) -> Config:
    """The fields that apply to all public routes."""
    # Passed-through responses get the header that the sidecar's responses have, unless a native upstream sets its own.
    return {**cors_policy(settings), "response_headers_to_add": [REQUEST_ID]}


def client_limits(settings: Settings) -> Config:
    """The public listener's limits for slow connections. (The manager limits heads and idle connections.)"""
    fields: Config = {
        # A connection that sends nothing: this filter waits for its first bytes, and has a timeout.
        "listener_filters": [
            {
                "name": "envoy.filters.listener.http_inspector",
                "typed_config": typed("filters.listener.http_inspector.v3.HttpInspector"),
            }
        ],
        "listener_filters_timeout": _seconds(settings.timeouts.request),
        # Envoy's default, explicit because the limit of unsent bytes depends on it.
        "per_connection_buffer_limit_bytes": 1 << 20,
    }
    if sys.platform == "linux":
        # A client that does not read. Envoy has no such timeout during a response, but the kernel has.
        milliseconds = int(settings.timeouts.send * 1000)
        fields["socket_options"] = [
            {
                "description": "TCP_USER_TIMEOUT",
                "level": int(socket.IPPROTO_TCP),
                "name": int(socket.TCP_USER_TIMEOUT),
                "int_value": milliseconds,
                "state": "STATE_PREBIND",
            }
        ]
    return fields


def overload_manager(settings: Settings) -> Config:
    """The limits of the process, not of a request."""
    heap = "envoy.resource_monitors.fixed_heap"

    def at(full: float) -> list[Config]:
        return [{"name": heap, "threshold": {"value": full}}]

    return {
        "refresh_interval": "0.25s",
        # Streams count by their buffered bytes from one megabyte on.
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},
        "resource_monitors": [
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": typed(
                    "resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=50000,
                ),
            },
            {
                "name": heap,
                "typed_config": typed(
                    "resource_monitors.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=settings.envoy.heap_bytes
                ),
            },
        ],
        "actions": [
            {"name": "envoy.overload_actions.shrink_heap", "triggers": at(0.8)},
            # Only HTTP/2 streams can be reset like this, those with the most bytes first. HTTP/1 streams end by
            # TCP_USER_TIMEOUT, and until then no more of them are accepted.
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [{"name": heap, "scaled": {"scaling_threshold": 0.85, "saturation_threshold": 0.95}}],
            },
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": at(0.95)},
        ],
    }


def model_door(settings: Settings) -> Config:
    """The private listener for the sidecar's own model calls."""
    manager = http_manager(
        "model_door",
        model_door_routes(settings),
        stream_idle_timeout="3600s",
        # By default, the sidecar, and so the client, would see the end of a broken upstream 1 s late.
        delayed_close_timeout="0.25s",
        normalize_path=True,
        merge_slashes=True,
        # A native upstream's responses pass unchanged, so Envoy's own responses in their place must be error objects
        # too.
        local_reply_config=local_replies(to_sidecar=True),
    )
    manager.update(tracing(settings, begins=False))
    door = listener("model_door", settings.place(settings.sidecar.model_door), manager)
    if "pipe" in door["address"]:
        door["address"]["pipe"]["mode"] = settings.sidecar.socket_mode
    return door


def extproc_filter(settings: Settings) -> Config:
    """The external processor: off for every route, except the one that enables it."""
    # The filter comes before the router, so no route's retries apply to it. A sidecar sends gRPC's head before any
    # action that must not happen twice (`Peer.begin`); after a head Envoy retries nothing.
    service: Config = {
        "envoy_grpc": {"cluster_name": "sidecar_grpc"},
        "retry_policy": to_another_sidecar(SEEN_TOO),
    }
    if parse_address(settings.sidecar.grpc)[0] != "unix":
        service["initial_metadata"] = [{"key": SECRET_HEADER, "value": f"%ENVIRONMENT({SECRET_VARIABLE})%"}]
    return http_filter(
        EXTPROC,
        typed(
            "filters.http.ext_proc.v3.ExternalProcessor",
            grpc_service=service,
            failure_mode_allow=False,
            # In the modes below Envoy waits forever, whatever this value is; its default is 200 ms.
            message_timeout="3600s",
            status_on_error={"code": "ServiceUnavailable"},
            # The sidecar sends an exact length; without this Envoy would use chunked encoding for every request.
            allow_content_length_header=True,
            # Without it Envoy silently ignores changes of :method and :authority.
            mutation_rules={"allow_all_routing": True},
            metadata_options={"receiving_namespaces": {"untyped": ["antiphon"], "typed": ["envoy.ai.token_usage"]}},
            processing_mode=FULL_DUPLEX,
        ),
        disabled=True,
    )


def _readiness() -> Config:
    """`/ready` returns the sidecars' response. After `/healthcheck/fail`, Envoy fails it itself."""
    asked = [{"name": ":path", "string_match": {"exact": "/ready"}}]
    return http_filter(
        "envoy.filters.http.health_check",
        typed("filters.http.health_check.v3.HealthCheck", pass_through_mode=True, headers=asked),
    )


def _strip_trust(settings: Settings) -> Config:
    """Removes the headers that the sidecar and the routes trust from clients' requests."""
    prefix = {"remove_on_match": {"key_matcher": {"prefix": "x-antiphon-", "ignore_case": True}}}
    mutations: list[Config] = [prefix, *(stripped() if is_picked(settings) else [])]
    if not settings.owner.header.startswith("x-antiphon-"):
        mutations.append({"remove": settings.owner.header})
    return early_headers("strip_trust", mutations)


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
    return log_lines("stdout", parts)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


_ADMIN = "admin"


def metrics_listener(settings: Settings) -> list[Config]:
    """The listener, if `envoy.metrics` is set."""
    if settings.envoy.metrics is None:
        return []
    routes = [
        {"name": "live", "match": {"path": "/live"}, "direct_response": {"status": 200}},
        {"name": "metrics", "match": {"path": "/stats/prometheus"}, "route": {"cluster": _ADMIN, "timeout": "10s"}},
    ]
    manager = http_manager(
        "metrics",
        routes,
        request_headers_timeout="10s",
        request_timeout="10s",
        common_http_protocol_options={"idle_timeout": "60s"},
    )
    return [listener("metrics", settings.envoy.metrics, manager)]


def metrics_cluster(settings: Settings) -> list[Config]:
    """Envoy's admin interface as a cluster, if `envoy.metrics` is set."""
    if settings.envoy.metrics is None:
        return []
    return [cluster(_ADMIN, [address(settings.place(settings.envoy.admin))], type="STATIC")]


_CORS_FILTER = "envoy.filters.http.cors"


def cors_filters(settings: Settings) -> list[Config]:
    """Entries of `http_filters`, before all others that can respond."""
    if not settings.cors.origins:
        return []
    # The first filter processes every response last, so `vary` is always set: no cache may give one page's response to
    # another. (Headers of the virtual host are lost in responses that replace the router's.)
    vary = {"header": {"key": "vary", "value": "origin"}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}
    varies = typed(
        "filters.http.header_mutation.v3.HeaderMutation", mutations={"response_mutations": [{"append": vary}]}
    )
    return [
        http_filter("envoy.filters.http.header_mutation", varies),
        http_filter(_CORS_FILTER, typed("filters.http.cors.v3.Cors")),
    ]


def cors_policy(settings: Settings) -> Config:
    """The CORS fields of the virtual host."""
    if not settings.cors.origins:
        return {}
    policy = typed(
        "filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=[_origin_matcher(origin) for origin in settings.cors.origins],
        allow_methods=cors.ALLOW_METHODS,
        allow_headers=cors.ALLOW_HEADERS,
        expose_headers=cors.EXPOSE_HEADERS,
        max_age=cors.MAX_AGE,
    )
    return {"typed_per_filter_config": {_CORS_FILTER: policy}}


def _origin_matcher(origin: str) -> Config:
    return {"safe_regex": {"regex": ".*"}} if origin == "*" else {"exact": origin}
