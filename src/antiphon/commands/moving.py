"""`antiphon admin move`: everything of a data folder into a database that machines share.

Lives here: what is named by the flags, whether the keys go with it, and the report. Not here: the work
(`stores/moving.py`).

Invariant: no password is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from antiphon.app.keys import OWNER_KEY, SEALING_KEY
from antiphon.commands.tables import write_table
from antiphon.config.settings import Settings
from antiphon.config.state_url import read_state_url
from antiphon.errors import ConfigError
from antiphon.stores.moved_mark import MARK_FILE
from antiphon.stores.moving import CONTENTS, move


async def move_state(settings: Settings, source: str | None, target: str | None) -> int:
    """Move, and say what was moved. The exit status. Raises `ConfigError` and `StoreError`."""
    url = target or (settings.state.url.get_secret_value() if settings.state.url is not None else "")
    try:
        place, goal = read_state_url(source or "sqlite:"), read_state_url(url)
    except ValueError as error:
        raise ConfigError(f"--from, --to: {error}") from None
    if place.kind != "sqlite" or goal.kind != "postgresql":
        raise ConfigError(
            "things are moved --from sqlite:/FOLDER --to postgresql://… (or state.url, where that is one)"
        )
    hints = list(_keys(settings))
    moved = await move(
        place.folder or settings.data,
        url,
        data=settings.data,
        blobs=settings.blobs,
        said=lambda text: print(f"… {text}", file=sys.stderr),
    )
    rows = [["kind", "number", "bytes", "checksum"]]
    for one in moved:
        size = str(one.target.content_bytes) if one.kind == CONTENTS else ""
        rows.append([one.kind, str(one.target.rows), size, f"{one.target.checksum:016x}"])
    write_table(rows, sys.stdout, left=1)
    print(f"Moved to {goal.shown}; every row and every content was compared.")
    mark = (place.folder or settings.data) / MARK_FILE
    print(
        f"The data folder is as it was. No process starts on it while {mark} is there. Keep it until you have looked."
    )
    for hint in hints:
        print(hint)
    return 0


def _keys(settings: Settings) -> Iterator[str]:
    """What is to be done about keys of the data folder. Raises `ConfigError` where the settings have others."""
    configured = {
        OWNER_KEY: [settings.owner.key] if settings.owner.key is not None else [],
        SEALING_KEY: list(settings.sealing.keys),
    }
    setting = {OWNER_KEY: "owner.key", SEALING_KEY: "sealing.keys"}
    for name, given in configured.items():
        path = settings.data / name
        if not path.exists():
            continue
        if not given:
            yield f"Set {setting[name]} of every machine to the content of {path}."
        elif path.read_text().strip() not in [one.get_secret_value() for one in given]:
            raise ConfigError(
                f"{setting[name]} is not the key of this data folder, {path}, under which everything in it is stored: "
                "add its content to the settings (or move the file away, where the settings' key was in force)"
            )
    if settings.blobs.url is None and settings.files.enabled:
        yield f"The contents of files stay in {settings.data}, where one machine has them: see blobs.url."
