"""A chat server that names its pod in each answer, with a search endpoint on the same server.

Lives here: the program of the endpoint picker's pods. A ConfigMap puts this file into the pods.

Invariant: the program needs only aiohttp and the standard library.
"""

from __future__ import annotations

import json
import socket
from typing import Any

from aiohttp import web

PORT = 8000
_ME = socket.gethostname()
_METRICS = "vllm:num_requests_waiting 0\nvllm:num_requests_running 0\nvllm:kv_cache_usage_perc 0\n"


def _message(body: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A message with the pod's name and the finish reason. If the request offers a search and has no result yet, the
    message calls the search."""
    if body.get("tools") and not any(one["role"] == "tool" for one in body["messages"]):
        call = {"name": "web_search", "arguments": json.dumps({"query": _ME})}
        calls = [{"index": 0, "id": "call_1", "type": "function", "function": call}]
        return {"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls"
    return {"role": "assistant", "content": _ME}, "stop"


async def _chat(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    message, reason = _message(body)
    about = {"id": "c", "created": 1, "model": "demo"}
    if not body.get("stream"):
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return web.json_response({**about, "object": "chat.completion", "choices": [choice], "usage": usage})
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for delta, end in ((message, None), ({}, reason)):
        choice = {"index": 0, "delta": delta, "finish_reason": end}
        chunk = {**about, "object": "chat.completion.chunk", "choices": [choice]}
        await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "demo", "object": "model"}]})


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(text=_METRICS)


async def _search(_: web.Request) -> web.Response:
    found = {"url": "https://a.example", "title": "A", "content": "It rains."}
    return web.json_response({"query": "rain", "results": [found], "infoboxes": []})


def main() -> None:
    app = web.Application(client_max_size=1 << 26)
    app.add_routes([web.post("/v1/chat/completions", _chat), web.get("/v1/models", _models)])
    app.add_routes([web.get("/metrics", _metrics), web.get("/search", _search)])
    web.run_app(app, port=PORT, access_log=None)


if __name__ == "__main__":
    main()
