r"""Extracts the text inside `{"input": "…"}` from a custom tool call's arguments while they stream.

Lives here: finding one JSON string inside the JSON of a call's arguments, which chunks may split at any byte. Not here:
deciding which calls belong to custom tools (`tool_map.py`), events (`translation/events/builder.py`).

Arguments are JSON inside a JSON string. Each fragment of the outer string is complete, since each chunk is a complete
JSON text. So a newline of the input is `\\n` in a fragment, and `\n` after the outer JSON string is decoded. The server
may split the inner JSON anywhere.

Invariants: the returned fragments join to the input. `complete` is true only when the arguments are a JSON object with
the key `input`, or text that does not begin with `{`. Text without `{` is the bare input, which some models write, and
the reader returns all of it.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from typing import Final

from antiphon.types.json import fragment_of, text_of

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
    # Arguments that do not open with `{"input": "` are parsed when they are complete.
    WHOLE = auto()
    BARE = auto()


class CustomInput:
    """Reads the input from one call's arguments. Callers pass fragments to `feed`, and call `end` after the last one.
    `bare`: the arguments are the input itself."""

    def __init__(self, *, bare: bool = False) -> None:
        self._state = _InputState.BARE if bare else _InputState.OPENING
        self._text = ""
        self.complete = False

    def feed(self, fragment: bytes) -> bytes:
        """Add a fragment of arguments. Returns the text that the fragment adds to the input, as a fragment."""
        text = text_of(fragment)
        self._text += text
        if self._state is _InputState.OPENING:
            self._state = self._opened()
        if self._state is _InputState.BARE:
            text, self._text = self._text, ""
            return fragment_of(text)
        return self._inside() if self._state is _InputState.INSIDE else b""

    def end(self) -> bytes:
        """End the arguments and set `complete`. Returns the text that was not yet returned."""
        if self._state is _InputState.CLOSING:
            self.complete = _CLOSING.fullmatch(self._text) is not None or _is_object('{"input":""' + self._text)
        elif self._state is _InputState.BARE:
            self.complete = True
        elif self._state in (_InputState.OPENING, _InputState.WHOLE):
            return self._judge_whole()
        return b""

    def _opened(self) -> _InputState:
        """The parser's state after the first characters of the arguments."""
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
        """Parse the complete arguments, because their beginning was unusual: another key, other quotes, or no value."""
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
