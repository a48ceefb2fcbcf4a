"""Our public routes as routes of an HTTPRoute, and what is patched into them.

Lives here: which route becomes which rule of the HTTPRoute, and the fields that Envoy Gateway cannot say. Not here: the
other patches (`gateway_patches.py`), the routes themselves (`routes.py`).

Whatever clients can reach is a rule of the HTTPRoute, so that Envoy Gateway makes the route: what a SecurityPolicy (or
another policy) says is a configuration of each route there, with filters that no other route turns on. A route that is
patched in whole has none of it. What clients cannot reach (the ways out of the dead end, by a header that is taken from
whatever they send) is put in whole, in front.

Invariant: a route that no patch found leads to an address where nobody is; it fails closed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from antiphon.envoy.messages import Config
from antiphon.envoy.routes import NOTHING
from antiphon.errors import ConfigError
from antiphon.types.transport import BACKEND_HEADER

MOST_RULES = 16
"""Of one HTTPRoute, by the Gateway API."""
MOST_MATCHES = 64
"""Of one rule, likewise."""
HOSTS = "$.virtual_hosts[*]"
"""All hosts of a listener."""
_GROUPED = "own"
"""The name of routes that are one rule and begin alike in nothing."""


class Rule(NamedTuple):
    """A rule of the HTTPRoute: what it matches (as the Gateway API says it), and the route that it shall be."""

    matches: list[Config]
    route: Config


def inner_routes(routes: Sequence[Config]) -> list[Config]:
    """What only the sidecar's answer leads to."""
    return [one for one in routes if _is_inner(one)]


def rules(routes: Sequence[Config]) -> list[Rule]:
    """What clients can reach, in rules of routes that do the same. Raises `ConfigError`."""
    found: dict[str, tuple[list[Config], list[str]]] = {}
    reached = [one for one in routes if not _is_inner(one) and one["name"] != NOTHING]
    for number, route in enumerate(reached):
        _check_own(route, reached[:number])
        fields = {name: value for name, value in route.items() if name not in ("name", "match")}
        matches, names = found.setdefault(json.dumps(fields, sort_keys=True), ([], []))
        matches.append(_match(route["match"]))
        names.append(route["name"])
    made = [Rule(matches, {"name": _common(names), **json.loads(text)}) for text, (matches, names) in found.items()]
    # The last rule answers what no route of ours matches.
    if len(made) >= MOST_RULES or any(len(one.matches) > MOST_MATCHES for one in made):
        raise ConfigError("upstream.path_allow: an HTTPRoute cannot have so many; leave some out")
    return made


def patches(made: Sequence[Rule], inner: Sequence[Config], http_route: str) -> list[Config]:
    """Operations on a RouteConfiguration. `http_route`: the HTTPRoute's NAMESPACE/NAME."""
    found: list[Config] = []
    for number, one in enumerate(made):
        # So Envoy Gateway calls the routes of a rule.
        own = f"{HOSTS}.routes[?(@.name =~ '^httproute/{http_route}/rule/{number}/')]"
        found += [{"jsonPath": own, "path": path, "value": value} for path, value in _fields(one.route)]
    found += [{"jsonPath": HOSTS, "path": "/routes/0", "value": one} for one in reversed(inner)]
    return found


def _is_inner(route: Config) -> bool:
    return any(header["name"] == BACKEND_HEADER for header in route["match"].get("headers", ()))


def _fields(route: Config) -> list[tuple[str, Any]]:
    """Each field by its place. Where it leads comes when all else is there; its name last, for by that it is found."""
    # Envoy Gateway lets every route become a WebSocket.
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
    """`model/` of two that pass through: its kind is told by how it begins."""
    kinds = {name.partition("/")[0] for name in names}
    if len(set(names)) == 1:
        return names[0]
    return f"{kinds.pop()}/" if len(kinds) == 1 else _GROUPED


def _check_own(route: Config, before: Sequence[Config]) -> None:
    """Envoy Gateway puts a path before an expression: one that is ours by an expression must be no other route's."""
    path = route["match"].get("path")
    for one in before:
        own = one["match"].get("safe_regex", {}).get("regex")
        same = path is not None and path == one["match"].get("path") and route["name"] != one["name"]
        passed = not route["route"]["cluster"].startswith(("sidecar", "nowhere"))
        if passed and (same or (path is not None and own is not None and re.fullmatch(own, path))):
            raise ConfigError(f"upstream.path_allow: {path.removeprefix('/v1')} is a path of Antiphon's own")


def _match(match: Config) -> Config:
    """As the Gateway API says it."""
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
