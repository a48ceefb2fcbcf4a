"""The rooms for code, where they are wanted and this machine can hold code in.

Lives here: trying it out, and putting the parts together. Not here: the parts.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import structlog

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.container_rows import SharedContainers
from antiphon.engine.ports.files import FileStore
from antiphon.local_keys import local_key
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.neighbours import Neighbours
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from antiphon.tools.code_interpreter.snapshots import Snapshots
from antiphon.tools.code_interpreter.trial import HOLDS, try_out

_log = structlog.get_logger(__name__)

_MACHINE_DIGITS = 16


async def open_rooms(
    chosen: CodeInterpreterSettings, folder: Path, files: FileStore | None, shared: SharedContainers | None = None
) -> ContainerRooms | None:
    """The rooms in this folder; None where the settings want none, or code cannot be held in here, which is logged.
    `shared`: the rows and snapshots that several machines share; without, all of it is in the folder.

    Raises `ConfigError`.
    """
    if chosen.sandbox == "none":
        return None
    # Tried out, not believed: kernels and container runtimes differ.
    trial = await asyncio.to_thread(try_out, chosen.python, folder)
    if trial.reason:
        _log.error("code_interpreter_unavailable", reason=trial.reason)
        return None
    _log.info("code_interpreter_ready", room=trial.room, holds=HOLDS[trial.room])
    sandbox = LocalSandbox(folder / "machines", chosen, trial.room)
    neighbours = Neighbours(sandbox, chosen, chosen.sockets)
    await neighbours.start()
    return ContainerRooms(
        sandbox,
        shared.rows if shared is not None else RecordedRows(Records(folder / "records")),
        files,
        limit=chosen.containers,
        per_owner=chosen.per_owner,
        neighbours=neighbours,
        snapshots=_open_snapshots(sandbox, chosen, folder, shared) if shared is not None else None,
    )


def _open_snapshots(
    sandbox: LocalSandbox, chosen: CodeInterpreterSettings, folder: Path, shared: SharedContainers
) -> Snapshots:
    """This machine is named by its folder: one with another disk has no files."""
    machine = local_key(folder, "machine").decode()[:_MACHINE_DIGITS]
    return Snapshots(sandbox, shared.contents, machine, chosen.disk_bytes)
