"""Builds the SQL of vector stores and of file attributes. This SQL has the same form in each backend, with other column
names.

Lives here: the statements of `VectorStores`, the SQL of each comparison operator of an attribute filter, and the
conversion of attributes to rows. Not here: the SQL of one backend (`sqlite/vectors/sql.py`, `postgres/vectors/sql.py`),
the order of statements (`vector_stores.py`), the JSON form of filters and attributes in requests (`api/`).

Every transaction that adds or removes files updates the vector store's row first. So two concurrent changes never
deadlock, and a deleted vector store gets no more files.

Invariants: the store passes attribute keys and values to the database as SQL parameters, never as SQL text. A
comparison matches only values of the same type, so `"5"`, `5` and `true` never match each other. The database stores no
file counts. Queries compute the counts from the files' rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

from antiphon.stores.tables import Statement, both_orders
from antiphon.types.search import Attributes, Filter

_OPERATORS = {"eq": "=", "ne": "=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "in": "IN", "nin": "IN"}
_NEGATIONS = frozenset({"ne", "nin"})
_DAY = 86_400_000

Named = Mapping[str, object]
"""The parameters of a statement by name."""


class AttributeSql:
    """Converts file attributes to one backend's rows, and attribute filters to its SQL. `number` converts a number to a
    value that the database compares exactly."""

    def __init__(self, *, file: str, found: str, columns: tuple[str, str], number: Callable[[float], object]) -> None:
        """`file`: the SQL expression that identifies the file in row `f` of `vector_files`. `found`: the beginning of a
        query that selects files of vector store `:store` by an attribute. `columns`: the names of the text column and
        the number column."""
        self._file = file
        self._found = found
        self._columns = {"s": columns[0], "n": columns[1], "b": columns[1]}
        self._number = number

    def rows(self, attributes: Attributes) -> list[dict[str, object]]:
        """Convert attributes to rows. Each row has the attribute's key, and its value in the text column or the number
        column. The row also has the value's kind: `s` (text), `n` (number) or `b` (boolean)."""
        typed = [(key, *self._typed(value)) for key, value in attributes.items()]
        return [
            {
                "key": key,
                "kind": kind,
                "text": value if kind == "s" else None,
                "number": None if kind == "s" else value,
            }
            for key, kind, value in typed
        ]

    def condition(self, filters: Filter | None) -> tuple[str, dict[str, object]]:
        """Return an SQL condition on row `f` of `vector_files` in vector store `:store`, and the parameters of the
        condition.

        Without `filters` the condition is `true`. A client's value is always a parameter, never a part of the SQL. For
        example, `Filter("gte", "year", 2024)` has the parameters `key0` (`year`) and `value1` (2024).
        """
        named: dict[str, object] = {}
        return ("true" if filters is None else self._condition(filters, named)), named

    def _condition(self, one: Filter, named: dict[str, object]) -> str:
        if one.kind in ("and", "or"):
            return "(" + f" {one.kind.upper()} ".join([self._condition(part, named) for part in one.parts]) + ")"
        key = f"key{len(named)}"
        named[key] = one.key
        by_kind: dict[str, list[str]] = {}
        for value in one.value if isinstance(one.value, tuple) else (one.value,):
            kind, plain = self._typed(value)
            name = f"value{len(named)}"
            named[name] = plain
            by_kind.setdefault(kind, []).append(f":{name}")
        # `in` with an empty list matches no file, and `nin` with an empty list matches every file.
        found = " UNION ALL ".join(
            f"{self._found} AND key = :{key} AND kind = '{kind}' "
            f"AND {self._columns[kind]} {_OPERATORS[one.kind]} ({', '.join(values)})"
            for kind, values in by_kind.items()
        )
        negated = one.kind in _NEGATIONS
        return f"{self._file} {'NOT IN' if negated else 'IN'} ({found})" if found else str(negated).lower()

    def _typed(self, value: str | float | bool) -> tuple[str, object]:
        if isinstance(value, str):
            return "s", value
        return ("b", self._number(int(value))) if isinstance(value, bool) else ("n", self._number(value))


class VectorSql(ABC):
    """The SQL statements of the vector stores in one backend."""

    def __init__(self, attributes: AttributeSql, *, number: str, store: str, batch_file: str) -> None:
        """`number`: the name of the column with the integer key of a vector store or of an ingested file. `store`: the
        name of the column that refers to a vector store. `batch_file`: the SQL condition that joins a row of
        `vector_batch_files` (`m`) to its file (`f`)."""
        self._attributes = attributes
        # A store has metadata, and a file has attributes, also without chunks.
        self.count_chunks = f"""
SELECT CAST(coalesce(sum(greatest(f.chunks, 1)), 0) AS bigint)
  + (SELECT count(*) FROM vector_stores WHERE owner IN (:owners...))
FROM vector_files f JOIN vector_stores s ON s.{number} = f.{store} WHERE s.owner IN (:owners...)
"""
        self.count_states = f"""
SELECT f.file_id, f.status, count(*) FROM vector_files f JOIN vector_stores s ON s.{number} = f.{store}
WHERE s.owner = :owner AND f.file_id IN (:ids...) GROUP BY f.file_id, f.status
"""
        mine = f"(SELECT {number} FROM vector_stores WHERE owner = :owner AND id = :id)"
        count = f"(SELECT count(*) FROM vector_files f WHERE f.{store} = s.{number} AND f.status = '{{0}}') AS {{0}}"
        counts = ", ".join(count.format(state) for state in ("in_progress", "completed", "failed", "cancelled"))
        stores = f"""
SELECT s.id, s.created_at, s.last_active_at, s.name, s.description, s.metadata, s.expires_days, s.expires_at,
       coalesce(s.expires_at <= now_ms(), false) AS expired, (
         SELECT CAST(coalesce(sum(usage_bytes), 0) AS bigint) FROM vector_files f WHERE f.{store} = s.{number}
       ) AS usage_bytes, {counts}
FROM vector_stores s WHERE s.owner = :owner
"""
        self.get_store = f"{stores} AND s.id = :id"
        at = f"(SELECT {number} FROM vector_stores WHERE owner = :owner AND id = "
        self.stores = both_orders(f"""{stores}
  AND (CAST(:low AS text) IS NULL OR s.{number} > {at} :low))
  AND (CAST(:high AS text) IS NULL OR s.{number} < {at} :high))
ORDER BY s.{number} {{order}} LIMIT :limit
""")
        self.update_store = f"""
UPDATE vector_stores SET
  name = CASE WHEN :new_name THEN :name ELSE name END, metadata = coalesce(:metadata, metadata),
  expires_days = CASE WHEN :clear THEN NULL ELSE coalesce(CAST(:days AS bigint), expires_days) END,
  last_active_at = now_ms(),
  expires_at = now_ms() + CASE WHEN :clear THEN NULL ELSE coalesce(:days, expires_days) END * {_DAY}
WHERE owner = :owner AND id = :id
"""
        used = f"last_active_at = now_ms(), expires_at = now_ms() + expires_days * {_DAY}"
        there = "(expires_at IS NULL OR expires_at > now_ms())"
        # Skips a store that another transaction has locked, because that transaction uses the store. Skips a store
        # whose last recorded use is less than `:active` milliseconds ago.
        self.touch = f"""
UPDATE vector_stores SET {used} WHERE {number} IN (
  SELECT {number} FROM vector_stores
  WHERE owner = :owner AND id IN (:ids...) AND {there} AND last_active_at <= now_ms() - CAST(:active AS bigint)
  FOR NO KEY UPDATE SKIP LOCKED
)
"""
        # Locks the store, so that no other transaction adds or removes a file until this transaction ends. Also records
        # the use of the store. Increments `version`, because the set of completed files may change.
        self.hold_used = f"""
UPDATE vector_stores SET version = version + 1, {used} WHERE owner = :owner AND id = :id AND {there}
"""
        self.hold = "UPDATE vector_stores SET version = version + 1 WHERE owner = :owner AND id = :id"
        self.lock = "SELECT 1 FROM vector_stores WHERE owner = :owner AND id = :id FOR NO KEY UPDATE"
        which = f"""
owner = :owner AND {number} IN (SELECT {store} FROM vector_files WHERE file_id = :file_id)
"""
        self.lock_stores_of_file = f"SELECT 1 FROM vector_stores WHERE {which} ORDER BY {number} FOR NO KEY UPDATE"
        self.bump_stores_of_file = f"UPDATE vector_stores SET version = version + 1 WHERE {which}"
        self.set_attributes = f"""
UPDATE vector_files SET attributes = :attributes WHERE {store} = {mine} AND file_id = :file_id
"""
        self.delete_file = f"DELETE FROM vector_files WHERE {store} = {mine} AND file_id = :file_id"
        self.delete_everywhere = f"""
DELETE FROM vector_files
WHERE file_id = :file_id AND {store} IN (SELECT {number} FROM vector_stores WHERE owner = :owner)
"""
        self.insert_batch = f"""
INSERT INTO vector_batches (id, {store}, created_at)
SELECT :batch_id, {number}, now_ms() FROM vector_stores WHERE owner = :owner AND id = :id
"""
        self.cancel_batch = f"UPDATE vector_batches SET cancelled = true WHERE {store} = {mine} AND id = :batch_id"
        files = f"""
SELECT f.file_id, s.id AS store_id, f.filename, f.status, f.created_at, f.usage_bytes, f.chunking, f.chunk_size,
       f.chunk_overlap, f.attributes, f.error_code, f.error_message
FROM vector_stores s JOIN vector_files f ON f.{store} = s.{number}
WHERE s.owner = :owner AND s.id = :id
"""
        self.get_file = f"{files} AND f.file_id = :file_id"
        cursor = f"(SELECT c.created_at, c.file_id FROM vector_files c WHERE c.{store} = s.{number} AND c.file_id = "
        self.files = both_orders(f"""{files}
  AND (CAST(:state AS text) IS NULL OR f.status = :state)
  AND (CAST(:batch_id AS text) IS NULL OR EXISTS (
    SELECT 1 FROM vector_batch_files m WHERE m.batch_id = :batch_id AND {batch_file}
  ))
  AND (CAST(:low AS text) IS NULL OR (f.created_at, f.file_id) > {cursor} :low))
  AND (CAST(:high AS text) IS NULL OR (f.created_at, f.file_id) < {cursor} :high))
ORDER BY f.created_at {{order}}, f.file_id {{order}} LIMIT :limit
""")
        states = ", ".join(
            f"count(f.file_id) FILTER (WHERE f.status = '{state}') AS {state}"
            for state in ("in_progress", "completed", "failed", "cancelled")
        )
        self.get_batch = f"""
SELECT b.id, s.id AS store_id, b.created_at, b.cancelled AS stopped, {states}
FROM vector_stores s JOIN vector_batches b ON b.{store} = s.{number}
LEFT JOIN vector_batch_files m ON m.batch_id = b.id LEFT JOIN vector_files f ON {batch_file}
WHERE s.owner = :owner AND s.id = :id AND b.id = :batch_id
GROUP BY b.id, s.id
"""

    drop_attributes: str
    insert_attribute: str
    """Inserts the attribute `:key` of the file `:file_id` with its `:kind` and its value (`:text` or `:number`)."""
    file_text: str
    """Selects the texts of at most `:limit` chunks of a file, from chunk number `:first` on. No row means that the file
    does not exist. One row without a text means that the file is not completed, or has no chunks in this range."""

    @abstractmethod
    def create(self, named: Named) -> list[Statement]:
        """Return the statements that create a vector store with the values in `named`."""

    @abstractmethod
    def delete(self, named: Named) -> list[Statement]:
        """Return the statements that delete a vector store with its files and chunks. One statement has `rows` set, so
        the transaction fails when the vector store does not exist."""

    @abstractmethod
    def add_files(self, named: Named, files: Sequence[Named]) -> list[Statement]:
        """Return the statements that add `files` to a vector store. If `named` has a `batch_id`, the statements also
        add the files to this batch. An earlier statement of the same transaction locks the vector store. A file that is
        already in the vector store is ingested again, and stays in its batches."""

    def attributes(self, named: Named, attributes: Attributes) -> list[Statement]:
        """Return the statements that replace a file's attributes."""
        rows = [{**named, **row} for row in self._attributes.rows(attributes)]
        return [Statement(self.drop_attributes, named), Statement(self.insert_attribute, rows, many=True)]

    @abstractmethod
    def clear(self, which: str, named: Named) -> list[Statement]:
        """Return the statements that mark the chunks of a removed file for deletion by a sweep. `which` is `one` (the
        file in one vector store) or `all` (the file in all the owner's vector stores)."""

    @abstractmethod
    def cancel_files(self, named: Named) -> list[Statement]:
        """Return the statements that cancel the files of a batch whose ingestion is not finished."""
