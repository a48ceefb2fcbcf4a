"""Creates the table of vectors and the pgvector extension when a process first needs vectors.

Lives here: the creation of the table and the extension, the advice after a failure, and the text form of a vector. Not
here: vector search (`chunk_index.py`), vector indexes (`indexes.py`).

Word search needs no extension. So a database without pgvector supports vector stores, as long as the operator
configures no embeddings server.

Invariant: after `there` has returned, the table exists with this build's schema.
"""

from __future__ import annotations

import struct

from antiphon.errors import StoreError
from antiphon.stores.postgres.database import Connection, Database
from antiphon.stores.postgres.failures import code_of
from antiphon.stores.postgres.migrate import VECTOR_SCHEMA, VECTOR_STEPS, migrate, packaged_steps

OLDEST = (0, 8)
EXTENSION = "vector"
_LIMITS = "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '4s'"
# Serializes processes that create the extension concurrently.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('antiphon vector', 0))"
_LOOK = """
SELECT (SELECT extversion FROM pg_extension WHERE extname = $1) AS installed,
       (SELECT default_version FROM pg_available_extensions WHERE name = $1) AS available,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
         OR has_database_privilege(current_database(), 'CREATE') AS may_create
"""

_NOT_INSTALLED = frozenset({"0A000", "58P01"})
_NO_RIGHT = "42501"
_OR_WORDS = "or unset embeddings.url: vector stores then search by words."


class VectorTable:
    """The table of vectors in this database. `there` creates the table, and does nothing after its first success."""

    def __init__(self, database: Database, *, extension: str = EXTENSION, oldest: tuple[int, int] = OLDEST) -> None:
        """`extension`: the name of pgvector's extension. `oldest`: its oldest usable version."""
        self.database = database
        self._extension = extension
        self._oldest = oldest
        self._there = False

    async def there(self) -> None:
        """Create the table of vectors and the pgvector extension, unless they exist. Raises `StoreError` with
        advice."""
        if self._there:
            return
        if await self._installed() is None:
            await self._install()
        _check_version(await self._installed() or "", self._oldest)
        await migrate(self.database, packaged_steps(VECTOR_STEPS), VECTOR_SCHEMA)
        self._there = True

    async def check(self) -> None:
        """Check whether `there` can succeed, without creating the table or the extension. Raises the same `StoreError`
        as `there`."""
        (found,) = await self.database.fetch(_LOOK, self._extension)
        if found["installed"] is None and found["available"] is None:
            raise _not_installed()
        if found["installed"] is None and not found["may_create"]:
            raise _no_right()
        _check_version(found["installed"] or found["available"], self._oldest)

    async def _installed(self) -> str | None:
        (found,) = await self.database.fetch(_LOOK, self._extension)
        return None if found["installed"] is None else str(found["installed"])

    async def _install(self) -> None:
        async def work(connection: Connection) -> None:
            await connection.execute(_LOCK)
            await connection.execute(_LIMITS)
            await connection.execute(f"CREATE EXTENSION IF NOT EXISTS {self._extension}")

        try:
            await self.database.transaction(work)
        except StoreError as error:
            code = code_of(error.__cause__)
            if code in _NOT_INSTALLED:
                raise _not_installed() from error
            if code == _NO_RIGHT:
                raise _no_right() from error
            raise


def _check_version(version: str, oldest: tuple[int, int]) -> None:
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < oldest:
        raise StoreError(
            f"PostgreSQL: the extension 'vector' is {version} here, and embeddings need "
            f"{'.'.join(map(str, oldest))} or newer. Install that, and have an administrator run "
            f"`ALTER EXTENSION vector UPDATE` in this database, {_OR_WORDS}"
        )


def _not_installed() -> StoreError:
    return StoreError(
        "PostgreSQL: embeddings need the extension 'vector', which this server does not have. Install pgvector on it "
        f"(the package postgresql-NN-pgvector), {_OR_WORDS}"
    )


def _no_right() -> StoreError:
    return StoreError(
        "PostgreSQL: embeddings need the extension 'vector', and the role may not create it. Have an administrator run "
        f"`CREATE EXTENSION vector` in this database, {_OR_WORDS}"
    )


def vector_text(vector: bytes) -> str:
    """Convert a vector of little-endian float16 components to the text form of pgvector. Five digits keep the full
    precision of float16."""
    width = width_of(vector)
    return "[" + ("%.5g," * width)[:-1] % struct.unpack(f"<{width}e", vector) + "]"


def width_of(vector: bytes) -> int:
    """Return the number of components of a float16 vector."""
    return len(vector) // 2
