"""The messages for an operator and a caller of each failure of PostgreSQL, of a pooler and of a connection."""

from __future__ import annotations

import errno
import os
import ssl
from itertools import pairwise

import asyncpg
import pytest

from antiphon.errors import StoreError
from antiphon.stores.postgres.failures import (
    DIRECT_URL,
    URL,
    code_of,
    connecting_failed,
    hopeless,
    may_heal,
    no_connection_left,
    read_only,
    refused,
    store_error,
    unknown,
)


def server_error(code: str, said: str = "a secret value") -> asyncpg.PostgresError:
    error = asyncpg.PostgresError(said)
    error.sqlstate = code
    return error


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "a secret value")
    error.reason = reason
    return error


def chained(*errors: BaseException) -> BaseException:
    """The first one, caused by the second, and so on."""
    for one, cause in pairwise(errors):
        one.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize(
    ("code", "reason", "told"),
    [
        ("25006", "read_only", "name the primary in state.url"),
        ("28000", "failed", "check pg_hba.conf, and the user and sslmode in state.url"),
        ("28P01", "failed", "the server refused the password; check state.url"),
        ("3D000", "failed", "there is no such database; create the database, or check the name in state.url"),
        ("3F000", "failed", "create the schema, or change search_path"),
        ("42501", "failed", "it must own the tables"),
        ("42P01", "failed", "a table is missing; run `antiphon migrate up`"),
        ("42703", "failed", "a column is missing; run `antiphon migrate up`"),
        ("53100", "full", "the server's disk is full"),
        ("53200", "slow", "the server is out of memory"),
        ("53300", "slow", "raise max_connections"),
        ("55P03", "locked", "look for long transactions in pg_stat_activity"),
        ("57014", "slow", "check statement_timeout"),
        ("57P01", "unavailable", "the server is shutting down"),
        ("57P02", "unavailable", "the server crashed and is starting again"),
        ("57P03", "unavailable", "the server is starting"),
        ("58030", "failed", "the server's disk reported an error"),
        # By their class.
        ("08001", "unavailable", "the connection was lost"),
        ("22P05", "failed", "a value cannot be stored"),
        ("23505", "failed", "a constraint of the database refused the write"),
        ("40001", "locked", "transactions blocked each other for too long"),
        ("53000", "slow", "the server has no resources left"),
        ("54000", "failed", "a value is too long for the database"),
        ("57000", "unavailable", "an operator intervened"),
        ("XX000", "damaged", "the server reported an internal error"),
        ("99999", "unavailable", "the connection was lost"),
    ],
)
def test_what_a_code_means(code: str, reason: str, told: str) -> None:
    error = server_error(code)
    failure = store_error("Reading", error)
    assert str(failure).startswith("Reading failed: PostgreSQL: ") and str(failure).endswith(f" ({code}).")
    assert told in str(failure) and failure.reason == reason and "secret" not in str(failure)
    assert code_of(error) == code


@pytest.mark.parametrize(
    ("said", "reason", "told"),
    [
        ("statement pooling forbids it", "failed", "set pool_mode = transaction"),
        ("query_wait_timeout", "slow", "raise the pooler's default_pool_size, or lower state.pool"),
        ("no more connections allowed", "slow", "raise the pooler's max_client_conn, or lower state.pool"),
        ("no such database: x", "failed", "the pooler does not know the database"),
        ("database x does not exist", "failed", "there is no such database behind the pooler"),
        ("no such user: x", "failed", "the pooler does not know the user"),
        ("password authentication failed", "failed", "the pooler refused the password"),
        ("server login failed", "unavailable", "the pooler cannot log in to the server"),
        ("server conn crashed", "unavailable", "the pooler lost its connection to the server"),
        ("something else", "unavailable", "the connection was lost"),
    ],
)
def test_a_pooler_is_told_by_its_words(said: str, reason: str, told: str) -> None:
    """It has one code for all errors; of another code the store ignores the words."""
    for code in ("08P01", "08006"):
        failure = store_error("Writing", server_error(code, said))
        assert told in str(failure) and failure.reason == reason
    assert store_error("Writing", server_error("42P01", said)).reason == "failed"
    assert "a table is missing" in str(store_error("Writing", server_error("42P01", said)))


@pytest.mark.parametrize(
    ("code", "reason", "told"),
    [
        ("42501", "failed", "GRANT CONNECT ON DATABASE"),
        ("42704", "failed", "the server does not know a parameter after the '?' in state.url"),
        (
            "08003",
            "unavailable",
            "while it was being opened; check that PostgreSQL listens on that port, and read the log of the server "
            "and of a pooler",
        ),
        (
            "08006",
            "unavailable",
            "while it was being opened; check that PostgreSQL listens on that port, and read the log of the server "
            "and of a pooler",
        ),
        ("53300", "slow", "the server has no connection left"),
    ],
)
def test_what_a_code_means_when_a_connection_is_opened(code: str, reason: str, told: str) -> None:
    failure = connecting_failed(server_error(code))
    assert str(failure).startswith("Connecting failed: PostgreSQL: ")
    assert told in str(failure) and failure.reason == reason
    assert ("the connection ended with PostgresError" in str(failure)) is code.startswith("08")


def test_a_value_that_cannot_be_stored() -> None:
    for error in (asyncpg.DataError("secret"), ValueError("secret")):
        failure = store_error("Writing", error)
        assert str(failure).startswith("Writing failed: PostgreSQL: a value cannot be stored")
        assert failure.reason == "failed" and failure.__cause__ is error


def test_the_setting_of_the_connection_that_failed_is_named() -> None:
    for error in (server_error("28P01"), TimeoutError(), StoreError("Point state.url at it.", reason="unavailable")):
        assert DIRECT_URL in str(connecting_failed(error, DIRECT_URL))
        assert URL in str(connecting_failed(error)) and DIRECT_URL not in str(connecting_failed(error))
    assert "state.direct_url and" not in str(store_error("Reading", server_error("28P01")))
    assert "check state.direct_url (28P01)." in str(store_error("Reading", server_error("28P01"), setting=DIRECT_URL))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TimeoutError(), "the server does not answer; check host and port in state.url, and firewalls"),
        (tls_error(""), "TLS failed: unknown; check sslmode and sslrootcert in state.url"),
        (tls_error("WRONG_VERSION"), "TLS failed: WRONG_VERSION; check sslmode and sslrootcert in state.url"),
        (ConnectionError("rejected SSL upgrade"), "the server does not support TLS"),
        (FileNotFoundError("root certificate file x"), "a certificate file in state.url cannot be read"),
        (ValueError("root certificate file x"), "a certificate file in state.url cannot be read"),
        (PermissionError(errno.EACCES, "x"), "Antiphon's user may not open the Unix socket in state.url"),
        (FileNotFoundError(errno.ENOENT, "x"), "there is no Unix socket at the path in state.url"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), f"{os.strerror(errno.ECONNREFUSED)}; check that the server"),
        (OSError(f"Multiple: [Errno {errno.ECONNREFUSED}] x"), f"{os.strerror(errno.ECONNREFUSED)}; check that the"),
        (ConnectionResetError(errno.ECONNRESET, "x"), "the connection was lost while it was being opened"),
        (OSError(errno.EHOSTUNREACH, "x"), f"{os.strerror(errno.EHOSTUNREACH)}; check host and port in state.url"),
        (OSError(f"Multiple: [Errno {errno.ENETUNREACH}]"), f"{os.strerror(errno.ENETUNREACH)}; check host and port"),
        (OSError(-2, "x"), "the host is not known; check host and port in state.url"),
        (OSError("x"), "the host is not known; check host and port in state.url"),
        (ValueError("sslmode x"), "sslmode in state.url must be disable, allow"),
        (asyncpg.InterfaceError("sslmode x"), "sslmode in state.url must be disable, allow"),
        (ValueError("x"), "state.url is not a valid PostgreSQL URL; correct it"),
        (asyncpg.InterfaceError("x"), "state.url is not a valid PostgreSQL URL; correct it"),
        (RuntimeError("x"), "the server does not speak PostgreSQL's protocol"),
    ],
    ids=lambda value: repr(value) if isinstance(value, BaseException) else "",
)
def test_why_no_connection_was_made(error: BaseException, told: str) -> None:
    failure = connecting_failed(error)
    assert str(failure).startswith(f"Connecting failed: PostgreSQL: {told}") and failure.reason == "unavailable"


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "x"), FileNotFoundError(errno.ENOENT, "x")])
def test_a_missing_file_is_a_certificate_where_the_url_names_one(error: OSError) -> None:
    for given in ("sslrootcert=/a", "sslcert=/a"):
        assert "a certificate file" in str(connecting_failed(error, url=f"postgresql://h/d?{given}"))
    assert "Unix socket" in str(connecting_failed(error, url="postgresql://h/d?sslmode=require"))


def test_the_causes_of_an_end_are_told_without_their_words() -> None:
    """Four at most, and none twice."""
    reset = ConnectionResetError(errno.ECONNRESET, "secret")
    said = str(connecting_failed(chained(ConnectionAbortedError("secret"), KeyError("secret"), reset)))
    assert said.endswith(
        f"the connection ended with ConnectionAbortedError, after KeyError, after ConnectionResetError "
        f"({os.strerror(errno.ECONNRESET)})."
    )
    many = chained(ConnectionError(), KeyError(), IndexError(), LookupError(), ZeroDivisionError())
    assert str(connecting_failed(many)).endswith(
        "the connection ended with ConnectionError, after KeyError, after IndexError, after LookupError."
    )
    twice = chained(ConnectionError(), KeyError(), KeyError())
    assert str(connecting_failed(twice)).endswith("the connection ended with ConnectionError, after KeyError.")
    try:
        try:
            raise KeyError
        except KeyError:
            raise ConnectionError  # noqa: B904
    except ConnectionError as error:
        assert str(connecting_failed(error)).endswith("the connection ended with ConnectionError, after KeyError.")


def test_after_what_a_connection_is_still_good() -> None:
    for good in (server_error("23505"), server_error("57014"), server_error(""), asyncpg.InterfaceError("x")):
        assert refused(good)
    for code in ("08000", "08P01", "57P01", "57P02", "57P03", "25006"):
        assert not refused(server_error(code))
    for lost in (asyncpg.InternalClientError("x"), OSError(), ValueError()):
        assert not refused(lost)


def test_kinds_of_failures() -> None:
    assert read_only(server_error("25006")) and not read_only(server_error("25001")) and not read_only(OSError())
    assert code_of(OSError()) == code_of(None) == code_of(server_error("")) == ""
    assert hopeless(server_error("08P01", "statement pooling x"))
    assert not hopeless(server_error("08P01", "x")) and not hopeless(server_error("42P01", "statement pooling"))
    for full in (server_error("53300"), server_error("08P01", "no more connections allowed")):
        assert no_connection_left(full)
    for other in (server_error("08P01"), server_error("53200", "no more connections"), OSError(), None):
        assert not no_connection_left(other)
    lost = unknown(OSError("secret"))
    assert str(lost) == ("Writing failed: PostgreSQL: the connection was lost before the server confirmed the write.")
    assert lost.reason == "unknown"


@pytest.mark.parametrize(
    ("reason", "cause", "heals"),
    [
        *((reason, OSError("x"), True) for reason in ("unavailable", "slow", "unknown")),
        *((reason, OSError("x"), False) for reason in ("failed", "full", "damaged", "read_only", "locked")),
        ("unavailable", ssl.SSLError("x"), False),
        ("unavailable", PermissionError("x"), False),
        ("unavailable", ValueError("x"), False),
        ("unavailable", ConnectionError("rejected SSL upgrade"), False),
        ("unavailable", OSError("root certificate x"), False),
        ("unavailable", None, True),
    ],
)
def test_what_may_heal_without_a_change_of_settings(reason: str, cause: BaseException | None, heals: bool) -> None:
    failure = StoreError("x", reason=reason)  # type: ignore[arg-type]
    failure.__cause__ = cause
    assert may_heal(failure) is heals
