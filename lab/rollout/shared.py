"""Provides the state that the replicas of a rollout share.

Lives here: the settings that name this state. Not here: databases (`lab/scale/states.py`), the replicas
(`replicas.py`).

With `sqlite`, all replicas share one data folder, as on one machine. With `postgres` and `pgbouncer` (four connections
to the server), each replica is like a machine. Such a replica has a separate data folder, keys from the settings, and
contents of files in a bucket.

Invariant: every server that this module started ends with the run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.scale.states import KINDS
from lab.scale.states import opened as opened_state
from tests.support.seaweed import BUCKET, KEY_ID, SECRET, SeaweedServer

STATES = KINDS

_KEYS = {"owner": {"key": "rollout-owner-key-0123456789"}, "sealing": {"keys": ["rollout-sealing-key-0123456789"]}}


@dataclass(frozen=True)
class Shared:
    """The shared state. `settings` are the same for all replicas. With `machines`, each replica has a separate data
    folder."""

    kind: str = "sqlite"
    settings: Mapping[str, Any] = field(default_factory=dict)
    machines: bool = False


ONE_FOLDER = Shared()


@asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[Shared]:
    """Open one of `STATES`, or the database at a URL, with a separate bucket."""
    if kind == "sqlite":
        yield ONE_FOLDER
        return
    async with opened_state(kind, folder) as state:
        server = SeaweedServer()
        try:
            yield machines(state.kind, state.url, bucket_settings(server.endpoint, "rollout"))
        finally:
            server.stop()


def machines(kind: str, url: str, blobs: Mapping[str, Any]) -> Shared:
    """The settings for several machines that share a database and a bucket."""
    return Shared(kind, {"state": {"url": url}, "blobs": blobs, **_KEYS}, machines=True)


def bucket_settings(endpoint: str, prefix: str) -> dict[str, Any]:
    """The section `blobs` of a settings file."""
    return {"url": f"s3://{BUCKET}/{prefix}", "endpoint": endpoint, "key_id": KEY_ID, "secret": SECRET}
