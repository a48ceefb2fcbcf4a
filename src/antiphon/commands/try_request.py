"""Implements `antiphon try`: sends one Responses request to a running gateway and shows the answer as it arrives.

Lives here: the request, the event stream, the errors and the exit status. Not here: the output of events
(`response_view.py`), the gateway's address (`running_gateway.py`).

Invariants: exit status 0 means that the response completed, or that a limit of the request ended it. Every failure is
one line on standard error. The output names every field that the gateway ignored.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp

from antiphon.commands.response_view import EventView, JsonView, Summary, TextView, View
from antiphon.commands.running_gateway import GatewayError, client_key, gateway_url, reached
from antiphon.commands.terminal import colors_on, dimmed, one_line
from antiphon.errors import ConfigError
from antiphon.translation.answer.sse import EventTooLarge, SseDecoder
from antiphon.types.json import decode_object

_MOST_TEXT = 16 << 20
_MOST_EVENT = 64 << 20
_MESSAGE = 500
# The fields without which the type alone is no complete tool.
_NEEDED: Mapping[str, Mapping[str, Any]] = {"code_interpreter": {"container": {"type": "auto"}}}


def run(arguments: argparse.Namespace) -> int:
    """Send the request and show the answer. Returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 shows escapes, and the command does not fail in the middle of an answer.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    url, key = gateway_url(arguments.url, arguments.config), client_key(arguments.key_env)
    tools = [read_tool(one) for one in arguments.tool or ()]
    text = _input(arguments.text)
    view: View = TextView(sys.stdout, sys.stderr)
    if arguments.json:
        view = JsonView(sys.stdout)
    elif arguments.verbose:
        view = EventView(sys.stdout)
    summary = Summary()
    async with reached(url, key) as gateway:
        body: dict[str, Any] = {"model": arguments.model or await gateway.first_model(), "input": text, "stream": True}
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
        raise GatewayError("the stream ended before the response did; look at the gateway's log")
    if not arguments.json:
        if ignored:
            print(f"ignored: {one_line(ignored, _MESSAGE)}", file=sys.stderr)
        print(dimmed(summary.footer(seconds), colors=colors_on(sys.stderr)), file=sys.stderr)
    return 0


async def _events(answer: aiohttp.ClientResponse, url: str) -> AsyncIterator[dict[str, Any]]:
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
        raise GatewayError(f"the gateway at {url} sends too much: {error}") from None


def read_tool(text: str) -> dict[str, Any]:
    """The tool of `--tool`: a type, or a whole tool as a JSON object. Raises `ConfigError`."""
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
    """The text, or standard input for `-`. Raises `ConfigError`."""
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
