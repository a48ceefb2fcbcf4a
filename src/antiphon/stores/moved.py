"""What is moved from one backend to another: the rows, in a form that neither backend owns.

Lives here: which columns each kind of row has on its way, and how rows are compared. Not here: reading them
(`sqlite/exporting.py`), writing them (`postgres/importing.py`), the order of the work (`moving.py`).

What can be made again of other rows is not moved: sums of bytes, words of chunks, a job's place in the queue. Leases
are over, since nobody works while a move is under way; what waits to be deleted is moved, to be deleted there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec

Row = tuple[Any, ...]

_SESSIONS: dict[str, tuple[str, ...]] = {
    "chains": ("id", "owner", "updated_at", "expires_at"),
    "responses": (
        *("id", "owner", "chain_id", "prev_id", "history_items", "history_bytes", "own_bytes", "status", "model"),
        *("created_at", "completed_at", "input_tokens", "output_tokens", "conversation_id", "conversation_pos"),
        *("background", "body"),
    ),
    "response_items": ("response_id", "dir", "seq", "item_id", "type", "body", "shown"),
    "response_events": ("response_id", "last_seq", "claim", "data"),
    "conversations": ("owner", "id", "created_at", "updated_at", "first_pos", "next_pos", "metadata", "locked_by"),
    "conversation_items": ("owner", "conversation_id", "pos", "item_id", "type", "response_id", "body", "shown"),
    "prompts": (*("id", "owner", "name", "default_version", "last_version", "created_at", "updated_at", "metadata"),),
    "prompt_versions": ("prompt_id", "version", "created_at", "body"),
    "jobs": ("response_id", "owner", "request", "needs", "created_at", "attempts", "claim"),
    "files": (*("owner", "id", "blob", "name", "purpose", "media_type", "size", "sha256", "created_at", "expires_at"),),
    "pending_blobs": ("key",),
    "idempotency": ("owner", "key", "fingerprint", "object_id", "leased", "expires_at", "record"),
    "usage_days": (
        *("day", "owner", "model", "upstream", "calls", "input_tokens", "cached_tokens", "output_tokens"),
        *("reasoning_tokens", "estimated_calls", "estimated_input_tokens", "estimated_output_tokens", "cost"),
    ),
}
VECTORS: dict[str, tuple[str, ...]] = {
    "vector_stores": (
        *("number", "id", "owner", "name", "description", "metadata", "created_at", "last_active_at", "expires_days"),
        *("expires_at", "version"),
    ),
    "vector_files": (
        *("number", "store_number", "file_id", "filename", "status", "error_code", "error_message", "attributes"),
        *("chunking", "chunk_size", "chunk_overlap", "chunks", "usage_bytes", "embedding_model", "created_at"),
        "attempts",
    ),
    "file_attributes": ("file", "store_number", "key", "kind", "text", "number"),
    "vector_batches": ("id", "store_number", "created_at", "cancelled"),
    "vector_batch_files": ("batch_id", "file"),
    "chunks": ("file_number", "place", "tokens", "text"),
    "chunk_vectors": ("file_number", "place", "store_number", "vector"),
}
"""The kinds of rows of vector stores."""
COLUMNS = _SESSIONS | VECTORS
"""The kinds of rows in the order in which they are moved: what is referred to comes first."""

EXTRA = {"chunks": ("title", "store_number")}
"""What a row brings beyond its columns, for what is made of it."""


@dataclass(frozen=True, slots=True)
class Counted:
    """How many rows of a kind there are, or contents of files with all their bytes, and a sum over them in which no
    order counts."""

    rows: int
    checksum: int
    content_bytes: int = 0


class Sum:
    """Counts rows and adds up what tells them apart."""

    def __init__(self) -> None:
        self._rows = self._sum = 0

    def add(self, row: Row) -> None:
        """One more."""
        digest = hashlib.blake2b(_ENCODER.encode(row), digest_size=8).digest()
        self._rows += 1
        self._sum = (self._sum + int.from_bytes(digest, "big")) & ((1 << 64) - 1)

    @property
    def counted(self) -> Counted:
        """So far."""
        return Counted(self._rows, self._sum)


# Texts of clients may hold half a character.
_ENCODER = msgspec.msgpack.Encoder(enc_hook=repr)
