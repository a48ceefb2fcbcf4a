"""Builds the stores of responses, jobs and keys on a PostgreSQL database, for tests that need only these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from antiphon.engine.ports.actions import ResponseRecord
from antiphon.engine.ports.files import BlobStore
from antiphon.engine.ports.jobs import Pace
from antiphon.ids import Clock, now
from antiphon.stores.blobs.pending import UPLOAD_LEASE_SECONDS, PendingBlobs, PendingRows
from antiphon.stores.files import FileStore
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.jobs import JobStore
from antiphon.stores.postgres.backend import FILE_SQL
from antiphon.stores.postgres.database import Database, DatabaseLimits
from antiphon.stores.postgres.group_commit import GroupCommit, GroupLimits
from antiphon.stores.postgres.health import DatabaseReadiness
from antiphon.stores.postgres.jobs import SQL as JOB_SQL
from antiphon.stores.postgres.jobs import (
    AddedEvents,
    Addition,
    NewJob,
    PostgresJobWriter,
    QueuedResponses,
)
from antiphon.stores.postgres.responses import (
    LOAD_ITEMS,
    FinishedResponses,
    LateSaves,
    PostgresResponseWriter,
)
from antiphon.stores.postgres.signals import HEARING, ListenTimes, PostgresSignals
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.responses import ResponseStore

CHAIN_ITEMS = 1000


@dataclass(frozen=True)
class TurnStores:
    """The stores of turns, over separate connections."""

    database: Database
    keys: IdempotencyStore
    late_saves: LateSaves
    turns: GroupCommit[ResponseRecord]
    responses: ResponseStore
    queued: GroupCommit[NewJob]
    added: GroupCommit[Addition]
    background: JobStore
    signals: PostgresSignals

    async def aclose(self) -> None:
        for groups in (self.turns, self.queued, self.added):
            await groups.aclose()
        await self.signals.aclose()
        await self.late_saves.aclose()
        await self.database.aclose()


def turn_stores(
    url: str,
    *,
    chain_items: int = CHAIN_ITEMS,
    history_bytes: int = 64 << 20,
    page_bytes: int = 16 << 20,
    patience: float = 20.0,
    limits: GroupLimits | None = None,
    connections: DatabaseLimits | None = None,
    direct_url: str | None = None,
    times: ListenTimes | None = None,
    clock: Clock = now,
    hearing: Pace = HEARING,
) -> TurnStores:
    database = Database(url, connections)
    tables = PostgresTables(database)
    keys = IdempotencyStore(tables)
    late_saves = LateSaves(database)
    limits = limits or GroupLimits()
    saved = FinishedResponses(database, late_saves, keep=timedelta(seconds=keys.keep), clock=clock)
    turns = GroupCommit(saved, limits)
    queued = GroupCommit(QueuedResponses(database, saved), replace(limits, group=1))
    signals = PostgresSignals(database, direct_url, times, hearing=hearing)
    added = GroupCommit(AddedEvents(database, signals.changed), limits)
    writer = PostgresResponseWriter(turns, DatabaseReadiness(database, patience))
    responses = ResponseStore(
        tables, writer, LOAD_ITEMS, chain_items=chain_items, history_bytes=history_bytes, page_bytes=page_bytes
    )
    jobs = JobStore(
        tables, PostgresJobWriter(database, queued, added, signals.changed, clock=clock), JOB_SQL, ended=signals.changed
    )
    return TurnStores(database, keys, late_saves, turns, responses, queued, added, jobs, signals)


def postgres_files(
    database: Database, blobs: BlobStore, *, owner_bytes: int | None = None, clock: Clock = now
) -> FileStore:
    """A file store in this database, with the test's blob store and clock."""
    tables = PostgresTables(database)
    pending = PendingBlobs(PendingRows(tables), blobs, UPLOAD_LEASE_SECONDS)
    return FileStore(tables, IdempotencyStore(tables), FILE_SQL, pending, blobs, owner_bytes=owner_bytes, clock=clock)
