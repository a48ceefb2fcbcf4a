"""What answers to heads and ends are made of, written by hand: changes of headers, and metadata.

Lives here: the bytes of `HeaderMutation` and of `dynamic_metadata`. Not here: the messages around them (`wire.py`),
parts of bodies (`body_messages.py`), and reading (`head_reader.py`).

With the generated classes these messages cost twice as much: each field of each header is an object on the way. And
most headers are the same in every answer; those are kept. A value that may be a credential never is.

Invariant: the generated classes read what is written here as what they would have been told (a test compares them).
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

from antiphon.doors.extproc.body_messages import varint
from antiphon.types.transport import BACKEND_HEADER, Headers

# A field's first byte is its number and its kind: 2 for what has a length, 1 for eight bytes, 0 for a number.
_FIRST: Final = b"\x0a"
_SECOND: Final = b"\x12"
_RAW_VALUE: Final = b"\x1a"
_OVERWRITE_IF_EXISTS_OR_ADD: Final = b"\x18\x02"
_DYNAMIC_METADATA: Final = b"\x42"
_TEXT: Final = b"\x1a"
_STRUCT: Final = b"\x2a"
_SMALL: Final = tuple(varint(number) for number in range(1024))
_double: Final = Struct("<d").pack
_LONGEST_TEXT: Final = 256
# What has few values of all that Envoy is told. (Each response has an id of its own.)
_TOLD_ALIKE: Final = frozenset({"status", "model"})
# Headers with few values, whoever asks.
_ALIKE: Final = frozenset({":method", ":path", ":status", "content-type", "accept", "cache-control", BACKEND_HEADER})


def within(tag: bytes, content: bytes) -> bytes:
    """A field with a length: a message or a text inside a message."""
    size = len(content)
    return tag + (_SMALL[size] if size < 1024 else varint(size)) + content


def header_mutation(headers: Headers, remove: tuple[str, ...] = ()) -> bytes:
    """Set these headers, each once, and take away those names."""
    parts = [_set_alike(name, value) if name in _ALIKE else _set(name, value) for name, value in headers]
    parts += [_removed(name) for name in remove]
    return b"".join(parts)


def _set(name: str, value: str) -> bytes:
    key, raw = _key(name), value.encode("utf-8", "surrogateescape")
    size = len(key) + len(raw)
    if size < 120:
        # Nearly all: every length is one byte.
        return b"\x0a%c\x0a%c%b\x1a%c%b\x18\x02" % (size + 6, size + 2, key, len(raw), raw)
    header = within(_FIRST, key + within(_RAW_VALUE, raw))
    return within(_FIRST, header + _OVERWRITE_IF_EXISTS_OR_ADD)


_set_alike: Final = lru_cache(maxsize=1024)(_set)


@lru_cache(maxsize=1024)
def _key(name: str) -> bytes:
    return within(_FIRST, name.encode())


@lru_cache(maxsize=1024)
def _removed(name: str) -> bytes:
    return within(_SECOND, name.encode())


def dynamic_metadata(namespace: str, metadata: dict[str, str | int]) -> bytes:
    """The field of an answer that tells Envoy this; it may stand behind all others. Texts as `_loggable` has them."""
    entries = [
        _before_number(name) + _double(value)
        if isinstance(value, int)
        else _told_alike(name, value)
        if name in _TOLD_ALIKE and len(value) <= _LONGEST_TEXT
        else _told(name, value)
        for name, value in metadata.items()
    ]
    inside = within(_SECOND, within(_STRUCT, b"".join(entries)))
    return within(_DYNAMIC_METADATA, within(_FIRST, _key(namespace) + inside))


def _told(name: str, value: str) -> bytes:
    return within(_FIRST, _key(name) + within(_SECOND, within(_TEXT, _loggable(value).encode())))


_told_alike: Final = lru_cache(maxsize=1024)(_told)


def _loggable(text: str) -> str:
    """Text that a client chose, as it may stand in an access log: short, and without line breaks."""
    text = text[:_LONGEST_TEXT]
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else "?" for letter in text)


@lru_cache(maxsize=1024)
def _before_number(name: str) -> bytes:
    """All bytes of an entry before its number, which are always eight."""
    key = _key(name)
    return _FIRST + varint(len(key) + 11) + key + b"\x12\x09\x11"
