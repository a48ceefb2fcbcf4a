"""Translates errors of PostgreSQL and of its connections into `StoreError`.

Lives here: the translation into `StoreError` with advice for the operator, and the list of errors after which a retry
helps. Not here: the retries (`database.py`), the queries.

There are three kinds of failures. If the server refused a statement, the statement had no effect, and the connection is
still usable. If the connection was lost before the commit request, the transaction had no effect. If the connection was
lost after the commit request, the outcome is `unknown`. After an unknown outcome, some callers query whether the
database has stored their object.

Invariant: no message contains stored data, a parameter or the password. A message shows only the code of a server's
error. A pooler uses one code for all errors, so this module chooses the advice by known words in the pooler's message.
"""

from __future__ import annotations

import errno
import os
import re
import ssl

import asyncpg

from antiphon.errors import StoreError, StoreReason

_NUMBER = re.compile(r"\[Errno (\d+)\]")

URL, DIRECT_URL = "state.url", "state.direct_url"
"""The settings with the URL of a server. An error message names the setting of the failing connection."""

TRY_AGAIN = frozenset({"40001", "40P01"})
"""The codes of serialization failures and deadlocks, after which a retry of the same work can succeed."""

# The reason and the advice for a server's error. The lookup tries the whole code first, then its class of two
# characters (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_ADVICE: dict[str, tuple[StoreReason, str]] = {
    "25006": (
        "read_only",
        "the server refuses writes, because it is a replica or its default is read-only; name the primary in state.url",
    ),
    "28000": (
        "failed",
        "the server refused the user or a connection without TLS; check pg_hba.conf, and the user and sslmode in "
        "state.url",
    ),
    "28P01": ("failed", "the server refused the password; check state.url"),
    "3D000": ("failed", "there is no such database; create the database, or check the name in state.url"),
    "3F000": ("failed", "no schema of the role's search_path exists; create the schema, or change search_path"),
    "42501": (
        "failed",
        "the role lacks a privilege; it must own the tables, or have SELECT, INSERT, UPDATE and DELETE on all tables",
    ),
    "42P01": ("failed", "a table is missing; run `antiphon migrate up`"),
    "42703": ("failed", "a column is missing; run `antiphon migrate up`"),
    "53100": ("full", "the server's disk is full; free space on the disk"),
    "53200": (
        "slow",
        "the server is out of memory; give the server more memory, or lower its work_mem or max_connections",
    ),
    "53300": (
        "slow",
        "the server has no connection left; raise max_connections, or the CONNECTION LIMIT of the role or database, or "
        "lower state.pool",
    ),
    "55P03": (
        "locked",
        "another transaction held the lock of a row for too long; look for long transactions in pg_stat_activity",
    ),
    "57014": (
        "slow",
        "the server cancelled the statement, because it took too long; check statement_timeout and the server's load",
    ),
    "57P01": ("unavailable", "the server is shutting down"),
    "57P02": ("unavailable", "the server crashed and is starting again"),
    "57P03": ("unavailable", "the server is starting"),
    "58030": ("failed", "the server's disk reported an error; read the server's log"),
    "08": ("unavailable", "the connection was lost"),
    "22": ("failed", "a value cannot be stored"),
    "23": ("failed", "a constraint of the database refused the write"),
    "40": ("locked", "transactions blocked each other for too long; try again"),
    "53": ("slow", "the server has no resources left; read the server's log"),
    "54": ("failed", "a value is too long for the database"),
    "57": ("unavailable", "an operator intervened"),
    "XX": ("damaged", "the server reported an internal error; read the server's log"),
}

_CUT = (
    "the connection was lost while it was being opened; check that PostgreSQL listens on that port, and read the log "
    "of the server and of a pooler"
)
# Overrides `_ADVICE` for errors while a connection is opened.
_CONNECTING: dict[str, tuple[StoreReason, str]] = {
    "42501": ("failed", "the role may not connect to this database; GRANT CONNECT ON DATABASE to the role"),
    "42704": ("failed", "the server does not know a parameter after the '?' in state.url; remove the parameter"),
    # asyncpg uses these codes when a connection ends.
    **dict.fromkeys(("08003", "08006"), ("unavailable", _CUT)),
}

_CAUSES = 4
_NO_MORE = "no more connections"
# The advice by words in a pooler's message, because poolers use the code 08P01 for all errors. The words are those of
# pgbouncer's messages.
_POOLER: tuple[tuple[str, StoreReason, str], ...] = (
    (
        "statement pooling",
        "failed",
        "the pooler is in pool_mode = statement; set pool_mode = transaction, or name the server itself in state.url",
    ),
    (
        "query_wait_timeout",
        "slow",
        "the pooler had no free connection; raise the pooler's default_pool_size, or lower state.pool",
    ),
    (_NO_MORE, "slow", "the pooler accepts no more clients; raise the pooler's max_client_conn, or lower state.pool"),
    (
        "no such database",
        "failed",
        "the pooler does not know the database; check the name in state.url and the pooler's [databases]",
    ),
    (
        "does not exist",
        "failed",
        "there is no such database behind the pooler; create the database, or check the name in state.url",
    ),
    (
        "no such user",
        "failed",
        "the pooler does not know the user; check the name in state.url and the pooler's auth_file",
    ),
    ("password", "failed", "the pooler refused the password; check state.url and the pooler's auth_file"),
    ("login", "unavailable", "the pooler cannot log in to the server; read the pooler's log"),
    ("server conn", "unavailable", "the pooler lost its connection to the server; check that the server runs"),
)


def refused(error: BaseException) -> bool:
    """Return whether the server refused the statement, so that the statement had no effect and the connection is still
    usable."""
    if not isinstance(error, asyncpg.PostgresError):
        # asyncpg raises an InterfaceError before it sends a statement, so the statement had no effect. After a lost
        # connection, asyncpg often raises an InternalClientError.
        return isinstance(error, asyncpg.InterfaceError)
    code = error.sqlstate or ""
    if read_only(error):
        # The statement had no effect, but a connection to a server that is not the primary is useless.
        return False
    return not code.startswith("08") and code not in ("57P01", "57P02", "57P03")


def read_only(error: BaseException) -> bool:
    """Return whether the server refused a statement because it accepts no writes. Such a server is not the primary, for
    example because a failover made another server the primary."""
    return code_of(error) == "25006"


def code_of(error: BaseException | None) -> str:
    """Return the SQLSTATE code of a server's error, or an empty string for other errors."""
    return (error.sqlstate or "") if isinstance(error, asyncpg.PostgresError) else ""


def store_error(doing: str, error: BaseException, *, connecting: bool = False, setting: str = URL) -> StoreError:
    """Translate a failure into a `StoreError`. `doing`: the failed operation (`Reading`, `Writing`, `Connecting`).
    `setting`: the name of the setting with the server's URL."""
    code = code_of(error)
    reason, why = _ADVICE.get(code) or _ADVICE.get(code[:2]) or ("unavailable", "the connection was lost")
    if connecting and code in _CONNECTING:
        reason, why = _CONNECTING[code]
        if why == _CUT:
            why = f"{why}; {_cause_of(error)}"
    for words, meaning, advice in _POOLER if code[:2] == "08" else ():
        if words in str(error):
            reason, why = meaning, advice
            break
    if isinstance(error, asyncpg.DataError | ValueError):
        reason, why = "failed", "a value cannot be stored"
    shown = f"{why.replace(URL, setting)}{f' ({code})' if code else ''}"
    return StoreError(f"{doing} failed: PostgreSQL: {shown}.", reason=reason, cause=error)


def may_heal(failure: StoreError) -> bool:
    """Return whether the server may answer later without a change of settings. Returns True for a server that is
    unreachable, is starting, or has no free connection."""
    cause = failure.__cause__
    if isinstance(cause, ssl.SSLError | PermissionError | ValueError):
        return False
    about_files = "SSL" in str(cause) or "root certificate" in str(cause)
    return failure.reason in ("unavailable", "slow", "unknown") and not about_files


def hopeless(error: BaseException) -> bool:
    """Return whether a pooler closed the connection because of its configuration, so that a retry on a new connection
    would fail as well."""
    return code_of(error)[:2] == "08" and _POOLER[0][0] in str(error)


def no_connection_left(error: BaseException | None) -> bool:
    """Return whether the server, or a pooler in front of the server, refused a connection because the limit of
    connections is reached."""
    return code_of(error) == "53300" or (code_of(error)[:2] == "08" and _NO_MORE in str(error))


def connecting_failed(error: BaseException, setting: str = URL, *, url: str = "") -> StoreError:
    """Translate a failed attempt to connect into a `StoreError` with advice. `setting`: the name of the setting with
    the URL. `url`: the URL, whose certificate parameters select the advice."""
    if isinstance(error, StoreError):
        # Return a new error, because its raiser sets the original error as its cause.
        return StoreError(str(error).replace(URL, setting), reason=error.reason)
    if isinstance(error, asyncpg.PostgresError):
        return store_error("Connecting", error, connecting=True, setting=setting)
    why = _why_not_reached(error, certificates="sslrootcert=" in url or "sslcert=" in url).replace(URL, setting)
    return StoreError(f"Connecting failed: PostgreSQL: {why}.", reason="unavailable", cause=error)


def _why_not_reached(error: BaseException, *, certificates: bool) -> str:
    said = str(error)
    if isinstance(error, TimeoutError):
        return (
            "the server does not answer; check host and port in state.url, and firewalls (a pooler that is paused, or "
            "whose server is down, does not answer either)"
        )
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or 'unknown'}; check sslmode and sslrootcert in state.url"
    if isinstance(error, ConnectionError) and "SSL" in said:
        return (
            "the server does not support TLS; check that PostgreSQL listens on that port, enable TLS on the server, or "
            "set sslmode=disable in state.url"
        )
    no_file = isinstance(error, FileNotFoundError | PermissionError)
    if "root certificate" in said or (no_file and certificates):
        return "a certificate file in state.url cannot be read; check sslrootcert, sslcert and sslkey"
    if isinstance(error, PermissionError):
        return "Antiphon's user may not open the Unix socket in state.url; check the socket's permissions"
    if isinstance(error, FileNotFoundError):
        return (
            "there is no Unix socket at the path in state.url; check that the server runs and that the folder "
            "(host) is right"
        )
    # For a host with several addresses, only the error's text contains the error numbers of all attempts.
    if isinstance(error, ConnectionRefusedError) or f"[Errno {errno.ECONNREFUSED}]" in said:
        return (
            f"{os.strerror(errno.ECONNREFUSED)}; check that the server runs and listens on that address "
            "(listen_addresses, port), and check host and port in state.url"
        )
    if isinstance(error, ConnectionError):
        return f"{_CUT}; {_cause_of(error)}"
    if isinstance(error, OSError):
        number = _number_of(error)
        return f"{os.strerror(number) if number > 0 else 'the host is not known'}; check host and port in state.url"
    if isinstance(error, ValueError | asyncpg.InterfaceError):
        if "sslmode" in said:
            return "sslmode in state.url must be disable, allow, prefer, require, verify-ca or verify-full"
        return "state.url is not a valid PostgreSQL URL; correct it"
    return "the server does not speak PostgreSQL's protocol; check host and port in state.url"


def _cause_of(error: BaseException) -> str:
    """Describe why a connection ended: list the types of the chained errors, each with the system's message for its
    `errno`."""
    told: list[str] = []
    one = error
    while len(told) < _CAUSES:
        number = one.errno if isinstance(one, OSError) else None
        told.append(f"{type(one).__name__} ({os.strerror(number)})" if number else type(one).__name__)
        following = one.__cause__ or one.__context__
        if following is None:
            break
        one = following
    return "the connection ended with " + ", after ".join(dict.fromkeys(told))


def _number_of(error: OSError) -> int:
    """Return the error's `errno`. For a host with several addresses, return the first error number in the error's
    text."""
    found = _NUMBER.search(str(error))
    return error.errno or (int(found[1]) if found else 0)


def unknown(error: BaseException) -> StoreError:
    """Return the error for a connection that was lost after the commit request."""
    said = "the connection was lost before the server confirmed the write"
    return StoreError(f"Writing failed: PostgreSQL: {said}.", reason="unknown", cause=error)
