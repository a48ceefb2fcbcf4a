"""Generates the HTTPRoute with Antiphon's public routes, and the patches for Envoy Gateway's Envoy.

This module generates the rules of the HTTPRoute, and patches for Envoy fields that no object of Envoy Gateway can set.
`routes.py` generates Envoy's routes, `snippet.py` the other parts of the bootstrap, and `gateway_api.py` the other
Kubernetes objects.

Every public route is a rule of the HTTPRoute, so that Envoy Gateway creates the route. So a policy, such as a
SecurityPolicy, applies to all public routes. A policy does not apply to a route that a patch adds. So patches add only
routes that clients cannot reach and that need no policy. Such routes match a header that Envoy removes from clients'
requests, and they come before all other routes.

Invariants: a route to which no patch was applied leads to an address without a server, so its requests fail. The
patches contain only `snippet.parts`. Antiphon's filter is right before the router, so it runs after all filters that
control access.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from antiphon.envoy.messages import Config
from antiphon.envoy.routes import EXTPROC, NOTHING
from antiphon.errors import ConfigError
from antiphon.types.transport import BACKEND_HEADER

MOST_RULES = 16
"""The Gateway API's maximum number of rules in one HTTPRoute."""
MOST_MATCHES = 64
"""The Gateway API's maximum number of matches in one rule."""
_HOSTS = "$.virtual_hosts[*]"
"""The JSONPath of all virtual hosts of a listener."""
_GROUPED = "own"
"""The name of routes that share one rule but have no common name prefix."""
_TYPES = "type.googleapis.com/envoy.config."
_MANAGER = "..filters[?(@.name == 'envoy.filters.network.http_connection_manager')].typed_config"
_ROUTER = "..http_filters[?(@.name == 'envoy.filters.http.router')]"
_CLUSTER, _LISTENER, _ROUTES = "cluster.v3.Cluster", "listener.v3.Listener", "route.v3.RouteConfiguration"


class Rule(NamedTuple):
    """A rule of the HTTPRoute: its matches in the Gateway API's form, and the Envoy route that the rule becomes."""

    matches: list[Config]
    route: Config


def rules(routes: Sequence[Config]) -> list[Rule]:
    """Convert the public routes to rules. Routes with the same action share a rule. Raises `ConfigError` when an
    HTTPRoute cannot hold them."""
    found: dict[str, tuple[list[Config], list[str]]] = {}
    reached = [one for one in routes if not _is_inner(one) and one["name"] != NOTHING]
    for number, route in enumerate(reached):
        _check_own(route, reached[:number])
        fields = {name: value for name, value in route.items() if name not in ("name", "match")}
        matches, names = found.setdefault(json.dumps(fields, sort_keys=True), ([], []))
        matches.append(_match(route["match"]))
        names.append(route["name"])
    made = [Rule(matches, {"name": _common(names), **json.loads(text)}) for text, (matches, names) in found.items()]
    # One more rule follows for the paths that no other rule matches.
    if len(made) >= MOST_RULES or any(len(one.matches) > MOST_MATCHES for one in made):
        raise ConfigError("upstream.path_allow: an HTTPRoute cannot have so many; leave some out")
    return made


def json_patches(found: Config, made: Sequence[Rule], listeners: Sequence[str], http_route: str) -> list[Config]:
    """Return the entries of `jsonPatches`. `found` is a result of `snippet.parts`. `listeners` has the names that Envoy
    Gateway gives the listeners in Envoy's configuration."""
    added = [
        *((_CLUSTER, one["name"], {"path": "", "value": one}) for one in found["clusters"]),
        *((_LISTENER, one["name"], {"path": "", "value": one}) for one in found["listener"]),
    ]
    for listener in listeners:
        added += [(_LISTENER, listener, change) for change in _of_listener(found)]
        changes = [*_of_hosts(found["virtual_host"]), *_of_routes(made, found["routes"], http_route)]
        added += [(_ROUTES, listener, change) for change in changes]
    return [{"type": _TYPES + kind, "name": name, "operation": {"op": "add", **change}} for kind, name, change in added]


def _of_listener(found: Config) -> list[Config]:
    manager: Config = {**found["connection_manager"]}
    # Envoy Gateway writes its own access logs (EnvoyProxy.spec.telemetry). Antiphon's access logs are added to those of
    # Envoy Gateway.
    failures = manager.pop("access_log")
    first = [one for one in found["http_filter"] if one["name"] != EXTPROC]
    (ours,) = [one for one in found["http_filter"] if one["name"] == EXTPROC]
    return [
        *({"jsonPath": _MANAGER, "path": f"/{name}", "value": value} for name, value in manager.items()),
        *({"jsonPath": _MANAGER, "path": "/access_log/-", "value": one} for one in failures),
        # The order is reversed, because each patch inserts its filter at the front.
        *({"jsonPath": _MANAGER, "path": "/http_filters/0", "value": one} for one in reversed(first)),
        # A filter inserted at the router's index comes before the router.
        {"jsonPath": _ROUTER, "path": "", "value": ours},
        *({"path": f"/{name}", "value": value} for name, value in found["public_listener"].items()),
    ]


def _of_hosts(fields: Config) -> list[Config]:
    """Return the operations on all virtual hosts. Antiphon's filter configurations are added to those of other
    filters."""
    filters = fields.get("typed_per_filter_config", {})
    others = {name: value for name, value in fields.items() if name != "typed_per_filter_config"}
    return [
        *({"jsonPath": _HOSTS, "path": f"/{name}", "value": value} for name, value in others.items()),
        *(
            {"jsonPath": _HOSTS, "path": f"/typed_per_filter_config/{name}", "value": value}
            for name, value in filters.items()
        ),
    ]


def _of_routes(made: Sequence[Rule], routes: Sequence[Config], http_route: str) -> list[Config]:
    """Return the operations on a RouteConfiguration. `http_route` is the HTTPRoute's NAMESPACE/NAME."""
    found: list[Config] = []
    for number, one in enumerate(made):
        # Envoy Gateway gives the routes of a rule names that begin with this prefix.
        own = f"{_HOSTS}.routes[?(@.name =~ '^httproute/{http_route}/rule/{number}/')]"
        found += [{"jsonPath": own, "path": path, "value": value} for path, value in _fields(one.route)]
    # Only the sidecar's answer can select these routes.
    inner = [one for one in routes if _is_inner(one)]
    found += [{"jsonPath": _HOSTS, "path": "/routes/0", "value": one} for one in reversed(inner)]
    return found


def _is_inner(route: Config) -> bool:
    return any(header["name"] == BACKEND_HEADER for header in route["match"].get("headers", ()))


def _fields(route: Config) -> list[tuple[str, object]]:
    """Return each field of the route with its path. The cluster comes after all other fields except the name. The name
    comes last, because the JSONPath finds the route by its old name."""
    # Envoy Gateway allows WebSocket upgrades on every route, so the empty `upgrade_configs` turns them off.
    action = {"upgrade_configs": [], **route["route"]}
    cluster = action.pop("cluster")
    others = {name: value for name, value in route.items() if name not in ("name", "route", "typed_per_filter_config")}
    return [
        *((f"/route/{name}", value) for name, value in action.items()),
        *((f"/{name}", value) for name, value in others.items()),
        *((f"/typed_per_filter_config/{name}", value) for name, value in _per_filter(route).items()),
        ("/route/cluster", cluster),
        ("/name", route["name"]),
    ]


def _per_filter(route: Config) -> Config:
    found: Config = route.get("typed_per_filter_config", {})
    return found


def _common(names: Sequence[str]) -> str:
    """Return a common name for routes that share a rule, for example `model/` for two pass-through routes."""
    kinds = {name.partition("/")[0] for name in names}
    if len(set(names)) == 1:
        return names[0]
    return f"{kinds.pop()}/" if len(kinds) == 1 else _GROUPED


def _check_own(route: Config, before: Sequence[Config]) -> None:
    """Raise `ConfigError` when a pass-through path is also one of Antiphon's own paths. Envoy Gateway prefers an exact
    path to an expression, so the pass-through route would take the requests."""
    path = route["match"].get("path")
    for one in before:
        own = one["match"].get("safe_regex", {}).get("regex")
        same = path is not None and path == one["match"].get("path") and route["name"] != one["name"]
        passed = not route["route"]["cluster"].startswith(("sidecar", "nowhere"))
        if passed and (same or (path is not None and own is not None and re.fullmatch(own, path))):
            raise ConfigError(f"upstream.path_allow: {path.removeprefix('/v1')} is a path of Antiphon's own")


def _match(match: Config) -> Config:
    """Convert Envoy's route match to the Gateway API's form."""
    if "path" in match:
        found: Config = {"path": {"type": "Exact", "value": match["path"]}}
    else:
        found = {"path": {"type": "RegularExpression", "value": match["safe_regex"]["regex"]}}
    for header in match.get("headers", ()):
        wanted = header["string_match"]
        if header["name"] == ":method":
            found["method"] = wanted["exact"]
            continue
        if "safe_regex" in wanted:
            value = wanted["safe_regex"]["regex"]
        else:
            value = f"(?i){re.escape(wanted['exact'])}" if wanted.get("ignore_case") else re.escape(wanted["exact"])
        found.setdefault("headers", []).append({"type": "RegularExpression", "name": header["name"], "value": value})
    return found
