"""Generates the ids of stored objects, and returns the current time.

This module defines `IdFactory` and `Clock`, the types of two functions that the exchange gets as arguments. The module
also implements both functions, and shortens ids for a terminal. Tests use the deterministic implementations in
`tests/support`.

Ids begin with the current time, as OpenAI's ids do. So ids created in sequence are adjacent in a database's indexes.
Therefore a batch of writes changes few index pages. With fully random ids, each new id would change a different page.

Invariant: an id is a type prefix and at least 128 random bits. An id has at most 64 characters of `[A-Za-z0-9_]`. No
code parses the time out of an id.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Final

IdFactory = Callable[[str], str]
"""A function from a type prefix to a new id, for example `"resp" -> "resp_6f1c…"`."""

Clock = Callable[[], float]
"""A function that returns the current time in seconds since the epoch."""

_MAX_LENGTH: Final = 64
_DIGITS: Final = 48
_SHORT_DIGITS: Final = 16
_WHOLE: Final = re.compile(rf"[a-z]{{1,8}}_[0-9a-f]{{{_DIGITS}}}")
_BEGINNING: Final = re.compile(rf"[a-z]{{1,8}}_[0-9a-f]{{{_SHORT_DIGITS},{_DIGITS - 1}}}")
_UUID_BEGINNING: Final = re.compile(rf"[0-9a-f]{{8}}-[0-9a-f]{{4}}-[0-9a-f-]{{{_SHORT_DIGITS - 14},22}}")
_ALPHABET: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def new_id(prefix: str, clock: Clock = time.time) -> str:
    """Create an id: `prefix_` and 48 hexadecimal digits. The first 12 hexadecimal digits of an id are the milliseconds
    since the epoch, and the other 36 (144 bits) are random.

    For example, `new_id("resp")` returned `resp_019c11597000…` on 31 January 2026. The prefixes of objects are `resp`,
    `conv`, `pmpt`, `vs`, `vsfb`, `cntr`, `cfile` and `key`. The ids of uploaded files begin with `file-`.
    """
    # One conversion for time and random bytes together: formatting them separately takes three times as long.
    return f"{prefix}_{(int(clock() * 1000).to_bytes(6, 'big') + os.urandom(18)).hex()}"


def shortened(text: str) -> str:
    """Shorten an id for a terminal to its prefix and its first 16 digits: the time and 16 random bits. A text that does
    not have the form of an id stays unchanged."""
    return text[: -_DIGITS + _SHORT_DIGITS] if _WHOLE.fullmatch(text) else text


def is_shortened(text: str) -> bool:
    """Return whether `text` is the beginning of an id and has at least the 16 digits that `shortened` keeps. The first
    16 characters of a UUID, which is a request id of Envoy, count too."""
    return _BEGINNING.fullmatch(text) is not None or _UUID_BEGINNING.fullmatch(text) is not None


def is_id(text: str, prefix: str) -> bool:
    """Return whether `text` has the form of an id with this prefix. Callers use this cheap test before a query.

    For example, `is_id("resp_1a", "resp")` is true. `is_id("resp-1a", "resp")` and `is_id("conv_1a", "resp")` are
    false.
    """
    return text.startswith(prefix + "_") and len(text) <= _MAX_LENGTH and _ALPHABET.issuperset(text)


def is_name(text: str) -> bool:
    """Return whether `text` is a valid id for an object whose id the client may choose: `[A-Za-z0-9_-]{1,64}`."""
    return 0 < len(text) <= _MAX_LENGTH and _ALPHABET.issuperset(text.replace("-", "_"))


now: Clock = time.time
