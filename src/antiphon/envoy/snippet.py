"""Splits the generated bootstrap into the parts that the configuration of an existing Envoy needs. The existing
listener may also serve other routes.

Each part belongs at one point of the existing configuration. `bootstrap.py`, `clusters.py` and `routes.py` generate the
parts, and `gateway_api.py` and `istio.py` put them into Kubernetes objects.

If the listener also serves other routes, this module turns settings of the whole listener into settings of Antiphon's
routes, where Envoy supports that. Some settings exist only for a whole listener: header and idle timeouts, path
normalisation, process limits, tracing. Such listener-wide settings stay as the listener's owner has set them. One
listener-wide change remains: Envoy removes the trusted headers from client requests, because Antiphon's routes match on
them.

Invariants: if an operator inserts the parts where their headings say, the configuration passes `envoy --mode validate`
(a test checks it). After `beside_others`, a request on another route gets the same response as without Antiphon, except
for the trusted headers.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.config.settings import Settings
from antiphon.envoy.bootstrap import (
    client_limits,
    connection_manager,
    console_listener,
    cors_filters,
    extproc_filter,
    model_door,
    overload_manager,
    to_yaml,
    virtual_host,
)
from antiphon.envoy.clusters import clusters
from antiphon.envoy.failures import mapper
from antiphon.envoy.messages import Config, where
from antiphon.envoy.picker_listener import picker_listeners
from antiphon.envoy.routes import NOT_FOUND, NOTHING, NOWHERE, UNKNOWN_URL, public_routes
from antiphon.envoy.several import bootstrap_extensions, upstream_listeners
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.versions import NEWEST, EnvoyVersion, fitted

Parts = Config
PREFLIGHT = "preflight"
"""The name of the routes for CORS preflight requests, which only the cors filter answers."""
_MANAGER_OPTIONS = (
    "stream_idle_timeout",
    "request_headers_timeout",
    "common_http_protocol_options",
    "delayed_close_timeout",
    "normalize_path",
    "merge_slashes",
    "path_with_escaped_slashes_action",
    "early_header_mutation_extensions",
    "local_reply_config",
    "tracing",
    "access_log",
)

_HEADINGS = {
    "connection_manager": """\
Options of your HTTP connection manager. Add the entries of lists to your own lists.
- early_header_mutation_extensions removes headers that clients must not send.
- local_reply_config: put these mappers before yours. Your body format stays for answers that they do not match.
- The access logs `failures` and `early_ends` write lines to Envoy's standard output. Only Envoy knows whether a client
  left or the upstream broke off. Envoy's flag --file-flush-interval-msec sets the delay of these lines.
- tracing makes the sidecar's spans children of Envoy's.
- Timeouts: use these values instead of yours. Shorter timeouts would cut the long answers of a model.
- The path options: without them, no route below matches a path such as /v1//responses.""",
    "public_listener": """\
Options of the listener that clients connect to. They limit how long a client may send nothing, and how long a
client may read nothing of its response. (Only Linux has TCP_USER_TIMEOUT.)""",
    "overload_manager": """\
Limits of your Envoy process. In mode drive the sidecar writes a response even if its client does not read. Without a
heap limit, clients that do not read can fill Envoy's memory.""",
    "http_filter": """\
An entry of http_filters. Put it right before envoy.filters.http.router, and after your filters for authentication
(jwt_authn, ext_authz, oauth2), rate limits and compression. Only the route `responses` enables this filter. A client
that your filters reject on this route gets OpenAI's error object. On other routes your own answer stays. jwt_authn
removes the token unless you set `forward: true`. Antiphon tells owners apart by that token. Without the token, set
owner.source to `metadata`, and give jwt_authn `payload_in_metadata: claims`. Or set owner.source to `header`, and fill
the header owner.header with claim_to_headers.""",
    "virtual_host": """\
Add these fields to your virtual host. They put the request id into every answer. They also let web pages of the
origins in cors.origins call the API. Leave cors.origins unset if you have a cors filter. Answers to POST /v1/responses
lack the headers that your virtual host adds. A filter `header_mutation` before all others adds them everywhere.""",
    "routes": """\
Routes of your virtual host. Put them in this order, before yours. Leave out pass-through routes (model...) that
clients must not use. Add `nothing` only if all other paths must get a 404. The routes `translated...` and
`native...` lead to your model clusters: change their actions (cluster, retries, rate limits) as you like.""",
    "clusters": """\
Clusters. Their circuit breakers are far above Envoy's defaults, which reject the 1,025th stream. `nowhere` has no
endpoints. `model` is the setting `upstream`, and `model_NAME` is `upstreams.NAME`. If you already have a cluster for an
upstream, name your cluster in the routes instead.""",
    "listener": """\
An additional listener, the model door. The sidecar makes its model calls through this listener, and no other process
may reach it. (The listeners `upstream_NAME` are inside Envoy. Only the clusters `several_...` reach them.) With
console.enabled, the listener `console` serves the console at console.listen, and nothing else.""",
    "bootstrap_extensions": """\
Envoy needs this section for internal listeners. Put it next to static_resources.""",
}


def parts(
    settings: Settings, sidecars: Sequence[SidecarEndpoint], version: EnvoyVersion = NEWEST
) -> dict[str, Config | list[Config]]:
    """Return the parts of the configuration, by the name of the Envoy object to which each part belongs."""
    manager = connection_manager(settings)
    extensions = bootstrap_extensions(settings)
    found: dict[str, Config | list[Config]] = {
        "connection_manager": {name: manager[name] for name in _MANAGER_OPTIONS if name in manager},
        "public_listener": client_limits(settings),
        "overload_manager": overload_manager(settings),
        "http_filter": [*cors_filters(settings), extproc_filter(settings)],
        "virtual_host": virtual_host(settings),
        # The dead ends are routes to a cluster, because filters such as cors need a route to run on.
        "routes": public_routes(settings, to_nowhere=True),
        "clusters": clusters(settings, sidecars, nowhere=True),
        "listener": [
            *console_listener(settings),
            model_door(settings),
            *upstream_listeners(settings),
            *picker_listeners(settings),
        ],
        **({"bootstrap_extensions": extensions} if extensions else {}),
    }
    return fitted(found, version)


def snippet(settings: Settings, sidecars: Sequence[SidecarEndpoint], version: EnvoyVersion = NEWEST) -> str:
    """Return the parts of the configuration as YAML with comments."""
    text = [f"# What an existing Envoy ({version}) needs for Antiphon. Each key names the place of its part.\n"]
    for name, part in parts(settings, sidecars, version).items():
        heading = "".join(f"# {line}\n" for line in _HEADINGS[name].splitlines())
        body = "".join(f"  {line}\n" for line in to_yaml(part).splitlines())
        text.append(f"\n{heading}{name}:\n{body}")
    return "".join(text)


def beside_others(found: Parts) -> Parts:
    """Return the result of `snippet.parts`, changed so that no part affects the routes of others."""
    manager = found["connection_manager"]
    ours = f"xds.cluster_name in [{', '.join(repr(one['name']) for one in found['clusters'])}]"
    replies = manager["local_reply_config"]
    asked = f"xds.route_name == '{PREFLIGHT}' && response.code_details == 'no_healthy_upstream'"
    no_page = mapper(asked, NOT_FOUND, UNKNOWN_URL, "invalid_request_error", status_code=404)
    kept = {
        "early_header_mutation_extensions": manager["early_header_mutation_extensions"],
        "local_reply_config": {**replies, "mappers": [no_page, *(_only(ours, one) for one in replies["mappers"])]},
        "access_log": [_only(ours, one) for one in manager["access_log"]],
    }
    routes = [one for one in found["routes"] if one["name"] != NOTHING]
    if "typed_per_filter_config" in found["virtual_host"]:
        routes += _preflights(routes)
    return {
        **found,
        "connection_manager": kept,
        "public_listener": {},
        "overload_manager": {},
        "virtual_host": {},
        "routes": [_with_hosts_fields(one, found["virtual_host"], manager["stream_idle_timeout"]) for one in routes],
    }


def _only(ours: str, entry: Config) -> Config:
    """Limit an access log, or a mapper of Envoy's own responses, to requests for Antiphon's clusters. Envoy evaluates
    the existing filter of `entry` first, because that filter is cheap."""
    chosen = entry.get("filter")
    if chosen is None:
        return {**entry, "filter": where(ours)}
    filters = chosen["and_filter"]["filters"] if "and_filter" in chosen else [chosen]
    return {**entry, "filter": {"and_filter": {"filters": [*filters, where(ours)]}}}


def _preflights(routes: list[Config]) -> list[Config]:
    """Return routes for CORS preflight requests to pass-through paths. The cors filter answers these requests, but the
    filter runs only for requests that match a route."""
    paths = {one["match"]["path"]: None for one in routes if one["name"].startswith("model/")}
    asked = {"name": ":method", "string_match": {"exact": "OPTIONS"}}
    return [
        {
            "name": PREFLIGHT,
            "match": {"path": path, "headers": [asked]},
            "route": {"cluster": NOWHERE, "timeout": "0s"},
        }
        for path in paths
    ]


def _with_hosts_fields(route: Config, host: Config, idle: str) -> Config:
    """Return the route with the settings of its virtual host and with the listener's idle timeout."""
    filters = {**host.get("typed_per_filter_config", {}), **route.get("typed_per_filter_config", {})}
    headers = [*route.get("response_headers_to_add", ()), *host.get("response_headers_to_add", ())]
    return {
        **route,
        "route": {**route["route"], "idle_timeout": idle},
        "response_headers_to_add": headers,
        **({"typed_per_filter_config": filters} if filters else {}),
    }
