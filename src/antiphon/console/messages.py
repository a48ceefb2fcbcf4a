"""Turns items of the Responses API into messages for reading, and weighs what fills a context window.

Lives here: the readable form of each kind of item, and the estimate of tokens by kind. Not here: HTML (templates), the
counts of the upstream (`Entry.input_tokens`).

Invariants: an item of an unknown kind stays visible as JSON. The time to render a page has a bound, whatever its items
hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

Look = Literal["markdown", "text", "json"]
_BYTES_PER_TOKEN: Final = 4
_MARKDOWN: Final = 60_000
_JSON: Final = 20_000
KINDS: Final = ("instructions", "tools", "user", "assistant", "reasoning", "tool calls", "tool results", "compaction")


class Piece(msgspec.Struct, frozen=True):
    """A part of a message. `look` tells how a page shows the text."""

    text: str
    look: Look


class Message(msgspec.Struct, frozen=True):
    """One item for reading. `folded`: a page shows it closed. `kind` is one of `KINDS`."""

    kind: str
    title: str
    pieces: tuple[Piece, ...]
    folded: bool = False
    id: str = ""


def read_items(items: Iterable[Mapping[str, Any]]) -> list[Message]:
    """The messages of these items, in order."""
    return [_read(item) for item in items if isinstance(item, Mapping)]


def within_budget(messages: Iterable[Message]) -> list[Message]:
    """The messages, of which at most 60,000 characters are rendered as Markdown. Long JSON is shown as it is."""
    left = _MARKDOWN
    kept = []
    for message in messages:
        pieces = []
        for piece in message.pieces:
            size = len(piece.text)
            if piece.look == "markdown":
                left -= size
            plain = left < 0 if piece.look == "markdown" else piece.look == "json" and size > _JSON
            pieces.append(Piece(piece.text, "text") if plain else piece)
        kept.append(msgspec.structs.replace(message, pieces=tuple(pieces)))
    return kept


def weigh(messages: Sequence[Message], more: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The estimated tokens by kind. `more` has the response, whose instructions and tools also fill the window."""
    sizes = dict.fromkeys(KINDS, 0.0)
    for message in messages:
        sizes[message.kind] += sum(len(piece.text.encode()) for piece in message.pieces) / _BYTES_PER_TOKEN
    for name in ("instructions", "tools"):
        if more.get(name):
            sizes[name] += len(msgspec.json.encode(more[name])) / _BYTES_PER_TOKEN
    return [(kind, round(size)) for kind, size in sizes.items() if size >= 1]


def _read(item: Mapping[str, Any]) -> Message:
    kind = str(item.get("type") or "message")
    found = str(item.get("id") or "")
    if kind == "message":
        role = str(item.get("role") or "")
        shown = "assistant" if role == "assistant" else "instructions" if role in ("system", "developer") else "user"
        return Message(shown, role or "message", _contents(item.get("content"), shown), id=found)
    if kind == "reasoning":
        parts = [*_texts(item.get("summary")), *_texts(item.get("content"))]
        text = "\n\n".join(parts) or "The reasoning is encrypted."
        return Message("reasoning", "reasoning", (Piece(text, "text"),), folded=True, id=found)
    if kind == "compaction":
        return Message("compaction", "compaction", (_json(item),), folded=True, id=found)
    if kind.endswith("_call_output"):
        output = item.get("output")
        piece = Piece(output, "json") if isinstance(output, str) else _json(output)
        return Message("tool results", _title("result", item), (piece,), folded=True, id=found)
    if kind.endswith("_call"):
        arguments = item.get("arguments", item.get("input"))
        piece = Piece(arguments, "json") if isinstance(arguments, str) else _json(item)
        return Message("tool calls", _title(kind.removesuffix("_call"), item), (piece,), folded=True, id=found)
    return Message("user", kind, (_json(item),), folded=True, id=found)


def _title(kind: str, item: Mapping[str, Any]) -> str:
    name = item.get("name") or item.get("call_id") or ""
    return f"{kind.replace('_', ' ')} {name}".strip()


def _contents(content: object, kind: str) -> tuple[Piece, ...]:
    look: Look = "markdown" if kind == "assistant" else "text"
    if isinstance(content, str):
        return (Piece(content, look),)
    pieces = []
    for part in content if isinstance(content, Sequence) else ():
        if not isinstance(part, Mapping):
            continue
        text = part.get("text", part.get("refusal"))
        if isinstance(text, str):
            pieces.append(Piece(text, look))
        else:
            pieces.append(_json({name: _short(value) for name, value in part.items()}))
    return tuple(pieces)


def _texts(parts: object) -> list[str]:
    found = [part.get("text") for part in parts if isinstance(part, Mapping)] if isinstance(parts, Sequence) else []
    return [text for text in found if isinstance(text, str)]


def _short(value: object) -> object:
    """The value without the bulk of an image or a file that is part of it."""
    if isinstance(value, str) and len(value) > 300:
        return f"{value[:60]}… ({len(value):,} characters)"
    return value


def _json(value: object) -> Piece:
    return Piece(msgspec.json.encode(value).decode(), "json")
