"""How values stand in columns: texts that PostgreSQL cannot hold as they are, and times.

Lives here: the one way of all texts to the server and back (`database.py` has every parameter and every column go it,
so no statement can leave it out), times as milliseconds, and ages. Not here: SQL, what a value means.

A client's ids and names are texts of any characters. UTF-8 has no surrogates, and PostgreSQL no U+0000; these, and the
character that says so, are written as U+001A with four hexadecimal digits. All others stand as they are.

Invariant: different texts stay different, and each comes back as it was given (as a column of its own: arrays of texts
only go to the server).
"""

from __future__ import annotations

import re
from typing import Any

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.ids import now
from antiphon.stores.tables import milliseconds

_MARK = "\x1a"
_ODD = re.compile(f"[\0{_MARK}\ud800-\udfff]")
_WRITTEN = re.compile(f"{_MARK}([0-9a-f]{{4}})")


def storable(value: Any) -> Any:
    """A parameter as the server takes it: a text or a list of them may hold what it cannot; all else stays."""
    if type(value) is str:
        return _ODD.sub(_write, value) if _ODD.search(value) else value
    if type(value) is list and any(type(each) is str and _ODD.search(each) for each in value):
        return [storable(each) for each in value]
    return value


def plain(data: bytes) -> str:
    """The text that was given, of a column's bytes."""
    text = data.decode()
    return _WRITTEN.sub(lambda found: chr(int(found[1], 16)), text) if _MARK in text else text


def _write(found: re.Match[str]) -> str:
    return f"{_MARK}{ord(found[0]):04x}"


NOW = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
"""The database's time, as columns have times."""


def age(record: ResponseRecord) -> int:
    """How long ago a response was completed (or made), in milliseconds: by one clock, this process's, so it is the same
    wherever that stands. What is kept for a time is kept from `NOW` less this."""
    return milliseconds(max(0.0, now() - (record.completed_at or record.created_at)))
