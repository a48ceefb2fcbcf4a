"""Opens one connection to PostgreSQL: finds the primary, sets the session up, and converts texts.

Lives here: the servers of a URL, the selection of one, and the conversion of all texts to the server and back. Not
here: the number of connections and their timeouts (`database.py`), the meaning of a failure (`failures.py`).

A URL may name several servers: one primary, and others that replicate it. This module tries them in turn, the last good
one first, and uses the first that accepts writes. Each gets a share of the time, so a dead machine does not use up the
time of the others. A single server, or the server behind a name or a pooler, must pass the same check. A replica, or a
primary that was made read-only after a failover, is refused, because its data may be old.

A process that abandons a statement closes its connection. A server that waits for a lock does not notice this, and the
process continues with another connection, until the server has none left. So this module asks the server to check its
clients (`client_connection_check_interval`). Behind a pooler it cannot, because a session has no settings there; then
the role needs that setting (`checks.py` reports this).

Clients' ids and names are texts with any characters. UTF-8 cannot encode surrogates, and PostgreSQL cannot store
U+0000. These, and the escape character itself, are written as U+001A with four hexadecimal digits. Every parameter and
column of a connection passes this conversion, so no statement can omit it.

Invariants: every connection leads to a server that accepted writes when it was opened. Without a pooler, an abandoned
statement ends within seconds and frees its connection. Different texts stay different, and each is read back unchanged
(as a column of type text; arrays of texts only go to the server).
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
"""SQL: whether this server accepts no writes; also true on a standby."""
# The parameters that a server sends at the start are not enough: a pooler repeats old values.
_ASK = f"SELECT pg_is_in_recovery() AS follows, {READ_ONLY} AS read_only, pg_backend_pid() AS process"
# Keeps a value that the operator has set.
_LOOK_AT_CLIENT = """
SELECT set_config('client_connection_check_interval', '1s', false)
WHERE current_setting('client_connection_check_interval') = '0'
"""
# Some systems do not support the check (Windows): there an abandoned statement runs to its end.
_CANNOT_LOOK = (asyncpg.InvalidParameterValueError, asyncpg.FeatureNotSupportedError)
_FOLLOWS = "PostgreSQL: this server is a read-only replica. Point state.url at the primary."
_READ_ONLY = "PostgreSQL: transactions are read-only for this role or database. Unset default_transaction_read_only."
_NONE = "PostgreSQL: none of the servers in state.url that answer takes writes. Promote one."


class Servers:
    """The servers of a URL. The URL is never shown."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._places: tuple[tuple[str, int], ...] = ()
        # For an invalid URL, the driver gives the error.
        with contextlib.suppress(ValueError):
            self._places = read_state_url(url).servers
        self._good = 0

    async def connect(self, seconds: float, **settings: str) -> Connection:
        """A connection to the server that accepts writes; see `connect`."""
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
    """Open one connection, without named prepared statements and with the conversion of texts.

    `settings`: of the server, for this connection; a pooler may refuse any. Raises the driver's errors, and
    `StoreError` when no server accepts writes.
    """
    return await Servers(url).connect(seconds, **settings)


async def kinds_of_servers(url: str, seconds: float) -> dict[str, Kind]:
    """The kind of each of several servers in the URL, by host and port; empty for a URL with one server."""
    found: dict[str, Kind] = {}
    for host, port in read_state_url(url).servers:
        kind: Kind = "primary"
        try:
            (await _connect(without_servers(url), seconds, {}, host=host, port=port)).terminate()
        except StoreError:
            kind = "read-only"
        except Exception:
            # A connection to it alone would show the reason; another server is in use.
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
            # Checked below, in the same way for every server.
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
                # The next attempt may find another server there, or the same one promoted.
                raise StoreError(_FOLLOWS if row["follows"] else _READ_ONLY, reason="unavailable")
            if row["process"] == connection.get_server_pid():
                # A pooler invents this number.
                with contextlib.suppress(*_CANNOT_LOOK):
                    await connection.fetch(_LOOK_AT_CLIENT)
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, AttributeError) as error:
            ended = connection.is_closed()
            connection.terminate()
            if not ended:
                raise
            # The driver raises an error about itself when a connection ends between two queries.
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error
        except BaseException:
            connection.terminate()
            raise
        return connection


def _most_telling(failures: list[Exception]) -> Exception:
    """The most useful error when no server is usable. A wrong setting comes before a read-only server, and that before
    an unreachable one."""
    answered = [one for one in failures if isinstance(one, StoreError)]
    others = [one for one in failures if not isinstance(one, StoreError | OSError | asyncpg.CannotConnectNowError)]
    if others:
        return others[0]
    if answered:
        return StoreError(_NONE, reason="unavailable")
    return failures[-1]


def storable(value: object) -> object:
    """The parameter in a form that the server can store: texts and lists of texts are escaped, other values are
    unchanged."""
    if type(value) is str:
        return _ODD.sub(_write, value) if _ODD.search(value) else value
    if type(value) is list and any(type(each) is str and _ODD.search(each) for each in value):
        return [storable(each) for each in value]
    return value


def plain(data: bytes) -> str:
    """The original text from a column's bytes."""
    text = data.decode()
    return _WRITTEN.sub(lambda found: chr(int(found[1], 16)), text) if _MARK in text else text


def _write(found: re.Match[str]) -> str:
    return f"{_MARK}{ord(found[0]):04x}"


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that accepts any texts as parameters."""

    async def fetch(self, query: str, *args: object, **options: object) -> object:
        return await super().fetch(query, *map(storable, args), **options)

    async def execute(self, query: str, *args: object, **options: object) -> object:
        return await super().execute(query, *map(storable, args), **options)

    async def executemany(self, command: str, args: Any, **options: Any) -> Any:
        return await super().executemany(command, [[*map(storable, each)] for each in args], **options)
