"""Implements `antiphon try`: sends one Responses request to a running gateway and shows the answer as it arrives.

This module sends the request, reads the event stream, reports errors, and chooses the exit status. The output has one
of three forms: text for people, one line per event, or JSON lines. `running_gateway.py` finds the gateway's address.
`terminal.py` escapes characters and chooses colours.

Standard output gets only the answer's text (or the events). Reasoning, tool calls and the footer go to standard error,
so that a pipe gets the text alone.

Invariants: exit status 0 means that the response completed, or that a limit of the request ended it. Every failure is
one line on standard error. The output names every field that the gateway ignored. The command writes no control
character of the model or the gateway to a terminal. Each form of the output accepts any event, because a server may
send kinds of events that this version does not know.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Protocol, TextIO

import aiohttp

from antiphon.commands.running_gateway import GatewayError, client_key, gateway_url, reached
from antiphon.commands.terminal import colors_on, dimmed, one_line, printable_text
from antiphon.errors import ConfigError
from antiphon.translation.answer.sse import EventTooLarge, SseDecoder
from antiphon.types.json import decode_object

Event = Mapping[str, object]

_LINE = 100
_TEXT = frozenset({"response.output_text.delta", "response.refusal.delta"})
_REASONING = frozenset(
    {"response.reasoning_text.delta", "response.reasoning.delta", "response.reasoning_summary_text.delta"}
)
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
# The fields that describe an item, an event or an action best. A view shows the first field that is present.
_TELLING = ("name", "query", "queries", "action", "arguments", "input", "code", "delta", "text", "id")
_MOST_TEXT = 16 << 20
_MOST_EVENT = 64 << 20
_MESSAGE = 500
# The further fields of tools that need more than their type.
_NEEDED: Mapping[str, dict[str, object]] = {"code_interpreter": {"container": {"type": "auto"}}}


def run(arguments: argparse.Namespace) -> int:
    """Send the request and show the answer. Returns the exit status."""
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    url, key = gateway_url(arguments.url, arguments.config), client_key(arguments.key_env)
    tools = [read_tool(one) for one in arguments.tool or ()]
    text = _input(arguments.text)
    view: ResponseView = TextView(sys.stdout, sys.stderr)
    if arguments.json:
        view = JsonView(sys.stdout)
    elif arguments.verbose:
        view = EventView(sys.stdout)
    summary = Summary()
    async with reached(url, key) as gateway:
        body: dict[str, object] = {
            "model": arguments.model or await gateway.first_model(),
            "input": text,
            "stream": True,
        }
        optional = {"instructions": arguments.instructions, "previous_response_id": arguments.previous, "tools": tools}
        body |= {name: value for name, value in optional.items() if value}
        began = time.monotonic()
        try:
            async with gateway.send("POST", "/responses", body) as answer:
                ignored = answer.headers.get("antiphon-ignored", "")
                async for event in _events(answer, url):
                    seconds = time.monotonic() - began
                    summary.receive(event, seconds)
                    view.receive(event, seconds)
        finally:
            view.end()
    seconds = time.monotonic() - began
    if summary.error:
        raise GatewayError(one_line(summary.error, _MESSAGE))
    if not summary.response:
        raise GatewayError("the stream ended before the response was complete; look at the gateway's log")
    if not arguments.json:
        if ignored:
            print(f"ignored: {one_line(ignored, _MESSAGE)}", file=sys.stderr)
        print(dimmed(summary.footer(seconds), colors=colors_on(sys.stderr)), file=sys.stderr)
    return 0


async def _events(answer: aiohttp.ClientResponse, url: str) -> AsyncIterator[dict[str, object]]:
    """The events of the answer, as decoded JSON objects. Raises `GatewayError`."""
    if answer.content_type != "text/event-stream":
        raise GatewayError(f"{url} answers with {one_line(answer.content_type, _MESSAGE)}, not with an event stream")
    decoder = SseDecoder(_MOST_EVENT)
    try:
        async for part in answer.content.iter_any():
            for one in decoder.feed(part):
                if event := decode_object(one.data):
                    yield event
    except EventTooLarge as error:
        raise GatewayError(f"the gateway at {url} sends an event that is too long: {error}") from None


def read_tool(text: str) -> dict[str, object]:
    """The tool in the flag `--tool`, whose value is a tool type, or a whole tool as a JSON object. Raises
    `ConfigError`."""
    if not text.lstrip().startswith("{"):
        return {"type": text, **_NEEDED.get(text, {})}
    try:
        tool = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--tool: is not JSON: {error}") from None
    if not isinstance(tool, dict) or not isinstance(tool.get("type"), str):
        raise ConfigError('--tool: the JSON object needs a "type", for example {"type": "web_search"}')
    return tool


def _input(text: str) -> str:
    """The text of the argument, or the text from standard input if the argument is `-`. Raises `ConfigError`."""
    if text != "-":
        return text
    read = sys.stdin.buffer.read(_MOST_TEXT + 1)
    if len(read) > _MOST_TEXT:
        raise ConfigError(f"standard input has more than {_MOST_TEXT} bytes")
    try:
        text = read.decode()
    except UnicodeDecodeError:
        raise ConfigError("standard input is not UTF-8 text") from None
    if not text.strip():
        raise ConfigError("standard input has no text")
    return text


class ResponseView(Protocol):
    """Shows a response on the terminal in one format: text, a line for each event, or JSON."""

    def receive(self, event: Event, seconds: float) -> None:
        """Show an event that arrived `seconds` after the request."""

    def end(self) -> None:
        """Write a line end if the last line has none."""


class Summary:
    """The facts of a response that the footer and the exit status need."""

    def __init__(self) -> None:
        self.response: Event = {}
        """The response object of the terminal event. The object is empty until this event arrives."""
        self.error = ""
        """The message of the error that ended the response."""
        self.first: float | None = None
        """Seconds from the request to the first delta."""

    def receive(self, event: Event, seconds: float) -> None:
        """Record the facts of an event, for the footer and the exit status."""
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
    """Writes the answer's text to `out`, and reasoning and tool calls in a dim colour to `err`."""

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
        """Write a line end if the last line has none."""
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
    """Writes each event on one line: the seconds since the request, the type, and a short form."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._colors = colors_on(out)

    def receive(self, event: Event, seconds: float) -> None:
        short = _short(event)
        line = f"{dimmed(f'{seconds:8.3f}', colors=self._colors)}  {one_line(_kind(event), _LINE)}"
        self._out.write(f"{line}  {dimmed(short, colors=self._colors)}".rstrip() + "\n")
        self._out.flush()

    def end(self) -> None:
        """Do nothing, because every line is already finished."""


class JsonView:
    """Writes each event as one line of JSON, with escapes for all characters outside ASCII."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def receive(self, event: Event, seconds: float) -> None:
        self._out.write(json.dumps(event) + "\n")
        self._out.flush()

    def end(self) -> None:
        """Do nothing, because every line is already finished."""


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
    """The most informative field of an event, as short text."""
    item, response = event.get("item"), event.get("response")
    if isinstance(item, Mapping):
        return _item(item)
    if isinstance(response, Mapping):
        return one_line(f"{response.get('id', '')} {response.get('status', '')}", _LINE)
    if "delta" in event:
        return one_line(json.dumps(event["delta"], ensure_ascii=False), _LINE)
    hidden = ("type", "sequence_number", "item_id", "output_index", "content_index", "summary_index")
    rest = {name: value for name, value in event.items() if name not in hidden and value not in (None, [], "")}
    return one_line(json.dumps(rest, ensure_ascii=False), _LINE) if rest else ""


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
