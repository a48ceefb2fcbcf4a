"""Renders the Helm chart for given values, and checks whether Kubernetes would accept the objects.

Lives here: helm's program, rendering, the schemas. Not here: the tested values and the expected objects.

Invariant: no function contacts a cluster.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

kubernetes_validate = pytest.importorskip(
    "kubernetes_validate", reason="scripts/setup installs what charts are tested with"
)
ROOT = Path(__file__).parents[2]
CHART = ROOT / "deployments" / "helm" / "antiphon"
VERSIONS = ("1.29.0", "1.34.0")
"""The oldest Kubernetes version that the chart supports, and the version that `scripts/lab kubernetes` ran on."""

# The Go modules with the definitions of third-party kinds, and the folder in each.
_CRDS = {
    "ScaledObject": ("github.com/kedacore/keda/v2@v2.18.1", "config/crd/bases/keda.sh_scaledobjects.yaml"),
    "HTTPRoute": (
        "sigs.k8s.io/gateway-api@v1.4.0",
        "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
    ),
    "ServiceMonitor": (
        "github.com/prometheus-operator/prometheus-operator@v0.88.0",
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
    ),
    "PrometheusRule": (
        "github.com/prometheus-operator/prometheus-operator@v0.88.0",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
}
Object = dict[str, Any]


class Refused(Exception):
    """Raised if the chart refuses the values. The message is helm's output."""


def helm() -> str:
    """The path of helm. Skips the test if helm is not installed."""
    beside = Path(sys.executable).with_name("helm")
    found = str(beside) if beside.exists() else shutil.which("helm")
    if found is None:
        pytest.skip("there is no helm: scripts/setup installs it, on Linux on x86-64")
    return found


def render(values: Mapping[str, Any], version: str = VERSIONS[-1]) -> list[Object]:
    """All objects of a release `antiphon`, including those of hooks. Raises `Refused`."""
    return _rendered(yaml.safe_dump(dict(values)), version)


@cache
def _rendered(values: str, version: str) -> list[Object]:
    command = [helm(), "template", "antiphon", str(CHART), "--namespace", "ns"]
    command += ["--kube-version", version, "--values", "-"]
    done = subprocess.run(command, input=values, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(done.stderr)
    return [one for one in yaml.load_all(done.stdout, yaml.CSafeLoader) if one is not None]


def one(objects: list[Object], kind: str, name: str) -> Object:
    """The only object of this kind and name."""
    (found,) = (each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    """The specs of all pods, each with the name of the object that creates it."""
    for each in objects:
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Pod":
            yield name, each["spec"]
        elif each["kind"] in ("Deployment", "Job"):
            yield name, each["spec"]["template"]["spec"]


def containers(spec: Object) -> list[Object]:
    """All containers of a pod, in the order in which they start."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def validate(each: Object, version: str) -> None:
    """Check an object against Kubernetes's schema, and refuse unknown members. Raises an error with the problem."""
    if each["kind"] in _CRDS:
        _custom(each["kind"]).validate(each)
    else:
        kubernetes_validate.validate(each, ".".join(version.split(".")[:2]), strict=True)


@cache
def _custom(kind: str) -> jsonschema_rs.Validator:
    """The JSON Schema of a third-party kind, which refuses unknown members."""
    if shutil.which("go") is None:
        pytest.skip(f"there is no Go, whose modules have the schema of {kind}")
    module, path = _CRDS[kind]
    command = ["go", "mod", "download", "-json", module]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=200)
    told = json.loads(done.stdout or "{}")
    if "Dir" not in told:
        pytest.skip(f"{module} cannot be downloaded: {told.get('Error') or done.stderr}")
    definition = yaml.safe_load((Path(told["Dir"]) / path).read_text())
    (version,) = (each for each in definition["spec"]["versions"] if each["storage"])
    return jsonschema_rs.validator_for(_closed(version["schema"]["openAPIV3Schema"]))


def _closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false`, as a strict API server applies it."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(each) for name, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed
