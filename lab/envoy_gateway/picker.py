"""Tests the real endpoint picker behind the managed Envoy, and records which pod each call reached.

Lives here: the pool's pods, the requests, and the pod that each must reach. Not here: the picker's program and custom
resource kinds (`lab/scheduler/run.py`), the chat servers (`chat_pod.py`).

Invariant: `upstream.url` is unreachable, so every answer comes from a pod that the picker chose.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from lab.envoy_gateway import chat_pod
from lab.envoy_gateway.asked import answer, background, stream
from lab.envoy_gateway.managed import NAMESPACE, Managed, Object, address_of, apply
from lab.kubernetes.cluster import Wrong, eventually, run
from lab.scheduler.run import LABEL, picker_kinds, picker_process, pool

_PODS = 3
_CHAINS, _TURNS = 6, 4
_PORT = 18190


def _pods(image: str) -> list[Object]:
    """The pods of the pool with their chat servers, and a Service for their search endpoint."""
    about = {"namespace": NAMESPACE}
    mount = {"name": "program", "mountPath": "/chat"}
    container = {
        "name": "chat",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["python3", "/chat/chat_pod.py"],
        "volumeMounts": [mount],
        "readinessProbe": {"httpGet": {"path": "/v1/models", "port": chat_pod.PORT}, "periodSeconds": 1},
    }
    spec = {"containers": [container], "volumes": [{"name": "program", "configMap": {"name": "chat-pod"}}]}
    program = {"chat_pod.py": Path(chat_pod.__file__).read_text()}
    labels = {"app": LABEL}
    service = {"selector": labels, "ports": [{"port": chat_pod.PORT}]}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "chat-pod", **about}, "data": program},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "search", **about}, "spec": service},
        *(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"pool-{number}", "labels": labels, **about},
                "spec": spec,
            }
            for number in range(_PODS)
        ),
    ]


@asynccontextmanager
async def _picking(managed: Managed) -> AsyncIterator[None]:
    """Configure the managed Envoy with a picker while the context lasts."""
    address = "{.items[0].status.addresses[?(@.type=='InternalIP')].address}"
    node = await run("kubectl", "get", "nodes", "-o", f"jsonpath={address}")
    async with AsyncExitStack() as opened:
        await opened.enter_async_context(picker_kinds())
        chosen = pool(chat_pod.PORT)
        await apply([*_pods(managed.image), {**chosen, "metadata": {**chosen["metadata"], "namespace": NAMESPACE}}])
        await run("kubectl", "-n", NAMESPACE, "wait", "--for=condition=Ready", "pod", "-l", f"app={LABEL}")
        binary = os.environ["EPP_BINARY"]
        await opened.enter_async_context(picker_process(binary, NAMESPACE, _PORT, managed.folder))
        managed.settings = {
            "upstream": {"url": "http://192.0.2.1:9/v1", "auth": "none"},
            "envoy": {"endpoint_picker": {"address": f"{node}:{_PORT}"}},
            "web_search": {"provider": "searxng", "url": address_of("search", chat_pod.PORT)},
        }
        await managed.install()
        yield


def _said(body: dict[str, Any]) -> str:
    """The name of the pod that produced a response."""
    texts = [part["text"] for item in body["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(texts).strip()


async def picked(session: aiohttp.ClientSession, url: str, managed: Managed) -> str:
    """Send chains, a stream, a tool turn and a background response through the picker. Raises `Wrong`."""
    if "EPP_BINARY" not in os.environ:
        raise Wrong("EPP_BINARY must name the picker's program")
    async with _picking(managed):

        async def serves() -> bool:
            return (await answer(session, url, {"input": "hi"}))[0] == 200

        await eventually("the picker picks", serves, 60)
        places: list[list[str]] = [[] for _ in range(_CHAINS)]
        last: list[str | None] = [None] * _CHAINS
        for turn in range(_TURNS):
            for chain in range(_CHAINS):
                words = f"chain {chain} " + f"lorem ipsum dolor sit amet {chain} " * 200
                more = {"previous_response_id": last[chain]} if last[chain] else {}
                status, body = await answer(session, url, {"input": f"{words} turn {turn}", **more})
                if status != 200:
                    raise Wrong(f"chain {chain}, turn {turn}: {status} {body}")
                last[chain] = body["id"]
                places[chain].append(_said(body))
        stay = sum(len(set(one)) == 1 for one in places)
        status, turned = await answer(session, url, {"input": "Does it rain?", "tools": [{"type": "web_search"}]})
        late = await background(session, url)
        kinds = [item["type"] for item in turned.get("output", [])]
        whole = await stream(session, url)
        good = stay == _CHAINS and whole and kinds == ["web_search_call", "message"] and _said(late).startswith("pool-")
        if not good:
            raise Wrong(f"{places} {status} {turned} {late} {whole}")
        used = len({one[0] for one in places})
    return (
        f"{stay} of {_CHAINS} chains stayed on one pod each, on {used} of {_PODS} pods; "
        f"a stream, both calls of a tool turn, a background response picked"
    )
