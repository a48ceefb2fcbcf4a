"""Reads event streams of real processes.

Lives here: frames, events, the text of a response, and their errors. Not here: the requests.

Invariant: a stream that breaks off raises `Cut`, and a wrong answer raises `Failed`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

DONE = b"[DONE]"
TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete", "response.cancelled"})


class Failed(Exception):
    """Raised for a wrong answer."""


class Cut(Exception):
    """Raised for an answer that broke off."""


async def frames(got: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The bytes after each `data:`, including `[DONE]`. Raises `Cut` if the stream breaks off."""
    try:
        while line := await got.content.readline():
            if line.startswith(b"data: "):
                yield line[6:].rstrip(b"\r\n")
    except (aiohttp.ClientError, OSError) as broken:
        raise Cut(f"a stream broke off: {broken}") from None


async def events(got: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any] | None]:
    """The events, and None for `[DONE]`. Raises `Cut` if the stream breaks off."""
    async for frame in frames(got):
        yield None if frame == DONE else json.loads(frame)


def output_text(response: dict[str, Any]) -> str:
    """The text of all messages of a response."""
    return "".join(
        part.get("text", "") for item in response["output"] if item["type"] == "message" for part in item["content"]
    )
