"""Splits the bootstrap into the parts that an existing Envoy needs.

Lives here: splitting the bootstrap into parts by their place, with their order. Not here: the parts themselves
(`bootstrap.py`, `clusters.py`, `routes.py`).

Invariant: at the places named in the headings, the parts pass `envoy --mode validate` (a test does this).
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.config.settings import Settings
from antiphon.envoy.bootstrap import (
    client_limits,
    connection_manager,
    cors_filters,
    extproc_filter,
    model_door,
    overload_manager,
    to_yaml,
    virtual_host,
)
from antiphon.envoy.clusters import clusters
from antiphon.envoy.messages import Config
from antiphon.envoy.picker_listener import picker_listeners
from antiphon.envoy.routes import public_routes
from antiphon.envoy.several import bootstrap_extensions, upstream_listeners
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.versions import NEWEST, EnvoyVersion, fitted

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
Options of your HTTP connection manager. Lists are added to yours: early_header_mutation_extensions strips what clients
must not send; local_reply_config.mappers come before your own, and what they do not name keeps your shape; the
access_logs `failures` and `early_ends` tell, on Envoy's standard output, of what only Envoy knows, such as whether a
client left or the upstream broke off (--file-flush-interval-msec: how late); with tracing the sidecar's spans are
within Envoy's. Options that you have already get these values: shorter times end answers that models take long for.
Without the path options a path such as /v1//responses is matched by none of the routes below.""",
    "public_listener": """\
Options of the listener that clients connect to: how long a connection may send nothing, and take nothing of its
response. (TCP_USER_TIMEOUT is Linux's.)""",
    "overload_manager": """\
Limits of your Envoy's process. Without a limit of its heap clients that do not read may take all memory: a response
that the sidecar makes (drive) is written whether they read or not.""",
    "http_filter": """\
An entry of http_filters, right before envoy.filters.http.router: after authentication (jwt_authn, ext_authz, oauth2),
roles, limits and compression. It is disabled; only the route `responses` turns it on. Whom your filters turn away there
gets an error object; elsewhere your own answer. jwt_authn removes the token unless it says `forward: true`, and the
token is what tells owners apart: else set owner.source to `header`, and that header by claim_to_headers.""",
    "virtual_host": """\
Fields of your virtual host, added to yours: every answer names its request; which pages in browsers may ask
(cors.origins; leave it unset where your own cors filter decides). Headers that your virtual host adds are missing in
answers to POST /v1/responses: a filter `header_mutation` before all others adds them everywhere.""",
    "routes": """\
Routes of your virtual host, in this order, before your own. Leave out the pass-through routes (model...) that clients
shall not use, and `nothing` unless everything else is to be a 404. The routes `translated...` and `native...` lead to
your model clusters: adapt their actions (cluster, retries, rate limits) as you like.""",
    "clusters": """\
Clusters, with circuit breakers far above Envoy's own, which refuse the 1,025th stream. `nowhere` has no endpoints.
`model` is your upstream, `model_NAME` a further one: if you have a cluster for it, name it in the routes
instead.""",
    "listener": """\
One more listener: the model door, through which the sidecar makes model calls of its own. It must not be reachable by
anybody else. (Those behind it, `upstream_NAME`, are inside Envoy: only the clusters `several_...` reach them.)""",
    "bootstrap_extensions": """\
For listeners inside Envoy, beside static_resources.""",
}


def parts(
    settings: Settings, sidecars: Sequence[SidecarEndpoint], version: EnvoyVersion = NEWEST
) -> dict[str, Config | list[Config]]:
    """The parts, by their place."""
    manager = connection_manager(settings)
    extensions = bootstrap_extensions(settings)
    found: dict[str, Config | list[Config]] = {
        "connection_manager": {name: manager[name] for name in _MANAGER_OPTIONS if name in manager},
        "public_listener": client_limits(settings),
        "overload_manager": overload_manager(settings),
        "http_filter": [*cors_filters(settings), extproc_filter(settings)],
        "virtual_host": virtual_host(settings),
        # Filters need a route to act on.
        "routes": public_routes(settings, to_nowhere=True),
        "clusters": clusters(settings, sidecars, nowhere=True),
        "listener": [model_door(settings), *upstream_listeners(settings), *picker_listeners(settings)],
        **({"bootstrap_extensions": extensions} if extensions else {}),
    }
    return fitted(found, version)


def snippet(settings: Settings, sidecars: Sequence[SidecarEndpoint], version: EnvoyVersion = NEWEST) -> str:
    """The parts as commented YAML."""
    text = [f"# What an existing Envoy ({version}) needs for Antiphon, by where it goes.\n"]
    for name, part in parts(settings, sidecars, version).items():
        heading = "".join(f"# {line}\n" for line in _HEADINGS[name].splitlines())
        body = "".join(f"  {line}\n" for line in to_yaml(part).splitlines())
        text.append(f"\n{heading}{name}:\n{body}")
    return "".join(text)
