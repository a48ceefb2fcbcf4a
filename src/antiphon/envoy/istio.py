"""Generates the Kubernetes objects that put Antiphon into an Istio gateway.

This module generates the objects for a Gateway of the class `istio`, in order, and the patch for each part of Envoy's
configuration. `gateway_pod.py` generates the sidecar in the pod. `snippet.py` splits Envoy's configuration into parts.
The package `commands` prints the result.

One EnvoyFilter patches the configuration that Istio sends to its Envoy. Envoy reads the limits of its process from its
bootstrap. An EnvoyFilter cannot change the bootstrap, because patches with applyTo BOOTSTRAP have had no effect since
Istio 1.21. So Istio's agent merges a file with the limits into the bootstrap (`ISTIO_BOOTSTRAP_OVERRIDE`).

A patch with operation MERGE merges protobuf messages: it replaces single values, and appends to lists.

Invariants: the patches contain only `snippet.parts`, for one port of one Gateway. The output contains no secret, only
the names of the keys in a Secret.
"""

from __future__ import annotations

from collections.abc import Iterator

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
from antiphon.envoy.messages import Config, router, typed
from antiphon.envoy.routes import NOTHING
from antiphon.envoy.sidecars import SidecarEndpoint
from antiphon.envoy.snippet import beside_others, parts
from antiphon.envoy.versions import EnvoyVersion

_USER = 1337
"""The user id of Istio's Envoy."""
_OVERLAY = f"{NAME}-deployment"
_GATEWAY_API = "gateway.networking.k8s.io"
_MANAGER = "envoy.filters.network.http_connection_manager"
_CONNECTIONS = "envoy.resource_monitors.global_downstream_max_connections"
_BOOTSTRAP_FILE = "envoy-bootstrap.yaml"
_MARGIN = 10
"""The seconds by which a pod's grace period exceeds `timeouts.drain`."""


def objects(
    settings: Settings, sidecar: Sidecar, place: GatewayTarget, version: EnvoyVersion
) -> list[tuple[str, Config]]:
    """Return the objects in the order in which the operator applies them, each with its comment. `settings` must be a
    result of `gateway_pod.inside`."""
    found: Config = parts(settings, [SidecarEndpoint(settings.sidecar.grpc, settings.sidecar.http)], version)
    if not place.own:
        found = beside_others(found)
    limits = {}
    if found["overload_manager"]:
        limits = {_BOOTSTRAP_FILE: to_yaml({"overload_manager": _overload_manager(found["overload_manager"])})}
    overlay = {"deployment": to_yaml(_deployment(settings, sidecar, place, found["overload_manager"]))}
    return [
        (
            "The sidecar's settings, and the limits of Envoy's process.",
            gateway_pod.settings_map(sidecar, place.namespace, limits),
        ),
        (
            "Istio merges this ConfigMap into the Gateway's Deployment, which gets the sidecar. Kubernetes deletes\n"
            "the data folder with the pod. Set state.url (PostgreSQL) for several replicas, or to keep stored data.",
            gateway_pod.config_map(_OVERLAY, place.namespace, overlay),
        ),
        (
            "Patches the managed Envoy: clusters, the model door, the routes before all others, the filter, and the\n"
            "answers that Envoy makes itself. You may delete routes (model...) that clients must not use.",
            _envoy_filter(found, place),
        ),
        *([("The Gateway comes last, because it refers to the objects above.", _gateway(place))] if place.own else []),
    ]


def coming_in(settings: Settings, sidecar: Sidecar, place: GatewayTarget, version: EnvoyVersion) -> list[CommandStep]:
    """Return the commands that put the sidecar into an existing Gateway, which another team may own. The commands run
    after all `objects` exist. The list is empty for a Gateway that serves only Antiphon."""
    if place.own:
        return []
    comment = "Last: put the sidecar into the Gateway's pods. The Gateway must not name another ConfigMap."
    return [merged_into(comment, place.namespace, GATEWAY, place.name, _infrastructure())]


def going_out(settings: Settings, sidecar: Sidecar, place: GatewayTarget) -> list[CommandStep]:
    """Return the commands that remove Antiphon, in order."""
    space = place.namespace
    steps = [deleted("1. Delete the patches of Envoy's configuration.", space, f"envoyfilter/{NAME}")]
    if place.own:
        steps.append(deleted("2. Delete the Gateway with its pods.", space, f"{GATEWAY}/{place.name}"))
    else:
        taken = {"infrastructure": {"parametersRef": None}}
        comment = "2. Remove Antiphon's ConfigMap from the Gateway."
        steps.append(merged_into(comment, space, GATEWAY, place.name, taken))
        label = f"{_GATEWAY_API}/gateway-name={place.name}"
        steps += served_without("3. Wait until pods without the sidecar serve.", space, place.name, space, label)
    secret = [f"secret/{NAME}"] if gateway_pod.keys(settings, sidecar) else []
    maps = (f"configmap/{NAME}", f"configmap/{_OVERLAY}")
    return [*steps, deleted("4. Delete the objects that nothing refers to any more.", space, *maps, *secret)]


def _overload_manager(limits: Config) -> Config:
    """Return the overload manager's limits without the monitor of connections. Istio's bootstrap already has that
    monitor, and Envoy rejects a second one with the same name."""
    monitors = [one for one in limits["resource_monitors"] if one["name"] != _CONNECTIONS]
    return {**limits, "resource_monitors": monitors}


def _most_connections(limits: Config) -> int:
    (own,) = (one["typed_config"] for one in limits["resource_monitors"] if one["name"] == _CONNECTIONS)
    return int(own["max_active_downstream_connections"])


def _deployment(settings: Settings, sidecar: Sidecar, place: GatewayTarget, limits: Config) -> Config:
    share = gateway_pod.envoys_share(settings)
    of_process = {}
    if limits:
        of_process = {
            "ISTIO_BOOTSTRAP_OVERRIDE": f"{gateway_pod.SETTINGS}/{_BOOTSTRAP_FILE}",
            "ISTIO_META_GLOBAL_DOWNSTREAM_MAX_CONNECTIONS": str(_most_connections(limits)),
        }
    values = {
        **of_process,
        # Without `EXIT_ON_ZERO_ACTIVE_CONNECTIONS` Istio's agent ends Envoy 5 s after the drain begins, even with open
        # streams.
        "EXIT_ON_ZERO_ACTIVE_CONNECTIONS": "true",
    }
    envoy = {
        "name": "istio-proxy",
        "env": [*({"name": name, "value": value} for name, value in values.items()), *share["env"]],
        "volumeMounts": [*share["volumeMounts"], gateway_pod.settings_mount()],
    }
    pod = {
        "securityContext": {"fsGroup": _USER},
        "terminationGracePeriodSeconds": int(settings.timeouts.drain) + _MARGIN,
        **gateway_pod.pod(settings, sidecar, user=_USER, own=place.own),
        "containers": [envoy],
    }
    return {
        "spec": {
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"spec": pod},
        }
    }


def _gateway(place: GatewayTarget) -> Config:
    spec = {
        "gatewayClassName": "istio",
        **_infrastructure(),
        "listeners": [{"name": "http", "protocol": "HTTP", "port": place.port}],
    }
    return kubernetes_object(f"{_GATEWAY_API}/v1", "Gateway", place.name, place.namespace, spec=spec)


def _infrastructure() -> Config:
    return {"infrastructure": {"parametersRef": {"group": "", "kind": "ConfigMap", "name": _OVERLAY}}}


def _envoy_filter(found: Config, place: GatewayTarget) -> Config:
    spec = {
        "targetRefs": [{"group": _GATEWAY_API, "kind": "Gateway", "name": place.name}],
        "configPatches": list(_patches(found, place)),
    }
    return kubernetes_object("networking.istio.io/v1alpha3", "EnvoyFilter", NAME, place.namespace, spec=spec)


def _patches(found: Config, place: GatewayTarget) -> Iterator[Config]:
    port = place.port
    listener = {"portNumber": port}
    routes = {"routeConfiguration": {"portNumber": port}}
    hosts: list[Config] = [
        {"routeConfiguration": {"portNumber": port, "vhost": {"name": f"{one}:{port}"}}} for one in place.hostnames
    ]

    def manager(**more: object) -> Config:
        return {"listener": {**listener, "filterChain": {"filter": {"name": _MANAGER, **more}}}}

    for cluster in found["clusters"]:
        yield _patch("CLUSTER", "ADD", {}, cluster)
    for own in found["listener"]:
        yield _patch("LISTENER", "ADD", {}, own)
    if found["public_listener"]:
        yield _patch("LISTENER", "MERGE", {"listener": listener}, found["public_listener"])
    options = typed("filters.network.http_connection_manager.v3.HttpConnectionManager", **found["connection_manager"])
    yield _patch("NETWORK_FILTER", "MERGE", manager(), {"name": _MANAGER, "typed_config": options})
    for own in found["http_filter"]:
        yield _patch("HTTP_FILTER", "INSERT_BEFORE", manager(subFilter={"name": router()["name"]}), own)
    for where in hosts or [routes]:
        if found["virtual_host"]:
            yield _patch("VIRTUAL_HOST", "MERGE", where, found["virtual_host"])
        # The order is reversed, because each patch inserts its route at the front.
        for route in reversed([one for one in found["routes"] if one["name"] != NOTHING]):
            yield _patch("HTTP_ROUTE", "INSERT_FIRST", where, route)
        for route in (one for one in found["routes"] if one["name"] == NOTHING):
            # INSERT_AFTER without a route name appends the route after all existing routes. Istio's analysis reports
            # such a patch as a mistake.
            yield _patch("HTTP_ROUTE", "INSERT_AFTER", where, route)


def _patch(kind: str, operation: str, where: Config, value: Config) -> Config:
    return {
        "applyTo": kind,
        "match": {"context": "GATEWAY", **where},
        "patch": {"operation": operation, "value": value},
    }
