r"""Extracts the text inside `{"input": "…"}` from a custom tool call's arguments while they stream.

Lives here: finding one JSON string inside the JSON of a call's arguments, cut anywhere. Not here: which calls are of
custom tools (`tool_map.py`), events (`translation/events/builder.py`).

A fragment of arguments is whole at its outer level, since each chunk is a JSON text. So a line end of the input arrives
as `\\n` and is `\n` once decoded. The server may cut that inner level anywhere.

Invariants: the returned pieces join to the input. `complete` is true only when the arguments are exactly `{"input":
string}`, or no JSON object at all. In the second case the model wrote the bare input, which the reader takes.
"""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from typing import Final

from antiphon.types.json import fragment_of, text_of

_OPENING: Final = re.compile(r'\s*\{\s*"input"\s*:\s*"')
# Whole characters and escapes. The first half of a surrogate pair counts only once what follows it is known.
_INSIDE: Final = re.compile(
    r'(?:[^"\\]+|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}(?=[^\\]|\\[^u]|\\u[0-9a-fA-F]{4}))*"
)
_CLOSING: Final = re.compile(r"\s*\}\s*")
# What an opening may look like while it is not whole: longer beginnings are something else.
_LONGEST_OPENING: Final = 64


class _InputState(Enum):
    OPENING = auto()
    INSIDE = auto()
    CLOSING = auto()
    # Not of the usual form: judged when it is whole.
    WHOLE = auto()
    BARE = auto()


class CustomInput:
    """One call's arguments. Feed fragments; `end` when no more come. `bare`: they are the input itself."""

    def __init__(self, *, bare: bool = False) -> None:
        self._state = _InputState.BARE if bare else _InputState.OPENING
        self._text = ""
        self.complete = False

    def feed(self, fragment: bytes) -> bytes:
        """The piece of the input that these arguments add, as a fragment."""
        text = text_of(fragment)
        self._text += text
        if self._state is _InputState.OPENING:
            self._state = self._opened()
        if self._state is _InputState.BARE:
            text, self._text = self._text, ""
            return fragment_of(text)
        return self._inside() if self._state is _InputState.INSIDE else b""

    def end(self) -> bytes:
        """The rest of the text. Sets `complete`."""
        if self._state is _InputState.CLOSING:
            self.complete = _CLOSING.fullmatch(self._text) is not None or _is_object('{"input":""' + self._text)
        elif self._state is _InputState.BARE:
            self.complete = True
        elif self._state in (_InputState.OPENING, _InputState.WHOLE):
            return self._judge_whole()
        return b""

    def _opened(self) -> _InputState:
        """The state that follows from the beginning of the arguments."""
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
            # An escape waits for its end.
            self._text = text[end:]
        return fragment_of(json.loads(f'"{text[:end]}"', strict=False)) if end else b""

    def _judge_whole(self) -> bytes:
        """Parse the whole arguments, because their beginning was unusual: another key, other quotes, or no value."""
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
