"""Imports rows of another backend into a PostgreSQL database, for `antiphon admin move`.

Lives here: the code that writes the moved rows, derives other data from them, and reads the rows back for the
comparison. Not here: the source of the rows (`../sqlite/exporting.py`), the list of moved columns
(`stores/move_format.py`).

One transaction writes a batch of rows, and records the position of the batch's last row in the source. So a killed move
continues after the last complete batch.

Invariant: during the move the database has a mark, and no process starts on the database (`../compatibility.py`).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from decimal import Decimal

from antiphon.errors import StoreError
from antiphon.stores.compatibility import MOVING
from antiphon.stores.move_format import COLUMNS, Row
from antiphon.stores.postgres.database import Connection, Database, DatabaseLimits
from antiphon.stores.postgres.migrate import check_server, migrate, packaged_steps
from antiphon.stores.postgres.vectors.table import VectorTable, vector_text, width_of
from antiphon.stores.postgres.vectors.words import chunk_words

_SECONDS = 120.0
_AT_ONCE = 100
_ALONE_SECONDS = 5.0

_PROGRESS = """
CREATE TABLE IF NOT EXISTS moving (kind text PRIMARY KEY, position bigint NOT NULL, rows bigint NOT NULL)
"""
_SOURCE = "INSERT INTO deployment (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING"
_NOTE = """
INSERT INTO moving AS m VALUES ($1, $2, $3)
ON CONFLICT (kind) DO UPDATE SET position = excluded.position, rows = m.rows + excluded.rows
"""
_OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'antiphon' AND datname = current_database() AND pid <> pg_backend_pid()
"""

_TYPES = {
    **dict.fromkeys(("body", "shown", "record", "data", "metadata", "request", "attributes", "digest"), "bytea"),
    **dict.fromkeys(
        (
            *("id", "owner", "chain_id", "prev_id", "status", "model", "conversation_id", "response_id", "item_id"),
            *("type", "locked_by", "name", "prompt_id", "needs", "blob", "purpose", "media_type", "sha256", "key"),
            *("fingerprint", "object_id", "day", "upstream", "description", "file_id", "filename", "error_code"),
            *("error_message", "chunking", "embedding_model", "kind", "text", "batch_id", "vector", "words"),
            *("team", "prefix", "models", "tools", "actor", "action", "object", "detail", "subject"),
            *("measure", "holder", "key_id", "key_name", "door", "previous_id", "outcome", "fault", "code"),
            *("saved_id", "request_id"),
        ),
        "text",
    ),
}
_HELD = (1 << 63) - 1
# The SQL expressions for columns whose stored value differs from the moved value. `g` is the row of moved values.
_WRITTEN: dict[str, dict[str, str]] = {
    "conversations": {"locked_until": "CASE WHEN g.locked_by IS NOT NULL THEN now() END"},
    "jobs": {"needs": "ARRAY(SELECT jsonb_array_elements_text(g.needs::jsonb))", "turn": "0"},
    "pending_blobs": {"lease_until": "'-infinity'"},
    "idempotency": {
        "lease_until": "CASE WHEN g.leased <> 0 THEN now() END",
        # A key with a lease never expires by date.
        "expires_at": "CASE WHEN g.leased <> 0 THEN 'infinity' ELSE to_timestamp(g.expires_at / 1000.0) END",
    },
    "vector_files": {"id": "g.number"},
    "file_attributes": {"kind": 'g.kind::"char"', "number": "g.number::numeric"},
    "vector_batches": {"cancelled": "g.cancelled <> 0"},
    "chunks": {"words": "string_to_array(g.words, E'\\n')"},
    "chunk_vectors": {"vector": "g.vector::halfvec"},
}
_NOT_COLUMNS = {"idempotency": ("leased",)}
# The SQL expressions that convert a stored column back to the moved value, for the comparison.
_READ: dict[str, dict[str, str]] = {
    "jobs": {"needs": "to_json(needs)::text"},
    "idempotency": {
        "leased": "(lease_until IS NOT NULL)::int",
        "expires_at": f"CASE WHEN lease_until IS NOT NULL THEN {_HELD} "
        "ELSE round(extract(epoch FROM expires_at) * 1000)::bigint END",
    },
    "file_attributes": {"kind": "kind::text", "number": "number::text"},
    "vector_batches": {"cancelled": "cancelled::int"},
    "chunk_vectors": {"vector": "vector::real[]"},
}

_FINISH = (
    """
    UPDATE jobs j SET turn = n.turn, last_seq = n.last_seq FROM (
      SELECT response_id, row_number() OVER (PARTITION BY owner ORDER BY number) AS turn, coalesce(
        (SELECT max(last_seq) FROM response_events e WHERE e.response_id = jobs.response_id), -1) AS last_seq FROM jobs
    ) AS n WHERE n.response_id = j.response_id
    """,
    """
    INSERT INTO owner_queue (owner, jobs, turn) SELECT owner, count(*), max(turn) FROM jobs GROUP BY owner
    ON CONFLICT (owner) DO UPDATE SET jobs = excluded.jobs, turn = excluded.turn
    """,
    """
    INSERT INTO owner_files (owner, bytes) SELECT owner, sum(greatest(size, 4096)) FROM files GROUP BY owner
    ON CONFLICT (owner) DO UPDATE SET bytes = excluded.bytes
    """,
    # The sequence continues after all imported item positions. So the items of a recreated conversation get higher
    # positions than the items of the deleted conversation.
    """
    SELECT setval('conversation_places', greatest(coalesce(max(next_pos), 0) / 16777216 + 1,
      (SELECT last_value FROM conversation_places))) FROM conversations
    """,
    """
    UPDATE vector_files f SET words = n.words FROM (
      SELECT file_number, sum(length) AS words FROM chunks GROUP BY file_number
    ) AS n WHERE n.file_number = f.number
    """,
)
_WIDTHS = """
UPDATE vector_files f SET vector_width = n.width FROM (
  SELECT file_number, max(width) AS width FROM chunk_vectors GROUP BY file_number
) AS n WHERE n.file_number = f.number
"""


class DatabaseImport:
    """The target database of a move. All operations use one connection."""

    def __init__(self, url: str, name: str) -> None:
        """`name`: the URL without its password, for messages."""
        self.name = name
        self._database = Database(url, DatabaseLimits(size=1, deadline=_SECONDS))
        self._vectors = False

    async def begin(self, source: str, *, vectors: bool) -> None:
        """Create the schema and the mark of the move, or continue the same move. `source`: a text that identifies the
        source and the move. `vectors`: whether the source has vectors. Raises `StoreError` when the database holds
        other data, or data of another move."""
        await check_server(self._database)
        await migrate(self._database, packaged_steps())
        self._vectors = vectors
        if vectors:
            await VectorTable(self._database).there()
        await self._nobody_else()

        async def work(connection: Connection) -> None:
            await connection.execute("LOCK TABLE deployment IN SHARE ROW EXCLUSIVE MODE")
            from_where = await connection.fetchval("SELECT value FROM deployment WHERE name = $1", MOVING)
            if from_where is None:
                for kind in self._kinds():
                    if await connection.fetchval(f"SELECT EXISTS (SELECT 1 FROM {kind})"):
                        raise StoreError(f"The target database already has {kind}. Move into an empty database.")
                await connection.execute("DROP TABLE IF EXISTS moving")
                await connection.fetch(_SOURCE, MOVING, source)
            elif from_where != source:
                raise StoreError(
                    f"Another move into this database, from {from_where}, is unfinished. Complete that move "
                    "first, or empty the database."
                )
            await connection.execute(_PROGRESS)

        await self._database.transaction(work)

    async def _nobody_else(self) -> None:
        # Wait a few seconds, because the server needs a moment to close the connections of a process that was just
        # killed.
        ends = asyncio.get_running_loop().time() + _ALONE_SECONDS
        while (await self._database.fetch(_OTHERS))[0][0]:
            if asyncio.get_running_loop().time() > ends:
                raise StoreError(
                    f"The database {self.name} is in use by other processes of Antiphon. Stop these processes first."
                )
            await asyncio.sleep(0.1)

    def _kinds(self) -> list[str]:
        return [kind for kind in COLUMNS if self._vectors or kind != "chunk_vectors"]

    async def position(self, kind: str) -> tuple[int, int]:
        """Return the position in the source of the last stored row of this kind, and the number of stored rows of this
        kind. Both numbers are 0 at the start of a move."""
        rows = await self._database.fetch("SELECT position, rows FROM moving WHERE kind = $1", kind)
        return (rows[0][0], rows[0][1]) if rows else (0, 0)

    async def add(self, kind: str, rows: list[Row], position: int) -> None:
        """Store the rows, and record the position of the last row in the source, in one transaction. Raises
        `StoreError`."""
        brought, columns = _brought(kind, rows)
        sql = _insert(kind, columns)

        async def work(connection: Connection) -> None:
            if brought:
                await connection.execute(sql, *brought)
            await connection.execute(_NOTE, kind, position, len(rows))

        await self._database.transaction(work)

    async def finish(self, numbers: int) -> None:
        """From the imported rows, derive the data that a move omits. Also set the PostgreSQL sequences that generate
        the integer keys of vector stores and of their files. `numbers`: the highest such key in the source, or 0. This
        method is idempotent."""
        for sql in (*_FINISH, *((_WIDTHS,) if self._vectors else ())):
            await self._database.write(sql, again=True)
        if numbers:
            await self._database.write("SELECT setval('vector_numbers', $1)", numbers, again=True)
            await self._database.write(
                "SELECT setval(pg_get_serial_sequence('vector_files', 'id'), $1)", numbers, again=True
            )

    async def rows(self, kind: str) -> AsyncIterator[Row]:
        """Yield all rows of a kind in the form that `add` received, without the columns in `EXTRA`. Reads in batches,
        in the physical order of the table. Raises `StoreError`."""
        if kind not in self._kinds():
            return
        named = _READ.get(kind, {})
        columns = ", ".join(named.get(one, one) for one in COLUMNS[kind])
        sql = f"SELECT ctid::text AS at_place, {columns} FROM {kind} WHERE ctid > $1::text::tid ORDER BY ctid LIMIT $2"
        after = "(0,0)"
        while page := await self._database.fetch(sql, after, _AT_ONCE):
            for row in page:
                yield _as_brought(kind, tuple(row)[1:])
            after = page[-1][0]

    async def end(self) -> None:
        """Remove the mark of the move, so that processes may start on the database."""

        async def work(connection: Connection) -> None:
            await connection.execute("DROP TABLE moving")
            await connection.execute("DELETE FROM deployment WHERE name = $1", MOVING)

        await self._database.transaction(work)
        await self._database.write("ANALYZE", again=True)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._database.aclose()


def _brought(kind: str, rows: list[Row]) -> tuple[list[list[object]], tuple[str, ...]]:
    """Return the values of a batch, one list per column, and the names of the columns."""
    columns = COLUMNS[kind]
    if kind == "chunks":
        columns = (*columns, "length", "words")
        made = []
        for number, place, tokens, text, title, store in rows:
            words, length = chunk_words(title, text)
            made.append((number, place, tokens, text, length, "\n".join(f"{store} {word}" for word in words)))
        rows = made
    elif kind == "chunk_vectors":
        columns = (*columns, "width")
        rows = [(*row[:3], vector_text(row[3]), width_of(row[3])) for row in rows]
    elif kind == "file_attributes":
        rows = [(*row[:5], None if row[5] is None else repr(row[5])) for row in rows]
    return [list(column) for column in zip(*rows, strict=True)], columns


def _insert(kind: str, columns: tuple[str, ...]) -> str:
    written = _WRITTEN.get(kind, {})
    left_out = _NOT_COLUMNS.get(kind, ())
    into = {one: f"g.{one}" for one in columns if one not in left_out} | written
    types = [_type(kind, one) for one in columns]
    given = ", ".join(f"${number}::{one}[]" for number, one in enumerate(types, 1))
    return (
        f"INSERT INTO {kind} ({', '.join(into)}) OVERRIDING SYSTEM VALUE SELECT {', '.join(into.values())} "
        f"FROM unnest({given}) WITH ORDINALITY AS g ({', '.join(columns)}, place_given) ORDER BY place_given"
    )


def _type(kind: str, column: str) -> str:
    if kind == "file_attributes" and column == "number":
        return "text"
    return _TYPES.get(column, "bigint")


def _as_brought(kind: str, row: Row) -> Row:
    if kind == "chunk_vectors":
        return (*row[:3], struct.pack(f"<{len(row[3])}e", *row[3]))
    if kind == "file_attributes":
        return (*row[:5], None if row[5] is None else Decimal(row[5]))
    return row
