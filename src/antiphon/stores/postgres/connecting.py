"""Opens one connection to PostgreSQL: finds the primary server, configures the session, and escapes texts.

Lives here: the selection of one server from those in a URL, and the conversion of the texts that the server stores. Not
here: the number of connections and their timeouts (`database.py`), the meaning of a failure (`failures.py`).

A URL may name several servers: one primary, and replicas of the primary. This module tries the servers in turn, the
last good server first, and uses the first server that accepts writes. Each server gets an equal share of the timeout,
so that a dead machine does not use up the time for the other servers. If the URL has only one server, this server must
accept writes too, even behind a DNS name or a pooler. The module refuses a replica, and an old primary that is
read-only after a failover, because their data may be outdated.

When an Antiphon process abandons a statement, for example at a timeout, the process closes the statement's connection.
The server does not notice the closed connection while the statement waits for a lock. The process opens another
connection. After several abandoned statements the server has no connection left. So this module configures the session
so that the server checks whether the client is alive (`client_connection_check_interval`). Behind a pooler a session
has no settings, so the operator must set the parameter for the role. `checks.py` reports when the parameter is not set.

Ids and names from clients are texts with any characters. UTF-8 cannot encode surrogates, and PostgreSQL cannot store
U+0000. So this module writes each of these characters, and the escape character itself, as U+001A with four hexadecimal
digits. The connection converts every parameter and every column, so queries contain no conversion.

Invariants: every connection leads to a server that accepted writes when the connection was opened. Without a pooler, an
abandoned statement ends within seconds and frees its connection. Different texts stay different after the conversion. A
read of a `text` column returns the original text. The conversion does not cover columns with arrays of texts, so no
query reads such a column.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import asyncpg

from antiphon.config.urls import read_state_url, without_servers
from antiphon.errors import StoreError

Connection: TypeAlias = "asyncpg.Connection[Any]"
Kind = Literal["primary", "read-only", "unusable"]

_MARK = "\x1a"
_ODD = re.compile(f"[\0{_MARK}\ud800-\udfff]")
_WRITTEN = re.compile(f"{_MARK}([0-9a-f]{{4}})")

READ_ONLY = "current_setting('transaction_read_only') = 'on'"
"""SQL: true if this server accepts no writes, for example because it is a standby."""
# A query reads the server's state, because a pooler repeats old values of the parameters that a server sends at login.
_ASK = f"SELECT pg_is_in_recovery() AS follows, {READ_ONLY} AS read_only, pg_backend_pid() AS process"
# Sets `client_connection_check_interval` only if the operator has not set a value.
_LOOK_AT_CLIENT = """
SELECT set_config('client_connection_check_interval', '1s', false)
WHERE current_setting('client_connection_check_interval') = '0'
"""
# A server on Windows does not support the check of its clients, so an abandoned statement runs to its end.
_CANNOT_LOOK = (asyncpg.InvalidParameterValueError, asyncpg.FeatureNotSupportedError)
_FOLLOWS = "PostgreSQL: this server is a read-only replica. Point state.url at the primary."
_READ_ONLY = "PostgreSQL: transactions are read-only for this role or database. Unset default_transaction_read_only."
_NONE = (
    "PostgreSQL: servers in state.url answer, but none of them accepts writes. Promote one of these servers to primary."
)


class Servers:
    """The servers in a URL, and the server that accepted writes last. No message shows the URL, because it may contain
    a password."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._places: tuple[tuple[str, int], ...] = ()
        # For an invalid URL, `connect` raises the driver's error.
        with contextlib.suppress(ValueError):
            self._places = read_state_url(url).servers
        self._good = 0

    async def connect(self, seconds: float, **settings: str) -> Connection:
        """Open a connection to the server that accepts writes. See the function `connect`."""
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
    """Open one connection to the server that accepts writes. The connection uses no named prepared statements, and
    escapes texts as this module's docstring describes.

    `settings`: server parameters for this connection. A pooler may refuse the connection because of such parameters.
    Raises the driver's errors, and `StoreError` when no server accepts writes.
    """
    return await Servers(url).connect(seconds, **settings)


async def kinds_of_servers(url: str, seconds: float) -> dict[str, Kind]:
    """Return the kind of each server (`primary`, `read-only` or `unusable`) in a URL with several servers, by host and
    port. The result is empty for a URL with one server."""
    found: dict[str, Kind] = {}
    for host, port in read_state_url(url).servers:
        kind: Kind = "primary"
        try:
            (await _connect(without_servers(url), seconds, {}, host=host, port=port)).terminate()
        except StoreError:
            kind = "read-only"
        except Exception:
            # The cause of the failure does not matter, because the process uses another server.
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
            # The code below checks for a writable server instead, also behind a pooler.
            target_session_attrs="any",
            server_settings={"application_name": "antiphon", **settings},
            connection_class=_Connection,
        )
        try:
            await connection.set_type_codec(
                "text", schema="pg_catalog", encoder=str.encode, decoder=unescape_text, format="binary"
            )
            (row,) = await connection.fetch(_ASK)
            if row["read_only"]:
                # `unavailable` allows a retry, because a failover may replace or promote the server.
                raise StoreError(_FOLLOWS if row["follows"] else _READ_ONLY, reason="unavailable")
            if row["process"] == connection.get_server_pid():
                # The ids are equal only without a pooler, because a pooler invents the id that it sends at login.
                with contextlib.suppress(*_CANNOT_LOOK):
                    await connection.fetch(_LOOK_AT_CLIENT)
        except (asyncpg.InterfaceError, asyncpg.InternalClientError, AttributeError) as error:
            ended = connection.is_closed()
            connection.terminate()
            if not ended:
                raise
            # asyncpg raises an internal error when a connection ends between two queries, so report a lost connection
            # instead.
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error
        except BaseException:
            connection.terminate()
            raise
        return connection


def _most_telling(failures: list[Exception]) -> Exception:
    """Return the most useful error when no server is usable. An error about a wrong setting comes first, then the error
    about read-only servers, then the error about an unreachable server."""
    answered = [one for one in failures if isinstance(one, StoreError)]
    others = [one for one in failures if not isinstance(one, StoreError | OSError | asyncpg.CannotConnectNowError)]
    if others:
        return others[0]
    if answered:
        return StoreError(_NONE, reason="unavailable")
    return failures[-1]


def escape_text(value: object) -> object:
    """Escape a text, or each text in a list, so that the server can store the parameter. Other values stay
    unchanged."""
    if type(value) is str:
        return _ODD.sub(_write, value) if _ODD.search(value) else value
    if type(value) is list and any(type(each) is str and _ODD.search(each) for each in value):
        return [escape_text(each) for each in value]
    return value


def unescape_text(data: bytes) -> str:
    """Decode a text column's bytes and undo the escapes of `escape_text`."""
    text = data.decode()
    return _WRITTEN.sub(lambda found: chr(int(found[1], 16)), text) if _MARK in text else text


def _write(found: re.Match[str]) -> str:
    return f"{_MARK}{ord(found[0]):04x}"


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that escapes every text parameter with `escape_text`."""

    async def fetch(self, query: str, *args: object, **options: object) -> object:
        return await super().fetch(query, *map(escape_text, args), **options)

    async def execute(self, query: str, *args: object, **options: object) -> object:
        return await super().execute(query, *map(escape_text, args), **options)

    async def executemany(self, command: str, args: Iterable[Sequence[object]], **options: object) -> object:
        return await super().executemany(command, [[*map(escape_text, each)] for each in args], **options)
