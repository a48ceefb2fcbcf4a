"""`scripts/envoy-gateway`: what `antiphon envoy-config --for envoy-gateway` prints, on a real Envoy Gateway.

Lives here: applying it, asking through it, restarting the managed Envoy under load, and the table. Not here: what is
printed (`antiphon/envoy/gateway_api.py`), the scenarios (`tests/conformance`), kubectl (`tests/kubernetes/cluster.py`).

Invariant: it ends with status 0 only if every row is good; it deletes the namespace it made.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import redirect_stdout
from typing import Any

import aiohttp
import yaml

from antiphon import cli
from tests.envoy_gateway.policies import policies
from tests.kubernetes.cluster import Wrong, eventually, run

NAMESPACE, GATEWAY = "antiphon-gateway-run", "ai"
_SYSTEM = "envoy-gateway-system"
_CLASS = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "GatewayClass",
    "metadata": {"name": "eg"},
    "spec": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
}


def _printed(envoy_version: str) -> list[dict[str, Any]]:
    """The objects, as a user gets them."""
    told = io.StringIO()
    arguments = ["envoy-config", "--for", "envoy-gateway", "--gateway", f"{NAMESPACE}/{GATEWAY}"]
    arguments += ["--upstream", f"http://chat.{NAMESPACE}.svc.cluster.local:8081/v1", "--auth", "none"]
    with redirect_stdout(told):
        status = cli.main([*arguments, "--envoy-version", envoy_version])
    if status:
        raise Wrong(f"envoy-config ended with {status}")
    return [one for one in yaml.safe_load_all(told.getvalue()) if one]


def _fitted(objects: list[dict[str, Any]], image: str, envoy_image: str | None) -> list[dict[str, Any]]:
    """With the images that the node has."""
    (proxy,) = [one for one in objects if one["kind"] == "EnvoyProxy"]
    deployment = proxy["spec"]["provider"]["kubernetes"]["envoyDeployment"]
    (sidecar,) = deployment["patch"]["value"]["spec"]["template"]["spec"]["initContainers"]
    sidecar.update(image=image, imagePullPolicy="Never")
    if envoy_image is not None:
        deployment["container"]["image"] = envoy_image
    return objects


def _chat(image: str) -> list[dict[str, Any]]:
    command = ["demo-upstream", "--listen", "0.0.0.0:8081"]
    container = {"name": "chat", "image": image, "imagePullPolicy": "Never", "args": command}
    about = {"name": "chat", "namespace": NAMESPACE}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**about, "labels": {"app": "chat"}},
            "spec": {"containers": [container]},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": about,
            "spec": {"selector": {"app": "chat"}, "ports": [{"port": 8081}]},
        },
    ]


async def _apply(objects: list[dict[str, Any]]) -> None:
    await run("kubectl", "apply", "-f", "-", given=yaml.safe_dump_all(objects))


async def _programmed() -> bool:
    got = await run("kubectl", "-n", NAMESPACE, "get", "envoypatchpolicy", "antiphon", "-o", "json")
    ancestors = json.loads(got).get("status", {}).get("ancestors", [])
    conditions = {one["type"]: one for each in ancestors for one in each["conditions"]}
    if conditions.get("Programmed", {}).get("status") == "False":
        raise Wrong(conditions["Programmed"]["message"])
    return "Programmed" in conditions


async def _of_gateway(kind: str) -> list[dict[str, Any]]:
    chosen = f"gateway.envoyproxy.io/owning-gateway-namespace={NAMESPACE}"
    return list(json.loads(await run("kubectl", "-n", _SYSTEM, "get", kind, "-l", chosen, "-o", "json"))["items"])


async def _answer(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    async with session.post(f"{url}/v1/responses", json={"model": "demo", **body}) as got:
        return got.status, await got.json()


async def _stream(session: aiohttp.ClientSession, url: str, words: int = 5) -> bool:
    """Whether the stream came whole."""
    body = {"model": "demo", "input": f"count to {words}", "stream": True, "store": False}
    async with session.post(f"{url}/v1/responses", json=body) as got:
        text = await got.text()
        return got.status == 200 and "response.completed" in text and text.rstrip().endswith("[DONE]")


async def _by_hand(session: aiohttp.ClientSession, url: str) -> str:
    """What the suite does not ask for. Raises `Wrong`."""
    status, first = await _answer(session, url, {"input": "hello", "background": True})
    if status != 200:
        raise Wrong(f"background: {status} {first}")

    async def done() -> bool:
        async with session.get(f"{url}/v1/responses/{first['id']}") as got:
            return bool((await got.json())["status"] == "completed")

    await eventually("the background response", done, 30)
    status, _ = await _answer(session, url, {"input": "and", "previous_response_id": first["id"]})
    form = aiohttp.FormData({"purpose": "user_data"})
    form.add_field("file", b"x" * (4 << 20), filename="x.txt")
    async with session.post(f"{url}/v1/files", data=form) as uploaded:
        file = await uploaded.json()
    async with session.get(f"{url}/v1/files/{file['id']}/content") as got:
        size = len(await got.read())
    asked = {
        "the next turn": (status, 200),
        "bytes of a file": (size, 4 << 20),
        "a model that is not there": ((await _answer(session, url, {"model": "none", "input": "x"}))[0], 404),
        "a request with a header of trust": (await _forged(session, url), "response"),
    }
    wrong = {name: got for name, (got, wanted) in asked.items() if got != wanted}
    if wrong:
        raise Wrong(str(wrong))
    for path, wanted_status in (("/v1/models", 200), ("/ready", 200), ("/v1/nothing", 404), ("/metrics", 404)):
        async with session.get(f"{url}{path}") as got:
            if got.status != wanted_status or (wanted_status == 404 and "error" not in await got.json()):
                raise Wrong(f"{path}: {got.status}")
    return "background, the next turn, a file of 4 MiB, errors in OpenAI's shape, /metrics closed"


async def _forged(session: aiohttp.ClientSession, url: str) -> str:
    """What comes back where a client sends the header that leads out of the dead end: it must be taken away."""
    headers, body = {"x-antiphon-backend": "default"}, {"model": "demo", "input": "x", "store": False}
    async with session.post(f"{url}/v1/responses", json=body, headers=headers) as got:
        return str((await got.json()).get("object"))


async def _conformance(url: str) -> str:
    command = [sys.executable, "-m", "tests.conformance.run", "--url", f"{url}/v1", "--model", "demo", "--key", "x"]
    told = await run(*command, "--header", "antiphon-dialect:openresponses", seconds=300)
    last = told.strip().splitlines()[-1]
    if "17 of 17" not in last:
        raise Wrong(told)
    return last


async def _many(session: aiohttp.ClientSession, url: str, count: int) -> str:
    whole = await asyncio.gather(*(_stream(session, url, 20) for _ in range(count)), return_exceptions=True)
    good = sum(one is True for one in whole)
    if good != count:
        raise Wrong(f"{good} of {count} came whole: {[one for one in whole if one is not True][:3]}")
    return f"{count} of {count} came whole"


async def _restart(session: aiohttp.ClientSession, url: str, clients: int) -> str:
    """`kubectl rollout restart` of the managed Envoy, sidecar and all, under load."""
    seen, wrong, over = 0, [], False

    async def client() -> None:
        nonlocal seen
        while not over:
            seen += 1
            try:
                if not await _stream(session, url, 10):
                    wrong.append("not whole")
            except (aiohttp.ClientError, OSError) as error:
                wrong.append(f"{type(error).__name__}: {error}")

    running = [asyncio.ensure_future(client()) for _ in range(clients)]
    (deployment,) = await _of_gateway("deployment")
    name = f"deployment/{deployment['metadata']['name']}"
    await run("kubectl", "-n", _SYSTEM, "rollout", "restart", name)
    await run("kubectl", "-n", _SYSTEM, "rollout", "status", name, "--timeout", "200s")

    async def alone() -> bool:
        return len(await _of_gateway("pod")) == 1

    await eventually("the old pod's end", alone)
    over = True
    await asyncio.gather(*running)
    if wrong:
        raise Wrong(f"{len(wrong)} of {seen} streams failed: {wrong[:3]}")
    return f"{seen} streams of {clients} clients, 0 failed, 0 cut"


async def _main(given: argparse.Namespace) -> int:
    rows: list[tuple[str, str, str]] = []

    async def step(name: str, work: Callable[[], Awaitable[str]]) -> None:
        begun = time.monotonic()
        try:
            rows.append((name, await work(), f"{time.monotonic() - begun:.0f}"))
        except (Wrong, aiohttp.ClientError, OSError) as error:
            rows.append((name, f"**wrong**: {error}", f"{time.monotonic() - begun:.0f}"))
        print(f"{rows[-1][0]}: {rows[-1][1]}", file=sys.stderr, flush=True)

    async def install() -> str:
        await _apply([_CLASS, *_chat(given.image)])
        await _apply(_fitted(_printed(given.envoy_version), given.image, given.envoy_image))
        await eventually("the patches", _programmed, 60)

        async def ready() -> bool:
            pods = await _of_gateway("pod")
            states = [state for pod in pods for state in pod["status"].get("containerStatuses", [])]
            return bool(states) and all(state["ready"] for state in states)

        await eventually("the managed Envoy", ready, 120)
        return "all patches in force, the pod ready"

    try:
        await step("`kubectl apply`", install)
        (service,) = await _of_gateway("service")
        url = given.url or f"http://{service['spec']['clusterIP']}"
        end = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(timeout=end, connector=aiohttp.TCPConnector(limit=0)) as session:
            await step("the official suite", lambda: _conformance(url))
            await step("besides", lambda: _by_hand(session, url))
            await step("a SecurityPolicy", lambda: policies(session, url, NAMESPACE, GATEWAY))
            await step(f"{given.streams} streams at once", lambda: _many(session, url, given.streams))
            await step("`kubectl rollout restart`", lambda: _restart(session, url, given.clients))
    finally:
        if not given.keep:
            await run("kubectl", "delete", "namespace", NAMESPACE, "--wait=false", "--ignore-not-found")
            await run("kubectl", "-n", _SYSTEM, "delete", "configmap", "antiphon", "--ignore-not-found")
    print("\n| what | seen | seconds |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    good = not any("**wrong**" in seen for _, seen, _ in rows)
    print(f"\nenvoy-gateway: {'as it must be' if good else 'something is wrong'}")
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/envoy-gateway", description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("--image", required=True, help="Antiphon's image, as the node has it")
    parser.add_argument("--envoy-image", help="an image for the managed Envoy (default: Envoy Gateway's own)")
    parser.add_argument("--envoy-version", default="1.39", help="of the managed Envoy (default: %(default)s)")
    parser.add_argument("--url", help="where the Gateway is reached (default: its Service's cluster IP, on a node)")
    parser.add_argument("--streams", type=int, default=200, help="at once (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=20, help="during the restart (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave what was made")
    return asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
