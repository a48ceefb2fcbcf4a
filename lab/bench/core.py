"""Implements `scripts/bench --core`: measures the cost of translation per chunk and per request, without a socket.

Lives here: the jobs, their floors, and the comparison with another revision. Not here: the cost that a whole gateway
adds (`run.py`).

A floor is the time of the minimum work that any translation of the same bytes needs. `loads + dumps` parses and writes
the JSON once with orjson. `splice` finds the text of a chunk and copies it into an event. Each job runs many times in
turns with all others, and the fastest run counts, so the machine's other work hardly matters.

Invariant: with `--against` the other revision runs the same jobs in the same rounds, each in a separate process.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson

from antiphon.engine.exchange.response_exchange import ResponseExchange

# Imports only modules that every revision has, because another revision also runs this file.
from antiphon.engine.ports.actions import RequestHead, SaveResponse
from antiphon.errors import ExchangeStateError
from tests.support.exchanges import exchange_options
from tests.support.fixed import SequentialIds, fixed_clock

_ROOT = Path(__file__).parents[2]
_CHUNKS = 400
_HEAD = RequestHead("POST", "/v1/responses", (), "owner")
_SSE = (("content-type", "text/event-stream"),)


def _chunk(delta: dict[str, Any], **more: Any) -> bytes:
    chunk = {
        "id": "chatcmpl-BkBz1jq3vYT0kYVd1dRbMsrcGzKbA",
        "object": "chat.completion.chunk",
        "created": 1750000000,
        "model": "gpt-4o-mini-2024-07-18",
        "service_tier": "default",
        "system_fingerprint": "fp_34a54ae93c",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **more}],
        "usage": None,
    }
    return json.dumps(chunk).encode()


def _token(number: int) -> dict[str, Any]:
    other = [{"token": f" t{n}", "logprob": -1.25 - n, "bytes": [32, 116]} for n in range(2)]
    return {"token": f" t{number}", "logprob": -0.25, "bytes": [32, 116], "top_logprobs": other}


def _tool_chunks() -> list[bytes]:
    def call(fields: dict[str, Any]) -> dict[str, Any]:
        return {"tool_calls": [{"index": 0, **fields}]}

    start = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}
    parts = ['{"x":[1', *[f",{number}" for number in range(_CHUNKS)], "]}"]
    return [_chunk(call(start)), *(_chunk(call({"function": {"arguments": part}})) for part in parts)]


def _streams() -> dict[str, list[bytes]]:
    """The chunks of each kind, as JSON without framing."""
    numbers = range(_CHUNKS)
    return {
        "text": [_chunk({"content": f' "wörd" {number}\n'}) for number in numbers],
        "reasoning": [_chunk({"content": None, "reasoning_content": f" thought {number}"}) for number in numbers],
        "arguments": _tool_chunks(),
        "logprobs": [_chunk({"content": " t"}, logprobs={"content": [_token(n)], "refusal": None}) for n in numbers],
    }


def _turns(size: int) -> list[dict[str, Any]]:
    """A conversation with calls whose texts are about 1 KB each."""
    text = 'The quick brown fox jumps over the lazy dog, and no cat is surprised by "that".\n' * 12
    items: list[dict[str, Any]] = []
    for number in range(max(size // (len(text) * 3 + 400), 0)):
        call = f"call_{number}"
        items += [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]},
            {"type": "function_call", "call_id": call, "name": "look", "arguments": '{"at":"the fox"}'},
            {"type": "function_call_output", "call_id": call, "output": text},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]},
        ]
    return [*items, {"role": "user", "content": "And now?"}]


def _requests() -> dict[str, bytes]:
    """Request bodies by name."""
    tool = {
        "type": "function",
        "name": "look",
        "description": "Look at something.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"at": {"type": "string", "description": "What to look at."}},
            "required": ["at"],
            "additionalProperties": False,
        },
    }
    base = {"model": "m", "instructions": "Be brief.", "stream": True, "tools": [tool]}
    bodies = {
        "1 KB": {**base, "input": "Hello! " * 60},
        "100 KB": {**base, "input": _turns(100_000)},
    }
    return {name: json.dumps(body).encode() for name, body in bodies.items()} | large_requests()


def large_requests() -> dict[str, bytes]:
    """Request bodies of 5 MB by name: a long conversation, a picture, one text."""
    picture = "data:image/png;base64," + base64.b64encode(bytes(3 * 1024 * 1250)).decode()
    seen = [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_image", "image_url": picture, "detail": "low"},
    ]
    inputs: dict[str, Any] = {
        "5 MB of turns": _turns(5_000_000),
        "5 MB image": [{"role": "user", "content": seen}],
        "5 MB text": "Größe is a word. " * 290_000,
    }
    return {
        name: json.dumps({"model": "m", "input": value}, ensure_ascii=False).encode() for name, value in inputs.items()
    }


def _exchange() -> ResponseExchange:
    return ResponseExchange(exchange_options(), SequentialIds(), fixed_clock)


def _settle(exchange: ResponseExchange) -> None:
    """Perform the actions that need no upstream."""
    while actions := exchange.actions():
        for action in actions:
            if isinstance(action, SaveResponse):
                exchange.receive_saved()


def _ready(request: dict[str, Any]) -> Any:
    """An exchange that is ready to receive the upstream's answer."""
    exchange = _exchange()
    exchange.receive_request(_HEAD, json.dumps(request).encode())
    _settle(exchange)
    return exchange


def _time_stream(kind: str, chunks: list[bytes]) -> float:
    """Seconds per chunk, with one read per chunk."""
    more = {"include": ["message.output_text.logprobs"], "top_logprobs": 2} if kind == "logprobs" else {}
    tools = [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}]
    exchange = _ready({"model": "m", "input": "hi", "stream": True, "tools": tools, **more})
    exchange.receive_upstream_head(200, _SSE)
    exchange.actions()
    framed = [b"data: " + chunk + b"\n\n" for chunk in chunks]
    receive, actions = exchange.receive_upstream_data, exchange.actions
    started = time.perf_counter()
    for data in framed:
        receive(data)
        actions()
    return (time.perf_counter() - started) / len(framed)


def _time_request(body: bytes) -> float:
    exchange = _exchange()
    started = time.perf_counter()
    exchange.receive_request(_HEAD, body)
    actions = exchange.actions()
    spent = time.perf_counter() - started
    assert type(actions[-1]).__name__ == "CallUpstream", actions
    return spent


def _time_completion(body: bytes) -> float:
    """Seconds for a whole JSON answer, from the upstream's headers to the client's body."""
    exchange = _ready({"model": "m", "input": "hi", "store": False})
    started = time.perf_counter()
    exchange.receive_upstream_head(200, (("content-type", "application/json"),))
    exchange.receive_upstream_data(body)
    exchange.receive_upstream_end()
    exchange.actions()
    return time.perf_counter() - started


def _time_json(bodies: Sequence[bytes]) -> float:
    loads, dumps = orjson.loads, orjson.dumps
    started = time.perf_counter()
    for body in bodies:
        dumps(loads(body))
    return (time.perf_counter() - started) / len(bodies)


def _time_splice(bodies: Sequence[bytes]) -> float:
    """Seconds for finding the text in the bytes and inserting it between a fixed head and tail, without parsing."""
    head = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":'
    middle = b',"item_id":"msg_1","output_index":0,"content_index":0,"delta":"'
    started = time.perf_counter()
    for number, body in enumerate(bodies):
        start = body.find(b'"content": "') + 12
        b"".join((head, b"%d" % number, middle, body[start : body.find(b'"', start)], b'","logprobs":[]}\n\n'))
    return (time.perf_counter() - started) / len(bodies)


def _completion(size: int) -> bytes:
    message = {"role": "assistant", "content": 'Some "text".\n' * (size // 13), "refusal": None}
    answer: dict[str, Any] = {"id": "x", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}
    answer["choices"][0]["finish_reason"] = "stop"
    answer["usage"] = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    return json.dumps(answer).encode()


def _jobs() -> dict[str, Callable[[], float]]:
    jobs: dict[str, Callable[[], float]] = {}
    for kind, chunks in _streams().items():
        jobs[f"chunk: {kind}"] = lambda kind=kind, chunks=chunks: _time_stream(kind, chunks)  # type: ignore[misc]
        jobs[f"chunk: {kind} / floor"] = lambda chunks=chunks: _time_json(chunks)  # type: ignore[misc]
    text = _streams()["text"]
    jobs["chunk: splice"] = lambda: _time_splice(text)
    for name, body in _requests().items():
        jobs[f"request: {name}"] = lambda body=body: _time_request(body)  # type: ignore[misc]
        jobs[f"request: {name} / floor"] = lambda body=body: _time_json([body])  # type: ignore[misc]
    for size in (1_000, 100_000):
        body = _completion(size)
        name = f"answer: {size // 1000} KB"
        jobs[name] = lambda body=body: _time_completion(body)  # type: ignore[misc]
        jobs[f"{name} / floor"] = lambda body=body: _time_json([body])  # type: ignore[misc]
    return jobs


def measure(rounds: int) -> dict[str, float]:
    """Seconds by job: the fastest of `rounds` turns (for short jobs, of the five runs in each). The result omits jobs
    that this revision does not support."""
    jobs = _jobs()
    best: dict[str, float] = {}
    for name, job in jobs.items():
        with contextlib.suppress(ExchangeStateError):
            best[name] = job()
    for _ in range(rounds):
        for name in best:
            times = [jobs[name]() for _ in range(1 if "5 MB" in name else 5)]
            best[name] = min(best[name], *times)
    return best


def _measure_elsewhere(source: Path, rounds: int) -> dict[str, float]:
    """Run `measure` in a separate process with another source tree."""
    paths = os.pathsep.join((str(source), str(_ROOT)))
    done = subprocess.run(
        [sys.executable, "-m", "lab.bench.core", "--child", "--rounds", str(rounds)],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=source,
        check=True,
        stdout=subprocess.PIPE,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def source_of(revision: str, folder: Path) -> Path:
    """Write the source tree of a revision into the folder. Returns its path."""
    archive = subprocess.run(["git", "archive", revision, "src"], cwd=_ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder / "src"


def _table(now: dict[str, float], before: dict[str, float] | None, revision: str) -> str:
    splice = now["chunk: splice"]
    columns = ["job", "µs", "loads + dumps, µs", "ratio"]
    columns += [f"at {revision}, µs", "now / then"] if before else []
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for name, seconds in now.items():
        if name.endswith("/ floor") or name == "chunk: splice":
            continue
        floor = now[f"{name} / floor"]
        cells = [name, f"{seconds * 1e6:,.1f}", f"{floor * 1e6:,.1f}", f"{seconds / floor:.2f}"]
        if before:
            then = before.get(name)
            cells += ["-", "-"] if then is None else [f"{then * 1e6:,.1f}", f"{seconds / then:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    ratio = now["chunk: text"] / splice
    lines.append(f"\nAn echo that only splices takes {splice * 1e6:.2f} µs a chunk; text takes {ratio:.1f} times that.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="scripts/bench --core", description="What translation costs, in process.")
    parser.add_argument("--rounds", type=int, default=10, help="turns of all jobs; the fastest counts (default 10)")
    parser.add_argument("--against", metavar="REVISION", help="compare with this commit")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        print(json.dumps(measure(given.rounds)))
        return 0
    now: dict[str, float] = {}
    before: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="antiphon-bench-") as folder:
        other = source_of(given.against, Path(folder)) if given.against else None
        for _ in range(5):
            for found, source in ((now, _ROOT / "src"), (before, other)):
                if source is None:
                    continue
                for name, seconds in _measure_elsewhere(source, max(given.rounds // 5, 1)).items():
                    found[name] = min(found.get(name, seconds), seconds)
    assert set(now) == set(_jobs()), "a job failed"
    print(_table(now, before or None, given.against or ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
