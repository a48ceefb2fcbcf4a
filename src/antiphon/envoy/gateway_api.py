"""What an Envoy Gateway needs, as Kubernetes objects.

Lives here: the objects and their order, with a word on each. Not here: what Envoy needs in itself (`snippet.py` cuts
the bootstrap into parts), who prints it (`commands/`).

Antiphon is a native sidecar of the Envoy that Envoy Gateway manages; they talk over Unix sockets in memory, so no
secret is shared and nothing listens that others reach. Routes, filter, clusters and the model door are those of our
bootstrap, put in by one EnvoyPatchPolicy: Envoy Gateway's own objects refuse Unix sockets in routes, and know
neither the limits nor the answers that a gateway needs.

Invariants: what is patched in is `snippet.parts`, nothing else; no secret is printed, only names of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode
from antiphon.envoy.bootstrap import to_yaml
from antiphon.envoy.clusters import SidecarEndpoint
from antiphon.envoy.messages import Config, error_body
from antiphon.envoy.routes import NOT_FOUND, NOTHING, key_variable
from antiphon.envoy.snippet import parts
from antiphon.envoy.versions import EnvoyVersion
from antiphon.errors import ConfigError

SYSTEM = "envoy-gateway-system"
"""The namespace in which Envoy Gateway runs its Envoys."""
NAME = "antiphon"
"""The name of every object that needs no other."""
_SOCKETS = "/run/antiphon"
_DATA = Path("/var/lib/antiphon")
_USER = 65532
"""As whom Envoy Gateway's Envoy runs; the sidecar does so too, since the sockets are for that user alone."""
_GATEWAY_API = "gateway.networking.k8s.io"
_ENVOY_GATEWAY = "gateway.envoyproxy.io"
_VERSIONS = {_GATEWAY_API: "v1", _ENVOY_GATEWAY: "v1alpha1"}
_TYPES = "type.googleapis.com/envoy.config."
_MANAGER = "..filters[?(@.name == 'envoy.filters.network.http_connection_manager')].typed_config"


class Place(NamedTuple):
    """Which Gateway it is."""

    namespace: str
    name: str


class Sidecar(NamedTuple):
    """What the sidecar reads: the values of its settings file, and which variables a Secret has for it."""

    values: Config
    secrets: tuple[str, ...]


def parse_place(text: str) -> Place:
    """`NAMESPACE/NAME`. Raises `ConfigError`."""
    namespace, slash, name = text.partition("/")
    if not (slash and namespace and name) or "/" in name:
        raise ConfigError(f"--gateway: {text!r} is no Gateway: give it as NAMESPACE/NAME")
    return Place(namespace, name)


def in_gateway_pod(settings: Settings) -> Settings:
    """The settings as they are inside the pod of a managed Envoy."""
    sockets = {
        "grpc": f"unix:{_SOCKETS}/grpc.sock",
        "http": f"unix:{_SOCKETS}/http.sock",
        "model_door": f"unix:{_SOCKETS}/model-door.sock",
    }
    if settings.groups or settings.envoy.endpoint_picker.address is not None:
        raise ConfigError(
            "several upstreams for one model, and envoy.endpoint_picker, take listeners inside Envoy: the bootstrap of "
            "a managed Envoy has no extension for them. Leave them out, or run an Envoy of your own (--for bootstrap)"
        )
    # One process for each Envoy: more replicas are more of both.
    return settings.model_copy(
        update={"workers": 1, "data": _DATA, "sidecar": settings.sidecar.model_copy(update=sockets)}
    )


def injected_keys(settings: Settings) -> list[str]:
    """The variables from which the managed Envoy reads the upstreams' keys."""
    return [key_variable(name) for name, one in settings.every_upstream.items() if one.auth_mode is AuthMode.INJECT]


def objects(settings: Settings, sidecar: Sidecar, place: Place, version: EnvoyVersion) -> list[tuple[str, Config]]:
    """The objects in the order in which they are applied, each with its comment. `settings`: `in_gateway_pod`'s."""
    return [
        ("The sidecar's settings, where the managed Envoys run.", _settings_map(sidecar)),
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


def to_text(named: Sequence[tuple[str, Config]]) -> str:
    """The objects as commented YAML documents."""
    return "".join(f"---\n{_commented(comment)}{to_yaml(one)}" for comment, one in named)


def _commented(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())


def _object(group: str, kind: str, place: Place, spec: Config, *, name: str = NAME) -> Config:
    return {
        "apiVersion": f"{group}/{_VERSIONS[group]}",
        "kind": kind,
        "metadata": {"name": name, "namespace": place.namespace},
        "spec": spec,
    }


def _settings_map(sidecar: Sidecar) -> Config:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": SYSTEM},
        "data": {"antiphon.yaml": to_yaml(sidecar.values)},
    }


def _from_secret(variable: str) -> Config:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": NAME, "key": variable}}}


def _envoy_proxy(settings: Settings, sidecar: Sidecar, place: Place) -> Config:
    own_user = {"runAsUser": _USER, "runAsGroup": _USER, "runAsNonRoot": True}
    container = {
        "name": NAME,
        "image": "antiphon:latest",
        "args": ["extproc"],
        # A sidecar: it is there before Envoy, and until Envoy has gone.
        "restartPolicy": "Always",
        "env": [
            {"name": "ANTIPHON_CONFIG", "value": "/etc/antiphon/antiphon.yaml"},
            *(_from_secret(name) for name in sidecar.secrets),
        ],
        "securityContext": {
            **own_user,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "startupProbe": {
            "exec": {"command": ["antiphon", "health"]},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": 60,
        },
        "volumeMounts": [
            {"name": "antiphon-sockets", "mountPath": _SOCKETS},
            {"name": "antiphon-data", "mountPath": str(_DATA)},
            {"name": "antiphon-settings", "mountPath": "/etc/antiphon", "readOnly": True},
            {"name": "antiphon-tmp", "mountPath": "/tmp"},
        ],
    }
    pod = {
        # A Service's variables are no settings.
        "enableServiceLinks": False,
        "initContainers": [container],
        "volumes": [
            {"name": "antiphon-sockets", "emptyDir": {"medium": "Memory"}},
            {"name": "antiphon-data", "emptyDir": {}},
            {"name": "antiphon-settings", "configMap": {"name": NAME}},
            {"name": "antiphon-tmp", "emptyDir": {}},
        ],
    }
    deployment: dict[str, Any] = {
        "replicas": 1,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "pod": {"securityContext": {"fsGroup": _USER}},
        "container": {
            "env": [_from_secret(name) for name in injected_keys(settings)],
            "volumeMounts": [{"name": "antiphon-sockets", "mountPath": _SOCKETS}],
        },
        "patch": {"type": "StrategicMerge", "value": {"spec": {"template": {"spec": pod}}}},
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
