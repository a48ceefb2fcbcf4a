"""Opens the stores for a command of an operator, also while servers use them.

`app/build.py` opens the stores of a server.
"""

from __future__ import annotations

from antiphon.app.keys import known_bodies
from antiphon.config.settings import Settings
from antiphon.stores import Stores, open_stores


async def opened_stores(settings: Settings) -> Stores:
    """Open the stores. The caller must close the stores. Raises `ConfigError` and `StoreError`.

    If the database is unreachable, this function raises immediately, because an operator waits for the result.
    """
    return await open_stores(
        settings.state.model_copy(update={"start_within": 0.0}),
        settings.data,
        blobs=settings.blobs,
        chain_items=settings.limits.chain_items,
        upload_lease=settings.files.lease,
        kept=settings.retention,
        bodies=known_bodies(settings),
    )
