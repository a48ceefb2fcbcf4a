"""What an EnvoyPatchPolicy puts into the Envoy that Envoy Gateway manages.

Lives here: the place of each part of our bootstrap there. Not here: the parts (`snippet.py`), the patches of routes
(`gateway_routes.py`), the objects around them (`gateway_api.py`).

Invariants: what is patched in is `snippet.parts`, nothing else; Antiphon's filter stands right before the router, so
behind whatever decides who may ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from antiphon.envoy.gateway_routes import HOSTS, Rule, inner_routes, patches
from antiphon.envoy.messages import Config
from antiphon.envoy.routes import EXTPROC

_TYPES = "type.googleapis.com/envoy.config."
_MANAGER = "..filters[?(@.name == 'envoy.filters.network.http_connection_manager')].typed_config"
_ROUTER = "..http_filters[?(@.name == 'envoy.filters.http.router')]"
_CLUSTER, _LISTENER, _ROUTES = "cluster.v3.Cluster", "listener.v3.Listener", "route.v3.RouteConfiguration"


def json_patches(
    found: dict[str, Any], made: Sequence[Rule], listeners: Sequence[str], http_route: str
) -> list[Config]:
    """The entries of `jsonPatches`. `found`: `snippet.parts`; `listeners`: as Envoy Gateway calls them."""
    added = [
        *((_CLUSTER, one["name"], {"path": "", "value": one}) for one in found["clusters"]),
        *((_LISTENER, one["name"], {"path": "", "value": one}) for one in found["listener"]),
    ]
    for listener in listeners:
        added += [(_LISTENER, listener, change) for change in _of_listener(found)]
        changes = [*_of_hosts(found["virtual_host"]), *patches(made, inner_routes(found["routes"]), http_route)]
        added += [(_ROUTES, listener, change) for change in changes]
    return [{"type": _TYPES + kind, "name": name, "operation": {"op": "add", **change}} for kind, name, change in added]


def _of_listener(found: dict[str, Any]) -> list[Config]:
    manager: dict[str, Any] = {**found["connection_manager"]}
    # Envoy Gateway writes access logs of its own (EnvoyProxy.spec.telemetry): ours are added to them.
    failures = manager.pop("access_log")
    first = [one for one in found["http_filter"] if one["name"] != EXTPROC]
    (ours,) = [one for one in found["http_filter"] if one["name"] == EXTPROC]
    return [
        *({"jsonPath": _MANAGER, "path": f"/{name}", "value": value} for name, value in manager.items()),
        *({"jsonPath": _MANAGER, "path": "/access_log/-", "value": one} for one in failures),
        # The last one is put first.
        *({"jsonPath": _MANAGER, "path": "/http_filters/0", "value": one} for one in reversed(first)),
        # Added at the place of the router, it stands before it.
        {"jsonPath": _ROUTER, "path": "", "value": ours},
        *({"path": f"/{name}", "value": value} for name, value in found["public_listener"].items()),
    ]


def _of_hosts(fields: Config) -> list[Config]:
    """Fields of every host; what is said by a filter's name is added to what others say by theirs."""
    filters = fields.get("typed_per_filter_config", {})
    others = {name: value for name, value in fields.items() if name != "typed_per_filter_config"}
    return [
        *({"jsonPath": HOSTS, "path": f"/{name}", "value": value} for name, value in others.items()),
        *(
            {"jsonPath": HOSTS, "path": f"/typed_per_filter_config/{name}", "value": value}
            for name, value in filters.items()
        ),
    ]
