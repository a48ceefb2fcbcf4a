"""The stores of any backend, put together over its tables.

Lives here: what the options are unless they are given, and what each store gets of them. Not here: opening the
database, and who shares which connections (`sqlite/opening.py`, `postgres/opening.py`).
"""

from __future__ import annotations

from typing import TypedDict

from antiphon.config.limits import TimeoutSettings
from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.files import BlobStore
from antiphon.stores.backend import KEEP_SECONDS, StoreOptions
from antiphon.stores.blobs.pending import UPLOAD_LEASE_SECONDS, PendingBlobs
from antiphon.stores.bodies import PLAIN
from antiphon.stores.conversations import SqlConversations
from antiphon.stores.files import FileSql, SqlFiles
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.jobs import JobSql, JobWriter, SqlJobs, Told, nobody
from antiphon.stores.prompts import SqlPrompts
from antiphon.stores.responses import ResponseWriter, SqlResponses
from antiphon.stores.retention import Pieces, SqlRetention
from antiphon.stores.tables import Tables
from antiphon.stores.usage import SqlOwnerRoom, UsageSums

_DEFAULTS: StoreOptions = {
    "chain_items": 1000,
    "history_bytes": 64 << 20,
    "page_bytes": 16 << 20,
    "owner_file_bytes": None,
    "upload_lease": UPLOAD_LEASE_SECONDS,
    "owner_bytes": None,
    "kept": RetentionSettings(events=None),
    "timeouts": TimeoutSettings(),
    "keep_keys": KEEP_SECONDS,
    "bodies": PLAIN,
}


def all_options(given: StoreOptions) -> StoreOptions:
    """What was given, and all else as it is unless it is."""
    return {**_DEFAULTS, **given}


class OverTables(TypedDict):
    """The stores that are written once, by their names in `Stores`."""

    responses: SqlResponses
    conversations: SqlConversations
    background: SqlJobs
    prompts: SqlPrompts
    files: SqlFiles
    retention: SqlRetention
    keys: IdempotencyKeys
    usage: UsageSums
    owner_room: SqlOwnerRoom | None


def over_tables(
    tables: Tables,
    keys: IdempotencyKeys,
    options: StoreOptions,
    *,
    responses: tuple[ResponseWriter, str],
    jobs: tuple[JobWriter, JobSql],
    ended: Told = nobody,
    files: tuple[FileSql, PendingBlobs, BlobStore],
    pieces: Pieces,
) -> OverTables:
    """The stores over these tables. `options` are all there are; the others are what the backend does in its own
    way."""
    bodies, page_bytes, owner_bytes = options["bodies"], options["page_bytes"], options["owner_bytes"]
    items, history_bytes = options["chain_items"], options["history_bytes"]
    return OverTables(
        responses=SqlResponses(
            tables, *responses, chain_items=items, history_bytes=history_bytes, page_bytes=page_bytes, bodies=bodies
        ),
        conversations=SqlConversations(
            tables, keys, max_items=items, history_bytes=history_bytes, page_bytes=page_bytes, bodies=bodies
        ),
        background=SqlJobs(tables, *jobs, bodies, ended),
        prompts=SqlPrompts(tables, keys, page_bytes=page_bytes, bodies=bodies),
        files=SqlFiles(tables, keys, *files, owner_bytes=options["owner_file_bytes"]),
        retention=SqlRetention(tables, pieces, options["kept"]),
        keys=keys,
        usage=UsageSums(tables),
        owner_room=None if owner_bytes is None else SqlOwnerRoom(tables, owner_bytes),
    )
