"""Defines the backend-independent form of rows that `antiphon admin move` copies, and the mark file in a moved folder.

Lives here: the columns of each kind of row, the checksum that compares rows, and the check that refuses a start on a
marked folder. Not here: reading rows (`sqlite/exporting.py`), writing rows (`postgres/importing.py`), the order of the
steps of a move (`move.py`).

A move omits data that the target derives from other rows: sums of bytes, the words of chunks, a job's position in the
queue. A move ends all leases, because no process holds a lease during a move. A move also copies rows that wait for
deletion, and the target's sweep deletes them.

Without the mark, a process could store data in the folder during or after the move, and the target would lack that
data. So the move writes the mark file before it copies the first row, and keeps the file. To use the folder again, the
operator deletes the mark file. Each move has a name, which the mark and the target database both record. If the
operator deletes the mark of an unfinished move, the next move has another name. The target database refuses to continue
a move with another name.

Invariant: the mark file is either complete or absent, also after a crash.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from antiphon.errors import ConfigError, StoreError
from antiphon.stores.blobs.disk import flush_folder

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
    "client_keys": (
        *("id", "digest", "name", "owner", "team", "prefix", "models", "tools", "created_at", "expires_at"),
        *("revoked_at", "lifetime"),
    ),
    "owner_teams": ("owner", "team"),
    "audit": ("id", "at", "actor", "action", "object", "owner", "detail"),
    "quota_counters": ("subject", "measure", "starts", "used", "leased", "granted", "warned"),
    "quota_leases": ("holder", "subject", "measure", "starts", "amount"),
    "quota_holders": ("holder", "seen_at"),
    "requests": (
        *("id", "ended_at", "owner", "request_id", "key_id", "key_name", "team", "door", "model", "upstream"),
        *("response_id", "previous_id", "conversation_id", "outcome", "fault", "code", "http_status", "stored"),
        *("recorded", "took", "first_at", "calls", "input_tokens", "cached_tokens", "output_tokens"),
        *("reasoning_tokens", "estimated", "cost", "detail"),
    ),
    "request_batches": ("id", "at", "entries", "body"),
    "request_records": ("id", "owner", "response_id", "saved_id", "at", "size", "body"),
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
"""The columns of each kind of row that belongs to vector stores."""
COLUMNS = _SESSIONS | VECTORS
"""The columns of each kind of row, in the order of the move: referenced rows come before the rows that refer to
them."""

EXTRA = {"chunks": ("title", "store_number")}
"""Columns that the source sends in addition to `COLUMNS`. The target derives other data from these columns and does not
store the columns themselves."""


@dataclass(frozen=True, slots=True)
class RowCount:
    """The number of rows of a kind, and a checksum that does not depend on the order of the rows.

    For file contents, `rows` is their number and `content_bytes` their total size.
    """

    rows: int
    checksum: int
    content_bytes: int = 0


class RowChecksum:
    """Counts rows and adds up their 64-bit hashes, modulo 2^64."""

    def __init__(self) -> None:
        self._rows = self._sum = 0

    def add(self, row: Row) -> None:
        """Add one row to the count and to the checksum."""
        digest = hashlib.blake2b(_ENCODER.encode(row), digest_size=8).digest()
        self._rows += 1
        self._sum = (self._sum + int.from_bytes(digest, "big")) & ((1 << 64) - 1)

    @property
    def counted(self) -> RowCount:
        """The count and the checksum of the rows so far."""
        return RowCount(self._rows, self._sum)


# `repr` encodes values of types that msgspec does not support. A text with a lone surrogate must already be bytes.
_ENCODER = msgspec.msgpack.Encoder(enc_hook=repr)


MARK_FILE = "moved.json"


@dataclass(frozen=True, slots=True)
class MoveMark:
    """The content of the mark file. `name`: the random name of the move. `target`: the URL of the target database
    without the password. `whole`: whether the move is complete."""

    name: str
    target: str
    whole: bool


def read_mark(folder: Path) -> MoveMark | None:
    """Read the folder's mark file. Returns None if the folder has no mark. Raises `StoreError` when the file is
    unreadable."""
    path = folder / MARK_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=MoveMark)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StoreError(f"{path}, the mark of a move, cannot be read: {type(error).__name__}.") from error


def write_mark(folder: Path, mark: MoveMark | None) -> None:
    """Write the folder's mark file, or delete the file if `mark` is None. Raises `StoreError`."""
    path = folder / MARK_FILE
    new = path.with_suffix(".new")
    try:
        if mark is None:
            path.unlink(missing_ok=True)
        else:
            with new.open("wb") as file:
                file.write(msgspec.json.encode(mark))
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        flush_folder(folder)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}.") from error


def check_not_moved(folder: Path) -> None:
    """Raise `ConfigError` when the folder has a mark. The message tells the operator how to continue and how to return
    to the folder. Raises `StoreError` when the mark file is unreadable."""
    mark = read_mark(folder)
    if mark is None:
        return
    path = folder / MARK_FILE
    if mark.whole:
        raise ConfigError(
            f"Everything in {folder} was moved to {mark.target}. Set state.url to the URL of that database. To return "
            f"to the folder's old state, without anything stored since the move, delete {path}."
        )
    raise ConfigError(
        f"The move of {folder} to {mark.target} is unfinished. Run `antiphon admin move` until it completes. "
        f"To abandon the move, delete {path}, and empty that database before the next move into it."
    )
