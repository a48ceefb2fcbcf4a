"""Generates the sidecar container for an Envoy pod that another controller manages on Kubernetes.

Lives here: the container, its volumes and settings, the additions to Envoy's container, the form of objects, and the
`kubectl` steps for installing and removing. Not here: the objects and steps of one kind of gateway (`gateway_api.py`,
`istio.py`).

Antiphon is a native sidecar of that Envoy. They communicate over Unix sockets in memory, so they need no shared secret,
and no other pod can connect.

Invariants: the output contains no secret, only names of keys. A Gateway never refers to a deleted object, because such
a Gateway serves no request.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode
from antiphon.envoy.bootstrap import to_yaml
from antiphon.envoy.messages import Config
from antiphon.envoy.routes import key_variable
from antiphon.errors import ConfigError

NAME = "antiphon"
"""The default name of objects, and the name of the Secret."""
GATEWAY = "gateways.gateway.networking.k8s.io"
"""The resource name of the Gateway API's Gateway: Istio has a kind of the same name."""
SETTINGS = "/etc/antiphon"
"""The mount path of the settings' ConfigMap in the sidecar's container."""
_SOCKETS = "/run/antiphon"
_SETTINGS_FILE = "antiphon.yaml"
_LAST_PORT = 65535
_HOSTNAME = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_METRICS_PORT = 9464
"""The default port for Prometheus and Kubernetes' probes (see `metrics.listen`); a Gateway does not use it."""
_START_SECONDS = 30
"""Seconds for a start on a busy machine, in addition to its waits."""
_DRAIN_SECONDS = 600.0
"""The default of `timeouts.drain`, as in the Helm chart. Agents' streams run for minutes, and a pod waits no longer
than its clients stay connected."""
_WAIT = "--timeout=300s"
_DATA = Path("/var/lib/antiphon")


class GatewayTarget(NamedTuple):
    """A Gateway and the listeners to use."""

    namespace: str
    name: str
    listeners: tuple[str, ...] = ("http",)
    """The names of the listeners, for Envoy Gateway."""
    port: int = 80
    """The port of the listener, for Istio."""
    hostnames: tuple[str, ...] = ()
    """The hosts with Antiphon's routes; empty: every host."""
    own: bool = False
    """Whether only Antiphon has routes on it."""
    envoy_proxy: str | None = None
    """The EnvoyProxy that the Gateway already uses, for Envoy Gateway."""


class Sidecar(NamedTuple):
    """The sidecar's inputs: the values of its settings file, and the environment variables from a Secret."""

    values: Config
    secrets: tuple[str, ...]


def parse_place(text: str, listeners: str, port: str) -> GatewayTarget:
    """Parse `NAMESPACE/NAME`, comma-separated listener names, and a port number. Raises `ConfigError`."""
    namespace, slash, name = text.partition("/")
    if not (slash and namespace and name) or "/" in name:
        raise ConfigError(f"--gateway: {text!r} is no Gateway: give it as NAMESPACE/NAME")
    named = tuple(dict.fromkeys(one.strip() for one in listeners.split(",")))
    if not all(named):
        raise ConfigError(f"--listener: {listeners!r}: give the names of the Gateway's listeners, as http,https")
    if not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > _LAST_PORT:
        raise ConfigError(f"--gateway-port: {port[:40]!r} is no port: give it as a number from 1 to {_LAST_PORT}")
    return GatewayTarget(namespace, name, named, int(port))


def parse_hostname(text: str) -> str:
    """Check a host name, which may begin with `*.`. Raises `ConfigError`."""
    if not _HOSTNAME.fullmatch(text):
        raise ConfigError(f"--hostname: {text[:253]!r} is no host's name: give it in small letters, as api.example.com")
    return text


def inside(settings: Settings) -> Settings:
    """The settings inside the pod of a managed Envoy. An explicit drain timeout stays."""
    sockets = {
        "grpc": f"unix:{_SOCKETS}/grpc.sock",
        "http": f"unix:{_SOCKETS}/http.sock",
        "model_door": f"unix:{_SOCKETS}/model-door.sock",
    }
    timeouts = settings.timeouts
    if "drain" not in timeouts.model_fields_set:
        timeouts = timeouts.model_copy(update={"drain": _DRAIN_SECONDS})
    metrics, state = settings.metrics, settings.state
    if metrics.listen is None:
        metrics = metrics.model_copy(update={"listen": f"0.0.0.0:{_METRICS_PORT}"})
    if "unready_after" not in state.model_fields_set:
        # An unready pod leaves its Service with the routes of others, and all pods would leave at once.
        state = state.model_copy(update={"unready_after": 0.0})
    sidecar = settings.sidecar.model_copy(update=sockets)
    # One process per Envoy: more replicas add both.
    sections = {"timeouts": timeouts, "sidecar": sidecar, "metrics": metrics, "state": state}
    return settings.model_copy(update={"workers": 1, "data": _DATA, **sections})


def keys(settings: Settings, sidecar: Sidecar) -> list[str]:
    """The keys of the Secret: the sidecar's variables, and those of Envoy's process."""
    return sorted({*sidecar.secrets, *_injected_keys(settings)})


def pod(settings: Settings, sidecar: Sidecar, *, user: int, own: bool) -> Config:
    """The fields of the pod's spec, for a strategic merge. `user`: the user of its Envoy and of the sidecar, because
    only that user can open the sockets. `own`: the pod serves only Antiphon, so it may become unready with the
    sidecar."""
    assert settings.metrics.listen is not None
    port = parse_address(settings.metrics.listen)[1]
    container: Config = {
        "name": NAME,
        "image": "antiphon:latest",
        "args": ["extproc"],
        # A native sidecar: it starts before Envoy, and ends after it.
        "restartPolicy": "Always",
        "env": [
            {"name": "ANTIPHON_CONFIG", "value": f"{SETTINGS}/{_SETTINGS_FILE}"},
            *(_from_secret(name) for name in sidecar.secrets),
        ],
        "securityContext": {
            "runAsUser": user,
            "runAsGroup": user,
            "runAsNonRoot": True,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "ports": [{"name": "antiphon", "containerPort": port}],
        "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
        # Longer than a start waits for its database (`state.start_within`).
        "startupProbe": _probe("/metrics", port, period=2, failures=_probed_for(settings) // 2),
        # A hanging sidecar does not drain.
        "livenessProbe": {**_probe("/metrics", port, period=10, failures=3), "terminationGracePeriodSeconds": 10},
        **({"readinessProbe": _probe("/ready", port, period=2, failures=2)} if own else {}),
        "volumeMounts": [
            {"name": "antiphon-sockets", "mountPath": _SOCKETS},
            {"name": "antiphon-data", "mountPath": str(_DATA)},
            settings_mount(),
            {"name": "antiphon-tmp", "mountPath": "/tmp"},
        ],
    }
    return {
        # The environment variables of Services must not be read as settings.
        "enableServiceLinks": False,
        "initContainers": [container],
        "volumes": [
            {"name": "antiphon-sockets", "emptyDir": {"medium": "Memory"}},
            {"name": "antiphon-data", "emptyDir": {}},
            {"name": "antiphon-settings", "configMap": {"name": NAME}},
            {"name": "antiphon-tmp", "emptyDir": {}},
        ],
    }


def _probe(path: str, port: int, *, period: int, failures: int) -> Config:
    # Kubernetes' probes cannot use Unix sockets.
    asked = {"path": path, "port": port}
    return {"httpGet": asked, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _probed_for(settings: Settings) -> int:
    """Seconds until a sidecar that has not started counts as failed."""
    return int(settings.state.start_within) + _START_SECONDS


def envoys_share(settings: Settings) -> Config:
    """The additions to Envoy's container: the sockets, and the keys that Envoy adds to requests."""
    return {
        "env": [_from_secret(name) for name in _injected_keys(settings)],
        "volumeMounts": [{"name": "antiphon-sockets", "mountPath": _SOCKETS}],
    }


def settings_mount() -> Config:
    """The mount of the settings' ConfigMap."""
    return {"name": "antiphon-settings", "mountPath": SETTINGS, "readOnly": True}


def settings_map(sidecar: Sidecar, namespace: str, more: dict[str, str] | None = None) -> Config:
    """The ConfigMap with the sidecar's settings and further files."""
    return config_map(NAME, namespace, {_SETTINGS_FILE: to_yaml(sidecar.values), **(more or {})})


def config_map(name: str, namespace: str, data: dict[str, str]) -> Config:
    """A ConfigMap with these texts."""
    return kubernetes_object("v1", "ConfigMap", name, namespace, data=data)


def kubernetes_object(version: str, kind: str, name: str, namespace: str, **fields: object) -> Config:
    """A Kubernetes object; `version` is its API version with the group."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **fields}


def to_text(named: Sequence[tuple[str, Config]]) -> str:
    """Objects, each with its comment, as commented YAML documents."""
    return "".join(f"---\n{_commented(comment)}{to_yaml(one)}" for comment, one in named)


class CommandStep(NamedTuple):
    """A command, and a comment with its purpose."""

    comment: str
    command: tuple[str, ...]


def kubectl(comment: str, namespace: str, *words: str) -> CommandStep:
    """A `kubectl` command in a namespace."""
    return CommandStep(comment, ("kubectl", "-n", namespace, *words))


def merged_into(comment: str, namespace: str, kind: str, name: str, spec: Config) -> CommandStep:
    """Merge fields into the spec of an existing object; null removes a field."""
    patch = json.dumps({"spec": spec}, separators=(",", ":"))
    return kubectl(comment, namespace, "patch", kind, name, "--type=merge", "--patch", patch)


def deleted(comment: str, namespace: str, *objects: str) -> CommandStep:
    """Delete objects, each as KIND/NAME; objects that do not exist are no error."""
    return kubectl(comment, namespace, "delete", "--ignore-not-found", *objects)


def served_without(
    comment: str, namespace: str, gateway: str, system: str, label: str
) -> tuple[CommandStep, CommandStep]:
    """Wait until the Gateway's controller has accepted the change and rolled out its pods. `label` selects its
    Deployment in the namespace `system`."""
    return (
        kubectl(comment, namespace, "wait", "--for=condition=Accepted", f"{GATEWAY}/{gateway}", _WAIT),
        kubectl("", system, "rollout", "status", "deployment", "-l", label, _WAIT),
    )


def script(steps: Sequence[CommandStep]) -> str:
    """The steps as a shell script."""
    return "".join(f"{_commented(one.comment)}{shlex.join(one.command)}\n" for one in steps)


def as_comments(steps: Sequence[CommandStep]) -> str:
    """The steps as comments of a YAML file."""
    return _commented(script(steps)) if steps else ""


def _commented(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())


def _injected_keys(settings: Settings) -> list[str]:
    """The variables from which the managed Envoy reads the upstreams' keys."""
    return [key_variable(name) for name, one in settings.every_upstream.items() if one.auth_mode is AuthMode.INJECT]


def _from_secret(variable: str) -> Config:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": NAME, "key": variable}}}
