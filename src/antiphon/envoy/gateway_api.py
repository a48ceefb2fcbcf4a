"""Generates the Kubernetes objects that put Antiphon into an Envoy Gateway.

This module generates the objects in order, each with a comment, and the commands that remove them. Among the objects
are the HTTPRoute with the public routes, and patches for Envoy fields that no object of Envoy Gateway can set.
`gateway_pod.py` generates the sidecar in the pod and formats commands. `routes.py` generates Envoy's routes, and
`snippet.py` splits Envoy's configuration into parts. The package `commands` prints the result.

Antiphon is a native sidecar of the Envoy that Envoy Gateway manages. Envoy and the sidecar communicate over Unix
sockets in a memory volume, so they need no shared secret, and no other pod can connect. One EnvoyPatchPolicy adds the
filter, the clusters and the model listener of Antiphon's bootstrap. Envoy Gateway's own objects reject Unix sockets in
routes, and lack the limits and responses that a gateway needs.

Every public route is a rule of the HTTPRoute, so Envoy Gateway itself creates the route. Therefore a policy, such as a
SecurityPolicy, applies to all public routes. A policy does not apply to a route that a patch adds. So patches add only
routes that clients cannot reach and that need no policy. Such routes match a header that Envoy removes from clients'
requests, and they come before all other routes.

On a shared Gateway, Antiphon changes no routes of other teams (`snippet.beside_others`). The output does not contain
the objects of other teams (the Gateway, an EnvoyProxy). Instead, the output contains commands that change the objects
of other teams. On a Gateway that serves only Antiphon (`GatewayTarget.own`), the output contains all objects.

Invariants: the output contains no secret, only the names of the keys in a Secret. A route to which no patch was applied
leads to an address without a server, so its requests fail. The patches contain only `snippet.parts`. Antiphon's filter
is right before the router, so it runs after all filters that control access.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from antiphon.config.settings import Settings
from antiphon.envoy import gateway_pod
from antiphon.envoy.bootstrap import to_yaml
from antiphon.envoy.gateway_pod import (
    GATEWAY,
    NAME,
    CommandStep,
    GatewayTarget,
    Sidecar,
    deleted,
    kubernetes_object,
    merged_into,
    served_without,
)
from antiphon.envoy.messages import Config
from antiphon.envoy.routes import EXTPROC, NOT_FOUND_BODY, NOTHING
from antiphon.envoy.several import bootstrap_extensions
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.snippet import beside_others, parts
from antiphon.envoy.versions import EnvoyVersion, fitted
from antiphon.errors import ConfigError
from antiphon.types.transport import BACKEND_HEADER

SYSTEM = "envoy-gateway-system"
"""The namespace in which Envoy Gateway runs its Envoy pods."""
_USER = 65532
"""The user id of Envoy Gateway's Envoy. The sidecar uses the same id, because only that user can open the sockets."""
_GATEWAY_API = "gateway.networking.k8s.io"
_ENVOY_GATEWAY = "gateway.envoyproxy.io"
_VERSIONS = {_GATEWAY_API: "v1", _ENVOY_GATEWAY: "v1alpha1"}
_NOBODY = "192.0.2.1"
"""An address at which no server listens. The address is in the network that RFC 5737 reserves for documentation."""
TLS_SECRET = f"{NAME}-tls"
"""The name of the Secret with the certificate for TLS listeners, in the Gateway's namespace."""


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


def objects(
    settings: Settings, sidecar: Sidecar, place: GatewayTarget, version: EnvoyVersion
) -> list[tuple[str, Config]]:
    """Return the objects in the order in which the operator applies them, each with its comment. `settings` must be a
    result of `gateway_pod.inside`."""
    found: Config = parts(settings, [SidecarEndpoint(settings.sidecar.grpc, settings.sidecar.http)], version)
    if not place.own:
        found = beside_others(found)
    made = rules(found["routes"])
    # The names that Envoy Gateway gives the listeners in Envoy's configuration.
    listeners = [f"{place.namespace}/{place.name}/{one}" for one in place.listeners]
    entries = json_patches(found, made, listeners, f"{place.namespace}/{NAME}")
    return [
        ("The sidecar's settings, in the namespace of the managed Envoys.", gateway_pod.settings_map(sidecar, SYSTEM)),
        *(
            [
                (
                    "Puts the sidecar into the managed Envoy's pod. The GatewayClass decides the other fields.\n"
                    "Kubernetes deletes the data folder with the pod. Set state.url (PostgreSQL) for several\n"
                    "replicas, or to keep stored data.",
                    _object(_ENVOY_GATEWAY, "EnvoyProxy", place, _envoy_proxy(settings, sidecar, place, version)),
                )
            ]
            if place.envoy_proxy is None
            else []
        ),
        *(
            (
                (
                    "The patches replace this address, where no server listens. If a patch is missing, requests fail "
                    "here."
                ),
                one,
            )
            for one in _nowhere(place)
        ),
        *(
            [
                (
                    "The response to requests that match no route of Antiphon.",
                    _object(_ENVOY_GATEWAY, "HTTPRouteFilter", place, _nothing_here()),
                )
            ]
            if place.own
            else []
        ),
        (
            "The paths that clients can reach. Policies (SecurityPolicy...) of this route or of the Gateway apply to\n"
            "all these paths. You may delete matches that clients must not use (/v1/embeddings...). Do not delete a\n"
            "rule, because the patches refer to rules by number.",
            _http_route(place, made),
        ),
        (
            "Patches the managed Envoy: clusters, the model door, the routes' clusters, the filter before the router,\n"
            "and the answers that Envoy makes itself.",
            _patch_policy(place, entries),
        ),
        *([("The Gateway comes last, because it refers to the objects above.", _gateway(place))] if place.own else []),
    ]


def coming_in(settings: Settings, sidecar: Sidecar, place: GatewayTarget, version: EnvoyVersion) -> list[CommandStep]:
    """Return the commands that change an object of another team. The commands run after all `objects` exist. The list
    is empty for a Gateway that serves only Antiphon."""
    if place.own:
        return []
    if place.envoy_proxy is not None:
        comment = (
            "Last: put the sidecar into the pods of the EnvoyProxy. The EnvoyProxy must not have an "
            "envoyDeployment.patch yet."
        )
        spec = _envoy_proxy(settings, sidecar, place, version)
        return [merged_into(comment, place.namespace, "envoyproxy", place.envoy_proxy, spec)]
    comment = (
        "Last: put the sidecar into the Gateway's pods. The Gateway must not name another EnvoyProxy (--envoy-proxy)."
    )
    return [merged_into(comment, place.namespace, GATEWAY, place.name, _infrastructure())]


def going_out(settings: Settings, sidecar: Sidecar, place: GatewayTarget) -> list[CommandStep]:
    """Return the commands that remove Antiphon, in order."""
    space, label = place.namespace, "gateway.envoyproxy.io/owning-gateway-"
    chosen = f"{label}namespace={space},{label}name={place.name}"
    rest = [f"service/{NAME}-nowhere", f"endpointslice/{NAME}-nowhere"]
    steps = [
        deleted("1. Delete the patches of Envoy's configuration.", space, f"envoypatchpolicy/{NAME}"),
        deleted("2. Delete the routes.", space, f"httproute/{NAME}"),
    ]
    if place.own:
        steps.append(deleted("3. Delete the Gateway with its pods.", space, f"{GATEWAY}/{place.name}"))
        rest += [f"httproutefilter/{NAME}", f"envoyproxy/{NAME}"]
    else:
        if place.envoy_proxy is None:
            taken: Config = {"infrastructure": {"parametersRef": None}}
            steps.append(
                merged_into("3. Remove Antiphon's EnvoyProxy from the Gateway.", space, GATEWAY, place.name, taken)
            )
            rest.append(f"envoyproxy/{NAME}")
        else:
            kubernetes = {"envoyDeployment": {"patch": None}}
            taken = {"provider": {"kubernetes": kubernetes}, "shutdown": {"drainTimeout": None}, "bootstrap": None}
            comment = (
                "3. Remove the sidecar from the EnvoyProxy. If you had set `bootstrap` or `drainTimeout`, set it again."
            )
            steps.append(merged_into(comment, space, "envoyproxy", place.envoy_proxy, taken))
        steps += served_without("4. Wait until pods without the sidecar serve.", space, place.name, SYSTEM, chosen)
    secret = [f"secret/{NAME}"] if gateway_pod.keys(settings, sidecar) else []
    return [
        *steps,
        deleted("5. Delete the objects that nothing refers to any more.", space, *rest),
        deleted("", SYSTEM, f"configmap/{NAME}", *secret),
    ]


def _object(group: str, kind: str, place: GatewayTarget, spec: Config, *, name: str = NAME) -> Config:
    return kubernetes_object(f"{group}/{_VERSIONS[group]}", kind, name, place.namespace, spec=spec)


def _envoy_proxy(settings: Settings, sidecar: Sidecar, place: GatewayTarget, version: EnvoyVersion) -> Config:
    """Build the spec of the EnvoyProxy. All fields of the pod are in the patch, so an existing EnvoyProxy of another
    team keeps its other fields."""
    pod = gateway_pod.pod(settings, sidecar, user=_USER, own=place.own)
    envoy = {"name": "envoy", **gateway_pod.envoys_share(settings)}
    inside = {**pod, "securityContext": {"fsGroup": _USER}, "containers": [envoy]}
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    deployment: dict[str, object] = {
        # The owner of a shared Gateway sets its number of pods.
        **({"replicas": 1} if place.own else {}),
        "patch": {"type": "StrategicMerge", "value": {"spec": {"strategy": rolling, "template": {"spec": inside}}}},
    }
    provider = {"type": "Kubernetes", "kubernetes": {"envoyDeployment": deployment}}
    shutdown = {"drainTimeout": f"{int(settings.timeouts.drain)}s"}
    merge = {} if place.envoy_proxy else {"mergeType": "StrategicMerge"}
    spec: Config = {**merge, "provider": provider, "shutdown": shutdown}
    extensions = [fitted(one, version) for one in bootstrap_extensions(settings)]
    if extensions:
        # Internal listeners of Envoy need this bootstrap extension.
        spec["bootstrap"] = {"type": "Merge", "value": to_yaml({"bootstrap_extensions": extensions})}
    return spec


def _infrastructure() -> Config:
    return {"infrastructure": {"parametersRef": {"group": _ENVOY_GATEWAY, "kind": "EnvoyProxy", "name": NAME}}}


def _gateway(place: GatewayTarget) -> Config:
    spec = {"gatewayClassName": "eg", **_infrastructure(), "listeners": [_listener(name) for name in place.listeners]}
    return _object(_GATEWAY_API, "Gateway", place, spec, name=place.name)


def _listener(name: str) -> Config:
    if not name.startswith("https"):
        return {"name": name, "protocol": "HTTP", "port": 80}
    tls = {"mode": "Terminate", "certificateRefs": [{"name": TLS_SECRET}]}
    return {"name": name, "protocol": "HTTPS", "port": 443, "tls": tls}


def _of_gateway(place: GatewayTarget) -> Config:
    return {"group": _GATEWAY_API, "kind": "Gateway", "name": place.name}


def _nothing_here() -> Config:
    body = NOT_FOUND_BODY
    answer = {"statusCode": 404, "contentType": "application/json", "body": {"type": "Inline", "inline": body}}
    return {"directResponse": answer}


def _nowhere(place: GatewayTarget) -> list[Config]:
    """Return a Service and its EndpointSlice with an address at which no server listens."""
    name, port = f"{NAME}-nowhere", {"name": "http", "port": 80}
    slice_ = kubernetes_object(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        name,
        place.namespace,
        addressType="IPv4",
        ports=[{**port, "protocol": "TCP"}],
        endpoints=[{"addresses": [_NOBODY], "conditions": {"ready": True}}],
    )
    slice_["metadata"]["labels"] = {"kubernetes.io/service-name": name}
    return [kubernetes_object("v1", "Service", name, place.namespace, spec={"ports": [port]}), slice_]


def _http_route(place: GatewayTarget, made: Sequence[Rule]) -> Config:
    nothing = {"group": _ENVOY_GATEWAY, "kind": "HTTPRouteFilter", "name": NAME}
    last = {
        "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
        "filters": [{"type": "ExtensionRef", "extensionRef": nothing}],
    }
    spec = {
        **({"hostnames": list(place.hostnames)} if place.hostnames else {}),
        "parentRefs": [{**_of_gateway(place), "sectionName": one} for one in place.listeners],
        "rules": [
            *({"matches": one.matches, "backendRefs": [{"name": f"{NAME}-nowhere", "port": 80}]} for one in made),
            # On a shared Gateway this catch-all rule would override every later route of another team.
            *([last] if place.own else []),
        ],
    }
    return _object(_GATEWAY_API, "HTTPRoute", place, spec)


def _patch_policy(place: GatewayTarget, entries: list[Config]) -> Config:
    spec = {"targetRef": _of_gateway(place), "type": "JSONPatch", "jsonPatches": entries}
    return _object(_ENVOY_GATEWAY, "EnvoyPatchPolicy", place, spec)


def rules(routes: Sequence[Config]) -> list[Rule]:
    """Convert the public routes to rules. Routes with the same action share a rule. Raises `ConfigError` when one
    HTTPRoute cannot hold so many rules or matches."""
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
        raise ConfigError("upstream.path_allow: an HTTPRoute cannot have so many paths; remove some")
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
    """Return the JSON patch operations that add these fields to all virtual hosts. The operations add Antiphon's filter
    configurations to those of other filters."""
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
            raise ConfigError(
                f"upstream.path_allow: Antiphon itself serves {path.removeprefix('/v1')}; remove this path"
            )


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
