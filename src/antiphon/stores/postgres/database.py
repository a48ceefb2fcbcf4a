"""Manages a process's connection pool to PostgreSQL, with few connections and one deadline per operation.

Lives here: the pool of connections, the deadline of an operation, retries, and the query for the outcome of a commit.
Not here: SQL, opening a connection and choosing the server (`connecting.py`), the meaning of an error (`failures.py`),
LISTEN (`signals.py`, on a separate connection).

One deadline covers the wait for a connection, opening a connection, and all statements of the operation. At the
deadline, this module aborts the socket, because a hanging server would not answer a cancel request. For half a second
after a failed attempt to connect, all callers get the error of this attempt immediately. If the server has no free
connection, callers wait until their deadline. A waiting caller uses a connection that this process or another process
frees.

The pool works behind a pooler that assigns a server connection per transaction (pgbouncer, `pool_mode=transaction`). So
the pool uses no named prepared statements and no session settings. With prepared statements, a driver behind such a
pooler silently gets the results of other clients.

A server that stops accepting writes is no longer the primary. After a read-only error, the pool retries the operation
on a new connection to the primary, or raises an error. The pool never reuses an old connection to a server that has
stopped accepting writes.

Invariants: the pool never has more than `size` connections. An operation that ends without the server's answer closes
its connection. Every call ends by its deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

import asyncpg

from antiphon.errors import StoreError
from antiphon.stores.postgres.connecting import Connection as Connection
from antiphon.stores.postgres.connecting import Servers
from antiphon.stores.postgres.failures import (
    DIRECT_URL,
    TRY_AGAIN,
    URL,
    code_of,
    connecting_failed,
    hopeless,
    no_connection_left,
    read_only,
    refused,
    store_error,
    unknown,
)
from antiphon.stores.tables import Row

T = TypeVar("T")
Record: TypeAlias = Row
_Doing: TypeAlias = Literal["Reading", "Writing"]


# If a client machine dies, the server keeps its transaction and its locks until this timeout.
_IDLE = "SET LOCAL idle_in_transaction_session_timeout = '10s'"
_BEGIN = f"BEGIN; {_IDLE}"
_BEGIN_SNAPSHOT = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_IDLE}"

_REFUSE_SECONDS = 0.5
_PAUSES = (0.005, 0.01, 0.02, 0.05, 0.1)
_CLOSE_SECONDS = 1.0
_NUMBER = "SELECT pg_current_xact_id()::text"
_STATUS = "SELECT pg_xact_status($1::text::xid8)"
_COMMITS = 3
_ASK_PAUSE = 0.05


@dataclass(frozen=True, slots=True)
class DatabaseLimits:
    """The limits of a connection pool. `size`: the maximum number of connections. `deadline`: seconds for an operation,
    including the wait for a connection. `connect`: the maximum seconds for opening a connection, which count toward
    `deadline`."""

    size: int = 4
    deadline: float = 4.5
    connect: float = 3.0


class Database:
    """A connection pool to one PostgreSQL database. `url`: a URL in libpq's form, which no message shows. `setting`:
    the name of the setting with the URL, for error messages."""

    def __init__(self, url: str, limits: DatabaseLimits | None = None, *, setting: str = URL) -> None:
        self._servers = Servers(url)
        self.setting = setting
        self.limits = limits or DatabaseLimits()
        self._places = asyncio.Semaphore(self.limits.size)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._left: set[Connection] = set()
        self._waiting = 0
        self._returned: asyncio.Event | None = None
        self._refused: tuple[float, StoreError] | None = None
        self._closed = False
        self.read = self.written = -math.inf
        """The times of the last successful read and of the last successful write, by `time.monotonic`."""

    def setting_of(self, url: str) -> str:
        """Return the name of the setting that contains this URL, for error messages. A URL that differs from the pool's
        URL comes from `state.direct_url`."""
        return self.setting if url == self._servers.url else DIRECT_URL

    @property
    def busy(self) -> int:
        """The number of connections in use."""
        return len(self._busy)

    @property
    def open(self) -> int:
        """The number of open connections, in use or idle."""
        return len(self._busy) + len(self._idle)

    @property
    def waiting(self) -> int:
        """The number of callers that wait for a connection."""
        return self._waiting

    async def fetch(self, sql: str, *args: object) -> list[Record]:
        """Run one read-only statement and return its rows. Retries on a new connection when a connection is lost.
        Raises `StoreError`."""
        return await self._work("Reading", lambda connection: connection.fetch(sql, *args), again=True)

    async def write(self, sql: str, *args: object, again: bool = False) -> list[Record]:
        """Run one statement that writes, and return its rows. Raises `StoreError`. A `StoreError` with the reason
        `unknown` means that the statement may have taken effect.

        `again`: the statement is idempotent, so this method retries it when a connection is lost.
        """
        return await self._work("Writing", lambda connection: connection.fetch(sql, *args), again=again)

    async def alone(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """Run `work`, which executes one idempotent statement outside a transaction. Retries when a connection is lost.
        Raises `StoreError`, and the errors of `work`."""
        return await self._work("Writing", work, again=True)

    async def transaction(
        self, work: Callable[[Connection], Awaitable[T]], *, snapshot: bool = False, again: bool = False
    ) -> T:
        """Run `work` in one transaction. `snapshot`: whether the statements write nothing and must read one snapshot.
        `again`: whether the statements are idempotent. If so, this method repeats them when the connection is lost at
        the commit.

        After a serialization failure or a deadlock, this method repeats `work`, so `work` must have no effects outside
        the transaction. Raises `StoreError`, and the errors of `work`. The reason `unknown` means that the connection
        was lost at the commit.
        """
        begin = _BEGIN_SNAPSHOT if snapshot else _BEGIN

        async def unit(connection: Connection) -> T:
            try:
                await connection.execute(begin)
                result = await work(connection)
            except Exception as error:
                if connection.is_closed() or (_from_driver(error) and not refused(error)):
                    raise _NothingDone from error
                with contextlib.suppress(Exception):
                    # If the ROLLBACK fails, the connection is lost, and the server rolls the transaction back.
                    await connection.execute("ROLLBACK")
                raise
            await connection.execute("COMMIT")
            return result

        return await self._work("Reading" if snapshot else "Writing", unit, again=snapshot or again)

    async def aclose(self) -> None:
        """Wait for the running operations, which end by their deadlines, then close the connections."""
        self._closed = True
        self.read = self.written = -math.inf
        for _ in range(self.limits.size):
            await self._places.acquire()
        idle, self._idle = self._idle, []
        for connection in idle:
            with contextlib.suppress(Exception):
                await connection.close(timeout=_CLOSE_SECONDS)
        for _ in range(self.limits.size):
            self._places.release()

    async def _work(self, doing: _Doing, work: Callable[[Connection], Awaitable[T]], *, again: bool) -> T:
        deadline = asyncio.get_running_loop().time() + self.limits.deadline
        for tries in range(1000):
            connection = await self._acquire(deadline)
            try:
                done = await self._on(connection, deadline, work)
                self._succeeded(doing)
                return done
            except _ConnectionLost as lost:
                cause = lost.cause
                if hopeless(cause):
                    raise store_error(doing, cause, setting=self.setting) from cause
                if asyncio.get_running_loop().time() >= deadline:
                    if read_only(cause):
                        raise store_error(doing, cause, setting=self.setting) from cause
                    raise (_too_slow(doing) if again or lost.nothing_done else unknown(cause)) from cause
                if not again and not lost.nothing_done:
                    raise unknown(cause) from cause
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if code_of(error) not in TRY_AGAIN or asyncio.get_running_loop().time() >= deadline:
                    raise store_error(doing, error, setting=self.setting) from error
            await asyncio.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
        raise StoreError(
            f"{doing} failed: PostgreSQL: a deadlock or a serialization conflict between transactions.", reason="locked"
        )

    def _succeeded(self, doing: _Doing) -> None:
        at = time.monotonic()
        if doing == "Writing":
            self.written = at
        else:
            self.read = at

    async def _on(self, connection: Connection, deadline: float, work: Callable[[Connection], Awaitable[T]]) -> T:
        # A timer aborts the socket at the deadline. A task cancellation is no alternative, because the driver would
        # then send a cancel request over another connection and wait for the result.
        loop = asyncio.get_running_loop()
        timer = loop.call_at(deadline, connection.terminate)
        good = False
        try:
            result = await work(connection)
            good = True
            return result
        except _NothingDone as error:
            self._leave(error.__cause__)
            raise _ConnectionLost(error.__cause__ or error, nothing_done=True) from error.__cause__
        except Exception as error:
            closed = connection.is_closed()
            # asyncpg raises an `AttributeError` when the connection ends between two messages, because it does not
            # check for this.
            driver = _from_driver(error) or (closed and isinstance(error, AttributeError))
            good = not closed and (refused(error) or not driver)
            if good or not driver:
                raise
            self._leave(error)
            # asyncpg raises an `InterfaceError` before it sends the statement, because the connection was already
            # closed.
            raise _ConnectionLost(
                error, nothing_done=isinstance(error, asyncpg.InterfaceError) or read_only(error)
            ) from error
        finally:
            timer.cancel()
            self._give_back(connection, good)

    async def _acquire(self, deadline: float) -> Connection:
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._places.acquire()
        except TimeoutError:
            raise _too_slow("Waiting for a connection") from None
        finally:
            self._waiting -= 1
        connection: Connection | None = None
        full: StoreError | None = None
        try:
            while connection is None:
                if self._closed:
                    raise StoreError("The store is closed.")
                while self._idle and connection is None:
                    candidate = self._idle.pop()
                    connection = None if candidate.is_closed() else candidate
                if connection is None:
                    opened = await self._open(deadline, full)
                    if isinstance(opened, StoreError):
                        full = opened
                    else:
                        connection = opened
            self._busy.add(connection)
            return connection
        finally:
            if connection is None:
                self._places.release()

    def _leave(self, error: BaseException | None) -> None:
        """Stop using the existing connections if the error shows that their server is no longer the primary."""
        if error is None or not read_only(error):
            return
        self._left |= self._busy
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.terminate()

    def _give_back(self, connection: Connection, good: bool) -> None:
        self._busy.discard(connection)
        good = good and connection not in self._left
        self._left.discard(connection)
        if good and not connection.is_closed():
            self._idle.append(connection)
        else:
            connection.terminate()
        if self._returned is not None:
            self._returned.set()
            self._returned = None
        self._places.release()

    async def _open(self, deadline: float, full: StoreError | None) -> Connection | StoreError:
        """Open a connection to the server. If the server has no free connection, wait up to half a second and return
        the failure. The caller then looks for an idle connection and tries again.

        `full`: the failure of the previous attempt, which this method raises instead of a less useful timeout."""
        # Create the event before the attempt, so that the event also reports a connection freed during the attempt.
        returned = self._returned = self._returned or asyncio.Event()
        try:
            return await self._connect(deadline)
        except StoreError as failure:
            if full is not None and isinstance(failure.__cause__, TimeoutError):
                raise full from full.__cause__
            if not no_connection_left(failure.__cause__):
                raise
            loop = asyncio.get_running_loop()
            again = loop.time() + _REFUSE_SECONDS
            self._waiting += 1
            try:
                async with asyncio.timeout_at(min(deadline, again)):
                    await returned.wait()
            except TimeoutError:
                if deadline <= again:
                    raise failure from failure.__cause__
            finally:
                self._waiting -= 1
            return failure

    async def _connect(self, deadline: float) -> Connection:
        loop = asyncio.get_running_loop()
        if self._refused is not None and loop.time() < self._refused[0]:
            raise self._refused[1].again()
        ends = loop.time() + self.limits.connect
        try:
            async with asyncio.timeout_at(min(deadline, ends)):
                connection = await self._servers.connect(self.limits.connect)
        except Exception as error:
            if isinstance(error, TimeoutError) and deadline < ends:
                raise _too_slow("Connecting") from error
            failure = connecting_failed(error, self.setting, url=self._servers.url)
            self._refused = (loop.time() + _REFUSE_SECONDS, failure)
            raise failure from error
        self._refused = None
        return connection


async def committed_once(database: Database, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Run `work` in one transaction that must commit only once. When the connection is lost at the commit, this
    function asks the server for the outcome, and repeats `work` if the transaction did not commit. Raises `StoreError`,
    and the errors of `work`. The reason `unknown` means that the server did not answer in time.

    The transaction reads its transaction id before `work` runs. If the outcome of the commit is unknown, a query on a
    new connection passes that id to `pg_xact_status`. The server knows the outcome even after a crash.
    """
    number = ""
    result: T

    async def numbered(connection: Connection) -> T:
        nonlocal number, result
        number = (await connection.fetch(_NUMBER))[0][0]
        result = await work(connection)
        return result

    for tries in range(_COMMITS):
        try:
            return await database.transaction(numbered)
        except StoreError as error:
            if error.reason != "unknown":
                raise
            if await _has_committed(database, number, error):
                return result
            if tries == _COMMITS - 1:
                raise StoreError(str(error), reason="unavailable") from error
    raise AssertionError("unreachable")


async def _has_committed(database: Database, number: str, failure: StoreError) -> bool:
    """Return whether the transaction with this id has committed. Waits while the transaction still runs. Raises
    `failure` when the server does not answer by the deadline, or no longer knows the id."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + database.limits.deadline
    while loop.time() < ends:
        try:
            status = (await database.fetch(_STATUS, number))[0][0]
        except StoreError:
            status = "in progress"
        if status is None:
            break
        if status != "in progress":
            return bool(status == "committed")
        await asyncio.sleep(_ASK_PAUSE)
    raise failure


class _NothingDone(Exception):
    """The connection was lost before this process sent the COMMIT. `__cause__` is the original error."""


class _ConnectionLost(Exception):
    """The connection was lost during an operation. `nothing_done`: whether the operation certainly had no effect."""

    def __init__(self, cause: BaseException, *, nothing_done: bool = False) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.nothing_done = nothing_done


def _from_driver(error: BaseException) -> bool:
    return isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError | asyncpg.InternalClientError | OSError)


def _too_slow(doing: str) -> StoreError:
    return StoreError(f"{doing} failed: PostgreSQL: the server did not answer in time.", reason="slow")
