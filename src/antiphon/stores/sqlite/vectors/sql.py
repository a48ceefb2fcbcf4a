"""Defines the SQL of vector stores that is specific to SQLite.

Lives here: numbering of files, the full-text index of each vector store, and marking chunks for deletion. Not here: the
SQL that all backends share (`stores/vector_stores.py`), ingestion (`ingestion.py`), searching (`chunk_index.py`).

Invariant: the transaction that removes a file inserts the file's integer key into the table `vector_trash`. Later
`Ingestion.sweep` deletes the file's chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

from antiphon.errors import StoreError
from antiphon.ids import is_id
from antiphon.stores.tables import Statement
from antiphon.stores.vector_sql import AttributeSql, Named, VectorSql

_BIG = 1 << 63
INDEX_PREFIX = "fts_"
INDEX_TABLE = """
CREATE VIRTUAL TABLE {table} USING fts5(
  title, text, content='', columnsize=1, tokenize="porter unicode61 remove_diacritics 2"
)
"""
# BM25 gives no weight to a word that most documents contain. In a store of three chunks, nearly every word is in most
# chunks, so all scores would be zero. So each index begins with 16 padding documents. A search never returns padding
# documents, because their negative numbers belong to no file. In a store of hundreds of chunks, the padding does not
# change the ranking.
INSERT_PADDING = "INSERT INTO {table} (rowid, title, text) VALUES (?, '', ?)"
PADDING = [(-number, "zzpadding " * 100) for number in range(1, 17)]
DELETE_ALL = "INSERT INTO {table} ({table}) VALUES ('delete-all')"
DROP_INDEX = "DROP TABLE IF EXISTS {table}"

# Stores and files get their numbers from one counter that only increases, so a deleted number is never reused.
NEW_NUMBER = "UPDATE file_numbers SET last = last + 1"
INSERT_STORE = """
INSERT INTO vector_stores (no, id, owner, name, description, metadata, created_at, last_active_at, expires_days,
                           expires_at)
SELECT last, :id, :owner, :name, :description, :metadata, now_ms(), now_ms(), :days, now_ms() + :days * 86400000
FROM file_numbers
"""
# Every transaction that changes a store's set of completed files runs this statement, so that caches of vectors notice
# the change.
BUMP = "UPDATE vector_stores SET version = version + 1 WHERE {which}"
TRASH_FILES = """
INSERT OR IGNORE INTO vector_trash (file_no, store_id, title)
SELECT f.no, {whose}, f.title FROM vector_files f JOIN vector_stores s ON s.no = f.store_no WHERE {which}
"""
_FILE = "s.id = :id AND s.owner = :owner AND f.file_id = :file_id"
TRASH = {
    "one": TRASH_FILES.format(whose="s.id", which=_FILE),
    "all": TRASH_FILES.format(whose="s.id", which="f.file_id = :file_id AND s.owner = :owner"),
    "store": TRASH_FILES.format(whose="NULL", which="s.id = :id AND s.owner = :owner"),
    "batch": TRASH_FILES.format(
        whose="s.id",
        which="s.id = :id AND s.owner = :owner AND f.status = 'in_progress' "
        "AND f.no IN (SELECT file_no FROM vector_batch_files WHERE batch_id = :batch_id)",
    ),
}
ORPHAN_TRASH = "UPDATE vector_trash SET store_id = NULL WHERE store_id = :id"
DELETE_STORE = "DELETE FROM vector_stores WHERE id = :id AND owner = :owner"

# If the file is already in the store, this statement restarts its ingestion with a new number. `ON UPDATE CASCADE`
# updates the number in the file's batches.
INSERT_FILE = """
INSERT INTO vector_files (no, store_no, file_id, filename, status, attributes, chunking, chunk_size, chunk_overlap,
                          created_at)
SELECT (SELECT last FROM file_numbers), no, :file_id, :filename, 'in_progress', :attributes, :chunking, :size, :overlap,
       now_ms()
FROM vector_stores WHERE id = :id AND owner = :owner
ON CONFLICT (store_no, file_id) DO UPDATE SET
  no = excluded.no, filename = excluded.filename, title = '', status = 'in_progress', error_code = NULL,
  error_message = NULL, attributes = excluded.attributes, chunking = excluded.chunking,
  chunk_size = excluded.chunk_size, chunk_overlap = excluded.chunk_overlap, chunks = 0, usage_bytes = 0,
  embedding_model = NULL, claim = NULL, lease_until = 0, attempts = 0
"""
ATTRIBUTES = AttributeSql(
    file="f.no",
    found="SELECT file_no FROM file_attributes WHERE store_no = :store",
    columns=("value", "value"),
    # SQLite's integers have 64 bits, so larger numbers become floats.
    number=lambda number: number if isinstance(number, float) or -_BIG <= number < _BIG else float(number),
)
_FILES = "FROM vector_files f JOIN vector_stores s ON s.no = f.store_no"
INSERT_ATTRIBUTE = f"""
INSERT INTO file_attributes (store_no, key, kind, value, file_no)
SELECT f.store_no, :key, :kind, coalesce(:text, :number), f.no {_FILES} WHERE {_FILE}
"""
DROP_ATTRIBUTES = f"DELETE FROM file_attributes WHERE file_no IN (SELECT f.no {_FILES} WHERE {_FILE})"
INSERT_BATCH_FILE = (
    "INSERT OR IGNORE INTO vector_batch_files (batch_id, file_no) SELECT :batch_id, last FROM file_numbers"
)
# Revokes the worker's claim of each file. After losing the claim, the worker's next write fails, and the worker stops.
CANCEL_FILES = """
UPDATE vector_files SET status = 'cancelled', claim = NULL, usage_bytes = 0
WHERE status = 'in_progress' AND no IN (SELECT file_no FROM vector_batch_files WHERE batch_id = :batch_id)
"""
# Selects the chunks of one file. A chunk's id is the file's number shifted left by 20 bits, plus the chunk's position
# in the file.
FILE_TEXT = f"""
SELECT c.text {_FILES} LEFT JOIN chunks c
  ON f.status = 'completed' AND c.id >= (f.no << 20) + :first AND c.id < (f.no + 1) << 20
WHERE {_FILE} ORDER BY c.id LIMIT :limit
"""


def index_table(store_id: str) -> str:
    """Return the table name of a vector store's full-text index. The name is safe in SQL, because Antiphon's ids
    consist of letters, digits and underscores. Raises `StoreError` if `store_id` is not an id of a vector store."""
    if not is_id(store_id, "vs"):
        raise StoreError("The id of the vector store is not valid.")
    return INDEX_PREFIX + store_id


class SqliteVectorSql(VectorSql):
    """Implements `VectorSql` for SQLite."""

    file_text = FILE_TEXT
    drop_attributes = DROP_ATTRIBUTES
    insert_attribute = INSERT_ATTRIBUTE

    def __init__(self) -> None:
        super().__init__(ATTRIBUTES, number="no", store="store_no", batch_file="f.no = m.file_no")

    def create(self, named: Named) -> list[Statement]:
        """See `VectorSql`."""
        table = index_table(str(named["id"]))
        return [
            Statement(NEW_NUMBER, {}),
            Statement(INSERT_STORE, named, rows=1),
            Statement(INDEX_TABLE.format(table=table), {}),
            Statement(INSERT_PADDING.format(table=table), PADDING, many=True),
        ]

    def delete(self, named: Named) -> list[Statement]:
        """See `VectorSql`."""
        return [
            Statement(TRASH["store"], named),
            Statement(DELETE_STORE, named, rows=1),
            Statement(ORPHAN_TRASH, named),
            Statement(DROP_INDEX.format(table=index_table(str(named["id"]))), {}),
        ]

    def add_files(self, named: Named, files: Sequence[Named]) -> list[Statement]:
        """See `VectorSql`."""
        unit: list[Statement] = []
        for file in files:
            unit += [Statement(TRASH["one"], file), Statement(NEW_NUMBER, {}), Statement(INSERT_FILE, file, rows=1)]
            if named["batch_id"] is not None:
                unit.append(Statement(INSERT_BATCH_FILE, named))
        return unit

    def clear(self, which: str, named: Named) -> list[Statement]:
        """See `VectorSql`."""
        return [Statement(TRASH[which], named)]

    def cancel_files(self, named: Named) -> list[Statement]:
        """See `VectorSql`."""
        return [Statement(TRASH["batch"], named), Statement(CANCEL_FILES, named)]
