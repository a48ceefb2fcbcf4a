"""Changes a gateway's settings repeatedly while clients send requests without a pause, and checks that no client
notices.

    scripts/lab reload [--door http|envoy] [--swaps 100] [--invalid 10] [--workers 3] [--clients 12]

Each change gives the model another name at its upstream, which the answers show. Each change also affects settings of
stores, tools, workers and Envoy. A stream continues after a change. Some settings files are invalid: broken YAML, a
wrong value, or a setting that needs a restart. The run fails if a request failed or broke off, if settings changed
during a request, or if a worker accepted invalid settings. The run also fails if a request on a new connection got old
settings. After a change the gateway closes a WebSocket between two turns, and its client connects again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from tests.support.chat_server import Answer, ChatServer, Received, Wait, answer, completion, json_answer, text_stream
from tests.support.gateway import Gateway, start_gateway
from tests.support.waiting import until

_LOOKS = 6
_WRONG = (
    "models: [",
    yaml.safe_dump({"limits": {"tools": "many"}}),
    yaml.safe_dump({"strict": True, "reload": {"watch": True}}),
    yaml.safe_dump({"no_such_setting": 1}),
)


@dataclass
class Counts:
    """Counts of requests by kind."""

    json: int = 0
    streams: int = 0
    across: int = 0
    """The number of streams that were open during a change of the settings."""
    turns: int = 0
    looks: int = 0
    failures: list[str] = field(default_factory=list)


class Run:
    """One gateway, its clients, and the task that changes its settings. `number` is that of the latest change."""

    def __init__(self, chat: ChatServer, gateway: Gateway, file: Path, workers: int) -> None:
        self.chat, self.gateway, self.file, self.workers = chat, gateway, file, workers
        self.counts = Counts()
        self.number = 0
        self.swapped = asyncio.Event()
        self.over = False
        chat.default = self._answer

    def _answer(self, request: Received) -> Answer:
        if request.method == "GET":
            return json_answer({"object": "list", "data": []})
        model = request.json["model"]
        if not request.json.get("stream"):
            return json_answer(completion(model))
        first, *rest = text_stream(model, ".")
        # The stream continues after the settings changed, with the settings with which it began.
        goes_on = self.over or int(model[1:]) < self.number
        return answer(parts=[first, *rest[:1], *([] if goes_on else [Wait(self.swapped)]), *rest[1:]])

    def write(self, number: int) -> None:
        settings = {
            "upstream": {"url": self.chat.base_url, "profile": "generic", "auth": "none"},
            "models": [{"match": "m", "model": f"n{number}"}],
            "reload": {"watch": False},
            "limits": {"tools": 100 + number},
            "files": {"max_bytes": (1 << 20) + number},
            "tools": {"concurrent": 10 + number},
            "timeouts": {"send": 600 + number},
            "envoy": {"retries": number % 3},
            "workers": self.workers - number % 2,
        }
        self.put(yaml.safe_dump(settings))

    def put(self, text: str) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(text)
        new.replace(self.file)

    def failed(self, what: str) -> None:
        self.counts.failures.append(f"after {self.number} swaps: {what}")

    async def ask(self, session: aiohttp.ClientSession, *, stream: bool) -> str:
        """Send a request. Returns the model's upstream name from the answer, or an empty string if the request
        failed."""
        body = {"model": "m", "input": "hi", "stream": stream}
        try:
            async with session.post(f"{self.gateway.base_url}/responses", json=body) as got:
                text = (await got.read()).decode()
            if got.status != 200 or (stream and "event: response.completed" not in text):
                self.failed(f"{got.status} {text[-300:]}")
                return ""
        except (aiohttp.ClientError, TimeoutError) as error:
            self.failed(repr(error))
            return ""
        found = re.search(r'"(?:delta|text)":\s*"(n\d+)', text)
        if found is None:
            self.failed(f"no name in {text[-300:]}")
            return ""
        return found[1]

    async def client(self, *, stream: bool) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as session:
            while not self.over:
                began = self.number
                name = await self.ask(session, stream=stream)
                if name and not self.served(began, name):
                    self.failed(f"a request that began with n{began} was served with {name}")
                if stream:
                    self.counts.streams += 1
                    self.counts.across += self.number > began
                else:
                    self.counts.json += 1

    async def socket(self) -> None:
        """Hold a WebSocket open all the time. Each turn gets the current settings, and a change closes the connection
        between two turns."""
        async with aiohttp.ClientSession() as session:
            while not self.over:
                try:
                    async with session.ws_connect(f"{self.gateway.base_url}/responses") as one:
                        await self.turns(one)
                except aiohttp.ClientError as error:
                    self.failed(f"a WebSocket: {error!r}")

    async def turns(self, one: aiohttp.ClientWebSocketResponse) -> None:
        while not self.over:
            began, text = self.number, ""
            try:
                await one.send_json({"type": "response.create", "model": "m", "input": "hi"})
            except ConnectionError:
                return
            while True:
                message = await one.receive(timeout=120)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    if text:
                        self.failed(f"a turn that began with n{began} was cut: {text}")
                    return
                event = message.json()
                text += event.get("delta", "")
                if event["type"] in ("response.completed", "response.failed", "error"):
                    break
            name = text.rstrip(".")
            if event["type"] != "response.completed" or not self.served(began, name):
                self.failed(f"a turn that began with n{began}: {event['type']} {name}")
            self.counts.turns += 1

    def served(self, began: int, name: str) -> bool:
        """Whether a request that began after `began` changes may get these settings. A request on an older connection
        may get the previous settings once."""
        return began - 1 <= int(name[1:]) <= self.number + 1

    def lines(self, event: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.gateway.log if f'"message":"{event}"' in line]

    async def tell(self, event: str) -> dict[str, Any]:
        """Make the parent read the settings file, and wait for the log line `event`. Returns its fields."""
        before = len(self.lines(event))
        self.gateway.process.send_signal(signal.SIGHUP)
        await until(lambda: len(self.lines(event)) > before, 60)
        return self.lines(event)[-1]

    async def swap(self) -> None:
        self.write(self.number + 1)
        line = await self.tell("settings_reloaded")
        self.number += 1
        if not {"models", "limits.tools", "files.max_bytes", "timeouts.send", "workers"} <= set(line["changed"]):
            self.failed(f"{line}")
        gate, self.swapped = self.swapped, asyncio.Event()
        gate.set()
        await self.look()

    async def refuse(self, text: str) -> None:
        self.put(text)
        line = await self.tell("settings_refused")
        if not line["problem"]:
            self.failed("refused without a word")
        await self.look()

    async def look(self) -> None:
        """Open new connections, which may reach any worker. Each must see exactly these settings."""
        for _ in range(_LOOKS):
            async with aiohttp.ClientSession() as session:
                name = await self.ask(session, stream=False)
                async with session.get(f"{self.gateway.base_url}/antiphon/capabilities") as got:
                    tools = (await got.json())["limits"]["tools"]
            self.counts.looks += 1
            if tools != 100 + self.number:
                self.failed(f"a new request saw {tools} tools")
            if name and name != f"n{self.number}":
                self.failed(f"a new request was served with {name}")


async def run(door: str, swaps: int, invalid: int, workers: int, clients: int) -> bool:
    with tempfile.TemporaryDirectory(prefix="reload") as folder:
        async with ChatServer() as chat:
            file = Path(folder) / "antiphon.yaml"
            first = Run(chat, Gateway("", Path(folder), None), file, workers)  # type: ignore[arg-type]
            first.write(0)
            more = ("--config", str(file), "--door", door)
            gateway = await start_gateway(None, Path(folder) / "data", *more)
            one = Run(chat, gateway, file, workers)
            began = time.monotonic()
            tasks = [asyncio.ensure_future(one.client(stream=bool(number % 2))) for number in range(clients)]
            tasks.append(asyncio.ensure_future(one.socket()))
            every = max(1, swaps // max(1, invalid))
            refused = 0
            for number in range(swaps):
                if number % every == every - 1 and refused < invalid:
                    await one.refuse(_WRONG[refused % len(_WRONG)])
                    refused += 1
                else:
                    await one.swap()
            one.over = True
            one.swapped.set()
            await asyncio.gather(*tasks)
            seconds = time.monotonic() - began
            status = await gateway.stop()
            ended = sum('"message":"process_ended"' in line for line in gateway.log)
            counts = one.counts
            asked = counts.json + counts.streams + counts.turns + counts.looks
            print(
                f"{door}: {workers} workers, {swaps} changes in {seconds:.0f} s, {refused} of them wrong and refused; "
                f"{asked} requests ({counts.streams} streams, {counts.across} of them open during a swap; "
                f"{counts.turns} turns of a WebSocket), {len(counts.failures)} failed, {ended} processes ended, "
                f"exit status {status}"
            )
            for failure in counts.failures[:10]:
                print(f"  {failure}")
            return not counts.failures and not status and not ended


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--door", choices=("http", "envoy"), action="append")
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--invalid", type=int, default=10)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--clients", type=int, default=12)
    given = parser.parse_args()
    well = [
        asyncio.run(run(door, given.swaps, given.invalid, given.workers, given.clients))
        for door in given.door or ("http", "envoy")
    ]
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
