"""Generates a whole Envoy bootstrap, as a dictionary and as YAML.

This module generates listeners, filters (also CORS), and the limits of the process. Among the listeners are those for
the console and for Envoy's own metrics (`envoy.metrics`). `routes.py` generates the routes, `clusters.py` the clusters,
and `failures.py` Envoy's own responses. The package `commands` starts Envoy.

A comment gives the reason for every setting that differs from Envoy's default. All settings were tried with Envoy
1.40.0. A last step removes fields that an older Envoy does not know (`versions.py`).

Invariant: `envoy --mode validate` accepts the result, and the result contains no secret. The environment of Envoy's
process holds the secrets. The routes of a model listener on TCP can only compare the secret with a literal. These
routes contain a placeholder, and the command that starts Envoy replaces it by the secret (`fill_in_secret`).
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
from antiphon.envoy.failures import REQUEST_ID, early_ends, failure_lines, local_replies, unknown_paths
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
    CORS,
    EXTPROC,
    SECRET_PLACEHOLDER,
    SECRET_VARIABLE,
    SEEN_TOO,
    console_routes,
    model_door_routes,
    public_routes,
    to_another_sidecar,
)
from antiphon.envoy.several import bootstrap_extensions, upstream_listeners
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.tracing import tracing
from antiphon.envoy.versions import NEWEST, EnvoyVersion, fitted
from antiphon.types.transport import CORS_EXPOSED, CORS_HEADERS, CORS_MAX_AGE, CORS_METHODS, SECRET_HEADER

CONSOLE_CONNECTIONS = 1024
"""The maximum number of connections of the console's listener in Envoy."""
_CONSOLE_SECONDS = 5.0


def bootstrap(settings: Settings, *, sidecars: Sequence[SidecarEndpoint], version: EnvoyVersion = NEWEST) -> Config:
    """Build the bootstrap for these settings and sidecar processes. Fields that this Envoy version lacks are left
    out."""
    extensions = bootstrap_extensions(settings)
    whole: Config = {
        "admin": {"address": address(settings.place(settings.envoy.admin))},
        **({"bootstrap_extensions": extensions} if extensions else {}),
        "static_resources": {
            "listeners": [
                # A drain closes only inbound listeners, so model calls can still use the model listener.
                {
                    **listener("public", settings.listen, connection_manager(settings)),
                    "traffic_direction": "INBOUND",
                    **client_limits(settings),
                },
                *console_listener(settings),
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
        **_runtime(settings),
    }
    return fitted(whole, version)


def to_yaml(config: Config | list[Config]) -> str:
    """Return the configuration as YAML, with the fields of each mapping in their original order."""
    return yaml.dump(config, Dumper=_Dumper, sort_keys=False, width=1000)


def fill_in_secret(text: str, settings: Settings) -> str:
    """Replace the placeholder in the YAML by the shared secret. The result belongs in a file that only Envoy's user can
    read."""
    secret = settings.sidecar_secret()
    return text if secret is None else text.replace(SECRET_PLACEHOLDER, json.dumps(secret)[1:-1])


# The writer of libyaml takes a fifth of the time of PyYAML's own writer. PyYAML may be installed without libyaml.
_SafeDumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_SafeDumper):  # type: ignore[misc, valid-type]
    """Writes a YAML document without anchors: a value that occurs twice is written twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Write a text with line breaks as a block, so that embedded files stay readable. Quote a single `y` or `n`,
    because Envoy reads it as a boolean and PyYAML does not."""
    style = "|" if "\n" in text else "'" if text in ("y", "Y", "n", "N") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def connection_manager(settings: Settings) -> Config:
    """Build the HTTP connection manager of the public listener."""
    manager = http_manager(
        "antiphon",
        public_routes(settings, to_nowhere=bool(settings.cors.origins)),
        name="public",
        filters=[*cors_filters(settings), _readiness(), extproc_filter(settings)],
        host=virtual_host(settings),
        **_client_options(settings),
    )
    manager.update(tracing(settings, begins=True))
    manager["access_log"] = [
        failure_lines(),
        early_ends(),
        *([unknown_paths()] if settings.console.enabled else []),
        *([_access_log(settings)] if settings.envoy.access_log else []),
    ]
    return manager


def console_listener(settings: Settings) -> list[Config]:
    """Return the listener that serves only the console. The list is empty unless the console is enabled."""
    if not settings.console.enabled:
        return []
    # The sidecar logs the console's requests. Envoy's access log would show their queries.
    manager = http_manager(
        "console", console_routes(settings), host={"response_headers_to_add": [REQUEST_ID]}, **_client_options(settings)
    )
    manager["request_headers_timeout"] = _seconds(_console_seconds(settings))
    # All listeners share the limit of Envoy's connections. This listener has a lower limit, so that clients of the API
    # can still connect. The filter counts connections that have sent a byte. `_runtime` limits the others.
    limit = typed(
        "filters.network.connection_limit.v3.ConnectionLimit",
        stat_prefix="console",
        max_connections=CONSOLE_CONNECTIONS,
    )
    made = listener("console", settings.console.listen, manager)
    made["filter_chains"][0]["filters"].insert(
        0, {"name": "envoy.filters.network.connection_limit", "typed_config": limit}
    )
    seconds = _seconds(_console_seconds(settings))
    return [{**made, "traffic_direction": "INBOUND", **client_limits(settings), "listener_filters_timeout": seconds}]


def _console_seconds(settings: Settings) -> float:
    """The timeout in seconds for the request head on the console's listener."""
    return min(settings.timeouts.request, _CONSOLE_SECONDS)


def _runtime(settings: Settings) -> Config:
    """Build Envoy's runtime configuration, which limits the number of connections of the console's listener. The result
    is empty if the console is not enabled."""
    if not settings.console.enabled:
        return {}
    values = {"envoy.resource_limits.listener.console.connection_limit": CONSOLE_CONNECTIONS}
    return {"layered_runtime": {"layers": [{"name": "antiphon", "static_layer": values}]}}


def _client_options(settings: Settings) -> Config:
    """Return the options of a connection manager for untrusted clients."""
    return {
        # With its default, Envoy ends a stream after 5 minutes of silence, also before the first byte. The sidecar
        # sends keep-alive comments every 15 s, but only after a stream has begun.
        "stream_idle_timeout": "3600s",
        "request_timeout": "0s",
        # The sidecar applies timeouts to request bodies, but only Envoy can apply a timeout to request heads.
        "request_headers_timeout": _seconds(settings.timeouts.request),
        "common_http_protocol_options": {"idle_timeout": _seconds(settings.timeouts.client_idle)},
        # With Envoy's default, an HTTP/1 client sees a cut stream 1 s late.
        "delayed_close_timeout": "0.25s",
        # Envoy normalizes every path before it matches a route.
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "early_header_mutation_extensions": [_strip_trust(settings)],
        "upgrade_configs": [{"upgrade_type": "websocket", "enabled": False}],
        "local_reply_config": local_replies(),
    }


def virtual_host(settings: Settings) -> Config:
    """Build the fields of the virtual host, which apply to all public routes."""
    # A passed-through response gets the `x-request-id` header, as the sidecar's responses do. If a native upstream has
    # set the header, the upstream's value stays.
    return {**cors_policy(settings), "response_headers_to_add": [REQUEST_ID]}


def client_limits(settings: Settings) -> Config:
    """Build the public listener's limits for slow connections. The connection manager limits request heads and idle
    connections."""
    fields: Config = {
        # The HTTP inspector waits for the first bytes of a connection. So the timeout of the HTTP inspector closes a
        # connection that sends nothing.
        "listener_filters": [
            {
                "name": "envoy.filters.listener.http_inspector",
                "typed_config": typed("filters.listener.http_inspector.v3.HttpInspector"),
            }
        ],
        "listener_filters_timeout": _seconds(settings.timeouts.request),
        # 1 MiB is Envoy's default for this limit. The configuration sets the limit explicitly, because the limit of
        # unsent bytes depends on it.
        "per_connection_buffer_limit_bytes": 1 << 20,
    }
    if sys.platform == "linux":
        # The kernel closes the connection of a client that does not read. Envoy has no such timeout during a response.
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
    """Build the limits for Envoy's whole process, such as its heap size and its number of connections."""
    heap = "envoy.resource_monitors.fixed_heap"

    def at(full: float) -> list[Config]:
        return [{"name": heap, "threshold": {"value": full}}]

    return {
        "refresh_interval": "0.25s",
        # A stream counts for `reset_high_memory_stream` when it buffers 2^20 bytes or more.
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
            # With this action Envoy can reset only HTTP/2 streams, and begins with the streams that buffer the most.
            # TCP_USER_TIMEOUT ends HTTP/1 streams, and until then Envoy accepts no new requests.
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": [{"name": heap, "scaled": {"scaling_threshold": 0.85, "saturation_threshold": 0.95}}],
            },
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": at(0.95)},
        ],
    }


def model_door(settings: Settings) -> Config:
    """Build the private listener for the sidecar's own model calls."""
    manager = http_manager(
        "model_door",
        model_door_routes(settings),
        stream_idle_timeout="3600s",
        # With Envoy's default, the sidecar would see a broken upstream 1 s late, and so would the client.
        delayed_close_timeout="0.25s",
        normalize_path=True,
        merge_slashes=True,
        # A native upstream's responses pass unchanged. So a response that Envoy makes instead of the upstream must also
        # be an OpenAI error object.
        local_reply_config=local_replies(to_sidecar=True),
    )
    manager.update(tracing(settings, begins=False))
    door = listener("model_door", settings.place(settings.sidecar.model_door), manager)
    if "pipe" in door["address"]:
        door["address"]["pipe"]["mode"] = settings.sidecar.socket_mode
    return door


def extproc_filter(settings: Settings) -> Config:
    """Build the ext_proc filter. Envoy disables the filter by default, and only a route with an override enables it."""
    # The filter runs before the router, so no route's retry policy applies to its gRPC calls. A sidecar sends gRPC's
    # response head before any action that must not happen twice (`Peer.begin`). Envoy retries no call after a response
    # head.
    service: Config = {
        "envoy_grpc": {"cluster_name": "sidecar_grpc"},
        "retry_policy": to_another_sidecar(SEEN_TOO),
    }
    if parse_address(settings.sidecar.grpc)[0] != "unix":
        service["initial_metadata"] = [{"key": SECRET_HEADER, "value": f"%ENVIRONMENT({SECRET_VARIABLE})%"}]
    owner = settings.owner
    claims = owner.source == "metadata"
    return http_filter(
        EXTPROC,
        typed(
            "filters.http.ext_proc.v3.ExternalProcessor",
            grpc_service=service,
            failure_mode_allow=False,
            # In FULL_DUPLEX_STREAMED mode Envoy ignores `message_timeout` and waits forever. `message_timeout` is set
            # anyway, because its default is 200 ms.
            message_timeout="3600s",
            status_on_error={"code": "ServiceUnavailable"},
            # The sidecar sends an exact `content-length`. Without `allow_content_length_header` Envoy would use chunked
            # encoding for every request.
            allow_content_length_header=True,
            # Without `allow_all_routing` Envoy silently ignores changes of :method and :authority.
            mutation_rules={"allow_all_routing": True},
            metadata_options={
                **({"forwarding_namespaces": {"untyped": [owner.metadata.namespace]}} if claims else {}),
                "receiving_namespaces": {"untyped": ["antiphon"], "typed": ["envoy.ai.token_usage"]},
            },
            processing_mode=FULL_DUPLEX,
        ),
        disabled=True,
    )


def _readiness() -> Config:
    """Build the health check filter, which passes `/ready` through to the sidecars. After `/healthcheck/fail` on its
    admin port, Envoy itself answers `/ready` with an error."""
    asked = [{"name": ":path", "string_match": {"exact": "/ready"}}]
    return http_filter(
        "envoy.filters.http.health_check",
        typed("filters.http.health_check.v3.HealthCheck", pass_through_mode=True, headers=asked),
    )


def _strip_trust(settings: Settings) -> Config:
    """Build the extension that removes trusted headers from clients' requests. The sidecar and the routes rely on these
    headers."""
    prefix = {"remove_on_match": {"key_matcher": {"prefix": "x-antiphon-", "ignore_case": True}}}
    mutations: list[Config] = [prefix, *(stripped() if is_picked(settings) else [])]
    if not settings.owner.header.startswith("x-antiphon-"):
        mutations.append({"remove": settings.owner.header})
    return early_headers("strip_trust", mutations)


def _access_log(settings: Settings) -> Config:
    # The sidecar logs the console's requests without their queries.
    others = "!request.path.startsWith('/console')" if settings.console.on_client_listener else None
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
    return log_lines("stdout", parts, others)


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


_ADMIN = "admin"


def metrics_listener(settings: Settings) -> list[Config]:
    """Return the listener for Envoy's metrics. The list is empty unless `envoy.metrics` is set."""
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
    """Return a cluster for Envoy's admin interface. The list is empty unless `envoy.metrics` is set."""
    if settings.envoy.metrics is None:
        return []
    return [cluster(_ADMIN, [address(settings.place(settings.envoy.admin))], type="STATIC")]


def cors_filters(settings: Settings) -> list[Config]:
    """Return the CORS entries of `http_filters`, which come before all other filters that can respond. The list is
    empty unless `cors.origins` is set."""
    if not settings.cors.origins:
        return []
    # The first filter is the last to process a response, so `header_mutation` comes first and always sets `vary`.
    # Without `vary`, a cache could give one page's response to another page. A header that the virtual host adds would
    # be missing in responses that a filter sends instead of the router.
    vary = {"header": {"key": "vary", "value": "origin"}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}
    varies = typed(
        "filters.http.header_mutation.v3.HeaderMutation", mutations={"response_mutations": [{"append": vary}]}
    )
    return [
        http_filter("envoy.filters.http.header_mutation", varies),
        http_filter(CORS, typed("filters.http.cors.v3.Cors")),
    ]


def cors_policy(settings: Settings) -> Config:
    """Return the CORS fields of the virtual host."""
    if not settings.cors.origins:
        return {}
    policy = typed(
        "filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=[_origin_matcher(origin) for origin in settings.cors.origins],
        allow_methods=CORS_METHODS,
        allow_headers=CORS_HEADERS,
        expose_headers=CORS_EXPOSED,
        max_age=CORS_MAX_AGE,
    )
    return {"typed_per_filter_config": {CORS: policy}}


def _origin_matcher(origin: str) -> Config:
    return {"safe_regex": {"regex": ".*"}} if origin == "*" else {"exact": origin}
