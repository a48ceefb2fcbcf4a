"""Changes a release in stages while clients send requests, and collects the clients' observations.

Lives here: the stages, in their order. Not here: commands (`cluster.py`), the table (`run.py`).

Invariant: a stage begins and ends with all pods ready. A planned change fails if a client notices it. For a kill, the
report has the time from a client's first failed request until its first success.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from lab.kubernetes.cluster import Place, Wrong, eventually, processes_of, run
from lab.kubernetes.database import Reachable

_WARM, _REST = 8.0, 3.0
# Words arrive half a second apart, for streams of 5 s and of 20 s.
_LOAD = {"words": 10, "long": 40}
PARTS = ("unnoticed", "changes", "failures")
_AWAY_SECONDS = 33
# A program that sends requests that need no database, once a second, and prints the number of failures.
_WITHOUT_STORE = """
import json, sys, time, urllib.request
asked, failed, head = 0, [], {"authorization": "Bearer load", "content-type": "application/json"}
body = json.dumps({"model": "demo", "input": "count to 2", "store": False}).encode()
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    for path, data in (("/v1/responses", body), ("/v1/models", None)):
        asked += 1
        try:
            urllib.request.urlopen(urllib.request.Request("http://antiphon" + path, data, head), timeout=20).read()
        except OSError as error:
            failed.append(f"{path}: {error}")
    time.sleep(1)
print(json.dumps([asked, failed]))
"""


@dataclass
class Stage:
    """The result of one stage. `asked`, `failed` and `cut` count the requests of all clients. `unnoticed`: no request
    may fail or be cut. `gaps`: the seconds from a client's first failed request to its next success."""

    name: str
    unnoticed: bool
    seconds: float = 0.0
    asked: int = 0
    failed: int = 0
    cut: int = 0
    gaps: list[float] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def good(self) -> bool:
        return not self.said if self.unnoticed else bool(self.asked)


@dataclass
class Course:
    """All stages of one shape."""

    place: Place
    image: str
    following: str
    streams: int
    others: int
    database: Reachable | None = None
    """The database server of this run, or None if the run did not start the database."""
    parts: Collection[str] = PARTS
    stages: list[Stage] = field(default_factory=list)
    told: Callable[[Stage], None] = print

    async def run(self) -> None:
        """Run every stage. A stage that cannot run counts as failed, and ends the course."""
        if not await self._installed():
            return
        if "unnoticed" in self.parts:
            await self._all_unnoticed()
        if "changes" in self.parts:
            if self.place.shape != "gateway":
                await self._unnoticed("`helm upgrade` to another shape and back", self._switched)
            await self._kill(
                "`helm upgrade` that fails, and `kill -9` of an Antiphon that serves", self._failed_upgrade
            )
        if "failures" in self.parts:
            await self._failures()

    async def _all_unnoticed(self) -> None:
        deployments = self._deployments

        async def upgrade() -> None:
            await self.place.helm("upgrade", self.following)

        async def back() -> None:
            await run(
                "helm", "rollback", "antiphon", "-n", self.place.namespace, "--wait", "--timeout", "300s", seconds=330
            )

        async def restart() -> None:
            await self.place.kubectl("rollout", "restart", *deployments)
            for deployment in deployments:
                await self.place.kubectl("rollout", "status", deployment, "--timeout=300s")

        await self._unnoticed("`helm upgrade` to another tag", self._replaced(upgrade))
        await self._unnoticed("`helm rollback`", self._replaced(back))
        await self._unnoticed("`kubectl rollout restart`", self._replaced(restart))
        await self._unnoticed("an eviction", self._evicted)
        await self._scale(1)
        await self._unnoticed("scaled 1 → 3 → 1", self._scaled)
        await self._scale(2)

    async def _failures(self) -> None:
        await self._kill("`kubectl delete --force` of a pod", self._forced)
        await self._kill("`kill -9` of Antiphon", lambda: self._killed("server", "antiphon"))
        if self.place.shape != "http":
            component = "envoy" if self.place.shape == "gateway" else "server"
            await self._kill("`kill -9` of Envoy", lambda: self._killed(component, "envoy"))
            await self._kill("Envoy stands still (SIGSTOP)", lambda: self._killed(component, "envoy", signal.SIGSTOP))
        await self._kill("Antiphon stands still (SIGSTOP)", lambda: self._killed("server", "antiphon", signal.SIGSTOP))
        if (database := self.database) is not None:

            async def restarted() -> str:
                return f"no client could connect for {await database.restart():.1f} s"

            await self._kill("PostgreSQL is restarted", restarted)
            await self._kill(f"PostgreSQL stands still for {_AWAY_SECONDS} s", lambda: self._away(database))

    @property
    def _components(self) -> tuple[str, ...]:
        return ("server", "envoy") if self.place.shape == "gateway" else ("server",)

    @property
    def _deployments(self) -> tuple[str, ...]:
        return tuple(f"deployment/antiphon{'-envoy' if one == 'envoy' else ''}" for one in self._components)

    async def _installed(self) -> bool:
        steps: dict[str, Callable[[], Awaitable[str]]] = {
            "`helm install`, until ready": lambda: self.place.helm("install", self.image),
            "`helm test`": self.place.test,
        }
        for name, step in steps.items():
            stage, begun = Stage(name, unnoticed=True), time.monotonic()
            try:
                await step()
            except Wrong as wrong:
                stage.said.append(str(wrong))
            stage.seconds = time.monotonic() - begun
            self._tell(stage)
            if stage.said:
                return False
        return True

    async def _unnoticed(self, name: str, act: Callable[[], Awaitable[str]]) -> None:
        counts = {**_LOAD, "streams": self.streams, "others": self.others, "sockets": self.others}
        await self._stage(Stage(name, unnoticed=True), counts, act)

    async def _kill(self, name: str, act: Callable[[], Awaitable[str]]) -> None:
        await self._stage(Stage(name, unnoticed=False), {**_LOAD, "streams": 20, "patient": 10}, act)

    async def _stage(self, stage: Stage, counts: dict[str, int], act: Callable[[], Awaitable[str]]) -> None:
        try:
            await self.place.load(**counts)
            await asyncio.sleep(_WARM)
            begun = time.monotonic()
            stage.note = await act()
            stage.seconds = time.monotonic() - begun
            await asyncio.sleep(_REST)
            for kind, seen in (await self.place.seen()).items():
                stage.asked += seen["asked"]
                stage.failed += len(seen["failed"])
                stage.cut += len(seen["cut"])
                stage.gaps += seen["gaps"] if kind == "asked again" else []
                stage.said += [f"{kind}: {text}" for text in (*seen["failed"], *seen["cut"])]
        except Wrong as wrong:
            stage.said.append(str(wrong))
        self._tell(stage)

    def _tell(self, stage: Stage) -> None:
        self.stages.append(stage)
        self.told(stage)

    # The changes.

    def _replaced(self, act: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[str]]:
        """A function that calls `act` and waits until all old pods are replaced and gone."""

        async def replaced() -> str:
            before = {one["metadata"]["name"] for each in self._components for one in await self.place.pods(each)}
            begun = time.monotonic()
            await act()
            served = time.monotonic() - begun
            await eventually("the old pods are gone", lambda: self.place.all_gone(before), 660)
            return f"{len(before)} pods; the new ones were ready after {served:.0f} s"

        return replaced

    async def _evicted(self) -> str:
        """Evict one pod. The PodDisruptionBudget must refuse a second eviction right after it."""
        said = []
        pods = [one["metadata"]["name"] for one in await self.place.pods()]
        for name in pods[:2]:
            where = f"/api/v1/namespaces/{self.place.namespace}/pods/{name}/eviction"
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            try:
                await self.place.kubectl("create", "--raw", where, "-f", "-", given=json.dumps(eviction))
                said.append("taken")
            except Wrong as wrong:
                said.append("refused by the budget" if "disruption budget" in str(wrong) else str(wrong))
        if said != ["taken", "refused by the budget"]:
            raise Wrong(f"two evictions: {said}")
        await eventually("the evicted pod is gone", lambda: self.place.all_gone({pods[0]}), 660)
        await eventually("all pods are ready", lambda: self.place.settled(2))
        return "the second one at once: refused by the budget"

    async def _scale(self, replicas: int) -> float:
        await self.place.kubectl("scale", "deployment/antiphon", f"--replicas={replicas}")
        return await eventually(f"{replicas} pods", lambda: self.place.settled(replicas), 660)

    async def _scaled(self) -> str:
        up, down = await self._scale(3), 0.0
        await asyncio.sleep(_WARM)
        down = await self._scale(1)
        return f"three ready after {up:.0f} s, one left after {down:.0f} s"

    async def _forced(self) -> str:
        name = (await self.place.pods())[0]["metadata"]["name"]
        await self.place.kubectl("delete", "pod", name, "--force", "--grace-period=0")
        back = await eventually("all pods are ready", lambda: self.place.settled(2))
        return f"two pods ready again after {back:.0f} s"

    async def _switched(self) -> str:
        """Switch to the other shape whose pods are one Deployment, and back."""
        other = "http" if self.place.shape == "sidecar" else "sidecar"
        for shape in (other, self.place.shape):
            before = {one["metadata"]["name"] for one in await self.place.pods()}
            await self.place.helm("upgrade", self.image, shape=shape)
            await eventually("the old pods are gone", lambda: self.place.all_gone(before), 660)  # noqa: B023
        return f"to `{other}` and back"

    async def _failed_upgrade(self) -> str:
        """Upgrade to settings that the schema accepts and Antiphon refuses. Then kill a serving pod, which must be able
        to restart."""
        wrong = {**self.place.values["settings"], "models": [{"match": "*", "upstream": "nobody"}]}
        state = {"kind": "postgresql", "migrate": "auto"}
        try:
            await self.place.helm("upgrade", self.image, seconds=40, settings=wrong, state=state)
        except Wrong:
            pass
        else:
            raise Wrong("an upgrade to wrong settings succeeded")
        back = await self._killed_and_back("server", "antiphon", signal.SIGKILL)
        await self.place.helm("upgrade", self.image)
        await eventually("all pods are ready", lambda: self.place.settled(2), 660)
        return f"it was back after {back:.0f} s"

    async def _away(self, database: Reachable) -> str:
        """Stop the database. No pod may become unready, and Antiphon must serve requests that need no database."""

        async def look() -> tuple[int, list[str]]:
            asked, failed = json.loads(await self.place.python(_WITHOUT_STORE, str(_AWAY_SECONDS)))
            if not await self.place.settled(2):
                failed.append("a pod is not ready")
            return asked, failed

        asked, failed = await database.stand_still(look())
        if failed:
            raise Wrong(f"{len(failed)} of {asked} requests that need no database failed: {failed[:3]}")
        return f"without the database: {asked} requests, 0 failed; all pods ready"

    async def _killed(self, component: str, container: str, how: signal.Signals = signal.SIGKILL) -> str:
        back = await self._killed_and_back(component, container, how)
        await eventually("all pods are ready", lambda: self.place.settled(2))
        return f"it was back after {back:.0f} s"

    async def _killed_and_back(self, component: str, container: str, how: signal.Signals) -> float:
        """Signal a container of the oldest pod. Returns the seconds until the pod is ready again."""
        pod = (await self.place.pods(component))[0]
        status: dict[str, Any] = pod["status"]
        every = [*status["containerStatuses"], *status.get("initContainerStatuses", [])]
        (found,) = (one for one in every if one["name"] == container)
        # If the container has an init process, its first process is not the target.
        pids = processes_of(found["containerID"])
        if not pids:
            raise Wrong("its processes are not on this machine: run it on the node")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

        async def started_again() -> bool:
            told = json.loads(await self.place.kubectl("get", "pod", pod["metadata"]["name"], "-o", "json"))
            all_now = [*told["status"]["containerStatuses"], *told["status"].get("initContainerStatuses", [])]
            (now,) = (one for one in all_now if one["name"] == container)
            return bool(now["ready"] and now["restartCount"] > found["restartCount"])

        return await eventually("the container runs again", started_again)
