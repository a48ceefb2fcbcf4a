"""Implements the actions of `antiphon admin` on the whole state: `backup`, `restore`, `move` and `keys`.

This module reads the flags, finds the keys that the process uses, and prints the results. `stores/sqlite/backup.py`
writes and reads the archive, and `stores/move.py` moves the state. `stores/compatibility.py` checks keys against a
database.

Invariants: these actions create no key. A failed restore leaves no files. The output shows no password, and only the
beginning of a key's fingerprint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr

from antiphon.app.keys import OWNER_KEY, SEALING_KEY, deployment_keys, key_problems
from antiphon.commands.admin.audit import acted, note_state_action
from antiphon.commands.terminal import printable, progress, write_table
from antiphon.config.settings import Settings
from antiphon.config.urls import read_state_url
from antiphon.errors import ConfigError
from antiphon.stores.backend import BackupSummary, KeyName, check_target
from antiphon.stores.choice import backend_of
from antiphon.stores.compatibility import MOVING, OWNER, keys_to_record
from antiphon.stores.move import CONTENTS, move
from antiphon.stores.move_format import MARK_FILE

_SHOWN = 8


def check_backup(settings: Settings, target: Path) -> None:
    """Raise `StoreError` when the file `target` exists. Raise `ConfigError` when the backend has no archives, or when a
    key is already lost, because the archive would be useless without that key."""
    backend_of(settings.state, settings.data).check_archives()
    if problems := key_problems(settings):
        raise ConfigError(problems[0])
    check_target(target)


def backup(settings: Settings, target: Path, *, with_keys: bool, as_json: bool = False) -> str:
    """Write the archive. Returns the message for the operator, or the result as JSON. Raises `ConfigError` and
    `StoreError`."""
    check_backup(settings, target)
    in_force = {name: keys or _made(settings.data / name) for name, keys in _configured(settings).items()}
    here = settings.blobs.url is None
    backend = backend_of(settings.state, settings.data)
    with progress("backup", unit="bytes", quiet=as_json) as shown:
        done = backend.make_archive(target, in_force, with_keys=with_keys, with_contents=here, report=shown.report)
    missing = [name for name, keys in in_force.items() if keys and name not in done.keys]
    if as_json:
        more = {"vanished": done.vanished, "with_contents": here, "keys": done.keys, "missing_keys": missing}
        return json.dumps({"file": str(target), **_facts(done), **more})
    told = [f"{target}: {_counted(done)}"]
    if done.vanished:
        told.append(f"the archive does not contain {done.vanished} files that were deleted during the backup")
    if not here:
        told.append(f"the archive does not contain the contents of files, which are in {settings.blobs.url}")
    if done.keys:
        told.append(
            f"the archive contains {' and '.join(done.keys)}: keep it secret, because its reader can decrypt all "
            "stored data"
        )
    if missing:
        what = " and ".join(missing)
        told.append(f"the archive does not contain {what}: keep each key elsewhere, because a restore needs it")
    return "\n".join(told)


def restore(settings: Settings, source: Path, *, as_json: bool = False) -> str:
    """Restore the data folder from the archive. Returns the message for the operator, or the result as JSON. Raises
    `StoreError`."""
    backend = backend_of(settings.state, settings.data)
    with progress("restore", unit="bytes", quiet=as_json) as shown:
        done = backend.open_archive(source, _configured(settings), report=shown.report)
    if as_json:
        return json.dumps({"folder": str(settings.data), **_facts(done)})
    return f"{settings.data}: {_counted(done)}"


def _facts(done: BackupSummary) -> dict[str, object]:
    return {"bytes": done.size, "contents": done.contents}


def _counted(done: BackupSummary) -> str:
    return f"{done.size} bytes, the databases and the contents of {done.contents} files"


def _configured(settings: Settings) -> dict[KeyName, tuple[bytes, ...]]:
    owner = () if settings.owner.key is None else (settings.owner.key,)
    return {
        "owner.key": tuple(key.get_secret_value().encode() for key in owner),
        "sealing.key": tuple(key.get_secret_value().encode() for key in settings.sealing.keys),
    }


def _made(path: Path) -> tuple[bytes, ...]:
    return (path.read_bytes().strip(),) if path.exists() else ()


async def move_state(settings: Settings, source: str | None, target: str | None, *, as_json: bool = False) -> int:
    """Move the stored state from SQLite to PostgreSQL, and print how many objects of each kind moved. Returns the exit
    status. Raises `ConfigError` and `StoreError`."""
    url = target or (settings.state.url.get_secret_value() if settings.state.url is not None else "")
    try:
        place, goal = read_state_url(source or "sqlite:"), read_state_url(url)
    except ValueError as error:
        raise ConfigError(f"--from, --to: {error}") from None
    if place.kind != "sqlite" or goal.kind != "postgresql":
        raise ConfigError("--from must be sqlite:/FOLDER, and --to must be postgresql://… (default: state.url)")
    hints = list(_keys(settings))
    folder = place.folder or settings.data
    with progress("move", quiet=as_json) as shown:
        moved = await move(folder, url, data=settings.data, blobs=settings.blobs, said=shown.say, report=shown.report)
    # The new database stores the row, because the command does not change the old database.
    state = settings.state.model_copy(update={"url": SecretStr(url)})
    there = settings.model_copy(update={"state": state})
    await note_state_action(there, acted("move", detail={"from": printable(str(folder)), "to": goal.shown}))
    if as_json:
        kinds = [
            {
                "kind": one.kind,
                "number": one.target.rows,
                "bytes": one.target.content_bytes if one.kind == CONTENTS else None,
                "checksum": f"{one.target.checksum:016x}",
            }
            for one in moved
        ]
        print(json.dumps({"target": goal.shown, "moved": kinds, "advice": hints}))
        return 0
    rows = [["kind", "number", "bytes", "checksum"]]
    for one in moved:
        size = str(one.target.content_bytes) if one.kind == CONTENTS else ""
        rows.append([one.kind, str(one.target.rows), size, f"{one.target.checksum:016x}"])
    write_table(rows, sys.stdout, left=1)
    print(f"Moved to {goal.shown}; the command compared every row and the contents of every file.")
    mark = folder / MARK_FILE
    kept = (
        f"The move did not change the data in {folder}. No process uses this data folder while the file {mark} exists. "
        "Keep the folder until you have checked the moved data."
    )
    print(kept, *hints, sep="\n")
    return 0


def _keys(settings: Settings) -> Iterator[str]:
    """The lines that tell the operator what to do with the keys and file contents in the data folder. Raises
    `ConfigError` when the keys in the settings differ from those in the data folder."""
    setting = {OWNER_KEY: "owner.key", SEALING_KEY: "sealing.keys"}
    for name, given in _configured(settings).items():
        path = settings.data / name
        if not path.exists():
            continue
        if not given:
            yield f"Set {setting[name]} of every machine to the content of {path}."
        elif path.read_bytes().strip() not in given:
            raise ConfigError(
                f"{setting[name]} is not the key of this data folder, {path}, which encrypts the stored data: "
                "add the file's content to the settings. If the settings' key was in use instead, move the file away"
            )
    if settings.blobs.url is None and settings.files.enabled:
        yield f"The contents of files stay in {settings.data}, and only this machine can read them: see blobs.url."


async def show_keys(settings: Settings, *, accept: bool, as_json: bool = False) -> int:
    """Print the fingerprints of the keys that the database records. With `accept`, first replace them by the
    fingerprints of the keys in the settings. Returns the exit status."""
    backend, keys = backend_of(settings.state, settings.data), deployment_keys(settings)
    if accept:
        await backend.accept_keys(keys)
    recorded, own = await backend.recorded_keys(), keys.recorded()
    if recorded is None:
        raise ConfigError(
            "state.url: this command needs a PostgreSQL database, which records keys. With SQLite, the keys are in the "
            "data folder or the settings"
        )
    rows = [["key", "fingerprint", "database", "these settings"]]
    for name in sorted({*recorded, *own} - {MOVING}):
        kind, _, mark = name.partition(":")
        for value in sorted({rows[name] for rows in (recorded, own) if name in rows}) if name == OWNER else [""]:
            uses = [rows.get(name, "") for rows in (recorded, own)]
            said = ["known" if use == value else "" for use in uses] if name == OWNER else uses
            rows.append([kind, (mark or value)[:_SHOWN], *said])
    problem = ""
    try:
        keys_to_record(recorded, keys)
    except ConfigError as error:
        problem = str(error)
    if as_json:
        named = [dict(zip(("key", "fingerprint", "database", "settings"), row, strict=True)) for row in rows[1:]]
        print(json.dumps({"keys": named, "problem": problem or None}))
        return 1 if problem else 0
    write_table(rows, sys.stdout)
    if problem:
        print(problem)
        return 1
    match = "The settings have the keys that the database records."
    print(match if recorded else "No process has started on this database yet.")
    return 0
