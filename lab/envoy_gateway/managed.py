"""Installs Antiphon into an Envoy that Envoy Gateway manages, from the output of `antiphon envoy-config`.

Lives here: printing the objects, adapting the objects to the node's images, applying them, and waiting until Envoy
serves. Not here: the requests (`asked.py`).

Invariant: the applied objects differ from the printed ones only in images, replicas and the names of objects that this
run created.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from antiphon import entry
from lab.kubernetes.cluster import Wrong, eventually, run
from tests.support.certificates import Authority

NAMESPACE, GATEWAY = "antiphon-gateway-run", "ai"
SYSTEM = "envoy-gateway-system"
Object = dict[str, Any]
_CLASS: Object = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "GatewayClass",
    "metadata": {"name": "eg"},
    "spec": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
}


def address_of(service: str, port: int) -> str:
    return f"http://{service}.{NAMESPACE}.svc.cluster.local:{port}"


@dataclass
class Managed:
    """One installation: its namespace, images and settings. `folder` holds the certificate and the settings file."""

    image: str
    envoy_image: str | None
    envoy_version: str
    folder: Path
    settings: Object = field(default_factory=dict)
    secret: dict[str, str] = field(default_factory=dict)
    replicas: int = 1

    @property
    def ca(self) -> Path:
        return self.folder / "authority.pem"

    async def begin(self, *objects: Object) -> None:
        """Create the namespace with these objects and a certificate."""
        signed = Authority(self.folder).sign("gateway")
        pair = {"tls.crt": signed.cert.read_bytes(), "tls.key": signed.key.read_bytes()}
        certificate = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "kubernetes.io/tls",
            "metadata": {"name": "antiphon-tls", "namespace": NAMESPACE},
            "data": {name: base64.b64encode(text).decode() for name, text in pair.items()},
        }
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        await run("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait")
        await apply([_CLASS, space, certificate, *objects])

    async def end(self) -> None:
        await run("kubectl", "delete", "namespace", NAMESPACE, "--wait=false", "--ignore-not-found")
        for kind in ("configmap", "secret"):
            await run("kubectl", "-n", SYSTEM, "delete", kind, "antiphon", "--ignore-not-found")

    async def install(self) -> str:
        """Apply the objects that `antiphon` prints for these settings, and wait until only the new pods serve. Raises
        `Wrong`."""
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "antiphon", "namespace": SYSTEM}}
        before = await pods()
        await apply([{**secret, "stringData": self.secret}, *self._objects()])
        await eventually("the patches", _programmed, 60)

        async def there() -> bool:
            return bool(await of_gateway("deployment"))

        await eventually("the managed Envoy's Deployment", there, 60)
        if before:
            await restart()
        await self.settled(before)
        return "all patches in force, the pod ready"

    async def settled(self, before: set[str]) -> None:
        """Wait until the expected number of pods is ready and none of the pods in `before` is left."""

        async def so() -> bool:
            found = [one for one in await of_gateway("pod") if one["metadata"]["name"] not in before]
            ready = [one for one in found if _ready(one)]
            return len(ready) == len(found) == self.replicas and not before & await pods()

        await eventually("the managed Envoy", so, 420)

    async def swap_image(self, image: str) -> None:
        """Change the sidecar's image in the printed objects and apply them, as a user would."""
        self.image = image
        await apply(self._objects())

    def _objects(self) -> list[Object]:
        """The printed objects, with the images that the node has."""
        told = io.StringIO()
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=self.folder) as file:
            # The Secret's values come from the user's environment, because the printed object has only their names.
            yaml.safe_dump(self.settings, file)
            file.flush()
            arguments = [
                "envoy-config",
                "--for",
                "envoy-gateway",
                "--gateway",
                f"{NAMESPACE}/{GATEWAY}",
                "--own-gateway",
            ]
            arguments += ["--listener", "http,https", "--config", file.name]
            with redirect_stdout(told):
                status = entry.main([*arguments, "--envoy-version", self.envoy_version])
        if status:
            raise Wrong(f"envoy-config ended with {status}")
        objects = [one for one in yaml.safe_load_all(told.getvalue()) if one]
        (proxy,) = [one for one in objects if one["kind"] == "EnvoyProxy"]
        deployment = proxy["spec"]["provider"]["kubernetes"]["envoyDeployment"]
        (sidecar,) = deployment["patch"]["value"]["spec"]["template"]["spec"]["initContainers"]
        sidecar.update(image=self.image, imagePullPolicy="Never")
        deployment["replicas"] = self.replicas
        if self.envoy_image is not None:
            deployment["container"] = {"image": self.envoy_image}
        return objects


async def apply(objects: list[Object]) -> None:
    await run("kubectl", "apply", "-f", "-", given=yaml.safe_dump_all(objects))


async def restart() -> None:
    (deployment,) = await of_gateway("deployment")
    await run("kubectl", "-n", SYSTEM, "rollout", "restart", f"deployment/{deployment['metadata']['name']}")


async def of_gateway(kind: str) -> list[Object]:
    chosen = f"gateway.envoyproxy.io/owning-gateway-namespace={NAMESPACE}"
    return list(json.loads(await run("kubectl", "-n", SYSTEM, "get", kind, "-l", chosen, "-o", "json"))["items"])


async def pods() -> set[str]:
    return {one["metadata"]["name"] for one in await of_gateway("pod")}


def _ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


async def _programmed() -> bool:
    got = json.loads(await run("kubectl", "-n", NAMESPACE, "get", "envoypatchpolicy", "antiphon", "-o", "json"))
    ancestors = got.get("status", {}).get("ancestors", [])
    conditions = {one["type"]: one for each in ancestors for one in each["conditions"]}
    programmed = conditions.get("Programmed", {})
    if programmed.get("observedGeneration") != got["metadata"]["generation"]:
        return False
    if programmed["status"] == "False":
        raise Wrong(programmed["message"])
    return True
