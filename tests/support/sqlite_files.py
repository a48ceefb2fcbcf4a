"""Files over SQLite's rows, with contents and a clock that a test chooses."""

from __future__ import annotations

from antiphon.engine.ports.files import BlobStore
from antiphon.ids import Clock, now
from antiphon.stores.blobs.pending import UPLOAD_LEASE_SECONDS, PendingBlobs
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.kept_files import KeptFiles
from antiphon.stores.sqlite.files import SqliteFileRows
from antiphon.stores.sqlite.opening import SqliteStores
from antiphon.stores.sqlite.pending_blobs import SqlitePendingRows
from antiphon.stores.sqlite.tables import SqliteTables


def files_of(
    stores: SqliteStores, blobs: BlobStore, *, owner_bytes: int | None = None, clock: Clock = now
) -> KeptFiles:
    """Files in the database of these stores."""
    writer, readers = stores.writer, stores.readers
    pending = SqlitePendingRows(writer, readers, UPLOAD_LEASE_SECONDS)
    keys = IdempotencyKeys(SqliteTables(writer, readers))
    rows = SqliteFileRows(writer, readers, keys, pending, owner_bytes=owner_bytes, clock=clock)
    return KeptFiles(rows, PendingBlobs(pending, blobs, UPLOAD_LEASE_SECONDS), blobs)
