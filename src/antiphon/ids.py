"""Ids and time: the package's only source of randomness and of the current time.

Lives here: `IdFactory` and `Clock` (what the pure core is given) and their real implementations. Not here: the
fixed twins that tests use (`tests/support`).

Ids begin with the time, as OpenAI's do, so that those made one after the other stand side by side in a database's
indexes: a group of writes then changes a few pages, where ids that are random from the start change a page for each.

Invariant: an id is a type prefix plus at least 128 random bits, of `[A-Za-z0-9_]`, at most 64 characters; the time in
it is for nobody to read.
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
    # Written as one number: a format of its own for the time takes three times as long.
    return f"{prefix}_{(int(time.time() * 1000).to_bytes(6, 'big') + os.urandom(18)).hex()}"


def is_id(text: str, prefix: str) -> bool:
    """Whether `text` could be an id of ours: a cheap test before the store is asked."""
    return text.startswith(prefix + "_") and len(text) <= _MAX_LENGTH and _ALPHABET.issuperset(text)


def is_name(text: str) -> bool:
    """Whether `text` could name something that clients may name themselves."""
    return 0 < len(text) <= _MAX_LENGTH and _ALPHABET.issuperset(text.replace("-", "_"))


now: Clock = time.time
