"""What `antiphon admin usage` says is what the upstream has counted itself, however it is asked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from tests.support.chat_server import (
    DONE_EVENT,
    Answer,
    ChatServer,
    Received,
    WaitGone,
    answer,
    chunk,
    completion,
    event,
    json_answer,
)
from tests.support.gateway import Gateway, post, start_gateway
from tests.support.state import state_environ

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 90.0
ARGUMENTS = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}
SEARCH = {"type": "web_search"}
LONG = {
    "input": [{"role": "user", "content": "word " * 1000}, {"role": "user", "content": "Go on."}],
    "context_management": [{"type": "compaction", "compact_threshold": 1000}],
}
PRICES = [
    {"model": "streamed", "input": 2, "output": 8, "cached_input": 1},
    {"model": "*", "input": 0.5, "output": 1},
]
COUNTED = ("calls", "input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


class CountingServer(ChatServer):
    """A chat server that keeps its own books: what it has told of each call, by model. No two calls take the same."""

    def __init__(self) -> None:
        super().__init__()
        self.books: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(COUNTED, 0))
        self.default = self._answer
        self._number = 0

    def note(self, model: str) -> dict[str, Any]:
        """One call more; what is told of it."""
        self._number += 1
        n = self._number
        book = self.books[model]
        taken = (1, 1000 + 7 * n, 10 + n, 100 + 3 * n, n)
        for name, count in zip(COUNTED, taken, strict=True):
            book[name] += count
        _, asked, cached, made, reasoned = taken
        return {
            "prompt_tokens": asked,
            "completion_tokens": made,
            "total_tokens": asked + made,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": reasoned},
        }

    def _answer(self, request: Received) -> Answer:
        if request.method == "GET":
            return json_answer({"object": "list", "data": []})
        asked = request.json
        model = asked["model"]
        if request.path.endswith("/responses"):
            return self._native(asked)
        if model.startswith("tools") and asked["messages"][-1]["role"] != "tool":
            return self._search(asked)
        usage = self.note(model)
        if not asked.get("stream"):
            return json_answer({**completion(), "usage": usage})
        events = [event("Hel"), event("lo"), event(chunk(finish_reason="stop"))]
        return answer(parts=[*events, event(chunk(choices=[], usage=usage)), DONE_EVENT])

    def _native(self, asked: dict[str, Any]) -> Answer:
        told = self.note(asked["model"])
        usage = {
            "input_tokens": told["prompt_tokens"],
            "input_tokens_details": told["prompt_tokens_details"],
            "output_tokens": told["completion_tokens"],
            "output_tokens_details": told["completion_tokens_details"],
            "total_tokens": told["total_tokens"],
        }
        response = {"object": "response", "id": "resp_theirs", "output": [], "usage": usage}
        if not asked.get("stream"):
            return json_answer(response)
        return answer(parts=[event({"type": "response.completed", "response": response})])

    def _search(self, asked: dict[str, Any]) -> Answer:
        usage = self.note(asked["model"])
        function = {"name": "web_search", "arguments": json.dumps({"query": "rain"})}
        call = {"index": 0, "id": f"call_{self._number}", "type": "function", "function": function}
        if not asked.get("stream"):
            return json_answer({**completion("", tool_calls=[call]), "usage": usage})
        events = [event(chunk({"tool_calls": [call]})), event(chunk(finish_reason="tool_calls"))]
        return answer(parts=[*events, event(chunk(choices=[], usage=usage)), DONE_EVENT])

    def breaks(self, end: list[Any], *, counts: bool) -> Callable[[Received], Answer]:
        """Words, then this end; with `counts` each chunk tells what the call has taken so far."""

        def made(request: Received) -> Answer:
            if not counts:
                return answer(parts=[event("a"), event("b"), *end])
            first = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
            told = {"usage": self.note(request.json["model"])}
            parts = [event(chunk({"content": "a"}, usage=first)), event(chunk({"content": "b"}, **told))]
            return answer(parts=[*parts, *end])

        return made


@asynccontextmanager
async def _opened(folder: Path, door: str) -> AsyncIterator[tuple[Gateway, CountingServer]]:
    async with CountingServer() as chat, ChatServer() as search:
        search.default = lambda _: json_answer({"query": "x", "results": [], "infoboxes": []})
        config = folder / "settings.yaml"
        settings = {
            "prices": PRICES,
            "models": [{"match": "native", "mode": "native"}],
            "web_search": {"provider": "searxng", "url": search.url("").rstrip("/")},
            "fetch": {"allow_private": ["127.0.0.1"]},
        }
        config.write_text(yaml.safe_dump(settings))
        gateway = await start_gateway(
            chat.base_url, folder / "data", "--config", str(config), *ARGUMENTS[door], environ=ENVIRON
        )
        yield gateway, chat


ENVIRON = {"ANTIPHON_TIMEOUTS__DRAIN": "10", "ANTIPHON_UPSTREAM__AUTH": "none"}


async def _sums(gateway: Gateway, *by: str) -> dict[str, dict[str, Any]]:
    """What the command prints, by model."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "antiphon", "admin", "usage", "--json", "--data", str(gateway.data), *by),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **(await state_environ(gateway.data))},
    )
    async with asyncio.timeout(SECONDS):
        out, _ = await process.communicate()
    assert process.returncode == 0
    return {line["model"]: line for line in map(json.loads, out.decode().splitlines())}


async def _get(gateway: Gateway, response_id: str) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{gateway.base_url}/responses/{response_id}") as got,
    ):
        found: dict[str, Any] = await got.json()
        return found


async def _ended(gateway: Gateway, response_id: str) -> dict[str, Any]:
    async with asyncio.timeout(SECONDS):
        while (found := await _get(gateway, response_id))["status"] in ("queued", "in_progress"):
            await asyncio.sleep(0.05)
    return found


async def _leave(gateway: Gateway, model: str) -> None:
    """A client that leaves when it has seen the second word."""
    body = {"model": model, "input": "hi", "stream": True}
    async with aiohttp.ClientSession() as session, session.post(gateway.base_url + "/responses", json=body) as got:
        await got.content.readuntil(b'"delta":"b"')


async def _socket(gateway: Gateway, model: str) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(gateway.base_url + "/responses") as socket:
        for store in (True, False):
            asked = {"type": "response.create", "model": model, "input": "hi", "store": store}
            await socket.send_str(json.dumps(asked))
            async with asyncio.timeout(SECONDS):
                while json.loads((await socket.receive()).data)["type"] != "response.completed":
                    pass


def _used(usage: dict[str, Any]) -> tuple[int, int, int, int]:
    details = usage["input_tokens_details"], usage["output_tokens_details"]
    return (
        usage["input_tokens"],
        details[0]["cached_tokens"],
        usage["output_tokens"],
        details[1]["reasoning_tokens"],
    )


@pytest.mark.parametrize("door", ARGUMENTS)
async def test_the_sums_are_the_upstreams_own(door: str, folder: Path) -> None:
    """Its clients leave, its streams break, tools and summaries take several calls. What is noted when the process
    drains is written."""
    async with _opened(folder, door) as (gateway, chat):
        url = gateway.base_url + "/responses"

        async def ask(model: str, **more: Any) -> bytes:
            return (await post(url, {"model": model, "input": "hi", **more})).body

        async def id_of(model: str, **more: Any) -> str:
            return str(json.loads(await ask(model, **more))["id"])

        for store in (True, False):
            await ask("streamed", stream=True, store=store)
            await ask("whole", store=store)
            await ask("native", stream=store)
            await ask("tools", stream=store, tools=[SEARCH], store=store)
            await ask("compacted", **LONG, stream=store, store=store)
        await post(url + "/compact", {"model": "compact-path", "input": "hi"})
        await _socket(gateway, "socket")
        kept = {"stored": await id_of("stored"), "tools-stored": await id_of("tools-stored", tools=[SEARCH])}
        kept["queued"] = await id_of("queued", background=True)
        await _ended(gateway, kept["queued"])

        failing = event({"error": {"message": "out of memory", "code": 500}})
        for counts, model in ((True, "failed"), (False, "failed-uncounted")):
            chat.script(chat.breaks([failing], counts=counts))
            said = await ask(model, stream=True)
            kept[model] = said.partition(b'"id":"')[2].partition(b'"')[0].decode()
        chat.script(json_answer({"error": {"message": "no"}}, 500))
        await ask("refused")
        for counts, model in ((True, "left"), (False, "left-uncounted")):
            chat.script(chat.breaks([WaitGone()], counts=counts))
            await _leave(gateway, model)
            await _gone(chat)
        chat.script(chat.breaks([WaitGone()], counts=True))
        kept["cancelled"] = await _begun(gateway, "cancelled")
        assert (await post(f"{url}/{kept['cancelled']}/cancel", {})).status == 200
        await _gone(chat)
        usages = {model: (await _get(gateway, response_id))["usage"] for model, response_id in kept.items()}
        assert await gateway.stop() == 0, "\n".join(gateway.log[-30:])
        sums = await _sums(gateway)

    for model, book in chat.books.items():
        assert {name: sums[model][name] for name in COUNTED} == book, model
        assert sums[model]["estimated_calls"] == 0
    streamed, whole = sums["streamed"], sums["whole"]
    uncached = streamed["input_tokens"] - streamed["cached_tokens"]
    assert streamed["cost"] == (uncached * 2 + streamed["cached_tokens"] + streamed["output_tokens"] * 8) / 1e6
    assert whole["cost"] == pytest.approx((whole["input_tokens"] / 2 + whole["output_tokens"]) / 1e6, abs=1e-6)
    for model in ("failed-uncounted", "left-uncounted"):
        one = sums[model]
        assert (one["calls"], one["input_tokens"], one["output_tokens"]) == (0, 0, 0)
        assert one["estimated_calls"] == 1 and one["estimated_input_tokens"] > 0
    assert "refused" not in sums
    assert sums.keys() == chat.books.keys() | {"failed-uncounted", "left-uncounted"}
    for model, usage in usages.items():
        if model in chat.books and usage is not None:
            assert _used(usage) == tuple(chat.books[model][name] for name in COUNTED[1:]), model
    # What was cancelled in the background ended there and then: nobody knew yet what it had taken.
    assert [model for model, usage in usages.items() if usage is None] == ["failed-uncounted", "cancelled"]


async def _gone(chat: ChatServer) -> None:
    async with asyncio.timeout(SECONDS):
        await chat.requests[-1].gone.wait()


async def _begun(gateway: Gateway, model: str) -> str:
    """Begin a background response, and leave it when it has its second word; its id."""
    asked = {"model": model, "input": "hi", "background": True, "stream": True}
    async with (
        aiohttp.ClientSession() as session,
        asyncio.timeout(SECONDS),
        session.post(gateway.base_url + "/responses", json=asked) as got,
    ):
        said = await got.content.readuntil(b'"delta":"b"')
    assert b'"delta":"b"' in said
    return said.partition(b'"id":"')[2].partition(b'"')[0].decode()


async def test_a_killed_worker_loses_no_more_than_its_last_second(folder: Path) -> None:
    """Sums are whole or not there; those that were written stay, and nothing is there twice."""
    async with _opened(folder, "http") as (gateway, chat):
        url = gateway.base_url + "/responses"
        for _ in range(5):
            await post(url, {"model": "m", "input": "hi"})
        early = dict(chat.books["m"])
        async with asyncio.timeout(SECONDS):
            while not (found := await _sums(gateway)) or found["m"]["calls"] < 5:
                await asyncio.sleep(0.1)
        assert {name: found["m"][name] for name in COUNTED} == early
        await post(url, {"model": "m", "input": "hi"})
        late = dict(chat.books["m"])
        parent = gateway.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        (worker,) = [pid for pid, command in commands.items() if b"-m\0antiphon" in command and b"guard" not in command]
        os.kill(worker, signal.SIGKILL)
        await gateway.log_line("process_ended")
        found = await _sums(gateway)
        assert {name: found["m"][name] for name in COUNTED} in (early, late)
        await gateway.stop()
