"""Sends a client's requests through the managed Envoy, and checks that a restart of the pods cuts no client off.

Lives here: the requests and the expected answers. Not here: policies (`policies.py`), the picker (`picker.py`).
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from lab.envoy_gateway.managed import NAMESPACE, Managed, pods
from lab.kubernetes.cluster import Wrong, eventually, run


async def answer(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Post a request for a response. Returns the status and the decoded body."""
    async with session.post(f"{url}/v1/responses", json={"model": "demo", **body}) as got:
        return got.status, await got.json()


async def stream(session: aiohttp.ClientSession, url: str, words: int = 5) -> bool:
    """Request a stream. Returns whether it was complete."""
    body = {"model": "demo", "input": f"count to {words}", "stream": True, "store": False}
    async with session.post(f"{url}/v1/responses", json=body) as got:
        text = await got.text()
        return got.status == 200 and "response.completed" in text and text.rstrip().endswith("[DONE]")


async def background(session: aiohttp.ClientSession, url: str, **body: Any) -> dict[str, Any]:
    """Request a background response and poll it until its end. Raises `Wrong` if the response does not complete."""
    status, first = await answer(session, url, {"input": "hello", "background": True, **body})
    if status != 200:
        raise Wrong(f"background: {status} {first}")
    last = first

    async def done() -> bool:
        nonlocal last
        async with session.get(f"{url}/v1/responses/{first['id']}") as got:
            last = await got.json()
            return bool(got.status == 200 and last["status"] not in ("queued", "in_progress"))

    await eventually("the background response", done, 60)
    if last["status"] != "completed":
        raise Wrong(f"background: {last}")
    return last


async def besides(session: aiohttp.ClientSession, url: str) -> str:
    """Test features that the compliance suite does not cover. Returns a summary; raises `Wrong`."""
    first = await background(session, url)
    status, _ = await answer(session, url, {"input": "and", "previous_response_id": first["id"]})
    form = aiohttp.FormData({"purpose": "user_data"})
    form.add_field("file", b"x" * (4 << 20), filename="x.txt")
    async with session.post(f"{url}/v1/files", data=form) as uploaded:
        file = await uploaded.json()
    async with session.get(f"{url}/v1/files/{file['id']}/content") as got:
        size = len(await got.read())
    asked = {
        "the next turn": (status, 200),
        "bytes of a file": (size, 4 << 20),
        "a model that is not there": ((await answer(session, url, {"model": "none", "input": "x"}))[0], 404),
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
    """Send the header that selects the route to the model cluster, as an attacker would. Envoy must strip it."""
    headers, body = {"x-antiphon-backend": "default"}, {"model": "demo", "input": "x", "store": False}
    async with session.post(f"{url}/v1/responses", json=body, headers=headers) as got:
        return str((await got.json()).get("object"))


async def encrypted(session: aiohttp.ClientSession, url: str, managed: Managed) -> str:
    """Send requests to the TLS listener over HTTP/1, and verify its certificate. Raises `Wrong`."""
    trusted = ssl.create_default_context(cafile=str(managed.ca))
    body = {"model": "demo", "input": "count to 5", "stream": True, "store": False}
    secure = f"https://{url.partition('://')[2]}"
    async with session.post(f"{secure}/v1/responses", json=body, ssl=trusted, server_hostname="localhost") as got:
        text = await got.text()
    async with session.get(f"{secure}/v1/files", ssl=trusted, server_hostname="localhost") as listed:
        files = listed.status
    if got.status != 200 or "response.completed" not in text or files != 200:
        raise Wrong(f"{got.status} {files} {text[:300]}")
    return "its certificate verified, a stream whole, files listed"


async def hosts(session: aiohttp.ClientSession, url: str) -> str:
    """Test an HTTPRoute with two host names. Raises `Wrong`."""
    named = ["a.example", "b.example"]
    wanted = {"a.example": [200, 200], "b.example": [200, 200], "c.example": [404, 404]}
    found: dict[str, list[int]] = {}

    async def named_alone() -> bool:
        for host in wanted:
            body = {"model": "demo", "input": "hello"}
            async with session.post(f"{url}/v1/responses", json=body, headers={"host": host}) as got:
                found[host] = [got.status]
            async with session.get(f"{url}/v1/files", headers={"host": host}) as got:
                found[host].append(got.status)
        return found == wanted

    async def change(value: list[str] | None) -> None:
        patch = json.dumps({"spec": {"hostnames": value}})
        await run("kubectl", "-n", NAMESPACE, "patch", "httproute", "antiphon", "--type=merge", "-p", patch)

    await change(named)
    try:
        await eventually("the hosts", named_alone, 60)
    except Wrong:
        raise Wrong(str(found)) from None
    finally:
        await change(None)

    async def any_host() -> bool:
        async with session.get(f"{url}/v1/files", headers={"host": "c.example"}) as got:
            return got.status == 200

    await eventually("every host again", any_host, 60)
    return "two of the HTTPRoute's answer, another is a 404"


async def conformance(url: str) -> str:
    """Run the official compliance suite. Raises `Wrong` if a scenario fails."""
    command = [sys.executable, "-m", "lab.conformance.run", "--url", f"{url}/v1", "--model", "demo", "--key", "x"]
    told = await run(*command, "--header", "antiphon-dialect:openresponses", seconds=300)
    last = told.strip().splitlines()[-1]
    if "17 of 17" not in last:
        raise Wrong(told)
    return last


async def many(session: aiohttp.ClientSession, url: str, count: int) -> str:
    """Open `count` concurrent streams. Raises `Wrong` if one is incomplete."""
    whole = await asyncio.gather(*(stream(session, url, 20) for _ in range(count)), return_exceptions=True)
    good = sum(one is True for one in whole)
    if good != count:
        raise Wrong(f"{good} of {count} came whole: {[one for one in whole if one is not True][:3]}")
    return f"{count} of {count} came whole"


async def replaced(
    session: aiohttp.ClientSession, url: str, clients: int, managed: Managed, change: Callable[[], Awaitable[None]]
) -> str:
    """Replace every pod by calling `change`, while clients send streams. Raises `Wrong` if a stream fails."""
    seen, wrong, over = 0, [], False

    async def client() -> None:
        nonlocal seen
        while not over:
            seen += 1
            try:
                if not await stream(session, url, 10):
                    wrong.append("not whole")
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                wrong.append(f"{type(error).__name__}: {error}")

    running = [asyncio.ensure_future(client()) for _ in range(clients)]
    before = await pods()
    try:
        await change()
        await managed.settled(before)
    finally:
        over = True
        await asyncio.gather(*running)
    if wrong:
        raise Wrong(f"{len(wrong)} of {seen} streams failed: {wrong[:3]}")
    return f"{seen} streams of {clients} clients, 0 failed, 0 cut"
