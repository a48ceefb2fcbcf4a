"""`antiphon admin keys`: whether these settings' keys go with the database that machines share.

Lives here: the report, and accepting other keys on purpose. Not here: the rules (`stores/deployment.py`).

Invariant: only the beginnings of fingerprints are shown.
"""

from __future__ import annotations

import sys

from antiphon.app.keys import deployment_keys
from antiphon.commands.tables import write_table
from antiphon.config.settings import Settings
from antiphon.errors import ConfigError
from antiphon.stores.choice import backend_of
from antiphon.stores.deployment import MOVING, OWNER, Deployment, to_note

_SHOWN = 8


async def show_keys(settings: Settings, *, accept: bool) -> int:
    """Print which keys the database goes with; with `accept` it goes with these from now on. The exit status."""
    deployment = backend_of(settings.state, settings.data).deployment()
    if deployment is None:
        raise ConfigError(
            "state.url: machines share no database here; keys are those of the data folder or the settings"
        )
    try:
        return await _show(deployment, settings, accept=accept)
    finally:
        await deployment.aclose()


async def _show(deployment: Deployment, settings: Settings, *, accept: bool) -> int:
    keys = deployment_keys(settings)
    if accept:
        await deployment.accept(keys)
    recorded, own = dict(await deployment.read()), keys.recorded()
    rows = [["key", "fingerprint", "database", "these settings"]]
    for name in sorted({*recorded, *own} - {MOVING}):
        kind, _, mark = name.partition(":")
        for value in sorted({rows[name] for rows in (recorded, own) if name in rows}) if name == OWNER else [""]:
            uses = [rows.get(name, "") for rows in (recorded, own)]
            said = ["known" if use == value else "" for use in uses] if name == OWNER else uses
            rows.append([kind, (mark or value)[:_SHOWN], *said])
    write_table(rows, sys.stdout)
    try:
        to_note(recorded, keys)
    except ConfigError as error:
        print(error)
        return 1
    print("The database goes with these keys." if recorded else "No process has started on this database yet.")
    return 0
