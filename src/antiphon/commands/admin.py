"""`antiphon admin`: what an operator does with what is kept.

Lives here: the actions and what they print. Not here: the SQL (`stores/admin.py`, `stores/retention.py`).

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

from antiphon.app import kept_for, owner_key
from antiphon.commands.flags import settings_of
from antiphon.config import Settings
from antiphon.engine.file_ports import FileQuery, StoredFile
from antiphon.engine.owners import OwnerResolver
from antiphon.errors import ConfigError
from antiphon.stores import SESSIONS_FILE, Stores, open_stores
from antiphon.stores.admin import delete_owner, export_owner, list_owners, vacuum
from antiphon.stores.knowledge import VECTORS_FILE
from antiphon.stores.knowledge_admin import (
    count_stores,
    delete_stores,
    export_stores,
    opened_knowledge,
    sweep_stores,
)

__all__ = ["run"]

_KINDS = ("responses", "conversations", "prompts", "files", "vector_stores")
_PART = 1 << 20
_UNFIT = re.compile(r"[^A-Za-z0-9._-]")


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    path = settings.data / SESSIONS_FILE
    if not path.exists():
        raise ConfigError(f"data: there is no database in {settings.data}; name the folder with --data or --config")
    action = arguments.action
    if action == "owners":
        _print_owners(settings, sys.stdout)
    elif action == "vacuum":
        for each in (path, settings.data / VECTORS_FILE):
            if each.exists():
                before, after = vacuum(each)
                print(f"{each}: {before} bytes before, {after} after")
    elif action == "purge":
        print(asyncio.run(_purge(settings)))
    elif action == "export":
        if arguments.files is not None:
            arguments.files.mkdir(mode=0o700, parents=True, exist_ok=True)
        asyncio.run(_export(settings, _owner(arguments, settings), arguments.files, sys.stdout))
    else:
        return _delete(settings, _owner(arguments, settings), sure=arguments.yes)
    return 0


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


def _owners(settings: Settings) -> dict[str, list[int]]:
    """How many of each kind every owner has."""
    stores = asyncio.run(count_stores(settings.data))
    found = {
        one.owner: [one.responses, one.conversations, one.prompts, one.files, stores.pop(one.owner, 0)]
        for one in list_owners(settings.data / SESSIONS_FILE)
    }
    return found | {owner: [0, 0, 0, 0, count] for owner, count in stores.items()}


def _print_owners(settings: Settings, out: TextIO) -> None:
    rows = [["owner", *_KINDS]]
    rows += [[owner, *map(str, counts)] for owner, counts in sorted(_owners(settings).items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        out.write("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n")


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Stores]:
    stores = await open_stores(settings.data, chain_items=settings.limits.chain_items, kept=kept_for(settings))
    try:
        yield stores
    finally:
        await stores.aclose()


async def _purge(settings: Settings) -> str:
    async with _opened(settings) as stores, opened_knowledge(settings.data) as knowledge:
        chains, conversations, events = await stores.retention.sweep()
        if knowledge is not None:
            stores.files.on_expired = knowledge.stores.forget_file
        expired = sum(await stores.files.sweep())
        if knowledge is not None:
            await sweep_stores(knowledge)
    return f"gone: {chains} chains, {conversations} conversations, {events} pieces of streams, {expired} files"


async def _export(settings: Settings, owner: str, folder: Path | None, out: TextIO) -> None:
    for kind, (row_id, of, body) in export_owner(settings.data / SESSIONS_FILE, owner):
        _write(out, kind, row_id, of, json.loads(body))
    for kind, row_id, of, data in await export_stores(settings.data, owner):
        _write(out, kind, row_id, of, data)
    async with _opened(settings) as stores:
        async for file in _files(stores, owner):
            _write(out, "files", file.id, file.purpose, {"filename": file.name, "bytes": file.size})
            if folder is not None:
                await _copy(stores, owner, file, folder)


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


def _delete(settings: Settings, owner: str, *, sure: bool) -> int:
    path = settings.data / SESSIONS_FILE
    found = _owners(settings).get(owner)
    if found is None:
        print(f"There is nothing of the owner {owner}.")
        return 1
    counted = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in zip(_KINDS, found, strict=True))
    counted += f" of {owner}"
    if not sure:
        print(f"Would delete {counted}. Say --yes to do it.")
        return 1
    asyncio.run(_delete_files(settings, owner))
    delete_owner(path, owner)
    print(f"Deleted {counted}. Run 'antiphon admin vacuum' to give the space back.")
    return 0


async def _delete_files(settings: Settings, owner: str) -> None:
    await delete_stores(settings.data, owner)
    async with _opened(settings) as stores:
        for file in [file async for file in _files(stores, owner)]:
            await stores.files.delete(owner, file.id)
