"""Reads the recorded answers of real chat servers, and splits them into chunks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from antiphon.recordings.format import entry_of

_ROOT = Path(__file__).parent.parent / "recordings"


@dataclass(frozen=True)
class Recording:
    """One recorded HTTP exchange. `name` is its path without `.json`, and `reads` has the lengths of the original
    network reads."""

    name: str
    status: int
    content_type: str
    stream: bool
    body: bytes
    request: dict[str, Any]
    model: str
    provider: str
    reads: tuple[int, ...] = ()


@cache
def all_recordings() -> tuple[Recording, ...]:
    """Every chat recording, by name."""
    return recordings_in(_ROOT)


def recordings_in(folder: Path) -> tuple[Recording, ...]:
    """The chat recordings below a folder, by name."""
    found = []
    for path in sorted((folder / "chat").rglob("*.json")):
        data = json.loads(path.read_text())
        entry = entry_of(data)
        found.append(
            Recording(
                name=str(path.relative_to(folder / "chat"))[:-5],
                status=entry.status,
                content_type=data.get("content_type") or "",
                stream=bool(data.get("stream")),
                body=entry.body,
                request=data.get("request") or {},
                model=data.get("model") or "m",
                provider=data["provider"],
                reads=tuple(data.get("net_chunks") or ()),
            )
        )
    return tuple(found)


def cut(body: bytes, how: str, reads: tuple[int, ...] = ()) -> Iterator[bytes]:
    """The body split as `how` says: `whole`, `bytes` (single bytes), `network` (as it was read), or at random positions
    from a fixed seed."""
    if how == "whole":
        yield body
    elif how == "network":
        position = 0
        for size in reads:
            yield body[position : position + size]
            position += size
        yield body[position:]
    elif how == "bytes":
        for position in range(len(body)):
            yield body[position : position + 1]
    else:
        dice = random.Random(f"{how}{len(body)}")
        position = 0
        while position < len(body):
            size = dice.choice((1, 2, 3, 7, 50, 400, 3000))
            yield body[position : position + size]
            position += size
