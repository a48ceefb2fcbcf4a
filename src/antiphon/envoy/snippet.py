"""What an existing Envoy needs, part by part.

Lives here: cutting the bootstrap into parts by where they go, with the order among their neighbours. Not here: the
parts themselves (`bootstrap.py`, `routes.py`).

Invariant: put where the headings say, the parts pass `envoy --mode validate` (a test does just that).
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.config import Settings
from antiphon.envoy.bootstrap import (
    SidecarEndpoint,
    bootstrap,
    clusters,
    connection_manager,
    extproc_filter,
    model_door,
    to_yaml,
)
from antiphon.envoy.messages import Config

__all__ = ["parts", "snippet"]

_MANAGER_OPTIONS = (
    "stream_idle_timeout",
    "delayed_close_timeout",
    "normalize_path",
    "merge_slashes",
    "path_with_escaped_slashes_action",
    "early_header_mutation_extensions",
    "local_reply_config",
)

_HEADINGS = {
    "connection_manager": """\
Options of your HTTP connection manager. Lists are added to yours: early_header_mutation_extensions strips what clients
must not send; local_reply_config.mappers come before your own. Without the path options a path such as /v1//responses
is matched by none of the routes below.""",
    "http_filter": """\
An entry of http_filters. Order: after your authentication filters (jwt_authn, ext_authz, oauth2), after rate limits
that act on the client, before envoy.filters.http.router. It is disabled; only the route `responses` turns it on.""",
    "routes": """\
Routes of your virtual host, in this order, before your own. Leave out the pass-through routes (model...) that clients
shall not use, and `nothing` unless everything else is to be a 404. The routes `translated...` and `native...` lead to
your model clusters: adapt their actions (cluster, retries, rate limits) as you like.""",
    "clusters": """\
Clusters. `model` is your upstream, `model_NAME` a further one: if you have a cluster for it, name it in the routes
instead.""",
    "listener": """\
One more listener: the model door, through which the sidecar makes model calls of its own. It must not be reachable by
anybody else.""",
}


def parts(settings: Settings, sidecars: Sequence[SidecarEndpoint]) -> dict[str, Config | list[Config]]:
    """The parts, by where they go."""
    manager = connection_manager(settings)
    return {
        "connection_manager": {name: manager[name] for name in _MANAGER_OPTIONS},
        "http_filter": [extproc_filter(settings)],
        "routes": manager["route_config"]["virtual_hosts"][0]["routes"],
        "clusters": clusters(settings, sidecars),
        "listener": [model_door(settings)],
    }


def assemble(
    found: dict[str, Config | list[Config]], settings: Settings, sidecars: Sequence[SidecarEndpoint]
) -> Config:
    """A bootstrap made of the parts alone, put where the headings say; for checking them."""
    whole = bootstrap(settings, sidecars=sidecars)
    manager = whole["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    router = manager["http_filters"][-1]
    for name in list(manager):
        if name not in ("@type", "stat_prefix", "http_filters", "route_config"):
            del manager[name]
    assert isinstance(found["connection_manager"], dict)
    manager.update(found["connection_manager"])
    manager["http_filters"] = [*found["http_filter"], router]
    manager["route_config"]["virtual_hosts"][0]["routes"] = found["routes"]
    whole["static_resources"]["clusters"] = found["clusters"]
    whole["static_resources"]["listeners"][1:] = found["listener"]
    return whole


def snippet(settings: Settings, sidecars: Sequence[SidecarEndpoint]) -> str:
    """The parts as commented YAML."""
    text = ["# What an existing Envoy (1.40) needs for Antiphon, by where it goes.\n"]
    for name, part in parts(settings, sidecars).items():
        heading = "".join(f"# {line}\n" for line in _HEADINGS[name].splitlines())
        body = "".join(f"  {line}\n" for line in to_yaml(part).splitlines())
        text.append(f"\n{heading}{name}:\n{body}")
    return "".join(text)
