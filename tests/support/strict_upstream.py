"""A chat server that refuses every request that a strict server would refuse, and answers from a script or according to
the request.

Lives here: the server. Not here: the strict rules (`strict_chat.py`), the form of an answer (`scripted_answers.py`).

The server first uses the next scripted answer that matches the request. Without one, the last message decides. For tool
results the server repeats them (`The tool said: …`). For `use the tool` (or a tool that `tool_choice` requires) it
calls the tool named in the message, or the first tool. The arguments are the JSON in the message. For `json` (or a
required format) it answers JSON, and for any other message `Hello from the model.` Each answer begins with reasoning.
Like DeepSeek's server, this server requires the reasoning again with the calls of the same turn.

Clients in separate processes script the server over HTTP. `POST /script` sets a list of answers and deletes all
recorded requests. `GET /received` returns the chat requests since then. `GET /left` waits until a client disconnected
from an answer that was held open. `POST /cut` breaks off the answers that are held open.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from tests.support.scripted_answers import Answer, chunks, completion
from tests.support.strict_chat import check_chat_request

_ARGUMENTS = re.compile(r"\{.*\}", re.DOTALL)
# The maximum seconds that an answer is held open, and that `held` and `left` wait.
_PATIENCE = 20.0


class StrictUpstream:
    """The server. `problems` lists the refused requests. `requests` has the chat requests since the last script, in
    order.

    With a `key`, the server accepts no other authorization.
    """

    def __init__(self, key: str = "") -> None:
        self.key = key
        self.problems: list[str] = []
        self.requests: list[dict[str, Any]] = []
        self.script_left: deque[Answer] = deque()
        self._held = asyncio.Event()
        self._left = asyncio.Event()
        self._cut = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.base_url = ""

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/script", self._script)
        app.router.add_get("/received", self._received)
        app.router.add_get("/left", self._wait_left)
        app.router.add_post("/cut", self._cut_held)
        # If a client disconnects, aiohttp cancels the handler of its request, so that `hold` ends.
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{port}/v1"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def script(self, answers: Iterable[dict[str, Any]] = ()) -> None:
        """Set the next answers in order, and delete all received requests."""
        self.script_left = deque(Answer(answer, number) for number, answer in enumerate(answers))
        self.requests.clear()
        self._held.clear()
        self._left.clear()
        self._cut.clear()

    async def _script(self, request: web.Request) -> web.Response:
        self.script(await request.json())
        return web.json_response({})

    async def _received(self, _: web.Request) -> web.Response:
        return web.json_response(self.requests)

    async def held(self) -> bool:
        """Wait, with a time limit, until the server holds an answer open. Returns whether it does."""
        return await _set_within(self._held, _PATIENCE)

    async def left(self) -> bool:
        """Wait, with a time limit, until a client disconnected from an answer that was held open. Returns whether one
        did."""
        return await _set_within(self._left, _PATIENCE)

    async def _wait_left(self, _: web.Request) -> web.Response:
        return web.json_response(await self.left())

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "strict", "object": "model", "owned_by": "tests"}]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        chat = await request.json()
        self.requests.append(chat)
        try:
            assert not self.key or request.headers.getall("authorization") == [f"Bearer {self.key}"], "not our key"
            check_chat_request(chat)
            _check_thoughts(chat["messages"])
        except AssertionError as problem:
            self.problems.append(str(problem)[:500])
            return web.json_response(
                {"error": {"message": f"refused: {problem}", "type": "invalid_request_error"}}, status=400
            )
        answer = self._next(chat) or Answer(_reply(chat), len(self.requests))
        if answer.status != 200:
            return web.json_response({"error": answer.error}, status=answer.status, headers=answer.headers)
        if not chat.get("stream"):
            return web.json_response(completion(answer), headers=answer.headers)
        response = web.StreamResponse(headers={"content-type": "text/event-stream", **answer.headers})
        await response.prepare(request)
        usage = bool(chat.get("stream_options", {}).get("include_usage"))
        for piece in chunks(answer, usage):
            await response.write(piece)
        if answer.hold:
            await self._hold()
        if (answer.cut or answer.hold) and request.transport is not None:
            request.transport.abort()
        return response

    def _next(self, chat: dict[str, Any]) -> Answer | None:
        """The first answer of the script that matches this request."""
        said = _text(chat["messages"][-1])
        for answer in self.script_left:
            if answer.when in said:
                self.script_left.remove(answer)
                return answer
        return None

    async def _hold(self) -> None:
        self._held.set()
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._cut.wait()
        except asyncio.CancelledError:
            self._left.set()
            raise

    async def _cut_held(self, _: web.Request) -> web.Response:
        self._cut.set()
        return web.json_response({})


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _check_thoughts(messages: list[dict[str, Any]]) -> None:
    """Check that the calls of a turn come back with the reasoning before them, as DeepSeek's server requires."""
    last_user = max((number for number, message in enumerate(messages) if message["role"] == "user"), default=0)
    for message in messages[last_user:]:
        if message.get("tool_calls"):
            assert message.get("reasoning_content"), "the thoughts of this turn's calls are missing"


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if part["type"] == "text")


def _reply(chat: dict[str, Any]) -> dict[str, Any]:
    said = _text(chat["messages"][-1])
    if chat["messages"][-1]["role"] == "tool":
        return {"content": f"The tool said: {said[:200]}"}
    names = [tool["function"]["name"] for tool in chat.get("tools", ())]
    choice = chat.get("tool_choice")
    demanded = isinstance(choice, dict) or choice == "required"
    if names and choice != "none" and (demanded or "use the tool" in said):
        named = [name for name in names if name in said]
        name = choice["function"]["name"] if isinstance(choice, dict) else (named or names)[0]
        found = _ARGUMENTS.search(said)
        return {"calls": [{"name": name, "arguments": found[0] if found else "{}"}]}
    if chat.get("response_format") or "json" in said:
        return {"content": '{"answer": "yes"}'}
    return {"content": "Hello from the model."}
