"""Opens one connection to PostgreSQL: finds the primary, sets the session up, and converts texts.

Lives here: the servers that a URL names, which of them is used, and the one way of all texts to the server and back.
Not here: how many connections there are, and when one is given up (`database.py`), what a failure means
(`failures.py`).

A URL may name several servers, of which one is the primary and the others follow it. They are asked in turn, beginning
with the one that was good last, and the first that takes writes is it. Each gets its share of the time, so that one
whose machine is gone without a word does not use up that of the others. A single server, or what an address or a pooler
leads to, is held to the same: one that only follows, or was made read-only when another took its place, is not used,
since what it would tell may be old.

A process that gives a statement up closes its connection. A server that waits for a lock does not look at that, and the
process goes on with the next connection, until the server has none left. So a server is told to look, unless a pooler
is before it: nothing is set for a session there, and the role needs that setting (`checks.py` says so).

A client's ids and names are texts of any characters. UTF-8 has no surrogates, and PostgreSQL no U+0000; these, and the
character that says so, are written as U+001A with four hexadecimal digits. All others stand as they are. Every
parameter and every column of a connection goes that way, so no statement can leave it out.

Invariants: every connection is to a server that took writes when it was opened; what was given up on one without a
pooler ends within seconds, and gives its connection back; different texts stay different, and each comes back as it was
given (as a column of its own: arrays of texts only go to the server).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
from typing import Any, Literal, TypeAlias

import asyncpg

from antiphon.config.state_url import read_state_url, without_servers
from antiphon.errors import StoreError

Connection: TypeAlias = "asyncpg.Connection[Any]"
Kind = Literal["primary", "read-only", "unusable"]

_MARK = "\x1a"
_ODD = re.compile(f"[\0{_MARK}\ud800-\udfff]")
_WRITTEN = re.compile(f"{_MARK}([0-9a-f]{{4}})")

READ_ONLY = "current_setting('transaction_read_only') = 'on'"
"""Whether this server takes no writes, as SQL; true of a standby, too."""
# What a server says of itself at the beginning is not enough: a pooler repeats what it was told once.
_ASK = f"SELECT pg_is_in_recovery() AS follows, {READ_ONLY} AS read_only, pg_backend_pid() AS process"
# What an operator has set stays.
_LOOK_AT_CLIENT = """
SELECT set_config('client_connection_check_interval', '1s', false)
WHERE current_setting('client_connection_check_interval') = '0'
"""
# Some systems cannot look (Windows): there a statement that was given up ends when it is done.
_CANNOT_LOOK = (asyncpg.InvalidParameterValueError, asyncpg.FeatureNotSupportedError)
_FOLLOWS = "PostgreSQL: this server is a read-only replica. Point state.url at the primary."
_READ_ONLY = "PostgreSQL: transactions are read-only for this role or database. Unset default_transaction_read_only."
_NONE = "PostgreSQL: none of the servers in state.url that answer takes writes. Promote one."


class Servers:
    """Those of a URL, which is never shown."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._places: tuple[tuple[str, int], ...] = ()
        # Of a URL that is none the driver says what is wrong with it.
        with contextlib.suppress(ValueError):
            self._places = read_state_url(url).servers
        self._good = 0

    async def connect(self, seconds: float, **settings: str) -> Connection:
        """A connection to the one that takes writes; see `connect`."""
        if not self._places:
            return await _connect(self.url, seconds, settings)
        loop, failures = asyncio.get_running_loop(), []
        ends = loop.time() + seconds
        numbers = [*range(self._good, len(self._places)), *range(self._good)]
        for tried, number in enumerate(numbers):
            share = (ends - loop.time()) / (len(numbers) - tried)
            host, port = self._places[number]
            try:
                connection = await _connect(without_servers(self.url), share, settings, host=host, port=port)
            except Exception as error:
                failures.append(error)
            else:
                self._good = number
                return connection
        raise _most_telling(failures)


async def connect(url: str, seconds: float, **settings: str) -> Connection:
    """One connection, on which nothing is prepared under a name and texts may be any.

    `settings`: of the server, for this connection; a pooler may not take any. Raises what the driver raises, and
    `StoreError` where no server takes writes.
    """
    return await Servers(url).connect(seconds, **settings)


async def kinds_of_servers(url: str, seconds: float) -> dict[str, Kind]:
    """What each of several servers in the URL is, by host and port; nothing where it names only one."""
    found: dict[str, Kind] = {}
    for host, port in read_state_url(url).servers:
        kind: Kind = "primary"
        try:
            (await _connect(without_servers(url), seconds, {}, host=host, port=port)).terminate()
        except StoreError:
            kind = "read-only"
        except Exception:
            # Why, a connection to it alone would say; another one is at work.
            kind = "unusable"
        found[f"{host}:{port}"] = kind
    return found


async def _connect(url: str, seconds: float, settings: dict[str, str], **place: object) -> Connection:
    async with asyncio.timeout(seconds):
        connection: Connection = await asyncpg.connect(
            url,
            **place,
            timeout=seconds,
            statement_cache_size=0,
            # Asked below, of every server alike.
            target_session_attrs="any",
            server_settings={"application_name": "antiphon", **settings},
            connection_class=_Connection,
        )
        try:
            await connection.set_type_codec(
                "text", schema="pg_catalog", encoder=str.encode, decoder=plain, format="binary"
            )
            (row,) = await connection.fetch(_ASK)
            if row["read_only"]:
                # Another try may find another server there, or the same one promoted.
                raise StoreError(_FOLLOWS if row["follows"] else _READ_ONLY, reason="unavailable")
            if row["process"] == connection.get_server_pid():
                # A pooler makes a number up.
                with contextlib.suppress(*_CANNOT_LOOK):
                    await connection.fetch(_LOOK_AT_CLIENT)
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, AttributeError) as error:
            ended = connection.is_closed()
            connection.terminate()
            if not ended:
                raise
            # The driver speaks of itself where a connection has ended between two questions.
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error
        except BaseException:
            connection.terminate()
            raise
        return connection


def _most_telling(failures: list[Exception]) -> Exception:
    """What is said of several servers of which none can be used: what is wrong with the settings before that one
    follows, and that before one that is away."""
    answered = [one for one in failures if isinstance(one, StoreError)]
    others = [one for one in failures if not isinstance(one, StoreError | OSError | asyncpg.CannotConnectNowError)]
    if others:
        return others[0]
    if answered:
        return StoreError(_NONE, reason="unavailable")
    return failures[-1]


def storable(value: object) -> object:
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


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """One whose parameters may be any texts."""

    async def fetch(self, query: str, *args: object, **options: object) -> object:
        return await super().fetch(query, *map(storable, args), **options)

    async def execute(self, query: str, *args: object, **options: object) -> object:
        return await super().execute(query, *map(storable, args), **options)

    async def executemany(self, command: str, args: Any, **options: Any) -> Any:
        return await super().executemany(command, [[*map(storable, each)] for each in args], **options)
