"""Gateways in front of real engines, one for each door, and what is asked through them.

Lives here: starting them, questions that more than one engine is asked. Not here: the engines (`conftest.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import yaml

from tests.support.gateway import Gateway, start_gateway
from tests.support.judge import parse_sse

KEY = "k"
ANSWER_SECONDS = 120
DOORS: dict[str, tuple[str, ...]] = {
    "http": ("--door", "http"),
    "relay": ("--mode", "relay"),
    "drive": ("--mode", "drive"),
}


@dataclass(frozen=True)
class Door:
    """A gateway, and the SDK's client for it."""

    name: str
    gateway: Gateway
    client: openai.AsyncOpenAI

    async def count(self, **fields: Any) -> int:
        """What `input_tokens` says of a request."""
        counted = await self.client.responses.input_tokens.with_raw_response.count(**fields)
        assert "antiphon-estimated" not in counted.headers
        return counted.parse().input_tokens

    async def stream(self, **fields: Any) -> list[dict[str, Any]]:
        """All events of a stream, as they are on the wire."""
        async with self.session() as session, session.post(self.url, json={"stream": True, **fields}) as answer:
            body = await answer.read()
            assert answer.status == 200, body
            return parse_sse(body)

    @property
    def url(self) -> str:
        return self.gateway.base_url + "/responses"

    def session(self) -> aiohttp.ClientSession:
        """HTTP of the same owner's as the SDK's client."""
        patience = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        return aiohttp.ClientSession(timeout=patience, headers={"authorization": f"Bearer {KEY}"})

    async def chain(self, turns: int, words: str, **fields: Any) -> tuple[list[int], list[int]]:
        """A conversation by `previous_response_id`: what each turn asked, and what of it the engine knew, in tokens.

        It begins as none before it did, so that the engine cannot take another one's beginning for it.
        """
        earlier: str | openai.Omit = openai.omit
        asked, known = [], []
        for turn in range(turns):
            said = f"{self.name} {fields['model']} {turn}: {words}"
            response = await self.client.responses.create(input=said, previous_response_id=earlier, **fields)
            assert response.usage is not None
            asked.append(response.usage.input_tokens)
            known.append(response.usage.input_tokens_details.cached_tokens)
            earlier = response.id
        return asked, known


class Doors:
    """A gateway for each door, started when it is asked for first."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._made: dict[str, Door] = {}

    async def get(self, name: str) -> Door:
        if name not in self._made:
            folder = self._folder / name
            folder.mkdir()
            settings = folder / "settings.yaml"
            settings.write_text(yaml.safe_dump(self._settings))
            gateway = await start_gateway(None, folder / "data", "--config", str(settings), *DOORS[name])
            # What each upstream is, the gateway finds out by itself; the tests begin when it has.
            for upstream in ("default", *self._settings.get("upstreams", {})):
                assert '"llamacpp"' in await gateway.log_line(f'"upstream":"{upstream}","profile"')
            client = openai.AsyncOpenAI(base_url=gateway.base_url, api_key=KEY, max_retries=0, timeout=ANSWER_SECONDS)
            self._made[name] = Door(name, gateway, client)
        return self._made[name]

    async def stop(self) -> None:
        for door in self._made.values():
            await door.client.close()
            status = await door.gateway.stop()
            assert status == 0, "\n".join(door.gateway.log[-30:])
