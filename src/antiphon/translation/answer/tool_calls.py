"""Assembles tool calls from deltas and emits the calls one after another.

This module assigns each delta to a call, and decides when to open a call. At the end of an answer, the module finds
errors in the calls. Chat servers interleave calls, omit the index, repeat an index with a new id, or send names late.
Clients of the Responses API get one open item at a time. `translation/events/builder.py` makes the events, and
`translation/tool_map.py` finds the tool that a call names.

Invariants:

- the sidecar opens calls in the order of their first deltas;
- the sidecar opens a call only once it knows the call's name;
- the emitted arguments are the concatenation of all received fragments of the call;
- the sidecar never emits a call that `tool_choice` or `parallel_tool_calls` forbids.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

import msgspec

from antiphon.translation.answer.chunk import failed, fragment
from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.tool_map import ToolMap
from antiphon.translation.values import Ending
from antiphon.types.chat import ToolCallDelta
from antiphon.types.json import text_of

_LONGEST_ID: Final = 64
_PLACEHOLDER: Final = [b"{}"]
"""The empty arguments with which some servers begin a call (seen: Bedrock's and Gemini's models behind gateways). The
real arguments may follow."""


class TooManyToolCalls(Exception):
    """The model made more calls than the limit allows."""


@dataclass(slots=True)
class _OpenCall:
    key: int | None
    id: str = ""
    name: str = ""
    waiting: list[bytes] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    done: bool = False
    suppressed: bool = False
    bare: bool = False


class ToolCalls:
    """Collects the deltas of an answer's calls and emits the calls to a builder. The caller runs `flush` after the last
    delta."""

    def __init__(self, builder: ResponseBuilder, tools: ToolMap, limit: int) -> None:
        self._builder = builder
        self._tools = tools
        self._limit = limit
        self._calls: list[_OpenCall] = []
        self._first = 0
        self._open: _OpenCall | None = None
        self._ids = set(tools.call_ids)
        self.broken = False
        """Whether the upstream sent arguments for a call that was already closed. If so, the emitted call is wrong."""
        self.forbidden = ""
        """The name of a tool that the model called although the request does not allow it."""
        self.made = 0
        """The number of emitted calls, including calls of hosted tools."""

    def __bool__(self) -> bool:
        return bool(self._calls)

    @property
    def unfinished(self) -> bool:
        """Whether the arguments of at least one call are incomplete."""
        return any(not (call.done or call.suppressed or _is_whole(call)) for call in self._calls[self._first :])

    def failure(self, *, refused: bool, answered: bool) -> Ending | None:
        """Return the error in the tool calls of an otherwise complete answer, or None if the calls have no error.

        `refused`: whether the model declined to answer. `answered`: whether the model gave output that the client can
        see.
        """
        if any(not call.name and (call.waiting or call.id) for call in self._calls):
            # A call without a name cannot be emitted.
            return failed("The upstream sent a tool call without a name.", "upstream_invalid")
        if self.broken:
            return failed("The upstream continued a tool call after the end of the call.", "upstream_invalid")
        if self._tools.required and not self.made and not refused:
            called = f"called the tool '{self.forbidden[:64]}' instead" if self.forbidden else "called no tool"
            return failed(
                "tool_choice requires a call of a tool that tool_choice names or allows, but the model "
                f"{called}. Try again, or send tool_choice 'auto'. "
                "The model's server may not support this tool_choice.",
                "tool_choice_not_followed",
            )
        if self.forbidden and not answered:
            return failed(
                f"The model called the tool '{self.forbidden[:64]}', which tool_choice does not allow, and gave "
                "no other output. Try again, or allow the tool.",
                "model_error",
            )
        return None

    def receive(self, delta: ToolCallDelta) -> None:
        """Add one entry of `tool_calls`. Raises `TooManyToolCalls`."""
        function, custom = delta.function, delta.custom
        if function is not None:
            name, part = function.name or "", fragment(function.arguments)
        elif custom is not None:
            name, part = custom.name or "", fragment(custom.input)
        else:
            name, part = "", b""
        call = self._find(delta, name, part)
        if call is None:
            if not (delta.id or name or part):
                return
            if len(self._calls) >= self._limit:
                raise TooManyToolCalls
            call = _OpenCall(delta.index)
            self._calls.append(call)
        # The first id and name of a call win. Later values are repetitions, or null or "" instead of absent.
        call.id = call.id or delta.id or ""
        call.name = call.name or name
        call.bare = call.bare or (custom is not None and function is None)
        if part and not self._is_repetition(call, part):
            if call.done:
                self.broken = True
                return
            if part[:1] == b"{" and call.waiting == _PLACEHOLDER:
                call.waiting = []
            call.waiting.append(part)
        self._advance()

    def continues(self, delta: ToolCallDelta) -> bool:
        """Whether this delta continues the open call, and all earlier arguments of that call were emitted. The caller
        may use `splice` only if this method returns True."""
        call = self._open
        if call is None or call is not self._calls[-1] or call.done or call.suppressed or call.waiting:
            return False
        return self._find(delta, "", b"") is call

    def splice(self, data: bytes, before: bytes, behind: bytes) -> int:
        """Add arguments to the open call, from the chunks at the beginning of `data`. Each chunk consists of `before`,
        a text and `behind`. Returns the size of the added chunks in bytes, or 0 when the next chunk must be decoded
        fully."""
        call = self._open
        assert call is not None, "no call is open"
        # A text that begins with `{` may repeat all arguments, so the sidecar decodes its chunk fully.
        text, used = self._builder.draft.splice(data, before, behind, b"{")
        if text:
            call.sent.append(text)
        return used

    def flush(self) -> None:
        """End all calls after the last delta, and emit the calls that waited for an earlier call."""
        for call in self._calls[self._first :]:
            if call.name:
                self._emit(call, True)
            call.done = True
        self._first = len(self._calls)
        self._open = None

    def _find(self, delta: ToolCallDelta, name: str, part: bytes) -> _OpenCall | None:
        """Return the call that this delta continues, or None if the delta begins a new call."""
        last = self._calls[-1] if self._calls else None
        if delta.index is None:
            if last is None or (delta.id and delta.id != last.id) or (name and not delta.id and last.name):
                return None
            return last
        for call in reversed(self._calls):
            if call.key == delta.index:
                # The same index with another id and a name begins a new call (seen: Gemini behind OpenRouter).
                other = bool(delta.id and call.id and delta.id != call.id and name)
                if name and not delta.id and (name != call.name or part[:1] == b"{"):
                    # Without ids, another name or other arguments after a complete call begin a new call (seen: Ollama
                    # behind LiteLLM).
                    other = _is_another(call, name, part)
                return None if other else call
        return None

    @staticmethod
    def _is_repetition(call: _OpenCall, part: bytes) -> bool:
        """Whether `part` repeats all arguments of the call, or has only blanks after the end of the arguments. Some
        servers send such a part at the end of a call."""
        if not part.strip(b" ") and call.done:
            return True
        return part[:1] == b"{" and bool(call.sent) and part == b"".join(call.sent) and part[-1:] == b"}"

    def _advance(self) -> None:
        """Emit as much as possible: the open call's arguments, and the next call when the open call is complete."""
        while self._first < len(self._calls):
            call = self._calls[self._first]
            if not call.name:
                return
            followed = self._first + 1 < len(self._calls)
            self._emit(call, followed)
            if not followed or not _is_whole(call):
                return
            call.done = True
            self._open = None
            self._first += 1

    def _emit(self, call: _OpenCall, last: bool) -> None:
        """Emit the arguments of a call that have arrived. `last` is true if no more arguments follow, because the next
        call has begun or the answer has ended."""
        if call.suppressed:
            call.sent += call.waiting
            call.waiting = []
            return
        if self._open is not call:
            if not self._may_emit(call):
                call.suppressed = True
                self._emit(call, last)
                return
            if not _is_usable(call.id):
                # Clients refuse ids that are too long, or that hold certain characters.
                call.id = f"call_{hashlib.sha256(call.id.encode('utf-8', 'replace')).hexdigest()[:32]}"
            if call.id in self._ids:
                # A client could not tell apart two calls with the same id. Some servers count from 0 in every answer.
                call.id = ""
            self._ids.add(call.id)
            self.made += 1
            # If a chat server sends the call as a custom tool call, the input is not inside JSON (`bare`).
            self._builder.open_call(call.id, self._tools.target(call.name), bare=call.bare)
            self._open = call
        if call.waiting and (last or call.waiting != _PLACEHOLDER):
            for part in call.waiting:
                self._builder.arguments(part)
            call.sent += call.waiting
            call.waiting = []

    def _may_emit(self, call: _OpenCall) -> bool:
        if not self._tools.may_call(call.name):
            self.forbidden = call.name
            return False
        return not (self._tools.single and self.made)


def _is_another(call: _OpenCall, name: str, part: bytes) -> bool:
    """Whether a delta without an id begins a new call, although the delta has the index of an earlier call. `name` and
    `part` are the delta's name and arguments."""
    had = b"".join((*call.sent, *call.waiting))
    if not (call.name and had and _is_whole(call)):
        # The server sends the name in fragments, repeats it, or sends it after the arguments.
        return False
    return name != call.name or (part != had and call.waiting != _PLACEHOLDER)


def _is_usable(call_id: str) -> bool:
    """Whether clients and chat servers accept the id: at most 64 characters, without characters that JSON must
    escape."""
    return len(call_id) <= _LONGEST_ID and call_id.isascii() and call_id.isprintable() and '"' not in call_id


def _is_whole(call: _OpenCall) -> bool:
    """Whether the arguments are complete JSON, so that no more arguments can follow."""
    if call.bare:
        return False
    try:
        msgspec.json.decode(text_of(b"".join((*call.sent, *call.waiting))))
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
