"""Runs kubectl and helm, and manages one namespace with a chat server, a release and clients.

Lives here: the commands. Not here: the order of the commands, and the evaluation of their output.

Invariant: every command has a timeout. A failed command raises an error with its output.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.chart_rendering import CHART, ROOT

_LOAD = ("lab/rollout/clients.py", "tests/support/streams.py", "lab/kubernetes/load.py")
_CHAT = (
    "from aiohttp import web; from antiphon.commands.demo_upstream import make_app; "
    "web.run_app(make_app(pause=0.5), port=8081, access_log=None)"
)
Object = dict[str, Any]


class Wrong(Exception):
    """Raised when a command failed, or when an expected state was not reached in time."""


async def run(*command: str, given: str = "", seconds: float = 300.0) -> str:
    """Run a command with `given` as its input. Returns its output. Raises `Wrong`."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(seconds):
            out, err = await process.communicate(given.encode())
    except TimeoutError:
        process.kill()
        raise Wrong(f"{' '.join(command[:6])}: not done after {seconds:g} s") from None
    if process.returncode:
        raise Wrong(f"{' '.join(command[:6])}: {err.decode().strip() or out.decode().strip()}")
    return out.decode()


async def eventually(what: str, look: Callable[[], Awaitable[bool]], seconds: float = 240.0) -> float:
    """Call `look` until it returns true. Returns the seconds that this took. Raises `Wrong` after `seconds`."""
    begun = time.monotonic()
    while not await look():
        if time.monotonic() - begun > seconds:
            raise Wrong(f"{what}: not so after {seconds:g} s")
        await asyncio.sleep(0.3)
    return time.monotonic() - begun


@dataclass
class Place:
    """One namespace with a release `antiphon` of the shape. `values` are the values of each installation."""

    shape: str
    namespace: str
    values: Object
    image: str
    """The image of the clients and of the chat server, as REPOSITORY:TAG."""

    async def kubectl(self, *arguments: str, given: str = "", seconds: float = 300.0) -> str:
        return await run("kubectl", "-n", self.namespace, *arguments, given=given, seconds=seconds)

    async def helm(self, verb: str, image: str, seconds: float = 300.0, **changes: Any) -> str:
        """Install or upgrade the release with these changed values, and wait until all pods are ready."""
        repository, _, tag = image.rpartition(":")
        values = {**self.values, **changes, "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}}
        command = ["helm", verb, "antiphon", str(CHART), "-n", self.namespace, "--values", "-", "--wait"]
        command += ["--timeout", f"{seconds:g}s"]
        return await run(*command, given=yaml.safe_dump(values), seconds=seconds + 30)

    async def test(self) -> str:
        """Run `helm test`. Returns helm's output."""
        return await run("helm", "test", "antiphon", "-n", self.namespace, "--timeout", "120s")

    async def begin(self, secret: Mapping[str, str]) -> None:
        """Create the namespace with a Secret, a chat server and the clients' program."""
        await run("kubectl", "delete", "namespace", self.namespace, "--ignore-not-found", "--wait")
        await run("kubectl", "create", "namespace", self.namespace)
        keys = {"owner.key": secrets.token_hex(32), "sealing.keys": secrets.token_hex(32)}
        keys = {**keys, "sidecar.secret": secrets.token_hex(32), **secret}
        chat = {"name": "chat", "image": self.image, "imagePullPolicy": "Never", "command": ["python3", "-c", _CHAT]}
        labels = {"app": "chat"}
        await self.apply(
            {"kind": "Secret", "metadata": {"name": "antiphon"}, "stringData": keys},
            {"kind": "Service", "metadata": {"name": "chat"}, "spec": {"selector": labels, "ports": [{"port": 8081}]}},
            {"kind": "Pod", "metadata": {"name": "chat", "labels": labels}, "spec": {"containers": [chat]}},
            {
                "kind": "ConfigMap",
                "metadata": {"name": "load"},
                "data": {name.replace("/", "."): (ROOT / name).read_text() for name in _LOAD},
            },
        )
        await self.kubectl("wait", "--for=condition=Ready", "pod/chat", "--timeout=120s")

    async def end(self) -> None:
        # Do not wait for the pods of a deleted namespace to drain.
        await self.kubectl("delete", "pods", "--all", "--force", "--grace-period=0", "--ignore-not-found")
        await run("kubectl", "delete", "namespace", self.namespace, "--wait=false")

    async def apply(self, *objects: Object) -> None:
        text = yaml.safe_dump_all([{"apiVersion": "v1", **one} for one in objects])
        await self.kubectl("apply", "-f", "-", given=text)

    async def pods(self, component: str = "server") -> list[Object]:
        """The pods of a component that are not terminating, the oldest first."""
        told = await self.kubectl("get", "pods", "-l", f"app.kubernetes.io/component={component}", "-o", "json")
        found = [one for one in json.loads(told)["items"] if "deletionTimestamp" not in one["metadata"]]
        return sorted(found, key=lambda one: str(one["metadata"]["creationTimestamp"]))

    async def all_gone(self, names: set[str]) -> bool:
        """Whether all of these pods are deleted."""
        told = await self.kubectl("get", "pods", "-o", "name")
        return not names & {line.removeprefix("pod/") for line in told.split()}

    async def settled(self, replicas: int) -> bool:
        """Whether `replicas` pods are ready and none is terminating."""
        told = json.loads(await self.kubectl("get", "pods", "-l", "app.kubernetes.io/component=server", "-o", "json"))
        ready = [
            any(each["type"] == "Ready" and each["status"] == "True" for each in one["status"].get("conditions", []))
            for one in told["items"]
        ]
        return len(ready) == replicas and all(ready)

    async def python(self, program: str, *arguments: str) -> str:
        """Run a Python program in the clients' pod. Returns its output."""
        return await self.kubectl("exec", "load", "--", "python3", "-c", program, *arguments)

    async def load(self, **counts: int) -> None:
        """Start the clients, and wait until they run."""
        mounts = [
            {"name": "load", "mountPath": f"/load/{name}", "subPath": name.replace("/", "."), "readOnly": True}
            for name in _LOAD
        ]
        flags = [part for name, count in counts.items() for part in (f"--{name}", str(count))]
        container = {
            "name": "load",
            "image": self.image,
            "imagePullPolicy": "Never",
            "workingDir": "/load",
            "command": ["python3", "-m", "lab.kubernetes.load", "--url", "http://antiphon", *flags],
            "volumeMounts": mounts,
        }
        spec = {
            "containers": [container],
            "restartPolicy": "Never",
            "enableServiceLinks": False,
            "volumes": [{"name": "load", "configMap": {"name": "load"}}],
        }
        await self.kubectl("delete", "pod", "load", "--ignore-not-found", "--force", "--grace-period=0")
        await self.apply({"kind": "Pod", "metadata": {"name": "load"}, "spec": spec})
        await self.kubectl("wait", "--for=condition=Ready", "pod/load", "--timeout=120s")

        async def runs() -> bool:
            return "running" in await self.kubectl("logs", "load")

        await eventually("the clients run", runs)

    async def seen(self) -> dict[str, Object]:
        """Stop the clients. Returns their observations by kind."""
        await self.kubectl("exec", "load", "--", "touch", "/tmp/stop")

        async def ended() -> bool:
            phase = await self.kubectl("get", "pod", "load", "-o", "jsonpath={.status.phase}")
            return phase in ("Succeeded", "Failed")

        await eventually("the clients end", ended, 400)
        lines = (await self.kubectl("logs", "load")).strip().splitlines()
        try:
            told: dict[str, Object] = json.loads(lines[-1])
        except ValueError:
            raise Wrong(f"the clients failed: {lines[-1]}") from None
        return told


def processes_of(container_id: str) -> list[int]:
    """The ids of a container's processes on this machine, the first process first. Empty if the container runs on
    another machine."""
    name = container_id.rpartition("/")[2]
    pids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if name in (entry / "cgroup").read_text():
                    pids.append(int(entry.name))
            except OSError:
                continue
    return sorted(pids)
