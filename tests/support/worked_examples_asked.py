"""Runs a gateway from a changed copy of the package, sends it requests, and prints the answers as JSON.

Lives here: the requests of each section of docs/contributing/worked-examples.md. Not here: making the copy
(`worked_examples.py`).
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp

import antiphon
from antiphon.app.build import App, build
from antiphon.config.settings import load_settings
from antiphon.doors.http.server import HttpDoor
from antiphon.translation.profiles import PROFILES, choose_profile, named_by_list
from tests.support.chat_server import (
    ChatServer,
    WaitGone,
    answer,
    chunk,
    completion,
    event,
    json_answer,
    text_stream,
)

CALL = {"id": "c1", "index": 0, "type": "function", "function": {"name": "clock__now", "arguments": "{}"}}


async def _field(ask: Any, chat: ChatServer, _app: App) -> dict[str, Any]:
    chat.script(json_answer(completion("Shwmae")), json_answer(completion("Hi")))
    given: tuple[dict[str, object], ...] = ({"answer_language": "Welsh"}, {}, {"answer_language": 5})
    return {"answers": [await ask("POST", "/responses", {"model": "m", "input": "Hi", **more}) for more in given]}


async def _list(ask: Any, chat: ChatServer, _app: App) -> dict[str, Any]:
    for name in ("Greeting", "Farewell"):
        await ask("POST", "/prompts", {"name": name, "instructions": "Be kind."})

    async def names(query: str) -> list[str]:
        return [one["name"] for one in (await ask("GET", f"/prompts{query}"))["data"]]

    found = {"names": "?name=Greeting", "all": "", "none": "?name=Greet"}
    return {key: sorted(await names(query)) for key, query in found.items()}


async def _tool(ask: Any, chat: ChatServer, _app: App) -> dict[str, Any]:
    calls = answer(parts=[event(chunk({"tool_calls": [CALL]})), *text_stream(finish="tool_calls")])
    chat.script(calls, answer(parts=text_stream("It is late.")))
    body = {"model": "m", "input": "What time is it?", "tools": [{"type": "clock"}], "stream": True}
    return {"answers": [await ask("POST", "/responses", body)]}


async def _profile(ask: Any, chat: ChatServer, _app: App) -> dict[str, Any]:
    chat.script(answer(parts=text_stream("Hi")))
    await ask("POST", "/responses", {"model": "m", "input": "Hi", "max_output_tokens": 50, "stream": True})
    listed = {"data": [{"id": "m", "owned_by": "acme-labs"}]}
    return {"host": choose_profile("auto", "api.acme.example").name, "listed": named_by_list(listed, "")}


async def _door(ask: Any, chat: ChatServer, app: App) -> dict[str, Any]:
    # Only the changed copy of the package has this module.
    lines = importlib.import_module("antiphon.doors.lines")
    chat.script(
        json_answer(completion("Hi")),
        answer(parts=text_stream("Hi")),
        answer(parts=[event("Hi"), WaitGone()]),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/door"
        server = await lines.LineDoor(app.context, "single").start(path)

        async def opened(**fields: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(json.dumps({"model": "m", "input": "Hi", **fields}).encode() + b"\n")
            return reader, writer

        async def answered(**fields: object) -> bytes:
            reader, writer = await opened(**fields)
            with closing(writer):
                return await reader.read()

        whole, refused = json.loads(await answered()), json.loads(await answered(model=5))
        events = [line for line in (await answered(stream=True)).decode().splitlines() if line.startswith("event: ")]
        reader, writer = await opened(stream=True)
        await reader.readuntil(b"output_text.delta")
        writer.transport.abort()
        left: list[str] = []
        while len(left) < 3 or "in_progress" in left:
            left = [one["status"] for one in (await ask("GET", "/responses"))["data"]]
        server.close()
    return {"whole": whole, "refused": refused, "stream": events[-1], "left": left[0]}


SECTIONS = {
    "A request field": _field,
    "A list operation of a store": _list,
    "A hosted tool": _tool,
    "An upstream profile": _profile,
    "A door": _door,
}


async def main(section: str, data: str, state: str) -> dict[str, Any]:
    """Run the gateway, and send it the requests of a section."""
    async with ChatServer() as chat, aiohttp.ClientSession() as session:
        upstream = {"url": chat.base_url, "profile": "acme" if "acme" in PROFILES else "generic"}
        given: dict[str, Any] = {"data": Path(data), "upstream": upstream, "owner": {"source": "single"}}
        if state:
            given |= {"state": {"url": state}, "sealing": {"keys": ["a key of the worked examples"]}}
        app = await build(load_settings(given), door="http")
        door = HttpDoor(app.context)
        url = f"http://{await door.start('127.0.0.1:0')}/v1"

        async def ask(method: str, path: str, body: object = None) -> Any:
            async with session.request(method, url + path, json=body) as got:
                text = await got.text()
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            return events[-1]["response"] if events else json.loads(text)

        try:
            found = await SECTIONS[section](ask, chat, app)
        finally:
            await door.aclose()
            await app.aclose()
        return {**found, "chat": [request.json for request in chat.requests]}


if __name__ == "__main__":
    assert Path(antiphon.__file__).parents[2] == Path(sys.argv[2]).parent, "the copy is not what was imported"
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
