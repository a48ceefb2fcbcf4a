"""Installs and removes Antiphon on another team's Gateway, and compares the answers of that team's routes.

Lives here: the other team's Gateway, its routes and requests, and the comparison. Not here: the printed objects
(`antiphon/envoy/gateway_api.py`), Antiphon on a separate Gateway (`managed.py`).

The run installs and removes Antiphon with exactly the printed commands.

Invariant: the row is wrong if one request of the other team fails, or if one of their answers differs.
"""

from __future__ import annotations

import asyncio
import io
import json
import shlex
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stdout
from typing import Any

import aiohttp
from yarl import URL

from antiphon import entry
from lab.envoy_gateway.managed import SYSTEM, Managed, Object, apply
from lab.kubernetes.cluster import Wrong, eventually, run

NAMESPACE, _NAME = "antiphon-others-run", "shared"
_ECHO = """
from aiohttp import web
async def echo(request):
    await request.read()
    return web.json_response({"path": request.raw_path, "headers": sorted(name.lower() for name in request.headers)})
app = web.Application(client_max_size=1 << 30)
app.router.add_route("*", "/{tail:.*}", echo)
web.run_app(app, port=8080, access_log=None)
"""
_ASKED: dict[str, tuple[str, str, dict[str, str]]] = {
    "a path": ("GET", "/shop/a", {}),
    "an escaped slash": ("GET", "/shop/a%2Fb", {}),
    "two slashes": ("GET", "/shop//x", {}),
    "their request id": ("GET", "/shop/a", {"x-request-id": "mine"}),
    "below /v1": ("GET", "/v1/shop/z", {}),
    "our path on their host": ("POST", "/v1/responses", {"host": "other.example"}),
    "our models on their host": ("GET", "/v1/models", {"host": "other.example"}),
    "no route": ("GET", "/nothing", {}),
    "a host without a route": ("GET", "/x", {"host": "nobody.example"}),
    "a service that is gone": ("GET", "/", {"host": "gone.example"}),
}
_CHANGING = {"date", "x-request-id", "content-length", "x-envoy-upstream-service-time"}
"""Headers of answers whose values differ from request to request."""
_OF_CONNECTION = "connection"
"""The header with which a pod closes its connections while it is being replaced."""
_LABEL = f"gateway.envoyproxy.io/owning-gateway-namespace={NAMESPACE}"
_CLIENTS, _PAUSE = 8, 0.05


def _object(kind: str, name: str, spec: Object, version: str = "gateway.networking.k8s.io/v1") -> Object:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def _route(name: str, paths: list[str], service: str = "shop", **more: Any) -> Object:
    matches = [{"path": {"type": "PathPrefix", "value": path}} for path in paths]
    rule = {"matches": matches, "backendRefs": [{"name": service, "port": 8080}]}
    return _object("HTTPRoute", name, {"parentRefs": [{"name": _NAME}], "rules": [rule], **more})


def _theirs(managed: Managed, envoy_proxy: str | None) -> list[Object]:
    """The objects of the other team: the Gateway with its class, and its routes and backends. `envoy_proxy`: the
    EnvoyProxy that the Gateway names."""
    container = {"image": managed.envoy_image} if managed.envoy_image else {}
    deployment = {"container": container, "pod": {"labels": {"whose": "others"}}}
    provider = {"type": "Kubernetes", "kubernetes": {"envoyDeployment": deployment}}
    reference = {"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": envoy_proxy or "class-wide"}
    shop = {"name": "shop", "image": managed.image, "imagePullPolicy": "Never", "command": ["python3", "-c", _ECHO]}
    pod = _object("Pod", "shop", {"containers": [shop], "terminationGracePeriodSeconds": 1}, "v1")
    pod["metadata"]["labels"] = {"app": "shop"}
    of_class = {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"}
    named = {"infrastructure": {"parametersRef": reference}} if envoy_proxy else {}
    listener = {"name": "http", "protocol": "HTTP", "port": 80}
    return [
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "GatewayClass",
            "metadata": {"name": NAMESPACE},
            "spec": of_class if envoy_proxy else {**of_class, "parametersRef": {**reference, "namespace": NAMESPACE}},
        },
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        _object("EnvoyProxy", reference["name"], {"provider": provider}, "gateway.envoyproxy.io/v1alpha1"),
        _object("Gateway", _NAME, {"gatewayClassName": NAMESPACE, "listeners": [listener], **named}),
        pod,
        _object("Service", "shop", {"selector": {"app": "shop"}, "ports": [{"port": 8080}]}, "v1"),
        _route("shop", ["/shop", "/v1/shop"]),
        _route("other", ["/"], hostnames=["other.example"]),
        _route("gone", ["/"], "nobody", hostnames=["gone.example"]),
    ]


async def beside(session: aiohttp.ClientSession, managed: Managed, envoy_proxy: str | None) -> str:
    """Install and remove Antiphon while clients of the other team send requests. Raises `Wrong`."""
    await _cleared()
    try:
        await apply(_theirs(managed, envoy_proxy))
        url = await _served(session)
        before = await _seen(session, url)
        async with _load(url) as counted:
            await _come_in(session, url, managed, envoy_proxy)
            there = await _seen(session, url)
            for step in _printed(managed, envoy_proxy, "--remove").splitlines():
                if step.startswith("kubectl"):
                    await run(*shlex.split(step), seconds=330)
        after = await _seen(session, url)
    finally:
        await _cleared()
    failed = {how: count for how, count in counted.items() if how != "200"}
    different = {
        what: (was, seen[what]) for seen in (there, after) for what, was in before.items() if seen[what] != was
    }
    if failed or different:
        raise Wrong(f"failed: {failed} of {counted.total()}; different: {different}")
    return f"{counted.total()} requests of others', 0 failed; {len(before)} kinds answered alike before, with and after"


async def _cleared() -> None:
    """Wait until the other team's Gateway and its pods are deleted. The class must be deleted last, because without it
    Envoy Gateway would leave the pods."""
    await run("kubectl", "delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait")

    async def gone() -> bool:
        return not json.loads(await run("kubectl", "-n", SYSTEM, "get", "deployment", "-l", _LABEL, "-o", "json"))[
            "items"
        ]

    await eventually("the end of the Gateway of others", gone, 120)
    await run("kubectl", "delete", "gatewayclass", NAMESPACE, "--ignore-not-found")


def _printed(managed: Managed, envoy_proxy: str | None, *flags: str) -> str:
    told = io.StringIO()
    flags = (*flags, "--envoy-proxy", envoy_proxy) if envoy_proxy else flags
    upstream = managed.settings["upstream"]
    with redirect_stdout(told):
        status = entry.main(
            [
                *("envoy-config", "--for", "envoy-gateway", "--gateway", f"{NAMESPACE}/{_NAME}", *flags),
                *("--upstream", upstream["url"], "--auth", upstream["auth"], "--envoy-version", managed.envoy_version),
            ]
        )
    if status:
        raise Wrong(f"envoy-config ended with {status}")
    return told.getvalue().replace("antiphon:latest", managed.image)


async def _come_in(session: aiohttp.ClientSession, url: str, managed: Managed, envoy_proxy: str | None) -> None:
    objects, _, last = _printed(managed, envoy_proxy).rpartition("---\n")
    await run("kubectl", "apply", "-f", "-", given=objects)
    await run(*shlex.split(last.splitlines()[-1].removeprefix("# ")))

    async def answers() -> bool:
        async with session.post(f"{url}/v1/responses", json={"model": "demo", "input": "hello"}) as got:
            return got.status == 200

    await eventually("Antiphon's answer", answers, 180)
    deployments = json.loads(await run("kubectl", "-n", SYSTEM, "get", "deployment", "-l", _LABEL, "-o", "json"))
    template = deployments["items"][0]["spec"]["template"]
    if template["metadata"]["labels"].get("whose") != "others":
        raise Wrong("what their EnvoyProxy said of the pods is lost")


async def _served(session: aiohttp.ClientSession) -> str:
    """The URL of the other team's Gateway, once its route serves the shop."""
    address = ""

    async def so() -> bool:
        nonlocal address
        services = json.loads(await run("kubectl", "-n", SYSTEM, "get", "service", "-l", _LABEL, "-o", "json"))["items"]
        address = f"http://{services[0]['spec']['clusterIP']}" if services else ""
        if not address:
            return False
        try:
            async with session.get(f"{address}/shop/a", timeout=aiohttp.ClientTimeout(total=3)) as got:
                return got.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    await eventually("the Gateway of others", so, 180)
    return address


async def _seen(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    found = {}
    for what, (method, path, headers) in _ASKED.items():
        # Send the path exactly as written, because aiohttp would otherwise unescape it.
        where = URL(f"{url}{path}", encoded=True)
        async with session.request(method, where, headers=headers, allow_redirects=False) as got:
            told = {name.lower(): value for name, value in got.headers.items() if name.lower() != _OF_CONNECTION}
            told |= dict.fromkeys(_CHANGING & told.keys(), "")
            found[what] = (got.status, sorted(told.items()), await got.text())
    return found


@asynccontextmanager
async def _load(url: str) -> AsyncIterator[Counter[str]]:
    """Run clients that request the shop in the background, each with a new connection. Yields the counts by status or
    failure."""
    counted: Counter[str] = Counter()
    over = asyncio.Event()

    async def client() -> None:
        while not over.is_set():
            try:
                async with aiohttp.ClientSession() as own, own.get(f"{url}/shop/l") as got:
                    counted[str(got.status)] += 1
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                counted[type(error).__name__] += 1
            await asyncio.sleep(_PAUSE)

    clients = [asyncio.ensure_future(client()) for _ in range(_CLIENTS)]
    try:
        yield counted
    finally:
        over.set()
        await asyncio.gather(*clients)
