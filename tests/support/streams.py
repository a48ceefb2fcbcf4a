"""Event streams as clients of real processes read them.

Lives here: frames, events, the text of a response, and what can go wrong with them. Not here: who asks for what.

Invariant: a stream that breaks off is told apart (`Cut`) from an answer that is not what it must be (`Failed`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

DONE = b"[DONE]"
TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete", "response.cancelled"})


class Failed(Exception):
    """A request was not answered as it must be."""


class Cut(Exception):
    """An answer broke off."""


async def frames(got: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """What stands behind each `data:`, byte for byte, `[DONE]` too. Raises `Cut` for a stream that breaks off."""
    try:
        while line := await got.content.readline():
            if line.startswith(b"data: "):
                yield line[6:].rstrip(b"\r\n")
    except (aiohttp.ClientError, OSError) as broken:
        raise Cut(f"a stream broke off: {broken}") from None


async def events(got: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any] | None]:
    """The events, and None for `[DONE]`. Raises `Cut` for a stream that breaks off."""
    async for frame in frames(got):
        yield None if frame == DONE else json.loads(frame)


def output_text(response: dict[str, Any]) -> str:
    """All text of a response's messages."""
    return "".join(
        part.get("text", "") for item in response["output"] if item["type"] == "message" for part in item["content"]
    )
