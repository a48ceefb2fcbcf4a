"""A chat server that refuses whatever a strict one would, and answers by what it is asked. For real clients.

Lives here: the server. Not here: what is strict (`strict_chat.py`), Antiphon.

What it answers, by the last message: tool results are repeated (`The tool said: …`); `use the tool` (or a tool that
`tool_choice` demands) calls the tool named in the message, else the first, with the JSON in the message as arguments;
`json` answers with JSON; anything else `Hello from the model.` It always thinks first, and like DeepSeek it demands to
see its thoughts again beside the calls of the same turn.
"""

from __future__ import annotations

import json
import re
from typing import Any

from aiohttp import web

from tests.support.strict_chat import check_chat_request

__all__ = ["StrictUpstream"]

_ARGUMENTS = re.compile(r"\{.*\}", re.DOTALL)
_USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


class StrictUpstream:
    """`problems` lists what was refused; `requests` are the chat requests, in order."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self._runner: web.AppRunner | None = None
        self.base_url = ""

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{port}/v1"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "strict", "object": "model", "owned_by": "tests"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        chat = await request.json()
        self.requests.append(chat)
        try:
            check_chat_request(chat)
            _check_thoughts(chat["messages"])
        except AssertionError as problem:
            self.problems.append(str(problem)[:500])
            return web.json_response(
                {"error": {"message": f"refused: {problem}", "type": "invalid_request_error"}}, status=400
            )
        message = _reply(chat)
        if "fail with" in _last_text(chat):
            status = int(re.findall(r"fail with (\d+)", _last_text(chat))[0])
            body = {"error": {"message": "as asked", "type": "x", "code": None, "param": None}}
            return web.json_response(body, status=status, headers={"retry-after": "0"})
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        if not chat.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
            return web.json_response({"id": "c", "object": "chat.completion", "choices": [choice], "usage": _USAGE})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for delta in _deltas(message):
            await response.write(_event([{"index": 0, "delta": delta, "finish_reason": None}]))
        await response.write(_event([{"index": 0, "delta": {}, "finish_reason": finish}]))
        if chat.get("stream_options", {}).get("include_usage"):
            await response.write(_event([], usage=_USAGE))
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "choices": choices, **more}
    return b"data: %b\n\n" % json.dumps(chunk).encode()


def _check_thoughts(messages: list[dict[str, Any]]) -> None:
    """As DeepSeek: a turn's calls come back with what was thought before them."""
    last_user = max((number for number, message in enumerate(messages) if message["role"] == "user"), default=0)
    for message in messages[last_user:]:
        if message.get("tool_calls"):
            assert message.get("reasoning_content"), "the thoughts of this turn's calls are missing"


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if part["type"] == "text")


def _last_text(chat: dict[str, Any]) -> str:
    return _text(chat["messages"][-1])


def _reply(chat: dict[str, Any]) -> dict[str, Any]:
    said = _last_text(chat)
    thought = "Let me think."
    if chat["messages"][-1]["role"] == "tool":
        return {"content": f"The tool said: {said[:200]}", "reasoning_content": thought}
    names = [tool["function"]["name"] for tool in chat.get("tools", ())]
    choice = chat.get("tool_choice")
    demanded = isinstance(choice, dict) or choice == "required"
    if names and choice != "none" and (demanded or "use the tool" in said):
        named = [name for name in names if name in said]
        name = choice["function"]["name"] if isinstance(choice, dict) else (named or names)[0]
        found = _ARGUMENTS.search(said)
        arguments = found[0] if found else "{}"
        call = {"id": "call_strict_1", "type": "function", "function": {"name": name, "arguments": arguments}}
        return {"content": None, "reasoning_content": thought, "tool_calls": [call]}
    if chat.get("response_format") or "json" in said:
        return {"content": '{"answer": "yes"}', "reasoning_content": thought}
    return {"content": "Hello from the model.", "reasoning_content": thought}


def _deltas(message: dict[str, Any]) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    for word in message["reasoning_content"].split(" "):
        deltas.append({"reasoning_content": word + " "})
    for number, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        deltas.append(
            {"tool_calls": [{**call, "index": number, "function": {"name": function["name"], "arguments": ""}}]}
        )
        for at in range(0, len(function["arguments"]), 7):
            piece = function["arguments"][at : at + 7]
            deltas.append({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
    content = message.get("content") or ""
    deltas += [{"content": content[at : at + 5]} for at in range(0, len(content), 5)]
    return deltas
