"""Whether a server is one that Antiphon can keep its state on.

Lives here: the questions at a start, and what to do about each answer. Not here: connections (`database.py`), the
schema (`migrate.py`).
"""

from __future__ import annotations

from antiphon.errors import StoreError
from antiphon.stores.postgres.database import Database

OLDEST = 150_000
_ASK = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_version') AS shown,
       pg_is_in_recovery() AS replica, current_setting('transaction_read_only') = 'on' AS read_only,
       has_schema_privilege(current_schema(), 'CREATE') AS creates,
       current_setting('server_encoding') AS encoding
"""


async def check_server(database: Database) -> None:
    """Raises `StoreError` with a sentence that says what to do."""
    answer = (await database.fetch(_ASK))[0]
    if answer["version"] < OLDEST:
        raise StoreError(
            f"PostgreSQL {answer['shown']} is too old: {OLDEST // 10_000} or newer is needed. Upgrade the server."
        )
    if answer["replica"]:
        raise StoreError(
            "PostgreSQL: this server is a read-only replica. Point state.url at the primary.", reason="read_only"
        )
    if answer["read_only"]:
        raise StoreError(
            "PostgreSQL: transactions are read-only for this role or database. Unset default_transaction_read_only.",
            reason="read_only",
        )
    if answer["encoding"] != "UTF8":
        raise StoreError(f"PostgreSQL: the database's encoding is {answer['encoding']}. Create one with UTF8.")
