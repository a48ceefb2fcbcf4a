"""Creates the data folder, and key files in the data folder for keys that the settings do not contain.

This module also reads keys, and checks whether other users can write to the data folder. `app/keys.py` knows the
purpose of a key, and which stored data depends on the key.

Invariants: a key file gets mode 0600 before it gets content. If several processes start concurrently, all use the same
complete key. If stored data depends on a lost key, no new key replaces the lost key.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from antiphon.errors import ConfigError

ADMIN_TOKEN: Final = "admin.token"
"""The name of the file with the admin token that Antiphon created."""
_LEAST = 32


def local_key(folder: Path, name: str, depends: Callable[[], str] = lambda: "") -> bytes:
    """Return the key `name` of this data folder (64 hexadecimal digits). If the key is missing, the function creates
    it. Raises `ConfigError`.

    Before this function creates a key, it calls `depends`. `depends` returns a description of stored data that a new
    key would make unreadable, or an empty string. If the string is not empty, the function raises `ConfigError` and
    creates no key.
    """
    path = folder / name
    try:
        if not path.exists():
            if lost := depends():
                raise ConfigError(is_gone(path, lost))
            _make(path)
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"data: the key file {path} cannot be created or read: {error.strerror}") from None
    if len(key) < _LEAST:
        raise ConfigError(
            f"data: the key file {path} contains no key. Restore the file from a backup, or move it away so that "
            "Antiphon creates a new key"
        )
    return key


def is_gone(path: Path, lost: str) -> str:
    """The error message about a missing key file. `lost` describes the stored data that depends on the key."""
    return f"data: the key file {path} is missing. {lost}"


def _make(path: Path) -> None:
    # The draft file gets the content and is then linked to `path`, so no process ever reads an incomplete key.
    draft = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"
    draft.touch(mode=0o600)
    try:
        draft.write_bytes(secrets.token_hex(32).encode())
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def prepare_data(folder: Path) -> None:
    """Create the data folder with mode 0700 if it does not exist. Raises `ConfigError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data: the folder {folder} cannot be created: {error.strerror}; choose another folder with --data"
        ) from None


def exposed(folder: Path, found: os.stat_result, user: int) -> tuple[Literal["problem", "note"], str, str] | None:
    """Check whether other users of this machine can replace the keys and databases in the data folder.

    Returns the severity, a description and advice, or None if no other user can replace files. `found` is the result of
    `stat` for the folder, and `user` is the uid of this process. For a folder that root owns, the severity is never
    `problem`, because a volume of a container usually belongs to root.
    """
    whose = "" if found.st_uid in (user, 0) else f"belongs to another user (uid {found.st_uid})"
    open_to = "lets every user of this machine write" if found.st_mode & stat.S_IWOTH else ""
    if not whose and not open_to:
        return None
    what = (
        f"data folder {folder} {' and '.join(filter(None, (whose, open_to)))}, so other users can replace the keys "
        "and the stored data"
    )
    advice = "choose another folder with --data, or make this user the folder's owner and run chmod 700 on the folder"
    return "problem" if whose and open_to else "note", what, advice
