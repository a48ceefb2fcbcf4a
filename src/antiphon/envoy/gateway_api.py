"""What an Envoy Gateway needs, as Kubernetes objects.

Lives here: the objects and their order, with a word on each. Not here: the sidecar in the pod (`gateway_pod.py`), what
Envoy needs in itself (`snippet.py` cuts the bootstrap into parts), who prints it (`commands/`).

Antiphon is a native sidecar of the Envoy that Envoy Gateway manages; they talk over Unix sockets in memory, so no
secret is shared and nothing listens that others reach. What clients can reach is an HTTPRoute, so that policies hold
for it; where it leads, filter, clusters and the model door are those of our bootstrap, put in by one EnvoyPatchPolicy
(`gateway_patches.py`): Envoy Gateway's own objects refuse Unix sockets in routes, and know neither the limits nor the
answers that a gateway needs.

Invariant: no secret is printed, only names of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from antiphon.config.settings import Settings
from antiphon.envoy import gateway_pod
from antiphon.envoy.bootstrap import to_yaml
from antiphon.envoy.gateway_patches import json_patches
from antiphon.envoy.gateway_pod import NAME, Place, Sidecar
from antiphon.envoy.gateway_routes import Rule, rules
from antiphon.envoy.messages import Config, error_body
from antiphon.envoy.routes import NOT_FOUND
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.snippet import parts
from antiphon.envoy.versions import EnvoyVersion

SYSTEM = "envoy-gateway-system"
"""The namespace in which Envoy Gateway runs its Envoys."""
_USER = 65532
"""As whom Envoy Gateway's Envoy runs; the sidecar does so too, since the sockets are for that user alone."""
_GATEWAY_API = "gateway.networking.k8s.io"
_ENVOY_GATEWAY = "gateway.envoyproxy.io"
_VERSIONS = {_GATEWAY_API: "v1", _ENVOY_GATEWAY: "v1alpha1"}
_NOBODY = "192.0.2.1"
"""Of the network that is for documentation (RFC 5737)."""
TLS_SECRET = f"{NAME}-tls"
"""The certificate of listeners with TLS, in the Gateway's namespace."""


def objects(settings: Settings, sidecar: Sidecar, place: Place, version: EnvoyVersion) -> list[tuple[str, Config]]:
    """The objects in the order in which they are applied, each with its comment. `settings`: `gateway_pod.inside`'s."""
    found: Any = parts(settings, [SidecarEndpoint(settings.sidecar.grpc, settings.sidecar.http)], version)
    made = rules(found["routes"])
    # As Envoy Gateway calls them.
    listeners = [f"{place.namespace}/{place.name}/{one}" for one in place.listeners]
    entries = json_patches(found, made, listeners, f"{place.namespace}/{NAME}")
    return [
        ("The sidecar's settings, where the managed Envoys run.", gateway_pod.settings_map(sidecar, SYSTEM)),
        (
            "The managed Envoy, with the sidecar beside it. Its data folder ends with the pod: for more than one\n"
            "replica, or to keep what is stored, set state.url (PostgreSQL).",
            _envoy_proxy(settings, sidecar, place, found.get("bootstrap_extensions")),
        ),
        ("The Gateway. In one of your own put `infrastructure`.", _gateway(place)),
        *(
            ("Where a route leads that is not patched: to an address where nobody is.", _nowhere_object(place, *one))
            for one in _nowhere()
        ),
        (
            "What is answered where none of our routes fits. Routes of yours may take its place.",
            _object(_ENVOY_GATEWAY, "HTTPRouteFilter", place, _nothing_here()),
        ),
        (
            "What clients can reach. Policies (SecurityPolicy...) of this route or of the Gateway hold for all of it.\n"
            "Leave out matches that clients shall not use (/v1/embeddings...), but no rule: the patches count them.",
            _http_route(place, made),
        ),
        (
            "Antiphon in the managed Envoy: its clusters, the model door, where routes lead, the filter before the\n"
            "router, what Envoy answers by itself.",
            _patch_policy(place, entries),
        ),
    ]


def _object(group: str, kind: str, place: Place, spec: Config, *, name: str = NAME) -> Config:
    return {
        "apiVersion": f"{group}/{_VERSIONS[group]}",
        "kind": kind,
        "metadata": {"name": name, "namespace": place.namespace},
        "spec": spec,
    }


def _envoy_proxy(settings: Settings, sidecar: Sidecar, place: Place, extensions: list[Config] | None) -> Config:
    deployment: dict[str, Any] = {
        "replicas": 1,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "pod": {"securityContext": {"fsGroup": _USER}},
        "container": gateway_pod.envoys_share(settings),
        "patch": {
            "type": "StrategicMerge",
            "value": {"spec": {"template": {"spec": gateway_pod.pod(sidecar, user=_USER)}}},
        },
    }
    provider = {"type": "Kubernetes", "kubernetes": {"envoyDeployment": deployment}}
    shutdown = {"drainTimeout": f"{int(settings.timeouts.drain)}s"}
    spec: Config = {"provider": provider, "shutdown": shutdown}
    if extensions is not None:
        # For listeners inside Envoy.
        spec["bootstrap"] = {"type": "Merge", "value": to_yaml({"bootstrap_extensions": extensions})}
    return _object(_ENVOY_GATEWAY, "EnvoyProxy", place, spec)


def _gateway(place: Place) -> Config:
    spec = {
        "gatewayClassName": "eg",
        "infrastructure": {"parametersRef": {"group": _ENVOY_GATEWAY, "kind": "EnvoyProxy", "name": NAME}},
        "listeners": [_listener(name) for name in place.listeners],
    }
    return _object(_GATEWAY_API, "Gateway", place, spec, name=place.name)


def _listener(name: str) -> Config:
    if not name.startswith("https"):
        return {"name": name, "protocol": "HTTP", "port": 80}
    tls = {"mode": "Terminate", "certificateRefs": [{"name": TLS_SECRET}]}
    return {"name": name, "protocol": "HTTPS", "port": 443, "tls": tls}


def _of_gateway(place: Place) -> Config:
    return {"group": _GATEWAY_API, "kind": "Gateway", "name": place.name}


def _nothing_here() -> Config:
    body = error_body(NOT_FOUND, "invalid_request_error", None)
    answer = {"statusCode": 404, "contentType": "application/json", "body": {"type": "Inline", "inline": body}}
    return {"directResponse": answer}


def _nowhere() -> list[tuple[str, str, Config]]:
    """A Service with an address where nobody is."""
    return [
        ("v1", "Service", {"spec": {"ports": [{"name": "http", "port": 80}]}}),
        (
            "discovery.k8s.io/v1",
            "EndpointSlice",
            {
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
                "endpoints": [{"addresses": [_NOBODY], "conditions": {"ready": True}}],
            },
        ),
    ]


def _nowhere_object(place: Place, version: str, kind: str, rest: Config) -> Config:
    about: Config = {"name": f"{NAME}-nowhere", "namespace": place.namespace}
    if kind == "EndpointSlice":
        about["labels"] = {"kubernetes.io/service-name": about["name"]}
    return {"apiVersion": version, "kind": kind, "metadata": about, **rest}


def _http_route(place: Place, made: Sequence[Rule]) -> Config:
    nothing = {"group": _ENVOY_GATEWAY, "kind": "HTTPRouteFilter", "name": NAME}
    spec = {
        "parentRefs": [{**_of_gateway(place), "sectionName": one} for one in place.listeners],
        "rules": [
            *({"matches": one.matches, "backendRefs": [{"name": f"{NAME}-nowhere", "port": 80}]} for one in made),
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                "filters": [{"type": "ExtensionRef", "extensionRef": nothing}],
            },
        ],
    }
    return _object(_GATEWAY_API, "HTTPRoute", place, spec)


def _patch_policy(place: Place, entries: list[Config]) -> Config:
    spec = {"targetRef": _of_gateway(place), "type": "JSONPatch", "jsonPatches": entries}
    return _object(_ENVOY_GATEWAY, "EnvoyPatchPolicy", place, spec)
