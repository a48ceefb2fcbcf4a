"""Rows of vector stores and their files as values, alike in every backend.

Lives here: reading rows by their columns' names. Not here: SQL.
"""

from __future__ import annotations

import json

from antiphon.engine.ports.indexing import IngestJob
from antiphon.engine.ports.vector_stores import Batch, Chunking, Counts, FileError, VectorFile, VectorStore
from antiphon.stores.pages import Row
from antiphon.types.search import Attributes


def vector_store(row: Row) -> VectorStore:
    """A store with its counts."""
    expires_at = row["expires_at"]
    return VectorStore(
        id=row["id"],
        created_at=row["created_at"] / 1000,
        last_active_at=row["last_active_at"] / 1000,
        name=row["name"],
        description=row["description"],
        metadata=row["metadata"],
        expires_days=row["expires_days"],
        expires_at=None if expires_at is None else expires_at / 1000,
        expired=bool(row["expired"]),
        usage_bytes=row["usage_bytes"],
        counts=_counts(row),
    )


def vector_file(row: Row) -> VectorFile:
    """A file in a store."""
    return VectorFile(
        file_id=row["file_id"],
        store_id=row["store_id"],
        filename=row["filename"],
        state=row["status"],
        created_at=row["created_at"] / 1000,
        usage_bytes=row["usage_bytes"],
        chunking=_chunking(row),
        attributes=json.loads(row["attributes"]),
        error=None if row["error_code"] is None else FileError(row["error_code"], row["error_message"]),
    )


def ingest_job(row: Row) -> IngestJob:
    """A claimed file."""
    return IngestJob(
        number=row["number"],
        claim=row["claim"],
        owner=row["owner"],
        store_id=row["store_id"],
        file_id=row["file_id"],
        filename=row["filename"],
        chunking=_chunking(row),
        attempts=row["attempts"],
    )


def batch(row: Row) -> Batch:
    """A batch with its counts."""
    return Batch(row["id"], row["store_id"], row["created_at"] / 1000, bool(row["stopped"]), _counts(row))


def attributes_json(attributes: Attributes) -> bytes:
    """Attributes as they are stored."""
    return json.dumps(dict(attributes), ensure_ascii=False).encode()


def _counts(row: Row) -> Counts:
    return Counts(row["in_progress"], row["completed"], row["failed"], row["cancelled"])


def _chunking(row: Row) -> Chunking:
    return Chunking(row["chunking"], row["chunk_size"], row["chunk_overlap"])
