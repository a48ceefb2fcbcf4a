"""`antiphon admin backup` and `restore`.

Lives here: which keys are in force, and what is printed. Not here: the archive (`stores/sqlite/backup.py`).

Invariant: neither makes a key: a backup of a server that has none says nothing of any, and a restored one is whole or
not there.
"""

from __future__ import annotations

from pathlib import Path

from antiphon.app.keys import key_problems
from antiphon.config.settings import Settings
from antiphon.errors import ConfigError
from antiphon.stores.backend import Archived, KeyName
from antiphon.stores.choice import backend_of


def backup(settings: Settings, target: Path, *, with_keys: bool) -> str:
    """Write the archive; what to tell the operator. Raises `StoreError`, and `ConfigError` when a key is lost already:
    such an archive could not be used."""
    if problems := key_problems(settings):
        raise ConfigError(problems[0])
    in_force = {name: keys or _made(settings.data / name) for name, keys in _configured(settings).items()}
    here = settings.blobs.url is None
    done = backend_of(settings.state, settings.data).make_archive(
        target, in_force, with_keys=with_keys, with_contents=here
    )
    told = [f"{target}: {_counted(done)}"]
    if done.vanished:
        told.append(f"{done.vanished} files that were deleted meanwhile are not in it")
    if not here:
        told.append(f"the contents of files are not in it: they lie in {settings.blobs.url}")
    if done.keys:
        told.append(f"it holds {' and '.join(done.keys)}: whoever reads it can read what is stored and sealed")
    if missing := [name for name, keys in in_force.items() if keys and name not in done.keys]:
        what = " and ".join(missing)
        told.append(f"it does not hold {what}, without which it cannot be restored: keep them elsewhere")
    return "\n".join(told)


def restore(settings: Settings, source: Path) -> str:
    """Make the data folder from the archive; what to tell the operator. Raises `StoreError`."""
    done = backend_of(settings.state, settings.data).open_archive(source, _configured(settings))
    return f"{settings.data}: {_counted(done)}"


def _counted(done: Archived) -> str:
    return f"{done.size} bytes, the databases and the contents of {done.contents} files"


def _configured(settings: Settings) -> dict[KeyName, tuple[bytes, ...]]:
    owner = settings.owner.key
    return {
        "owner.key": (owner.get_secret_value().encode(),) if owner is not None else (),
        "sealing.key": tuple(key.get_secret_value().encode() for key in settings.sealing.keys),
    }


def _made(path: Path) -> tuple[bytes, ...]:
    return (path.read_bytes().strip(),) if path.exists() else ()
