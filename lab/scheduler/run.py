"""`scripts/lab scheduler`: runs the real endpoint picker behind `antiphon up`.

Lives here: three chat servers on loopback addresses, the pods that represent them in a Kubernetes API, the picker's
process, and the checks. Not here: a picker's failures (`tests/e2e/test_endpoint_picker.py`).

The pods are objects only: no Kubernetes scheduler knows them, and no image runs. The status of these pods reports them
ready at the addresses of the chat servers. So any Kubernetes API works, and the picker reads real objects.

Invariant: when the program ends for any reason, it has deleted the namespace and stopped the picker and the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from tests.support.gateway import Gateway, post, start_gateway
from tests.support.judge import check_stream, parse_sse

_DEADLINE = 120.0
_ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
LABEL = "antiphon-chat"
_PICKER: dict[str, Any] = {
    "apiVersion": "inference.networking.x-k8s.io/v1alpha1",
    "kind": "EndpointPickerConfig",
    "plugins": [
        {"type": name} for name in ("queue-scorer", "prefix-cache-scorer", "max-score-picker", "single-profile-handler")
    ],
    "schedulingProfiles": [
        {
            "name": "default",
            "plugins": [
                {"pluginRef": "queue-scorer"},
                {"pluginRef": "prefix-cache-scorer", "weight": 3},
                {"pluginRef": "max-score-picker"},
            ],
        }
    ],
}
_POOL = "chat"
_KINDS = (
    ("InferencePool", "inference.networking.k8s.io", "v1"),
    ("InferenceObjective", "inference.networking.x-k8s.io", "v1alpha2"),
    ("InferenceModelRewrite", "inference.networking.x-k8s.io", "v1alpha2"),
)
_METRICS = "vllm:num_requests_waiting 0\nvllm:num_requests_running 0\nvllm:kv_cache_usage_perc 0\n"


@dataclass
class Servers:
    """The chat servers of one pool, with the requests that each received, in order."""

    port: int
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Servers]:
        async with AsyncExitStack() as stack:
            for address in _ADDRESSES:
                app = web.Application(client_max_size=1 << 26)
                app.add_routes(
                    [
                        web.post("/v1/chat/completions", self._answer_from(address)),
                        web.get("/v1/models", self._models),
                        web.get("/metrics", self._metrics),
                    ]
                )
                runner = web.AppRunner(app, access_log=None)
                await runner.setup()
                stack.push_async_callback(runner.cleanup)
                await web.TCPSite(runner, address, self.port).start()
            yield self

    def _answer_from(self, address: str) -> Any:
        async def answer(request: web.Request) -> web.StreamResponse:
            body = await request.json()
            self.asked.append((address, body))
            if not body.get("stream"):
                return web.json_response(_completion(body))
            response = web.StreamResponse(headers={"content-type": "text/event-stream"})
            await response.prepare(request)
            for piece in _pieces():
                await response.write(b"data: " + json.dumps(piece).encode() + b"\n\n")
            await response.write(b"data: [DONE]\n\n")
            return response

        return answer

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "demo", "object": "model"}]})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=_METRICS)


def _completion(body: dict[str, Any]) -> dict[str, Any]:
    """A chat completion with a text. If the request offers a search and has no result yet, the completion calls the
    search."""
    message: dict[str, Any] = {"role": "assistant", "content": "Well."}
    searched = any(one["role"] == "tool" for one in body["messages"])
    if body.get("tools") and not searched:
        call = {"name": "web_search", "arguments": '{"query": "rain"}'}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
        }
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "demo", "choices": [choice], "usage": usage}


def _pieces() -> Iterable[dict[str, Any]]:
    base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "demo"}
    for number in range(50):
        yield {**base, "choices": [{"index": 0, "delta": {"content": f"{number} "}, "finish_reason": None}]}
    yield {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def pool(port: int) -> dict[str, Any]:
    """The pool object that selects the pods with `LABEL`, on this port."""
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": _POOL},
        "spec": {
            "selector": {"matchLabels": {"app": LABEL}},
            "targetPorts": [{"number": port}],
            "endpointPickerRef": {"name": "picker", "port": {"number": port + 1}},
        },
    }


async def _kubectl(*arguments: str, said: str = "") -> None:
    process = await asyncio.create_subprocess_exec(
        *("kubectl", *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(_DEADLINE):
        out, _ = await process.communicate(said.encode())
    if process.returncode:
        raise SystemExit(f"scheduler: kubectl {' '.join(arguments)}: {out.decode()}")


@asynccontextmanager
async def picker_kinds() -> AsyncIterator[None]:
    """Create the custom resource kinds that the picker watches, without a schema, if the API does not have them.
    Deletes only the created ones at the end."""
    made = []
    try:
        for kind, group, version in _KINDS:
            plural = f"{kind.lower()}s"
            name = f"{plural}.{group}"
            if await _has("crd", name):
                continue
            schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
            told = {
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {
                    "name": name,
                    "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
                },
                "spec": {
                    "group": group,
                    "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
                    "versions": [
                        {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
                    ],
                },
            }
            await _kubectl("apply", "-f", "-", said=json.dumps(told))
            made.append(name)
            await _kubectl("wait", "--for=condition=Established", "--timeout=60s", f"crd/{name}")
        yield
    finally:
        for name in made:
            await _kubectl("delete", "crd", name, "--wait=false")


async def _has(*what: str) -> bool:
    process = await asyncio.create_subprocess_exec(
        *("kubectl", "get", *what), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    async with asyncio.timeout(_DEADLINE):
        return await process.wait() == 0


@asynccontextmanager
async def _pods(namespace: str, port: int) -> AsyncIterator[None]:
    """Create a pool, and pods of this pool that are ready at the servers' addresses."""
    await _kubectl("create", "namespace", namespace)
    try:
        await _kubectl("apply", "-n", namespace, "-f", "-", said=json.dumps(pool(port)))
        for number, address in enumerate(_ADDRESSES):
            name = f"chat-{number}"
            pod = {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "labels": {"app": LABEL}},
                "spec": {
                    "schedulerName": "nobody",
                    "automountServiceAccountToken": False,
                    "containers": [{"name": "chat", "image": "none"}],
                },
            }
            await _kubectl("apply", "-n", namespace, "-f", "-", said=json.dumps(pod))
            ready = {
                "phase": "Running",
                "podIP": address,
                "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            }
            patch = json.dumps({"status": ready})
            await _kubectl(
                *("patch", "pod", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)
            )
        yield
    finally:
        await _kubectl("delete", "pods", "-n", namespace, "--all", "--force", "--grace-period=0")
        await _kubectl("delete", "namespace", namespace, "--wait=false")


@asynccontextmanager
async def picker_process(
    binary: str, namespace: str, port: int, folder: Path
) -> AsyncIterator[tuple[Path, asyncio.subprocess.Process]]:
    """Start the picker with TLS, its default. Yields its log file and its process."""
    config, log = folder / "picker.yaml", folder / "picker.log"
    config.write_text(yaml.safe_dump(_PICKER))
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(binary, "--pool-namespace", namespace, "--pool-name", _POOL),
            *("--config-file", str(config)),
            *("--grpc-port", str(port), "--grpc-health-port", str(port + 1), "--metrics-port", str(port + 2)),
            *("--metrics-endpoint-auth=false", "--tracing=false", "-v", "3"),
            stdout=output,
            stderr=output,
            env={**os.environ, "POD_NAME": "picker-0-0", "NAMESPACE": namespace},
        )
        try:
            yield log, process
            if process.returncode is not None:
                raise SystemExit(f"scheduler: the picker ended: {log.read_text()[-3000:]}")
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    async with asyncio.timeout(20):
                        await process.wait()
                except TimeoutError:
                    process.kill()
                    await process.wait()


class Run:
    """Sends requests, and records the server that each reached."""

    def __init__(self, gateway: Gateway, servers: Servers) -> None:
        self._url = gateway.base_url
        self._servers = servers

    async def ask(self, **body: Any) -> dict[str, Any]:
        got = await post(f"{self._url}/responses", {"model": "demo", **body})
        value: dict[str, Any] = json.loads(got.body)
        assert got.status == 200, value
        return value

    async def serving(self, picker: asyncio.subprocess.Process) -> None:
        """Wait until requests reach a server through the picker."""
        async with asyncio.timeout(_DEADLINE):
            while True:
                assert picker.returncode is None, "the picker has ended"
                got = await post(f"{self._url}/responses", {"model": "demo", "input": "hi"})
                if got.status == 200:
                    return
                await asyncio.sleep(0.2)

    def went(self, since: int) -> list[str]:
        return [address for address, _ in self._servers.asked[since:]]

    async def chains(self, count: int, turns: int) -> list[list[str]]:
        """Run chains by `previous_response_id` with interleaved turns. Returns the server of each turn."""
        last: list[str | None] = [None] * count
        places: list[list[str]] = [[] for _ in range(count)]
        for turn in range(turns):
            for chain in range(count):
                since = len(self._servers.asked)
                more = {"previous_response_id": last[chain]} if last[chain] else {}
                words = f"chain {chain} " + f"lorem ipsum dolor sit amet {chain} " * 200
                answer = await self.ask(input=f"{words} turn {turn}", **more)
                last[chain] = answer["id"]
                places[chain] += self.went(since)
                assert len(self._servers.asked[-1][1]["messages"]) == 2 * turn + 1
        return places

    async def background(self) -> str:
        queued = await self.ask(input="hi", background=True)
        async with asyncio.timeout(_DEADLINE), aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{self._url}/responses/{queued['id']}") as got:
                    status = str((await got.json())["status"])
                if status not in ("queued", "in_progress"):
                    return status
                await asyncio.sleep(0.05)

    async def stream(self) -> int:
        got = await post(f"{self._url}/responses", {"model": "demo", "input": "hi", "stream": True})
        assert not got.cut
        check_stream(parse_sse(got.body))
        return got.body.count(b"event: response.output_text.delta")


async def _search_page(request: web.Request) -> web.Response:
    found = {"url": "https://a.example", "title": "A", "content": "It rains."}
    return web.json_response({"query": "rain", "results": [found], "infoboxes": []})


async def run(arguments: argparse.Namespace, binary: str) -> int:
    servers = Servers(arguments.port)
    namespace = f"antiphon-scheduler-{os.getpid()}"
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="antiphon-scheduler-")))
        await stack.enter_async_context(servers.open())
        search = web.Application()
        search.add_routes([web.get("/search", _search_page)])
        runner = web.AppRunner(search, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", arguments.port).start()
        await stack.enter_async_context(picker_kinds())
        await stack.enter_async_context(_pods(namespace, arguments.port))
        log, picker = await stack.enter_async_context(picker_process(binary, namespace, arguments.port + 1, folder))
        settings = {
            "web_search": {"provider": "searxng", "url": f"http://127.0.0.1:{arguments.port}"},
            # No server listens at this address, so every request that reaches a server was routed by the picker.
            "upstream": {"url": "http://192.0.2.1:9/v1", "auth": "none"},
        }
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        flags = ("--config", str(folder / "settings.yaml"), "--mode", arguments.mode)
        gateway = await start_gateway(
            None, folder / "data", *flags, "--endpoint-picker", f"127.0.0.1:{arguments.port + 1}"
        )
        try:
            return await _show(Run(gateway, servers), servers, picker)
        except BaseException:
            print("\n".join(gateway.log[-10:]), log.read_text()[-3000:], sep="\n", file=sys.stderr)
            raise
        finally:
            await gateway.stop()


async def _show(run: Run, servers: Servers, picker: asyncio.subprocess.Process) -> int:
    await run.serving(picker)
    places = await run.chains(6, 4)
    for number, went in enumerate(places):
        print(f"chain {number}: " + " ".join(went))
    one_place = sum(len(set(went)) == 1 for went in places)
    used = len({went[0] for went in places})
    print(f"chains of which all turns went to one server: {one_place} of {len(places)}; servers used: {used}")
    deltas = await run.stream()
    print(f"stream: {deltas} deltas, whole")
    since = len(servers.asked)
    tool = await run.ask(input="Does it rain?", tools=[{"type": "web_search"}])
    print(f"tool turn: {[item['type'] for item in tool['output']]}, calls went to {' '.join(run.went(since))}")
    tool_calls = len(run.went(since))
    since = len(servers.asked)
    background = await run.background()
    print(f"background: {background}, went to {' '.join(run.went(since))}")
    good = one_place == len(places) and deltas == 50 and tool_calls == 2 and background == "completed"
    print("scheduler: all good" if good else "scheduler: NOT as it should be")
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/lab scheduler", description=__doc__)
    parser.add_argument("--mode", choices=("auto", "relay", "drive"), default="auto", help="settings.mode")
    parser.add_argument("--port", type=int, default=18180, help="the first of four ports in a row")
    arguments = parser.parse_args()
    binary = os.environ.get("EPP_BINARY", "")
    for missing, what in (
        (not binary or shutil.which(binary) is None, "EPP_BINARY must name the picker's program (cmd/epp)"),
        (not os.environ.get("KUBECONFIG"), "KUBECONFIG must name a Kubernetes API"),
        (shutil.which("kubectl") is None, "kubectl must be on PATH"),
    ):
        if missing:
            print(f"scheduler: {what}", file=sys.stderr)
            return 2
    return asyncio.run(run(arguments, binary))


if __name__ == "__main__":
    sys.exit(main())
