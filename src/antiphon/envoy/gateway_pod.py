"""The sidecar in the pod of an Envoy that somebody else manages on Kubernetes.

Lives here: the container, its volumes and settings, what Envoy's own container gets of it, and how objects are
written. Not here: the objects of one kind of gateway (`gateway_api.py`, `istio.py`).

Antiphon is a native sidecar of that Envoy; they talk over Unix sockets in memory, so no secret is shared and nothing
listens that others reach.

Invariant: no secret is printed, only names of keys.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode
from antiphon.envoy.bootstrap import to_yaml
from antiphon.envoy.messages import Config
from antiphon.envoy.routes import key_variable
from antiphon.errors import ConfigError

NAME = "antiphon"
"""The name of every object that needs no other, and of the Secret."""
SETTINGS = "/etc/antiphon"
"""Where the settings' ConfigMap is, in the sidecar's container."""
_SOCKETS = "/run/antiphon"
_SETTINGS_FILE = "antiphon.yaml"
_LAST_PORT = 65535
_DRAIN_SECONDS = 600.0
"""`timeouts.drain` where none is set, as in the Helm chart: streams of agents' turns run for minutes, and a pod waits
no longer than its clients stay connected."""
_DATA = Path("/var/lib/antiphon")


class Place(NamedTuple):
    """Which Gateway it is, and which of its listeners."""

    namespace: str
    name: str
    listeners: tuple[str, ...] = ("http",)
    """By name, for Envoy Gateway."""
    port: int = 80
    """Of the listener, for Istio."""


class Sidecar(NamedTuple):
    """What the sidecar reads: the values of its settings file, and which variables a Secret has for it."""

    values: Config
    secrets: tuple[str, ...]


def parse_place(text: str, listeners: str, port: str) -> Place:
    """`NAMESPACE/NAME`, names with commas between, and a number. Raises `ConfigError`."""
    namespace, slash, name = text.partition("/")
    if not (slash and namespace and name) or "/" in name:
        raise ConfigError(f"--gateway: {text!r} is no Gateway: give it as NAMESPACE/NAME")
    named = tuple(dict.fromkeys(one.strip() for one in listeners.split(",")))
    if not all(named):
        raise ConfigError(f"--listener: {listeners!r}: give the names of the Gateway's listeners, as http,https")
    if not re.fullmatch("[1-9][0-9]{0,4}", port) or int(port) > _LAST_PORT:
        raise ConfigError(f"--gateway-port: {port[:40]!r} is no port: give it as a number from 1 to {_LAST_PORT}")
    return Place(namespace, name, named, int(port))


def inside(settings: Settings) -> Settings:
    """The settings as they are inside the pod of a managed Envoy; a time to drain that was set stays."""
    sockets = {
        "grpc": f"unix:{_SOCKETS}/grpc.sock",
        "http": f"unix:{_SOCKETS}/http.sock",
        "model_door": f"unix:{_SOCKETS}/model-door.sock",
    }
    timeouts = settings.timeouts
    if "drain" not in timeouts.given:
        timeouts = timeouts.replace(drain=_DRAIN_SECONDS)
    sidecar = settings.sidecar.replace(**sockets)
    # One process for each Envoy: more replicas are more of both.
    return settings.replace(workers=1, data=_DATA, timeouts=timeouts, sidecar=sidecar)


def keys(settings: Settings, sidecar: Sidecar) -> list[str]:
    """What the Secret must hold: the sidecar's variables, and those of Envoy's process."""
    return sorted({*sidecar.secrets, *_injected_keys(settings)})


def pod(sidecar: Sidecar, *, user: int) -> Config:
    """Fields of the pod's spec, for a strategic merge. `user`: as whom its Envoy runs; the sidecar does so too, since
    the sockets are for that user alone."""
    container = {
        "name": NAME,
        "image": "antiphon:latest",
        "args": ["extproc"],
        # A sidecar: it is there before Envoy, and until Envoy has gone.
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
        "startupProbe": {
            # Of its sockets no request of Kubernetes' own reaches one.
            "exec": {"command": ["antiphon", "health"]},
            "periodSeconds": 1,
            # It ends by itself in a moment. A busy machine takes its time to start a process, and one that is killed
            # too early never says that all is well.
            "timeoutSeconds": 30,
            "failureThreshold": 60,
        },
        "volumeMounts": [
            {"name": "antiphon-sockets", "mountPath": _SOCKETS},
            {"name": "antiphon-data", "mountPath": str(_DATA)},
            settings_mount(),
            {"name": "antiphon-tmp", "mountPath": "/tmp"},
        ],
    }
    return {
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


def envoys_share(settings: Settings) -> Config:
    """Fields of the container that Envoy runs in: the sockets, and the keys that it puts into requests."""
    return {
        "env": [_from_secret(name) for name in _injected_keys(settings)],
        "volumeMounts": [{"name": "antiphon-sockets", "mountPath": _SOCKETS}],
    }


def settings_mount() -> Config:
    """How a container of the pod sees the ConfigMap of the settings."""
    return {"name": "antiphon-settings", "mountPath": SETTINGS, "readOnly": True}


def settings_map(sidecar: Sidecar, namespace: str, more: dict[str, str] | None = None) -> Config:
    """The ConfigMap of the sidecar's settings, and of further files."""
    return config_map(NAME, namespace, {_SETTINGS_FILE: to_yaml(sidecar.values), **(more or {})})


def config_map(name: str, namespace: str, data: dict[str, str]) -> Config:
    """A ConfigMap with these texts."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "data": data,
    }


def to_text(named: Sequence[tuple[str, Config]]) -> str:
    """Objects, each with its comment, as commented YAML documents."""
    return "".join(f"---\n{_commented(comment)}{to_yaml(one)}" for comment, one in named)


def _commented(text: str) -> str:
    return "".join(f"# {line}\n" for line in text.splitlines())


def _injected_keys(settings: Settings) -> list[str]:
    """The variables from which the managed Envoy reads the upstreams' keys."""
    return [key_variable(name) for name, one in settings.every_upstream.items() if one.auth_mode is AuthMode.INJECT]


def _from_secret(variable: str) -> Config:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": NAME, "key": variable}}}
