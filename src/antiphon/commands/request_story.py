"""Writes one request of the journal for a terminal: its facts, its failure, its steps, and both sides of its contents.

Lives here: the lines. Not here: reading the journal (`show.py`, `tail.py`), the order of a recording
(`console/story.py`).

Invariant: a terminal interprets no character of a text that came from a client or a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from antiphon.commands.terminal import dimmed, one_line, printable_text
from antiphon.console.formats import NONE, count, duration, moment, owner_name, percent, size
from antiphon.console.story import RecordedEvent, Story
from antiphon.engine.ports.journal import Entry

_WIDTH = 36
_LINE = 200
_LONGEST = 20_000
_RED, _GREEN, _END = "\x1b[31m", "\x1b[32m", "\x1b[0m"


def row(entry: Entry, *, colors: bool) -> str:
    """The request on one line."""
    outcome = entry.outcome or "-"
    if colors:
        outcome = f"{_RED if entry.fault else _GREEN}{outcome}{_END}"
    tokens = f"{count(entry.input_tokens)} → {count(entry.output_tokens)}"
    parts = (
        moment(entry.ended_at),
        outcome,
        entry.model or "-",
        owner_name(entry.owner),
        tokens,
        duration(entry.seconds),
    )
    return (
        "  ".join(one_line(part, _LINE) if part is not outcome else part for part in parts)
        + (f"  {one_line(entry.code, 60)}" if entry.code else "")
        + "  "
        + dimmed(one_line(entry.response_id or entry.id, 80), colors=colors)
    )


def facts(entry: Entry, *, colors: bool) -> Iterator[str]:
    """Everything that the journal knows about the request without its contents."""
    yield row(entry, colors=colors)
    named = {
        "request id": entry.request_id or entry.id,
        "served by": f"{entry.door}, upstream {entry.upstream or 'not called'}"
        + (", as the fallback" if entry.detail.fallback else ""),
        "first token": duration(entry.first),
        "prompt cache": percent(entry.cached_tokens / entry.input_tokens) if entry.input_tokens else "",
        "model calls": str(entry.calls) if entry.calls > 1 else "",
        "continues": entry.previous_id or entry.conversation_id,
        "stored": "" if entry.stored else "no",
        "ignored": ", ".join(entry.detail.ignored),
        "status": f"{entry.status}, upstream {entry.detail.upstream_status}" if entry.detail.upstream_status else "",
        "caused by": entry.fault,
        "message": entry.detail.message,
        "cause": entry.detail.cause if entry.detail.cause != entry.detail.message else "",
        "advice": entry.detail.advice,
    }
    for name, value in named.items():
        if value and value != NONE:
            yield f"  {name:<14}{one_line(value, 1000)}"
    yield from _steps(entry)


def contents(story: Story, *, colors: bool) -> Iterator[str]:
    """Both sides of the translation, in order."""
    yield from _block("request of the client", story.request, colors=colors)
    for number, call in enumerate(story.calls, 1):
        yield from _block(f"chat request {number} at {duration(call.at)}", call.body, colors=colors)
        status = f"HTTP {call.status}" if call.status else "no answer"
        if call.events:
            yield dimmed(f"-- answer {number}: {status}, {len(call.events) + call.more} chunks", colors=colors)
            yield from map(_event, call.events)
        else:
            yield from _block(f"answer {number}: {status}", call.answer, colors=colors)
    for tool in story.tools:
        yield from _block(f"result of {one_line(tool.name, 80)} at {duration(tool.at)}", tool.output, colors=colors)
    if story.events:
        yield dimmed(f"-- events to the client: {len(story.events) + story.more}", colors=colors)
        yield from map(_event, story.events)
    elif story.answer:
        yield from _block(f"answer to the client: HTTP {story.answer_status}", story.answer, colors=colors)
    if story.cut:
        yield "The record is cut, because it exceeds console.record_request_bytes."


def as_json(entry: Entry, story: Story | None) -> str:
    """The request, and its contents if they are recorded, as one line of JSON."""
    told: dict[str, Any] = {"entry": msgspec.to_builtins(entry)}
    if story is not None:
        told["story"] = json.loads(msgspec.json.encode(story, enc_hook=str)) | {
            "request": _decoded(story.request),
            "answer": _decoded(story.answer),
            "calls": [
                msgspec.to_builtins(call) | {"body": _decoded(call.body), "answer": _decoded(call.answer)}
                for call in story.calls
            ],
        }
    return json.dumps(told)


def _steps(entry: Entry) -> Iterator[str]:
    spans = sorted(entry.detail.spans, key=lambda span: (span.start, span.end))
    whole = max([entry.seconds, *(span.end for span in spans)], default=0.0) or 1e-9
    for span in spans:
        # A background response waited before its attempt began, so its queue lies before the start.
        start, end = max(0.0, span.start), max(0.0, span.end)
        begins = min(int(start / whole * _WIDTH), _WIDTH - 1)
        wide = max(1, min(round((end - start) / whole * _WIDTH), _WIDTH - begins))
        bar = " " * begins + "█" * wide
        name = one_line(f"{span.kind.replace('_', ' ')} {span.name}".strip(), 28)
        yield f"  {name:<28}  {bar:<{_WIDTH}}  {duration(span.end - span.start)}"


def _block(title: str, data: bytes | str, *, colors: bool) -> Iterator[str]:
    yield dimmed(f"-- {title} ({size(len(data))})", colors=colors)
    shown = _decoded(data if isinstance(data, bytes) else data.encode(errors="replace"))
    text = shown if isinstance(shown, str) else json.dumps(shown, indent=2, ensure_ascii=False)
    yield printable_text(text[:_LONGEST]) + ("…" if len(text) > _LONGEST else "")


def _event(event: RecordedEvent) -> str:
    return f"  {event.at:8.3f}  {one_line(event.type, 60)}  {one_line(event.data, _LINE)}".rstrip()


def _decoded(data: bytes) -> Any:
    """The JSON value, or the text if the bytes are no JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return data.decode(errors="replace")
