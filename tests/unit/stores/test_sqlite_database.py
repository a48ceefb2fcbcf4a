"""What the errors of a database say to whoever reads the log."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from antiphon.stores.sqlite.database import store_error

WHERE = Path("/data/sessions.db")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (sqlite3.OperationalError("x"), "SQLite refused it (OperationalError)"),
        (OSError(errno.EINVAL, "x"), "Invalid argument (OSError)"),
        (PermissionError(errno.EACCES, "x"), "Permission denied (PermissionError)"),
        (OSError("words of a library"), "OSError"),
        (ValueError("a stored value"), "ValueError"),
    ],
)
def test_the_cause_is_named_and_nothing_stored(error: Exception, cause: str) -> None:
    assert str(store_error("Opening", WHERE, error)) == f"Opening failed in database /data/sessions.db: {cause}."
