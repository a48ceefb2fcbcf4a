"""Vector stores in the database that the other stores are in too.

Lives here: opening them, and the views on them. Not here: what each of them does.

Invariant: they need no connections of their own; closing them leaves those of the others open.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from antiphon.engine.ports.figures import StoreFigures
from antiphon.stores.backend import VectorDatabase
from antiphon.stores.idempotency import IdempotencyKeys
from antiphon.stores.postgres.chunk_index import PostgresChunkIndex
from antiphon.stores.postgres.database import Database
from antiphon.stores.postgres.ingestion import PostgresIngestion
from antiphon.stores.postgres.tables import PostgresTables
from antiphon.stores.postgres.vector_indexes import EXACT_VECTORS, VectorIndexes, own_connection
from antiphon.stores.postgres.vector_sql import PostgresVectorSql
from antiphon.stores.postgres.vector_table import VectorTable
from antiphon.stores.vector_stores import SqlVectorStores


@dataclass(frozen=True)
class PostgresVectorDatabase(VectorDatabase):
    """`VectorDatabase` in PostgreSQL."""

    stores: SqlVectorStores
    ingestion: PostgresIngestion
    index: PostgresChunkIndex
    keys: IdempotencyKeys
    table: VectorTable
    indexes: VectorIndexes

    @property
    def figures(self) -> tuple[StoreFigures, ...]:
        """None of its own."""
        return ()

    async def check_vectors(self) -> None:
        """Make the table of vectors, with the extension that it needs, where it is not there yet."""
        await self.table.there()

    async def aclose(self) -> None:
        """Stop looking after indexes."""
        await self.indexes.aclose()


def open_vectors(
    database: Database, keys: IdempotencyKeys, *, direct_url: str, exact: int = EXACT_VECTORS
) -> PostgresVectorDatabase:
    """Vector stores on this database. `direct_url`: of the server itself, for work that takes minutes; `exact`: the
    most vectors that a search compares one by one."""
    table = VectorTable(database)
    indexes = VectorIndexes(database, partial(own_connection, direct_url, database.setting_of(direct_url)), exact=exact)
    tables = PostgresTables(database)
    stores = SqlVectorStores(tables, keys, PostgresVectorSql())
    return PostgresVectorDatabase(
        stores,
        PostgresIngestion(tables, database, table, indexes),
        PostgresChunkIndex(tables, stores, table, indexes),
        keys,
        table,
        indexes,
    )
