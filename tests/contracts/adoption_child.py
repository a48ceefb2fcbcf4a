"""Adopts the data of a bare token in a separate process: `python adoption_child.py STATE_URL DATA KILL_AFTER`.

The process prints `ready`, waits for a line on its standard input, and acts like a server that gets the first request
with the token. With KILL_AFTER it kills itself after the first moved part of this kind. Otherwise it prints `done` when
its move has ended, or when another process has moved everything.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import aclosing
from pathlib import Path

from pydantic import SecretStr

from antiphon.app.owners import make_adoption
from antiphon.config.owners import OwnerSettings, SealingSettings
from antiphon.config.settings import Settings
from antiphon.config.upstreams import AuthMode, UpstreamSettings
from antiphon.engine.ports.callers import Caller
from antiphon.engine.ports.containers import ContainerRows
from antiphon.stores import Stores
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from tests.contracts.states import open_state, settings_of
from tests.support.state import OWNER_KEY, SEALING_KEY

OLD, NEW = "b:alice", "n:anna"


def containers_of(stores: Stores, data: Path) -> ContainerRows:
    """The rows of containers: in the database of several machines, or else in the data folder."""
    return stores.containers or RecordedRows(Records(data / "containers" / "records"))


async def _adopt(url: str, data: Path, kill_after: str) -> None:
    settings = Settings(
        data=data,
        state=settings_of(url),
        upstream=UpstreamSettings(auth=AuthMode.NONE),
        owner=OwnerSettings(managed_keys=True, key=SecretStr(OWNER_KEY)),
        sealing=SealingSettings(keys=(SecretStr(SEALING_KEY),)),
    )
    ended = asyncio.Event()

    def moved(kind: str) -> None:
        if kind == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "containers":
            ended.set()

    async with aclosing(await open_state(url, data)) as stores:
        adoption = make_adoption(settings, stores, moved=moved)
        assert adoption is not None
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        adoption.start()
        adoption.presented(Caller(NEW, "anna", key_id="key_1"), OLD)
        rows = containers_of(stores, data)
        # If the other process holds a container, this one fails, and the other one moves the rest.
        while not ended.is_set() and (await stores.usage.has_data(OLD) or await rows.count([OLD]) > 0):
            await asyncio.sleep(0.001)
        await adoption.aclose()
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(_adopt(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
