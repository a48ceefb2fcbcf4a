"""Generates the HTTPRoute with Antiphon's public routes, and the patches for Envoy Gateway's Envoy.

Lives here: the rule of each route in the HTTPRoute, and the patches for fields that Envoy Gateway has no objects for.
Not here: the routes (`routes.py`), the other parts of the bootstrap (`snippet.py`), the other objects
(`gateway_api.py`).

Every public route is a rule of the HTTPRoute, so that Envoy Gateway creates the route. Policies such as a
SecurityPolicy configure each of these routes, with filters that no other route enables. A route that a patch adds has
no policy. Routes that clients cannot reach are added as a whole, in front: they match a header that Envoy removes from
clients' requests.

Invariants: a route that no patch matched leads to an address without a server, so it fails closed. The patches contain
only `snippet.parts`. Antiphon's filter comes right before the router, so after all filters that control access.
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
"""The Gateway API's limit of rules in one HTTPRoute."""
MOST_MATCHES = 64
"""The Gateway API's limit of matches in one rule."""
_HOSTS = "$.virtual_hosts[*]"
"""The JSONPath of all hosts of a listener."""
_GROUPED = "own"
"""The name of routes that share one rule but no name prefix."""
_TYPES = "type.googleapis.com/envoy.config."
_MANAGER = "..filters[?(@.name == 'envoy.filters.network.http_connection_manager')].typed_config"
_ROUTER = "..http_filters[?(@.name == 'envoy.filters.http.router')]"
_CLUSTER, _LISTENER, _ROUTES = "cluster.v3.Cluster", "listener.v3.Listener", "route.v3.RouteConfiguration"


class Rule(NamedTuple):
    """A rule of the HTTPRoute: its matches (in the Gateway API's form), and the Envoy route that it becomes."""

    matches: list[Config]
    route: Config


def rules(routes: Sequence[Config]) -> list[Rule]:
    """The public routes as rules; routes with the same action share a rule. Raises `ConfigError`."""
    found: dict[str, tuple[list[Config], list[str]]] = {}
    reached = [one for one in routes if not _is_inner(one) and one["name"] != NOTHING]
    for number, route in enumerate(reached):
        _check_own(route, reached[:number])
        fields = {name: value for name, value in route.items() if name not in ("name", "match")}
        matches, names = found.setdefault(json.dumps(fields, sort_keys=True), ([], []))
        matches.append(_match(route["match"]))
        names.append(route["name"])
    made = [Rule(matches, {"name": _common(names), **json.loads(text)}) for text, (matches, names) in found.items()]
    # The last rule handles the paths that none of these routes matches.
    if len(made) >= MOST_RULES or any(len(one.matches) > MOST_MATCHES for one in made):
        raise ConfigError("upstream.path_allow: an HTTPRoute cannot have so many; leave some out")
    return made


def json_patches(found: Config, made: Sequence[Rule], listeners: Sequence[str], http_route: str) -> list[Config]:
    """The entries of `jsonPatches`. `found`: `snippet.parts`. `listeners`: the names that Envoy Gateway gives them."""
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
    # Envoy Gateway writes its own access logs (EnvoyProxy.spec.telemetry); these are added to them.
    failures = manager.pop("access_log")
    first = [one for one in found["http_filter"] if one["name"] != EXTPROC]
    (ours,) = [one for one in found["http_filter"] if one["name"] == EXTPROC]
    return [
        *({"jsonPath": _MANAGER, "path": f"/{name}", "value": value} for name, value in manager.items()),
        *({"jsonPath": _MANAGER, "path": "/access_log/-", "value": one} for one in failures),
        # In reverse, because each is inserted at the front.
        *({"jsonPath": _MANAGER, "path": "/http_filters/0", "value": one} for one in reversed(first)),
        # Inserted at the router's index, it comes before the router.
        {"jsonPath": _ROUTER, "path": "", "value": ours},
        *({"path": f"/{name}", "value": value} for name, value in found["public_listener"].items()),
    ]


def _of_hosts(fields: Config) -> list[Config]:
    """The fields of every host; a filter's configuration is added to those of other filters."""
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
    """The operations on a RouteConfiguration. `http_route`: the HTTPRoute's NAMESPACE/NAME."""
    found: list[Config] = []
    for number, one in enumerate(made):
        # The names that Envoy Gateway gives the routes of a rule.
        own = f"{_HOSTS}.routes[?(@.name =~ '^httproute/{http_route}/rule/{number}/')]"
        found += [{"jsonPath": own, "path": path, "value": value} for path, value in _fields(one.route)]
    # The routes that only the sidecar's answer selects.
    inner = [one for one in routes if _is_inner(one)]
    found += [{"jsonPath": _HOSTS, "path": "/routes/0", "value": one} for one in reversed(inner)]
    return found


def _is_inner(route: Config) -> bool:
    return any(header["name"] == BACKEND_HEADER for header in route["match"].get("headers", ()))


def _fields(route: Config) -> list[tuple[str, object]]:
    """Each field with its path. The cluster comes after all other fields, and the name last, because the path finds the
    route by its name."""
    # Envoy Gateway allows WebSocket upgrades on every route.
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
    """The common name of the routes, for example `model/` for two that pass through: the prefix is the kind."""
    kinds = {name.partition("/")[0] for name in names}
    if len(set(names)) == 1:
        return names[0]
    return f"{kinds.pop()}/" if len(kinds) == 1 else _GROUPED


def _check_own(route: Config, before: Sequence[Config]) -> None:
    """Envoy Gateway prefers an exact path to an expression. So a path that one of Antiphon's expressions matches must
    not belong to another route."""
    path = route["match"].get("path")
    for one in before:
        own = one["match"].get("safe_regex", {}).get("regex")
        same = path is not None and path == one["match"].get("path") and route["name"] != one["name"]
        passed = not route["route"]["cluster"].startswith(("sidecar", "nowhere"))
        if passed and (same or (path is not None and own is not None and re.fullmatch(own, path))):
            raise ConfigError(f"upstream.path_allow: {path.removeprefix('/v1')} is a path of Antiphon's own")


def _match(match: Config) -> Config:
    """The match in the Gateway API's form."""
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
