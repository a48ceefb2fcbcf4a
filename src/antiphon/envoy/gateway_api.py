"""Generates the Kubernetes objects that put Antiphon into an Envoy Gateway.

This module generates the objects in order, each with a comment, and the commands that remove them. `gateway_pod.py`
generates the sidecar in the pod and the form of commands. `snippet.py` splits Envoy's configuration into parts. The
package `commands` prints the result.

Antiphon is a native sidecar of the Envoy that Envoy Gateway manages. Envoy and the sidecar communicate over Unix
sockets in a memory volume, so they need no shared secret, and no other pod can connect. An HTTPRoute holds the public
routes, so Envoy Gateway's policies apply to them. One EnvoyPatchPolicy adds the filter, the clusters and the model
listener of Antiphon's bootstrap (`gateway_routes.py`). Envoy Gateway's own objects reject Unix sockets in routes, and
lack the limits and responses that a gateway needs.

On a shared Gateway, Antiphon changes no routes of other teams (`beside_others.py`). The output does not contain the
objects of other teams (the Gateway, an EnvoyProxy). Instead, the output contains commands that change the objects of
other teams. On a Gateway that serves only Antiphon (`GatewayTarget.own`), the output contains all objects.

Invariant: the output contains no secret, only names of keys.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.config.settings import Settings
from antiphon.envoy import gateway_pod
from antiphon.envoy.beside_others import beside_others
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
from antiphon.envoy.gateway_routes import Rule, json_patches, rules
from antiphon.envoy.messages import Config, error_body
from antiphon.envoy.routes import NOT_FOUND
from antiphon.envoy.several import bootstrap_extensions
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.snippet import parts
from antiphon.envoy.versions import EnvoyVersion, fitted

SYSTEM = "envoy-gateway-system"
"""The namespace in which Envoy Gateway runs its Envoy pods."""
_USER = 65532
"""The user id of Envoy Gateway's Envoy. The sidecar uses the same id, because only that user can open the sockets."""
_GATEWAY_API = "gateway.networking.k8s.io"
_ENVOY_GATEWAY = "gateway.envoyproxy.io"
_VERSIONS = {_GATEWAY_API: "v1", _ENVOY_GATEWAY: "v1alpha1"}
_NOBODY = "192.0.2.1"
"""An address at which no server listens, from the network reserved for documentation (RFC 5737)."""
TLS_SECRET = f"{NAME}-tls"
"""The name of the Secret with the certificate for TLS listeners, in the Gateway's namespace."""


def objects(
    settings: Settings, sidecar: Sidecar, place: GatewayTarget, version: EnvoyVersion
) -> list[tuple[str, Config]]:
    """Return the objects in the order of their application, each with its comment. `settings` must be a result of
    `gateway_pod.inside`."""
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
                    "Puts the sidecar into the managed Envoy's pod. The GatewayClass decides the rest. The data\n"
                    "folder ends with the pod. Set state.url for several replicas, or to keep stored data.",
                    _object(_ENVOY_GATEWAY, "EnvoyProxy", place, _envoy_proxy(settings, sidecar, place, version)),
                )
            ]
            if place.envoy_proxy is None
            else []
        ),
        *(
            ("Routes that lack Antiphon's patch lead to this address, where no server listens.", one)
            for one in _nowhere(place)
        ),
        *(
            [
                (
                    "The answer to requests that match no route of Antiphon.",
                    _object(_ENVOY_GATEWAY, "HTTPRouteFilter", place, _nothing_here()),
                )
            ]
            if place.own
            else []
        ),
        (
            "The paths that clients can reach. Policies (SecurityPolicy...) of this route or of the Gateway apply to\n"
            "all. You may delete matches that clients must not use (/v1/embeddings...). Do not delete a rule, because\n"
            "the patches count them.",
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
            "Last: put the sidecar into the pods of the EnvoyProxy. It must not have an envoyDeployment.patch yet."
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
    extensions = fitted(bootstrap_extensions(settings), version)
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
    body = error_body(NOT_FOUND, "invalid_request_error", None)
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
