"""Implements `antiphon admin audit`, and records the actions of the user who runs a command.

This module finds the name of the acting user, and prints the audit. `stores/audit.py` stores the audit rows and defines
their log event. `client_keys.py`, `whole_state.py` and `command.py` make the changes. `commands/journal.py` prints the
recorded contents of requests.

Invariant: the log event of a change is written after the change is stored.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import sys
from collections.abc import Mapping
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec

from antiphon.commands.opened_stores import opened_stores
from antiphon.commands.terminal import printable, write_table
from antiphon.config.settings import Settings
from antiphon.engine.ports.usage_sums import day_start
from antiphon.errors import ConfigError
from antiphon.observability.logs import configure
from antiphon.stores import backend_of
from antiphon.stores.audit import Action, AuditEntry, AuditStore, log_audit_entry
from antiphon.stores.compatibility import missing_steps

_MOST = 10_000


def acted(action: Action, object: str = "", owner: str = "", detail: Mapping[str, object] = {}) -> AuditEntry:
    """The audit row for an action of the user who runs this command."""
    return AuditEntry(actor(), action, object, owner, detail)


def actor() -> str:
    """The name of the user who runs this command, in the form that the audit uses."""
    return f"cli:{_user()}"


def log_action(settings: Settings, noted: AuditEntry) -> None:
    """Write the log event of a stored audit row to standard error."""
    configure(settings.log.level, settings.log.format)
    log_audit_entry(noted)


async def note_action(settings: Settings, store: AuditStore, noted: AuditEntry) -> None:
    """Store an audit row in a separate transaction, and log the row. Raises `StoreError`."""
    await store.note(noted)
    log_action(settings, noted)


async def note_state_action(settings: Settings, noted: AuditEntry) -> None:
    """Store and log the audit row of an action on the whole state. If the database lacks a migration of this build, the
    row is only logged. Storing the row would apply the migration, while older servers may use the database. Raises
    `StoreError`."""
    async with backend_of(settings.state, settings.data).open_schemas(seconds=settings.state.deadline) as schemas:
        steps = [(await one.applied(), one.steps) for one in schemas]
    if any(missing_steps(applied, known) for applied, known in steps if applied):
        log_action(settings, noted)
        return
    async with aclosing(await opened_stores(settings)) as stores:
        await note_action(settings, stores.audit, noted)


def log_read(settings: Settings, noted: AuditEntry) -> None:
    """Log the audit row about data that the user read, after the lines of the answer. On a terminal, the log line would
    only disturb the user, so this function does not log."""
    if not sys.stderr.isatty():
        # Both outputs may lead to the same file.
        sys.stdout.flush()
        log_action(settings, noted)


async def show_audit(store: AuditStore, arguments: argparse.Namespace) -> int:
    """Print the audit rows, the newest first. Returns the exit status. Raises `ConfigError` and `StoreError`."""
    if not 0 < arguments.limit <= _MOST:
        raise ConfigError(f"--limit {arguments.limit}: write a number from 1 to {_MOST}")
    since = _since(arguments.since)
    found = await store.list(since=since, owner=arguments.owner, limit=arguments.limit, changes=arguments.changes)
    if arguments.json:
        for one in found:
            print(json.dumps(msgspec.to_builtins(one)))
        return 0
    rows = [["at", "actor", "action", "object", "owner", "detail"]]
    for one in found:
        at = datetime.fromtimestamp(one.at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        named = (one.actor, one.action, one.object, one.owner)
        told = " ".join(f"{name}={value}" for name, value in one.detail.items())
        rows.append([at, *map(printable, named), printable(told)])
    write_table(rows, sys.stdout)
    return 0


def _since(text: str) -> float:
    if not text:
        return 0.0
    if (start := day_start(text)) is None:
        raise ConfigError(f"--since {printable(text[:20])}: write the day as YYYY-MM-DD")
    return start


def _user() -> str:
    """The name of the operating-system user that runs this process. Environment variables are not used, because a user
    can set them to another name."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
