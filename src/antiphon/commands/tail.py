"""Implements `antiphon tail`: prints each request when it ends, from all processes.

Lives here: polling the journal, and the filters. Not here: the lines (`request_story.py`), the journal
(`stores/journal.py`).

Invariant: the command prints each request once, in the order in which the journal gets them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import aclosing

import msgspec

from antiphon.commands.flags import settings_of
from antiphon.commands.opened_stores import opened_stores
from antiphon.commands.request_story import row
from antiphon.commands.terminal import colors_on
from antiphon.config.settings import Settings
from antiphon.engine.ports.callers import NAMED
from antiphon.engine.ports.journal import Entry, EntryFilter
from antiphon.errors import ConfigError, StoreError
from antiphon.stores import backend_of
from antiphon.stores.journal import JournalStore, cursor_of

_SECONDS = 1.0
_MOST = 500
_REMEMBERED = 5000


def run(arguments: argparse.Namespace) -> int:
    """Print requests until the user interrupts the command. Returns the exit status."""
    if not 0 <= arguments.lines <= _MOST:
        raise ConfigError(f"--lines {arguments.lines}: from 0 to {_MOST}")
    try:
        return asyncio.run(_run(settings_of(arguments), arguments))
    except KeyboardInterrupt:
        return 0


async def _run(settings: Settings, arguments: argparse.Namespace) -> int:
    owner = arguments.owner or ""
    chosen = EntryFilter(
        owner=owner if ":" in owner or not owner else NAMED + owner,
        model=arguments.model or "",
        code=arguments.code or "",
        failed=arguments.failed,
    )
    # Otherwise the command would make an empty database in a folder that no gateway uses.
    backend_of(settings.state, settings.data).check_there()
    async with aclosing(await opened_stores(settings)) as stores:
        follow = Follow(stores.journal, chosen)
        for entry in await follow.last(arguments.lines):
            _write(entry, as_json=arguments.json)
        failing = False
        while not arguments.no_follow:
            await asyncio.sleep(_SECONDS)
            try:
                entries = await follow.more()
            except StoreError as error:
                if not failing:
                    print(f"antiphon: the journal cannot be read: {error}", file=sys.stderr)
                failing = True
                continue
            failing = False
            for entry in entries:
                _write(entry, as_json=arguments.json)
    return 0


class Follow:
    """Reads the entries of a filter as they arrive, each once."""

    def __init__(self, journal: JournalStore, chosen: EntryFilter) -> None:
        self._journal = journal
        self._chosen = chosen
        self._than = "0:0"
        self._seen: dict[str, None] = {}

    async def last(self, lines: int) -> list[Entry]:
        """The newest entries, oldest first. `more` continues after them."""
        page = await self._journal.list(self._chosen, limit=max(1, lines))
        self._note(page.entries[::-1])
        return list(page.entries[:lines][::-1])

    async def more(self) -> list[Entry]:
        """The entries that arrived since the last call, oldest first."""
        found = await self._journal.newer(self._chosen, than=self._than, limit=_MOST)
        fresh = [entry for entry in reversed(found) if entry.id not in self._seen]
        self._note(fresh)
        return fresh

    def _note(self, entries: list[Entry] | tuple[Entry, ...]) -> None:
        for entry in entries:
            self._seen[entry.id] = None
        while len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        if entries:
            self._than = cursor_of(entries[-1])


def _write(entry: Entry, *, as_json: bool) -> None:
    line = json.dumps(msgspec.to_builtins(entry)) if as_json else row(entry, colors=colors_on(sys.stdout))
    print(line, flush=True)
