"""Generates ids and returns the time: the package's only source of randomness and of the current time.

Lives here: `IdFactory` and `Clock` (the types that the pure core uses) and their real implementations. Not here: the
fixed versions for tests (`tests/support`).

Ids begin with the time, as OpenAI's do, so ids made in sequence are adjacent in a database's indexes. Then a group of
writes changes a few pages; with fully random ids, it would change a page for each id.

Invariant: an id is a type prefix plus at least 128 random bits, of `[A-Za-z0-9_]`, at most 64 characters. No code reads
the time in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

IdFactory = Callable[[str], str]
"""`prefix -> id`, for example `"resp" -> "resp_6f1c…"`."""

Clock = Callable[[], float]
"""Seconds since the epoch."""

_MAX_LENGTH: Final = 64
_ALPHABET: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def new_id(prefix: str) -> str:
    """A fresh id, `prefix_` and 48 hexadecimal digits: 12 of the milliseconds since the epoch, 36 random (144 bits)."""
    # Formatted as one number: a separate format for the time takes three times as long.
    return f"{prefix}_{(int(time.time() * 1000).to_bytes(6, 'big') + os.urandom(18)).hex()}"


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` could be one of Antiphon's ids: a cheap test before a query."""
    return text.startswith(prefix + "_") and len(text) <= _MAX_LENGTH and _ALPHABET.issuperset(text)


def is_name(text: str) -> bool:
    """Whether `text` is a valid name for an object that clients may name themselves."""
    return 0 < len(text) <= _MAX_LENGTH and _ALPHABET.issuperset(text.replace("-", "_"))


now: Clock = time.time
