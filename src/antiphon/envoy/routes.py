"""Generates the routes: the paths, their clusters, and the paths that never reach an upstream.

This module generates the routes of the public listener and of the model listener, in order. `bootstrap.py` generates
listeners and filters, and `clusters.py` generates clusters.

Invariants: every path of Antiphon is listed. Only paths on an allow-list reach the upstream. `POST /v1/responses` never
reaches the upstream untranslated, because its route is a dead end and only the sidecar's answer selects another route.
Envoy removes trusted headers from clients' requests and from requests to upstreams.
"""

from __future__ import annotations

from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode, UpstreamGroup, UpstreamSettings
from antiphon.envoy.messages import Config, direct_response, error_body, overwritten, typed
from antiphon.envoy.picker import asked_again, is_picked
from antiphon.envoy.tracing import untraced
from antiphon.translation.chat.context_size import COUNTERS, TokenCounter
from antiphon.types.transport import (
    BACKEND_HEADER,
    CONSOLE_HEADER,
    CONSOLE_PATH,
    LOCAL_REPLY,
    LONGEST_REQUEST_ID,
    PEER_HEADER,
    REQUEST_ID,
    SECRET_HEADER,
    TRIED_HEADER,
    UNFIT_REQUEST_ID,
)

EXTPROC = "envoy.filters.http.ext_proc"
CORS = "envoy.filters.http.cors"
KEY_VARIABLE = "ANTIPHON_UPSTREAM_KEY"
"""The environment variable of Envoy's process with the upstream's API key, for `upstream.auth: inject`."""
SECRET_VARIABLE = "ANTIPHON_SIDECAR_SECRET"
"""The environment variable of Envoy's process with the shared secret, for sidecar ports on TCP."""
SECRET_PLACEHOLDER = f"${{{SECRET_VARIABLE}}}"
"""The placeholder for the secret in route matchers. Matchers accept only literals, and the printed configuration must
not contain the secret."""

NOWHERE = "nowhere"
"""The name of a cluster without endpoints."""
UNSEEN = "connect-failure,refused-stream,reset-before-request"
"""The conditions for a retry on another sidecar when no process has seen any part of the request."""
SEEN_TOO = f"{UNSEEN},reset"
"""The conditions in `UNSEEN`, and also the death of a process before its first answer."""
_MODEL_PATHS = ("/chat/completions", "/embeddings")
BODY_LIMIT = 33_554_432
"""The maximum body in bytes of a request that Envoy can retry. Envoy silently does not retry larger requests. Envoy's
default is 1 MiB."""
NOTHING = "nothing"
"""The name of the last route, for paths that do not exist."""
RESPONSES = "responses"
"""The name of the route for `POST /v1/responses`."""
PASSED_ON = "passed_on"
"""The prefix of Envoy's counters for requests that bypass the sidecar."""
NOT_HANDLED = (
    "Envoy did not send this request to Antiphon's sidecar. Add the filter envoy.filters.http.ext_proc before the "
    "router filter, and the route `responses`, as `antiphon envoy-config` prints them."
)
NOT_FOUND = (
    "Unknown request URL: no endpoint has this path. Check the path for typos. /openapi.json lists all endpoints, for "
    "example /v1/responses, /v1/models and /v1/files."
)
UNKNOWN_URL = "unknown_url"
"""The code of the error with the message `NOT_FOUND`."""
NOT_FOUND_BODY = error_body(NOT_FOUND, "invalid_request_error", UNKNOWN_URL)


_NATIVE_PATHS = ("/responses", "/responses/compact", "/responses/input_tokens")


_OWN_PATHS: dict[str, Config] = {
    "responses_resource": {"safe_regex": {"regex": "/v1/responses(/.*)?"}},
    "conversations": {"safe_regex": {"regex": "/v1/conversations(/.*)?"}},
    "files": {"safe_regex": {"regex": "/v1/files(/.*)?"}},
    "vector_stores": {"safe_regex": {"regex": "/v1/vector[_-]stores(/.*)?"}},
    "search": {"path": "/v1/search"},
    "standalone_search": {"path": "/v1/alpha/search"},
    "containers": {"safe_regex": {"regex": "/v1/containers(/.*)?"}},
    "prompts": {"safe_regex": {"regex": "/v1/prompts(/.*)?"}},
    "models": {"safe_regex": {"regex": "/v1/models(/.*)?"}},
    "capabilities": {"safe_regex": {"regex": "/v1/antiphon/capabilities"}},
    "openapi": {"path": "/openapi.json"},
    "health": {"path": "/health"},
    "ready": {"path": "/ready"},
}
"""The route matches of the paths that a sidecar handles itself, by route name."""
_ADMIN_PATHS: dict[str, Config] = {"admin": {"safe_regex": {"regex": "/v1/antiphon/admin/.*"}}}
_PROBES = ("health", "ready")


_NO_PREVIOUS_HOSTS: Config = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": typed("retry.host.previous_hosts.v3.PreviousHostsPredicate"),
}


def key_variable(upstream: str) -> str:
    """Return the environment variable of Envoy's process with the API key of this upstream."""
    return KEY_VARIABLE if upstream == "default" else f"{KEY_VARIABLE}_{upstream.replace('-', '_').upper()}"


def model_cluster(upstream: str) -> str:
    """Return the name of this upstream's cluster."""
    return "model" if upstream == "default" else f"model_{upstream}"


def group_cluster(group: UpstreamGroup) -> str:
    """Return the name of the cluster for a list of upstreams."""
    return f"several_{group.name}"


def public_routes(settings: Settings, *, to_nowhere: bool) -> list[Config]:
    """Return the public listener's routes, most specific first. If `to_nowhere` is True, dead ends are routes to a
    cluster without endpoints. Filters such as cors and rate limits ignore their policies on routes with a direct
    response."""
    return [
        *_chosen(settings),
        {
            "name": "websocket",
            "match": {
                "path": "/v1/responses",
                "headers": [{"name": "upgrade", "string_match": {"exact": "websocket", "ignore_case": True}}],
            },
            "route": {
                **_sidecar_action(),
                "upgrade_configs": [{"upgrade_type": "websocket", "enabled": True}],
            },
            **_told_to_sidecar(settings),
        },
        {
            **_dead_end(to_nowhere),
            "typed_per_filter_config": {
                EXTPROC: typed("filters.http.ext_proc.v3.ExtProcPerRoute", overrides={}),
            },
        },
        # Envoy may retry GET requests even when a sidecar has seen them, because GET requests change nothing.
        *(
            {
                "name": name,
                "match": {**match, **reads},
                "route": _sidecar_action(retried),
                **_told_to_sidecar(settings),
                **(untraced(settings) if name in _PROBES else {}),
            }
            for name, match in (_OWN_PATHS | (_ADMIN_PATHS if settings.serves_admin else {})).items()
            for reads, retried in (({"headers": [_method("GET")]}, SEEN_TOO), ({}, UNSEEN))
        ),
        *_passed_on(settings),
        *([_console(settings)] if settings.console.enabled and settings.console.on_client_listener else []),
        _nothing(to_nowhere),
    ]


def console_routes(settings: Settings) -> list[Config]:
    """Return the routes of the console's separate listener, which serves nothing else."""
    reads = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD"}}}
    said = error_body(f"This listener serves only the console: {CONSOLE_PATH}", "invalid_request_error", "unknown_url")
    return [
        _console(settings),
        {
            "name": "to_console",
            "match": {"path": "/", "headers": [reads]},
            # A redirect of Envoy would have an absolute URL, with a wrong scheme behind a proxy with TLS.
            "direct_response": {"status": 302},
            "response_headers_to_add": [overwritten("location", CONSOLE_PATH)],
        },
        direct_response("no_page", {"prefix": "/"}, 404, said),
    ]


def _console(settings: Settings) -> Config:
    """Build the route to the console. The sidecar serves the console only to requests with the header that this route
    adds. Pages of other origins must not read the console, so the CORS filter ignores the route."""
    fields = _told_to_sidecar(settings)
    # The sidecar limits the failed sign-ins from each address, but sees only Envoy's address.
    address = overwritten(PEER_HEADER, "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%")
    fields.setdefault("request_headers_to_add", []).extend([overwritten(CONSOLE_HEADER, "1"), address])
    no_cors = typed("filters.http.cors.v3.CorsPolicy", filter_enabled={"default_value": {"numerator": 0}})
    return {
        "name": "console",
        "match": {"safe_regex": {"regex": f"{CONSOLE_PATH}(/.*)?"}},
        "route": _sidecar_action(),
        **fields,
        **untraced(settings),
        **({"typed_per_filter_config": {CORS: no_cors}} if settings.cors.origins else {}),
    }


def _dead_end(to_nowhere: bool) -> Config:
    """Build the route of `POST /v1/responses`. The route leads nowhere, unless the sidecar's answer selects another
    route."""
    match = {"path": "/v1/responses", "headers": [_method("POST")]}
    if to_nowhere:
        # If no ext_proc filter has selected another route, `local_replies` explains the error to the client.
        return {"name": RESPONSES, "match": match, "route": {"cluster": NOWHERE, "timeout": "0s"}}
    said = error_body(NOT_HANDLED, "server_error", None)
    return direct_response(RESPONSES, match, 502, said)


def _nothing(to_nowhere: bool) -> Config:
    """Build the route for all paths that do not exist."""
    if to_nowhere:
        # `local_replies` turns Envoy's error for this cluster into a 404.
        return {"name": NOTHING, "match": {"prefix": "/"}, "route": {"cluster": NOWHERE, "timeout": "0s"}}
    return direct_response(NOTHING, {"prefix": "/"}, 404, NOT_FOUND_BODY)


def _passed_on(settings: Settings) -> list[Config]:
    """Return the routes for Chat Completions and similar paths. The routes lead directly to the upstream, unless the
    sidecar must decide about the request first."""
    paths = (*_MODEL_PATHS, *(settings.upstream.path_allow if settings.has_default else ()))
    decided = dict.fromkeys(paths, settings.decides_chat) | {"/embeddings": settings.decides_embeddings}
    routes: list[Config] = []
    for path, here in decided.items():
        if here:
            match = {"path": "/v1" + path}
            routes.append(
                {"name": f"sidecar{path}", "match": match, "route": _sidecar_action(), **_told_to_sidecar(settings)}
            )
        else:
            routes += _untouched(settings, path)
    return routes


def _untouched(settings: Settings, path: str) -> list[Config]:
    """Return the routes that bypass the sidecar. Envoy counts requests on these routes under a separate name, because
    the cluster's counters include the sidecar's calls. On these routes Envoy also replaces a request id that the
    servers would reject. Envoy truncates a long id instead, because its regular expressions cannot count that far."""
    unfit = {
        "name": REQUEST_ID,
        "string_match": {"safe_regex": {"regex": UNFIT_REQUEST_ID}},
    }
    routes = []
    for headers, value in (([unfit], "%UNIQUE_ID%"), ([], f"%REQ(X-REQUEST-ID):{LONGEST_REQUEST_ID}%")):
        route = _to_model(settings, f"model{path}", path, headers=headers)
        if is_picked(settings):
            # Envoy removes this response header, because it is only for the sidecar.
            route["response_headers_to_remove"] = [LOCAL_REPLY]
        route.setdefault("request_headers_to_add", []).append(overwritten(REQUEST_ID, value))
        routes.append({**route, "stat_prefix": PASSED_ON})
    return routes


def model_door_routes(settings: Settings) -> list[Config]:
    """Return the routes of the model listener, which serves only the sidecar's own model calls."""
    needed: list[Config] = []
    if parse_address(settings.sidecar.model_door)[0] != "unix":
        needed = [{"name": SECRET_HEADER, "string_match": {"exact": SECRET_PLACEHOLDER}}]
    routes = [
        to_group(settings, group, {"prefix": "/", "headers": [*needed, _named(group.name)]}, group.name)
        for group in settings.groups.values()
    ]
    native = settings.native_upstreams
    for name in settings.upstreams:
        chosen = [*needed, _named(name)]
        paths = (*_MODEL_PATHS, *(_NATIVE_PATHS if name in native else ()))
        routes += [_to_model(settings, f"{name}{path}", path, headers=chosen, upstream=name) for path in paths]
        routes.append(_to_model(settings, f"{name}/models", "/models", method="GET", headers=chosen, upstream=name))
        routes += [_counting(settings, name, chosen, counter) for counter in COUNTERS.values()]
        if name == settings.native_of_ids:
            routes += _by_id(settings, name, chosen)
    if settings.native_of_ids == "default":
        routes += _by_id(settings, "default", needed)
    paths = (*_model_paths(settings), *(_NATIVE_PATHS if "default" in native else ()))
    routes += [_to_model(settings, f"model{path}", path, headers=needed) for path in paths]
    if settings.has_default:
        routes.append(_to_model(settings, "models", "/models", method="GET", headers=needed))
        routes += [_counting(settings, "default", needed, counter) for counter in COUNTERS.values()]
    refused = error_body(
        "This listener, the model door, accepts only model calls of Antiphon's sidecar. Send API requests to the "
        "listener for clients.",
        "invalid_request_error",
        None,
    )
    return [*routes, direct_response("nothing", {"prefix": "/"}, 404, refused)]


def _model_paths(settings: Settings) -> tuple[str, ...]:
    """Return the paths of the default upstream that clients and the sidecar may use."""
    return (*_MODEL_PATHS, *settings.upstream.path_allow) if settings.has_default else ()


def _counting(settings: Settings, upstream: str, headers: list[Config], counter: TokenCounter) -> Config:
    """Build the route to a model server's endpoint for counting tokens. The path of this endpoint is below the
    upstream's base URL or next to its `/v1`."""
    route = _to_model(settings, f"{upstream}{counter.path}", counter.path, headers=headers, upstream=upstream)
    if counter.above:
        base = settings.every_upstream[upstream].base_path.removesuffix("/v1")
        route["match"]["path"] = counter.path
        route["route"]["prefix_rewrite"] = base + counter.path
    return route


def upstream_routes(settings: Settings, name: str) -> list[Config]:
    """Return the routes to one upstream of a list, for the listener in front of this upstream."""
    routes = [_to_model(settings, path.strip("/"), path, upstream=name) for path in _MODEL_PATHS]
    routes += [_counting(settings, name, [], counter) for counter in COUNTERS.values()]
    for route in routes:
        # The routes to one upstream of a list have no retry policy. Envoy tries another upstream immediately, instead
        # of waiting for a dead host twice.
        route["route"].pop("retry_policy", None)
    return routes


def to_group(settings: Settings, group: UpstreamGroup, match: Config, name: str) -> Config:
    """Build a route to a list of upstreams. Envoy may try another upstream until the first byte of a response has
    arrived.

    Path, host and credentials differ by upstream. Envoy applies a route once, before it knows the upstream, so the
    listener of each upstream sets path, host and credentials.
    """
    policy: Config = {
        "retry_on": "5xx,retriable-status-codes",
        "retriable_status_codes": [429],
        "num_retries": len(group.names) - 1,
        "per_try_timeout": f"{settings.timeouts.head:g}s",
        # Envoy retries without delay, because the retry uses another upstream.
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.01s"},
    }
    if group.weights:
        policy["retry_host_predicate"] = [_NO_PREVIOUS_HOSTS]
        # A random choice may select the same upstream again. Even with the largest weights, Envoy selects another
        # upstream within this number of attempts.
        policy["host_selection_retry_max_attempts"] = 1000
    else:
        policy["retry_priority"] = {
            "name": "envoy.retry_priorities.previous_priorities",
            "typed_config": typed("retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", update_frequency=1),
        }
    return {
        "name": name,
        "match": match,
        "route": {"cluster": group_cluster(group), "timeout": "0s", "retry_policy": policy},
        "request_body_buffer_limit": BODY_LIMIT,
        "response_headers_to_add": [overwritten(TRIED_HEADER, "%UPSTREAM_REQUEST_ATTEMPT_COUNT%")],
    }


def _by_id(settings: Settings, upstream: str, headers: list[Config]) -> list[Config]:
    """Return the routes for responses that an upstream stores itself: get, delete and cancel by id."""
    routes = []
    for method in ("GET", "DELETE", "POST"):
        route = _to_model(
            settings, f"{upstream}/responses/id", "/responses/", method=method, headers=headers, upstream=upstream
        )
        route["match"]["prefix"] = route["match"].pop("path")
        routes.append(route)
    return routes


def _named(upstream: str) -> Config:
    return {"name": BACKEND_HEADER, "string_match": {"exact": upstream}}


def _method(name: str) -> Config:
    return {"name": ":method", "string_match": {"exact": name}}


def _chosen(settings: Settings) -> list[Config]:
    """Return the routes that the sidecar selects for `POST /v1/responses`. These routes match a header that only the
    sidecar can set, because Envoy removes the header from clients' requests.

    The header's value is the upstream's name. A native upstream is called on the path that the client used.
    """
    native = settings.native_upstreams
    routes = [
        to_group(
            settings,
            group,
            {"path": "/v1/chat/completions", "headers": [_method("POST"), _named(group.name)]},
            f"translated/{group.name}",
        )
        for group in settings.groups.values()
    ]
    for name in reversed(settings.every_upstream):
        match = {"string_match": {"exact": name}} if name != "default" else {"present_match": True}
        suffix = "" if name == "default" else f"/{name}"
        if name in native:
            routes.append(_to_model(settings, f"native{suffix}", "/responses", upstream=name))
            routes[-1]["match"]["headers"].append(_named(name))
        route = _to_model(settings, f"translated{suffix}", "/chat/completions", upstream=name)
        route["match"]["headers"].append({"name": BACKEND_HEADER, **match})
        routes.append(route)
    return routes


def _to_model(
    settings: Settings,
    name: str,
    path: str,
    *,
    method: str = "POST",
    headers: list[Config] | None = None,
    upstream: str = "default",
) -> Config:
    where: UpstreamSettings = settings.every_upstream[upstream]
    action: dict[str, object] = {
        "cluster": model_cluster(upstream),
        "timeout": "0s",
        "host_rewrite_literal": where.authority,
    }
    if where.base_path != "/v1":
        action["prefix_rewrite"] = where.base_path + path
    if settings.envoy.retries and is_picked(settings, upstream):
        action["retry_policy"] = asked_again(settings)
    elif settings.envoy.retries:
        action["retry_policy"] = {
            "retry_on": "connect-failure,refused-stream,reset-before-request",
            "num_retries": settings.envoy.retries,
        }
    route: Config = {
        "name": name,
        "match": {"path": "/v1" + path, "headers": [_method(method), *(headers or [])]},
        "route": action,
        "request_body_buffer_limit": BODY_LIMIT,
        "request_headers_to_remove": [BACKEND_HEADER, SECRET_HEADER, settings.owner.header],
    }
    if where.auth_mode is AuthMode.INJECT:
        key = f"Bearer %ENVIRONMENT({key_variable(upstream)})%"
        route["request_headers_to_add"] = [overwritten("authorization", key)]
    elif where.auth_mode is AuthMode.NONE:
        route["request_headers_to_remove"].append("authorization")
    return route


def _sidecar_action(retried: str = UNSEEN) -> Config:
    """Build a route action to a sidecar's own port. If that sidecar has just died, Envoy tries another one.

    Envoy does not retry a request whose body is larger than the listener's buffer.
    """
    return {"cluster": "sidecar_http", "timeout": "0s", "retry_policy": to_another_sidecar(retried)}


def to_another_sidecar(retried: str) -> Config:
    """Build the retry policy of requests to a sidecar.

    The policy allows at most two retries, because a request that crashes its sidecar must not crash all sidecars.
    """
    return {
        "retry_on": retried,
        "num_retries": 2,
        # Envoy retries without delay, because the next sidecar is probably alive.
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.01s"},
        "retry_host_predicate": [_NO_PREVIOUS_HOSTS],
        # The load balancer selects at random and prefers the dead sidecar, which has no load. So the load balancer
        # repeats the choice until it selects another sidecar. With two sidecars, a hundred attempts practically always
        # succeed.
        "host_selection_retry_max_attempts": 100,
    }


def _told_to_sidecar(settings: Settings) -> Config:
    """Return the route fields that add the shared secret and the client's claims to a request as headers. On TCP the
    sidecar refuses requests without the secret. The claims come from Envoy's metadata as JSON. If a request has no
    claims, Envoy adds no header for claims."""
    owner = settings.owner
    added = []
    if parse_address(settings.sidecar.http)[0] != "unix":
        added.append(overwritten(SECRET_HEADER, f"%ENVIRONMENT({SECRET_VARIABLE})%"))
    if owner.source == "metadata":
        place = ":".join(filter(None, (owner.metadata.namespace, owner.metadata.key)))
        added.append(overwritten(owner.header, f"%DYNAMIC_METADATA({place})%"))
    return {"request_headers_to_add": added} if added else {}
