"""Generates the sidecar container for an Envoy pod that another controller manages on Kubernetes.

This module generates the container, its volumes and settings, and the additions to Envoy's container. This module also
has helpers for Kubernetes objects and `kubectl` steps. `gateway_api.py` and `istio.py` generate the objects and steps
for one kind of gateway.

Antiphon is a native sidecar of that Envoy. Envoy and the sidecar communicate over Unix sockets in a memory volume, so
they need no shared secret, and no other pod can connect.

Invariants: the output contains no secret, only the names of the keys in a Secret. A Gateway never refers to a deleted
object, because such a Gateway serves no request.
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
"""The default name of the Kubernetes objects, and the name of the Secret."""
GATEWAY = "gateways.gateway.networking.k8s.io"
"""The full resource name of the Gateway API's Gateway, because Istio also has a resource named Gateway."""
SETTINGS = "/etc/antiphon"
"""The path at which the ConfigMap with the settings is mounted in the sidecar's container."""
_SOCKETS = "/run/antiphon"
_SETTINGS_FILE = "antiphon.yaml"
_LAST_PORT = 65535
_HOSTNAME = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_METRICS_PORT = 9464
"""The default port for Prometheus and the Kubernetes probes (see `metrics.listen`). No Gateway uses this port."""
_START_SECONDS = 30
"""The seconds that a start may take on a busy machine, in addition to its wait for the database."""
_DRAIN_SECONDS = 600.0
"""The default of `timeouts.drain` in a managed pod, in seconds, as in the Helm chart. The drain timeout is long,
because streams of agents run for minutes. A pod ends as soon as its clients have disconnected."""
_WAIT = "--timeout=300s"
_DATA = Path("/var/lib/antiphon")


class GatewayTarget(NamedTuple):
    """A Kubernetes Gateway, and its listeners that Antiphon uses."""

    namespace: str
    name: str
    listeners: tuple[str, ...] = ("http",)
    """The names of the listeners. Only Envoy Gateway uses these names."""
    port: int = 80
    """The port of the listener. Only Istio uses this port."""
    hostnames: tuple[str, ...] = ()
    """The host names for which Antiphon's routes apply. An empty list stands for every host."""
    own: bool = False
    """Whether the Gateway serves only Antiphon's routes."""
    envoy_proxy: str | None = None
    """The name of the EnvoyProxy that the Gateway already uses, or None. Only Envoy Gateway uses this name."""


class Sidecar(NamedTuple):
    """The sidecar's configuration: the values of its settings file, and the names of the environment variables from a
    Secret."""

    values: Config
    secrets: tuple[str, ...]


def parse_place(text: str, listeners: str, port: str) -> GatewayTarget:
    """Parse the command-line values `NAMESPACE/NAME`, comma-separated listener names, and a port number. Raises
    `ConfigError`."""
    namespace, slash, name = text.partition("/")
    if not (slash and namespace and name) or "/" in name:
        raise ConfigError(f"--gateway: {text!r} is not a Gateway; write NAMESPACE/NAME")
    named = tuple(dict.fromkeys(one.strip() for one in listeners.split(",")))
    if not all(named):
        raise ConfigError(
            f"--listener: {listeners!r}: write the names of the Gateway's listeners, separated by commas, for "
            "example http,https"
        )
    if not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > _LAST_PORT:
        raise ConfigError(f"--gateway-port: {port[:40]!r} is not a port; write a number from 1 to {_LAST_PORT}")
    return GatewayTarget(namespace, name, named, int(port))


def parse_hostname(text: str) -> str:
    """Check a host name, which may begin with `*.`. Raises `ConfigError`."""
    if not _HOSTNAME.fullmatch(text):
        raise ConfigError(
            f"--hostname: {text[:253]!r} is not a host name; write it in small letters, for example api.example.com"
        )
    return text


def inside(settings: Settings) -> Settings:
    """Return the settings for the pod of a managed Envoy. If the operator has set the drain timeout, the metrics
    address or `state.unready_after`, the set value stays."""
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
        # A pod that is not ready leaves its Service. The routes of other teams would fail, because all pods would leave
        # at the same moment.
        state = state.model_copy(update={"unready_after": 0.0})
    sidecar = settings.sidecar.model_copy(update=sockets)
    # One sidecar process per Envoy is enough, because each further replica adds an Envoy and a sidecar.
    sections = {"timeouts": timeouts, "sidecar": sidecar, "metrics": metrics, "state": state}
    return settings.model_copy(update={"workers": 1, "data": _DATA, **sections})


def keys(settings: Settings, sidecar: Sidecar) -> list[str]:
    """Return the keys of the Kubernetes Secret: the environment variables of the sidecar, and those of Envoy's
    process."""
    return sorted({*sidecar.secrets, *_injected_keys(settings)})


def pod(settings: Settings, sidecar: Sidecar, *, user: int, own: bool) -> Config:
    """Return the fields of the pod's spec, for a strategic merge patch. `user` is the user id of Envoy and of the
    sidecar, because only that user can open the sockets. If `own` is True, the pod serves only Antiphon, so it becomes
    unready with the sidecar."""
    assert settings.metrics.listen is not None
    port = parse_address(settings.metrics.listen)[1]
    container: Config = {
        "name": NAME,
        "image": "antiphon:latest",
        "args": ["extproc"],
        # Kubernetes starts a native sidecar before Envoy and ends it after Envoy.
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
        # The probe allows more time than a start waits for its database (`state.start_within`).
        "startupProbe": _probe("/metrics", port, period=2, failures=_probed_for(settings) // 2),
        # A sidecar that hangs cannot drain, so its grace period is short.
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
        # Kubernetes sets environment variables for each Service. The sidecar must not read these variables as settings.
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
    # The probes use TCP, because Kubernetes' probes cannot use Unix sockets.
    asked = {"path": path, "port": port}
    return {"httpGet": asked, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures}


def _probed_for(settings: Settings) -> int:
    """Return the seconds after which Kubernetes treats a sidecar that has not started as failed."""
    return int(settings.state.start_within) + _START_SECONDS


def envoys_share(settings: Settings) -> Config:
    """Return the additions to Envoy's container: the mount of the sockets, and the API keys that Envoy adds to
    requests."""
    return {
        "env": [_from_secret(name) for name in _injected_keys(settings)],
        "volumeMounts": [{"name": "antiphon-sockets", "mountPath": _SOCKETS}],
    }


def settings_mount() -> Config:
    """Return the volume mount for the ConfigMap with the settings."""
    return {"name": "antiphon-settings", "mountPath": SETTINGS, "readOnly": True}


def settings_map(sidecar: Sidecar, namespace: str, more: dict[str, str] | None = None) -> Config:
    """Build the ConfigMap with the sidecar's settings file and the files in `more`."""
    return config_map(NAME, namespace, {_SETTINGS_FILE: to_yaml(sidecar.values), **(more or {})})


def config_map(name: str, namespace: str, data: dict[str, str]) -> Config:
    """Build a ConfigMap with these files or values."""
    return kubernetes_object("v1", "ConfigMap", name, namespace, data=data)


def kubernetes_object(version: str, kind: str, name: str, namespace: str, **fields: object) -> Config:
    """Build a Kubernetes object. `version` is the API group and version of the object."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **fields}


def to_text(named: Sequence[tuple[str, Config]]) -> str:
    """Format the objects as YAML documents, each below its comment."""
    return "".join(f"---\n{_commented(comment)}{to_yaml(one)}" for comment, one in named)


class CommandStep(NamedTuple):
    """A command, and the comment that explains its purpose."""

    comment: str
    command: tuple[str, ...]


def kubectl(comment: str, namespace: str, *words: str) -> CommandStep:
    """Build a `kubectl` command for a namespace."""
    return CommandStep(comment, ("kubectl", "-n", namespace, *words))


def merged_into(comment: str, namespace: str, kind: str, name: str, spec: Config) -> CommandStep:
    """Build a command that merges fields into the spec of an existing object. A null value removes a field."""
    patch = json.dumps({"spec": spec}, separators=(",", ":"))
    return kubectl(comment, namespace, "patch", kind, name, "--type=merge", "--patch", patch)


def deleted(comment: str, namespace: str, *objects: str) -> CommandStep:
    """Build a command that deletes objects, each named as KIND/NAME. The command also succeeds when an object does not
    exist."""
    return kubectl(comment, namespace, "delete", "--ignore-not-found", *objects)


def served_without(
    comment: str, namespace: str, gateway: str, system: str, label: str
) -> tuple[CommandStep, CommandStep]:
    """Build commands that wait until the Gateway's controller has accepted the change and rolled out its pods. `label`
    selects the Gateway's Deployment in the namespace `system`."""
    return (
        kubectl(comment, namespace, "wait", "--for=condition=Accepted", f"{GATEWAY}/{gateway}", _WAIT),
        kubectl("", system, "rollout", "status", "deployment", "-l", label, _WAIT),
    )


def script(steps: Sequence[CommandStep]) -> str:
    """Format the steps as a shell script."""
    return "".join(f"{_commented(one.comment)}{shlex.join(one.command)}\n" for one in steps)


def as_comments(steps: Sequence[CommandStep]) -> str:
    """Format the steps as comments of a YAML file."""
    return _commented(script(steps)) if steps else ""


def _commented(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())


def _injected_keys(settings: Settings) -> list[str]:
    """Return the environment variables from which the managed Envoy reads the API keys of the upstreams."""
    return [key_variable(name) for name, one in settings.every_upstream.items() if one.auth_mode is AuthMode.INJECT]


def _from_secret(variable: str) -> Config:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": NAME, "key": variable}}}
