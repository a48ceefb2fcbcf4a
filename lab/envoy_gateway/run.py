"""`scripts/lab envoy-gateway`: tests the output of `antiphon envoy-config --for envoy-gateway` on a real Envoy Gateway.

Lives here: the parts of a run by name, and the table. Not here: the printed objects (`antiphon/envoy/gateway_api.py`),
applying them (`managed.py`), the requests (`asked.py`, `policies.py`, `picker.py`), kubectl
(`lab/kubernetes/cluster.py`).

Invariant: the exit status is 0 only if every row is good. The run deletes the namespace that it created.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from lab.envoy_gateway.asked import answer, besides, conformance, encrypted, hosts, many, replaced, stream
from lab.envoy_gateway.managed import GATEWAY, NAMESPACE, Managed, address_of, of_gateway, restart
from lab.envoy_gateway.others import beside
from lab.envoy_gateway.picker import picked
from lab.envoy_gateway.policies import policies
from lab.kubernetes.cluster import Wrong, run
from lab.kubernetes.database import reachable_postgres

PARTS = (
    "suite",
    "besides",
    "policies",
    "hosts",
    "tls",
    "streams",
    "restart",
    "upgrade",
    "several",
    "replicas",
    "picker",
    "others",
)

# Many clients connect concurrently. With aiohttp's default backlog of 128, further connections would wait for the
# kernel's retransmission.
_CHAT = (
    "from aiohttp import web; from antiphon.commands.demo_upstream import make_app; "
    "web.run_app(make_app(), port=8081, access_log=None, backlog=4096)"
)


def _chat(image: str) -> list[dict[str, Any]]:
    container = {"name": "chat", "image": image, "imagePullPolicy": "Never", "command": ["python3", "-c", _CHAT]}
    about = {"name": "chat", "namespace": NAMESPACE}
    pod = {"metadata": {**about, "labels": {"app": "chat"}}, "spec": {"containers": [container]}}
    service = {"metadata": about, "spec": {"selector": {"app": "chat"}, "ports": [{"port": 8081}]}}
    return [{"apiVersion": "v1", "kind": "Pod", **pod}, {"apiVersion": "v1", "kind": "Service", **service}]


def _upstream() -> dict[str, Any]:
    return {"url": f"{address_of('chat', 8081)}/v1", "auth": "none"}


class Run:
    """One run and its rows so far. `url` is the Gateway's URL without TLS."""

    def __init__(self, given: argparse.Namespace, managed: Managed, session: aiohttp.ClientSession) -> None:
        self._given, self._managed, self._session = given, managed, session
        self._url = given.url or ""
        self.rows: list[tuple[str, str, str]] = []

    async def step(self, name: str, work: Callable[[], Awaitable[str]]) -> None:
        begun = time.monotonic()
        try:
            seen = await work()
        except (Wrong, aiohttp.ClientError, OSError, TimeoutError) as error:
            seen = f"**wrong**: {type(error).__name__}: {error}"
        self.rows.append((name, seen, f"{time.monotonic() - begun:.0f}"))
        print(f"{name}: {seen}", file=sys.stderr, flush=True)

    async def all(self) -> None:
        given, managed, session = self._given, self._managed, self._session
        managed.settings = {"upstream": _upstream()}
        await self.step("`kubectl apply`", managed.install)
        if not self._url:
            (service,) = await of_gateway("service")
            self._url = f"http://{service['spec']['clusterIP']}"
        url = self._url
        parts: dict[str, tuple[str, Callable[[], Awaitable[str]]]] = {
            "suite": ("the official suite", lambda: conformance(url)),
            "besides": ("besides", lambda: besides(session, url)),
            "policies": ("a SecurityPolicy", lambda: policies(session, url, NAMESPACE, GATEWAY)),
            "hosts": ("several hosts", lambda: hosts(session, url)),
            "tls": ("a listener with TLS", lambda: encrypted(session, url, managed)),
            "streams": (f"{given.streams} streams at once", lambda: many(session, url, given.streams)),
            "restart": ("`kubectl rollout restart`", lambda: self._replaced(restart)),
            "upgrade": ("another image of the sidecar", self._upgraded),
            "several": ("two upstreams for one model", self._several),
            "replicas": ("two replicas on PostgreSQL", self._replicas),
            "picker": ("an endpoint picker", lambda: picked(session, url, managed)),
            "others": ("a Gateway of others', in and out", self._others),
        }
        for name in PARTS:
            if name in given.parts:
                await self.step(*parts[name])

    async def _others(self) -> str:
        self._managed.settings = {"upstream": _upstream()}
        told = [await beside(self._session, self._managed, named) for named in (None, "theirs")]
        return f"{told[0]}; with an EnvoyProxy that the Gateway names: {told[1]}"

    async def _replaced(self, change: Callable[[], Awaitable[None]]) -> str:
        return await replaced(self._session, self._url, self._given.clients, self._managed, change)

    async def _upgraded(self) -> str:
        if self._given.next is None:
            raise Wrong("--next must name another image that the node has")
        return await self._replaced(lambda: self._managed.swap_image(self._given.next))

    async def _several(self) -> str:
        """Test two upstreams of which the first is unreachable: the second must answer."""
        self._managed.settings = {
            "upstream": _upstream(),
            "upstreams": {"gone": {"url": f"{address_of('gone', 8081)}/v1", "auth": "none"}},
            "models": [{"match": "demo", "upstream": ["gone", "default"]}],
        }
        await self._managed.install()
        status, body = await answer(self._session, self._url, {"input": "hello"})
        if status != 200 or not await stream(self._session, self._url):
            raise Wrong(f"{status} {body}")
        return "the first is not there: the second answers, JSON and a stream"

    async def _replicas(self) -> str:
        """Test two replicas: each pod reads responses that the other stored, and all pods are replaced under load."""
        async with AsyncExitStack() as opened:
            address = "{.items[0].status.addresses[?(@.type=='InternalIP')].address}"
            host = await run("kubectl", "get", "nodes", "-o", f"jsonpath={address}")
            database = await opened.enter_async_context(reachable_postgres(host, ["gateway"]))
            managed = self._managed
            managed.settings = {
                "upstream": _upstream(),
                "state": {"url": f"{database.url}/gateway"},
                "owner": {"key": secrets.token_hex(32)},
                "sealing": {"keys": [secrets.token_hex(32)]},
            }
            managed.secret = {
                "ANTIPHON_STATE__URL": managed.settings["state"]["url"],
                "ANTIPHON_OWNER__KEY": managed.settings["owner"]["key"],
                "ANTIPHON_SEALING__KEYS": json.dumps(managed.settings["sealing"]["keys"]),
            }
            managed.replicas = 2
            try:
                return await self._shared()
            finally:
                managed.replicas, managed.secret = 1, {}

    async def _shared(self) -> str:
        await self._managed.install()
        last: str | None = None
        for turn in range(20):
            # Each turn uses a new connection, so it may reach a different pod.
            async with aiohttp.ClientSession() as own:
                more: dict[str, Any] = {"previous_response_id": last} if last else {}
                status, body = await answer(own, self._url, {"input": f"turn {turn}", **more})
            if status != 200:
                raise Wrong(f"turn {turn}: {status} {body}")
            last = body["id"]
        seen = await self._replaced(restart)
        return f"a chain of 20 turns, a connection each; both replaced: {seen}"


async def _main(given: argparse.Namespace) -> int:
    end = aiohttp.ClientTimeout(total=300)
    with tempfile.TemporaryDirectory(prefix="antiphon-gateway-") as folder:
        managed = Managed(given.image, given.envoy_image, given.envoy_version, Path(folder))
        async with aiohttp.ClientSession(timeout=end, connector=aiohttp.TCPConnector(limit=0)) as session:
            course = Run(given, managed, session)
            try:
                await managed.begin(*_chat(given.image))
                await course.all()
            finally:
                if not given.keep:
                    await managed.end()
    print("\n| what | seen | seconds |\n| --- | --- | --- |")
    for row in course.rows:
        print(f"| {' | '.join(row)} |")
    good = not any("**wrong**" in seen for _, seen, _ in course.rows)
    print(f"\nenvoy-gateway: {'as it must be' if good else 'something is wrong'}")
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/lab envoy-gateway", description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--image", required=True, help="Antiphon's image, as the node has it")
    parser.add_argument("--next", help="the one that is upgraded to")
    parser.add_argument("--envoy-image", help="an image for the managed Envoy (default: Envoy Gateway's own)")
    parser.add_argument("--envoy-version", default="1.39", help="of the managed Envoy (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what is run (default: all)")
    parser.add_argument("--url", help="where the Gateway is reached (default: its Service's cluster IP, on a node)")
    parser.add_argument("--streams", type=int, default=2000, help="at once (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=20, help="while pods are replaced (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave what was made")
    return asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
