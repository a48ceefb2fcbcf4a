"""Contains the SQL of the vector stores that is specific to PostgreSQL.

Lives here: the SQL that creates and deletes stores and files, and replaces attributes. Not here: the SQL that all
backends share (`stores/vector_stores.py`), ingestion (`ingestion.py`), searches (`chunk_index.py`).

A deletion sets the owner of a vector store to null, so that no client's query finds the vector store. `Ingestion.sweep`
later deletes the vector store's files and row in small transactions, as it deletes the files of expired vector stores.
Triggers record the integer keys of removed files, so that the sweep deletes the files' chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from antiphon.stores.tables import Statement
from antiphon.stores.vector_sql import AttributeSql, Named, VectorSql

INSERT_STORE = """
INSERT INTO vector_stores (owner, id, name, description, metadata, expires_days, created_at, last_active_at, expires_at)
SELECT :owner, :id, :name, :description, :metadata, CAST(:days AS bigint), at, at,
       at + CAST(:days AS bigint) * 86400000
FROM (SELECT now_ms() AS at) AS made
"""
# Clients find only stores with an owner, so a store without an owner does not exist for clients.
DELETE_STORE = """
UPDATE vector_stores SET owner = NULL, name = NULL, description = NULL, metadata = '{}'
WHERE owner = :owner AND id = :id
"""
# A file that is already in the store gets a new number, so that workers ingest it again. The file keeps its `id`, so
# the file stays in its batches.
INSERT_FILE = """
INSERT INTO vector_files (store_number, file_id, filename, attributes, chunking, chunk_size, chunk_overlap)
SELECT number, :file_id, :filename, :attributes, :chunking, :size, :overlap
FROM vector_stores WHERE owner = :owner AND id = :id
ON CONFLICT (store_number, file_id) DO UPDATE SET
  number = excluded.number, filename = excluded.filename, status = 'in_progress', error_code = NULL,
  error_message = NULL, attributes = excluded.attributes, chunking = excluded.chunking,
  chunk_size = excluded.chunk_size, chunk_overlap = excluded.chunk_overlap, chunks = 0, words = 0, usage_bytes = 0,
  embedding_model = NULL, vector_width = NULL, claim = NULL, lease_until = NULL, attempts = 0
"""
ATTRIBUTES = AttributeSql(
    file="f.id",
    found="SELECT file FROM file_attributes WHERE store_number = :store",
    columns=("text", "number"),
    number=Decimal,
)
_FILES = "FROM vector_stores s JOIN vector_files f ON f.store_number = s.number"
_FILE = "s.owner = :owner AND s.id = :id AND f.file_id = :file_id"
DROP_ATTRIBUTES = f"DELETE FROM file_attributes WHERE file IN (SELECT f.id {_FILES} WHERE {_FILE})"
INSERT_ATTRIBUTE = f"""
INSERT INTO file_attributes (file, store_number, key, kind, text, number)
SELECT f.id, s.number, :key, CAST(CAST(:kind AS text) AS "char"), :text, :number {_FILES} WHERE {_FILE}
"""
INSERT_BATCH_FILE = f"""
INSERT INTO vector_batch_files (batch_id, file) SELECT :batch_id, f.id {_FILES} WHERE {_FILE}
"""
FILE_TEXT = f"""
SELECT c.text {_FILES} LEFT JOIN LATERAL (
  SELECT place, text FROM chunks
  WHERE file_number = f.number AND f.status = 'completed' AND place >= :first ORDER BY place LIMIT :limit
) AS c ON true
WHERE {_FILE} ORDER BY c.place
"""
# Cancels files and removes their claims. A worker learns that it has lost its claim at its next write.
CANCEL_FILES = """
WITH cancelled AS (
  UPDATE vector_files SET status = 'cancelled', claim = NULL, lease_until = NULL, usage_bytes = 0
  WHERE status = 'in_progress' AND id IN (SELECT file FROM vector_batch_files WHERE batch_id = :batch_id)
    AND store_number = (SELECT number FROM vector_stores WHERE owner = :owner AND id = :id) RETURNING number
)
INSERT INTO vector_trash SELECT number FROM cancelled ON CONFLICT DO NOTHING
"""


class PostgresVectorSql(VectorSql):
    """Implements `VectorSql` for PostgreSQL."""

    file_text = FILE_TEXT
    drop_attributes = DROP_ATTRIBUTES
    insert_attribute = INSERT_ATTRIBUTE

    def __init__(self) -> None:
        super().__init__(ATTRIBUTES, number="number", store="store_number", batch_file="f.id = m.file")

    def create(self, named: Named) -> list[Statement]:
        """See `VectorSql`."""
        return [Statement(INSERT_STORE, named, rows=1)]

    def delete(self, named: Named) -> list[Statement]:
        """See `VectorSql`."""
        return [Statement(DELETE_STORE, named, rows=1)]

    def add_files(self, named: Named, files: Sequence[Named]) -> list[Statement]:
        """See `VectorSql`."""
        unit = [Statement(INSERT_FILE, files, many=True)]
        if named["batch_id"] is not None:
            unit.append(Statement(INSERT_BATCH_FILE, files, many=True))
        return unit

    def clear(self, which: str, named: Named) -> list[Statement]:
        """See `VectorSql`."""
        return []

    def cancel_files(self, named: Named) -> list[Statement]:
        """See `VectorSql`."""
        return [Statement(CANCEL_FILES, named)]
