r"""Converts the arguments of chat function calls into the input of custom tools and into native calls.

This module extracts the text inside `{"input": "…"}` from a custom tool call's arguments while the arguments stream.
The module also converts native calls into items of the Responses API and back, and makes the events of a native call. A
*native call* is a call of a shell, a patch or a tool search.

`tool_map.py` decides which tool a call means. `chat/tools.py` makes the declarations of the functions that the model
calls. `translation/events/builder.py` assigns the output indices and sequence numbers of events.

The arguments of a call are JSON inside a JSON string. Each chunk of the stream is valid JSON, so no fragment ends
inside an escape sequence of the outer string. A newline of the input is `\\n` in a fragment, and `\n` after the outer
JSON string is decoded. The server may split the inner JSON anywhere.

Antiphon emits a native call only when its arguments are complete, so each text has one delta. As in OpenAI's streams,
the item in the event `response.output_item.added` is empty. The events of a shell call stream its commands one by one.
A patch streams its diff, unless it deletes a file. All other native calls stream nothing.

Invariants: the returned fragments of a custom input, concatenated, are the whole input. `complete` is true only when
the arguments are a JSON object with the key `input`, or text that does not begin with `{`. Some models write the input
directly (bare), without JSON around it. For a bare input, `CustomInput` returns the whole text. Arguments that do not
have the form of a native call become a function call instead of a native item. This rule prevents a client from running
an incomplete command. The deltas of a native call, concatenated, are the content of its item.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.translation.tool_map import CallKind
from antiphon.types import events as ev
from antiphon.types.items import ApplyPatchCall, LocalShellCall, NativeCall, ShellCall, ToolSearchCall
from antiphon.types.json import decode_any, encode, first, fragment_of, raw, text_of
from antiphon.types.views import PatchOperation, ShellAction

_PATCHES: Final = ("create_file", "update_file", "delete_file")


def native_call(kind: CallKind, item_id: str, call_id: str, arguments: str) -> NativeCall | None:
    """Return the finished item of a native call with these arguments. Returns None if the arguments do not have the
    form that this kind of call needs."""
    try:
        given = decode_any(arguments or "{}")
        make, member, read = NATIVE_FORMS[kind]
        if not isinstance(given, dict) or (read_as := read(given)) is None:
            return None
        return make(id=item_id, status="completed", call_id=call_id, **{member: read_as})
    except (ValueError, OverflowError):
        # The arguments are not JSON, or hold a number that is too large.
        return None


def native_arguments(kind: str, action: Raw, operation: Raw, arguments: Raw) -> Raw:
    """Convert an earlier native call back to the function arguments that the model wrote, as a JSON string."""
    source = {"apply_patch_call": operation, "tool_search_call": arguments}.get(kind, action)
    if first(source) != b"{":
        return Raw(b'"{}"')
    if kind == "local_shell_call":
        fields = msgspec.json.decode(source, type=dict[str, Raw])
        return _as_string({key: value for key, value in fields.items() if key != "type" and first(value) != b"n"})
    return raw(bytes(source).decode())


def _exec_action(given: dict[str, object]) -> Raw | None:
    command = _strings(given.get("command"))
    if not command:
        return None
    env = given.get("env")
    action: dict[str, object] = {
        "type": "exec",
        "command": command,
        "env": {str(key): str(value) for key, value in env.items()} if isinstance(env, dict) else {},
    }
    if (timeout := _whole(given.get("timeout_ms"))) is not None:
        action["timeout_ms"] = timeout
    for name in ("user", "working_directory"):
        if isinstance(given.get(name), str):
            action[name] = given[name]
    return raw(action)


def _shell_action(given: dict[str, object]) -> Raw | None:
    commands = _strings(given.get("commands", given.get("command")))
    if not commands:
        return None
    limits = {name: _whole(given.get(name)) for name in ("timeout_ms", "max_output_length")}
    return raw({"commands": commands, **limits})


def _operation(given: dict[str, object]) -> Raw | None:
    kind, path, diff = given.get("type"), given.get("path"), given.get("diff")
    if kind not in _PATCHES or not isinstance(path, str) or not path:
        return None
    if kind == "delete_file":
        return raw({"type": kind, "path": path})
    return raw({"type": kind, "path": path, "diff": diff}) if isinstance(diff, str) else None


NATIVE_FORMS: Final[
    dict[CallKind, tuple[Callable[..., NativeCall], str, Callable[[dict[str, object]], Raw | None]]]
] = {
    CallKind.LOCAL_SHELL: (LocalShellCall, "action", _exec_action),
    CallKind.SHELL: (ShellCall, "action", _shell_action),
    CallKind.APPLY_PATCH: (ApplyPatchCall, "operation", _operation),
    CallKind.TOOL_SEARCH: (ToolSearchCall, "arguments", raw),
}
"""For each kind of native call: the item's class, the name of the member with the action, and the function that makes
this member."""


def _strings(value: object) -> list[str]:
    """Return the strings of a list. A single string becomes a list with one entry. A value that is neither a string nor
    a list of strings becomes an empty list."""
    if isinstance(value, str):
        return [value] if value else []
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    return []


def _whole(value: object) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _as_string(value: object) -> Raw:
    return raw(encode(value).decode())


_NO_COMMANDS: Final = Raw(b'{"commands":[],"timeout_ms":null,"max_output_length":null}')
_NO_COMMAND: Final = Raw(b'{"type":"exec","command":[],"env":{}}')
_NOTHING: Final = Raw(b"{}")


def native_events(item: NativeCall, index: int, number: Callable[[], int]) -> Iterator[ev.Event]:
    """Yield all events of a finished native call, in order. `number` returns the next sequence number."""
    if isinstance(item, ShellCall):
        yield ev.OutputItemAdded(number(), index, _opened(item, action=_NO_COMMANDS))
        commands = msgspec.json.decode(item.action, type=ShellAction).commands
        for place, command in enumerate(commands):
            yield ev.ShellCommandAdded(number(), index, place, "")
            yield ev.ShellCommandDelta(number(), index, place, command)
            yield ev.ShellCommandDone(number(), index, place, command)
    elif isinstance(item, ApplyPatchCall):
        operation = msgspec.json.decode(item.operation, type=PatchOperation)
        diff, operation.diff = operation.diff, operation.diff and ""
        yield ev.OutputItemAdded(number(), index, _opened(item, operation=raw(operation)))
        if diff is not None:
            if diff:
                yield ev.ApplyPatchDiffDelta(number(), item.id, index, diff)
            yield ev.ApplyPatchDiffDone(number(), item.id, index, diff)
    elif isinstance(item, LocalShellCall):
        yield ev.OutputItemAdded(number(), index, _opened(item, action=_NO_COMMAND))
    else:
        yield ev.OutputItemAdded(number(), index, _opened(item, arguments=_NOTHING))
    yield ev.OutputItemDone(number(), index, item)


def _opened(item: NativeCall, **empty: Raw) -> NativeCall:
    """Return the item for the event `response.output_item.added`. This item is in progress and has empty content."""
    return msgspec.structs.replace(item, status="in_progress", **empty)


_OPENING: Final = re.compile(r'\s*\{\s*"input"\s*:\s*"')
# Matches whole characters and escapes. The first half of a surrogate pair matches only if the text behind it is already
# known.
_INSIDE: Final = re.compile(
    r'(?:[^"\\]+|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}(?=[^\\]|\\[^u]|\\u[0-9a-fA-F]{4}))*"
)
_CLOSING: Final = re.compile(r"\s*\}\s*")
# The longest prefix that may still become the opening `{"input": "`. Arguments with a longer prefix have another form.
_LONGEST_OPENING: Final = 64


class _InputState(Enum):
    OPENING = auto()
    INSIDE = auto()
    CLOSING = auto()
    # The reader parses arguments that do not open with `{"input": "` when they are complete.
    WHOLE = auto()
    BARE = auto()


class CustomInput:
    """Reads the input from one call's arguments. Callers pass fragments to `feed`, and call `end` after the last
    fragment. If `bare` is true, the arguments are the input itself, without JSON around it."""

    def __init__(self, *, bare: bool = False) -> None:
        self._state = _InputState.BARE if bare else _InputState.OPENING
        self._text = ""
        self.complete = False

    def feed(self, fragment: bytes) -> bytes:
        """Add a fragment of arguments. Returns the text that the fragment adds to the input, as escaped JSON text."""
        text = text_of(fragment)
        self._text += text
        if self._state is _InputState.OPENING:
            self._state = self._opened()
        if self._state is _InputState.BARE:
            text, self._text = self._text, ""
            return fragment_of(text)
        return self._inside() if self._state is _InputState.INSIDE else b""

    def end(self) -> bytes:
        """End the arguments and set `complete`. Returns the text that `feed` has not returned yet."""
        if self._state is _InputState.CLOSING:
            self.complete = _CLOSING.fullmatch(self._text) is not None or _is_object('{"input":""' + self._text)
        elif self._state is _InputState.BARE:
            self.complete = True
        elif self._state in (_InputState.OPENING, _InputState.WHOLE):
            return self._judge_whole()
        return b""

    def _opened(self) -> _InputState:
        """Return the parser's state after the first characters of the arguments."""
        start = self._text.lstrip()
        if not start:
            return _InputState.OPENING
        if start[0] != "{":
            return _InputState.BARE
        if found := _OPENING.match(self._text):
            self._text = self._text[found.end() :]
            return _InputState.INSIDE
        return _InputState.WHOLE if len(start) > _LONGEST_OPENING else _InputState.OPENING

    def _inside(self) -> bytes:
        text = self._text
        found = _INSIDE.match(text)
        assert found is not None
        end = found.end()
        if text[end : end + 1] == '"':
            self._state, self._text = _InputState.CLOSING, text[end + 1 :]
        else:
            # Keep an incomplete escape until the next fragment.
            self._text = text[end:]
        return fragment_of(json.loads(f'"{text[:end]}"', strict=False)) if end else b""

    def _judge_whole(self) -> bytes:
        """Parse the complete arguments. This is necessary if they begin with another key, other quotes or no value."""
        try:
            value = json.loads(self._text, strict=False)
        except (ValueError, RecursionError):
            return b""
        if not isinstance(value, dict) or "input" not in value:
            return b""
        self.complete = True
        given = value["input"]
        return fragment_of(given if isinstance(given, str) else json.dumps(given, ensure_ascii=False))


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text, strict=False), dict)
    except (ValueError, RecursionError):
        return False
