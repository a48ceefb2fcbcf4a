"""Implements `antiphon show`: prints what the gateway's journal knows about one request.

Lives here: reading the journal, and the exit status. Not here: the lines (`request_story.py`), the console's page of
the same request (`console/views/request.py`).

The command reads the database itself, as `antiphon admin` does, so it works without a running gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import aclosing

from antiphon.commands.flags import settings_of
from antiphon.commands.opened_stores import opened_stores
from antiphon.commands.request_story import as_json, contents, facts
from antiphon.commands.terminal import colors_on, one_line
from antiphon.config.settings import Settings
from antiphon.console.story import tell
from antiphon.stores import backend_of


def run(arguments: argparse.Namespace) -> int:
    """Print the request. Returns the exit status: 1 if the journal has no such request."""
    return asyncio.run(_run(settings_of(arguments), arguments))


async def _run(settings: Settings, arguments: argparse.Namespace) -> int:
    # Otherwise the command would make an empty database in a folder that no gateway uses.
    backend_of(settings.state, settings.data).check_there()
    async with aclosing(await opened_stores(settings)) as stores:
        entry = await stores.journal.get(arguments.id)
        recording = await stores.journal.record(entry.id) if entry is not None else None
    if entry is None:
        print(
            f"antiphon: {one_line(arguments.id, 80)}: the journal has no such request. The gateway keeps a journal "
            "while console.enabled is true.",
            file=sys.stderr,
        )
        return 1
    story = tell(recording) if recording is not None else None
    if arguments.json:
        print(as_json(entry, story))
        return 0
    colors = colors_on(sys.stdout)
    for line in facts(entry, colors=colors):
        print(line)
    if story is None:
        print("  The contents are not recorded (console.record).")
    elif arguments.verbose:
        for line in contents(story, colors=colors):
            print(line)
    else:
        events = len(story.events) + story.more
        print(f"  {len(story.calls)} chat requests and {events} events are recorded: -v shows them")
    return 0
