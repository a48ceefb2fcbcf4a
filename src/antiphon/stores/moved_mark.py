"""The mark of a folder of databases whose rows are being moved elsewhere, or were.

Lives here: the file, what it says, and refusing a start on such a folder. Not here: moving (`moving.py`).

What a process stored in the folder during a move, or after it, nobody would find in the database that the others use.
So the mark is there before the first row is moved, and stays. Whoever wants the folder back deletes it. Every move has
a name, which the database notes too: a move whose folder was given back in between does not go on.

Invariant: a mark is there whole, or not at all.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from antiphon.errors import ConfigError, StoreError
from antiphon.stores.flushing import flush_folder

MARK_FILE = "moved.json"


@dataclass(frozen=True, slots=True)
class Mark:
    """`name`: of the move; `target`: the database as it may be shown; `whole`: all is there."""

    name: str
    target: str
    whole: bool


def read_mark(folder: Path) -> Mark | None:
    """The folder's mark. Raises `StoreError` where it cannot be read."""
    path = folder / MARK_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Mark)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StoreError(f"{path}, the mark of a move, cannot be read: {type(error).__name__}.") from error


def write_mark(folder: Path, mark: Mark | None) -> None:
    """Set it, or take it away. Raises `StoreError`."""
    path = folder / MARK_FILE
    new = path.with_suffix(".new")
    try:
        if mark is None:
            path.unlink(missing_ok=True)
        else:
            with new.open("wb") as file:
                file.write(msgspec.json.encode(mark))
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        flush_folder(folder)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}.") from error


def check_not_moved(folder: Path) -> None:
    """Raises `ConfigError` where processes must not start on the folder, with both ways out, and `StoreError`."""
    mark = read_mark(folder)
    if mark is None:
        return
    path = folder / MARK_FILE
    if mark.whole:
        raise ConfigError(
            f"everything in {folder} was moved to {mark.target}: set state.url to it. To go back to what the folder "
            f"has, without all that was stored there since, delete {path}."
        )
    raise ConfigError(
        f"{folder} is being moved to {mark.target}, and that is not over: run `antiphon admin move` to its end. To "
        f"give the move up, delete {path}, and empty that database before things are moved into it again."
    )
