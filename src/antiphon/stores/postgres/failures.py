"""What the errors of PostgreSQL and of the way to it mean.

Lives here: the one translation into `StoreError`, and which failures are worth another try. Not here: trying again
(`database.py`), what is asked.

A failure is one of three kinds. The server refused a statement: nothing happened, the connection is good. The
connection was lost before a commit was asked for: nothing happened. It was lost afterwards: nobody knows (`unknown`),
and whoever can asks by id.

Invariant: no message holds stored content, a parameter or the password: of an answer of the server only the message of
its class is used, never its detail.
"""

from __future__ import annotations

import asyncpg

from antiphon.errors import StoreError, StoreReason

TRY_AGAIN = frozenset({"40001", "40P01"})
"""Serialization failures and deadlocks: the same work, once more, succeeds."""

# By the whole code first, then by its class (https://www.postgresql.org/docs/current/errcodes-appendix.html).
_ADVICE: dict[str, tuple[StoreReason, str]] = {
    "25006": ("read_only", "it takes no writes: it is a read-only replica, or its default is read-only"),
    "28000": ("failed", "it refused the user; check the name in state.url and pg_hba.conf"),
    "28P01": ("failed", "it refused the password; check state.url"),
    "3D000": ("failed", "there is no such database; create it, or check the name in state.url"),
    "3F000": ("failed", "there is no schema to create tables in; check the role's search_path"),
    "42501": ("failed", "the role may not do that; it must own the tables"),
    "42P01": ("failed", "a table is missing; run `antiphon migrate up`"),
    "42703": ("failed", "a column is missing; run `antiphon migrate up`"),
    "53100": ("full", "its disk is full"),
    "53200": ("slow", "it is out of memory"),
    "53300": ("slow", "it has no connection left; raise max_connections, or lower state.pool"),
    "55P03": ("locked", "another transaction kept a row locked for too long"),
    "57014": ("slow", "it broke the statement off, which took too long"),
    "57P01": ("unavailable", "it is shutting down"),
    "57P02": ("unavailable", "it crashed and is starting again"),
    "57P03": ("unavailable", "it is starting"),
    "58030": ("failed", "its disk reported an error"),
    "08": ("unavailable", "the connection was lost"),
    "22": ("failed", "a value cannot be stored"),
    "23": ("failed", "a rule of the database refused it"),
    "40": ("locked", "transactions stood in each other's way for too long"),
    "53": ("slow", "it has no resources left"),
    "57": ("unavailable", "an operator intervened"),
    "XX": ("damaged", "it reported an internal error; look at its log"),
}


def refused(error: BaseException) -> bool:
    """Whether the server answered, so that the connection is still good and the statement certainly had no effect."""
    if not isinstance(error, asyncpg.PostgresError):
        # An InterfaceError is raised before anything is sent; an InternalClientError is what a cut connection often
        # looks like.
        return isinstance(error, asyncpg.InterfaceError)
    code = error.sqlstate or ""
    return not code.startswith("08") and code not in ("57P01", "57P02", "57P03")


def code_of(error: BaseException | None) -> str:
    """The server's code (SQLSTATE), where it gave one."""
    return (error.sqlstate or "") if isinstance(error, asyncpg.PostgresError) else ""


def store_error(doing: str, error: BaseException) -> StoreError:
    """What is said of a failure, with its cause; `doing` is what failed (`Reading`, `Writing`, `Connecting`)."""
    code = code_of(error)
    reason, why = _ADVICE.get(code) or _ADVICE.get(code[:2]) or ("unavailable", "the connection was lost")
    if isinstance(error, asyncpg.DataError | ValueError):
        reason, why = "failed", "a value cannot be stored"
    failure = StoreError(f"{doing} failed: PostgreSQL: {why}{f' ({code})' if code else ''}.", reason=reason)
    failure.__cause__ = error
    return failure


def unknown(error: BaseException) -> StoreError:
    """The connection was lost when a commit had been asked for."""
    failure = StoreError(
        "Writing failed: PostgreSQL: the connection was lost before it said whether it has written.", reason="unknown"
    )
    failure.__cause__ = error
    return failure
