"""`scripts/lab traces`: sends one run of three turns, exports its traces to real trace receivers, and compares the span
trees that they received.

Lives here: starting the receivers and the gateway, reading the spans from each receiver's interface, comparing. Not
here: the content of a trace (`docs/reference/traces.md`), tests of traces (`integration/test_traces.py`,
`e2e/test_envoy_traces.py`).

Invariant: the program stops every process that it started, by that process's own handle.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.chat_server import ChatServer, answer, chunk, event, text_stream
from tests.support.gateway import post, start_gateway
from tests.support.mcp_server import open_mcp_server

_ROOT = Path(__file__).parents[2]
_SECONDS = 180.0
_PROCESSOR = "async envoy.service.ext_proc.v3.ExternalProcessor.Process egress"
_MODEL_CALL = ("chat m", [("ingress", ["router model egress"])])
_RUN = [_MODEL_CALL, "execute_tool roll", _MODEL_CALL, "execute_tool count", _MODEL_CALL, "store save"]
WANTED = ("ingress", [(_PROCESSOR, [("POST /v1/responses", _RUN)])])
_SPANS = 15


@dataclass(frozen=True)
class _Span:
    name: str
    trace: str
    id: str
    parent: str
    start: str


Spans = Callable[[], Awaitable[list[_Span]]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _process(*command: str, environ: dict[str, str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("wb") as output:
        made = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environ}, stdout=output, stderr=asyncio.subprocess.DEVNULL
        )
        try:
            yield made
        finally:
            if made.returncode is None:
                made.terminate()
            await made.wait()


@asynccontextmanager
async def _oteltap(folder: Path) -> AsyncIterator[tuple[str, Spans]]:
    """Start oteltap, which prints each received export as one line of JSON."""
    port, log = _free_port(), folder / "oteltap.log"

    async def spans() -> list[_Span]:
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        return [found for line in lines for found in _spans_within(line)]

    python = str(_ROOT / ".traces/oteltap/bin/python")
    command = (python, "-u", "-m", "oteltap", "--port", str(port))
    async with _process(*command, environ={}, log=log):
        await _listening(port)
        yield f"http://127.0.0.1:{port}", spans


def _spans_within(value: Any) -> list[_Span]:
    """All spans in a decoded JSON value: every object, at any depth, that has a name, a span id and a trace id."""
    if isinstance(value, list):
        return [found for one in value for found in _spans_within(one)]
    if not isinstance(value, dict):
        return []
    plain = {key.replace("_", "").lower(): one for key, one in value.items()}
    if "spanid" in plain and "traceid" in plain and "name" in plain:
        parent = plain.get("parentspanid") or ""
        return [_Span(plain["name"], plain["traceid"], plain["spanid"], parent, str(plain["starttimeunixnano"]))]
    return [found for one in value.values() for found in _spans_within(one)]


@asynccontextmanager
async def _phoenix(folder: Path) -> AsyncIterator[tuple[str, Spans]]:
    """Start Arize Phoenix, and read the spans of a project from its REST API."""
    port, grpc = _free_port(), _free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {
        "PHOENIX_WORKING_DIR": str(folder / "phoenix"),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(grpc),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }

    async def spans() -> list[_Span]:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/projects/default/spans?limit=500") as got:
            if got.status != 200:
                return []
            found = (await got.json())["data"]
        return [
            _Span(
                one["name"],
                one["context"]["trace_id"],
                one["context"]["span_id"],
                one["parent_id"] or "",
                one["start_time"],
            )
            for one in found
        ]

    command = (str(_ROOT / ".traces/phoenix/bin/phoenix"), "serve")
    async with _process(*command, environ=environ, log=folder / "phoenix.log"):
        await _listening(port)
        yield url, spans


_RECEIVERS = {"oteltap": _oteltap, "phoenix": _phoenix}


async def _listening(port: int) -> None:
    async with asyncio.timeout(_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            writer.close()
            return


def _calls(name: str, **arguments: Any) -> list[bytes]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    made = {"index": 0, "id": f"call_{name}", "type": "function", "function": function}
    return [event(chunk({"tool_calls": [made]})), event(chunk(finish_reason="tool_calls")), b"data: [DONE]\n\n"]


async def _run_three_turns(endpoint: str, folder: Path) -> None:
    environ = {
        "ANTIPHON_TRACING__ENDPOINT": endpoint,
        "ANTIPHON_MCP__ALLOW": "127.0.0.1",
        "ANTIPHON_FETCH__ALLOW_PRIVATE": "127.0.0.1",
    }
    async with ChatServer() as chat, open_mcp_server() as dice:
        turns = _calls("dice__roll", sides=6), _calls("dice__count"), text_stream("Six.")
        chat.script(*(answer(parts=parts) for parts in turns))
        gateway = await start_gateway(chat.base_url, folder / "data", environ=environ)
        try:
            tool = {"type": "mcp", "server_label": "dice", "server_url": dice.url, "require_approval": "never"}
            asked = {"model": "m", "input": "Roll dice.", "stream": True, "tools": [tool]}
            got = await post(f"{gateway.base_url}/responses", asked)
            if b"event: response.completed" not in got.body:
                raise SystemExit(f"traces: the run failed: {got.body[-500:]!r}")
            # Envoy exports spans every five seconds, and exports nothing at its end.
            await asyncio.sleep(7)
        finally:
            await gateway.stop()


def _tree(span: _Span, spans: list[_Span]) -> Any:
    inside = sorted((one for one in spans if one.parent == span.id), key=lambda one: one.start)
    return (span.name, [_tree(one, spans) for one in inside]) if inside else span.name


def _show(tree: Any, indent: str = "  ") -> None:
    name, inside = (tree, []) if isinstance(tree, str) else tree
    print(indent + name)
    for one in inside:
        _show(one, indent + "  ")


async def _try(name: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="antiphon-traces-") as made:
        folder = Path(made)
        async with _RECEIVERS[name](folder) as (endpoint, spans):
            await _run_three_turns(endpoint, folder)
            found: list[_Span] = []
            try:
                async with asyncio.timeout(60):
                    while len(found) < _SPANS:
                        await asyncio.sleep(0.2)
                        found = await spans()
            except TimeoutError:
                print(f"{name}: {len(found)} spans came")
    roots = [span for span in found if not span.parent]
    good = len(roots) == 1 and len({span.trace for span in found}) == 1 and _tree(roots[0], found) == WANTED
    print(f"{name}: {len(found)} spans in {len({span.trace for span in found})} trace: {'good' if good else 'WRONG'}")
    for root in roots:
        _show(_tree(root, found))
    return good


async def _main(names: list[str]) -> int:
    print(f"antiphon {version('antiphon')}")
    results = [await _try(name) for name in names]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(sys.argv[1:] or list(_RECEIVERS))))
