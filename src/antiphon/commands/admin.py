"""`antiphon admin`: what an operator does with what is kept.

Lives here: the actions and what they print. Not here: the SQL (`stores/`).

`export` writes one JSON object a line, `{"kind": …, "id": …, "of": …, "data": …}`, all of one moment but the files.
Everything works while servers use the folder; `vacuum` lets their writes wait.

Invariant: nothing is deleted without `--yes`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

from antiphon.app.keys import known_bodies, lost_keys, new_keys, owner_key
from antiphon.commands.backup import backup, restore
from antiphon.commands.flags import settings_of
from antiphon.commands.moving import move_state
from antiphon.commands.shared_keys import show_keys
from antiphon.commands.tables import printable, write_table
from antiphon.commands.usage import show
from antiphon.config.settings import Settings
from antiphon.doors.owners import OwnerResolver
from antiphon.engine.ports.files import FileQuery, StoredFile
from antiphon.engine.ports.owner_data import OwnerData
from antiphon.errors import ConfigError
from antiphon.stores import Stores, backend_of, open_stores
from antiphon.tools.code_interpreter import OwnersContainers

_KINDS = ("responses", "conversations", "prompts", "files", "vector_stores", "containers")
_PART = 1 << 20
_UNFIT = re.compile(r"[^A-Za-z0-9._-]")


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    if arguments.action == "restore":
        print(restore(settings, _given(arguments.source, "--from")))
        return 0
    if arguments.action == "move":
        return asyncio.run(move_state(settings, arguments.source, arguments.target))
    backend_of(settings.state, settings.data).check_there()
    action = arguments.action
    if action == "owners":
        _print_owners(asyncio.run(_owners(settings)), sys.stdout)
    elif action == "vacuum":
        asyncio.run(_vacuum(settings))
    elif action == "new-keys":
        return _new_keys(settings, sure=arguments.yes)
    elif action == "keys":
        return asyncio.run(show_keys(settings, accept=arguments.accept))
    elif action == "backup":
        print(backup(settings, _given(arguments.target, "--to"), with_keys=not arguments.without_keys))
    elif action == "usage":
        return asyncio.run(_usage(settings, arguments))
    elif action == "purge":
        print(asyncio.run(_purge(settings)))
    elif action == "export":
        owner = _owner(arguments, settings)
        if owner not in asyncio.run(_owners(settings)):
            # Standard output is for what there is.
            print(f"antiphon: there is nothing of the owner {owner}", file=sys.stderr)
            return 1
        if arguments.files is not None:
            arguments.files.mkdir(mode=0o700, parents=True, exist_ok=True)
        asyncio.run(_export(settings, owner, arguments.files, sys.stdout))
    else:
        return asyncio.run(_delete(settings, _owner(arguments, settings), sure=arguments.yes))
    return 0


def _new_keys(settings: Settings, *, sure: bool) -> int:
    lost = lost_keys(settings)
    if not lost:
        print("No key is missing that anything depends on.")
    elif sure:
        print(f"Made new: {', '.join(map(str, new_keys(settings)))}. What the old ones opened stays closed.")
    else:
        for name, why in lost.items():
            print(f"{settings.data / name} is gone, and {why}")
    return 0 if sure or not lost else 1


def _given(path: Path | None, flag: str) -> Path:
    if path is None:
        raise ConfigError(f"name the archive with {flag}")
    return path


def _owner(arguments: argparse.Namespace, settings: Settings) -> str:
    """The owner that is meant. A token is read from a variable: arguments can be seen by every user of the machine."""
    if (arguments.owner is None) == (arguments.token_env is None):
        raise ConfigError("name the owner with --owner, or with --token-env the variable that holds its token")
    if arguments.owner is not None:
        return str(arguments.owner)
    token = os.environ.get(arguments.token_env)
    if not token:
        raise ConfigError(f"the variable {arguments.token_env} is not set")
    if settings.owner.source != "bearer":
        raise ConfigError(f"owner.source is {settings.owner.source}: tokens name no owners; use --owner")
    return OwnerResolver("bearer", key=owner_key(settings)).resolve((("authorization", f"Bearer {token}"),))


@asynccontextmanager
async def _owner_data(settings: Settings) -> AsyncIterator[OwnerData]:
    opened = await backend_of(settings.state, settings.data).open_owner_data(known_bodies(settings))
    try:
        yield opened
    finally:
        await opened.aclose()


async def _owners(settings: Settings) -> dict[str, list[int]]:
    """How many of each kind every owner has."""
    async with _owner_data(settings) as data:
        found = {
            one.owner: [one.responses, one.conversations, one.prompts, one.files, one.vector_stores]
            for one in await data.owners()
        }
    async with _containers(settings) as all_containers:
        containers = await all_containers.count()
    return {owner: [*found.get(owner, [0, 0, 0, 0, 0]), containers.get(owner, 0)] for owner in {*found, *containers}}


def _print_owners(owners: dict[str, list[int]], out: TextIO) -> None:
    rows = [["owner", *_KINDS]]
    rows += [[printable(owner), *map(str, counts)] for owner, counts in sorted(owners.items())]
    write_table(rows, out)


async def _vacuum(settings: Settings) -> None:
    async with _owner_data(settings) as data:
        for one in await data.vacuum():
            print(f"{one.name}: {one.before} bytes before, {one.after} after")


@asynccontextmanager
async def _containers(settings: Settings) -> AsyncIterator[OwnersContainers]:
    async with _opened(settings) as stores:
        yield OwnersContainers(settings.data, stores.containers)


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Stores]:
    # A person waits for the answer, so an unreachable database is an error at once.
    stores = await open_stores(
        settings.state.model_copy(update={"start_within": 0.0}),
        settings.data,
        blobs=settings.blobs,
        chain_items=settings.limits.chain_items,
        upload_lease=settings.files.lease,
        kept=settings.retention,
    )
    try:
        yield stores
    finally:
        await stores.aclose()


async def _usage(settings: Settings, arguments: argparse.Namespace) -> int:
    asked = arguments.owner is not None or arguments.token_env is not None
    owner = _owner(arguments, settings) if asked else ""
    async with _opened(settings) as stores:
        return await show(stores.usage, arguments, owner)


async def _purge(settings: Settings) -> str:
    async with _opened(settings) as stores:
        chains, conversations, events = await stores.retention.sweep()
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
    return f"gone: {chains} chains, {conversations} conversations, {events} pieces of streams, {expired} files"


async def _export(settings: Settings, owner: str, folder: Path | None, out: TextIO) -> None:
    async with _owner_data(settings) as rows:
        async for row in rows.export(owner):
            _write(out, row.kind, row.id, row.of, row.data)
    async with _opened(settings) as stores:
        containers = OwnersContainers(settings.data, stores.containers)
        for kind, row_id, of, data in await containers.export(owner):
            _write(out, kind, row_id, of, data)
        if folder is not None:
            await _copy_containers(containers, owner, folder)
        async for file in _files(stores, owner):
            _write(out, "files", file.id, file.purpose, {"filename": file.name, "bytes": file.size})
            if folder is not None:
                await _copy(stores, owner, file, folder)


async def _copy_containers(containers: OwnersContainers, owner: str, folder: Path) -> None:
    number = 0
    async for container_id, path, parts in containers.contents(owner):
        # Different paths may be one name here.
        number += 1
        with (folder / f"{container_id}-{number}-{_UNFIT.sub('_', path)[-100:]}").open("wb") as copy:
            async for part in parts:
                copy.write(part)


def _write(out: TextIO, kind: str, row_id: Any, of: Any, data: Any) -> None:
    out.write(json.dumps({"kind": kind, "id": row_id, "of": of, "data": data}, ensure_ascii=False) + "\n")


async def _files(stores: Stores, owner: str) -> AsyncIterator[StoredFile]:
    after = None
    while True:
        page = await stores.files.list(owner, FileQuery(limit=100, after=after))
        files = page.files if page is not None else ()
        for file in files:
            yield file
        if page is None or not page.has_more:
            return
        after = files[-1].id


async def _copy(stores: Stores, owner: str, file: StoredFile, folder: Path) -> None:
    opened = await stores.files.open(owner, file.id)
    if opened is None:
        return
    async with opened as content:
        with (folder / f"{file.id}-{_UNFIT.sub('_', file.name)[-100:]}").open("wb") as out:
            at = 0
            while part := await content.read(at, _PART):
                out.write(part)
                at += len(part)


async def _delete(settings: Settings, owner: str, *, sure: bool) -> int:
    found = (await _owners(settings)).get(owner)
    if found is None:
        print(f"There is nothing of the owner {owner}.")
        return 1
    counted = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in zip(_KINDS, found, strict=True))
    counted += f" of {owner}"
    if not sure:
        print(f"Would delete {counted}. Say --yes to do it.")
        return 1
    async with _opened(settings) as stores:
        await OwnersContainers(settings.data, stores.containers).delete(owner)
        for file in [file async for file in _files(stores, owner)]:
            await stores.files.delete(owner, file.id)
    async with _owner_data(settings) as data:
        await data.delete(owner)
    print(f"Deleted {counted}. Run 'antiphon admin vacuum' to give the space back.")
    return 0
