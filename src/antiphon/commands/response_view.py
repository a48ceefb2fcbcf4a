"""Shows the events of a response as they arrive: as text for people, as one line an event, or as JSON lines.

Lives here: the three forms, and the facts for the footer (`Summary`). Not here: the request and its errors
(`try_request.py`), safe characters and colours (`terminal.py`).

Standard output gets only the answer's text (or the events). Reasoning, tool calls and the footer go to standard error,
so that a pipe gets the text alone.

Invariants: no text of the model or the gateway reaches a terminal with control characters. A view accepts any event,
because servers send kinds that this version does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from antiphon.commands.terminal import colors_on, dimmed, one_line, printable_text

Event = Mapping[str, Any]

_LINE = 100
_TEXT = frozenset({"response.output_text.delta", "response.refusal.delta"})
_REASONING = frozenset(
    {"response.reasoning_text.delta", "response.reasoning.delta", "response.reasoning_summary_text.delta"}
)
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
# The fields that say most about an item, an event or an action, the first present one first.
_TELLING = ("name", "query", "queries", "action", "arguments", "input", "code", "delta", "text", "id")


class View(Protocol):
    """A form of the output."""

    def receive(self, event: Event, seconds: float) -> None:
        """Show an event that arrived `seconds` after the request."""

    def end(self) -> None:
        """Finish the last line."""


class Summary:
    """The facts of a response that the footer and the exit status need."""

    def __init__(self) -> None:
        self.response: Event = {}
        """The response object of the terminal event. Empty until this event arrives."""
        self.error = ""
        """The message of the error that ended the response."""
        self.first: float | None = None
        """Seconds from the request to the first delta."""

    def receive(self, event: Event, seconds: float) -> None:
        """Note the facts of an event."""
        kind = _kind(event)
        if self.first is None and kind.endswith(".delta"):
            self.first = seconds
        if kind in _ENDS:
            self.response = _mapping(event.get("response"))
        if kind in ("error", "response.failed"):
            holders = (_mapping(event.get("error")), event, _mapping(self.response.get("error")))
            messages = (holder.get("message") for holder in holders)
            self.error = self.error or next((str(one) for one in messages if one), "the response failed")

    def footer(self, seconds: float) -> str:
        """One line: id, model, tokens, seconds, and the reason of an incomplete response."""
        response = self.response
        usage = _mapping(response.get("usage"))
        tokens_in, tokens_out = usage.get("input_tokens"), usage.get("output_tokens")
        cached = _mapping(usage.get("input_tokens_details")).get("cached_tokens")
        reasoning = _mapping(usage.get("output_tokens_details")).get("reasoning_tokens")
        parts = [str(response.get("id", "")), str(response.get("model", ""))]
        if tokens_in is not None:
            parts.append(f"{tokens_in} input tokens" + (f" ({cached} cached)" if cached else ""))
            parts.append(f"{tokens_out} output tokens" + (f" ({reasoning} reasoning)" if reasoning else ""))
        first = "" if self.first is None else f", first token after {self.first:.2f} s"
        parts.append(f"{seconds:.2f} s{first}")
        status = response.get("status")
        if status != "completed":
            reason = _mapping(response.get("incomplete_details")).get("reason")
            parts.append(f"{status}: {reason}" if reason else str(status))
        return " · ".join(one_line(part, _LINE) for part in parts if part)


class TextView:
    """The answer's text on `out`; reasoning and tool calls on `err`, dimmed."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err
        self._colors = colors_on(err)
        # The stream whose last line is not finished.
        self._open: TextIO | None = None

    def receive(self, event: Event, seconds: float) -> None:
        kind = _kind(event)
        if kind in _TEXT:
            self._write(self._out, printable_text(str(event.get("delta", ""))))
        elif kind in _REASONING:
            text = printable_text(str(event.get("delta", "")))
            self._write(self._err, text, dim=True)
        elif kind == "response.output_item.done":
            item = _mapping(event.get("item"))
            self.end()
            if item.get("type") not in ("message", "reasoning"):
                self._write(self._err, f"→ {_item(item)}\n", dim=True)

    def end(self) -> None:
        """Finish the last line."""
        if self._open is not None:
            self._open.write("\n")
            self._open.flush()
            self._open = None

    def _write(self, stream: TextIO, text: str, *, dim: bool = False) -> None:
        if not text:
            return
        if self._open is not stream:
            self.end()
        stream.write(dimmed(text, colors=self._colors) if dim else text)
        stream.flush()
        self._open = None if text.endswith("\n") else stream


class EventView:
    """Each event on one line: the seconds since the request, the type, and a short form."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colors = colors_on(out)

    def receive(self, event: Event, seconds: float) -> None:
        short = _short(event)
        line = f"{dimmed(f'{seconds:8.3f}', colors=self._colors)}  {one_line(_kind(event), _LINE)}"
        self._out.write(f"{line}  {dimmed(short, colors=self._colors)}".rstrip() + "\n")
        self._out.flush()

    def end(self) -> None:
        """Every line is already finished."""


class JsonView:
    """Each event as one line of JSON, with escapes for all characters outside ASCII."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def receive(self, event: Event, seconds: float) -> None:
        self._out.write(json.dumps(event) + "\n")
        self._out.flush()

    def end(self) -> None:
        """Every line is already finished."""


def _kind(event: Event) -> str:
    return str(event.get("type", "?"))


def _mapping(value: object) -> Event:
    return value if isinstance(value, Mapping) else {}


def _item(item: Event) -> str:
    """An output item in one line: its type, its status unless it is completed, and what it does."""
    status = item.get("status")
    shown = [one_line(str(item.get("type", "?")), _LINE)]
    if status not in (None, "completed"):
        shown.append(one_line(str(status), _LINE))
    told = [item[name] for name in _TELLING[:-3] if item.get(name)]
    return "  ".join([*shown, one_line(" ".join(map(_written, told)), _LINE)]).rstrip()


def _short(event: Event) -> str:
    """The telling part of an event."""
    if isinstance(event.get("item"), Mapping):
        return _item(event["item"])
    if isinstance(event.get("response"), Mapping):
        response = event["response"]
        return one_line(f"{response.get('id', '')} {response.get('status', '')}", _LINE)
    if "delta" in event:
        return one_line(json.dumps(event["delta"], ensure_ascii=False), _LINE)
    hidden = ("type", "sequence_number", "item_id", "output_index", "content_index", "summary_index")
    rest = {name: value for name, value in event.items() if name not in hidden and value not in (None, [], "")}
    return one_line(json.dumps(rest, ensure_ascii=False), _LINE) if rest else ""


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
