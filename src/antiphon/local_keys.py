"""Creates the data folder, and the keys in it when none is configured.

Lives here: the folder, which only this user can access when it is new, and the file of a key. Also whether other users
can write in a folder that existed before. Not here: the purpose of a key, and the
data that depends on it (`app/keys.py`).

Invariant: the file has mode 0600 before it has content. If several processes start at once, all use one complete key.
No key is created in place of a lost one that stored data depends on.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from antiphon.errors import ConfigError

_LEAST = 32


def local_key(folder: Path, name: str, depends: Callable[[], str] = lambda: "") -> bytes:
    """The key `name` of this data folder (64 hexadecimal digits), created if it is missing. Raises `ConfigError`.

    `depends` is called before a creation. If its result is not empty, it describes the data that would be lost, and the
    key is not created.
    """
    path = folder / name
    try:
        if not path.exists():
            if lost := depends():
                raise ConfigError(is_gone(path, lost))
            _make(path)
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"data: the key file {path} cannot be made or read: {error.strerror}") from None
    if len(key) < _LEAST:
        raise ConfigError(f"data: the key file {path} holds no key; restore it, or move it away")
    return key


def is_gone(path: Path, lost: str) -> str:
    """The error message about a key that is not created again."""
    return f"data: the key file {path} is gone, and {lost}"


def _make(path: Path) -> None:
    # Written under another name and linked, so no process ever reads an incomplete key.
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
    """Create the folder. Raises `ConfigError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data: the folder {folder} cannot be created: {error.strerror}; choose another with --data"
        ) from None


def exposed(folder: Path, found: os.stat_result, user: int) -> tuple[Literal["problem", "note"], str, str] | None:
    """Which other users of this machine can exchange the keys and databases in the data folder: how bad it is, what is
    wrong, and advice. `found` is the folder's status, `user` this process's. None when no other user can.

    A folder of root is the usual volume of a container, also one in which every user may write.
    """
    whose = "" if found.st_uid in (user, 0) else f"belongs to another user (uid {found.st_uid})"
    open_to = "lets every user of this machine write" if found.st_mode & stat.S_IWOTH else ""
    if not whose and not open_to:
        return None
    what = f"data folder {folder} {' and '.join(filter(None, (whose, open_to)))}: keys and stored data are not safe"
    advice = "choose another with --data, or give it to this user and run chmod 700 on it"
    return "problem" if whose and open_to else "note", what, advice
