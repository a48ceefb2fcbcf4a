"""Sends the requests that the check of the console looks for, as two owners, and keeps what it made.

Lives here: the requests and the stored objects of each owner. Not here: the browser (`browser.py`), the checks
(`run.py`).
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from antiphon.engine.ports.journal import Entry

HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
HOSTILE_LINK = "[click](javascript:document.title='hacked') ![x](http://127.0.0.1:9/pixel.png)"


@dataclass
class Made:
    """The objects of one owner. `mark` stands in each text that the owner sent."""

    owner: str
    key: str
    mark: str
    responses: list[str] = field(default_factory=list)
    conversation: str = ""
    prompt: str = ""
    file: str = ""
    store: str = ""
    background: str = ""
    failed: dict[str, str] = field(default_factory=dict)


def made_up(number: int) -> Entry:
    """One of many rows of the journal, about a request that was never sent."""
    failed = number % 9 == 0
    return Entry(
        id=f"req_{number:032x}",
        owner=f"n:owner{number % 40}",
        team="lab",
        door="relay",
        model=("qwen3", "llama3", "gpt-oss")[number % 3],
        upstream="default",
        response_id=f"resp_{number:048x}",
        outcome="failed" if failed else "completed",
        fault="upstream" if failed else "",
        code="upstream_cut" if failed else "",
        status=200,
        seconds=1.5,
        first=0.2,
        calls=1,
        input_tokens=1200,
        cached_tokens=600,
        output_tokens=80,
        cost=120,
        age=60.0 + number,
    )


class Client:
    """A client of the gateway with one key."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, key: str) -> None:
        self._session = session
        self._base_url = base_url
        self._headers = {"authorization": f"Bearer {key}"}

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the JSON of an answer."""
        async with self._session.request(method, self._base_url + path, json=body, headers=self._headers) as got:
            text = await got.text()
        try:
            return got.status, json.loads(text)
        except ValueError:
            return got.status, text

    async def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Create a response. Returns its object."""
        status, found = await self.ask("POST", "/responses", {"model": "demo", **body})
        assert status == 200, found
        made: dict[str, Any] = found
        return made

    async def stream(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a streamed response, up to a cut."""
        events = []
        url = self._base_url + "/responses"
        sent = {"model": "demo", "stream": True, **body}
        # Envoy resets the client's stream when the upstream cuts its answer in relay.
        with suppress(aiohttp.ClientPayloadError):
            async with self._session.post(url, json=sent, headers=self._headers) as got:
                async for line in got.content:
                    if line.startswith(b"data: {"):
                        events.append(json.loads(line[6:]))
        return events

    async def upload(self, name: str, data: bytes) -> str:
        """Upload a file. Returns its id."""
        form = aiohttp.FormData(quote_fields=False)
        form.add_field("purpose", "assistants")
        form.add_field("file", data, filename=name, content_type="text/plain")
        async with self._session.post(self._base_url + "/files", data=form, headers=self._headers) as got:
            found = await got.json()
        assert got.status == 200, found
        return str(found["id"])


async def make(client: Client, owner: str, key: str, mark: str) -> Made:
    """Send the requests of one owner. Returns what they made."""
    made = Made(owner, key, mark)
    first = await client.create({"input": f"{mark} hello {HOSTILE} {HOSTILE_LINK}"})
    second = await client.create({"input": f"{mark} and then", "previous_response_id": first["id"]})
    branch = await client.create({"input": f"{mark} another way", "previous_response_id": first["id"]})
    made.responses = [first["id"], second["id"], branch["id"]]
    events = await client.stream({"input": f"{mark} count to 20", "instructions": f"{mark} be brief"})
    made.responses.append(events[-1]["response"]["id"])
    tools = [
        {
            "type": "function",
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        }
    ]
    called = await client.create({"input": f"{mark} weather in Oslo", "tools": tools})
    made.responses.append(called["id"])
    await client.create({"input": f"{mark} unstored", "store": False})
    _, conversation = await client.ask("POST", "/conversations", {"metadata": {"topic": mark}})
    made.conversation = conversation["id"]
    await client.create({"input": f"{mark} in a conversation", "conversation": made.conversation})
    greeting = {"name": f"{mark} greeting", "instructions": f"{mark} Greet {{{{name}}}}."}
    status, prompt = await client.ask("POST", "/prompts", greeting)
    assert status == 200, prompt
    made.prompt = prompt["id"]
    await client.ask(
        "POST", f"/prompts/{made.prompt}", {"instructions": f"{mark} Greet {{{{name}}}} in {{{{language}}}}."}
    )
    made.file = await client.upload(
        f"{mark} <img src=x onerror=alert(1)>.txt", f"{mark} The harbour of Oslo is deep.".encode()
    )
    _, store = await client.ask("POST", "/vector_stores", {"name": f"{mark} notes", "file_ids": [made.file]})
    made.store = store["id"]
    queued = await client.create({"input": f"{mark} count to 60", "background": True})
    made.background = queued["id"]
    await fail(client, made)
    return made


async def search_files(client: Client) -> tuple[str, str]:
    """Make a thread for the pictures: a streamed response that searches a vector store, and its continuation. Returns
    the ids of both."""
    file = await client.upload("harbour.md", b"# Harbour\n\nThe harbour of Oslo is 12 metres deep at the pier.")
    _, store = await client.ask("POST", "/vector_stores", {"name": "harbour", "file_ids": [file]})
    for _ in range(50):
        _, store = await client.ask("GET", f"/vector_stores/{store['id']}")
        if store["status"] == "completed":
            break
        await asyncio.sleep(0.1)
    tools = [
        {"type": "file_search", "vector_store_ids": [store["id"]]},
        {"type": "function", "name": "book_berth", "parameters": {"type": "object", "properties": {}}},
    ]
    events = await client.stream(
        {
            "instructions": "You answer questions about the harbour.",
            "input": "Search my files: how deep is the harbour of Oslo?",
            "tools": tools,
            "service_tier": "auto",
        }
    )
    first = str(events[-1]["response"]["id"])
    then = await client.create({"input": "Thank you. May two ships enter at once?", "previous_response_id": first})
    await client.create({"input": "And where do I moor?", "previous_response_id": first})
    return first, str(then["id"])


async def fail(client: Client, made: Made) -> None:
    """Send requests that fail in different ways. `made.failed` names the cause of each by its text."""
    failing = {"upstream error": "fail", "rate limit": "fail with error 429", "cut stream": "break"}
    for cause, text in failing.items():
        await client.stream({"input": f"{made.mark} {text}"})
        made.failed[cause] = f"{made.mark} {text}"
    for cause, body in (
        ("unknown model", {"model": "no-such-model", "input": made.mark}),
        ("missing predecessor", {"input": made.mark, "previous_response_id": "resp_" + "0" * 48}),
        ("wrong parameter", {"input": made.mark, "temperature": 9}),
    ):
        status, _ = await client.ask("POST", "/responses", {"model": "demo", **body})
        assert status >= 400, cause
        made.failed[cause] = made.mark


async def keep_streaming(client: Client, mark: str, streams: int) -> None:
    """Keep some streams of many chunks open until the caller cancels this task."""

    async def one() -> None:
        while True:
            await client.stream({"input": f"{mark} count to 400"})

    await asyncio.gather(*[one() for _ in range(streams)])
