"""Implements `antiphon admin`: shows, exports and deletes stored data.

This module runs the actions and prints their results. `whole_state.py` has the actions on the whole state, and
`client_keys.py` has the actions on client keys. `usage.py` prints sums of usage, and `owners.py` moves data to another
owner. The package `stores` has the SQL.

`export` writes one JSON object per line, `{"kind": …, "id": …, "of": …, "data": …}`. `of` is the id of the object to
which the row belongs, or a file's purpose. All lines come from one database snapshot, except the lines about files. All
actions work while servers use the data folder, but `vacuum` delays the servers' writes.

Invariant: without `--yes` no data is deleted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

from msgspec import structs

from antiphon.app.keys import known_bodies, lost_keys, new_keys, owner_teams
from antiphon.app.owners import quota_rules
from antiphon.commands.admin.audit import acted, note_action, note_state_action, show_audit
from antiphon.commands.admin.client_keys import client_key_action
from antiphon.commands.admin.owners import MovedCounts, move_owner, move_sides, selected_owner
from antiphon.commands.admin.usage import read_day, show_usage
from antiphon.commands.admin.whole_state import backup, check_backup, move_state, restore, show_keys
from antiphon.commands.flags import settings_of
from antiphon.commands.opened_stores import opened_stores
from antiphon.commands.terminal import printable, progress, write_table
from antiphon.config.settings import Settings
from antiphon.engine.ports.files import FileQuery, StoredFile
from antiphon.engine.ports.state import OwnerData
from antiphon.engine.running.quota_use import QuotaUse, quota_use
from antiphon.errors import ConfigError
from antiphon.stores import Stores, backend_of
from antiphon.stores.quotas import QuotaStore
from antiphon.tools.code_interpreter import OwnersContainers

_KINDS = ("responses", "conversations", "prompts", "files", "vector_stores", "containers")
_NOTHING = [0] * len(_KINDS)
_PART = 1 << 20
_UNFIT = re.compile(r"[^A-Za-z0-9._-]")


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    action = arguments.action
    if action == "restore":
        done = restore(settings, arguments.source, as_json=arguments.json)
        file = printable(str(arguments.source))
        asyncio.run(note_state_action(settings, acted("restore", detail={"file": file})))
        print(done)
        if settings.owner.managed_keys:
            print(
                "Client keys that were revoked after the backup are valid again. Run 'antiphon admin keys list', and "
                "revoke these keys again.",
                file=sys.stderr,
            )
        return 0
    if action == "move":
        return asyncio.run(move_state(settings, arguments.source, arguments.target, as_json=arguments.json))
    if action != "keys":
        # A key may be created before the first process starts.
        backend_of(settings.state, settings.data).check_there()
    if action == "new-keys":
        return asyncio.run(_new_keys(settings, sure=arguments.yes, as_json=arguments.json))
    if action == "backup":
        check_backup(settings, arguments.target)
        # The command stores the audit row first, so the archive contains the row too.
        told = {"file": printable(str(arguments.target)), "keys": not arguments.without_keys}
        asyncio.run(note_state_action(settings, acted("backup", detail=told)))
        print(backup(settings, arguments.target, with_keys=not arguments.without_keys, as_json=arguments.json))
        return 0
    return asyncio.run(_run(action, settings, arguments))


async def _run(action: str, settings: Settings, arguments: argparse.Namespace) -> int:
    if action == "owners":
        _print_owners(await _owners(settings), as_json=arguments.json)
    elif action == "vacuum":
        await _vacuum(settings, as_json=arguments.json)
    elif action == "purge":
        print(await _purge(settings, as_json=arguments.json))
    elif action == "deployment-keys":
        status = await show_keys(settings, accept=arguments.accept, as_json=arguments.json)
        if arguments.accept:
            async with aclosing(await opened_stores(settings)) as stores:
                await note_action(settings, stores.audit, acted("deployment-keys --accept"))
        return status
    elif action == "keys":
        async with aclosing(await opened_stores(settings)) as stores:
            return await client_key_action(settings, arguments, stores)
    elif action == "audit":
        async with aclosing(await opened_stores(settings)) as stores:
            return await show_audit(stores.audit, arguments)
    elif action == "quotas":
        async with aclosing(await opened_stores(settings)) as stores:
            return await show_quotas(settings, stores.quotas, as_json=arguments.json)
    elif action == "usage":
        return await _usage(settings, arguments)
    elif action == "export":
        return await _export(settings, await selected_owner(arguments, settings), arguments.files)
    elif action == "move-owner":
        sides = await move_sides(arguments, settings)
        by_token = arguments.token_env is not None
        return await _move_owner(settings, *sides, by_token=by_token, sure=arguments.yes, as_json=arguments.json)
    else:
        owner = await selected_owner(arguments, settings)
        return await _delete(settings, owner, sure=arguments.yes, as_json=arguments.json)
    return 0


async def _new_keys(settings: Settings, *, sure: bool, as_json: bool) -> int:
    lost = lost_keys(settings)
    if as_json:
        missing = [{"file": str(settings.data / name), "effect": why} for name, why in lost.items()]
        made = await _make_keys(settings) if sure and lost else []
        print(json.dumps({"missing": missing, "made": made}))
    elif not lost:
        print("No key of the stored data is missing.")
    elif sure:
        created = ", ".join(await _make_keys(settings))
        print(f"Created new keys: {created}. Data that needs the lost keys stays unreadable.")
    else:
        for name, why in lost.items():
            print(f"{settings.data / name} is missing. {why}")
    return 0 if sure or not lost else 1


async def _make_keys(settings: Settings) -> list[str]:
    """Create new keys in place of the lost keys of the data folder. Returns the paths of the new keys."""
    made = new_keys(settings)
    async with aclosing(await opened_stores(settings)) as stores:
        await note_action(settings, stores.audit, acted("new-keys", detail={"files": [path.name for path in made]}))
    return [str(path) for path in made]


async def _owner_data(settings: Settings) -> OwnerData:
    """Open the stored data of one owner. The caller must close the result."""
    async with aclosing(await opened_stores(settings)) as stores:
        # The statements for one owner's data find only entries in the journal's table.
        await stores.journal.move_batches()
    return await backend_of(settings.state, settings.data).open_owner_data(known_bodies(settings))


async def _owners(settings: Settings) -> dict[str, list[int]]:
    """The number of objects of each kind, per owner."""
    async with aclosing(await _owner_data(settings)) as data:
        found = {
            one.owner: [one.responses, one.conversations, one.prompts, one.files, one.vector_stores]
            for one in await data.owners()
        }
    async with aclosing(await opened_stores(settings)) as stores:
        containers = await OwnersContainers(settings.data, stores.containers).count()
    return {owner: [*found.get(owner, [0, 0, 0, 0, 0]), containers.get(owner, 0)] for owner in {*found, *containers}}


async def _counts(settings: Settings, owner: str) -> list[int] | None:
    """The number of this owner's objects of each kind, or None if the owner has no stored data. The numbers are 0 for
    an owner who has only usage sums, idempotency keys or recorded requests."""
    if (found := (await _owners(settings)).get(owner)) is not None:
        return found
    async with aclosing(await opened_stores(settings)) as stores:
        return _NOTHING if await stores.usage.has_data(owner, traces=True) else None


def _print_owners(owners: dict[str, list[int]], *, as_json: bool) -> None:
    if as_json:
        for owner, counts in sorted(owners.items()):
            print(json.dumps({"owner": owner, **_named(counts)}))
        return
    rows = [["owner", *_KINDS]]
    rows += [[printable(owner), *map(str, counts)] for owner, counts in sorted(owners.items())]
    write_table(rows, sys.stdout)


async def _vacuum(settings: Settings, *, as_json: bool) -> None:
    async with aclosing(await _owner_data(settings)) as data:
        for one in await data.vacuum():
            if as_json:
                print(json.dumps({"database": one.name, "before": one.before, "after": one.after}))
                continue
            print(f"{one.name}: {one.before} bytes before, {one.after} after")


async def _usage(settings: Settings, arguments: argparse.Namespace) -> int:
    asked = arguments.owner is not None or arguments.token_env is not None
    if asked and arguments.forget_before is not None:
        raise ConfigError("--forget-before deletes the sums of all owners: remove --owner and --token-env")
    owner = await selected_owner(arguments, settings) if asked else ""
    async with aclosing(await opened_stores(settings)) as stores:
        if arguments.forget_before is not None and arguments.yes:
            # The command stores the audit row first, because an interrupted deletion may already have deleted sums.
            detail = {"before": read_day("--forget-before", arguments.forget_before)}
            await note_action(settings, stores.audit, acted("usage forget", detail=detail))
        names = partial(stores.owner_names.of, teams=owner_teams(settings))
        return await show_usage(stores.usage, arguments, owner, sys.stdout, names)


async def _purge(settings: Settings, *, as_json: bool) -> str:
    async with aclosing(await opened_stores(settings)) as stores:
        chains, conversations, streams = await stores.retention.sweep()
        vectors = await stores.open_vectors() if stores.has_vectors() else None
        try:
            if vectors is not None:
                stores.files.on_expired = vectors.stores.forget_file
            expired = sum(await stores.files.sweep())
            while vectors is not None and await vectors.ingestion.sweep():
                pass
        finally:
            if vectors is not None:
                await vectors.aclose()
        counted = {"chains": chains, "conversations": conversations, "streams": streams, "files": expired}
        await note_action(settings, stores.audit, acted("purge", detail=counted))
    if as_json:
        return json.dumps({"deleted": counted})
    return (
        f"deleted: {chains} chains of responses, {conversations} conversations, {streams} streams of "
        f"background responses, {expired} files"
    )


async def _export(settings: Settings, owner: str, folder: Path | None) -> int:
    if owner not in await _owners(settings):
        # Messages go to standard error, because standard output contains only data.
        print(
            f"antiphon: the owner {owner} has no stored data; 'antiphon admin owners' lists the owners", file=sys.stderr
        )
        return 1
    if folder is not None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    # The command stores the audit row first, because an interrupted export may already have shown data.
    async with aclosing(await opened_stores(settings)) as stores:
        await note_action(settings, stores.audit, acted("export", owner=owner, detail={"files": folder is not None}))
    # If standard output is a terminal, the exported lines themselves show the progress.
    with progress("export", quiet=sys.stdout.isatty()) as shown:
        async with aclosing(await _owner_data(settings)) as rows:
            async for row in rows.export(owner):
                _write(row.kind, row.id, row.of, row.data)
                shown.report(1, None)
        async with aclosing(await opened_stores(settings)) as stores:
            containers = OwnersContainers(settings.data, stores.containers)
            for kind, row_id, of, data in await containers.export(owner):
                _write(kind, row_id, of, data)
                shown.report(1, None)
            if folder is not None:
                await _copy_containers(containers, owner, folder)
            async for file in _files(stores, owner):
                _write("files", file.id, file.purpose, {"filename": file.name, "bytes": file.size})
                if folder is not None:
                    await _copy(stores, owner, file, folder)
                shown.report(1, None)
    return 0


async def _copy_containers(containers: OwnersContainers, owner: str, folder: Path) -> None:
    number = 0
    async for container_id, path, parts in containers.contents(owner):
        # Different paths may get the same file name, so the name has a number.
        number += 1
        with (folder / f"{container_id}-{number}-{_UNFIT.sub('_', path)[-100:]}").open("wb") as copy:
            async for part in parts:
                copy.write(part)


def _write(kind: str, row_id: object, of: object, data: object) -> None:
    # The escapes that Python writes for a character outside the output's encoding are not JSON.
    in_ascii = (sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")
    sys.stdout.write(json.dumps({"kind": kind, "id": row_id, "of": of, "data": data}, ensure_ascii=in_ascii) + "\n")


async def _files(stores: Stores, owner: str) -> AsyncIterator[StoredFile]:
    after = None
    while True:
        page = await stores.files.list(owner, FileQuery(limit=100, after=after))
        files = page.items if page is not None else ()
        for file in files:
            yield file
        if page is None or not page.has_more:
            return
        after = files[-1].id


async def _copy(stores: Stores, owner: str, file: StoredFile, folder: Path) -> None:
    opened = await stores.files.open(owner, file.id)
    if opened is None:
        return
    async with aclosing(opened) as content:
        with (folder / f"{file.id}-{_UNFIT.sub('_', file.name)[-100:]}").open("wb") as out:
            at = 0
            while part := await content.read(at, _PART):
                out.write(part)
                at += len(part)


async def _delete(settings: Settings, owner: str, *, sure: bool, as_json: bool) -> int:
    found = await _counts(settings, owner)
    if found is None:
        nothing = json.dumps({"owner": owner, "deleted": False, **_named(_NOTHING)})
        print(nothing if as_json else f"The owner {owner} has no stored data.")
        return 1
    counted = f"{_counted(found)} of {owner}"
    told = json.dumps({"owner": owner, "deleted": sure, **_named(found)})
    if not sure:
        print(told if as_json else f"Would delete {counted}. To delete it, run the command with --yes.")
        return 1
    async with aclosing(await opened_stores(settings)) as stores:
        # The command stores the audit row first, because an interrupted deletion may already have deleted data.
        await note_action(settings, stores.audit, acted("delete-owner", owner=owner, detail=_named(found)))
        await OwnersContainers(settings.data, stores.containers).delete(owner)
        for file in [file async for file in _files(stores, owner)]:
            await stores.files.delete(owner, file.id)
    for _ in range(2):
        # Requests that end during the deletion may be in batches, which the second run finds.
        async with aclosing(await _owner_data(settings)) as data:
            await data.delete(owner)
    space = "Run 'antiphon admin vacuum' to return the space to the file system."
    print(told if as_json else f"Deleted {counted}. {space}")
    return 0


def _named(counts: Sequence[int]) -> dict[str, int]:
    return dict(zip(_KINDS, counts, strict=True))


def _counted(found: Sequence[int]) -> str:
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in zip(_KINDS, found, strict=True))


async def _move_owner(settings: Settings, old: str, new: str, *, by_token: bool, sure: bool, as_json: bool) -> int:
    found = await _counts(settings, old)
    async with aclosing(await _owner_data(settings)) as data, aclosing(await opened_stores(settings)) as stores:
        containers = OwnersContainers(settings.data, stores.containers)
        problems = await data.obstacles(old, new)
        if found is None and not by_token:
            # With a token the id of the old owner cannot be misspelt, and a request may have moved the data already.
            problems.append(
                f"The owner {old} has no stored data: check the id with 'antiphon admin owners'. If the id is right, "
                "an earlier move has moved everything."
            )
        if sure and found is not None and not problems:
            # The command stores the audit row first, because an interrupted move may already have moved data.
            # As in the row of `adopt-owner`, the object is the old owner.
            noted = acted("move-owner", object=old, owner=new, detail=_named(found))
            await note_action(settings, stores.audit, noted)
        counted = MovedCounts(_counted(found or _NOTHING), _named(found or _NOTHING))
        return await move_owner(data, containers, old, new, counted, problems, sure=sure, as_json=as_json)


async def show_quotas(settings: Settings, store: QuotaStore, *, as_json: bool) -> int:
    """Print a table with one row for each quota counter. Returns the exit status. Raises `StoreError`."""
    found = await quota_use(store, quota_rules(settings.quotas))
    if as_json:
        for one in found:
            print(json.dumps(structs.asdict(one)))
        return 0
    rows = [list(QuotaUse.__struct_fields__)]
    rows += [[printable(str(value)) if value is not None else "-" for value in structs.astuple(one)] for one in found]
    write_table(rows, sys.stdout)
    return 0
