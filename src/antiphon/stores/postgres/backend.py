"""PostgreSQL as a backend: one database for many machines.

Lives here: what of this package does what `Backend` offers. Not here: any of it.

Invariant: what only operators need is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

from antiphon.config.state import BlobSettings
from antiphon.engine.ports.files import BlobStore
from antiphon.engine.ports.owner_data import OwnerData
from antiphon.stores.backend import Backend, Said, Schema, StoreOptions, Stores, Wanted
from antiphon.stores.blobs.disk import FILES_FOLDER
from antiphon.stores.blobs.opening import open_blobs
from antiphon.stores.deployment import Deployment
from antiphon.stores.postgres.opening import open_postgres, open_postgres_owners
from antiphon.stores.sealed.bodies import Bodies


class PostgresBackend(Backend):
    """The database at `state.url`."""

    async def open(self, contents: BlobStore, options: StoreOptions) -> Stores:
        """See `Backend`."""
        return await open_postgres(self.state, blobs=contents, **options)

    async def open_contents(self, blobs: BlobSettings) -> BlobStore:
        """See `Backend`."""
        return await open_blobs(blobs, self.data / FILES_FOLDER, of_several=True)

    def check_there(self) -> None:
        """Whether the database is there, its server says."""

    async def open_owner_data(self, bodies: Bodies) -> OwnerData:
        """See `Backend`."""
        return await open_postgres_owners(self.state, bodies)

    def open_schemas(self, *, seconds: float, within: float = 0.0) -> AbstractAsyncContextManager[Sequence[Schema]]:
        """See `Backend`."""
        from antiphon.stores.postgres.schema import open_postgres_schemas

        assert self.state.url is not None
        # Behind a pooler a long step is better made at the server itself.
        url = self.state.direct_url or self.state.url
        setting = "state.url" if self.state.direct_url is None else "state.direct_url"
        return open_postgres_schemas(url.get_secret_value(), seconds, setting, within=within)

    def deployment(self) -> Deployment:
        """See `Backend`."""
        from antiphon.stores.postgres.deployment import PostgresDeployment

        assert self.state.url is not None
        return PostgresDeployment(self.state.url.get_secret_value(), self.state.deadline)

    async def examine(self, wanted: Wanted, shared: AsyncIterator[Said]) -> AsyncIterator[Said]:
        """See `Backend`."""
        from antiphon.stores.postgres.examining import examine

        async for said in examine(self.state, wanted):
            yield said
            if said.verdict == "problem":
                # What does not answer, or will not do, has no schema worth a look.
                return
        async for said in shared:
            yield said
