"""`scripts/bench tools`: what a round of a hosted tool adds to a response.

Lives here: responses whose scripted model calls a tool so many times, one after another, through both doors, beside a
client that makes the same requests itself. Not here: how fast search is (`search_speed.py`).

Invariant: a response counts only when it completed with as many calls as were scripted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.support.chat_server import Answer, ChatServer, Received, answer, chunk, event, json_answer, text_stream
from tests.support.gateway import Gateway, start_gateway
from tests.support.sandbox_trial import trial

_DOORS: dict[str, tuple[str, ...]] = {"Envoy": ("--door", "envoy"), "HTTP door": ("--door", "http")}
_ROUNDS = 4
_HEADERS = {"authorization": "Bearer bench"}
_TOOLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "web_search": ({"type": "web_search"}, {"query": "rain in Bonn"}),
    "code_interpreter": ({"type": "code_interpreter", "container": {"type": "auto"}}, {"code": "print(6 * 7)"}),
}
_FOUND = {
    "query": "rain",
    "infoboxes": [],
    "results": [{"url": f"https://{n}.example/", "title": str(n), "content": "It rains."} for n in range(8)],
}


def _model(request: Received) -> Answer:
    """Call the tool that is there until there are as many results as the user's message says."""
    messages = request.json["messages"]
    wanted = int(next(one["content"] for one in messages if one["role"] == "user"))
    if sum(one["role"] == "tool" for one in messages) >= wanted:
        return answer(parts=text_stream("It", " rains", "."))
    name = request.json["tools"][0]["function"]["name"]
    call = {
        "index": 0,
        "id": f"call_{len(messages)}",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(_TOOLS[name][1])},
    }
    parts = [event(chunk({"tool_calls": [call]})), event(chunk(finish_reason="tool_calls")), b"data: [DONE]\n\n"]
    return answer(parts=parts)


async def _response(session: aiohttp.ClientSession, gateway: Gateway, name: str, rounds: int) -> float:
    """Milliseconds of one response with so many calls."""
    asked = {"model": "demo-model", "input": str(rounds), "tools": [_TOOLS[name][0]], "stream": True, "store": False}
    begin = time.perf_counter()
    async with session.post(f"{gateway.base_url}/responses", json=asked, headers=_HEADERS) as given:
        body = await given.read()
    took = (time.perf_counter() - begin) * 1000
    last = json.loads(body.split(b"\n\n")[-3].partition(b"\ndata: ")[2])
    if last["type"] != "response.completed" or len(last["response"]["output"]) != rounds + 1:
        raise RuntimeError(f"{name}, {rounds} rounds: {last}")
    return took


async def _by_hand(session: aiohttp.ClientSession, chat: ChatServer, search: ChatServer) -> float:
    """Milliseconds of one round that a client makes itself: a turn of the model, and a search."""
    tool = {"type": "function", "function": {"name": "web_search"}}
    asked = {"model": "demo-model", "messages": [{"role": "user", "content": "1"}], "tools": [tool], "stream": True}
    begin = time.perf_counter()
    async with session.post(f"{chat.base_url}/chat/completions", json=asked) as turn:
        await turn.read()
    async with session.get(search.url("/search?q=rain&format=json")) as found:
        await found.json()
    return (time.perf_counter() - begin) * 1000


async def _measure(door: str, count: int, names: list[str], folder: Path) -> None:
    async with ChatServer() as chat, ChatServer() as search, aiohttp.ClientSession() as session:
        plain = chat.default
        chat.default = lambda asked: _model(asked) if asked.path.endswith("/chat/completions") else plain(asked)
        search.default = lambda _: json_answer(_FOUND)
        settings = folder / f"{door}.yaml"
        settings.write_text(
            yaml.safe_dump(
                {
                    "web_search": {"provider": "searxng", "url": search.url("").rstrip("/")},
                    "fetch": {"allow_private": ["127.0.0.1"]},
                    "code_interpreter": {"sandbox": "local" if "code_interpreter" in names else "none"},
                }
            )
        )
        gateway = await start_gateway(chat.base_url, folder / door, "--config", str(settings), *_DOORS[door])
        try:
            took: dict[tuple[str, int], list[float]] = {}
            hand: list[float] = []
            for number in range(count + 3):
                hand.append(await _by_hand(session, chat, search))
                for name in names:
                    for rounds in (0, 1, _ROUNDS):
                        one = await _response(session, gateway, name, rounds)
                        if number >= 3:
                            took.setdefault((name, rounds), []).append(one)
                chat.requests.clear()
                search.requests.clear()
        finally:
            await gateway.stop()
    floor = statistics.median(hand[3:])
    for name in names:
        none, one, several = (statistics.median(took[name, rounds]) for rounds in (0, 1, _ROUNDS))
        more = (several - one) / (_ROUNDS - 1)
        print(f"| {door} | {name} | {none:.1f} | {one - none:.1f} | {more:.1f} | {floor:.1f} | {more / floor:.1f} |")


def main() -> int:
    """Measure and print a table; the exit status is 0."""
    parser = argparse.ArgumentParser(prog="scripts/bench tools", description="What a round of a hosted tool adds.")
    parser.add_argument("--count", type=int, default=60, help="responses of each kind (default 60)")
    given = parser.parse_args()
    why = trial().reason
    names = [name for name in _TOOLS if name != "code_interpreter" or not why]
    if why:
        print(f"code_interpreter: {why}")
    print("| door | tool | no round, ms | first round adds | each later adds | floor: by hand | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="ap-", dir="/tmp") as folder:
        for door in _DOORS:
            asyncio.run(_measure(door, given.count, names, Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
