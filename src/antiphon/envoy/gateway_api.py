"""What an Envoy Gateway needs, as Kubernetes objects.

Lives here: the objects and their order, with a word on each. Not here: the sidecar in the pod (`gateway_pod.py`), what
Envoy needs in itself (`snippet.py` cuts the bootstrap into parts), who prints it (`commands/`).

Antiphon is a native sidecar of the Envoy that Envoy Gateway manages; they talk over Unix sockets in memory, so no
secret is shared and nothing listens that others reach. Routes, filter, clusters and the model door are those of our
bootstrap, put in by one EnvoyPatchPolicy: Envoy Gateway's own objects refuse Unix sockets in routes, and know
neither the limits nor the answers that a gateway needs.

Invariants: what is patched in is `snippet.parts`, nothing else; no secret is printed, only names of keys.
"""

from __future__ import annotations

from typing import Any

from antiphon.config.settings import Settings
from antiphon.envoy import gateway_pod
from antiphon.envoy.clusters import SidecarEndpoint
from antiphon.envoy.gateway_pod import NAME, Place, Sidecar
from antiphon.envoy.messages import Config, error_body
from antiphon.envoy.routes import NOT_FOUND, NOTHING
from antiphon.envoy.snippet import parts
from antiphon.envoy.versions import EnvoyVersion
from antiphon.errors import ConfigError

SYSTEM = "envoy-gateway-system"
"""The namespace in which Envoy Gateway runs its Envoys."""
_USER = 65532
"""As whom Envoy Gateway's Envoy runs; the sidecar does so too, since the sockets are for that user alone."""
_GATEWAY_API = "gateway.networking.k8s.io"
_ENVOY_GATEWAY = "gateway.envoyproxy.io"
_VERSIONS = {_GATEWAY_API: "v1", _ENVOY_GATEWAY: "v1alpha1"}
_TYPES = "type.googleapis.com/envoy.config."
_MANAGER = "..filters[?(@.name == 'envoy.filters.network.http_connection_manager')].typed_config"


def check(settings: Settings) -> None:
    """Raises `ConfigError` for settings that a managed Envoy cannot have."""
    if settings.groups or settings.envoy.endpoint_picker.address is not None:
        raise ConfigError(
            "several upstreams for one model, and envoy.endpoint_picker, take listeners inside Envoy: the bootstrap of "
            "a managed Envoy has no extension for them. Leave them out, or run an Envoy of your own (--for bootstrap)"
        )


def objects(settings: Settings, sidecar: Sidecar, place: Place, version: EnvoyVersion) -> list[tuple[str, Config]]:
    """The objects in the order in which they are applied, each with its comment. `settings`: `gateway_pod.inside`'s."""
    return [
        ("The sidecar's settings, where the managed Envoys run.", gateway_pod.settings_map(sidecar, SYSTEM)),
        (
            "The managed Envoy, with the sidecar beside it. Its data folder ends with the pod: for more than one\n"
            "replica, or to keep what is stored, set state.url (PostgreSQL).",
            _envoy_proxy(settings, sidecar, place),
        ),
        ("The Gateway. In one of your own put `infrastructure`.", _gateway(place)),
        (
            "What is answered where no route of the patches fits. Routes of yours may take its place.",
            _object(_ENVOY_GATEWAY, "HTTPRouteFilter", place, _nothing_here()),
        ),
        ("The route that Envoy Gateway knows of: without one it makes no listener.", _http_route(place)),
        (
            "Antiphon in the managed Envoy: its clusters, the model door, the routes before all others, the filter,\n"
            "what Envoy answers by itself. Leave out routes (model...) that clients shall not use.",
            _patch_policy(settings, place, version),
        ),
    ]


def _object(group: str, kind: str, place: Place, spec: Config, *, name: str = NAME) -> Config:
    return {
        "apiVersion": f"{group}/{_VERSIONS[group]}",
        "kind": kind,
        "metadata": {"name": name, "namespace": place.namespace},
        "spec": spec,
    }


def _envoy_proxy(settings: Settings, sidecar: Sidecar, place: Place) -> Config:
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
    return _object(_ENVOY_GATEWAY, "EnvoyProxy", place, {"provider": provider, "shutdown": shutdown})


def _gateway(place: Place) -> Config:
    spec = {
        "gatewayClassName": "eg",
        "infrastructure": {"parametersRef": {"group": _ENVOY_GATEWAY, "kind": "EnvoyProxy", "name": NAME}},
        "listeners": [{"name": "http", "protocol": "HTTP", "port": 80}],
    }
    return _object(_GATEWAY_API, "Gateway", place, spec, name=place.name)


def _of_gateway(place: Place) -> Config:
    return {"group": _GATEWAY_API, "kind": "Gateway", "name": place.name}


def _nothing_here() -> Config:
    body = error_body(NOT_FOUND, "invalid_request_error", None)
    answer = {"statusCode": 404, "contentType": "application/json", "body": {"type": "Inline", "inline": body}}
    return {"directResponse": answer}


def _http_route(place: Place) -> Config:
    nothing = {"group": _ENVOY_GATEWAY, "kind": "HTTPRouteFilter", "name": NAME}
    spec = {
        "parentRefs": [_of_gateway(place)],
        "rules": [
            {
                "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                "filters": [{"type": "ExtensionRef", "extensionRef": nothing}],
            }
        ],
    }
    return _object(_GATEWAY_API, "HTTPRoute", place, spec)


def _patch_policy(settings: Settings, place: Place, version: EnvoyVersion) -> Config:
    found: Any = parts(settings, [SidecarEndpoint(settings.sidecar.grpc, settings.sidecar.http)], version)
    # As Envoy Gateway calls them.
    listener = f"{place.namespace}/{place.name}/http"
    manager = {**found["connection_manager"]}
    # Envoy Gateway writes access logs of its own (EnvoyProxy.spec.telemetry): ours are added to them.
    failures = manager.pop("access_log")
    public = [
        *({"jsonPath": _MANAGER, "path": f"/{name}", "value": value} for name, value in manager.items()),
        *({"jsonPath": _MANAGER, "path": "/access_log/-", "value": one} for one in failures),
        # The last one is put first.
        *({"jsonPath": _MANAGER, "path": "/http_filters/0", "value": one} for one in reversed(found["http_filter"])),
        *({"path": f"/{name}", "value": value} for name, value in found["public_listener"].items()),
    ]
    routes = [
        *({"path": f"/virtual_hosts/0/{name}", "value": value} for name, value in found["virtual_host"].items()),
        *(
            {"path": "/virtual_hosts/0/routes/0", "value": route}
            for route in reversed(found["routes"])
            if route["name"] != NOTHING
        ),
    ]
    changes = [
        *(("cluster.v3.Cluster", one["name"], {"path": "", "value": one}) for one in found["clusters"]),
        *(("listener.v3.Listener", one["name"], {"path": "", "value": one}) for one in found["listener"]),
        *(("listener.v3.Listener", listener, change) for change in public),
        *(("route.v3.RouteConfiguration", listener, change) for change in routes),
    ]
    spec = {
        "targetRef": _of_gateway(place),
        "type": "JSONPatch",
        "jsonPatches": [
            {"type": _TYPES + kind, "name": name, "operation": {"op": "add", **change}}
            for kind, name, change in changes
        ],
    }
    return _object(_ENVOY_GATEWAY, "EnvoyPatchPolicy", place, spec)
