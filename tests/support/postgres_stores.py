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
from antiphon.stores.postgres.database import Database, DatabaseLimits
from antiphon.stores.postgres.files import SQL
from antiphon.stores.postgres.job_sql import SQL as JOB_SQL
from antiphon.stores.postgres.jobs import (
    AddedEvents,
    Addition,
    NewJob,
    PostgresJobWriter,
    QueuedTurns,
)
from antiphon.stores.postgres.notify import ListenTimes
from antiphon.stores.postgres.responses import LOAD_ITEMS, DatabaseReadiness, PostgresResponseWriter
from antiphon.stores.postgres.signals import HEARING, PostgresSignals
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.postgres.turn_groups import GroupLimits, Groups
from antiphon.stores.postgres.turns import SavedTurns
from antiphon.stores.postgres.withdrawals import Withdrawals
from antiphon.stores.responses import ResponseStore

CHAIN_ITEMS = 1000


@dataclass(frozen=True)
class TurnStores:
    """The stores of turns, over separate connections."""

    database: Database
    keys: IdempotencyStore
    withdrawals: Withdrawals
    turns: Groups[ResponseRecord]
    responses: ResponseStore
    queued: Groups[NewJob]
    added: Groups[Addition]
    background: JobStore
    signals: PostgresSignals

    async def aclose(self) -> None:
        for groups in (self.turns, self.queued, self.added):
            await groups.aclose()
        await self.signals.aclose()
        await self.withdrawals.aclose()
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
    withdrawals = Withdrawals(database)
    limits = limits or GroupLimits()
    saved = SavedTurns(database, withdrawals, keep=timedelta(seconds=keys.keep), clock=clock)
    turns = Groups(saved, limits)
    queued = Groups(QueuedTurns(database, saved), replace(limits, group=1))
    signals = PostgresSignals(database, direct_url, times, hearing=hearing)
    added = Groups(AddedEvents(database, signals.changed), limits)
    writer = PostgresResponseWriter(turns, DatabaseReadiness(database, patience))
    responses = ResponseStore(
        tables, writer, LOAD_ITEMS, chain_items=chain_items, history_bytes=history_bytes, page_bytes=page_bytes
    )
    jobs = JobStore(
        tables, PostgresJobWriter(database, queued, added, signals.changed, clock=clock), JOB_SQL, ended=signals.changed
    )
    return TurnStores(database, keys, withdrawals, turns, responses, queued, added, jobs, signals)


def postgres_files(
    database: Database, blobs: BlobStore, *, owner_bytes: int | None = None, clock: Clock = now
) -> FileStore:
    """A file store in this database, with the test's blob store and clock."""
    tables = PostgresTables(database)
    pending = PendingBlobs(PendingRows(tables), blobs, UPLOAD_LEASE_SECONDS)
    return FileStore(tables, IdempotencyStore(tables), SQL, pending, blobs, owner_bytes=owner_bytes, clock=clock)
